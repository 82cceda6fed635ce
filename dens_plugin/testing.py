"""Contracts as test classes: subclass one in a test module, give its fixture, and pytest runs all of it.

Example::

    class TestMine(ObjectiveContract):
        @pytest.fixture
        def objective(self):
            return Mine()
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from e3nn import o3
from fairchem.core.common.registry import registry
from torch import nn
from torch_geometric.data import Batch, Data

from dens_plugin.backbones.description import describe
from dens_plugin.backbones.family import families
from dens_plugin.backbones.neighbours import Search, with_neighbours
from dens_plugin.fields import (
    CORRUPTION,
    MD,
    NOISE,
    ROWS,
    Corruption,
    Rows,
    corruption_of,
    free_atoms,
    md_structures,
    rows_of,
)
from dens_plugin.objectives.base import Objective
from dens_plugin.objectives.noise import StructureRandom
from dens_plugin.padding.budgets import Budget
from dens_plugin.padding.pad import pad
from dens_plugin.training.loading import loader_search

_SEARCH = Search(4.0, 20, strictly=True, use_pbc=True, use_pbc_single=False)
EPOCH = StructureRandom(seed=3, epoch=1)
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}  # of sums over other numbers of edges, relative


def random_structure(natoms: int, *, seed: int = 0, sid: int = 0) -> Data:
    """A periodic structure with labels, half of its atoms fixed; distances are those of a dense solid.

    Args:
        natoms: number of atoms.
        seed: of everything random.
        sid: its identifier.
    """
    generator = torch.Generator().manual_seed(seed)
    side = 2.4 * natoms ** (1 / 3) + 1.0
    return Data(
        pos=torch.rand(natoms, 3, generator=generator) * side,
        cell=(torch.eye(3) * side + 0.3 * torch.rand(3, 3, generator=generator))[None],
        atomic_numbers=torch.randint(1, 80, (natoms,), generator=generator),
        natoms=natoms,
        fixed=(torch.arange(natoms) % 2 == 1).int(),
        tags=torch.ones(natoms, dtype=torch.long),
        energy=torch.randn((), generator=generator).item(),
        forces=torch.randn(natoms, 3, generator=generator),
        sid=sid,
        fid=0,
    )


def random_batch(sizes: tuple[int, ...] = (7, 4, 10), *, seed: int = 0) -> Batch:
    """A batch of random structures of the given sizes."""
    structures = [random_structure(size, seed=seed + index, sid=index) for index, size in enumerate(sizes)]
    return Batch.from_data_list(structures)


def corrupted_batch(batch: Batch, mask: torch.Tensor, *, seed: int = 0) -> Batch:
    """The batch with the atoms of ``mask`` (N,) moved, as a training loader would hand it to a model."""
    noise = torch.randn(batch.pos.shape, generator=torch.Generator().manual_seed(seed)).to(batch.pos) * 0.1
    noise = torch.where(mask[:, None], noise, noise.new_zeros(()))
    encoded = torch.where(mask[:, None], batch.forces, noise.new_zeros(()))
    corrupted = copy.copy(batch)
    corrupted.pos = batch.pos + noise
    corrupted[CORRUPTION] = Corruption(mask, noise, noise.new_full((batch.num_graphs,), 0.1), encoded)
    corrupted[ROWS] = rows_around(mask, batch)
    return corrupted


def rows_around(mask: torch.Tensor, batch: Batch) -> dict[str, Rows]:
    """Energies of all structures, noise of the atoms of ``mask`` (N,), forces of the others."""
    return {
        "energy": every_structure(batch),
        "forces": Rows(~mask, (~mask).sum()),
        NOISE: Rows(mask, mask.sum()),
    }


def every_structure(batch: Batch) -> Rows:
    """Rows of an output of structures that counts in full."""
    mask = torch.ones(batch.num_graphs, dtype=torch.bool, device=batch.pos.device)
    return Rows(mask, mask.sum())


def every_atom(batch: Batch) -> Rows:
    """Rows of an output of atoms that counts in full."""
    mask = torch.ones(batch.num_nodes, dtype=torch.bool, device=batch.pos.device)
    return Rows(mask, mask.sum())


def mixed_batch() -> tuple[Batch, Batch]:
    """Three structures in the default dtype: clean ones, and the same with half of the last one's atoms corrupted."""
    batch = cast(random_batch(), torch.get_default_dtype())
    mask = (batch.batch == 2) & (torch.arange(batch.num_nodes) % 2 == 0)
    return batch, corrupted_batch(batch, mask)


class ObjectiveContract:
    """What every objective keeps; the fixture ``objective`` gives it, best with a high probability of corruption.

    An objective may prepare other structures than it was given, as clean and corrupted copies: they are told apart by
    ``sid``.
    """

    def test_leaves_its_input_alone(self, objective: Objective) -> None:
        """`corrupt` and `prepare` return new batches."""
        batch = random_batch()
        before = {key: value.clone() for key, value in batch.to_dict().items() if torch.is_tensor(value)}
        objective.prepare(batch, EPOCH)
        assert all(torch.equal(batch[key], value) for key, value in before.items())
        assert CORRUPTION not in batch
        assert ROWS not in batch

    def test_repeats_itself(self, objective: Objective) -> None:
        """The same seed, epoch and structure give the same batch."""
        assert torch.equal(*(objective.prepare(random_batch(), EPOCH).pos for _ in range(2)))

    def test_does_not_depend_on_batching_or_order(self, objective: Objective) -> None:
        """A structure is corrupted in the same way alone, in a batch, and in another order."""
        structures = [random_structure(6, seed=index, sid=index) for index in range(6)]
        together = positions_by_sid(objective.prepare(Batch.from_data_list(structures), EPOCH))
        backwards = positions_by_sid(objective.prepare(Batch.from_data_list(structures[::-1]), EPOCH))
        for sid, structure in enumerate(structures):
            alone = positions_by_sid(objective.prepare(Batch.from_data_list([structure]), EPOCH))
            assert torch.equal(together[sid], backwards[sid])
            assert torch.equal(together[sid], alone[sid])

    def test_leaves_fixed_atoms_alone(self, objective: Objective) -> None:
        """Fixed atoms neither move, nor are encoded, nor count."""
        batch = random_batch((40, 40))
        prepared = objective.prepare(batch, EPOCH)
        fixed = ~free_atoms(prepared)
        assert torch.equal(prepared.pos[fixed], originals(batch, prepared)[fixed])
        corruption = corruption_of(prepared)
        if corruption is not None:
            assert not corruption.forces[fixed].any()
        for rows in of_atoms(objective, prepared):
            assert not rows.mask[fixed].any()

    def test_leaves_md_alone(self, objective: Objective) -> None:
        """Structures flagged as molecular dynamics are never corrupted."""
        batch = random_batch((20, 20))
        batch[MD] = torch.tensor([True, False])
        prepared = objective.prepare(batch, EPOCH)
        md = md_structures(prepared)[prepared.batch]
        assert torch.equal(prepared.pos[md], originals(batch, prepared)[md])

    def test_no_row_is_asked_for_two_vectors(self, objective: Objective) -> None:
        """Of an atom either the force is asked, or one of the objective's own outputs."""
        prepared = objective.prepare(random_batch((40, 40)), EPOCH)
        assert sum(rows.mask.long() for rows in of_atoms(objective, prepared)).max() <= 1

    def test_survives_degenerate_structures(self, objective: Objective) -> None:
        """One atom, and no free atom."""
        structure = random_structure(4, sid=1)
        structure.fixed = torch.ones(4, dtype=torch.int)
        batch = Batch.from_data_list([random_structure(1), structure])
        prepared = objective.prepare(batch, EPOCH)
        assert torch.equal(positions_by_sid(prepared)[1].unique(dim=0), structure.pos.unique(dim=0))

    def test_counts_no_ghost(self, objective: Objective) -> None:
        """Of a padded batch the same is compared and watched, whatever a network makes of ghosts."""
        batch = with_neighbours(objective.prepare(random_batch(), EPOCH), _SEARCH)
        padded, generator = with_ghosts(batch), torch.Generator().manual_seed(0)
        known, found = {}, {}
        for output in (*objective.labels, *objective.outputs):
            real, every = (len(each.pos) if output.level == "atom" else each.num_graphs for each in (batch, padded))
            known[output.name] = torch.randn(real, output.dim, generator=generator)
            nothing = torch.full((every - real, output.dim), torch.nan)
            found[output.name] = torch.cat([known[output.name], nothing])
        for output in objective.outputs:
            chosen = rows_of(batch)[output.name].where()
            for of_real, of_every in (
                (objective.predictions(known, batch), objective.predictions(found, padded)),
                (objective.targets(batch), objective.targets(padded)),
            ):
                assert torch.equal(of_every[output.name][chosen], of_real[output.name][chosen])
        watched = objective.metrics(found, padded)
        for name, errors in objective.metrics(known, batch).items():
            assert torch.equal(watched[name].number(), errors.number())
            assert_close(watched[name].total(), errors.total(), 1e-6)

    def test_rows_are_of_its_labels_and_outputs(self, objective: Objective) -> None:
        """All of them, of as many rows as there are atoms or structures, and each with a target and a weight."""
        prepared = objective.prepare(random_batch(), EPOCH)
        outputs = (*objective.labels, *objective.outputs)
        assert set(rows_of(prepared)) == {output.name for output in outputs}
        sizes = {"atom": len(prepared.pos), "structure": prepared.num_graphs}
        assert all(len(rows_of(prepared)[output.name].mask) == sizes[output.level] for output in outputs)
        own = {output.name for output in objective.outputs}
        assert set(objective.coefficients(0.5)) == set(objective.targets(prepared)) == own


def with_ghosts(batch: Batch) -> Batch:
    """A batch with a record of its neighbours, padded to a size that is a third larger."""
    need = Budget.of(batch)
    return pad(batch, need.rounded(0.3).with_room_for([need]))


def positions_by_sid(batch: Batch) -> dict[int, torch.Tensor]:
    """Of each ``sid`` the positions (n, 3) of all structures that have it, in order."""
    of_atoms = torch.as_tensor(batch.sid)[batch.batch]
    return {sid: batch.pos[of_atoms == sid] for sid in set(torch.as_tensor(batch.sid).tolist())}


def originals(batch: Batch, prepared: Batch) -> torch.Tensor:
    """(N', 3) the positions in ``batch`` of the atoms of a batch that was prepared from it."""
    known = positions_by_sid(batch)
    return torch.cat([known[sid] for sid in torch.as_tensor(prepared.sid).tolist()])


def of_atoms(objective: Objective, prepared: Batch) -> list[Rows]:
    """Rows of the outputs that are vectors of atoms."""
    outputs = (*objective.labels, *objective.outputs)
    return [rows_of(prepared)[output.name] for output in outputs if output.level == "atom"]


class BackboneContract:
    """What every model with DeNS keeps; the subclass's `build` gives a small one in the default dtype, in eval mode.

    It has outputs ``energy``, ``forces`` and, for a prepared batch, ``noise``, and should have no dropout.
    """

    tolerance: ClassVar[dict[torch.dtype, float]] = {torch.float32: 1e-4, torch.float64: 1e-9}
    """Of equivariance in each precision, relative to the largest component; activations on a grid need more, and
    fairchem's periodic graphs exist in float32 only."""

    def build(self) -> nn.Module:
        """A new model."""
        raise NotImplementedError

    @pytest.fixture
    def model(self) -> nn.Module:
        """A model with weights large enough for every part to matter."""
        torch.manual_seed(0)
        return self.build()

    def test_is_equivariant(self) -> None:
        """Rotated positions, cells and encoded forces give the same energy, rotated forces and rotated noise."""
        for dtype, tolerance in self.tolerance.items():
            with default_dtype(dtype):
                torch.manual_seed(0)
                model, rotation = self.build(), o3.rand_matrix()
                batch = cast(random_batch(), dtype)
                batch = corrupted_batch(batch, torch.arange(batch.num_nodes) % 3 == 0)
                plain, turned = predict(model, batch), predict(model, rotated(batch, rotation))
            assert_close(turned["energy"], plain["energy"], tolerance)
            for name in ("forces", NOISE):
                assert plain[name].abs().max() > 0
                assert_close(turned[name], plain[name] @ rotation.T, tolerance)

    def test_says_what_it_is(self, model: nn.Module) -> None:
        """By `describe`, and its family by names that exist."""
        known = describe(model)
        assert known.encodes_forces
        assert (known.cutoff or 0) > 0
        assert random_batch().atomic_numbers.max() < known.elements
        assert isinstance(known.periodic, bool)
        assert known.search is not None or known.own_search
        assert known.family in families()
        names = {known.family.backbone, known.family.auxiliary, *known.family.heads.values()}
        names |= {known.family.plain or known.family.backbone, *known.family.plain_heads.values()}
        assert all(registry.get_model_class(name) for name in names)

    def test_reads_no_labels(self, model: nn.Module) -> None:
        """Predictions of a batch that no training loader touched do not change with its labels."""
        batch, other = random_batch(), random_batch()
        other.forces, other.energy = other.forces * 7 + 1, other.energy - 3
        first, second = predict(model, batch), predict(model, other)
        assert all(torch.equal(first[name], second[name]) for name in ("energy", "forces"))

    def test_encodes_forces_of_corrupted_atoms(self, model: nn.Module) -> None:
        """The noise prediction depends on the encoded forces, and on no others."""
        batch = random_batch()
        mask = torch.arange(batch.num_nodes) % 3 == 0
        corrupted, other = corrupted_batch(batch, mask), corrupted_batch(batch, mask)
        other[CORRUPTION] = other[CORRUPTION]._replace(forces=-other[CORRUPTION].forces)
        assert not torch.allclose(predict(model, corrupted)[NOISE], predict(model, other)[NOISE])

    def test_no_corruption_is_the_plain_model(self, model: nn.Module) -> None:
        """An empty record gives the numbers of a batch without one, bit for bit."""
        batch = random_batch()
        empty = corrupted_batch(batch, torch.zeros(batch.num_nodes, dtype=torch.bool))
        plain, prepared = predict(model, batch), predict(model, empty)
        assert all(torch.equal(plain[name], prepared[name]) for name in ("energy", "forces"))

    def test_noise_head_rests_at_inference(self, model: nn.Module) -> None:
        """Without rows there is no noise prediction."""
        assert NOISE not in predict(model, random_batch())

    @pytest.mark.parametrize("names", [(), ("energy",), ("forces",), (NOISE,), ("forces", NOISE)])
    def test_what_has_no_rows_is_not_computed(self, model: nn.Module, names: tuple[str, ...]) -> None:
        """By any head; what has rows is what it is beside the others."""
        batch = random_batch()
        prepared = corrupted_batch(batch, torch.arange(batch.num_nodes) % 3 == 0)
        fewer = copy.copy(prepared)
        fewer[ROWS] = {name: prepared[ROWS][name] for name in names}
        found, everything = predict(model, fewer), predict(model, prepared)
        assert set(found) == set(names)
        assert set(everything) == {"energy", "forces", NOISE}
        assert all(torch.equal(found[name], everything[name]) for name in names)

    def test_trimmed_heads_equal_full_ones(self, model: nn.Module) -> None:
        """Rows that are asked for are those of the full prediction, the others zero."""
        batch = random_batch()
        mask = torch.arange(batch.num_nodes) % 3 == 0
        corrupted = corrupted_batch(batch, mask)
        full = copy.copy(corrupted)
        full[ROWS] = dict.fromkeys(("forces", NOISE), every_atom(batch))
        trimmed, complete = predict(model, corrupted), predict(model, full)
        assert_close(trimmed["forces"][~mask], complete["forces"][~mask], 1e-5)
        assert_close(trimmed[NOISE][mask], complete[NOISE][mask], 1e-5)
        assert not trimmed["forces"][mask].any()
        assert not trimmed[NOISE][~mask].any()

    def test_clean_structures_do_not_notice_corrupted_ones(self) -> None:
        """Of a mixed batch they get what they get in a clean one, in training too."""
        for dtype in self.tolerance:
            with default_dtype(dtype):
                torch.manual_seed(0)
                model, (batch, corrupted) = self.build().train(), mixed_batch()
                plain, mixed = predict(model, batch), predict(model, corrupted)
            clean, rounding = batch.batch < 2, _ROUNDING[dtype]
            assert_close(mixed["energy"][:2], plain["energy"][:2], rounding / 10)
            assert_close(mixed["forces"][clean], plain["forces"][clean], rounding)
            assert (mixed["energy"][2] - plain["energy"][2]).abs() > 1e-6

    @pytest.mark.parametrize("corrupted", ["some", "none", "all"])
    def test_every_parameter_has_a_gradient(self, model: nn.Module, corrupted: str) -> None:
        """Zero rather than none where nothing was asked for, as distributed training needs."""
        batch = random_batch()
        count = {"some": batch.num_nodes // 2, "none": 0, "all": batch.num_nodes}[corrupted]
        prepared = corrupted_batch(batch, torch.arange(batch.num_nodes) < count)
        model.train()  # fairchem's activation checkpointing keeps no gradients in eval mode
        sum(value.square().sum() for value in predict(model, prepared).values()).backward()
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        missing = [name for name, value in trained if value.grad is None]
        assert not missing

    def test_works_without_edges(self, model: nn.Module) -> None:
        """Single atoms far from everything have an energy and no forces."""
        structure = random_structure(1)
        structure.cell = torch.eye(3)[None] * 60
        out = predict(model, Batch.from_data_list([structure, structure]))
        assert torch.isfinite(out["energy"]).all()
        assert out["forces"].abs().max() < 1e-6

    def test_ghosts_change_nothing(self) -> None:
        """Of a batch that is filled up to a size, for a model that reads the loader's neighbours."""
        model = self.build()
        if describe(model).search is None:
            pytest.skip("it reads no neighbours")
        search = loader_search(model, {"loader_graph": True})
        batch = with_neighbours(corrupted_batch(random_batch(), torch.arange(21) % 3 == 0), search)
        plain, padded = predict(model, batch), predict(model, with_ghosts(batch))
        for name, value in plain.items():
            assert_close(padded[name][: len(value)], value, self.tolerance.get(torch.float32, 1e-4) / 10)

    def test_structures_keep_their_own_periodicity(self, model: nn.Module) -> None:
        """A crystal, a slab and a molecule in one batch get what each gets alone."""
        structures = [random_structure(size, seed=size) for size in (7, 4, 10)]
        for structure, pbc in zip(structures, ([True] * 3, [True, True, False], [False] * 3), strict=True):
            structure.pbc = torch.tensor(pbc)
        together = predict(model, Batch.from_data_list(structures))
        alone = [predict(model, Batch.from_data_list([structure])) for structure in structures]
        for name in ("energy", "forces"):
            expected = torch.cat([out[name] for out in alone])
            assert_close(together[name], expected, self.tolerance.get(torch.float32, 1e-4))

    def test_builds_no_graph_at_inference(self, model: nn.Module) -> None:
        """Under `torch.no_grad` nothing is kept for a backward pass."""
        with torch.no_grad():
            out = predict(model, random_batch())
        assert not any(value.requires_grad for value in out.values())


class GradientForceContract(BackboneContract):
    """What a model keeps besides whose forces are the gradient of its energy, in float64, which it must know."""

    parts: ClassVar[tuple[str, ...]]
    """Names of parameters, one in every part of the model."""

    def test_forces_are_minus_the_gradient_of_the_energy(self) -> None:
        """By finite differences, at the positions of a mixed batch, the encoded forces staying as they are."""
        with default_dtype(torch.float64):
            torch.manual_seed(0)
            model, (_, batch) = self.build(), mixed_batch()
            batch[ROWS] = batch[ROWS] | {"forces": every_atom(batch)}  # also of the corrupted ones
            forces = predict(model, batch)["forces"].flatten()
            assert forces.abs().min() > 0
            for index in (0, 25, 38, 39):  # of atoms in the first two structures, and corrupted or not in the last
                assert forces[index].abs() > 1e-6
                slope = _slope(lambda: predict(model, batch)["energy"].sum(), batch.pos, index)
                assert slope == pytest.approx(-forces[index].item(), abs=1e-9)

    def test_says_that_it_differentiates(self) -> None:
        """For checks of what forces as gradients need."""
        assert describe(self.build()).differentiates

    def test_energies_alone_take_no_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a batch asks for no forces."""
        model, batch = self.build(), cast(random_batch(), torch.get_default_dtype())
        batch[ROWS] = {"energy": every_structure(batch)}
        monkeypatch.setattr(torch.autograd, "grad", None)
        assert set(predict(model, batch)) == {"energy"}

    def test_parameter_gradients_through_the_forces(self) -> None:
        """Double backward against finite differences of the loss, in every part of the model."""
        with default_dtype(torch.float64):
            torch.manual_seed(0)
            model, (_, batch) = self.build().train(), mixed_batch()
            mixed_loss(model, batch).backward()
            for name in self.parts:
                parameter = model.get_parameter(name)
                index = int(parameter.grad.abs().argmax())
                expected = parameter.grad.view(-1)[index].item()
                assert abs(expected) > 1e-4, name
                slope = _slope(lambda: mixed_loss(model, batch), parameter, index)
                assert slope == pytest.approx(expected, rel=1e-5), name


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within the context, new tensors have this floating-point type, which fairchem modules rely on."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def predict(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """One forward pass with the same random edge frames every time."""
    torch.manual_seed(0)
    return model(copy.copy(batch))


def mixed_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Of the shape of the trainer's: energies of all, forces and noise where they count, no zeros among them."""
    out, labels, rows = predict(model, batch), batch[CORRUPTION].noise * 10, rows_of(batch)
    forces = (out["forces"] - batch.forces)[rows["forces"].mask].norm(dim=-1).sum()
    noise = (out[NOISE] - labels)[rows[NOISE].mask].norm(dim=-1).sum()
    return (out["energy"] - batch.energy).abs().sum() + forces + noise


def _slope(function: Callable[[], torch.Tensor], tensor: torch.Tensor, index: int, step: float = 1e-5) -> float:
    """Derivative of the function by one element of a tensor that it reads, by central differences."""
    element, values = tensor.detach().view(-1)[index], []
    middle = element.clone()
    for sign in (1, -1):
        element.copy_(middle + sign * step)
        values.append(function().item())
    element.copy_(middle)
    return (values[0] - values[1]) / (2 * step)


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its floating-point tensors in ``dtype``."""
    return batch.clone().apply(lambda value: value.to(dtype) if value.is_floating_point() else value)


def rotated(batch: Batch, rotation: torch.Tensor) -> Batch:
    """The batch with positions, cells and encoded forces turned by ``rotation`` (3, 3)."""
    turned = copy.copy(batch)
    turned.pos, turned.cell = batch.pos @ rotation.T, batch.cell @ rotation.T
    corruption: Any = corruption_of(batch)
    if corruption is not None:
        turned[CORRUPTION] = corruption._replace(
            forces=corruption.forces @ rotation.T, noise=corruption.noise @ rotation.T
        )
    return turned


def assert_close(value: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Assert equality up to ``tolerance`` times the largest expected component."""
    error = (value - expected).abs().max().item()
    scale = expected.abs().max().item()
    assert error <= tolerance * scale, f"off by {error:.1e}, where values are up to {scale:.1e}"

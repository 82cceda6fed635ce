"""The same minima as ASE's, whatever else is in the batch and whatever fails in it."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.optimize import LBFGS
from fairchem.core.common.relaxation import OptimizableBatch, ml_relax
from relaxation_samples import PAPER, EMTPotential, as_atoms, by_sid, same, slab
from torch_geometric.data import Batch

from dens_plugin.relaxation import folder as relaxation_folder
from dens_plugin.relaxation.minimiser import ExactBatch, outcomes
from dens_plugin.relaxation.settings import RelaxationSettings

OptimizableBatch.__abstractmethods__ = frozenset()  # see ExactBatch: fairchem's own class, to compare with


@pytest.fixture(scope="module")
def relaxed():
    """Three slabs of two sizes, relaxed together."""
    structures = [slab(0), slab(1, copies=2), slab(2)]
    potential = EMTPotential()
    return structures, by_sid(outcomes(structures, potential, PAPER)), potential


class TestMinimiser:
    def test_the_minimum_is_ases(self, relaxed):
        structures, found, _ = relaxed
        for structure in structures:
            atoms = as_atoms(structure)
            atoms.set_constraint(relaxation_folder.FixAtoms(mask=(structure.fixed == 1).numpy()))
            atoms.calc = EMT()
            LBFGS(atoms, maxstep=0.2, memory=50, damping=1.2, alpha=80.0, logfile=None).run(fmax=0.02, steps=300)
            outcome = found[str(structure.sid)]
            assert outcome.status == "converged"
            assert abs(outcome.frames[-1].energy - atoms.get_potential_energy()) < 1e-4  # eV; float32 positions
            assert np.abs(outcome.frames[-1].pos - atoms.positions).max() < 5e-3
            assert outcome.frames[-1].energy < outcome.frames[0].energy - 0.01

    def test_forces_are_small_when_asked_anew(self, relaxed):
        for outcome in relaxed[1].values():
            moved = copy.copy(outcome.structure)
            moved.pos = torch.from_numpy(outcome.frames[-1].pos)
            forces = EMTPotential().predict(Batch.from_data_list([moved]))["forces"]
            assert forces[moved.fixed == 0].norm(dim=1).max() < PAPER.fmax

    def test_fixed_atoms_do_not_move_at_all(self, relaxed):
        for outcome in relaxed[1].values():
            start, fixed = outcome.structure.pos.numpy(), outcome.structure.fixed.numpy() == 1
            assert fixed.any()
            assert np.array_equal(outcome.frames[-1].pos[fixed], start[fixed])
            assert not np.array_equal(outcome.frames[-1].pos, start)

    def test_a_structure_does_not_see_its_batch(self, relaxed):
        structures, together, _ = relaxed
        for structure in structures:
            (alone,) = outcomes([structure], EMTPotential(), PAPER)
            assert same(alone, together[str(structure.sid)])

    def test_relaxed_structures_cost_nothing_more(self, relaxed):
        _, found, potential = relaxed
        asked = list(itertools.chain(*potential.calls))
        assert len({outcome.steps for outcome in found.values()}) > 1
        assert all(asked.count(sid) == outcome.steps + 1 for sid, outcome in found.items())

    def test_fairchem_walks_the_same_way(self):
        """Up to its stale forces, which moves of tenths of an Å near the origin do not meet."""
        settings = RelaxationSettings(steps=4, fmax=1e-6)
        (ours,) = outcomes([slab(3)], EMTPotential(), settings)
        batch = Batch.from_data_list([slab(3)])
        theirs = ml_relax(batch, EMTPotential(), 4, 1e-6, dict(settings.optimizer), save_full_traj=False)
        assert np.abs(ours.frames[-1].pos - theirs.pos.numpy()).max() < 1e-5

    def test_forces_are_never_stale(self):
        """fairchem takes a move of 1e-4 Å for none where coordinates are above 10 Å."""
        far = slab(0)
        far.pos = far.pos + 30.0
        asked = {}
        for cls in (OptimizableBatch, ExactBatch):
            potential = EMTPotential()
            batch = Batch.from_data_list([far])
            batch.pbc = torch.ones(1, 3, dtype=torch.bool)
            structures = cls(batch, potential, mask_converged=False)
            structures.get_forces()
            structures.set_positions(structures.get_positions() + 1e-4)
            structures.get_forces()
            structures.get_forces()
            asked[cls] = len(potential.calls)
        assert asked == {OptimizableBatch: 1, ExactBatch: 2}

    def test_no_step_is_a_single_point(self):
        (outcome,) = outcomes([slab(0)], EMTPotential(), RelaxationSettings(steps=0))
        assert (outcome.status, outcome.steps, len(outcome.frames)) == ("out_of_steps", 0, 1)
        assert np.array_equal(outcome.frames[0].pos, slab(0).pos.numpy())

    def test_without_free_atoms_all_is_done(self):
        structure = slab(0)
        structure.fixed = torch.ones_like(structure.fixed)
        (outcome,) = outcomes([structure], EMTPotential(), PAPER)
        assert (outcome.status, outcome.steps, outcome.frames[-1].fmax) == ("converged", 0, 0.0)

    def test_steps_can_run_out(self, relaxed):
        settings = RelaxationSettings(steps=3, trajectory="full")
        found = by_sid(outcomes(relaxed[0], EMTPotential(), settings))
        assert {outcome.status for outcome in found.values()} == {"out_of_steps"}
        assert {len(outcome.frames) for outcome in found.values()} == {4}

    def test_a_flat_surface_does_not_divide_by_zero(self):
        """Constant forces: y·s = 0 at every step; the structure goes on downhill, its neighbour is not disturbed."""

        class Tilted(EMTPotential):
            def one(self, batch, index):
                if batch.sid[index] != 5:
                    return super().one(batch, index)
                mask = batch.batch == index
                forces = np.tile([0.0, 0.0, 0.5], (int(mask.sum()), 1))
                return -float((forces * batch.pos[mask].numpy()).sum()), forces

        found = by_sid(outcomes([slab(5), slab(0)], Tilted(), RelaxationSettings(steps=30)))
        free = found["5"].structure.fixed.numpy() == 0
        moved = (found["5"].frames[-1].pos - found["5"].structure.pos.numpy())[free]
        assert np.isfinite(moved).all()
        assert np.allclose(moved, [0, 0, 30 * 1.2 * 0.5 / 80], atol=1e-4)
        (alone,) = outcomes([slab(0)], EMTPotential(), RelaxationSettings(steps=30))
        assert same(found["0"], alone)

    def test_a_flat_stretch_is_forgotten(self):
        """A slope that ends in a bowl of 2 eV/Å²: steps along the forces alone would take a hundred for it."""

        class Huber(EMTPotential):
            def one(self, batch, index):
                away = (batch.pos - slab(0).pos).double().numpy() + 0.108
                return 0.0, -2.0 * np.clip(away, -0.1, 0.1)

        (outcome,) = outcomes([slab(0)], Huber(), RelaxationSettings(trajectory="full"))
        pushed = [frame.forces.min() for frame in outcome.frames]
        assert pushed[0] == pushed[1] == pushed[2] < pushed[-1]
        assert outcome.status == "converged"
        assert outcome.steps < 15


class TestFailures:
    @pytest.mark.parametrize("at", [0, 3])
    @pytest.mark.parametrize("part", ["energy", "forces"])
    def test_what_is_not_finite_stops_that_structure_alone(self, relaxed, at, part):
        structures, expected, _ = relaxed

        class Diverging(EMTPotential):
            def one(self, batch, index):
                energy, forces = super().one(batch, index)
                if batch.sid[index] == 1 and len(self.calls) > at:
                    return (np.nan, forces) if part == "energy" else (energy, forces * np.inf)
                return energy, forces

        found = by_sid(outcomes(structures, Diverging(), PAPER))
        assert same(found["0"], expected["0"])
        assert same(found["2"], expected["2"])
        assert found["1"].status == "not_finite"
        assert found["1"].steps == max(at - 1, 0)
        assert np.isfinite(found["1"].frames[-1].pos).all()
        assert found["1"].frames[-1].finite == (at > 0)

    @pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate"), MemoryError()])
    def test_what_does_not_fit_is_halved(self, relaxed, error):
        structures, expected, _ = relaxed

        class Small(EMTPotential):
            def predict(self, batch, per_image=False, disable_tqdm=True):
                if batch.num_graphs > 1 or batch.sid[0] == 2:
                    raise error
                return super().predict(batch)

        found = by_sid(outcomes(structures, Small(), PAPER))
        assert same(found["0"], expected["0"])
        assert same(found["1"], expected["1"])
        assert found["2"].status == "out_of_memory"
        assert np.array_equal(found["2"].frames[-1].pos, structures[2].pos.numpy())

    def test_what_was_done_before_memory_ran_out_is_kept(self, relaxed):
        structures, expected, _ = relaxed
        first = min(expected.values(), key=lambda outcome: outcome.steps)

        class Shrinking(EMTPotential):
            def predict(self, batch, per_image=False, disable_tqdm=True):
                if len(self.calls) == first.steps + 1 and batch.num_graphs > 1:
                    raise MemoryError
                return super().predict(batch)

        potential = Shrinking()
        found = by_sid(outcomes(structures, potential, PAPER))
        assert all(same(found[sid], outcome) for sid, outcome in expected.items())
        assert sum(str(first.structure.sid) in sids for sids in potential.calls) == first.steps + 1

    def test_other_errors_are_not_taken_for_memory(self):
        class Broken(EMTPotential):
            def predict(self, batch, per_image=False, disable_tqdm=True):
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        with pytest.raises(RuntimeError, match="mat1"):
            list(outcomes([slab(0), slab(1)], Broken(), PAPER))

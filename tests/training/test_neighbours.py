"""Neighbours that a loader found are those that the model would have found, in the same order."""

from __future__ import annotations

import copy
import logging
import lzma
import pickle
from typing import NamedTuple

import ase.io
import pytest
import torch
from ase.build import bulk, molecule
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from fairchem.core.models.base import HydraModel
from fairchem.core.preprocessing import AtomsToGraphs
from rank_runs import assert_same_run, final_state
from samples import MODEL, PLAIN_MODEL
from torch_geometric.data import Batch

import dens_plugin
from dens_plugin.backbones.description import describe
from dens_plugin.backbones.neighbours import Neighbours, Search, with_neighbours, without_neighbours
from dens_plugin.fields import ROWS
from dens_plugin.objectives.dens import DeNS
from dens_plugin.testing import EPOCH, corrupted_batch, mixed_loss, predict, random_batch, random_structure
from dens_plugin.training.loading import loader_search

WORKERS = {"num_workers": 2}
EDGES = {"max_neighbors": 10, "cutoff": 5.0}
ESCN = EDGES | {
    "num_layers": 1,
    "sphere_channels": 8,
    "hidden_channels": 8,
    "edge_channels": 8,
    "lmax_list": [1],
    "mmax_list": [1],
    "distance_resolution": 0.5,
}
ESEN = EDGES | {
    "max_num_elements": 90,
    "sphere_channels": 8,
    "lmax": 1,
    "mmax": 1,
    "edge_channels": 8,
    "num_distance_basis": 8,
    "num_layers": 1,
    "hidden_channels": 8,
    "act_type": "gate",
    "mlp_type": "spectral",
}


def hydra(backbone, **heads):
    named = {name: {"module": module} for name, module in heads.items()}
    return HydraModel(backbone=backbone, heads=named, otf_graph=True, pass_through_head_outputs=True)


def equiformer(**changes):
    return dens_plugin.FlatEquiformerV2DeNS(**{key: MODEL[key] for key in MODEL if key != "name"} | changes)


def esen(**changes):
    return hydra(
        {"model": "dens_plugin.ESENDeNS", **ESEN, **changes},
        energy="esen_mlp_energy_head",
        forces="dens_plugin.ESENForceHead",
        noise="dens_plugin.ESENNoiseHead",
    )


def fairchem(**changes):
    settings = copy.deepcopy({key: PLAIN_MODEL[key] for key in PLAIN_MODEL if key != "name"})
    settings["backbone"] |= changes
    return registry.get_model_class("hydra")(**settings)


MODELS = {"equiformer": equiformer, "escn": lambda **changes: dens_plugin.FlatESCNDeNS(**ESCN | changes), "esen": esen}
MODELS["fairchem"] = fairchem


def collated(*structures):
    data = AtomsToGraphs(r_edges=False, r_pbc=True).convert_all([*structures], disable_tqdm=True)
    for structure in data:
        structure.fixed = torch.zeros(structure.natoms)
    return data_list_collater(data, otf_graph=True)


def crystals():
    """Face-centred cubic, every atom with 12, 6 and 24 neighbours at equal distances; and another size."""
    return collated(bulk("Cu", cubic=True), bulk("Al", cubic=True).repeat((2, 1, 1)), bulk("Cu", cubic=True))


def molecules():
    return collated(molecule("CH3CH2OH"), molecule("C6H6"), molecule("H2O"))


BATCHES = {"random": random_batch, "crystals": crystals, "molecules": molecules}


def prepared_batch():
    """Random structures, some of them corrupted, with the rows that count listed."""
    return DeNS(prob=0.7).prepare(random_batch((12, 9, 10)), EPOCH)


class Seen(NamedTuple):
    """Graph and outputs of a forward pass."""

    graph: dict
    outputs: dict


def seen(model, batch):
    """What a model makes of a batch."""
    kept, generate = [], model.backbone.generate_graph

    def keeping(data, **options):
        graph = generate(data, **options)
        kept.append(dict(graph) if isinstance(graph, dict) else dict(vars(graph)))
        return graph

    model.backbone.generate_graph = keeping
    outputs = predict(model.eval(), batch)
    return Seen(kept[0], outputs)


def found_and_read(model, batch):
    """What a model makes of a batch without neighbours, and of one with them."""
    reader = copy.deepcopy(model)
    prepared = with_neighbours(batch, loader_search(reader, WORKERS))
    return seen(model, batch), seen(reader, prepared)


def assert_same(found, read):
    """Bit for bit, edges in the same order."""
    for field, value in found.graph.items():
        if torch.is_tensor(value):
            assert torch.equal(value, read.graph[field]), field
            assert value.dtype == read.graph[field].dtype, field
        else:
            assert value == read.graph[field], field
    assert all(torch.equal(read.outputs[key], value) for key, value in found.outputs.items())


@pytest.mark.parametrize("strictly", [True, False])
@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_are_the_same_edges_in_the_same_order(name, kind, strictly):
    model = MODELS[name](use_pbc=kind != "molecules")
    model.backbone.enforce_max_neighbors_strictly = strictly
    found, read = found_and_read(model, BATCHES[kind]())
    assert_same(found, read)
    assert found.graph["edge_index"].shape[1] > 0


def test_ties_are_cut_or_kept_as_the_model_does():
    for strictly, most in ((True, 10), (False, 12)):
        search = Search(5.0, 10, strictly, use_pbc=True, use_pbc_single=False)
        degrees = with_neighbours(crystals(), search)["neighbours"].edge_index[1].bincount()
        assert degrees.unique().tolist() == [most]


def test_structure_by_structure_where_the_backbone_does_so():
    model = equiformer(use_pbc_single=True)
    assert_same(*found_and_read(model, random_batch()))


def test_of_isolated_atoms():
    structure = random_structure(1)
    structure.cell = torch.eye(3)[None] * 60
    found, read = found_and_read(equiformer(), Batch.from_data_list([structure, structure]))
    assert_same(found, read)
    assert read.graph["edge_index"].shape == (2, 0)


def test_of_real_slabs(shared_data):
    paths = sorted((shared_data / "oc20_mini" / "s2ef" / "val_id").glob("*.extxyz.xz"))[:2]
    slabs = []
    for path in paths:
        with lzma.open(path, "rt") as file:
            slabs.append(ase.io.read(file, index=0, format="extxyz"))
    assert_same(*found_and_read(equiformer(max_neighbors=20, max_radius=12.0), collated(*slabs)))


class TestRecord:
    @pytest.fixture
    def model(self):
        return equiformer()

    def test_does_not_touch_its_batch(self, model):
        batch = random_batch()
        before = sorted(batch.keys())
        with_neighbours(batch, loader_search(model, WORKERS))
        assert sorted(batch.keys()) == before

    def test_follows_the_batch(self, model):
        search = loader_search(model, WORKERS)
        batch = with_neighbours(prepared_batch(), search)
        moved = copy.copy(batch).to("meta")["neighbours"]
        assert {part.device.type for part in (moved.edge_index, moved.neighbors, moved.incoming["noise"])} == {"meta"}
        assert moved.search == search
        assert moved.degrees == batch["neighbours"].degrees  # on the CPU

    @pytest.mark.parametrize("way", ["clone", "pin_memory", "pickle"])
    def test_survives(self, model, way, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # which needs a GPU
        batch = with_neighbours(prepared_batch(), loader_search(model, WORKERS))
        other = pickle.loads(pickle.dumps(batch)) if way == "pickle" else getattr(copy.copy(batch), way)()
        assert torch.equal(predict(model, other)["noise"], predict(model, batch)["noise"])
        for name, rows in batch[ROWS].items():
            assert torch.equal(other[ROWS][name].chosen, rows.chosen)
            assert other[ROWS][name].chosen is not rows.chosen

    def test_lists_the_edges_to_atoms_that_count(self, model):
        batch = with_neighbours(prepared_batch(), loader_search(model, WORKERS))
        record = batch["neighbours"]
        for name in ("forces", "noise"):
            counts = batch[ROWS][name].mask[record.edge_index[1]]
            assert 0 < counts.sum() < len(counts)
            assert torch.equal(record.incoming[name], counts.nonzero().view(-1))
        assert "energy" not in record.incoming

    @pytest.mark.parametrize("name", ["equiformer", "escn"])
    def test_changes_no_gradient(self, name):
        finding = MODELS[name]().train()
        reading = copy.deepcopy(finding)
        batch = prepared_batch()
        for model, prepared in ((finding, batch), (reading, with_neighbours(batch, loader_search(reading, WORKERS)))):
            mixed_loss(model, prepared).backward()
        pairs = zip(finding.parameters(), reading.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None)

    def test_of_other_rows_is_refused(self, model):
        batch = with_neighbours(prepared_batch(), loader_search(model, WORKERS))
        batch[ROWS] = {name: rows._replace(mask=~rows.mask).listed() for name, rows in batch[ROWS].items()}
        with pytest.raises(ValueError, match="edges that count"):
            predict(model, batch)

    def test_of_another_batch_is_refused(self, model):
        search = loader_search(model, WORKERS)
        batch = random_batch()
        for other, device in (((7, 4), "cpu"), ((7, 5, 10), "meta"), ((4, 7, 10), "cpu")):
            taken = copy.copy(batch)
            taken["neighbours"] = with_neighbours(random_batch(other), search)["neighbours"]
            with pytest.raises(ValueError, match=r"the neighbours that a batch holds .* \(`without_neighbours`\)"):
                model.backbone.generate_graph(taken.to(device))

    def test_that_was_changed_is_refused(self, model):
        batch = with_neighbours(random_batch(), loader_search(model, WORKERS))
        record = batch["neighbours"]
        for change in (
            {"edge_index": record.edge_index[:, 1:]},
            {"edge_index": record.edge_index.flip(0)},
            {"edge_index": record.edge_index.clamp(min=1)},
            {"cell_offsets": record.cell_offsets[1:]},
            {"neighbors": record.neighbors.flip(0)},
        ):
            batch["neighbours"] = record._replace(**change)
            with pytest.raises(ValueError, match="do not belong to its 21 atoms in 3 structures"):
                predict(model, batch)

    def test_at_other_positions_is_refused(self, model):
        search = loader_search(model, WORKERS)
        moved, other = with_neighbours(random_batch(), search), random_batch(seed=9)
        moved.pos = moved.pos + torch.tensor([0.01, 0.0, 0.0]) * (torch.arange(len(moved.pos)) == 3)[:, None]
        other["neighbours"] = with_neighbours(random_batch(), search)["neighbours"]  # of as many atoms
        for batch in (moved, other):
            with pytest.raises(ValueError, match="do not belong to its 21 atoms in 3 structures"):
                predict(model, batch)

    def test_of_moved_atoms(self, model):
        batch = random_batch()
        assert_same(*found_and_read(model, corrupted_batch(batch, torch.arange(batch.num_nodes) % 2 == 0)))

    def test_is_not_used_by_another_search(self, model):
        search = loader_search(model, WORKERS)
        batch = random_batch()
        other = with_neighbours(batch, search._replace(cutoff=2.0))
        assert torch.equal(predict(model.eval(), other)["energy"], predict(model.eval(), batch)["energy"])

    def test_is_used_where_there_is_one(self, model):
        search = loader_search(model, WORKERS)
        batch = with_neighbours(random_batch(), search)
        none = torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, 3), torch.zeros(3, dtype=torch.long)
        bare, cut = predict(model.eval(), batch), copy.copy(batch)
        cut["neighbours"] = Neighbours.of(batch, search, none)
        assert not torch.equal(predict(model, cut)["energy"], bare["energy"])
        assert torch.equal(predict(model, without_neighbours(cut))["energy"], bare["energy"])
        assert model.backbone.otf_graph


class TestChoice:
    @pytest.mark.parametrize(
        ("optim", "wanted"),
        [
            ({"num_workers": 0}, False),
            ({"num_workers": 1}, True),
            ({"num_workers": 0, "loader_workers": 2}, True),
            ({"num_workers": 0, "loader_graph": True}, True),
            ({"num_workers": 8, "loader_graph": False}, False),
        ],
        ids=str,
    )
    def test_follows_the_workers_of_a_gpu(self, optim, wanted):
        assert (loader_search(equiformer().to("meta"), optim) is not None) == wanted

    def test_is_the_loaders_on_a_cpu(self):
        assert loader_search(equiformer(), {"num_workers": 0}) is not None
        assert loader_search(equiformer(), {"num_workers": 0, "loader_graph": False}) is None

    def test_must_be_a_switch(self):
        with pytest.raises(ValueError, match=r"optim.loader_graph must be true or false, got 'yes'"):
            loader_search(equiformer(), {"loader_graph": "yes"})

    @pytest.mark.parametrize("wanted", [None, True])
    def test_is_the_models_for_gradients(self, caplog, wanted):
        """Unless ours is asked to read them; fairchem's cannot."""
        caplog.set_level(logging.INFO)
        gradients = hydra(
            {"model": "dens_plugin.ESENDeNS", **ESEN, "direct_forces": False},
            energy_forces="dens_plugin.ESENGradientHead",
        )
        plain = hydra({"model": "esen_backbone", "otf_graph": True, **ESEN}, energy="esen_mlp_energy_head")
        plain.backbone.direct_forces = False
        for model in (gradients, plain):
            caplog.clear()
            found = loader_search(model, {"num_workers": 1} if wanted is None else {"loader_graph": wanted})
            if wanted and model is gradients:
                assert found == describe(model).search
            else:
                assert found is None
                assert "Neighbours are found by the model: its forces are gradients" in caplog.text

    def test_of_batches_that_are_padded_is_the_loaders_or_an_error(self):
        plain = hydra({"model": "esen_backbone", "otf_graph": True, **ESEN}, energy="esen_mlp_energy_head")
        assert loader_search(plain, {"pad": True}) is not None
        plain.backbone.direct_forces = False
        with pytest.raises(ValueError, match=r"optim.pad needs neighbours .* its forces are gradients; leave"):
            loader_search(plain, {"pad": True})

    def test_is_the_models_for_stored_edges(self, caplog):
        stored = fairchem(otf_graph=False)
        assert loader_search(stored, {"loader_graph": True}) is None
        assert "otf_graph: false" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_is_the_same(config, build, workers):
    """Training and validation, to the last bit, wherever neighbours are found."""
    config["optim"] |= {"num_workers": workers, "eval_every": 3}
    states = []
    for wanted in (True, False):
        config["optim"]["loader_graph"] = wanted
        trainer = build(config)
        assert (trainer._search is not None) == wanted
        trainer.train(disable_eval_tqdm=True)
        states.append(final_state(trainer))
    assert_same_run(*states)


def test_batches_of_all_loaders_but_that_for_relaxations_have_them(config, build):
    config["dataset"]["relax"] = dict(config["dataset"]["val"])
    config["optim"]["loader_graph"] = True
    trainer = build(config)
    assert "neighbours" in next(iter(trainer.train_loader))
    assert "neighbours" in next(iter(trainer.val_loader))
    assert "neighbours" not in next(iter(trainer.relax_loader))

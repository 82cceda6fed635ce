from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from samples import MODEL, base_config

import dens_plugin
from dens_plugin.backbones.key_map import to_plain_keys
from dens_plugin.convert.conversion import convert
from dens_plugin.inference.calculator import load_calculator

ESCN = {
    "name": "escn_dens",
    "max_neighbors": 10,
    "cutoff": 4.0,
    "num_layers": 1,
    "lmax_list": [2],
    "mmax_list": [1],
    "sphere_channels": 8,
    "hidden_channels": 8,
    "edge_channels": 8,
    "num_sphere_samples": 16,
    "distance_resolution": 0.1,
}
CONFIG = {
    "task": {},
    "optim": {},
    "dataset": {},
    "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom"}},
    "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}],
    "evaluation_metrics": {},
    "cmd": {"seed": 0},
}


def slab():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    add_adsorbate(atoms, "O", 1.4, "ontop")
    atoms.set_constraint(FixAtoms(mask=[atom.tag > 1 for atom in atoms]))
    return atoms


def predicted(path):
    """Energy and forces of a slab; the calculator seeds the edge frames."""
    atoms = slab()
    atoms.calc = dens_plugin.load_calculator(path, cpu=True)
    return atoms.get_potential_energy(), atoms.get_forces()


@pytest.fixture(params=["equiformer_v2_dens", "escn_dens"])
def authors(request, golden, tmp_path):
    """A checkpoint in the authors' layout: flat settings, DDP's prefix twice, normalisers as mean and std."""
    files = {"equiformer_v2_dens": "eqv2_dens_l3_allnbr.pt", "escn_dens": "escn_dens_l4_allnbr.pt"}
    reference = golden(files[request.param])
    path = tmp_path / "authors.pt"
    checkpoint = {
        "state_dict": {f"module.module.{key}": value for key, value in reference["state_dict"].items()},
        "config": CONFIG | {"model": request.param, "model_attributes": reference["config"]},
        "normalizers": {
            "energy": {"mean": torch.tensor(1.0), "std": torch.tensor(2.0)},
            "forces": {"mean": torch.tensor(0.0), "std": torch.tensor(2.0)},
            "denoising_pos_target": {"mean": torch.tensor(0.0), "std": torch.tensor(0.1)},
        },
        "optimizer": {"state": {}},
    }
    torch.save(checkpoint, path)
    return path


def test_authors_checkpoint_gives_the_same_numbers_as_dens_and_as_plain_model(authors, tmp_path):
    """The bias that the authors add to every atom is folded exactly, in both directions."""
    dens = convert(authors, tmp_path / "dens.pt")
    plain = convert(authors, tmp_path / "plain.pt", to="plain")
    exported = convert(dens, tmp_path / "exported.pt", to="plain")
    (energy, forces), *others = (predicted(path) for path in (dens, plain, exported))
    assert np.abs(forces).max() > 0.05
    for other_energy, other_forces in others:
        assert other_energy == pytest.approx(energy, abs=1e-6)
        assert np.allclose(other_forces, forces, atol=1e-5)


def test_normalisers_keep_their_meaning(authors, tmp_path):
    converted = torch.load(convert(authors, tmp_path / "out.pt"), weights_only=False)
    assert set(converted["normalizers"]) == {"energy", "forces"}  # the noise's is a setting of the objective
    assert converted["normalizers"]["energy"]["rmsd"] == 2.0
    assert "optimizer" not in converted


def ours(tmp_path, *, block=MODEL, **extra):
    torch.manual_seed(0)
    settings = {key: value for key, value in block.items() if key != "name"}
    flat = {"equiformer_v2_dens": dens_plugin.FlatEquiformerV2DeNS, "escn_dens": dens_plugin.FlatESCNDeNS}
    model = flat[block["name"]](**settings)
    path = tmp_path / "ours.pt"
    config = CONFIG | {"model": copy.deepcopy(block)}
    torch.save({"state_dict": model.state_dict(), "config": config, "normalizers": {}, **extra}, path)
    return path, model


@pytest.mark.parametrize("block", [MODEL, ESCN], ids=["EquiformerV2", "eSCN"])
def test_averaged_weights_are_taken_where_there_are_any(block, tmp_path):
    """Averages are kept of what is trained, which eSCN's points on the sphere are not."""
    path, model = ours(tmp_path, block=block)
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    path, _ = ours(tmp_path, block=block, ema={"shadow_params": [value + 1 for value in trained.values()]})
    state = torch.load(convert(path, tmp_path / "ema.pt"), weights_only=False)["state_dict"]
    raw = torch.load(convert(path, tmp_path / "raw.pt", average=False), weights_only=False)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(state[f"module.{name}"], value + 1 if name in trained else value)
        assert torch.equal(raw[f"module.{name}"], value)


def test_calculator_uses_the_average(tmp_path):
    path, model = ours(tmp_path)
    before, _ = predicted(path)
    average = [value.detach() * 1.2 for value in model.parameters()]
    after, _ = predicted(ours(tmp_path, ema={"shadow_params": average})[0])
    assert abs(after - before) > 1e-4


def test_relaxes_a_slab_with_an_adsorbate(tmp_path):
    """Fixed atoms stay, free ones move, downhill in the model's energy or at least with its forces."""
    path, _ = ours(tmp_path)
    atoms = slab()
    start = atoms.get_positions()
    atoms.calc = dens_plugin.load_calculator(path, cpu=True)
    BFGS(atoms, logfile=None).run(fmax=1e-4, steps=3)
    moved = np.linalg.norm(atoms.get_positions() - start, axis=1)
    fixed = np.array([atom.tag > 1 for atom in atoms])
    assert not moved[fixed].any()
    assert moved[~fixed].all()


class TestRefusals:
    def test_existing_file(self, tmp_path):
        path, _ = ours(tmp_path)
        with pytest.raises(FileExistsError, match="exists already"):
            convert(path, path)

    def test_an_impossible_file_is_refused_before_the_work(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=r"file/ours.pt cannot be made because"):
            convert(tmp_path / "gone.pt", tmp_path / "file" / "ours.pt")

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            convert(tmp_path / "none.pt", tmp_path / "out.pt")

    def test_weights_that_do_not_fit(self, tmp_path):
        path, model = ours(tmp_path)
        config = CONFIG | {"model": MODEL | {"num_layers": 2}}
        torch.save({"state_dict": model.state_dict(), "config": config}, path)
        with pytest.raises(ValueError, match="do not fit its settings"):
            convert(path, tmp_path / "out.pt")
        assert not list(tmp_path.glob("*out.pt*"))

    def test_weights_without_config(self, tmp_path):
        torch.save({"state_dict": {}}, tmp_path / "bare.pt")
        with pytest.raises(ValueError, match="lacks `config`"):
            convert(tmp_path / "bare.pt", tmp_path / "out.pt")
        with pytest.raises(ValueError, match="without a config"):
            dens_plugin.load_calculator(tmp_path / "bare.pt")

    def test_missing_folder(self, tmp_path):
        path, _ = ours(tmp_path)
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            convert(path, tmp_path / "none" / "out.pt")

    def test_config_without_model(self, tmp_path):
        torch.save({"state_dict": {}, "config": {}}, tmp_path / "bare.pt")
        with pytest.raises(ValueError, match="no settings of its model"):
            convert(tmp_path / "bare.pt", tmp_path / "out.pt")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda atoms: atoms.positions.__setitem__((0, 0), np.nan), "NaN or infinite"),
            (lambda atoms: atoms.numbers.__setitem__(0, 95), "elements 1 to 89"),
            (lambda atoms: atoms.__delitem__(slice(None)), "no atoms"),
        ],
    )
    def test_structures_that_cannot_be_meant(self, tmp_path, change, message):
        atoms = slab()
        atoms.set_constraint()
        change(atoms)
        atoms.calc = dens_plugin.load_calculator(ours(tmp_path)[0], cpu=True)
        with pytest.raises(ValueError, match=message):
            atoms.get_potential_energy()

    def test_averages_of_another_model(self, tmp_path):
        path, _ = ours(tmp_path, ema={"shadow_params": [torch.zeros(3)]})
        with pytest.raises(ValueError, match="do not line up"):
            convert(path, tmp_path / "out.pt")

    def test_another_network(self, tmp_path):
        torch.save(
            {"state_dict": {"interactions.0.weight": torch.zeros(1)}, "config": {"model": ESCN}}, tmp_path / "x.pt"
        )
        with pytest.raises(ValueError, match="holds the weights of no network known here"):
            convert(tmp_path / "x.pt", tmp_path / "out.pt")

    def test_esen_needs_no_conversion(self, tmp_path):
        """Said first, whatever else the checkpoint lacks."""
        weights = {"module.backbone.blocks.0.edge_wise.so2_conv_1.fc_m0.weight": torch.zeros(1)}
        torch.save({"state_dict": weights, "ema": {"shadow_params": []}}, tmp_path / "esen.pt")
        for to in ("dens", "plain"):
            with pytest.raises(ValueError, match=r"esen.pt' is an eSEN, which needs no conversion: `task.warm_start"):
                convert(tmp_path / "esen.pt", tmp_path / "out.pt", to=to)

    def test_option_that_fairchem_lacks(self, tmp_path):
        _, model = ours(tmp_path, block=ESCN)
        config = CONFIG | {"model": ESCN | {"use_grid": False}}
        torch.save({"state_dict": model.state_dict(), "config": config}, tmp_path / "x.pt")
        with pytest.raises(ValueError, match="use_grid: False"):
            convert(tmp_path / "x.pt", tmp_path / "out.pt")


@pytest.mark.parametrize(
    ("block", "backbone", "title"),
    [(MODEL, "equiformer_v2_backbone", "EquiformerV2"), (ESCN, "escn_backbone", "eSCN")],
    ids=["EquiformerV2", "eSCN"],
)
def test_plain_model_stays_plain(block, backbone, title, tmp_path):
    """Becoming a DeNS model takes training, by `task.warm_start`, rather than conversion."""
    path, model = ours(tmp_path, block=block)
    plain = convert(path, tmp_path / "plain.pt", to="plain")
    checkpoint = torch.load(plain, weights_only=False)
    assert checkpoint["config"]["model"]["backbone"]["model"] == backbone
    assert checkpoint["state_dict"].keys() == {f"module.{name}" for name in to_plain_keys(model.state_dict())}
    with pytest.raises(ValueError, match=rf"is a plain {title}; train it with DeNS from `task.warm_start"):
        convert(plain, tmp_path / "dens.pt")


class TestEquiformer:
    """The authors' MD17 checkpoints hold weights alone."""

    @pytest.fixture
    def files(self, golden, tmp_path):
        reference = golden("equiformer_md17_dens_l2.pt")
        torch.save({"state_dict": reference["state_dict"]}, tmp_path / "authors.pt")
        normalizer = {name: {"mean": 0.0, "stdev": 0.5} for name in ("energy", "forces")}
        config = base_config(tmp_path) | {
            "model": {"name": "equiformer_dens", **reference["config"]},
            "dataset": {"train": {"transforms": {"normalizer": normalizer}}},
        }
        (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
        return tmp_path / "authors.pt", tmp_path / "config.yml", reference

    def test_gives_the_authors_numbers(self, files, tmp_path):
        source, config, reference = files
        out = convert(source, tmp_path / "ours.pt", config_yml=config)
        calculator = load_calculator(out, cpu=True)
        atoms = Atoms(numbers=reference["inputs"]["z"][:9], positions=reference["inputs"]["pos"][:9])
        atoms.calc = calculator
        expected = reference["outputs"]["normal"]
        assert atoms.get_potential_energy() == pytest.approx(0.5 * expected["energy"].view(-1)[0].item(), abs=1e-5)
        assert np.allclose(atoms.get_forces(), 0.5 * expected["dy"][:9].numpy(), atol=1e-5)

    def test_without_a_config_says_what_to_give(self, files, tmp_path):
        with pytest.raises(ValueError, match=r"lacks `config`.*--config-yml"):
            convert(files[0], tmp_path / "ours.pt")

    def test_has_no_plain_network(self, files, tmp_path):
        with pytest.raises(ValueError, match="fairchem has no Equiformer to convert to"):
            convert(files[0], tmp_path / "plain.pt", to="plain", config_yml=files[1])


class TestWhatOursLacks:
    """Parts of the authors' EquiformerV2 that have no counterpart here."""

    @pytest.fixture
    def source(self, tmp_path):
        path, _ = ours(tmp_path, block=MODEL | {"use_energy_lin_ref": True, "load_energy_lin_ref": True})
        return path, torch.load(path, weights_only=False)

    def test_references_of_elements_become_fairchems(self, source, tmp_path):
        """The network adds them over the normaliser's scale."""
        path, checkpoint = source
        references = torch.linspace(1, 2, 90)
        checkpoint["state_dict"]["backbone.energy_lin_ref"] = references
        scale = {"mean": torch.tensor(0.0), "rmsd": torch.tensor(2.0)}
        checkpoint["normalizers"] = {"energy": scale, "forces": scale}
        torch.save(checkpoint, path)
        with_references = predicted(convert(path, tmp_path / "with.pt"))
        checkpoint["config"]["model"]["use_energy_lin_ref"] = False
        torch.save(checkpoint, path)
        without = predicted(convert(path, tmp_path / "without.pt"))
        expected = 2 * references[slab().numbers].sum().item()
        assert with_references[0] - without[0] == pytest.approx(expected, abs=1e-4)
        assert np.allclose(with_references[1], without[1], atol=1e-6)

    def test_constants_of_other_versions_are_made_anew(self, tmp_path):
        shared = {"use_m_share_rad": True}
        path, model = ours(tmp_path, block=MODEL | shared)
        state = model.state_dict()
        index = state["backbone.blocks.0.ga.expand_index"].clone()
        state["backbone.blocks.0.ga.expand_index"] = index[:-1]
        torch.save({"state_dict": state, "config": CONFIG | {"model": MODEL | shared}}, path)
        converted = torch.load(convert(path, tmp_path / "out.pt"), weights_only=False)["state_dict"]
        assert torch.equal(converted["module.backbone.blocks.0.ga.expand_index"], index)

    def test_the_bias_of_an_encoding_of_sigma_is_folded(self, source, tmp_path, caplog):
        """At inference sigma is zero, and the encoding is its bias."""
        path, checkpoint = source
        block = MODEL | {"use_noise_schedule_sigma_encoding": True}
        checkpoint["config"]["model"] = block
        embedding = checkpoint["state_dict"]["backbone.sphere_embedding.weight"].clone()
        bias = torch.linspace(0, 1, embedding.shape[1])
        sigma = {"weight": torch.ones(len(bias), 1), "bias": bias}
        checkpoint["state_dict"].pop("backbone.energy_lin_ref")
        checkpoint["state_dict"] |= {f"backbone.noise_schedule_sigma_embedding.{key}": sigma[key] for key in sigma}
        torch.save(checkpoint, path)
        converted = torch.load(convert(path, tmp_path / "out.pt"), weights_only=False)
        assert torch.equal(converted["state_dict"]["module.backbone.sphere_embedding.weight"], embedding + bias)
        assert "encodes sigma, which ours does not. Energies and forces are the same" in caplog.text


def test_other_vectors_that_served_training_alone_are_converted_too(tmp_path):
    """By the names that they have, without a list of them."""
    path, model = ours(tmp_path)
    state = {key.replace("heads.noise.", "heads.auxiliary_forces."): value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "config": CONFIG | {"model": MODEL}}, path)
    heads = torch.load(convert(path, tmp_path / "dens.pt"), weights_only=False)["config"]["model"]["heads"]
    assert heads["auxiliary_forces"] == {"module": "dens_plugin.NoiseHead", "output_name": "auxiliary_forces"}
    plain = torch.load(convert(path, tmp_path / "plain.pt", to="plain"), weights_only=False)["config"]["model"]["heads"]
    assert set(plain) == {"energy", "forces"}

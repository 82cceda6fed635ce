"""What is refused before the first step because of what the first structures look like."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.base import HydraModel
from torch import nn

import dens_plugin
from dens_plugin.checks.dataset import require_normalizers
from dens_plugin.checks.preflight import (
    limits_of,
    require_edges,
    require_fitting_scales,
    require_model,
    require_predicted,
    require_scales,
)
from dens_plugin.data.records import CheckedDataset, Limits
from dens_plugin.objectives.dens import DeNS
from dens_plugin.objectives.noisy_nodes import NoisyNodes
from dens_plugin.testing import random_structure


class Network(nn.Module):
    """Nothing but its settings."""

    def __init__(self, *, cutoff=5.0, use_pbc=True):
        super().__init__()
        self.cutoff, self.use_pbc = cutoff, use_pbc


class TestEdges:
    def test_a_cutoff_below_all_distances(self):
        structures = [random_structure(4, seed=seed) for seed in (1, 2)]
        require_edges(Network(), structures)
        with pytest.raises(ValueError, match=r"no atom of the first 2 training structures .* cutoff of 0.01 Å"):
            require_edges(Network(cutoff=0.01), structures)

    def test_atoms_alone_and_networks_without_a_cutoff(self):
        alone = random_structure(1)
        alone.cell = torch.zeros(1, 3, 3)
        require_edges(Network(cutoff=0.01), [alone])
        require_edges(nn.Linear(1, 1), [random_structure(4)])

    def test_neighbours_across_a_face(self):
        """One atom each side of a face, alone without periodicity."""
        structure = random_structure(2)
        structure.cell, structure.pos = 20 * torch.eye(3)[None], torch.tensor([[0.0, 0, 0.5], [0, 0, 19.5]])
        require_edges(Network(cutoff=2.0), [structure])
        structure.pbc = torch.zeros(1, 3, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"cutoff of 2 Å"):
            require_edges(Network(cutoff=2.0), [structure])


class TestScales:
    SCALES = SimpleNamespace(mean=torch.tensor(0.0), rmsd=torch.tensor(0.2))

    def test_energies_of_other_data(self):
        structures = [random_structure(4, seed=seed) for seed in (1, 2)]
        require_fitting_scales({"energy": self.SCALES}, structures, {})
        for structure in structures:
            structure.energy -= 9391.0
        with pytest.raises(ValueError, match=r"more than 100 standard deviations .*mean 0, stdev 0.2"):
            require_fitting_scales({"energy": self.SCALES}, structures, {})
        require_fitting_scales({"energy": self.SCALES}, structures, {"energy": object()})
        require_fitting_scales({}, structures, {})

    def test_the_rounding_of_one_value_is_no_scale(self):
        require_scales({"gap": self.SCALES})
        with pytest.raises(ValueError, match=r"normalizer.gap.stdev is 8\.[89]\d*e-16; it must be above 0"):
            require_scales({"gap": SimpleNamespace(rmsd=torch.tensor(8.9e-16))})

    def test_a_file_and_numbers(self, tmp_path):
        (tmp_path / "normalizer.npz").touch()
        both = {"energy": {"file": str(tmp_path / "normalizer.npz"), "mean": 0.0, "stdev": 1.0}}
        with pytest.raises(ValueError, match=r"normalizer.energy has both a file and mean, stdev"):
            require_normalizers({"normalizer": both}, "dataset.train.transforms")
        for alone in ({"file": None}, {"mean": None, "stdev": None}):
            require_normalizers({"normalizer": {"energy": both["energy"] | alone}}, "dataset.train.transforms")


class TestElements:
    @pytest.mark.parametrize(
        ("backbone", "settings"),
        [
            (dens_plugin.ESCNDeNS, {"lmax_list": [1], "mmax_list": [1], "num_sphere_samples": 8}),
            (dens_plugin.ESENDeNS, {"lmax": 1, "mmax": 1}),
            (dens_plugin.EquiformerV2DeNS, {"lmax_list": [1], "mmax_list": [1]}),
        ],
    )
    def test_are_those_of_the_embeddings(self, backbone, settings):
        model = backbone(num_layers=1, sphere_channels=4, max_num_elements=30, **settings)
        structure = random_structure(4)
        structure.atomic_numbers[:] = 31
        message = (
            r"structure 0 .*: the model knows the elements 1 to 29, and it has 31; set max_num_elements .* 32 or more"
        )
        with pytest.raises(ValueError, match=message):
            CheckedDataset(Some([structure]), limits_of(model))[0]


class TestPeriodicity:
    def test_is_what_the_modules_say(self):
        assert limits_of(Network(use_pbc=False)).molecular
        assert limits_of(Network()).periodic
        assert not limits_of(nn.Linear(1, 1)).molecular

    @pytest.mark.parametrize("axes", [(True, True, True), (True, True, False)])
    def test_a_crystal_for_a_network_of_molecules(self, axes):
        structure = random_structure(4)
        dataset = Some([structure])
        assert CheckedDataset(dataset, Limits(molecular=True))[0] is structure  # it does not say what it is
        structure.pbc = torch.tensor([axes])
        with pytest.raises(ValueError, match=r"structure 0 .*it is periodic .*use_pbc: true"):
            CheckedDataset(dataset, Limits(molecular=True))[0]
        structure.pbc = torch.zeros(1, 3, dtype=torch.bool)
        assert CheckedDataset(dataset, Limits(molecular=True))[0] is structure


class TestEncodingOfNothing:
    """Objectives that give a backbone no forces to encode: allowed, with a line that says so."""

    @pytest.mark.parametrize(
        ("objective", "told"), [(NoisyNodes(), True), (DeNS(encode_forces=False), True), (DeNS(), False)]
    )
    def test_is_told(self, caplog, objective, told):
        setup_imports()
        model = HydraModel(
            backbone={"model": "dens_plugin.EGNNDeNS", "channels": 8, "num_layers": 1},
            heads={
                "energy": {"module": "dens_plugin.EGNNGradientHead"},
                "noise": {"module": "dens_plugin.EGNNNoiseHead"},
            },
            pass_through_head_outputs=True,
            otf_graph=True,
        )
        require_model(model, objective)
        assert ("EGNNDeNS can encode forces, and the objective gives it none" in caplog.text) == told


class Some(list):
    """A data set of fairchem's, as far as messages ask."""

    config = {"src": "data"}  # noqa: RUF012


class TestPredicted:
    ASKED: ClassVar = {"energy": {"level": "system"}, "forces": {"level": "atom"}}

    def model(self, **heads):
        backbone = {"model": "dens_plugin.PaiNN", "hidden_channels": 4, "num_layers": 1, "num_rbf": 2}
        return HydraModel(backbone=backbone, heads={name: {"module": head} for name, head in heads.items()})

    def test_noise_alone(self):
        """As a network of pre-training does, whose head is for training and predicts nothing."""
        with pytest.raises(ValueError, match=r"it predicts noise alone and no `energy`, .* fine-tune it first"):
            require_predicted(self.model(noise="dens_plugin.PaiNNNoiseHead"), self.ASKED, "it")

    def test_an_output_without_a_head(self):
        model = self.model(energy="dens_plugin.PaiNNEnergyHead")
        require_predicted(model, {"energy": self.ASKED["energy"]}, "it")
        with pytest.raises(ValueError, match=r"it predicts energy and no `forces`, .* take it out of `outputs`"):
            require_predicted(model, self.ASKED, "it")

    def test_gradient_heads_and_compositions(self):
        composed = {"stress": {"level": "system", "decomposition": {"isotropic": {}}}}
        require_predicted(self.model(energy="dens_plugin.PaiNNGradientHead"), self.ASKED | composed, "it")

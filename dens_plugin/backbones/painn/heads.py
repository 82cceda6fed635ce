"""PaiNN's heads: energy, forces directly or as the gradient of the energy, and noise. Parameters as fairchem's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.gradients import EnergyHead, WithForces
from dens_plugin.backbones.heads import RowHead
from dens_plugin.backbones.painn.model import PaiNN
from dens_plugin.fields import NOISE
from dens_plugin.nn.painn.layers import VectorOutput, perceptron

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows

Features = dict[str, torch.Tensor]


@registry.register_model("painn_dens_energy_head")
class PaiNNEnergyHead(EnergyHead):
    """The energy, a sum over atoms, in normalised units."""

    def __init__(self, backbone: PaiNN, output_name: str = "energy") -> None:
        super().__init__(output_name)
        channels = backbone.hidden_channels
        self.out_energy = perceptron(channels, channels // 2, 1, backbone.form)

    def energies(self, data: Batch, emb: Features) -> torch.Tensor:
        """(B,)."""
        atoms = self.out_energy(emb["scalars"]).squeeze(1)  # (N,)
        return atoms.new_zeros(data.num_graphs).index_add(0, data.batch, atoms)


@registry.register_model("painn_dens_gradient_head")
class PaiNNGradientHead(WithForces, PaiNNEnergyHead):
    """Energy, and forces as its gradient."""

    def __init__(self, backbone: PaiNN) -> None:
        super().__init__(backbone)
        if backbone.form != "paper":
            logging.warning(
                "Forces are gradients of an energy that jumps where atoms pass the cutoff: set model.backbone.form: "
                "paper unless the weights are fairchem's."
            )


class _VectorHead(RowHead, nn.Module, HeadInterface):
    """A vector per atom, zero where it does not count; it is cheap enough to be computed for all."""

    def __init__(self, backbone: PaiNN, output_name: str) -> None:
        super().__init__()
        self.output_name = output_name
        self.out_forces = VectorOutput(backbone.hidden_channels, backbone.form)

    def values(self, data: Batch, emb: Features, rows: Rows | None) -> torch.Tensor:
        """(N, 3)."""
        return self.out_forces(emb["scalars"], emb["vectors"])


@registry.register_model("painn_dens_force_head")
class PaiNNForceHead(_VectorHead):
    """Forces (N, 3) directly, in normalised units."""

    def __init__(self, backbone: PaiNN, output_name: str = "forces") -> None:
        super().__init__(backbone, output_name)


@registry.register_model("painn_dens_noise_head")
class PaiNNNoiseHead(_VectorHead):
    """A second vector head, for the noise of the corrupted atoms in units of its scale; does not run at inference."""

    auxiliary: ClassVar[bool] = True

    def __init__(self, backbone: PaiNN, output_name: str = NOISE) -> None:
        with torch.random.fork_rng(devices=[]):  # heads built after this one start as in a model without DeNS
            super().__init__(backbone, output_name)

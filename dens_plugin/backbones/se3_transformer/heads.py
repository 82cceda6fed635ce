"""Heads of SE(3)-Transformer: energy, forces as its gradient, and vectors of atoms from features of degree 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.gradients import ReadoutEnergyHead, WithForces
from dens_plugin.backbones.heads import RowHead
from dens_plugin.backbones.readout import detached
from dens_plugin.fields import NOISE
from dens_plugin.nn.se3_transformer.convolution import MeanConvolution
from dens_plugin.nn.zero_gradients import with_zero_gradients

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.backbones.se3_transformer.model import SE3Transformer
    from dens_plugin.fields import Rows


@registry.register_model("se3_transformer_energy_head")
class SE3TransformerEnergyHead(ReadoutEnergyHead):
    """Energy alone, for data without forces, or beside `SE3TransformerVectorHead`."""

    activation = staticmethod(torch.relu)

    def __init__(self, backbone: SE3Transformer, readout: str = "average", output_name: str = "energy") -> None:
        super().__init__(backbone, readout, output_name)


@registry.register_model("se3_transformer_gradient_head")
class SE3TransformerGradientHead(WithForces, SE3TransformerEnergyHead):
    """Energy, and forces as its gradient.

    Args:
        backbone: of this package.
        readout: as of `EnergyReadout`.
    """

    def __init__(self, backbone: SE3Transformer, readout: str = "average") -> None:
        super().__init__(backbone, readout=readout)


@registry.register_model("se3_transformer_vector_head")
class SE3TransformerVectorHead(RowHead, nn.Module, HeadInterface):
    """A vector of each atom, by one more convolution of the last features.

    Args:
        backbone: of this package.
        output_name: what it predicts; anything but forces serves training alone.
    """

    def __init__(self, backbone: SE3Transformer, output_name: str = "forces") -> None:
        super().__init__()
        self.output_name = output_name
        self.auxiliary = output_name != "forces"  # type: ignore[misc]  # of this head
        with torch.random.fork_rng(devices=[]):  # what is drawn after this starts as in a model without it
            self.convolution = MeanConvolution(backbone.channels, [0, 1])

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(N, 3)."""
        vectors = self.convolution(emb["features"], emb["edges"])[1].squeeze(-1)
        return detached(with_zero_gradients(vectors, emb["unread"]))


@registry.register_model("se3_transformer_noise_head")
class SE3TransformerNoiseHead(SE3TransformerVectorHead):
    """The same for noise in units of its scale. For noise as a gradient see `GradientNoiseHead`."""

    def __init__(self, backbone: SE3Transformer, output_name: str = NOISE) -> None:
        super().__init__(backbone, output_name)

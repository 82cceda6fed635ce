"""Heads of EGNN: energy, forces as its gradient or directly, noise as a displacement, other vectors of atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.gradients import ReadoutEnergyHead, WithForces
from dens_plugin.backbones.heads import RowHead
from dens_plugin.backbones.readout import detached
from dens_plugin.fields import NOISE
from dens_plugin.nn.egnn.layer import Moves
from dens_plugin.nn.zero_gradients import with_zero_gradients

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.backbones.egnn.model import EGNN
    from dens_plugin.fields import Rows


@registry.register_model("egnn_energy_head")
class EGNNEnergyHead(ReadoutEnergyHead):
    """Energy alone, for data without forces, or beside `EGNNVectorHead`."""

    activation = staticmethod(nn.functional.silu)

    def __init__(self, backbone: EGNN, readout: str = "sum", output_name: str = "energy") -> None:
        super().__init__(backbone, readout, output_name)


@registry.register_model("egnn_gradient_head")
class EGNNGradientHead(WithForces, EGNNEnergyHead):
    """Energy, and forces as its gradient.

    Args:
        backbone: of this package.
        readout: as of `EnergyReadout`.
    """

    def __init__(self, backbone: EGNN, readout: str = "sum") -> None:
        super().__init__(backbone, readout=readout)


@registry.register_model("egnn_vector_head")
class EGNNVectorHead(RowHead, nn.Module, HeadInterface):
    """A vector of each atom, by moves of its own along the last messages: forces directly, or a second vector.

    Args:
        backbone: of this package.
        output_name: what it predicts; anything but forces serves training alone.
    """

    def __init__(self, backbone: EGNN, output_name: str = "forces") -> None:
        super().__init__()
        self.output_name = output_name
        self.auxiliary = output_name != "forces"  # type: ignore[misc]  # of this head
        with torch.random.fork_rng(devices=[]):  # what is drawn after this starts as in a model without it
            self.moves = Moves(backbone.channels, **backbone.moves, gain=1.0)

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(N, 3)."""
        state = emb["state"]
        vectors = self.moves(state.messages, emb["edges"], state.vectors)
        return detached(with_zero_gradients(vectors, emb["unread"]))


@registry.register_model("egnn_noise_head")
class EGNNNoiseHead(RowHead, nn.Module, HeadInterface):
    """Noise as where all layers have moved an atom, the last of them by this head's weights.

    Args:
        backbone: of this package.
        output_name: what it predicts.
        scale: Å in a unit of the noise. With the noise's sigma here, layers move atoms by the noise itself, as in
            arXiv:2303.02216; with 1 by the noise over its sigma.

    Raises:
        ValueError: for a scale that is not above 0.
    """

    auxiliary: ClassVar[bool] = True

    def __init__(self, backbone: EGNN, output_name: str = NOISE, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be above 0 Å, got {scale}")
        self.output_name, self.scale = output_name, scale
        with torch.random.fork_rng(devices=[]):  # what is drawn after this starts as in a model without it
            self.moves = Moves(backbone.channels, **backbone.moves)

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(N, 3)."""
        state = emb["state"]
        moved = self.moves(state.messages, emb["edges"], state.vectors)
        noise = (state.displacement + moved) / self.scale
        return detached(with_zero_gradients(noise, emb["unread"]))

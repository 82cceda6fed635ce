"""SchNet's heads: energy, alone or with forces as its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.gradients import energy_and_forces
from dens_plugin.backbones.heads import Asked, RowHead
from dens_plugin.backbones.readout import detached
from dens_plugin.nn.schnet.interaction import ShiftedSoftplus

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.backbones.schnet.model import SchNet
    from dens_plugin.fields import Rows

Features = dict[str, torch.Tensor]


@registry.register_model("schnet_energy_head")
class SchNetEnergyHead(RowHead, nn.Module, HeadInterface):
    """The energy, a sum over atoms, in normalised units.

    Args:
        backbone: of this package.
        output_name: what it predicts.
    """

    level: ClassVar = "structure"

    def __init__(self, backbone: SchNet, output_name: str = "energy") -> None:
        super().__init__()
        self.output_name = output_name
        half = backbone.hidden_channels // 2
        self.lin1, self.lin2 = nn.Linear(backbone.hidden_channels, half), nn.Linear(half, 1)
        self.act = ShiftedSoftplus()

    def values(self, data: Batch, emb: Features, rows: Rows | None) -> torch.Tensor:
        """(B,)."""
        return detached(self._energies(data, emb))

    def _energies(self, data: Batch, emb: Features) -> torch.Tensor:
        atoms = self.lin2(self.act(self.lin1(emb["scalars"]))).squeeze(1)  # (N,)
        return atoms.new_zeros(data.num_graphs).index_add(0, data.batch, atoms)


@registry.register_model("schnet_gradient_head")
class SchNetGradientHead(SchNetEnergyHead):
    r"""Energy and, as its gradient, forces, in the units of the normalised energy.

    .. math:: F = -\partial E / \partial x

    Args:
        backbone: of this package.
    """

    output_names: ClassVar[tuple[str, ...]] = ("energy", "forces")
    forces_are_gradients: ClassVar[bool] = True

    def __init__(self, backbone: SchNet) -> None:
        super().__init__(backbone)
        backbone.is_differentiated = True

    def predict(self, data: Batch, emb: Features, asked: Asked) -> dict[str, torch.Tensor]:
        """{energy: (B,), forces: (N, 3)}."""
        positions = emb["positions"]
        # A graph without edges has no other way to positions.
        return energy_and_forces(lambda: self._energies(data, emb) + 0 * positions.sum(), positions, asked)

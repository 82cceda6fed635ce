"""SchNet's heads: energy, alone or with forces as its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from fairchem.core.common.registry import registry
from torch import nn

from dens_plugin.backbones.gradients import EnergyHead, WithForces
from dens_plugin.nn.schnet.interaction import ShiftedSoftplus
from dens_plugin.settings import suggestion

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.backbones.schnet.model import SchNet

_READOUTS = ("sum", "mean")


@registry.register_model("schnet_energy_head")
class SchNetEnergyHead(EnergyHead):
    """The energy, a sum or a mean over atoms.

    Args:
        backbone: of this package.
        readout: ``sum``, by which two structures far apart have the energies of both together, or ``mean``.
        output_name: what it predicts.

    Raises:
        ValueError: for another readout.
    """

    def __init__(self, backbone: SchNet, readout: str = "sum", output_name: str = "energy") -> None:
        super().__init__(output_name)
        if readout not in _READOUTS:
            raise ValueError(f"unknown readout '{readout}'; {suggestion(str(readout), _READOUTS)}")
        self.readout = readout
        half = backbone.hidden_channels // 2
        self.lin1, self.lin2 = nn.Linear(backbone.hidden_channels, half), nn.Linear(half, 1)
        self.act = ShiftedSoftplus()

    def energies(self, data: Batch, emb: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B,)."""
        atoms = self.lin2(self.act(self.lin1(emb["scalars"]))).squeeze(1)  # (N,)
        energies = atoms.new_zeros(data.num_graphs).index_add(0, data.batch, atoms)
        return energies if self.readout == "sum" else energies / data.natoms.to(atoms)


@registry.register_model("schnet_gradient_head")
class SchNetGradientHead(WithForces, SchNetEnergyHead):
    """Energy, and forces as its gradient.

    Args:
        backbone: of this package.
        readout: as of `SchNetEnergyHead`.
    """

    def __init__(self, backbone: SchNet, readout: str = "sum") -> None:
        super().__init__(backbone, readout=readout)

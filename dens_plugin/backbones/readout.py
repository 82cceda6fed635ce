"""From scalars of atoms to an energy of their structure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dens_plugin.settings import suggestion

_READOUTS = ("sum", "average", "atoms")


class EnergyReadout(nn.Module):
    """A perceptron from scalars of atoms to the energies of structures.

    Args:
        channels: C of scalars.
        readout: ``sum`` and ``average`` apply it to the sum or the mean over a structure's atoms; ``atoms`` to each,
            so that two structures far apart have the energies of both together.
        activation: between its two layers.
        bias: whether energies have a constant; a gradient sees none.

    Raises:
        ValueError: for another readout.
    """

    def __init__(
        self,
        channels: int,
        readout: str,
        activation: Callable[[torch.Tensor], torch.Tensor],
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if readout not in _READOUTS:
            raise ValueError(f"unknown readout '{readout}'; {suggestion(str(readout), _READOUTS)}")
        self.readout, self._activation = readout, activation
        self.first = nn.Linear(channels, channels)
        self.second = nn.Linear(channels, 1, bias=bias)

    def forward(self, scalars: torch.Tensor, batch: torch.Tensor, num_graphs: int) -> torch.Tensor:
        """(B,) from scalars (N, C) of atoms in structures ``batch`` (N,)."""
        if self.readout == "atoms":
            return _sum(self._perceptron(scalars), batch, num_graphs).squeeze(-1)
        pooled = _sum(scalars, batch, num_graphs)
        if self.readout == "average":
            pooled = pooled / _sum(scalars.new_ones(len(batch), 1), batch, num_graphs).clamp(min=1)
        return self._perceptron(pooled).squeeze(-1)

    def _perceptron(self, scalars: torch.Tensor) -> torch.Tensor:
        return self.second(self._activation(self.first(scalars)))


def detached(values: torch.Tensor) -> torch.Tensor:
    """Without the autograd graph that a backbone builds for forces as gradients, where none is kept."""
    return values if torch.is_grad_enabled() else values.detach()


def _sum(values: torch.Tensor, batch: torch.Tensor, num_graphs: int) -> torch.Tensor:
    return values.new_zeros(num_graphs, values.shape[1]).index_add(0, batch, values)

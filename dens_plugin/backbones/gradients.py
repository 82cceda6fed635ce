"""Vectors of atoms as minus the gradient of a scalar: forces of an energy, noise of a pseudo-energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.heads import Asked, RowHead, where_it_counts
from dens_plugin.backbones.readout import EnergyReadout
from dens_plugin.fields import NOISE

if TYPE_CHECKING:
    from torch_geometric.data import Batch

__all__ = ["GradientNoiseHead"]


def energy_and_forces(
    energy: Callable[[], torch.Tensor], positions: torch.Tensor, asked: Asked
) -> dict[str, torch.Tensor]:
    """{energy: (B,), forces: (N, 3)} of what is asked for, forces as minus the gradient of the energy.

    Args:
        energy: computes it; called under an autograd graph, also where none is kept.
        positions: (N, 3) that the energy depends on.
        asked: of the head; without forces there is no gradient.
    """
    is_training = torch.is_grad_enabled()
    with torch.enable_grad():
        energies = energy()
        out: dict[str, Any] = {"energy": energies if is_training else energies.detach()}
        if "forces" in asked:
            out["forces"] = where_it_counts(_minus_gradient(energies, positions, keep=is_training), asked["forces"])
    return {name: out[name] for name in asked}


@registry.register_model("gradient_noise_head")
class GradientNoiseHead(RowHead, nn.Module, HeadInterface):
    r"""Noise as minus the gradient of a pseudo-energy, for networks without vectors (Section 2.4 of arXiv:2303.02216).

    .. math:: \hat{\varepsilon} = -\partial \hat{E} / \partial x

    in units of the noise's scale, at the positions that the model is given. The pseudo-energy has a readout of its own,
    which fine-tuning may start an energy from.

    Args:
        backbone: whose ``scalars`` are functions of ``positions``, with ``scalar_channels`` of them.
        readout: as of `EnergyReadout`.
        output_name: what it predicts.

    Raises:
        ValueError: for a backbone that leaves no such scalars.
    """

    auxiliary: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, readout: str = "atoms", output_name: str = NOISE) -> None:
        super().__init__()
        channels = getattr(backbone, "scalar_channels", None)
        if channels is None:
            raise ValueError(
                f"{type(backbone).__name__} leaves no scalars that can be differentiated; use its own noise head"
            )
        self.output_name = output_name
        backbone.is_differentiated = True
        with torch.random.fork_rng(devices=[]):  # what is drawn after this starts as in a model without it
            self.energy = EnergyReadout(channels, readout, nn.functional.silu, bias=False)

    def predict(self, data: Batch, emb: dict[str, Any], asked: Asked) -> dict[str, torch.Tensor]:
        """{output_name: (N, 3)}."""
        is_training = torch.is_grad_enabled()
        with torch.enable_grad():
            pseudo = self.energy(emb["scalars"], data.batch, data.num_graphs)
            noise = _minus_gradient(pseudo, emb["positions"], keep=is_training)
        return {self.output_name: where_it_counts(noise, asked[self.output_name])}


def _minus_gradient(scalars: torch.Tensor, positions: torch.Tensor, *, keep: bool) -> torch.Tensor:
    """(N, 3) minus the gradient of the sum of ``scalars`` (B,), itself differentiable if ``keep``."""
    (gradient,) = torch.autograd.grad(scalars.sum(), positions, create_graph=keep, retain_graph=True)
    return -gradient

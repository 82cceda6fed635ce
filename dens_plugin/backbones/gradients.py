"""Energies, and vectors of atoms as minus the gradient of a scalar: forces of an energy, noise of a pseudo-energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.heads import Asked, RowHead, where_it_counts
from dens_plugin.backbones.readout import EnergyReadout, detached
from dens_plugin.fields import NOISE

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows

__all__ = ["GradientNoiseHead"]


class EnergyHead(RowHead, nn.Module, HeadInterface):
    """The energies of structures in normalised units. The heir says how they are computed."""

    level: ClassVar = "structure"

    def __init__(self, output_name: str = "energy") -> None:
        super().__init__()
        self.output_name = output_name

    def energies(self, data: Batch, emb: dict[str, Any]) -> torch.Tensor:
        """(B,), a function of ``emb["positions"]`` where the backbone is differentiated."""
        raise NotImplementedError

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(B,)."""
        return detached(self.energies(data, emb))


class WithForces:
    r"""Forces as the gradient of the energy. Put it before an `EnergyHead`.

    .. math:: F = -\partial E / \partial x

    at the positions that the model is given, encoded forces being constants. Forces are in the unit of the normalised
    energy, so that both normalisers must have one ``stdev``. A batch that asks for energies alone gets no gradient.
    """

    output_names: ClassVar[tuple[str, ...]] = ("energy", "forces")

    def __init__(self, backbone: nn.Module, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        backbone.is_differentiated = True

    def predict(self, data: Batch, emb: dict[str, Any], asked: Asked) -> dict[str, torch.Tensor]:
        """{energy: (B,), forces: (N, 3)}."""
        return energy_and_forces(lambda: self.energies(data, emb), emb["positions"], asked)


class ReadoutEnergyHead(EnergyHead):
    """The energy by a perceptron from a backbone's ``scalars``, with ``scalar_channels`` of them.

    Args:
        backbone: of this package.
        readout: as of `EnergyReadout`.
        output_name: what it predicts.
    """

    activation: ClassVar[Callable[[torch.Tensor], torch.Tensor]]

    def __init__(self, backbone: nn.Module, readout: str, output_name: str = "energy") -> None:
        super().__init__(output_name)
        self.energy = EnergyReadout(backbone.scalar_channels, readout, type(self).activation)

    def energies(self, data: Batch, emb: dict[str, Any]) -> torch.Tensor:
        """(B,)."""
        return self.energy(emb["scalars"], data.batch, data.num_graphs)


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
    """(N, 3) minus the gradient of the sum of ``scalars`` (B,), itself differentiable if ``keep``.

    Without edges nothing depends on positions, and the gradient is zero.
    """
    if not scalars.requires_grad:
        return torch.zeros_like(positions)
    (gradient,) = torch.autograd.grad(
        scalars.sum(), positions, create_graph=keep, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return -gradient

"""PaiNN's heads: energy, forces directly or as the gradient of the energy, and noise. Parameters as fairchem's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.heads import Asked, RowHead, where_it_counts
from dens_plugin.backbones.painn.model import PaiNN
from dens_plugin.fields import NOISE
from dens_plugin.nn.painn.layers import VectorOutput, perceptron

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows

Features = dict[str, torch.Tensor]


@registry.register_model("painn_dens_energy_head")
class PaiNNEnergyHead(RowHead, nn.Module, HeadInterface):
    """The energy, a sum over atoms, in normalised units."""

    level: ClassVar = "structure"

    def __init__(self, backbone: PaiNN, output_name: str = "energy") -> None:
        super().__init__()
        self.output_name = output_name
        channels = backbone.hidden_channels
        self.out_energy = perceptron(channels, channels // 2, 1, backbone.form)

    def values(self, data: Batch, emb: Features, rows: Rows | None) -> torch.Tensor:
        """(B,)."""
        atoms = self.out_energy(emb["scalars"]).squeeze(1)  # (N,)
        return atoms.new_zeros(data.num_graphs).index_add(0, data.batch, atoms)


@registry.register_model("painn_dens_gradient_head")
class PaiNNGradientHead(PaiNNEnergyHead):
    r"""Energy and, as its gradient, forces, in the units of the normalised energy.

    .. math:: F = -\partial E / \partial x

    at the positions that the model is given, encoded forces being constants. The normalisers of energy and forces must
    have one ``stdev``. A batch that asks for energies alone gets no gradient.
    """

    output_names: ClassVar[tuple[str, ...]] = ("energy", "forces")

    def __init__(self, backbone: PaiNN) -> None:
        super().__init__(backbone)
        backbone.is_differentiated = True
        if backbone.form != "paper":
            logging.warning(
                "Forces are gradients of an energy that jumps where atoms pass the cutoff: set model.backbone.form: "
                "paper unless the weights are fairchem's."
            )

    def predict(self, data: Batch, emb: Features, asked: Asked) -> dict[str, torch.Tensor]:
        """{energy: (B,), forces: (N, 3)}."""
        is_training, positions = torch.is_grad_enabled(), emb["positions"]
        with torch.enable_grad():
            energy = self.values(data, emb, None)
            out = {"energy": energy if is_training else energy.detach()}
            if "forces" in asked:
                total = energy.sum() + 0 * positions.sum()  # a graph without edges has no other way to positions
                (gradient,) = torch.autograd.grad(total, positions, create_graph=is_training)
                out["forces"] = where_it_counts(-gradient, asked["forces"])
        return {name: out[name] for name in asked}


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

"""ET's heads: energy, alone or with forces as its gradient, and vectors of atoms: direct forces, noise, others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.gradients import energy_and_forces
from dens_plugin.backbones.heads import Asked, RowHead
from dens_plugin.backbones.readout import detached
from dens_plugin.nn.torchmd.output import GatedOutput
from dens_plugin.nn.zero_gradients import with_zero_gradients

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.backbones.torchmd_et.model import TorchMDET
    from dens_plugin.fields import Rows

Features = dict[str, torch.Tensor]


@registry.register_model("torchmd_et_energy_head")
class TorchMDETEnergyHead(RowHead, nn.Module, HeadInterface):
    """The energy, a sum over atoms, in normalised units: for data without forces, or beside `TorchMDETVectorHead`.

    Args:
        backbone: of this package.
        output_name: what it predicts.
    """

    level: ClassVar = "structure"

    def __init__(self, backbone: TorchMDET, output_name: str = "energy") -> None:
        super().__init__()
        self.output_name = output_name
        self.output = GatedOutput(backbone.channels)

    def values(self, data: Batch, emb: Features, rows: Rows | None) -> torch.Tensor:
        """(B,)."""
        return detached(self._trained(self._energies(data, emb)))

    def _trained(self, values: torch.Tensor) -> torch.Tensor:
        """Values after which weights of vectors alone have a gradient of zeros."""
        return with_zero_gradients(values, self.output.of_vectors_alone())

    def _energies(self, data: Batch, emb: Features) -> torch.Tensor:
        atoms, _ = self.output(emb["scalars"], emb["vectors"])
        return atoms.new_zeros(data.num_graphs).index_add(0, data.batch, atoms)


@registry.register_model("torchmd_et_gradient_head")
class TorchMDETGradientHead(TorchMDETEnergyHead):
    r"""Energy and, as its gradient, forces, in the units of the normalised energy.

    .. math:: F = -\partial E / \partial x

    at the positions that the model is given, encoded forces being constants. The normalisers of energy and forces must
    have one ``stdev``. A batch that asks for energies alone gets no gradient.

    Args:
        backbone: of this package.
    """

    output_names: ClassVar[tuple[str, ...]] = ("energy", "forces")
    forces_are_gradients: ClassVar[bool] = True

    def __init__(self, backbone: TorchMDET) -> None:
        super().__init__(backbone)
        backbone.is_differentiated = True

    def predict(self, data: Batch, emb: Features, asked: Asked) -> dict[str, torch.Tensor]:
        """{energy: (B,), forces: (N, 3)}."""
        positions = emb["positions"]
        # A graph without edges has no other way to positions.
        out = energy_and_forces(lambda: self._energies(data, emb) + 0 * positions.sum(), positions, asked)
        return {name: self._trained(values) for name, values in out.items()}


@registry.register_model("torchmd_et_vector_head")
class TorchMDETVectorHead(RowHead, nn.Module, HeadInterface):
    """A vector of each atom: forces directly, or noise in units of its scale.

    Args:
        backbone: of this package.
        output_name: what it predicts; anything but forces serves training alone.
    """

    def __init__(self, backbone: TorchMDET, output_name: str = "noise") -> None:
        super().__init__()
        self.output_name = output_name
        self.auxiliary = output_name != "forces"  # type: ignore[misc]  # of this head
        with torch.random.fork_rng(devices=[]):  # what is drawn after this starts as in a model without it
            self.output = GatedOutput(backbone.channels)

    def values(self, data: Batch, emb: Features, rows: Rows | None) -> torch.Tensor:
        """(N, 3)."""
        return detached(self.output(emb["scalars"], emb["vectors"])[1])

"""ET's heads: energy, alone or with forces as its gradient, and vectors of atoms: direct forces, noise, others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.gradients import EnergyHead, ReadoutEnergyHead, WithForces
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
class TorchMDETEnergyHead(EnergyHead):
    """The energy, a sum over atoms: for data without forces, or beside `TorchMDETVectorHead`.

    Args:
        backbone: of this package.
        output_name: what it predicts.
    """

    def __init__(self, backbone: TorchMDET, output_name: str = "energy") -> None:
        super().__init__(output_name)
        self.output = GatedOutput(backbone.channels)

    def energies(self, data: Batch, emb: Features) -> torch.Tensor:
        """(B,)."""
        atoms, _ = self.output(emb["scalars"], emb["vectors"])
        return atoms.new_zeros(data.num_graphs).index_add(0, data.batch, atoms)

    def predict(self, data: Batch, emb: Features, asked: Asked) -> dict[str, torch.Tensor]:
        """What is asked for."""
        return self._trained(super().predict(data, emb, asked))

    def _trained(self, out: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs after which weights of vectors alone have a gradient of zeros."""
        unread = self.output.of_vectors_alone()
        return {name: with_zero_gradients(values, unread) for name, values in out.items()}


@registry.register_model("torchmd_et_gradient_head")
class TorchMDETGradientHead(WithForces, TorchMDETEnergyHead):
    """Energy, and forces as its gradient.

    Args:
        backbone: of this package.
    """

    def __init__(self, backbone: TorchMDET) -> None:
        super().__init__(backbone)

    def predict(self, data: Batch, emb: Features, asked: Asked) -> dict[str, torch.Tensor]:
        """{energy: (B,), forces: (N, 3)}."""
        return self._trained(super().predict(data, emb, asked))


@registry.register_model("torchmd_et_readout_head")
class TorchMDETReadoutHead(ReadoutEnergyHead):
    """Energy alone, by a perceptron of the sum of scalars, as in denoise pre-training (arXiv:2303.02216)."""

    activation = staticmethod(nn.functional.silu)

    def __init__(self, backbone: TorchMDET, readout: str = "sum", output_name: str = "energy") -> None:
        super().__init__(backbone, readout, output_name)


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

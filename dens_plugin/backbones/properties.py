"""Properties of molecules from scalars and vectors of atoms, as TorchMD-NET and its line have them on QM9.

A property that is a sum over atoms is what an energy head under another ``output_name`` predicts; here are those that
depend on where atoms are.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ase.data import atomic_masses
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from dens_plugin.backbones.heads import RowHead
from dens_plugin.backbones.readout import detached
from dens_plugin.nn.torchmd.output import GatedOutput
from dens_plugin.nn.zero_gradients import with_zero_gradients

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows

__all__ = ["DipoleHead", "SpatialExtentHead"]

_SMALLEST_SQUARED = 1e-16  # of a norm, below which it has no gradient


class _AboutTheCentre(RowHead, nn.Module, HeadInterface):
    """A property of a molecule by distances from its centre of mass, in the unit of the labels.

    Args:
        backbone: whose features are ``scalars`` (N, C) and ``vectors`` (N, 3, C), with C its ``vector_channels``.
        output_name: what it predicts.

    Raises:
        ValueError: for another backbone, or one for crystals, which have no centre.
    """

    level: ClassVar = "structure"

    def __init__(self, backbone: nn.Module, output_name: str) -> None:
        super().__init__()
        channels = getattr(backbone, "vector_channels", None)
        if channels is None:
            raise ValueError(
                f"`{output_name}` is computed from scalars and vectors of atoms, which {type(backbone).__name__} does "
                "not give; use dens_plugin.TorchMDET or dens_plugin.PaiNN"
            )
        if backbone.use_pbc:
            raise ValueError(f"`{output_name}` is of molecules: set model.backbone.use_pbc: false")
        self.output_name = output_name
        self.output = GatedOutput(channels)
        masses = torch.as_tensor(atomic_masses, dtype=torch.get_default_dtype())
        self.register_buffer("_masses", masses, persistent=False)

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(B,)."""
        weights, vectors = self.output(emb["scalars"], emb["vectors"])
        return detached(self.property(data, weights, vectors, self._from_centre(data, emb["positions"])))

    @abstractmethod
    def property(self, data: Batch, weights: torch.Tensor, vectors: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(B,) of numbers (N,) and vectors (N, 3) of atoms at ``places`` (N, 3) Å from their molecule's centre."""

    def _from_centre(self, data: Batch, positions: torch.Tensor) -> torch.Tensor:
        masses = self._masses.to(positions.dtype)[data.atomic_numbers.long()][:, None]  # (N, 1)
        centres = _sum(masses * positions, data) / _sum(masses, data)
        return positions - centres[data.batch]


@registry.register_model("dipole_head")
class DipoleHead(_AboutTheCentre):
    r"""The size of a dipole moment, of charges and dipoles of atoms.

    .. math:: \mu = \left| \sum_i q_i (r_i - c) + v_i \right|

    Args:
        backbone: see above.
        output_name: what it predicts.
    """

    def __init__(self, backbone: nn.Module, output_name: str = "mu") -> None:
        super().__init__(backbone, output_name)

    def property(self, data: Batch, weights: torch.Tensor, vectors: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(B,)."""
        moments = _sum(weights[:, None] * places + vectors, data)  # (B, 3)
        return moments.square().sum(dim=-1).clamp(min=_SMALLEST_SQUARED).sqrt()


@registry.register_model("spatial_extent_head")
class SpatialExtentHead(_AboutTheCentre):
    r"""The electronic spatial extent.

    .. math:: \langle R^2 \rangle = \sum_i x_i |r_i - c|^2

    Args:
        backbone: see above.
        output_name: what it predicts.
    """

    def __init__(self, backbone: nn.Module, output_name: str = "r2") -> None:
        super().__init__(backbone, output_name)

    def property(self, data: Batch, weights: torch.Tensor, vectors: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(B,)."""
        extent = _sum((weights * places.square().sum(dim=-1))[:, None], data).squeeze(-1)
        return with_zero_gradients(extent, self.output.of_vectors_alone())


def _sum(values: torch.Tensor, data: Batch) -> torch.Tensor:
    """(B, k) of (N, k)."""
    return values.new_zeros(data.num_graphs, values.shape[1]).index_add(0, data.batch, values)

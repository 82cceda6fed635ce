"""What a backbone says of itself, and what is said of fairchem's, which do not."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from fairchem.core.models.base import HydraModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dens_plugin.backbones.family import Family, families
from dens_plugin.backbones.neighbours import Search, search_of


class Description(NamedTuple):
    """What others must know of a backbone; None where it does not say.

    Attributes:
        family: of networks that it belongs to.
        cutoff: Å, up to which atoms are neighbours.
        periodic: whether it looks across the faces of cells.
        elements: atomic numbers are below this.
        search: which record of neighbours it reads in place of searching; None if it reads none.
        own_search: in words, why it searches itself: always, or unless it is asked to read.
        encodes_forces: whether it encodes the forces of a batch's corruption record.
        differentiates: whether forces are gradients of the energy.
    """

    family: Family | None
    cutoff: float | None
    periodic: bool | None
    elements: int | None
    search: Search | None = None
    own_search: str = ""
    encodes_forces: bool = False
    differentiates: bool = False


@runtime_checkable
class Describing(Protocol):
    """A backbone that says what it is."""

    def describe(self) -> Description:
        """Everything that is known of it, at the time when it is asked: a head may change what it does."""


def describe(model: nn.Module) -> Description:
    """What the backbone of a model says, or what is known of it, if it is fairchem's.

    Args:
        model: with DDP around it or without, of backbone and heads or in one piece.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    backbone = model.backbone if isinstance(model, HydraModel) else model
    return backbone.describe() if isinstance(backbone, Describing) else by_attributes(backbone)


def by_attributes(
    backbone: Any,
    *,
    family: Family | None = None,
    encodes_forces: bool = False,
    own_search: str = "",
    reads_records: bool = False,
) -> Description:
    """A description by the names that attributes have in fairchem's networks and in ours.

    Args:
        backbone: one of either; ``is_differentiated`` or, in fairchem's, ``direct_forces: false`` say that forces are
            gradients.
        family: by default the one with fairchem's class.
        encodes_forces: of the description.
        own_search: why a backbone searches itself.
        reads_records: whether it reads a record all the same if it is asked to.
    """
    if family is None:
        family = next((each for each in families() if each.fairchems and isinstance(backbone, each.fairchems)), None)
    differentiates = getattr(backbone, "is_differentiated", False) or not getattr(backbone, "direct_forces", True)
    if differentiates:
        own_search = "its forces are gradients"
    elif family is None:
        own_search = f"{type(backbone).__name__} is not among the backbones that read them from a batch"
    elif not backbone.otf_graph:
        own_search = "it takes those that are stored with each structure (otf_graph: false)"
    periodic = getattr(backbone, "use_pbc", None)
    return Description(
        family,
        cutoff=getattr(backbone, "cutoff", None),
        periodic=None if periodic is None else bool(periodic),
        elements=getattr(backbone, "max_num_elements", None),
        search=search_of(backbone) if reads_records or not own_search else None,
        own_search=own_search,
        encodes_forces=encodes_forces,
        differentiates=differentiates,
    )

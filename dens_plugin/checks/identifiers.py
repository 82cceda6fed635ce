"""Whether the results of a data set could be told from one another: asked before anything is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from fairchem.core.common import distutils

from dens_plugin.data.records import CheckedDataset

if TYPE_CHECKING:
    from torch_geometric.data import Data


class Identifier(NamedTuple):
    """What a result is filed under, ``sid`` or ``sid_fid``; None for a structure without ``sid``."""

    text: str | None
    place: str


def require_identifiers(dataset: CheckedDataset) -> None:
    """Look at the identifiers of all structures, each rank at its share.

    fairchem files predictions by identifier and keeps one of several with the same.

    Args:
        dataset: to predict.

    Raises:
        ValueError: on all ranks, for two structures with the same identifier, or one without.
    """
    own = range(distutils.get_rank(), len(dataset), distutils.get_world_size())
    shares = distutils.gather_objects([_identifier(*dataset.raw(index)) for index in own])
    told = [_problem([identifier for share in shares for identifier in share]) if distutils.is_master() else None]
    distutils.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise ValueError(told[0])


def _problem(identifiers: Sequence[Identifier]) -> str | None:
    first: dict[str, str] = {}
    twice: dict[str, str] = {}
    for text, place in identifiers:
        if text is None:
            return f"{place} has no `sid`, by which its prediction could be found; give every structure one"
        if text in first:
            twice.setdefault(text, f"{first[text]} and {place}")
        first.setdefault(text, place)
    if not twice:
        return None
    text, places = min(twice.items())
    return (
        f"dataset.test.src holds {len(twice)} identifiers more than once, first '{text}' at {places}: only one of the "
        "predictions would be kept; give every structure a `sid`, or `sid` and `fid`, of its own, or predict file by "
        "file"
    )


def _identifier(structure: Data, place: str) -> Identifier:
    sid, fid = (structure.get(name) for name in ("sid", "fid"))
    if sid is None:
        return Identifier(None, place)
    return Identifier(_text(sid) if fid is None else f"{_text(sid)}_{_text(fid)}", place)


def _text(value: Any) -> str:
    return str(value.reshape(-1)[0].item() if torch.is_tensor(value) else value)

"""``manifest.json`` beside the data sets of ``dens data molecules``: what a model should know of its training data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE_NAME = "manifest.json"
ORIGIN = "molecules"  # in the config of a checkpoint


class Origin(NamedTuple):
    """What data are of.

    Attributes:
        formula: Of all their structures; None if they have several.
        elements: All of them, by symbol.
        reference: eV, subtracted from every energy.
    """

    formula: str | None
    elements: list[str]
    reference: float


def origin_of(src: Any) -> Origin | None:
    """What the data set at ``dataset.*.src`` is of; None if it was made by others, or is gone.

    Args:
        src: A path; a list has no origin.
    """
    file = Path(src).parent / FILE_NAME if isinstance(src, (str, Path)) else None
    if file is None or not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text())
        return Origin(manifest["formula"], manifest["elements"], manifest["reference_energy_ev"])
    except (ValueError, KeyError, TypeError):  # somebody else's, or one of an older version
        return None


def with_origin(dataset: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entry of a trainer's config that keeps the origin of its training set; empty where none is known."""
    origin = origin_of(dataset.get("src"))
    return {} if origin is None else {ORIGIN: origin._asdict()}

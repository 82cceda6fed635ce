"""Molecules that come with the package: frames of revised MD17 (CC0 1.0, see ``data/shipped/LICENSES``)."""

from __future__ import annotations

from pathlib import Path

from dens_plugin.settings import suggestion

PREFIX = "shipped:"  # what `dens data molecules` takes in the place of a file

_FOLDER = Path(__file__).resolve().parent.parent / "shipped"


def shipped_names() -> list[str]:
    """The molecules that there are."""
    return sorted(file.stem for file in _FOLDER.glob("*.npz"))


def shipped_molecule(name: str) -> Path:
    """The npz file of a molecule, in eV and Å.

    Malonaldehyde and uracil have 250 frames for training, 50 for validation and 300 for test; benzene, toluene and
    salicylic acid 200 frames without forces and without a split.

    Args:
        name: One of :func:`shipped_names`.

    Raises:
        ValueError: If there is no such molecule.
    """
    if name not in shipped_names():
        raise ValueError(f"no molecule '{name}' comes with the package; {suggestion(name, shipped_names())}")
    return _FOLDER / f"{name}.npz"

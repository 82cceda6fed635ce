"""Linear references: an energy per element, whose sum over a structure's atoms is taken off its total energy.

The network learns what is left over. fairchem's trainer knows this as ``transforms.element_references``: it takes the
references off the labels in the loss, adds them to every prediction, and keeps them in the checkpoint. A data set
therefore hands out total energies and gets total energies back. The older key ``lin_ref``, by which the OC22 baselines
and the authors of DeNS give the file, is ignored by fairchem-core 1.10's ``oc22_lmdb``;
:func:`with_element_references` gives it the meaning of the former.

Reference: Tran et al., "The Open Catalyst 2022 (OC22) dataset", arXiv:2206.08917, "Alternative reference scheme".
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from fairchem.core.modules.normalization.element_references import create_element_references
from numpy.typing import ArrayLike

from dens_plugin.settings import mapping

_BLOCKS = {"dataset": "train", "val_dataset": "val", "test_dataset": "test", "relax_dataset": "relax"}
_NONE = (None, False)  # what a person writes who wants no references
_UNFITTED_ABOVE = 100.0  # eV; elements that a fit never met get zero or anything up to 1e13, real ones stay below 20
_OC20_PUBLISHED = {1: -3.3939827685, 8: -4.8231223998}  # eV, H and O of the file published with OC20


class References(NamedTuple):
    """Energies per element.

    Attributes:
        path: the file they are from.
        energies: (Z,) eV, index = atomic number.
    """

    path: Path
    energies: np.ndarray

    @property
    def are_oc20s(self) -> bool:
        """Whether this is the file that was fitted on OC20, whose functional is another."""
        return all(
            number < len(self.energies) and abs(self.energies[number] - energy) < 1e-6
            for number, energy in _OC20_PUBLISHED.items()
        )

    def missing(self, numbers: ArrayLike) -> list[str]:
        """Symbols of the elements among atomic ``numbers`` (N,) for which there is no energy, each once."""
        return [chemical_symbols[number] for number in np.unique(numbers) if not self._covers(int(number))]

    def _covers(self, number: int) -> bool:
        if number >= len(self.energies):
            return False
        return 0 < abs(self.energies[number]) < _UNFITTED_ABOVE  # NaN is neither


def read_references(path: str | Path, where: str) -> References:
    """Read a file of references, an ``.npz`` with ``coeff`` or whatever else fairchem reads.

    Args:
        path: the file.
        where: the config key that names it, for errors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no references.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{where}: there is no '{path}'; OC22's is oc22_linfit_coeffs.npz in fairchem's configs/oc22/linref"
        )
    try:
        energies = create_element_references(file=path).element_references
    except (KeyError, RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{where}: '{path}' holds no references ({error}); it must be an .npz with an array `coeff`, one energy in "
            "eV per element, index = atomic number"
        ) from error
    if energies.dim() != 1 or not energies.is_floating_point():
        raise ValueError(
            f"{where}: `coeff` in '{path}' must have one energy in eV per element, index = atomic number; it has shape "
            f"{tuple(energies.shape)} and type {energies.dtype}"
        )
    return References(path, energies.double().numpy())


def references_of(dataset: Mapping[str, Any], where: str) -> References | None:
    """The references of energies that a data set's block gives as fairchem's transform; None if it gives no file."""
    block = _element_references(dataset, where).get("energy")
    if block is None:
        return None
    key = f"{where}.transforms.element_references.energy"
    block = mapping(block, key)
    return read_references(block["file"], f"{key}.file") if block.get("file") else None


def with_element_references(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The data set blocks of a trainer's config, with ``lin_ref`` turned into fairchem's element references.

    Args:
        config: as fairchem's trainer keeps it: ``dataset`` for training, ``val_dataset``, ``test_dataset`` and
            ``relax_dataset``; left as it is.

    Returns:
        The same blocks, those that gave ``lin_ref`` as new ones without it. Only that for training has references:
        the trainer has one set of them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file holds no references, two places disagree, or OC22's total energies come without a word
            about references; ``lin_ref: null`` is one.
    """
    blocks = {key: dict(config[key]) for key in _BLOCKS if config.get(key)}
    given = {key: block.pop("lin_ref") for key, block in blocks.items() if "lin_ref" in block}
    given = {key: path for key, path in given.items() if path not in _NONE}
    if "dataset" in blocks:
        _require_decision(config["dataset"])
        _require_agreement(given)
    if "dataset" in given:
        blocks["dataset"] = _referenced(blocks["dataset"], given["dataset"])
    return blocks


def require_references(datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise as :func:`with_element_references` does, for a config's own blocks: ``train``, ``val``, ``test``."""
    with_element_references({key: datasets.get(split) for key, split in _BLOCKS.items()})


def _require_decision(train: Mapping[str, Any]) -> None:
    """Raise ValueError for a training set of total energies in which nobody thought of references."""
    is_total = train.get("format") == "oc22_lmdb" and train.get("src")
    if is_total and "lin_ref" not in train and not _element_references(train, "dataset.train"):
        raise ValueError(
            "dataset.train.lin_ref is missing: OC22's energies are total ones; give the file of linear "
            "references, oc22_linfit_coeffs.npz in fairchem's configs/oc22/linref, or `lin_ref: null` to train on "
            "total energies as they are"
        )


def _require_agreement(given: Mapping[str, Any]) -> None:
    """Raise ValueError unless all of the ``lin_ref``, by the block that gives them, are the training set's."""
    for key, path in given.items():
        where = f"dataset.{_BLOCKS[key]}.lin_ref"
        if not isinstance(path, (str, Path)):
            raise ValueError(f"{where} must be the path of an .npz file, got {path!r}, or null for none")
        if "dataset" not in given:
            raise ValueError(
                f"{where} is given and dataset.train.lin_ref is not; references are those of the training set: move "
                "the line there"
            )
        if path != given["dataset"]:
            raise ValueError(f"{where} '{path}' and dataset.train.lin_ref '{given['dataset']}' must be the same file")


def _referenced(dataset: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """A training block with one more transform."""
    read_references(path, "dataset.train.lin_ref")
    references = _element_references(dataset, "dataset.train")
    if references:
        raise ValueError(
            "dataset.train.lin_ref and dataset.train.transforms.element_references say the same; keep one of them"
        )
    transforms = {**(dataset.get("transforms") or {}), "element_references": {"energy": {"file": str(path)}}}
    return {**dataset, "transforms": transforms}


def _element_references(dataset: Mapping[str, Any], where: str) -> dict[str, Any]:
    transforms = mapping(dataset.get("transforms") or {}, f"{where}.transforms")
    return mapping(transforms.get("element_references") or {}, f"{where}.transforms.element_references")

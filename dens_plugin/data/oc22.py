"""OC22's LMDB files: total energies, structures of which all atoms are free, and what goes wrong with both.

Registered as ``oc22_lmdb``, in place of fairchem's class of that name, of which it is a subclass: a config for OC22
says what it always said. fairchem-core 1.10 reads ``lin_ref``, drops it, and trains on total energies without a word;
here the trainer turns it into element references (:mod:`dens_plugin.data.oc22_references`), and a data set that still
meets the key refuses it. Predictions are total energies in every mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.oc22_lmdb_dataset import OC22LmdbDataset

from dens_plugin.data.oc22_references import References, references_of
from dens_plugin.fields import structure_name
from dens_plugin.settings import mapping, reject_unknown

if TYPE_CHECKING:
    from torch_geometric.data import Data

_WHERE = "dataset (format oc22_lmdb)"
_KEYS = """
    format src key_mapping transforms train_on_oc20_total_energies oc20_ref lin_ref data2train metadata_path max_atoms
    subset_to first_n sample_n no_shuffle seed use_train_settings splits train_split_settings val_split_settings
    test_split_settings normalize_labels target_mean target_std grad_target_mean grad_target_std
""".split()  # noqa: SIM905  (a list of thirty literals would fill the page)
_TRANSFORMS = ("normalizer", "element_references", "decompose_tensor")
_TARGETS = ("energy", "forces", "stress", "fit", "file")


@registry.register_dataset("oc22_lmdb")
class OC22Lmdb(OC22LmdbDataset):
    """fairchem's ``oc22_lmdb`` with its mistakes and a user's met early.

    Structures have total energies in eV. Those without ``fixed`` get one that fixes no atom, as OC22 has it, so that
    fairchem's metrics find it and DeNS may move every atom.

    Args:
        config: as fairchem's, with references as ``transforms.element_references.energy.file``.

    Raises:
        FileNotFoundError: for a file of references that does not exist.
        ValueError: for an unknown key, a file that cannot be read, or ``lin_ref`` where no trainer of ours took it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        _require_meant(config)
        self._references = references_of(config, "dataset")
        try:
            super().__init__(config)
        except (AssertionError, OSError) as error:
            raise ValueError(f"{_WHERE}: '{config.get('src')}' cannot be opened: {error}") from error

    def __getitem__(self, idx: int) -> Data:
        """A structure, as fairchem's.

        Raises:
            ValueError: if there is no reference for one of its elements or for itself, or the references are OC20's.
        """
        try:
            structure = super().__getitem__(idx)
        except AssertionError as error:
            raise ValueError(f"{_WHERE}: structure {idx} is not OC22's: {error}") from error
        except KeyError as error:
            raise ValueError(f"{_WHERE}: oc20_ref has no energy for {error}, structure {idx}") from error
        if "fixed" not in structure:
            structure.fixed = torch.zeros(len(structure.pos), dtype=torch.long)
        if self._references is not None:
            _require_referenced(structure, self._references)
        return structure


def _require_meant(config: Mapping[str, Any]) -> None:
    """Raise for an invalid key, before a file is opened."""
    reject_unknown(config, _KEYS, _WHERE)
    if "lin_ref" in config:
        raise ValueError(
            f"{_WHERE}: only dens_plugin.DeNSTrainer knows lin_ref; with another trainer write "
            f"`transforms: {{element_references: {{energy: {{file: {config['lin_ref']}}}}}}}`"
        )
    transforms = mapping(config.get("transforms") or {}, f"{_WHERE}.transforms")
    reject_unknown(transforms, _TRANSFORMS, f"{_WHERE}.transforms")
    for name in ("normalizer", "element_references"):
        where = f"{_WHERE}.transforms.{name}"
        reject_unknown(mapping(transforms.get(name) or {}, where), _TARGETS, where)
    if config.get("train_on_oc20_total_energies"):
        _require_file(config.get("oc20_ref"), "oc20_ref")


def _require_file(path: Any, key: str) -> None:
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        raise FileNotFoundError(
            f"{_WHERE}: train_on_oc20_total_energies needs {key}, the pickle of OC20's reference energies; got {path!r}"
        )


def _require_referenced(structure: Data, references: References) -> None:
    if structure.get("oc22") and references.are_oc20s:
        raise ValueError(
            f"'{references.path}' holds OC20's linear references and {_named(structure)} is OC22's, of another "
            "functional; use oc22_linfit_coeffs.npz"
        )
    missing = references.missing(structure.atomic_numbers.long().numpy())
    if missing:
        raise ValueError(
            f"'{references.path}' has no reference energy for {', '.join(missing)} in {_named(structure)}; use "
            "references fitted on this data, as `transforms: {element_references: {fit: {targets: [energy], "
            "batch_size: 100, num_batches: 1000}}}` does"
        )


def _named(structure: Data) -> str:
    return structure_name(structure) or "a structure"

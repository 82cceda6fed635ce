"""Energies and forces that a run's checkpoint predicts for a data set of its config, kept in a file between reports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.base_dataset import create_dataset
from tqdm import tqdm

from dens_plugin.checks.dataset import require_files
from dens_plugin.checks.preflight import limits_of
from dens_plugin.data.records import LABELS, CheckedDataset
from dens_plugin.fields import free_atoms
from dens_plugin.inference.calculator import load_calculator
from dens_plugin.inference.process import float32_and_own_numbers

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from torch_geometric.data import Batch

    from dens_plugin.report.runs import Run
    from dens_plugin.training.trainer import DeNSTrainer

_KEYS = {"train": "dataset", "val": "val_dataset", "test": "test_dataset"}


class Predictions(NamedTuple):
    """Predictions and labels of B structures with M free atoms in all.

    Attributes:
        energy: (B,) eV, predicted.
        energy_label: (B,) eV.
        forces: (M, 3) eV/Å, predicted.
        forces_label: (M, 3) eV/Å.
        numbers: (M,) atomic numbers.
        available: () structures of the data set, of which B were taken.
        parameters: () parameters of the model.
    """

    energy: np.ndarray
    energy_label: np.ndarray
    forces: np.ndarray
    forces_label: np.ndarray
    numbers: np.ndarray
    available: np.ndarray
    parameters: np.ndarray

    @property
    def energy_mae(self) -> float:
        """In eV."""
        return float(np.abs(self.energy - self.energy_label).mean())

    @property
    def forces_mae(self) -> float:
        """In eV/Å, over all components of free atoms."""
        return float(np.abs(self.forces - self.forces_label).mean())

    def element_errors(self) -> dict[int, float]:
        """Atomic number -> MAE of the forces of its free atoms in eV/Å."""
        error = np.abs(self.forces - self.forces_label).mean(axis=1)  # (M,)
        return {int(number): float(error[self.numbers == number].mean()) for number in np.unique(self.numbers)}


def dataset_of(config: Mapping[str, Any], split: str) -> Dataset:
    """A data set of a run's config, as fairchem's trainer makes it; relative paths start at the current directory.

    Args:
        config: a checkpoint's.
        split: ``train``, ``val`` or ``test``.

    Raises:
        FileNotFoundError: if its files are not there.
        ValueError: if the config names none, or its files are broken.
    """
    # fairchem's `load_datasets` makes all splits, samplers and loaders at once; this is its step for one of them.
    own, train = config.get(_KEYS[split]) or {}, config.get("dataset") or {}
    if not own.get("src"):
        raise ValueError(f"the run's config has no dataset.{split}.src; take another --split or --no-predictions")
    merged = {**train, **own} if own.get("use_train_settings", True) else dict(own)
    settings = merged.pop(f"{split}_split_settings", None)
    if settings is not None:
        merged["splits"] = {split: settings}
    try:
        require_files(merged, split)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; relative paths start at the current directory: go where the run was started, or use "
            "--no-predictions"
        ) from error
    return create_dataset(merged, split)


class PredictionCache:
    """Predictions in an ``.npz`` file, each under a digest of its checkpoint's path and time and of the selection.

    Args:
        path: of the file, read if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays: dict[str, np.ndarray] = {}
        if path.is_file():
            with np.load(path) as file:
                self._arrays = dict(file)

    def get(self, run: Run, split: str, *, max_structures: int) -> Predictions:
        """The predictions of a run, made now unless they are in the file.

        Raises:
            FileNotFoundError: if the data set is not there.
            ValueError: if it has no labels.
        """
        key = _digest(_checkpoint_of(run), split, max_structures)
        if f"{key}.energy" not in self._arrays:
            made = predict(run, split, max_structures=max_structures)
            self._arrays |= {f"{key}.{name}": value for name, value in made._asdict().items()}
            self._write()
        return Predictions(**{name: self._arrays[f"{key}.{name}"] for name in Predictions._fields})

    def _write(self) -> None:
        """Replace the file at once, so that an interrupted report leaves the old one whole."""
        fresh = self._path.with_name(f"new_{self._path.name}")
        np.savez_compressed(fresh, **self._arrays)
        fresh.replace(self._path)


def predict(run: Run, split: str, *, max_structures: int) -> Predictions:
    """Predict energies and forces of structures taken evenly from a data set.

    Args:
        run: with a checkpoint.
        split: ``train``, ``val`` or ``test``.
        max_structures: how many structures at most.

    Raises:
        FileNotFoundError: if the data set is not there.
        ValueError: if it has no labels, or no structures.
    """
    trainer = load_calculator(_checkpoint_of(run)).trainer
    dataset = CheckedDataset(dataset_of(run.config, split), limits_of(trainer.model), LABELS)
    indices = evenly(len(dataset), max_structures)
    trainer.model.eval()
    optim = run.config["optim"]
    size = optim.get("eval_batch_size", optim.get("batch_size", 1))
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    with float32_and_own_numbers():
        torch.manual_seed(0)  # of edge frames, on which predictions depend in their last digits
        parts = [
            _predict_batch(trainer, [dataset[at] for at in batch], split)
            for batch in tqdm(batches, desc=f"{run.label}, {split}", unit="batch", leave=False, disable=None)
        ]
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return Predictions._make([*joined, np.asarray(len(dataset)), np.asarray(parameters)])


def _checkpoint_of(run: Run) -> Path:
    if run.checkpoint is None:
        raise ValueError(f"'{run.folder}' has no checkpoint to predict with; use --no-predictions")
    return run.checkpoint


def evenly(length: int, most: int) -> list[int]:
    """At most ``most`` indices spread evenly over a data set of some length.

    Raises:
        ValueError: if the data set is empty or ``most`` is below 1.
    """
    if length < 1 or most < 1:
        raise ValueError(f"cannot take {most} of {length} structures; both must be at least 1")
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int)).tolist()


@torch.no_grad()
def _predict_batch(trainer: DeNSTrainer, structures: list[Any], split: str) -> tuple[np.ndarray, ...]:
    """The first five fields of `Predictions` for some structures."""
    batch = data_list_collater(structures, otf_graph=True)
    _require_labels(batch, split)
    outputs = trainer._forward(batch)
    energy, forces = (trainer._denorm_preds(name, outputs[name], batch) for name in ("energy", "forces"))
    free = free_atoms(batch)
    values = (energy.view(-1), batch.energy.view(-1), forces[free], batch.forces[free], batch.atomic_numbers[free])
    return tuple(value.cpu().numpy() for value in values)


def _require_labels(batch: Batch, split: str) -> None:
    missing = [name for name in ("energy", "forces") if name not in batch]
    if missing:
        raise ValueError(
            f"the {split} set has no labels `{'` and `'.join(missing)}`, so there are no errors to report; take "
            "another --split or --no-predictions"
        )


def _digest(checkpoint: Path, split: str, max_structures: int) -> str:
    identity = f"{checkpoint.resolve()},{checkpoint.stat().st_mtime_ns},{split},{max_structures}"
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()

"""A trained model as an ASE calculator, for relaxations and molecular dynamics."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from fairchem.core import OCPCalculator
from torch import nn

from dens_plugin.backbones.description import describe
from dens_plugin.cells import is_flat
from dens_plugin.checks.preflight import limits_of, require_predicted
from dens_plugin.compat import load_checkpoint, prepare_host
from dens_plugin.data.molecules.manifest import ORIGIN, Origin
from dens_plugin.data.molecules.physical import PhysicalEnergies
from dens_plugin.data.oc22_references import References
from dens_plugin.data.overlap import ONE_PLACE, OVERLAP_REMEDY, overlap
from dens_plugin.inference.process import float32_and_own_numbers, lent_process


class DeNSCalculator(OCPCalculator):
    """fairchem's calculator, which refuses structures that its model cannot compute.

    Energies are those of the files that the training data came from: `PhysicalEnergies` adds what was subtracted.

    Args:
        loaded: the checkpoint.
        **kwargs: as fairchem's.
    """

    def __init__(self, loaded: dict[str, Any], **kwargs: Any) -> None:
        self._loaded = loaded
        super().__init__(**kwargs)
        del self._loaded
        known = self.config.get(ORIGIN)
        self._origin = None if known is None else Origin(**known)
        self._physical = PhysicalEnergies.of(self.config, self.trainer.normalizers, self.trainer.elementrefs)
        self._warned: set[str] = set()

    @property
    def cutoff(self) -> float | None:
        """The distance in Å up to which atoms of its model are neighbours; None for a model without one."""
        return describe(self.trainer.model).cutoff

    def load_checkpoint(self, checkpoint_path: str, checkpoint: dict | None = None) -> None:
        """fairchem's, with what was read already."""
        super().load_checkpoint(checkpoint_path, self._loaded if checkpoint is None else checkpoint)

    def calculate(self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence[str]) -> None:
        """Energy and forces of a structure.

        Raises:
            ValueError: for no atoms, positions that are not finite, two atoms at one place, an element that the model
                does not know, or a crystal where it looks at molecules alone, or without a cell.
        """
        limits = limits_of(self.trainer.model)
        limit = limits.elements
        if len(atoms) == 0:
            raise ValueError("there are no atoms to compute energy and forces of")
        if not np.isfinite(atoms.get_positions()).all():
            raise ValueError("positions are NaN or infinite; a relaxation or dynamics with too long a step does that")
        if max(atoms.numbers) >= limit or min(atoms.numbers) < 1:
            raise ValueError(f"the model knows the elements 1 to {limit - 1}, not {sorted(set(atoms.numbers))}")
        self._warn_of_unseen(atoms)
        self._look_for_overlap(atoms)
        if limits.molecular and atoms.pbc.any():
            raise ValueError(
                "the structure is periodic and the model takes all for molecules (`use_pbc: false`): set its pbc to "
                "False if it is one, else use a model with `use_pbc: true`"
            )
        if limits.periodic and is_flat(atoms.cell.array, atoms.pbc):
            raise ValueError(
                "the structure is periodic and its cell has no volume: give it one, or set pbc to False along vectors "
                "that are zero"
            )
        self._require_references(atoms)
        device = self.trainer.device
        with float32_and_own_numbers([] if device.type == "cpu" else [device.index or 0]):
            super().calculate(atoms, properties, system_changes)
        if "energy" in self.results:
            self.results["energy"] = float(self.results["energy"]) + self._physical.missing(atoms.numbers)

    def _warn_of_unseen(self, atoms: Atoms) -> None:
        """Say once of every element that there was none of it in training."""
        if self._origin is None:
            return
        unseen = set(atoms.get_chemical_symbols()) - {*self._origin.elements, *self._warned}
        if unseen:
            self._warned |= unseen
            logging.warning(
                f"The model was trained on {', '.join(self._origin.elements)} and never saw "
                f"{', '.join(sorted(unseen))}: its predictions for them are arbitrary."
            )

    def _look_for_overlap(self, atoms: Atoms) -> None:
        """Raise ValueError for atoms at one place, which feel nothing of each other; warn once of any that overlap."""
        found = overlap(atoms.positions, atoms.cell.array, atoms.pbc)
        if found is not None and found.distance <= ONE_PLACE:
            raise ValueError(f"there are {found}, where they feel no force; {OVERLAP_REMEDY}")
        if found is not None and "overlap" not in self._warned:
            self._warned.add("overlap")
            logging.warning(f"There are {found}: predictions for that are arbitrary; {OVERLAP_REMEDY}.")

    def _require_references(self, atoms: Atoms) -> None:
        """Raise ValueError for an element to which the model's linear references give no energy."""
        linear = self.trainer.elementrefs.get("energy")
        if linear is None:
            return
        references = References(Path("checkpoint"), linear.element_references.double().cpu().numpy())
        missing = references.missing(atoms.numbers)
        if missing:
            raise ValueError(f"the model's linear references have no energy for {', '.join(missing)}")


def load_calculator(
    path: str | Path, *, device: str | None = None, cpu: bool | None = None, seed: int = 0, trusted: bool = False
) -> OCPCalculator:
    """The ASE calculator of a checkpoint: energy in eV, forces in eV/Å.

    Averaged weights (EMA) are used wherever the checkpoint has them, as in fairchem's validation. The model computes in
    float32, and the process's random numbers, default type and logging stay as they are.

    Args:
        path: ``best_checkpoint.pt`` or ``checkpoint.pt`` of a run, of this package or of fairchem.
        device: ``cpu``, ``cuda`` or ``cuda:1``; by default a GPU where there is one.
        cpu: the same in older scripts: True for ``cpu``, False for ``cuda``.
        seed: of the random edge frames, on which predictions depend in their last digits.
        trusted: whether the file may run code of its own, as a pickle can; checkpoints of this package never need it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint, or lacks a config; if its model has no head for an output, as after
            pre-training; for a device that does not exist.
    """
    chosen = _device(device, cpu=cpu)
    gpus = [] if chosen.type == "cpu" else [chosen.index or 0]
    prepare_host()
    checkpoint = load_checkpoint(path, trusted=trusted)
    if "model" not in (checkpoint.get("config") or {}):
        raise ValueError(f"'{path}' holds weights without a config; convert it with `dens convert` first")
    config = {**_inference_config(checkpoint["config"]), "local_rank": chosen.index or 0}
    with lent_process(gpus), _host_quiet():
        calculator = DeNSCalculator(checkpoint, config_yml=config, checkpoint_path=str(path), cpu=not gpus, seed=seed)
    require_predicted(calculator.trainer._unwrapped_model, calculator.config["outputs"], f"the model in '{path}'")
    calculator.trainer.config["cmd"]["seed"] = seed  # which every prediction starts from
    _use_average(calculator.trainer.model, checkpoint.get("ema"))
    return calculator


def require_properties(calculator: Calculator, names: Sequence[str], *, what: str) -> None:
    """Raise ValueError if a calculator's model does not predict what is needed.

    Args:
        calculator: of `load_calculator`.
        names: ``energy``, ``forces``.
        what: for which they are needed, in words.
    """
    for name in names:
        if name not in calculator.implemented_properties:
            raise ValueError(
                f"{what} needs `{name}`, and the model predicts {', '.join(calculator.implemented_properties)} alone"
            )


def _device(name: str | None, *, cpu: bool | None) -> torch.device:
    """The device that was asked for.

    Raises:
        ValueError: if it does not exist, or two were asked for.
    """
    if cpu is not None:
        if name is not None and (name == "cpu") != cpu:
            raise ValueError(f"device={name!r} and cpu={cpu} contradict each other; give device alone")
        name = name or ("cpu" if cpu else "cuda")
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise ValueError(f"unknown device '{name}'; give 'cpu', 'cuda' or 'cuda:1'")
    if name != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(f"there is no '{name}' here, of {found} GPUs that torch sees; give device='cpu'")
    return torch.device(name)


def _inference_config(stated: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's config in the form that fairchem's calculator takes; data paths are of no use to it."""
    config = copy.deepcopy(dict(stated))
    train = config.get("dataset") or {}
    train = train[0] if isinstance(train, list) else train
    config["dataset"] = {"train": {**train, "src": None}}
    config["trainer"] = "dens_plugin.DeNSTrainer"
    return config


@contextmanager
def _host_quiet() -> Iterator[None]:
    """Within the context, logging shows warnings only: fairchem logs a whole config for every calculator."""
    previous = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(previous)


def _use_average(model: nn.Module, ema: Mapping[str, Sequence[torch.Tensor]] | None) -> None:
    """Copy the averaged parameters, which fairchem keeps in the model's order, into the model."""
    if ema is None:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, average in zip(trained, ema["shadow_params"], strict=True):
            parameter.copy_(average)

"""The folder of a relaxation: its description, a file per finished structure, and the result.

A file has its name only when it is whole. Whatever ends a run, the same command goes on from what the folder holds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory

from dens_plugin.compat import damage
from dens_plugin.data.output import require_folder
from dens_plugin.relaxation.minimiser import OUT_OF_MEMORY
from dens_plugin.relaxation.result import Relaxations, joined, load_relaxations
from dens_plugin.settings import mapping

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from dens_plugin.relaxation.minimiser import Frame, Outcome

RESULT = "relaxed.npz"

_MANIFEST = "relaxation.json"
_RECORDS, _TRAJECTORIES = "structures", "trajectories"
_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 3600.0  # longer than any batch takes


class RelaxationFolder:
    """Where the results of a relaxation are kept.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, manifest: Mapping[str, Any]) -> None:
        """Make the folder, or find it to be of the same relaxation.

        Args:
            manifest: settings, model and data of the relaxation.

        Raises:
            ValueError: if the folder cannot be made, or holds another relaxation or something else.
        """
        known = self.path / _MANIFEST
        if not known.exists():
            self._require_empty()
            with self._writing():
                for name in (_RECORDS, _TRAJECTORIES):
                    (self.path / name).mkdir(parents=True, exist_ok=True)
                _write(known, json.dumps(manifest, indent=1).encode())
            return
        differing = _differing(_read_manifest(known), manifest)
        if differing:
            raise ValueError(
                f"'{self.path}' holds another relaxation: {'; '.join(differing)}. Choose another task.relax.out, or "
                "remove that folder"
            )

    def finished(self, names: Collection[str]) -> set[str]:
        """Those of the structures that are done.

        A broken record is removed, and what lacked memory gets another try. Files of other names are left alone.

        Raises:
            ValueError: if a file with the name of a record is not one.
        """
        return {name for name in names if self._is_done(name)}

    def _is_done(self, name: str) -> bool:
        file = self._record(name)
        if not file.exists():
            return False
        try:
            is_done = load_relaxations(file).status[0] != OUT_OF_MEMORY
        except ValueError as error:
            if not _is_broken_archive(file):
                raise ValueError(
                    f"'{file}' is where the result of '{name}' belongs, and `dens relax` did not write it: move it "
                    "away, and run the same command again"
                ) from error
            logging.warning(f"{error}: its structure is relaxed again")
            is_done = False
        if not is_done:
            file.unlink()
        return is_done

    def write(self, record: Relaxations, outcome: Outcome, *, with_frames: bool) -> None:
        """Keep what became of a structure; its trajectory first, since the record says that it is done."""
        name = quote(str(record.ids[0]), safe="")
        with self._writing():
            if with_frames:
                _write_trajectory(self.path / _TRAJECTORIES / f"{name}.traj", outcome.structure, outcome.frames)
            record.save(self.path / _RECORDS / f"{name}.npz")

    def wait(self, names: Collection[str]) -> None:
        """Wait until all ranks have written their share.

        A collective operation would give up half an hour after the first rank has come to it.

        Raises:
            TimeoutError: if no structure was finished for an hour.
        """
        expected, seen, since = set(names), -1, time.monotonic()
        while expected - (written := {unquote(file.stem) for file in (self.path / _RECORDS).glob("*.npz")}):
            if len(written) > seen:
                seen, since = len(written), time.monotonic()
            elif time.monotonic() - since > _PATIENCE_SECONDS:
                raise TimeoutError(
                    f"{len(expected - written)} structures are missing in '{self.path}' and none was finished for an "
                    "hour: other ranks seem to be gone; run the same command again to go on"
                )
            time.sleep(_POLL_SECONDS)

    def finish(self, names: Collection[str]) -> Relaxations:
        """Write the result: every structure once, sorted by name. Left-overs of runs that were killed are removed."""
        result = joined([load_relaxations(self._record(name)) for name in names])
        with self._writing():
            result.save(self.path / RESULT)
        self._remove_parts(r"\d+")
        return result

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Within the context, a full disk or a folder that cannot be written to is told with what to do."""
        try:
            yield
        except OSError as error:
            self._remove_parts(str(os.getpid()))
            raise OSError(
                f"'{self.path}' cannot be written to ({error.strerror or error}): make room or make it writable, and "
                "run the same command again; structures that are done stay so"
            ) from error

    def _remove_parts(self, process: str) -> None:
        """Remove unfinished files of the processes whose number the pattern matches."""
        for folder in (self.path, self.path / _RECORDS, self.path / _TRAJECTORIES):
            for part in folder.glob(".*.part"):
                if re.fullmatch(rf"\..+\.{process}\.part", part.name):
                    part.unlink(missing_ok=True)

    def _record(self, name: str) -> Path:
        return self.path / _RECORDS / f"{quote(name, safe='')}.npz"

    def _require_empty(self) -> None:
        require_folder(self.path, "task.relax.out")
        # Folders alone are what a run leaves that was killed before it had written its description.
        if self.path.is_dir() and any(not entry.is_dir() and entry.suffix != ".part" for entry in self.path.iterdir()):
            raise ValueError(f"'{self.path}' holds something other than a relaxation; choose another task.relax.out")
        if any((self.path / _RECORDS).glob("*.npz")):
            raise ValueError(f"'{self.path}' holds structures and no {_MANIFEST}; choose another task.relax.out")


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = mapping(json.loads(path.read_text()), "it")
        mapping(found.get("settings"), "`settings` in it")
    except ValueError as error:  # also those of json and of bytes that are no text
        raise ValueError(
            f"'{path}' does not describe a relaxation ({error}); remove its folder or choose another"
        ) from error
    return found


def _is_broken_archive(file: Path) -> bool:
    """Whether a file is the rest of a record: cut, damaged or empty, and no whole archive of somebody else."""
    content = file.read_bytes()
    return not content or (content.startswith(b"PK") and damage(file) is not None)


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two manifests differ in, in words."""
    lines = []
    for part, meaning in (("model", "the checkpoint or the model's settings"), ("data", "the structures")):
        if there.get(part) != here[part]:
            lines.append(f"{meaning} are others")
    for name, value in here["settings"].items():
        known = there.get("settings", {}).get(name)
        if known != value:
            lines.append(f"{name} is {known} there and {value} here")
    return lines


def _write_trajectory(path: Path, structure: Data, frames: list[Frame]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with Trajectory(str(part), "w") as file:
        for frame in frames:
            file.write(_atoms(structure, frame))
    part.replace(path)


def _atoms(structure: Data, frame: Frame) -> Atoms:
    has_cell = "cell" in structure and bool(structure.cell.any())
    pbc = structure.get("pbc")
    atoms = Atoms(
        numbers=structure.atomic_numbers.long().numpy(),
        positions=frame.pos,
        cell=structure.cell.reshape(3, 3).numpy() if has_cell else None,
        pbc=has_cell if pbc is None else pbc.reshape(3).tolist(),
        tags=structure.tags.long().numpy(),
        constraint=FixAtoms(mask=(structure.fixed != 0).numpy()),
    )
    atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
    return atoms

"""The predictions of one split: what can be wrong with them, and putting them in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dens_plugin.data.findings import Finding, Severity
from dens_plugin.leaderboard.file import sha256_of_array
from dens_plugin.leaderboard.layout import Rules, without_frames

_EXAMPLES = 3
_FLOAT32 = "predict again with `task.prediction_dtype: float32`"


class SplitArrays(NamedTuple):
    """Predictions for B structures with M rows of forces in all; the last two are None where a task has no forces.

    Attributes:
        ids: (B,) text.
        energy: (B,) eV.
        forces: (M, 3) eV/Å, structure after structure.
        chunk_idx: (B - 1,) the row at which each structure but the first begins.
    """

    ids: np.ndarray
    energy: np.ndarray
    forces: np.ndarray | None = None
    chunk_idx: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """(B,) rows of forces of each structure."""
        assert self.chunk_idx is not None
        assert self.forces is not None
        return np.diff(self.chunk_idx.astype(np.int64), prepend=0, append=len(self.forces))


def sorted_by_id(arrays: SplitArrays) -> SplitArrays:
    """The same predictions in the order of their ids as text, as fairchem has them."""
    if (arrays.ids[1:] > arrays.ids[:-1]).all():
        return arrays
    order = np.argsort(arrays.ids, kind="stable")
    ids, energy = arrays.ids[order], arrays.energy[order]
    if arrays.forces is None or arrays.chunk_idx is None:
        return SplitArrays(ids, energy)
    rows, begins = arrays.rows[order], np.append(0, arrays.chunk_idx)[order]
    ends = np.cumsum(rows)
    source = np.repeat(begins - (ends - rows), rows)  # (M,), in place below: the largest array beside the forces
    source += np.arange(len(source))
    return SplitArrays(ids, energy, arrays.forces[source], ends[:-1])


def findings_of(arrays: SplitArrays, split: str, rules: Rules) -> list[Finding]:
    """What is wrong with a split's predictions, told from themselves alone; errors first."""
    malformed = list(_malformed(arrays))
    if any(finding.severity == "error" for finding in malformed):
        return malformed  # nothing else can be said of arrays that do not belong together
    found = [
        *malformed,
        *_bad_values(arrays, rules),
        *_bad_ids(arrays.ids, rules),
        *_wrong_size(len(arrays.ids), split, rules),
    ]
    return sorted(found, key=lambda finding: finding.severity)


def repeated_split(ids: np.ndarray, split: str, splits: dict[str, str]) -> Iterator[Finding]:
    """Whether an earlier split has the same structures: a path was copied.

    Args:
        ids: (B,) sorted.
        split: theirs.
        splits: digest of the ids -> split, of the earlier ones; this one is added.
    """
    other = splits.setdefault(sha256_of_array(ids), split)
    if other != split:
        yield _error(f"the very same ids as split {other}: give each split its own predictions")


def examples(ids: np.ndarray) -> str:
    """A few ids for a message."""
    return ", ".join(ids[:_EXAMPLES].tolist()) + (", ..." if len(ids) > _EXAMPLES else "")


def _malformed(arrays: SplitArrays) -> Iterator[Finding]:
    ids, energy = arrays.ids, arrays.energy
    if ids.dtype.kind != "U" or ids.ndim != 1 or not len(ids):
        yield _error(f"ids must be text of shape (B,) with B above 0, got {_kind(ids)}")
        return
    if energy.dtype.kind != "f" or energy.shape not in ((len(ids),), (len(ids), 1)):
        yield _error(f"energy must be floats of shape ({len(ids)},), one an id, got {_kind(energy)}")
    elif energy.ndim == 2:
        yield _finding("warning", f"energy has shape {energy.shape}; ({len(ids)},) is safer: flatten it")
    if arrays.forces is not None and arrays.chunk_idx is not None:
        yield from _malformed_forces(arrays, arrays.forces, arrays.chunk_idx)


def _malformed_forces(arrays: SplitArrays, forces: np.ndarray, chunks: np.ndarray) -> Iterator[Finding]:
    if forces.dtype.kind != "f" or forces.ndim != 2 or forces.shape[1] != 3:
        yield _error(f"forces must be floats of shape (M, 3), got {_kind(forces)}")
    elif chunks.dtype.kind not in "iu" or chunks.shape != (len(arrays.ids) - 1,):
        yield _error(f"chunk_idx must be integers of shape ({len(arrays.ids) - 1},), got {_kind(chunks)}")
    elif (arrays.rows < 0).any():
        yield _error(
            f"chunk_idx must not fall and must lie within 0 and {len(forces)}, the rows of forces; it does not at "
            f"structure {examples(arrays.ids[arrays.rows < 0])}"
        )


def _bad_values(arrays: SplitArrays, rules: Rules) -> Iterator[Finding]:
    for name, values in (("energy", arrays.energy), ("forces", arrays.forces)):
        if values is None:
            continue
        bad = ~np.isfinite(values)
        if bad.any():
            rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
            if name == "forces":
                rows = np.unique(np.searchsorted(arrays.chunk_idx, rows, side="right"))  # of structures
            where = examples(arrays.ids[rows])
            yield _error(f"{name} has {bad.sum():,} values that are NaN or infinite, of {where}; {_cause(values)}")
        if values.dtype == np.float16 and rules.task.needs_float32:
            yield _error(f"{name} is float16, too coarse for total energies of {rules.task.name}: {_FLOAT32}")


def _cause(values: np.ndarray) -> str:
    if values.dtype == np.float16:
        return f"float16 ends at 65,504: {_FLOAT32}"
    return "look at those structures with `dens data check`, or at the model"


def _bad_ids(ids: np.ndarray, rules: Rules) -> Iterator[Finding]:
    if not (ids[1:] > ids[:-1]).all():
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) < len(ids):
            yield _error(f"{(counts > 1).sum():,} ids come more than once: {examples(unique[counts > 1])}")
        elif rules.frames_in_ids:
            yield _finding("warning", "ids are not sorted as text, as fairchem's own are")
    framed = np.char.find(ids, "_") >= 0
    if rules.frames_in_ids and not framed.all():
        yield _error(
            f"ids must be sid_fid, {(~framed).sum():,} are not, as {examples(ids[~framed])}: is this the convention of "
            "Hugging Face (--convention huggingface), or are the structures without fid?"
        )
    if rules.task.has_forces and not rules.frames_in_ids:
        framed = without_frames(ids) != ids
        if framed.any():
            yield _error(
                f"ids must be the sid alone for {rules.convention.name}, {framed.sum():,} are sid_fid, as "
                f"{examples(ids[framed])}: make the file by `dens submission make --convention {rules.convention.name}`"
            )
    if not rules.task.has_forces and framed.any():
        yield _error(f"ids must be the sid alone, {framed.sum():,} are not, as {examples(ids[framed])}")


def _wrong_size(count: int, split: str, rules: Rules) -> Iterator[Finding]:
    expected = rules.task.sizes.get(split)
    if rules.any_size or expected == count:
        return
    if expected is None:
        yield _finding("warning", f"the size of the test set of {rules.task.name} is not known here: compare by --data")
    else:
        yield _error(
            f"{count:,} structures, the test set of {rules.task.name} has {expected:,}: predict the whole of it, or "
            "use --any-size for other data"
        )


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _error(message: str) -> Finding:
    return _finding("error", message)


def _finding(severity: Severity, message: str) -> Finding:
    return Finding(severity, message)

"""``dens submission make``: one leaderboard file from the predictions of all splits of a test set."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

import ase.io
import numpy as np
from tqdm import tqdm

from dens_plugin.data.findings import Finding
from dens_plugin.data.output import require_makeable
from dens_plugin.leaderboard.data import mismatches, read_test_set
from dens_plugin.leaderboard.file import NpzReader, NpzWriter
from dens_plugin.leaderboard.layout import (
    CONVENTIONS,
    TASKS,
    Rules,
    paths_by_split,
    rules_of,
    without_frames,
)
from dens_plugin.leaderboard.split import SplitArrays, findings_of, repeated_split, sorted_by_id
from dens_plugin.settings import suggestion

_TRAJECTORIES = (".traj", ".extxyz")
_SOURCES = """
Predictions, one SPLIT=PATH for each split (OC20: id, ood_ads, ood_cat, ood_both; OC22: id, ood):
s2ef: the .npz file of `dens predict`;
is2re: the .npz file of a relaxation or of a direct prediction (`ids`, `energy`); or a folder with a trajectory for each
structure, named after its sid, of which the last energy counts; or the .npz file of `dens predict` for structures
relaxed by another model.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dens submission make``."""
    parser.epilog = _SOURCES
    parser.add_argument("sources", nargs="+", metavar="SPLIT=PATH", help="predictions of each split, see below")
    parser.add_argument("--task", required=True, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--out", required=True, metavar="FILE", help="the .npz file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``dens submission make`` and ``verify`` share."""
    parser.add_argument(
        "--convention",
        default="evalai",
        metavar="NAME",
        help=f"of the leaderboard, {' or '.join(CONVENTIONS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="SPLIT=DATA",
        help="test sets to compare ids and numbers of atoms with; needed for S2EF with --convention huggingface",
    )
    parser.add_argument("--any-size", action="store_true", help="data other than the leaderboard's test sets")


def run(args: argparse.Namespace) -> None:
    """Write the file that ``dens submission make`` was asked for."""
    rules = rules_of(args.task, args.convention, any_size=args.any_size)
    sizes = make_submission(
        paths_by_split(args.sources, "source"),
        args.out,
        rules,
        data=paths_by_split(args.data, "--data"),
        overwrite=args.overwrite,
        progress=True,
    )
    counts = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    print(f"{args.out}: {args.task} for {args.convention}; structures: {counts}")


def make_submission(
    sources: Mapping[str, str | PathLike],
    out: str | PathLike,
    rules: Rules,
    *,
    data: Mapping[str, str | PathLike] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, int]:
    """Join the predictions of all splits, of which one at a time is in memory.

    Args:
        sources: split -> file of predictions, or folder of trajectories.
        out: the ``.npz`` file to write; never half-written.
        rules: of the leaderboard, from :func:`~dens_plugin.leaderboard.layout.rules_of`.
        data: split -> test set to compare with.
        overwrite: replace ``out``.
        progress: show progress bars.

    Returns:
        Split -> number of structures.

    Raises:
        FileNotFoundError: for predictions or data that are not there.
        ValueError: for predictions that a leaderboard would refuse, with what to do.
        OSError: if the file cannot be written.
    """
    data, out = data or {}, Path(out)
    _require_splits(sources, data, rules)
    _require_free(out, overwrite)
    for split, source in sources.items():
        if Path(source).resolve() == out.resolve():
            raise ValueError(f"'{out}' is the source of {split}, which would be lost; write to another file")
    sizes: dict[str, int] = {}
    splits: dict[str, str] = {}  # digest of the ids -> split
    with NpzWriter(out) as writer:
        for split in rules.task.splits:  # the arrays of one are gone before the next are read
            sizes[split] = _write_split(
                writer,
                split,
                Path(sources[split]),
                rules=rules,
                test_set=Path(data[split]) if split in data else None,
                splits=splits,
                progress=progress,
            )
    return sizes


def _write_split(
    writer: NpzWriter,
    split: str,
    source: Path,
    *,
    rules: Rules,
    test_set: Path | None,
    splits: dict[str, str],
    progress: bool,
) -> int:
    """Read, judge, sort and write one split; how many structures it has."""
    place = f"{split}={source}"
    arrays = _arrays(source, rules, progress=progress)
    _refuse_errors(findings_of(arrays, split, rules), place)
    if test_set is not None:
        _refuse_errors(mismatches(arrays, read_test_set(test_set, progress=progress), rules), place)
    arrays = sorted_by_id(arrays)
    _refuse_errors(repeated_split(arrays.ids, split, splits), place)
    for field in rules.task.fields:
        writer.write(f"{split}_{field}", getattr(arrays, field))
    return len(arrays.ids)


def _require_splits(sources: Mapping[str, object], data: Mapping[str, object], rules: Rules) -> None:
    splits = rules.task.splits
    for split in (*sources, *data):
        if split not in splits:
            raise ValueError(f"{rules.task.name} has no split '{split}'; {suggestion(split, splits)}")
    missing = [split for split in splits if split not in sources]
    if missing:
        raise ValueError(f"{rules.task.name} needs predictions of every split: add {_blanks(missing)}")
    unknown = [split for split in splits if split not in data]
    if rules.fixed_atoms and unknown:
        raise ValueError(
            f"{rules.convention.name} wants forces of all atoms, and only the test sets tell whether they are there: "
            f"add --data {_blanks(unknown)}"
        )


def _blanks(splits: Iterable[str]) -> str:
    return " ".join(f"{split}=PATH" for split in splits)


def _require_free(out: Path, overwrite: bool) -> None:
    if out.suffix != ".npz":
        raise ValueError(f"OUT '{out}' must end in .npz")
    if out.is_dir():
        raise ValueError(f"OUT '{out}' is a folder: give a file in it")
    if out.exists() and not overwrite:
        raise ValueError(f"OUT '{out}' exists: add --overwrite, or give another name")
    require_makeable(out)


def _arrays(path: Path, rules: Rules, *, progress: bool) -> SplitArrays:
    """A split's predictions as the file will have them, in any order."""
    if path.is_dir() and not rules.task.has_forces:
        arrays = _last_energies(path, progress=progress)
    else:
        with NpzReader(path) as file:
            arrays = SplitArrays(*(file.read(field) for field in rules.task.fields))
    if arrays.energy.ndim == 2 and arrays.energy.shape[1] == 1:  # as fairchem predicts them
        arrays = arrays._replace(energy=arrays.energy[:, 0])
    if arrays.ids.dtype.kind == "U" and not rules.frames_in_ids:
        arrays = arrays._replace(ids=without_frames(arrays.ids))
    return arrays


def _last_energies(folder: Path, *, progress: bool) -> SplitArrays:
    """The energy of the last frame of each trajectory in a folder."""
    files = sorted(file for file in folder.iterdir() if file.suffix in _TRAJECTORIES)
    if not files:
        raise ValueError(f"'{folder}' holds no {' or '.join(_TRAJECTORIES)} file: give a folder with one per structure")
    energies = [
        _last_energy(file) for file in tqdm(files, desc=str(folder), unit="file", disable=None if progress else True)
    ]
    return SplitArrays(np.array([file.stem for file in files]), np.array(energies, dtype=np.float64))


def _last_energy(file: Path) -> float:
    try:
        return ase.io.read(file, index="-1").get_potential_energy()
    except Exception as error:  # each format raises its own for a broken file
        raise ValueError(
            f"'{file}' has no readable last frame with an energy ({type(error).__name__}: {error}): relax it again"
        ) from error


def _refuse_errors(findings: Iterable[Finding], place: str) -> None:
    """Raise for the first error; a warning is no reason not to write."""
    for finding in findings:
        if finding.severity == "error":
            raise ValueError(f"{place}: {finding.message}")

"""Molecules and crystals of a user's own, MD17, revised MD17 and MD22 as LMDB files: ``dens data molecules SRC OUT``.

SRC is a file that :mod:`dens_plugin.data.molecule_files` opens. OUT gets

- ``train``, ``val``, ``test``: the structures for fairchem's ``LmdbDataset``, energies in eV, forces in eV/Å,
- ``split.npz``: which frames of SRC these are; ``--split-file`` takes it, so that others can train on the same ones,
- ``normalizer_energy.npz``, ``normalizer_forces.npz``: what scales the labels, for a config that names no numbers,
- ``manifest.json``: from which files and with which options it was made, the units, and the reference energy.

Total energies of a molecule are thousands of eV and differ by less than one. Networks compute in float32, which has
three decimals left there, so the mean energy of the training frames is subtracted before anything is rounded. It stands
in ``manifest.json``; add it to what a model predicts, or give ``--reference none`` to keep total energies.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dens_plugin.data.lmdb_file import PART
from dens_plugin.data.molecule_checks import FrameCheck, require_different
from dens_plugin.data.molecule_files import Frames, open_frames
from dens_plugin.data.molecule_plausibility import require_plausible_units
from dens_plugin.data.molecule_split import Sizes, Split, draw, parse_sizes, read_split, write_split
from dens_plugin.data.molecule_units import CHOICES
from dens_plugin.data.molecule_writing import Normalizer, Part, normalizer_of, write_normalizers, write_part
from dens_plugin.data.output import require_makeable
from dens_plugin.settings import number

_MANIFEST = "manifest.json"
_SIZES = "950,50"  # the paper's, Section 4.3


class Options(NamedTuple):
    """What a data set depends on besides its files.

    Attributes:
        sizes: Numbers of frames for training and validation; the rest is for test.
        seed: Of the draw.
        units: Of the files, where they do not say; None otherwise.
        reference: ``mean``, ``none``, or the energy in eV to subtract.
        mixed: Whether frames may have different compositions; they keep their total energies by default.
        drop_duplicates: Whether to leave out a frame that came before.
    """

    sizes: Sizes
    seed: int = 0
    units: str | None = None
    reference: str = "mean"
    mixed: bool = False
    drop_duplicates: bool = False


class Result(NamedTuple):
    """What was written.

    Attributes:
        out: The folder.
        counts: Frames of train, val and test.
        reference: eV, subtracted from every energy.
        normalizer: Of the training frames.
        findings: What the checks saw, one line per file.
    """

    out: Path
    counts: dict[str, int]
    reference: float
    normalizer: Normalizer
    findings: list[str]

    def __str__(self) -> str:
        scale = self.normalizer
        lines = [
            *self.findings,
            f"{self.out}: " + ", ".join(f"{name} {count:,}" for name, count in self.counts.items()),
            f"subtracted from every energy: {self.reference:.6f} eV",
            "Normaliser, to paste under dataset.train; forces have the energy's scale, as gradients of it must:",
            "transforms:",
            "  normalizer:",
            f"    energy: {{mean: {scale.mean:.6f}, stdev: {scale.stdev:.6f}}}",
            f"    forces: {{mean: 0.0, stdev: {scale.stdev:.6f}}}",
        ]
        return "\n".join(lines)


def convert(
    src: str | PathLike,
    out: str | PathLike,
    options: Options,
    *,
    test: str | PathLike | None = None,
    split_files: Sequence[str | PathLike] = (),
    progress: bool = True,
) -> Result:
    """Convert a file of structures to LMDB files for training, validation and test.

    Args:
        src: A file that :func:`~dens_plugin.data.molecule_files.open_frames` opens.
        out: Folder to make.
        options: What to make of it.
        test: Another file, for test; SRC's frames beyond training and validation are then left out.
        split_files: A published split instead of a drawn one.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file cannot be read or trained on, does not say its units, has too few frames, or ``out``
            exists or cannot be made.
    """
    out = Path(out)
    _require_reference(options.reference)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists: give another OUT, or delete it first.")
    require_makeable(out)
    frames = open_frames(Path(src), units=options.units)
    tests = None if test is None else open_frames(Path(test), units=options.units)
    split, test_indices = _choose(frames, tests, options, [Path(path) for path in split_files], progress=progress)
    sure = options.units is not None
    findings = [require_plausible_units(frames, split.train, sure=sure)]
    parts = {name: Part(frames, 0, indices) for name, indices in split._asdict().items()}
    if tests is not None:
        findings.append(require_plausible_units(tests, test_indices, sure=sure))
        parts["test"] = Part(tests, 1, test_indices)
    return _write(out, parts, options, findings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dens data molecules``."""
    parser.add_argument(
        "src", metavar="SRC", help="npz of MD17, rMD17, sGDML or MD22, extxyz[.xz], ASE database, or PyG's root/"
    )
    parser.add_argument("out", metavar="OUT", help="folder to make, with train, val and test")
    parser.add_argument(
        "--split",
        default=_SIZES,
        metavar="TRAIN,VAL[,TEST]",
        help="frames to draw, the rest is for test (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    parser.add_argument(
        "--split-file",
        nargs="+",
        default=[],
        metavar="FILE",
        help="a published split: split.npz of an OUT, npz or json with train, val[, test], or rMD17's csv for training "
        "[and that for test], of whose training frames --split gives some to validation",
    )
    parser.add_argument("--test", metavar="FILE", help="another file, for test, instead of the rest of SRC")
    parser.add_argument("--units", choices=CHOICES, help="where the file does not say, or to insist; positions in Å")
    parser.add_argument(
        "--reference",
        default="mean",
        metavar="mean|none|EV",
        help="energy to subtract from all: mean of the training frames (default; none with --mixed), none, or a number "
        "in eV",
    )
    parser.add_argument("--mixed", action="store_true", help="frames may have different compositions")
    parser.add_argument("--drop-duplicates", action="store_true", help="leave out frames that came before")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> None:
    """Do what ``dens data molecules`` was asked for."""
    options = Options(parse_sizes(args.split), args.seed, args.units, args.reference, args.mixed, args.drop_duplicates)
    print(convert(args.src, args.out, options, test=args.test, split_files=args.split_file, progress=not args.quiet))


def _require_reference(reference: str) -> None:
    if reference not in ("mean", "none"):
        number(reference, "--reference (mean, none, or an energy in eV)")


def _choose(
    frames: Frames, tests: Frames | None, options: Options, split_files: Sequence[Path], *, progress: bool
) -> tuple[Split, np.ndarray]:
    """The split of SRC and the frames of the test file, all of them checked before anything is written."""
    check = FrameCheck(mixed=options.mixed)
    split = None
    wanted = np.arange(frames.length)
    if split_files:
        split = read_split(split_files, frames=frames.length, sizes=options.sizes, seed=options.seed)
        wanted = np.concatenate(split)
    usable = _checked(check, frames, wanted, options, progress=progress)
    if split is None:
        split = draw(usable, options.sizes, seed=options.seed)
    else:
        split = Split(*(part[np.isin(part, usable)] for part in split))
    if tests is None:
        return split, np.zeros(0, dtype=int)
    test_indices = _checked(check, tests, np.arange(tests.length), options, progress=progress)
    return split._replace(test=np.zeros(0, dtype=int)), test_indices


def _checked(check: FrameCheck, frames: Frames, indices: np.ndarray, options: Options, *, progress: bool) -> np.ndarray:
    """Those of some frames that did not come before."""
    usable, repeats = [], []
    for index in tqdm(indices.tolist(), unit="frame", desc=f"checking {frames.path.name}", disable=not progress):
        before = check.add(frames, index)
        if before is None:
            usable.append(index)
        else:
            repeats.append((f"{frames.path}, frame {index}", before))
    if not options.drop_duplicates:
        require_different(repeats)
    return np.array(usable, dtype=int)


def _write(out: Path, parts: Mapping[str, Part], options: Options, findings: list[str]) -> Result:
    """Write everything beside OUT, which then gets its name in a single rename."""
    raw = normalizer_of(parts["train"])
    reference = _reference(options, raw.mean)
    normalizer = raw._replace(mean=raw.mean - reference)
    counts = {name: len(part.indices) for name, part in parts.items()}
    folder = out.absolute().with_name(out.absolute().name + PART)
    shutil.rmtree(folder, ignore_errors=True)
    for name, part in parts.items():
        if len(part.indices):
            write_part(folder / name, part, reference=reference)
    write_normalizers(folder, normalizer)
    frames = parts["train"].frames
    split = Split(*(part.indices if part.frames is frames else np.zeros(0, dtype=int) for part in parts.values()))
    write_split(folder / "split.npz", split, frames=frames.length, seed=options.seed)
    (folder / _MANIFEST).write_text(json.dumps(_manifest(parts, options, reference, normalizer), indent=1))
    folder.replace(out)
    return Result(out, counts, reference, normalizer, findings)


def _reference(options: Options, mean: float) -> float:
    if options.reference == "none" or (options.reference == "mean" and options.mixed):
        return 0.0
    return mean if options.reference == "mean" else number(options.reference, "--reference")


def _manifest(parts: Mapping[str, Part], options: Options, reference: float, normalizer: Normalizer) -> dict:
    sources = {part.frames.path.name: part.frames for part in parts.values()}
    return {
        "made_by": "dens data molecules",
        "files": {name: {"bytes": _bytes(frames.path), "units": frames.units.name} for name, frames in sources.items()},
        "options": {**options._asdict(), "sizes": options.sizes._asdict()},
        "counts": {name: len(part.indices) for name, part in parts.items()},
        "reference_energy_ev": reference,
        "normalizer": normalizer._asdict(),
    }


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())

"""Molecules and crystals of a user's own, MD17, revised MD17 and MD22 as LMDB files: ``dens data molecules SRC OUT``.

SRC is a file that :mod:`dens_plugin.data.molecules.files` opens. OUT gets

- ``train``, ``val``, ``test``: the structures for fairchem's ``LmdbDataset``, energies in eV, forces in eV/Å,
- ``split.npz``: which frames of SRC these are; ``--split-file`` takes it, so that others can train on the same ones,
- ``normalizer_energy.npz``, ``normalizer_forces.npz``: what scales the labels, for a config that names no numbers,
- ``manifest.json``: from which files and with which options it was made, the units, and the reference energy.

Total energies of a molecule are thousands of eV and differ by less than one. Networks compute in float32, which has
three decimals left there, so the mean energy of the training frames is subtracted before anything is rounded. It stands
in ``manifest.json`` and in the checkpoints of what is trained on it, and the ASE calculator adds it again;
``--reference none`` keeps total energies.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dens_plugin.data.molecules.checks import FrameCheck, require_different
from dens_plugin.data.molecules.files import Frames, open_frames
from dens_plugin.data.molecules.folder import require_free, whole_folder
from dens_plugin.data.molecules.manifest import FILE_NAME
from dens_plugin.data.molecules.plausibility import Labels, require_alike, require_plausible_units
from dens_plugin.data.molecules.split import Sizes, Split, draw, parse_sizes, read_split, write_split
from dens_plugin.data.molecules.units import CHOICES
from dens_plugin.data.molecules.writing import Normalizer, Part, normalizer_of, write_normalizers, write_part
from dens_plugin.settings import number

_SIZES = "950,50"  # the paper's, Section 4.3
_COMPOSITIONAL = 100.0  # Å: a deviation of energies over an rms of forces beyond it is one between compositions


class Options(NamedTuple):
    """What a data set depends on besides its files.

    Attributes:
        sizes: Numbers of frames for training and validation; the rest is for test.
        seed: Of the draw.
        units: Of the file, where it does not say; None otherwise.
        reference: ``mean``, ``none``, or the energy in eV to subtract.
        mixed: Whether frames may have different compositions; they keep their total energies by default.
        drop_duplicates: Whether to leave out a frame that came before.
        test_units: Of another file for test; None for ``units``.
    """

    sizes: Sizes
    seed: int = 0
    units: str | None = None
    reference: str = "mean"
    mixed: bool = False
    drop_duplicates: bool = False
    test_units: str | None = None


class Result(NamedTuple):
    """What was written.

    Attributes:
        out: The folder.
        counts: Frames of train, val and test.
        reference: eV, subtracted from every energy.
        normalizer: Of the training frames.
        findings: What the checks saw, one line per file, and what to beware of.
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
        src: A file that :func:`~dens_plugin.data.molecules.files.open_frames` opens.
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
    _require_possible(options)
    require_free(out)
    frames, tests = _open(Path(src), test, options)
    check = FrameCheck(mixed=options.mixed)
    paths = [Path(path) for path in split_files]
    split, test_indices = _choose(check, frames, tests, options=options, split_files=paths, progress=progress)
    parts = {name: Part(frames, 0, indices) for name, indices in split._asdict().items()}
    labels = require_plausible_units(frames, split.train, sure=options.units is not None)
    findings = [str(labels)]
    if tests is not None:
        units = options.test_units or options.units
        of_test = require_plausible_units(tests, test_indices, sure=units is not None)
        require_alike(labels, of_test, mixed=check.formula is None)
        findings.append(str(of_test))
        parts["test"] = Part(tests, 1, test_indices)
    return _write(out, parts, options, check=check, labels=labels, findings=findings)


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
    parser.add_argument("--units", choices=CHOICES, help="of SRC, where it does not say itself; positions in Å")
    parser.add_argument("--test-units", choices=CHOICES, help="of the file for test (default: as --units)")
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
    options = Options(
        sizes=parse_sizes(args.split),
        seed=args.seed,
        units=args.units,
        reference=args.reference,
        mixed=args.mixed,
        drop_duplicates=args.drop_duplicates,
        test_units=args.test_units,
    )
    print(convert(args.src, args.out, options, test=args.test, split_files=args.split_file, progress=not args.quiet))


def _require_possible(options: Options) -> None:
    if options.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {options.seed}")
    if options.reference not in ("mean", "none"):
        name = "--reference (mean, none, or an energy in eV)"
        if not math.isfinite(number(options.reference, name)):
            raise ValueError(f"{name} must be finite, got {options.reference}")


def _open(src: Path, test: str | PathLike | None, options: Options) -> tuple[Frames, Frames | None]:
    frames = open_frames(src, units=options.units)
    if test is None:
        return frames, None
    if options.test_units is None:
        tests = open_frames(Path(test), units=options.units)
    else:
        tests = open_frames(Path(test), units=options.test_units, option="--test-units")
    if tests.path.samefile(frames.path):
        raise ValueError(f"--test {test} is SRC itself: leave it out, and what --split leaves of SRC is for test.")
    return frames, tests


def _choose(
    check: FrameCheck,
    frames: Frames,
    tests: Frames | None,
    *,
    options: Options,
    split_files: Sequence[Path],
    progress: bool,
) -> tuple[Split, np.ndarray]:
    """The split of SRC and the frames of the test file, all of them checked before anything is written."""
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
    if not len(test_indices):
        raise ValueError(f"--test {tests.path} has no frame that did not come before in {frames.path}: give others.")
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


def _write(
    out: Path,
    parts: Mapping[str, Part],
    options: Options,
    *,
    check: FrameCheck,
    labels: Labels,
    findings: list[str],
) -> Result:
    """Write everything beside OUT, which then gets its name in a single rename; nothing stays of a failure."""
    raw = normalizer_of(parts["train"])
    reference = _reference(options, raw.mean)
    normalizer = raw._replace(mean=raw.mean - reference)
    counts = {name: len(part.indices) for name, part in parts.items()}
    with whole_folder(out) as folder:
        for name, part in parts.items():
            if len(part.indices):
                write_part(folder / name, part, reference=reference)
        write_normalizers(folder, normalizer)
        _write_split(folder, parts, options.seed)
        manifest = _manifest(parts, options) | {
            "formula": check.formula,
            "elements": sorted(check.elements),
            "reference_energy_ev": reference,
            "normalizer": normalizer._asdict(),
        }
        (folder / FILE_NAME).write_text(json.dumps(manifest, indent=1))
    return Result(out, counts, reference, normalizer, [*findings, *_doubts(normalizer, counts["train"], labels)])


def _write_split(folder: Path, parts: Mapping[str, Part], seed: int) -> None:
    frames = parts["train"].frames
    split = Split(*(part.indices if part.frames is frames else np.zeros(0, dtype=int) for part in parts.values()))
    write_split(folder / "split.npz", split, frames=frames.length, seed=seed)


def _doubts(normalizer: Normalizer, frames: int, labels: Labels) -> Iterator[str]:
    """What a person should know before taking the normaliser."""
    if frames == 1 or labels.spread == 0:
        yield (
            "warning: the training energies have no standard deviation, as there is "
            f"{'one frame' if frames == 1 else 'one energy'}: the 1 eV below only stands in for it"
        )
    elif normalizer.stdev > _COMPOSITIONAL * labels.rms:
        yield (
            f"warning: the deviation below, {normalizer.stdev:.4g} eV, is that between compositions and of no use: "
            "subtract the energies of atoms, or of a linear fit, before this step (or train with `transforms: "
            "{element_references: {fit: {targets: [energy], batch_size: 64}}}`), and scale forces by their own rms, "
            f"{labels.rms:.3f} eV/Å"
        )


def _reference(options: Options, mean: float) -> float:
    if options.reference == "none" or (options.reference == "mean" and options.mixed):
        return 0.0
    return mean if options.reference == "mean" else number(options.reference, "--reference")


def _manifest(parts: Mapping[str, Part], options: Options) -> dict[str, Any]:
    sources = {str(part.frames.path): part.frames for part in parts.values()}
    return {
        "made_by": "dens data molecules",
        "files": {name: {"bytes": _bytes(frames.path), "units": frames.units.name} for name, frames in sources.items()},
        "options": {**options._asdict(), "sizes": options.sizes._asdict()},
        "counts": {name: len(part.indices) for name, part in parts.items()},
    }


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())

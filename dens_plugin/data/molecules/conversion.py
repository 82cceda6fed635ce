"""Molecules and crystals of a user's own, and published sets of them, as LMDB files: ``dens data molecules SRC OUT``.

SRC is what :mod:`dens_plugin.data.molecules.files` opens. OUT gets

- ``train``, ``val``, ``test``: the structures for fairchem's ``LmdbDataset``, energies in eV, forces in eV/Å, further
  labels of a structure (QM9's ``mu``, ``gap``, ...) as fields of the record by the same name,
- ``split.npz``: which frames of SRC these are; ``--split-file`` takes it, so that others can train on the same ones,
- ``normalizer_energy.npz``, ``normalizer_forces.npz``, ...: what scales the labels, for a config that names no numbers,
- ``manifest.json``: from which files and with which options it was made, the units, and the references.

Total energies of a molecule are thousands of eV and differ by less than one. Networks compute in float32, which has
three decimals left there, so a reference is subtracted before anything is rounded: the mean energy of the training
frames where all have one composition, an energy per element where they have several. It stands in ``manifest.json`` and
in the checkpoints of what is trained on it, and the ASE calculator adds it again; ``--reference none`` keeps total
energies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from dens_plugin.data.molecules import references, split
from dens_plugin.data.molecules.checks import FrameCheck, Molecules, require_different
from dens_plugin.data.molecules.files import open_frames
from dens_plugin.data.molecules.folder import require_free, whole_folder
from dens_plugin.data.molecules.frames import Frames
from dens_plugin.data.molecules.manifest import FILE_NAME
from dens_plugin.data.molecules.plausibility import Labels, length_doubts, require_alike, require_plausible_units
from dens_plugin.data.molecules.qm9 import exclusions_beside
from dens_plugin.data.molecules.qm9_targets import read_exclusions
from dens_plugin.data.molecules.references import References
from dens_plugin.data.molecules.split import Sizes, Split
from dens_plugin.data.molecules.writing import (
    Normalizer,
    Part,
    normalizer_of,
    without_references,
    write_normalizers,
    write_part,
)
from dens_plugin.data.scales import as_yaml, is_rounding, size_of
from dens_plugin.data.structures import USUAL, Keys

DEFAULT_SIZES = Sizes(950, 50)  # the paper's, Section 4.3
CORMORANT = "cormorant"

_COMPOSITIONAL = 100.0  # Å: a deviation of energies over an rms of forces beyond it is one between compositions
_RESERVED = {"energy", "forces", "pos", "cell", "pbc", "natoms", "tags", "fixed", "sid", "fid", "charge"}  # of records


class Options(NamedTuple):
    """What a data set depends on besides its files.

    Attributes:
        sizes: How much for training and validation, the rest is for test; None for the set's own split, or 950 and 50.
        seed: Of the draw.
        units: Of the file, where it does not say; None otherwise.
        reference: What to subtract from energies, see :func:`~dens_plugin.data.molecules.references.choose`.
        mixed: Whether frames may have different compositions, as those of published sets of many molecules may.
        drop_duplicates: Whether to leave out a frame that came before.
        test_units: Of another file for test; None for ``units``.
        split_by: What is drawn: single frames, whole molecules, or a share of every molecule's conformations.
        published: The name of a published split, ``cormorant``; None otherwise.
        keys: What the files call their labels.
        exclude: A list of frames to leave out; None for the one beside QM9, if there is one.
        energies_only: Whether to leave out forces.
    """

    sizes: Sizes | None = None
    seed: int = 0
    units: str | None = None
    reference: str = "auto"
    mixed: bool = False
    drop_duplicates: bool = False
    test_units: str | None = None
    split_by: Literal["frames", "molecules", "conformations"] = "frames"
    published: str | None = None
    keys: Keys = USUAL
    exclude: Path | None = None
    energies_only: bool = False


class Result(NamedTuple):
    """What was written.

    Attributes:
        out: The folder.
        counts: Frames of train, val and test.
        references: Subtracted from the labels.
        normalizers: Of the training frames, by output.
        forces: Whether there are any.
        findings: What the checks saw, one line per file, and what to beware of.
    """

    out: Path
    counts: dict[str, int]
    references: References
    normalizers: dict[str, Normalizer]
    forces: bool
    findings: list[str]

    @property
    def reference(self) -> float:
        """eV, subtracted from every energy."""
        return self.references.constant

    @property
    def normalizer(self) -> Normalizer:
        """Of the energies."""
        return self.normalizers["energy"]

    def __str__(self) -> str:
        scales = self.normalizers
        of_forces = as_yaml(self.normalizer.stdev, scale=self.normalizer.stdev)
        forces = [f"    forces: {{mean: 0.0, stdev: {of_forces}}}"] if self.forces else []
        lines = [
            *self.findings,
            f"{self.out}: " + ", ".join(f"{name} {count:,}" for name, count in self.counts.items()),
            self._subtracted(),
            "Normaliser, to paste under dataset.train"
            + ("; forces have the energy's scale, as gradients of it must:" if self.forces else ":"),
            "transforms:",
            "  normalizer:",
            *(
                f"    {name}: {{mean: {as_yaml(mean, scale=stdev)}, stdev: {as_yaml(stdev, scale=stdev)}}}"
                for name, (mean, stdev) in scales.items()
            ),
            *forces,
        ]
        return "\n".join(lines)

    def _subtracted(self) -> str:
        known = self.references.elements.get("energy")
        if known is None:
            return f"subtracted from every energy: {self.reference:.6f} eV"
        return "subtracted from every energy, eV per atom: " + ", ".join(f"{s} {v:.6f}" for s, v in known.items())


class _Checked(NamedTuple):
    """A split of SRC and the frames of another file for test, all of them checked."""

    split: Split
    tests: np.ndarray
    findings: list[str]


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
        src: What :func:`~dens_plugin.data.molecules.files.open_frames` opens.
        out: Folder to make.
        options: What to make of it.
        test: Another file, for test; SRC's frames beyond training and validation are then left out.
        split_files: A published split instead of a drawn one.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If a file is not there.
        ImportError: If a file of its kind needs what is not installed.
        ValueError: If a file cannot be read or trained on, does not say its units, has too few frames, or ``out``
            exists or cannot be made.
    """
    out = Path(out)
    _require_possible(options)
    require_free(out)
    frames, tests = _open(Path(src), test, options)
    check = FrameCheck(mixed=options.mixed or frames.several)
    candidates, exclusions = _candidates(frames, options)
    chosen = _choose(
        check, frames, tests, candidates=candidates, options=options, split_files=split_files, progress=progress
    )
    parts = {name: Part(frames, 0, indices) for name, indices in chosen.split._asdict().items()}
    labels = require_plausible_units(frames, chosen.split.train, sure=options.units is not None)
    findings = [*frames.notes, *exclusions, *chosen.findings, str(labels)]
    findings += length_doubts(frames, chosen.split.train)
    if tests is not None:
        units = options.test_units or options.units
        of_test = require_plausible_units(tests, chosen.tests, sure=units is not None)
        require_alike(labels, of_test, mixed=check.formula is None)
        findings.append(str(of_test))
        findings += length_doubts(tests, chosen.tests)
        parts["test"] = Part(tests, 1, chosen.tests)
    findings += check.warnings()
    return _write(out, parts, options, check=check, labels=labels, findings=findings)


def _require_possible(options: Options) -> None:
    if options.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {options.seed}")
    references.require_choice(options.reference)
    taken = sorted(_RESERVED.intersection(options.keys.targets))
    if taken:
        raise ValueError(f"--targets: records have a field `{taken[0]}` of their own; rename the label in the file.")
    if options.published is not None and options.published != CORMORANT:
        raise ValueError(f"--split knows the published split {CORMORANT}, got '{options.published}'")


def _open(src: Path, test: str | PathLike | None, options: Options) -> tuple[Frames, Frames | None]:
    opened = partial(open_frames, keys=options.keys, forces=not options.energies_only)
    frames = opened(src, units=options.units)
    _require_targets(frames, options)
    test = test if test is not None else frames.test
    if test is None:
        return frames, None
    if options.test_units is None:
        tests = opened(Path(test), units=options.units)
    else:
        tests = opened(Path(test), units=options.test_units, option="--test-units")
    _require_targets(tests, options)
    if tests.path.samefile(frames.path):
        raise ValueError(f"--test {test} is SRC itself: leave it out, and what --split leaves of SRC is for test.")
    return frames, tests


def _require_targets(frames: Frames, options: Options) -> None:
    unread = [name for name in options.keys.targets if name not in frames.targets]
    if unread:
        others = ", ".join(frames.targets)
        known = f"its further labels are {others}" if others else "files of its kind have none"
        raise ValueError(f"--targets: {frames.path} has no '{unread[0]}'; {known}.")


def _candidates(frames: Frames, options: Options) -> tuple[np.ndarray, list[str]]:
    """Indices of the frames that are not excluded, and what to say of the others."""
    path = options.exclude
    if path is None and frames.references:
        path = exclusions_beside(frames.path)
    if path is None:
        missing = "warning: QM9 has 3,054 molecules that failed its authors' check: give --exclude uncharacterized.txt"
        is_whole = frames.references and frames.length > 133_000
        return np.arange(frames.length), [missing] if is_whole else []
    excluded = read_exclusions(Path(path))
    numbers = np.arange(frames.length) if frames.numbers is None else frames.numbers
    is_out = np.isin(numbers, list(excluded))
    if options.exclude is not None and not is_out.any():
        raise ValueError(f"--exclude {path} names none of the {frames.length:,} frames of {frames.path}.")
    return np.flatnonzero(~is_out), [f"{path}: {is_out.sum():,} of {frames.length:,} frames left out"]


def _choose(
    check: FrameCheck,
    frames: Frames,
    tests: Frames | None,
    *,
    candidates: np.ndarray,
    options: Options,
    split_files: Sequence[str | PathLike],
    progress: bool,
) -> _Checked:
    """The split of SRC and the frames of the test file, all of them checked before anything is written."""
    given = None
    sizes = options.sizes or DEFAULT_SIZES
    if split_files:
        paths = [Path(path) for path in split_files]
        given = split.read_split(paths, frames=frames.length, sizes=sizes, seed=options.seed)
    elif frames.parts:
        given = split.published(
            frames.parts, options.sizes, frames=frames.length, seed=options.seed, where=str(frames.path)
        )
    if given is not None:
        given = split.among(given, candidates, frames=frames.length)
    wanted = candidates if given is None else np.concatenate(given)
    usable = _checked(check, frames, wanted, options, progress=progress)
    chosen = _draw(check.molecules.of(frames, usable), usable, options) if given is None else _those(given, usable)
    if tests is None:
        return _Checked(chosen, np.zeros(0, dtype=int), _leaks(check.molecules, chosen, frames, None, options))
    test_indices = _checked(check, tests, np.arange(tests.length), options, progress=progress)
    if not len(test_indices):
        raise ValueError(f"--test {tests.path} has no frame that did not come before in {frames.path}: give others.")
    chosen = chosen._replace(test=np.zeros(0, dtype=int))
    of_test = check.molecules.of(tests, test_indices)
    return _Checked(chosen, test_indices, _leaks(check.molecules, chosen, frames, of_test, options))


def _those(given: Split, usable: np.ndarray) -> Split:
    return Split(*(part[np.isin(part, usable)] for part in given))


def _draw(molecules: np.ndarray, usable: np.ndarray, options: Options) -> Split:
    if options.published == CORMORANT:
        return split.draw_cormorant(usable)
    sizes = options.sizes or DEFAULT_SIZES
    if options.split_by == "molecules":
        return split.draw_molecules(usable, molecules, sizes, seed=options.seed)
    if options.split_by == "conformations":
        return split.draw_conformations(usable, molecules, sizes, seed=options.seed)
    return split.draw(usable, sizes, seed=options.seed)


def _leaks(
    molecules: Molecules, chosen: Split, frames: Frames, of_test: np.ndarray | None, options: Options
) -> list[str]:
    """What to say of molecules that are both in training and in test or validation.

    Raises:
        ValueError: If parts were to have no molecule in common.
    """
    if len(molecules) < 2:
        return []
    train, val, test = (np.unique(molecules.of(frames, part)) for part in chosen)
    test = test if of_test is None else np.unique(of_test)
    findings = []
    for name, other in {"validation": val, "test": test}.items():
        shared = np.intersect1d(train, other)
        if options.split_by == "molecules" and len(shared):
            raise ValueError(
                f"{len(shared):,} of the {len(other):,} molecules of {name} are in training too, the first is "
                f"{molecules.name(int(shared[0]))}: with --split-by molecules none may be; leave that out, or give "
                "another split or --test."
            )
        if name == "test" and options.split_by == "frames" and len(shared):
            findings.append(
                f"{len(shared):,} of the {len(other):,} molecules of test are in training too, so that its errors are "
                "those of other conformations; --split-by molecules keeps molecules apart"
            )
    return findings


def _checked(check: FrameCheck, frames: Frames, indices: np.ndarray, options: Options, *, progress: bool) -> np.ndarray:
    """Those of some frames that did not come before."""
    usable, repeats = [], []
    for index in tqdm(
        indices.tolist(), unit="frame", desc=f"checking {frames.path.name}", disable=None if progress else True
    ):
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
    train = parts["train"]
    read = references.labels_of(train.frames, train.indices, sorted(check.elements))
    chosen = references.choose(options.reference, train.frames, read, one_formula=check.formula is not None)
    written = without_references(read, chosen)
    normalizers = {name: normalizer_of(values, size=size_of(read.values[name])) for name, values in written.items()}
    counts = {name: len(part.indices) for name, part in parts.items()}
    has_forces = train.frames.forces
    with whole_folder(out) as folder:
        for name, part in parts.items():
            if len(part.indices):
                write_part(folder / name, part, references=chosen, charged=check.is_charged)
        write_normalizers(folder, normalizers, forces=has_forces)
        _write_split(folder, parts, options.seed)
        manifest = _manifest(parts, options) | {
            "formula": check.formula,
            "elements": sorted(check.elements),
            "molecules": len(check.molecules),
            "reference_energy_ev": chosen.constant,
            "element_references": chosen.elements,
            "undetermined": chosen.undetermined,
            "normalizer": normalizers["energy"]._asdict(),
            "labels": ["energy", *(["forces"] if has_forces else []), *train.frames.targets],
            "target_units": train.frames.targets,
        }
        (folder / FILE_NAME).write_text(json.dumps(manifest, indent=1))
    doubts = [*_undetermined(chosen), *_constants(read, written), *_too_wide(written["energy"], labels)]
    return Result(out, counts, chosen, normalizers, has_forces, [*findings, *doubts])


def _write_split(folder: Path, parts: Mapping[str, Part], seed: int) -> None:
    frames = parts["train"].frames
    chosen = Split(*(part.indices if part.frames is frames else np.zeros(0, dtype=int) for part in parts.values()))
    split.write_split(folder / "split.npz", chosen, frames=frames.length, seed=seed)


def _undetermined(chosen: References) -> Iterator[str]:
    """Of which elements a fit could not tell the energies apart."""
    if chosen.undetermined:
        symbols = sorted(
            {symbol for direction in chosen.undetermined for symbol, x in direction.items() if abs(x) > 1e-6}
        )
        yield (
            f"warning: the compositions of the training frames do not tell the energies of {', '.join(symbols)} apart; "
            "predictions for compositions that differ from them otherwise will have no physical zero"
        )


def _constants(read: references.Labels, written: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Which labels have no deviation by which they could be divided, and why."""
    reasons: dict[str, list[str]] = {}
    for name, values in written.items():
        before = read.values[name]
        size = size_of(before)
        if not is_rounding(values.std(), size=size):
            continue
        if len(before) == 1:
            why = "there is one frame"
        elif is_rounding(before.std(), size=size):
            why = "there is one energy" if name == "energy" else "there is one value of each"
        else:
            why = "what is subtracted explains all of them"
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        what, one = ("energies", "1 eV") if names == ["energy"] else (f"values of {', '.join(names)}", "1")
        yield (
            f"warning: the training {what} have no standard deviation, as {why}: the {one} below only stands in for it"
        )


def _too_wide(energies: np.ndarray, labels: Labels) -> Iterator[str]:
    """Whether the deviation of energies is that of compositions."""
    deviation = energies.std(ddof=min(1, len(energies) - 1))
    if deviation > _COMPOSITIONAL * labels.rms:
        yield (
            f"warning: the deviation below, {deviation:.4g} eV, is that between compositions and of no use: "
            "subtract the energies of atoms (--reference elements, or a file with them) and scale forces by their own "
            f"rms, {labels.rms:.3f} eV/Å"
        )


def _manifest(parts: Mapping[str, Part], options: Options) -> dict[str, Any]:
    sources = {str(part.frames.path): part.frames for part in parts.values()}
    plain = {
        "sizes": None if options.sizes is None else options.sizes._asdict(),
        "keys": options.keys._asdict(),
        "exclude": None if options.exclude is None else str(options.exclude),
    }
    return {
        "made_by": "dens data molecules",
        "files": {name: {"bytes": _bytes(frames.path), "units": frames.units.name} for name, frames in sources.items()},
        "options": {**options._asdict(), **plain},
        "counts": {name: len(part.indices) for name, part in parts.items()},
    }


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*"))

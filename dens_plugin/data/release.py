"""The layout of the OC20 S2EF release, which ``oc20`` reads and ``synthetic`` writes.

A folder holds pairs of files: ``N.extxyz`` with frames of ASE's extended XYZ (positions in Å, energies in eV, forces in
eV/Å, tags, fixed atoms as ``move_mask``) and ``N.txt`` with one line a frame, ``random<sid>,frame<fid>,<reference
energy in eV>``. Either may be compressed with xz (``.xz`` appended), but must not be there in both forms. The lines of
test sets may lack the last field.

References:
    Chanussot et al., Open Catalyst 2020 (OC20) Dataset and Community Challenges, ACS Catal. 11, 6059 (2021).
"""

from __future__ import annotations

import io
import lzma
import math
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import ase.io
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.extxyz import XYZError

_NAME = re.compile(r"(?P<stem>\d+)\.(?P<kind>extxyz|txt)(?:\.xz)?")
_PROPERTIES = re.compile(r"""\bProperties=["']?(?P<triples>\w+:[A-Z]:\d+(?::\w+:[A-Z]:\d+)*)""")
_AGAIN = "download or unpack it again."
_LINE = re.compile(r"random(?P<sid>\d+),frame(?P<fid>\d+)(?:,(?P<reference>[^,]+))?")


class RawFile(NamedTuple):
    """One pair of files of the release."""

    frames: Path
    log: Path


class LogLine(NamedTuple):
    """What the log says about one frame; energies in eV."""

    sid: int
    fid: int
    reference: float | None

    def __str__(self) -> str:
        return f"random{self.sid},frame{self.fid}"


def is_release(folder: Path) -> bool:
    """Whether a folder looks like (a split of) the release: at least one pair of files by its names."""
    found = _by_stem(folder)
    return any({"extxyz", "txt"} <= kinds.keys() for kinds in found.values())


def raw_files(folder: Path) -> list[RawFile]:
    """The pairs of files in a folder of the release, by number.

    Raises:
        FileNotFoundError: If the folder does not exist, holds no frames, or a file lacks its partner.
        ValueError: If a file is there twice, unpacked and compressed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the folder that holds N.extxyz[.xz] and N.txt[.xz].")
    found = _by_stem(folder)
    if not found:
        raise FileNotFoundError(f"{folder} holds no N.extxyz[.xz]{_hint_of_splits(folder)}")
    return [_pair(folder, stem, found[stem]) for stem in sorted(found, key=int)]


def read_log(path: Path, *, need_reference: bool) -> list[LogLine]:
    """Read the log of one raw file.

    Args:
        path: ``N.txt`` or ``N.txt.xz``.
        need_reference: Whether every line must give a finite reference energy.

    Raises:
        ValueError: If a line cannot be read (file and line number), or the file is truncated.
    """
    lines = _read_text(path).splitlines()
    return [_parse_line(line, f"{path}, line {i}", need_reference) for i, line in enumerate(lines, start=1)]


def read_frames(path: Path) -> Iterator[Atoms]:
    """Read the frames of one raw file.

    Raises:
        ValueError: If the file is truncated or no extended XYZ.
    """
    # ASE jumps back after every frame, which a compressed file pays for: hand it the text instead.
    text, whole = io.StringIO(_read_text(path)), 0
    try:
        for atoms in ase.io.iread(text, index=":", format="extxyz"):
            whole += 1
            yield atoms
    except (XYZError, ValueError, KeyError, IndexError, AssertionError) as error:
        raise ValueError(_unreadable(path, text.getvalue(), error, whole)) from error


def write_raw_file(folder: Path, number: int, frames: Sequence[tuple[Atoms, LogLine]]) -> None:
    """Write ``N.extxyz.xz`` and ``N.txt.xz``.

    Args:
        folder: An existing folder.
        number: N.
        frames: Structures with energy, forces, tags and fixed atoms, and what the log says about them.
    """
    text = io.StringIO()
    columns = ["symbols", "positions", "move_mask", "tags", "forces"]
    ase.io.write(text, [atoms for atoms, _ in frames], format="extxyz", columns=columns)
    log = "".join(f"{line},{line.reference:.8f}\n" for _, line in frames)
    (folder / f"{number}.extxyz.xz").write_bytes(lzma.compress(text.getvalue().encode()))
    (folder / f"{number}.txt.xz").write_bytes(lzma.compress(log.encode()))


def _by_stem(folder: Path) -> dict[str, dict[str, list[Path]]]:
    found: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            found.setdefault(match["stem"], {}).setdefault(match["kind"], []).append(path)
    return found


def _pair(folder: Path, stem: str, kinds: dict[str, list[Path]]) -> RawFile:
    for there, lacking in (("extxyz", "txt"), ("txt", "extxyz")):
        if lacking not in kinds:
            raise FileNotFoundError(
                f"{kinds[there][0]} has no {stem}.{lacking}[.xz] beside it in {folder}: {_AGAIN}",
            )
    return RawFile(_only(kinds["extxyz"]), _only(kinds["txt"]))


def _only(paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise ValueError(f"{paths[0].parent} holds both {names}, and only one can be used: remove the other.")
    return paths[0]


def _hint_of_splits(folder: Path) -> str:
    splits = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_release(path))
    if splits:
        return f": convert one split at a time, its sub-folders {', '.join(splits)} hold the data."
    return ": give the folder that holds N.extxyz[.xz] and N.txt[.xz] of one split."


def _read_text(path: Path) -> str:
    try:
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        return data.decode()
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path} is truncated or no xz file ({error}): {_AGAIN}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file ({error}): {_AGAIN}") from error


def _unreadable(path: Path, text: str, error: Exception, whole: int) -> str:
    """What is wrong with a file, of which some first frames are ``whole``."""
    if isinstance(error, KeyError) and (element := _unknown_element(text, error)) is not None:
        return f"{path}, frame {whole} has an unknown element '{element}': correct the file, or remove the frame."
    lacking = _lacking_columns(text.splitlines())
    if whole or not lacking:
        after = f"after {whole} frames: " if whole else ""
        return f"{path} is not a whole extended XYZ file ({after}{' '.join(str(error).split())}): {_AGAIN}"
    return (
        f"{path}, frame 0 has no values for {', '.join(lacking)}, which its Properties name. If this is a test set, "
        f"take them out of Properties and use `dens data oc20` with --test-data, else {_AGAIN}"
    )


def _unknown_element(text: str, error: KeyError) -> str | None:
    """The word at the beginning of a row that ASE did not find among the elements; None if that is not the error."""
    word = error.args[0]
    is_named = isinstance(word, str) and any(line.split()[:1] == [word] for line in text.splitlines())
    return word if is_named and word not in atomic_numbers else None


def _lacking_columns(lines: Sequence[str]) -> list[str]:
    """The last names of the first frame's Properties, if all its rows end where their values should begin."""
    properties = _PROPERTIES.search(lines[1]) if len(lines) > 2 else None
    if properties is None or not lines[0].strip().isdecimal():
        return []
    widths = {len(row.split()) for row in lines[2 : 2 + int(lines[0])]}
    names = properties["triples"].split(":")[::3]
    ends = list(accumulate(map(int, properties["triples"].split(":")[2::3])))
    return names[ends.index(min(widths)) + 1 :] if len(widths) == 1 and widths <= set(ends) else []


def _parse_line(line: str, where: str, need_reference: bool) -> LogLine:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise ValueError(f"{where}: cannot read {line!r}, expected random<sid>,frame<fid>,<reference energy>.")
    reference = _parse_energy(match["reference"], where) if match["reference"] else None
    if need_reference and reference is None:
        raise ValueError(
            f"{where}: no reference energy in {line!r}. For a test set use --test-data, "
            "to keep energies as they are use --no-ref-energy."
        )
    return LogLine(int(match["sid"]), int(match["fid"]), reference)


def _parse_energy(text: str, where: str) -> float:
    try:
        energy = float(text)
    except ValueError:
        energy = math.nan
    if not math.isfinite(energy):
        raise ValueError(f"{where}: the reference energy {text!r} is not a finite number.")
    return energy

"""``dens submission verify``: whether a leaderboard would take a file, and a manifest of what is in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dens_plugin.columns import aligned
from dens_plugin.data.findings import Finding
from dens_plugin.leaderboard.data import mismatches, read_test_set
from dens_plugin.leaderboard.file import NpzReader, sha256_of_array, sha256_of_file
from dens_plugin.leaderboard.layout import Rules, Task, paths_by_split, rules_of, task_of
from dens_plugin.leaderboard.split import SplitArrays, findings_of, repeated_split
from dens_plugin.leaderboard.submission import add_common_arguments
from dens_plugin.settings import suggestion

_EXIT_STATUS = (
    "Exit status: 0 if no finding is an error (there may be warnings), 1 if one is, 2 if the file cannot be read."
)


class Entry(NamedTuple):
    """An array of a file: its name, shape, dtype and the SHA-256 of its values."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


class Verdict(NamedTuple):
    """What :func:`verify` found; ``str(verdict)`` is for a person.

    Attributes:
        path: the file.
        rules: by which it was judged; the task is told from its keys.
        sha256: of the file.
        entries: its manifest.
        findings: defects, in the order of the file, errors first within a split.
    """

    path: Path
    rules: Rules
    sha256: str
    entries: list[Entry]
    findings: list[Finding]

    def __str__(self) -> str:
        return "\n".join([*_manifest(self), "", *_found(self.findings)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dens submission verify``."""
    parser.epilog = _EXIT_STATUS
    parser.add_argument("file", metavar="FILE", help="the .npz file to submit")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Do what ``dens submission verify`` was asked for; ends the process with status 1 if a finding is an error."""
    verdict = verify(
        args.file,
        convention=args.convention,
        data=paths_by_split(args.data, "--data"),
        any_size=args.any_size,
        progress=True,
    )
    print(verdict, flush=True)
    if any(finding.severity == "error" for finding in verdict.findings):
        sys.exit(1)


def verify(
    path: str | PathLike,
    *,
    convention: str = "evalai",
    data: Mapping[str, str | PathLike] | None = None,
    any_size: bool = False,
    progress: bool = False,
) -> Verdict:
    """Look at a leaderboard file, one split at a time.

    Args:
        path: the ``.npz`` file.
        convention: of the leaderboard that it is for.
        data: split -> test set to compare ids and numbers of atoms with.
        any_size: allow other numbers of structures than those of the test sets.
        progress: show progress bars while reading data sets.

    Raises:
        FileNotFoundError: if the file or a data set does not exist.
        ValueError: if one of them cannot be read, or ``data`` names a split that the task does not have.
    """
    path, data = Path(path), data or {}
    with NpzReader(path) as file:
        rules = rules_of(task_of(file.keys).name, convention, any_size=any_size)
        for split in data.keys() - set(rules.task.splits):
            hint = suggestion(split, rules.task.splits)
            raise ValueError(f"unknown split '{split}' in --data for {rules.task.name}; {hint}")
        findings, entries = list(_wrong_keys(file.keys, rules.task)), []
        splits: dict[str, str] = {}  # digest of the ids -> split
        for split in rules.task.splits:  # the arrays of one are gone before the next are read
            test_set = Path(data[split]) if split in data else None
            more_entries, found = _judge_split(file, split, rules, test_set=test_set, splits=splits, progress=progress)
            entries += more_entries
            findings += [Finding(severity, f"{split}: {message}") for severity, message in found]
    return Verdict(path, rules, sha256_of_file(path), entries, findings)


def _wrong_keys(keys: tuple[str, ...], task: Task) -> Iterator[Finding]:
    for key in task.keys:
        if key not in keys:
            yield Finding(
                "error", f"no array '{key}', which {task.name} needs: write the file by `dens submission make`"
            )
    for key in keys:
        if key not in task.keys:
            yield Finding("error", f"an array '{key}', which {task.name} does not have; {suggestion(key, task.keys)}")


def _judge_split(
    file: NpzReader, split: str, rules: Rules, *, test_set: Path | None, splits: dict[str, str], progress: bool
) -> tuple[list[Entry], list[Finding]]:
    keys = [f"{split}_{field}" for field in rules.task.fields]
    if not set(keys) <= set(file.keys):
        return [], []  # `_wrong_keys` has said so
    found = [file.read(key) for key in keys]
    arrays = SplitArrays(*found)
    entries = [
        Entry(key, array.shape, str(array.dtype), sha256_of_array(array))
        for key, array in zip(keys, found, strict=True)
    ]
    findings = findings_of(arrays, split, rules)
    if any(finding.severity == "error" for finding in findings):
        return entries, findings
    findings += repeated_split(np.sort(arrays.ids), split, splits)
    if test_set is not None:
        findings += mismatches(arrays, read_test_set(test_set, progress=progress), rules)
    elif rules.fixed_atoms:
        findings.append(Finding("warning", "without --data neither ids nor atoms can be compared with the test set"))
    return entries, findings


def _manifest(verdict: Verdict) -> list[str]:
    rules = verdict.rules
    lines = [
        f"file        {verdict.path}",
        f"judged as   {rules.task.name} for {rules.convention.name}",
        f"sha256      {verdict.sha256}",
    ]
    rows = [[each.key, "x".join(map(str, each.shape)), each.dtype, each.sha256] for each in verdict.entries]
    return lines + aligned(rows, left=1)


def _found(findings: list[Finding]) -> list[str]:
    if not findings:
        return ["No defects found."]
    return ["Findings:", *(f"  {finding.severity}: {finding.message}" for finding in findings)]

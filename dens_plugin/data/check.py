"""Looking at a data set before a long run: ``dens data check PATH``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fairchem.core.common.utils import load_config
from tqdm import tqdm

from dens_plugin.data.findings import Finding, Tally, of_metadata, of_whole
from dens_plugin.data.scales import as_yaml
from dens_plugin.data.sources import FORMATS, Source, open_source
from dens_plugin.data.statistics import ForceSize, Spread, Statistics, collect, summarize
from dens_plugin.data.structures import USUAL, Keys
from dens_plugin.settings import count

_PARTS = ("train", "val", "test")
_DEFAULT_LIMIT = 5000  # some 10 ms each
_EXIT_STATUS = (
    "Exit status: 0 if no finding is an error (there may be warnings), 1 if one is, 2 if the data set cannot be read. "
    "Missing labels are errors, so that a test set without them ends in 1."
)


class Report(NamedTuple):
    """What :func:`check` found; ``str(report)`` is for a person.

    Attributes:
        path: The data set.
        format: fairchem's name for its kind.
        structures: Number of structures in it.
        checked: Number of structures looked at.
        statistics: Numbers over those whose arrays belong together.
        findings: Defects, errors first.
    """

    path: Path
    format: str
    structures: int
    checked: int
    statistics: Statistics
    findings: list[Finding]

    def __str__(self) -> str:
        return "\n".join([*_numbers(self), "", *_normalizer(self.statistics), "", *_found(self.findings)])


def check(
    path: str | PathLike,
    *,
    format: str = "auto",
    limit: int | None = None,
    config: Mapping[str, Any] | None = None,
    keys: Keys = USUAL,
    progress: bool = False,
) -> Report:
    """Read a data set, gather its statistics and look for defects.

    Args:
        path: A file or a folder.
        format: One of :data:`~dens_plugin.data.sources.FORMATS`.
        limit: Look at this many structures at most, evenly spaced.
        config: More of fairchem's ``dataset`` options, e.g. ``pattern`` or ``key_mapping``.
        keys: What its labels are called.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If what is there cannot be read, or none of the structures that were looked at.
    """
    source = open_source(Path(path), format=format, config=config, keys=keys)
    indices = _evenly_spaced(source.length, limit)
    tally, summaries = Tally(), {}
    for index in tqdm(indices, desc="reading", unit="structure", disable=None if progress else True):
        try:
            structure = source.read(index)
        except ValueError as error:
            tally.add_damage(index, str(error))
            continue
        if tally.add(index, structure):
            summaries[index] = summarize(structure)
    tally.require_any()
    statistics = collect(list(summaries.values()))
    findings = [*tally.findings(), *of_whole(statistics), *_other_names(source, keys)]
    if source.format in ("lmdb", "oc22_lmdb"):
        counted = [(index, int(summary.composition.sum())) for index, summary in summaries.items()]
        findings += of_metadata(source.metadata, counted, length=source.length)
    ordered = sorted(findings, key=lambda finding: finding.severity)  # stable: errors first
    return Report(source.path, source.format, source.length, len(indices), statistics, ordered)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dens data check``."""
    parser.epilog = _EXIT_STATUS
    parser.add_argument(
        "path", metavar="PATH", nargs="?", help="data set, a file or a folder, also one with train, val, test"
    )
    parser.add_argument("--format", choices=FORMATS, default="auto", help="kind of data set (default: auto)")
    parser.add_argument(
        "--max-structures",
        type=int,
        default=_DEFAULT_LIMIT,
        metavar="N",
        help=f"look at so many, evenly spaced; 0 for all (default: {_DEFAULT_LIMIT})",
    )
    parser.add_argument("--energy-key", metavar="NAME", help="what the data set calls energies, e.g. REF_energy")
    parser.add_argument("--forces-key", metavar="NAME", help="what the data set calls forces, e.g. dft_forces")
    parser.add_argument("--config-yml", metavar="YML", help="check the data set of this configuration instead")
    parser.add_argument("--split", default="train", help="which of the configuration's data sets (default: train)")


def run(args: argparse.Namespace) -> None:
    """Do what ``dens data check`` was asked for; ends the process with status 1 if a finding is an error."""
    if (args.path is None) == (args.config_yml is None):
        raise ValueError("Give either PATH or --config-yml.")
    count(args.max_structures, "--max-structures", least=0)
    path, format, config = args.path, args.format, {}
    if args.config_yml is not None:
        config = _dataset_config(Path(args.config_yml), args.split)
        path, format = config["src"], config.get("format", "lmdb")
    keys = Keys(args.energy_key, args.forces_key)
    is_faulty = False
    for part in parts_of(Path(path)):
        report = check(part, format=format, limit=args.max_structures or None, config=config, keys=keys, progress=True)
        print(report, flush=True)
        is_faulty |= any(finding.severity == "error" for finding in report.findings)
    if is_faulty:
        sys.exit(1)


def parts_of(path: Path) -> list[Path]:
    """The data sets of a folder that ``dens data molecules`` made, or of another one with such parts; else the path."""
    if not path.is_dir() or any(path.glob("*.lmdb")):
        return [path]
    parts = [path / name for name in _PARTS if any((path / name).glob("*.lmdb"))]
    return parts or [path]


def _other_names(source: Source, keys: Keys) -> list[Finding]:
    """A hint for files that have labels by other names than the usual ones."""
    known = {"energy", "forces", keys.energy, keys.forces}
    others = [name for name in source.names if name not in known]
    lacking = [name for name in ("energy", "forces") if (getattr(keys, name) or name) not in source.names]
    if not source.names or not lacking or not others:
        return []
    return [
        Finding(
            "warning",
            f"the first structure has no {' and no '.join(lacking)}, but {', '.join(others)}: --energy-key and "
            "--forces-key, here and of `dens data molecules`, say which of them are labels.",
        )
    ]


def _evenly_spaced(length: int, limit: int | None) -> list[int]:
    if limit is None or limit >= length:
        return list(range(length))
    if limit < 1:
        raise ValueError(f"The number of structures to look at must be at least 1, not {limit}.")
    return np.linspace(0, length - 1, limit).astype(int).tolist()


def _dataset_config(path: Path, split: str) -> dict[str, Any]:
    """The options of one split; as in fairchem, what the others lack they take from train."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a fairchem configuration.")
    dataset = load_config(path)[0].get("dataset", {})
    if "src" not in (dataset.get(split) or {}):
        raise ValueError(f"{path} gives no dataset.{split}.src; it has dataset.{{{', '.join(dataset)}}}.")
    if not isinstance(dataset[split]["src"], str):
        raise ValueError(f"dataset.{split}.src of {path} is a list: check its parts one by one, as PATH.")
    return {**(dataset.get("train") or {}), **dataset[split]}


def _numbers(report: Report) -> list[str]:
    numbers = report.statistics
    share = "all" if report.checked == report.structures else f"{report.checked} evenly spaced"
    lines = {
        "data set": f"{report.path} (format: {report.format})",
        "structures": f"{report.structures}, {share} looked at, of {numbers.systems or 'unknown'} systems",
        "atoms": f"{_range(numbers.atoms, 0)} per structure",
        "elements": _listing(numbers.elements),
        "fixed atoms": f"{100 * numbers.fixed_share:.1f} %",
        "tags": _listing(numbers.tags),
        "pbc": _listing(numbers.pbc),
        "cell volume": f"{_range(numbers.volume, 1)} Å^3",
        "energy": f"{_range(numbers.energy, 4)}, std {numbers.energy.std:.4f} eV",
        "forces, free": _size(numbers.free_forces),
        "forces, fixed": _size(numbers.fixed_forces),
        "linear fit": _fit(numbers),
    }
    return [f"{name:14s} {text}" for name, text in lines.items()]


def _range(spread: Spread, digits: int) -> str:
    ends = f"min {spread.min:.{digits}f}, median {spread.median:.{digits}f}"
    return f"{ends}, mean {spread.mean:.{max(digits, 1)}f}, max {spread.max:.{digits}f}"


def _listing(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _size(forces: ForceSize) -> str:
    if np.isnan(forces.rms):
        return "none"
    return f"rms {forces.rms:.4f} eV/Å a component, largest norm {forces.max:.3f} eV/Å"


def _fit(numbers: Statistics) -> str:
    if numbers.fit is None:
        return "no energies"
    terms = ", ".join(f"{name} {value:.3f}" for name, value in numbers.fit.coefficients.items())
    return f"energy ~ {terms} eV per atom; leaves rms {numbers.fit.residual:.4f} of {numbers.fit.rms:.4f} eV"


def _normalizer(numbers: Statistics) -> list[str]:
    if np.isnan(numbers.energy.std):
        return ["No normaliser: no structure has the labels."]
    lines = [
        "Normaliser, to paste under dataset.train:",
        "transforms:",
        "  normalizer:",
        "    energy:",
        f"      mean: {as_yaml(numbers.energy.mean, scale=numbers.energy_scale)}",
        f"      stdev: {as_yaml(numbers.energy_scale, scale=numbers.energy_scale)}",
    ]
    if np.isnan(numbers.free_forces.rms):
        return lines
    return [
        *lines,
        "    forces:",
        "      mean: 0.0",
        f"      stdev: {as_yaml(numbers.forces_scale, scale=numbers.forces_scale)}",
    ]


def _found(findings: list[Finding]) -> list[str]:
    if not findings:
        return ["No defects found."]
    return ["Findings:", *(f"  {finding.severity}: {finding.message}" for finding in findings)]

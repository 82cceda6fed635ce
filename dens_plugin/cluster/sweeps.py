"""What is to run: experiments, and sweep files that list some of them with seeds, sizes and changed settings.

A sweep file::

    # What it is for.
    experiments:
      - ../experiment/a.yml
      - {config: ../experiment/b.yml, name: b_wide, set: {model.backbone.sphere_channels: 128}, nodes: 2}
    seeds: [0, 1, 2]
    nodes: 1
    gpus: 8
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dens_plugin.settings import count, mapping, read_block, reject_unknown

_SWEEP_KEYS = ("experiments", "seeds", "nodes", "gpus")
_ENTRY_KEYS = ("config", "name", "set", "nodes", "gpus")


class Entry(NamedTuple):
    """An experiment to run.

    Attributes:
        config: its file.
        name: of its runs, before the seed; a folder's name.
        changes: dotted key -> value, over the file's.
        seeds: one run for each; None for the command line's or the default.
        nodes: nodes of a run, likewise.
        gpus: GPUs per node, likewise.
    """

    config: Path
    name: str
    changes: Mapping[str, Any]
    seeds: tuple[int, ...] | None = None
    nodes: int | None = None
    gpus: int | None = None


def read_entries(paths: Sequence[str | Path]) -> list[Entry]:
    """The experiments that some files stand for, sweeps spread out.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a sweep with an unknown key or an impossible value.
    """
    return [entry for path in paths for entry in _entries(Path(path))]


def _entries(path: Path) -> list[Entry]:
    block = _read(path)
    if "experiments" not in block:
        return [Entry(path, _name(path.stem, str(path)), {})]
    where = f"the sweep '{path}'"
    _name(path.stem, where)  # of the job array
    reject_unknown(block, _SWEEP_KEYS, where)
    experiments = block["experiments"]
    if not isinstance(experiments, list) or not experiments:
        raise ValueError(f"`experiments` in {where} must be a list of at least one, got {experiments!r}")
    common = _sizes(block, where) | ({"seeds": seeds_of(block["seeds"], where)} if "seeds" in block else {})
    return [_entry(item, path.parent, f"experiment {at + 1} of {where}", common) for at, item in enumerate(experiments)]


def _entry(item: Any, folder: Path, where: str, common: Mapping[str, Any]) -> Entry:
    block = {"config": item} if isinstance(item, str) else mapping(item, where)
    reject_unknown(block, _ENTRY_KEYS, where)
    if not isinstance(block.get("config"), str):
        raise ValueError(f"{where} needs `config`, the path of an experiment relative to '{folder}'")
    config = folder / block["config"]
    if "experiments" in _read(config):
        raise ValueError(f"{where} is a sweep itself, '{config}'; list its experiments, or submit both files")
    name = _name(str(block.get("name", config.stem)), where)
    changes = mapping(block.get("set") or {}, f"`set` of {where}")
    return Entry(config, name, changes, **{**common, **_sizes(block, where)})


def seeds_of(values: Any, where: str) -> tuple[int, ...]:
    """A checked list of seeds.

    Raises:
        ValueError: for no seed, a repeated one, or one that is not a whole number from 0 on.
    """
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"seeds in {where} must be a list of at least one, got {values!r}")
    seeds = tuple(count(value, f"a seed in {where}", least=0) for value in values)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds in {where} repeat: {', '.join(map(str, seeds))}")
    return seeds


def _sizes(block: Mapping[str, Any], where: str) -> dict[str, int]:
    least = {"nodes": 1, "gpus": 0}
    return {key: count(block[key], f"{key} in {where}", least=least[key]) for key in least if key in block}


def _name(name: str, where: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"'{name}' ({where}) cannot name a run's folder; use letters, digits and . _ + -")
    return name


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no experiment or sweep '{path}'")
    return read_block(path, f"'{path}'")

"""From experiments to runs: each with a name, a size and a complete config that has been looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairchem.core.common.flags import flags

import dens_plugin.training.trainer  # noqa: F401
from dens_plugin import compat
from dens_plugin.checks.config import require_sound
from dens_plugin.checks.files import config_files
from dens_plugin.checks.merged import merged_config
from dens_plugin.cluster.sites import Shape, Site, sbatch_options
from dens_plugin.cluster.sweeps import Entry

_PYTHON = {"true": "True", "false": "False", "null": "None"}
# Top-level settings that a run's name, size and seed decide.
_DECIDED = """
    mode run_dir identifier timestamp_id seed cpu submit summit world_size distributed_backend is_debug slurm local_rank
""".split()  # noqa: SIM905  (a list of literals would fill the page)


class Wish(NamedTuple):
    """What the command line says of all runs.

    Attributes:
        run_dir: folder of all runs.
        seeds: instead of the sweep's.
        nodes: instead of the sweep's.
        gpus: instead of the sweep's and the site's.
        changes: ``key=value`` texts, after the sweep's own.
    """

    run_dir: Path
    seeds: tuple[int, ...] | None = None
    nodes: int | None = None
    gpus: int | None = None
    changes: tuple[str, ...] = ()


class Run(NamedTuple):
    """A run to submit.

    Attributes:
        name: of its folders, unique in the run folder.
        experiment: the file it comes from.
        seed: of everything random.
        shape: nodes, GPUs and what else decides on its array.
        config: complete.
    """

    name: str
    experiment: Path
    seed: int
    shape: Shape
    config: dict[str, Any]

    @property
    def workers(self) -> int:
        """Loader workers per process."""
        return int(self.config["optim"].get("num_workers", 0))

    @property
    def batch_size(self) -> int:
        """Structures per optimiser step, over all ranks that do not share a graph."""
        return self._batches * int(self.config["optim"].get("batch_size", 1))

    @property
    def step(self) -> str:
        """What an optimiser step sees, in words."""
        for key, noun in (("batch_atoms", "atoms"), ("batch_edges", "edges")):
            if key in self.config["optim"]:
                return f"up to {self._batches * int(self.config['optim'][key])} {noun} per step"
        return f"{self.batch_size} structures per step"

    @property
    def _batches(self) -> int:
        ranks = self.config["world_size"] // (self.config["gp_gpus"] or 1)
        return int(self.config["optim"].get("accumulate_steps", 1)) * ranks


def plan(entries: Sequence[Entry], site: Site, wish: Wish) -> list[Run]:
    """Every seed of every experiment, checked as `dens train` checks it.

    Raises:
        FileNotFoundError: for data or a checkpoint that are not there.
        ValueError: for a config that makes no sense, a size that the site does not have, or two runs of one name.
    """
    compat.prepare_host()
    runs: dict[str, Run] = {}
    for entry in entries:
        for seed in wish.seeds or entry.seeds or (0,):
            run = _run(entry, seed, site, wish)
            if run.name in runs:
                raise ValueError(
                    f"two runs would be called '{run.name}' ({runs[run.name].experiment}, {run.experiment}); give one "
                    "of them a `name` in a sweep file"
                )
            runs[run.name] = run
        _require_sound(run.config, entry.config)  # seeds make no difference to it
    return list(runs.values())


def by_shape(runs: Sequence[Run]) -> dict[Shape, list[Run]]:
    """The runs by shape: all tasks of a job array have the same size."""
    found: dict[Shape, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.shape].append(run)
    return dict(found)


def _run(entry: Entry, seed: int, site: Site, wish: Wish) -> Run:
    nodes = wish.nodes or entry.nodes or 1
    gpus = _first(wish.gpus, entry.gpus, site.gpus_per_node)
    if gpus > site.gpus_per_node:
        raise ValueError(
            f"'{entry.name}' wants {gpus} GPUs per node and the site has {site.gpus_per_node}; use --gpus, or "
            "gpus_per_node in the site file"
        )
    name = f"{entry.name}-seed{seed}"
    shape = Shape(nodes, gpus)
    config = _config(entry, seed, name, shape, wish)
    block = config.get("slurm") or {}
    options = sbatch_options(block, f"the `slurm` block of '{entry.config}'")
    return Run(name, entry.config, seed, shape._replace(sbatch=tuple(sorted(options.items()))), config)


def _config(entry: Entry, seed: int, name: str, shape: Shape, wish: Wish) -> dict[str, Any]:
    """fairchem's config for the options that this package decides on, and the changes."""
    options = {
        "--mode": "train",
        "--config-yml": entry.config,
        "--run-dir": wish.run_dir,
        "--identifier": name,
        "--timestamp-id": name,
        "--seed": seed,
        "--num-nodes": shape.nodes,
        "--num-gpus": shape.processes_per_node,
    }
    arguments = [str(part) for pair in options.items() for part in pair] + ([] if shape.gpus else ["--cpu"])
    changes = [f"{key}={value}" for key, value in entry.changes.items()] + list(wish.changes)
    return merged_config(flags.get_parser().parse_args(arguments), [_override(text) for text in changes])


def _override(text: str) -> str:
    """``key=value`` as fairchem wants it, which splits at every '=' and reads Python where people write YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or "=" in value:
        raise ValueError(f"'{text}' is no change of a setting; write key=value, as optim.lr_initial=0.0004")
    key, value = key.strip().lstrip("-"), value.strip()
    if key.partition(".")[0] in _DECIDED:
        raise ValueError(
            f"'{key}' cannot be set for a submitted run; names, sizes and seeds have options of their own, see `dens "
            "submit --help`, and what Slurm is asked for stands in the site file"
        )
    return f"--{key}={_PYTHON.get(value, value)}"


def _require_sound(config: Mapping[str, Any], path: Path) -> None:
    if config["checkpoint"] is not None:
        compat.load_checkpoint(config["checkpoint"], on_demand=True)
    require_sound(config, config_files(path))


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)

"""Where denoising gains on molecules, and how much: methods x labelled frames x networks x molecules x seeds.

    python benchmarks/gains.py run gains --molecules ethanol malonaldehyde --methods s2ef dens --steps 6000
    python benchmarks/gains.py table gains                        # what is finished: a table, a plot, JSON
    python benchmarks/gains.py run search --points benchmarks/gain_points.yml --methods dens dens_gentle ...
    python benchmarks/gains.py table search --validation          # to choose settings by; no test set is read
    python benchmarks/gains.py table gains --chosen dens_gentle   # test errors of the point that was chosen, too

``run`` goes through `dens train` and `dens data molecules`, one run after the other, or as many at a time as ``--jobs``
says; several of these commands may share a folder. Each run has a folder with its config, its log and its checkpoints.
What is finished is skipped and what was interrupted goes on from its newest checkpoint: give the same command again.
The files of molecules are revised MD17's, as ``rmd17_<molecule>_{train,test}.extxyz.xz`` in ``--data``. A seed decides
which frames have labels, and the first weights. Settings are those of `configs` for light networks, and the methods
those of `gain_methods.py`; validation chooses the weights. ``table`` reads the test set once for each finished run and
keeps what it found; what other folders gave stays in its JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from gain_methods import METHODS, NETWORKS, model, read_points
from gain_runs import LABELS, Study, cell_of, homes, is_finished, source_of
from gain_tables import Finished, gains, known_results, markdown, written
from machine import hardware
from plots import plot_gains

from dens_plugin.report.predictions import predict
from dens_plugin.report.readiness import progress_of
from dens_plugin.report.runs import MILLI, Run, find_runs
from dens_plugin.settings import count

_RESULTS = Path("benchmarks/results")
_FOUND = "test.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Run, or say what came out."""
    args = _arguments(argv)
    try:
        if args.command == "table":
            out = args.out or _RESULTS / ("gains_validation.json" if args.validation else "gains.json")
            report(args.folders, out, validation=args.validation, chosen=args.chosen)
        else:
            run(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"gains.py: {error}") from error


def run(args: argparse.Namespace) -> None:
    """Train what is not trained yet.

    Raises:
        ValueError: before the first run, for a number below 1, a missing file, or a method that does not exist or fit.
        SystemExit: at the end, if a run failed.
    """
    for option, numbers in (("--frames", args.frames), ("--steps", args.steps), ("--jobs", [args.jobs])):
        for number in numbers:
            count(number, option, least=1)
    methods = METHODS | (read_points(args.points) if args.points else {})
    unknown = set(args.methods) - set(methods)
    if unknown:
        raise ValueError(f"unknown methods {', '.join(sorted(unknown))}; there are {', '.join(methods)}")
    for network, method in itertools.product(args.networks, args.methods):
        model(NETWORKS[network], methods[method])  # or an error
    study = Study(args.folder, args.data, methods)
    axes = (args.molecules, args.frames, args.networks, args.methods, args.seeds, args.steps)
    cells = [cell_of(*each) for each in itertools.product(*axes)]
    study.require_files(cells)
    with ThreadPoolExecutor(args.jobs) as pool:
        ended_well = list(pool.map(study.run, cells))
    if not all(ended_well):
        raise SystemExit(1)


def finished(folder: Path, *, validation: bool, chosen: Collection[str] = ()) -> Iterator[Finished]:
    """All runs that are, in the order of their names.

    Args:
        folder: of all runs.
        validation: errors of the frames by which the weights were chosen. Else those of the test set, which is read for
            those runs that it was not read for yet, and left alone for points of a search.
        chosen: points by which a search ended, whose test errors are to be read.
    """
    for cell, home in homes(folder):
        if is_finished(home) and (validation or cell.method in {*METHODS, *chosen}):
            run = _run(home)
            errors = _validated(run) if validation else _tested(run, home, source_of(folder, cell))
            yield Finished(cell=cell, **errors, **_left_by(run), pretraining_minutes=_pretraining_minutes(home))


def _run(home: Path) -> Run:
    return find_runs([sorted((home / "checkpoints").iterdir())[-1]])[0]


def _validated(run: Run) -> dict[str, float]:
    best = min(run.rows("val", "forces_mae"), key=lambda row: row["forces_mae"])
    return {name: MILLI * best[f"{name}_mae"] for name in LABELS}


def _tested(run: Run, home: Path, source: Path) -> dict[str, float]:
    known = home / _FOUND
    if not known.exists():
        tested = run._replace(config={**run.config, "test_dataset": {"src": str((source / "test").resolve())}})
        errors = predict(tested, "test", max_structures=10_000)
        found = {"forces": MILLI * errors.forces_mae, "energy": MILLI * errors.energy_mae}
        known.write_text(json.dumps({**found, "checkpoint": str(run.checkpoint)}))
    found = json.loads(known.read_text())
    return {name: found[name] for name in LABELS}


def _left_by(run: Run) -> dict[str, float | None]:
    """What a training run says of itself."""
    progress = progress_of(run)
    return {"noise": progress.noise, "fall": progress.fall, "step_ms": _step_ms(run)}


def _step_ms(run: Run) -> float | None:
    """The median over what was printed, so that evaluations and interruptions do not count."""
    rows = run.rows("train", "loss")
    paces = [
        1e3 * (after["time"] - before["time"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(rows)
        if after["step"] > before["step"]
    ]
    return statistics.median(paces) if paces else None


def _pretraining_minutes(home: Path) -> float:
    """What the weights cost that a run started from, shared or not."""
    task = yaml.safe_load((home / "config.yml").read_text())["task"]
    if "warm_start" not in task:
        return 0.0
    (run,) = find_runs([Path(task["warm_start"]["path"]).parent])
    return (_step_ms(run) or 0.0) * max(row["step"] for row in run.history) / 60e3


def report(folders: Sequence[Path], out: Path, *, validation: bool, chosen: Collection[str] = ()) -> None:
    """Print the table of what is finished, and write it, with a plot beside it, as JSON.

    Raises:
        ValueError: for folders without a finished run, an unknown point, or a file that is no table; none is written.
    """
    if out.suffix != ".json":
        raise ValueError(f"--out must be a .json file, got '{out}'")
    earlier = known_results(out)
    begun = {cell.method for folder in folders for cell, _ in homes(folder)}
    unknown = set(chosen) - begun
    if unknown:
        raise ValueError(f"--chosen: no run of {', '.join(sorted(unknown))}; there are {', '.join(sorted(begun))}")
    found = [each for folder in folders for each in finished(folder.resolve(), validation=validation, chosen=chosen)]
    if not found:
        raise ValueError(f"no finished run in {', '.join(map(str, folders))}; `gains.py run FOLDER` trains them")
    results = earlier | {result.cell: result for result in found}
    rows = gains(list(results.values()))
    print(markdown(rows, "validation" if validation else "test"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written(results.values(), rows) | {"hardware": hardware("cpu")}, indent=1) + "\n")
    plot_gains(rows, out.with_suffix(".png"), "validation" if validation else "test")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train what is not trained yet")
    train.add_argument("folder", type=Path, help="of all runs")
    train.add_argument("--data", type=Path, default=Path("../shared/data/molecules"))
    train.add_argument("--molecules", nargs="+", default=["ethanol", "malonaldehyde", "aspirin", "uracil"])
    train.add_argument("--frames", nargs="+", type=int, default=[100])
    train.add_argument("--networks", nargs="+", choices=NETWORKS, default=["painn"])
    train.add_argument("--methods", nargs="+", default=["s2ef", "dens"], help=f"of {', '.join(METHODS)}, or points")
    train.add_argument("--points", type=Path, metavar="FILE", help="methods with other settings, by name, for a search")
    train.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    train.add_argument("--steps", nargs="+", type=int, default=[20_000], help="of the optimiser, rounded to epochs")
    train.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    table = commands.add_parser("table", help="errors and gains of what is finished")
    table.add_argument("folders", type=Path, nargs="+", help="of runs")
    table.add_argument("--validation", action="store_true", help="errors of the validation frames; reads no test set")
    table.add_argument(
        "--chosen", nargs="+", default=[], metavar="NAME", help="points whose test errors are to be read"
    )
    table.add_argument("--out", type=Path, help="JSON, whose other runs stay in it (default: in benchmarks/results)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()

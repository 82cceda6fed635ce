"""The command `dens`: fairchem's modes with this package loaded, and what comes before and after training.

Anything a person can put right ends in one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import lmdb
import yaml

_HOST_MODES = {
    "train": ("train", "train a model"),
    "validate": ("validate", "errors of a checkpoint on the validation set"),
    "predict": ("predict", "predictions of a checkpoint for the test set, float32"),
    "relax": ("run-relaxations", "relax the structures of a data set"),
}
_OF_WORKER = re.compile(r"Caught (\w+) in .*^(?:[\w.]+\.)?\1: (.*)", re.DOTALL | re.MULTILINE)  # torch's wording
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, yaml.YAMLError, lmdb.Error)


class _Command(NamedTuple):
    """A command of our own: the module that has its `add_arguments` and `run`, and a line of help."""

    module: str
    help: str


_OWN = {
    "convert": _Command("dens_plugin.convert.conversion", "a checkpoint of another implementation, to or from ours"),
    "submit": _Command("dens_plugin.cluster.submit", "experiments or a sweep as one Slurm job array"),
    "probe": _Command("dens_plugin.probe.probe", "the largest batch of a config that fits into memory"),
    "report": _Command("dens_plugin.report.report", "learning curves, parity plots and a table of some runs"),
    "convergence": _Command("dens_plugin.report.convergence", "how well relaxations converged, and IS2RE errors"),
    "nve": _Command("dens_plugin.inference.dynamics", "a short NVE run and the drift of its energy"),
    "demo": _Command("dens_plugin.demo", "synthetic data, a small model with and without DeNS, and a report"),
}
_DATA = {
    "oc20": _Command("dens_plugin.data.oc20", "the OC20 S2EF release to LMDBs"),
    "synthetic": _Command("dens_plugin.data.synthetic", "relaxations of random slabs by EMT, in the release's layout"),
    "molecules": _Command("dens_plugin.data.molecules.conversion", "MD17, rMD17, MD22, extxyz or ASE files to LMDBs"),
    "check": _Command("dens_plugin.data.check", "what to know of a data set before a long run"),
}


_SUBMISSION = {
    "make": _Command("dens_plugin.leaderboard.submission", "a leaderboard file from the predictions of all splits"),
    "verify": _Command("dens_plugin.leaderboard.check", "whether a leaderboard would take a file"),
}


class _Parser(argparse.ArgumentParser):
    """Leaves the wording of errors to `main`; parsers of sub-commands are of this class too."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 and one line for an error that the caller can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments)
    except KeyboardInterrupt:
        sys.exit("dens: interrupted")
    except _USER_ERRORS as error:
        if "DENS_TRACEBACK" in os.environ:
            raise
        print(f"dens: error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _dispatch(arguments: list[str]) -> None:
    if arguments and arguments[0] in _HOST_MODES:
        _run_host(*arguments)
        return
    args = _parser(arguments).parse_args(arguments)
    args.run(args)


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser of our own commands; only the module of the one that is asked for is imported."""
    parser = _Parser(prog="dens", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (_, text) in _HOST_MODES.items():
        commands.add_parser(name, help=f"{text} (fairchem's options)")
    _add(commands, _OWN, arguments[:1])
    for name, group, text in (
        ("data", _DATA, "make and check data sets"),
        ("submission", _SUBMISSION, "make and verify leaderboard files"),
    ):
        nested = commands.add_parser(name, help=text).add_subparsers(metavar="COMMAND", required=True)
        _add(nested, group, arguments[1:2] if arguments[:1] == [name] else [])
    return parser


def _add(parsers: argparse._SubParsersAction, commands: dict[str, _Command], wanted: list[str]) -> None:
    for name, command in commands.items():
        parser = parsers.add_parser(name, help=command.help)
        if name in wanted:
            module = importlib.import_module(command.module)
            module.add_arguments(parser)
            parser.set_defaults(run=module.run)


def _run_host(mode: str, *arguments: str) -> None:
    host: Callable[..., None] = importlib.import_module("dens_plugin.launch").launch
    host(_HOST_MODES[mode][0], list(arguments))


def _one_line(error: BaseException) -> str:
    """The message; of an error in a loader's worker what comes last, after that process's traceback."""
    told = _OF_WORKER.match(str(error))
    return " ".join((told[2] if told else str(error)).split()) or type(error).__name__


if __name__ == "__main__":
    main()

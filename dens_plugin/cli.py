"""The command `dens`: fairchem's modes with this package loaded, and what comes before and after training.

Anything a person can put right ends in one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import lmdb
import yaml

import dens_plugin
from dens_plugin.commands.modes import MODES, run_mode

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
    "evaluate": _Command("dens_plugin.inference.evaluate", "errors and predictions of a checkpoint for a file"),
    "nve": _Command("dens_plugin.inference.dynamics", "a short NVE run and the drift of its energy"),
    "configs": _Command("dens_plugin.commands.configs", "the configs that come with the package"),
    "init": _Command("dens_plugin.commands.init", "write a config for a data set and a model"),
    "demo": _Command("dens_plugin.demo", "synthetic data, a small model with and without DeNS, and a report"),
}
_DATA = {
    "oc20": _Command("dens_plugin.data.oc20", "the OC20 S2EF release to LMDBs"),
    "synthetic": _Command("dens_plugin.data.synthetic", "relaxations of random slabs by EMT, in the release's layout"),
    "molecules": _Command("dens_plugin.data.molecules.command", "sets of molecules, or files of your own, to LMDBs"),
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
    if arguments and arguments[0] in MODES:
        run_mode(arguments[0], arguments[1:])
        return
    if arguments == ["--version"]:
        print(_versions())
        return
    args = _parser(arguments).parse_args(arguments)
    args.run(args)


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser of our own commands; only the module of the one that is asked for is imported."""
    parser = _Parser(prog="dens", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="store_true", help="print versions and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, mode in MODES.items():
        commands.add_parser(name, help=f"{mode.help} (fairchem's options)")
    _add(commands, _OWN, arguments[:1])
    for name, group, text in (
        ("data", _DATA, "make and check data sets"),
        ("submission", _SUBMISSION, "make and verify leaderboard files"),
    ):
        nested = commands.add_parser(name, help=text).add_subparsers(metavar="COMMAND", required=True)
        _add(nested, group, arguments[1:2] if arguments[:1] == [name] else [])
    return parser


def _versions() -> str:
    """This package's version and those that matter beside it, without importing them."""
    installed = {each.name: each.version for each in importlib.metadata.distributions()}
    others = [f"{name} {installed.get(name, 'missing')}" for name in ("fairchem-core", "torch", "numpy")]
    return f"dens_plugin {dens_plugin.__version__} ({', '.join(others)}, Python {platform.python_version()})"


def _add(parsers: argparse._SubParsersAction, commands: dict[str, _Command], wanted: list[str]) -> None:
    for name, command in commands.items():
        parser = parsers.add_parser(name, help=command.help)
        if name in wanted:
            module = importlib.import_module(command.module)
            module.add_arguments(parser)
            parser.set_defaults(run=module.run)


def _one_line(error: BaseException) -> str:
    """The message; of an error in a loader's worker what comes last, after that process's traceback."""
    told = _OF_WORKER.match(str(error))
    return " ".join((told[2] if told else str(error)).split()) or type(error).__name__


if __name__ == "__main__":
    main()

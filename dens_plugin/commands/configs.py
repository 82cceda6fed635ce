"""`dens configs`: the configs that come with the package."""

from __future__ import annotations

import argparse

from dens_plugin.config_files import find_config, packaged_folder, packaged_names, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dens configs`."""
    parser.add_argument("name", nargs="?", help="a config to print, or a folder such as `experiment` to list")
    parser.add_argument("--path", action="store_true", help="print where the configs are")


def run(args: argparse.Namespace) -> None:
    """List configs, with what each is for, or print one.

    Raises:
        FileNotFoundError: if there is no config of that name.
    """
    if args.path:
        print(packaged_folder() if args.name is None else find_config(args.name))
        return
    names = packaged_names()
    chosen = [name for name in names if args.name is None or name.startswith(args.name.strip("/") + "/")]
    if not chosen:
        print(find_config(args.name).read_text(), end="")
        return
    width = max(map(len, chosen))
    for name in chosen:
        print(f"{name:{width}}  {summary(packaged_folder() / name)}")

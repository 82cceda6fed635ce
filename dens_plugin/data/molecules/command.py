"""The command line of ``dens data molecules``."""

from __future__ import annotations

import argparse
from pathlib import Path

from dens_plugin.data.molecules.conversion import CORMORANT, Options, convert
from dens_plugin.data.molecules.references import CHOICES as REFERENCES
from dens_plugin.data.molecules.shipped import PREFIX, shipped_names
from dens_plugin.data.molecules.split import parse_sizes
from dens_plugin.data.molecules.units import CHOICES
from dens_plugin.data.structures import Keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dens data molecules``."""
    parser.add_argument(
        "src",
        metavar="SRC",
        help="npz of MD17, rMD17, sGDML or MD22, extxyz[.xz], xyz, ASE database, HDF5 of ANI-1, ANI-1x or SPICE, QM9 "
        f"as archive or folder, ISO17's folder, PyG's root, or {PREFIX}NAME (NAME: {', '.join(shipped_names())})",
    )
    parser.add_argument("out", metavar="OUT", help="folder to make, with train, val and test")
    _add_split(parser)
    _add_labels(parser)
    parser.add_argument("--mixed", action="store_true", help="frames may have different compositions")
    parser.add_argument("--drop-duplicates", action="store_true", help="leave out frames that came before")
    parser.add_argument(
        "--exclude",
        metavar="FILE",
        help="frames to leave out, a number per line: QM9's uncharacterized.txt (numbers from 1; taken by itself where "
        "it lies beside the data), for other data indices from 0",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> None:
    """Do what ``dens data molecules`` was asked for."""
    is_named = args.split is not None and args.split.isalpha()
    options = Options(
        sizes=None if args.split is None or is_named else parse_sizes(args.split),
        seed=args.seed,
        units=args.units,
        reference=args.reference,
        mixed=args.mixed,
        drop_duplicates=args.drop_duplicates,
        test_units=args.test_units,
        split_by=args.split_by,
        published=args.split if is_named else None,
        keys=Keys(args.energy_key, args.forces_key, args.molecule_key, tuple(args.targets)),
        exclude=None if args.exclude is None else Path(args.exclude),
        energies_only=args.energies_only,
    )
    print(convert(args.src, args.out, options, test=args.test, split_files=args.split_file, progress=not args.quiet))


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        metavar="TRAIN,VAL[,TEST]",
        help="frames to draw, as numbers or as shares (0.8,0.1), the rest is for test (default: the split that comes "
        f"with the data, else 950,50); or {CORMORANT}, the published split of QM9",
    )
    parser.add_argument(
        "--split-by",
        choices=("frames", "molecules", "conformations"),
        default="frames",
        help="what --split counts: frames; whole molecules, so that none is in two parts; or a share of every "
        "molecule's frames (default: frames)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    parser.add_argument(
        "--split-file",
        nargs="+",
        default=[],
        metavar="FILE",
        help="a published split: split.npz of an OUT, npz or json with train, val[, test], or rMD17's csv for training "
        "[and that for test], of whose training frames --split gives some to validation",
    )
    parser.add_argument("--test", metavar="FILE", help="another file, for test, instead of the rest of SRC")


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--units", choices=CHOICES, help="of SRC, where it does not say itself; positions in Å")
    parser.add_argument("--test-units", choices=CHOICES, help="of the file for test (default: as --units)")
    parser.add_argument("--energy-key", metavar="NAME", help="what SRC calls energies, e.g. REF_energy")
    parser.add_argument("--forces-key", metavar="NAME", help="what SRC calls forces, e.g. dft_forces")
    parser.add_argument("--molecule-key", metavar="NAME", help="what tells molecules apart (default: smiles, name)")
    parser.add_argument("--targets", nargs="+", default=[], metavar="NAME", help="more labels of a structure to keep")
    parser.add_argument("--energies-only", action="store_true", help="leave out forces, or do without them")
    parser.add_argument(
        "--reference",
        default="auto",
        metavar=REFERENCES,
        help="energy to subtract: auto (free atoms where the set has them, the mean of one composition, else a fit per "
        "element), mean, none, elements (a fit), a number in eV, or a json file with eV per element (default: auto)",
    )

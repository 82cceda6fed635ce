"""Made-up data in the layout of the OC20 S2EF release: ``dens data synthetic OUT``.

For demonstrations and tests without a download: relaxations of random adsorbates on random fcc slabs with ASE's EMT
(:mod:`dens_plugin.data.slabs`), in three splits:

- ``OUT/train``,
- ``OUT/val_id``: blocks of consecutive frames of the same relaxations, held out of ``train``,
- ``OUT/val_ood``: other systems.

The reference energy in the logs is a sum of one number per element, from a least-squares fit to the energies of the
last frame of every relaxation (the solution of least norm where the systems do not determine it), so that the energies
after subtraction are of the order of an eV, as those of OC20 are.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from ase import Atoms
from tqdm import tqdm

from dens_plugin.data.lmdb_file import PART
from dens_plugin.data.output import require_makeable
from dens_plugin.data.release import LogLine, write_raw_file
from dens_plugin.data.slabs import draw_relaxation
from dens_plugin.settings import count

_BLOCK = 6  # frames
_HELD_OUT = (5, 2)  # of every 5 blocks, number 2 is held out
_OOD_SHARE = 5  # a system in val_ood for every so many in train
_ELEMENTS = 119

_Frame = tuple[Atoms, LogLine]


def generate(
    out: str | PathLike, *, systems: int = 24, max_steps: int = 60, seed: int = 0, progress: bool = True
) -> None:
    """Make a small data set with the layout of the OC20 S2EF release.

    Args:
        out: Folder to make; gets ``train``, ``val_id`` and ``val_ood``.
        systems: Number of relaxations in ``train``; ``val_ood`` has a fifth as many others, at least one.
        max_steps: Most optimiser steps of a relaxation.
        seed: The data are a function of these numbers and the seed.
        progress: Show a progress bar.

    Raises:
        ValueError: If ``out`` is not empty or cannot be made, or a number is too small.
    """
    out = Path(out).absolute()
    _require_sensible(out, systems=systems, max_steps=max_steps, seed=seed)
    total = systems + max(1, systems // _OOD_SHARE)
    # A system's generator depends on its own number: more systems leave the first ones as they are.
    relaxations = [
        draw_relaxation(np.random.default_rng([seed, system]), max_steps=max_steps)
        for system in tqdm(range(total), desc="relaxing with EMT", unit="system", disable=None if progress else True)
    ]
    part = out.with_name(out.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    _write(part, _with_logs(relaxations), systems)
    part.replace(out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dens data synthetic``."""
    parser.add_argument("out", metavar="OUT", help="folder to make; gets train, val_id and val_ood")
    parser.add_argument("--systems", type=int, default=24, metavar="N", help="relaxations in train (default: 24)")
    parser.add_argument("--max-steps", type=int, default=60, metavar="N", help="steps of a relaxation (default: 60)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> None:
    """Do what ``dens data synthetic`` was asked for."""
    generate(args.out, systems=args.systems, max_steps=args.max_steps, seed=args.seed, progress=not args.quiet)


def _require_sensible(out: Path, *, systems: int, max_steps: int, seed: int) -> None:
    count(systems, "--systems", least=1)
    count(max_steps, "--max-steps", least=2)
    count(seed, "--seed", least=0)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: give another OUT, or delete it first.")
    require_makeable(out)


def _with_logs(relaxations: Sequence[list[Atoms]]) -> list[list[_Frame]]:
    references = _fit_references([frames[-1] for frames in relaxations])
    return [
        [(atoms, LogLine(sid, fid, float(_composition(atoms) @ references))) for fid, atoms in enumerate(frames)]
        for sid, frames in enumerate(relaxations)
    ]


def _fit_references(relaxed: Sequence[Atoms]) -> np.ndarray:
    """Reference energy per element in eV, index = atomic number, shape (119,)."""
    compositions = np.stack([_composition(atoms) for atoms in relaxed])  # (B, 119)
    energies = np.array([atoms.get_potential_energy() for atoms in relaxed])  # (B,)
    return np.linalg.lstsq(compositions, energies, rcond=None)[0]


def _composition(atoms: Atoms) -> np.ndarray:
    return np.bincount(atoms.numbers, minlength=_ELEMENTS)  # (119,)


def _write(folder: Path, relaxations: Sequence[list[_Frame]], systems: int) -> None:
    for name in ("train", "val_id", "val_ood"):
        (folder / name).mkdir(parents=True)
    for number, frames in enumerate(relaxations[:systems]):
        train, held_out = _split(frames)
        write_raw_file(folder / "train", number, train)
        write_raw_file(folder / "val_id", number, held_out)
    for number, frames in enumerate(relaxations[systems:]):
        write_raw_file(folder / "val_ood", number, frames)


def _split(frames: Sequence[_Frame]) -> tuple[list[_Frame], list[_Frame]]:
    """Frames to train on and frames held out, in blocks so that the latter have few near twins among the former."""
    of, held_out = _HELD_OUT
    block = min(_BLOCK, math.ceil(len(frames) / of))  # short relaxations have short blocks
    is_held_out = [i // block % of == held_out for i in range(len(frames))]
    train = [frame for frame, out in zip(frames, is_held_out, strict=True) if not out]
    return train, [frame for frame, out in zip(frames, is_held_out, strict=True) if out]

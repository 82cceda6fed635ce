"""The structures to relax: each with a name that no other has, without labels, in shares for any number of ranks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from fairchem.core.common import distutils
from torch_geometric.data import Data

from dens_plugin.data.overlap import ONE_PLACE, OVERLAP_REMEDY, overlap_of
from dens_plugin.fields import structure_name

if TYPE_CHECKING:
    from torch.utils.data import Dataset

_ENERGY_NAMES = ("energy_relaxed", "y_relaxed")  # the second in old LMDBs
_LABELS = ("energy", "forces", "stress", "y", "y_init", "force", "pos_relaxed", *_ENERGY_NAMES)
_EDGES = ("edge_index", "cell_offsets", "distances", "neighbors")  # of the unrelaxed structure
_CONTENT = ("atomic_numbers", "pos", "cell", "fixed")
_NEUTRAL = ("fixed", "tags")  # zero where a data set has none
_LONGEST_NAME = 200  # file systems take 255 bytes


class Entry(NamedTuple):
    """A structure of the data set.

    Attributes:
        place: its index there.
        sid: its system.
        fid: its frame of the system; empty where the data set has none.
        natoms: its number of atoms.
        highest: its highest atomic number.
        fields: what a model sees of it.
        has_fixed: whether the data set says which atoms are fixed.
        digest: of elements, positions, cell and fixed atoms.
        problem: why it cannot be relaxed; empty if it can.
        doubt: why it should not be; empty if nothing is known against it.
    """

    place: int
    sid: str
    fid: str
    natoms: int = 0
    highest: int = 0
    fields: frozenset[str] = frozenset()
    has_fixed: bool = True
    digest: str = ""
    problem: str = ""
    doubt: str = ""


class Inputs(NamedTuple):
    """All structures of a data set, sorted by name.

    Attributes:
        entries: one a structure.
        names: of each: its ``sid``, or ``sid_fid`` in a data set with several frames of a system.
    """

    entries: tuple[Entry, ...]
    names: tuple[str, ...]

    @classmethod
    def from_entries(cls, entries: Sequence[Entry]) -> Inputs:
        """Give every structure its name.

        Raises:
            ValueError: for no structures, one that cannot be relaxed, or two of the same name.
        """
        if not entries:
            raise ValueError("dataset.relax.src holds no structures")
        problems = [entry.problem for entry in entries if entry.problem]
        if problems:
            more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
            raise ValueError(f"dataset.relax.src: {problems[0]}{more}; `dens data check` says more")
        _require_alike(entries)
        names = [entry.sid for entry in entries]
        if len(set(names)) < len(names):
            names = [f"{entry.sid}_{entry.fid}" if entry.fid else entry.sid for entry in entries]
        _require_names(names)
        order = sorted(range(len(entries)), key=names.__getitem__)
        return cls(tuple(entries[at] for at in order), tuple(names[at] for at in order))

    def identity(self) -> dict[str, Any]:
        """How many structures these are and a digest of their names and contents, in whatever order and format."""
        digest = hashlib.blake2b(digest_size=16)
        for name, entry in zip(self.names, self.entries, strict=True):
            digest.update(f"{name}\0{entry.digest}\0".encode())
        return {"structures": len(self.names), "digest": digest.hexdigest()}

    def batches(self, names: Collection[str], rank: int, world_size: int, batch_size: int) -> list[list[int]]:
        """A rank's share of some structures: the largest first, structures of a batch alike in size.

        Args:
            names: of the structures that all ranks are to relax.
            rank: whose share.
            world_size: the number of ranks.
            batch_size: structures per batch.

        Returns:
            Positions in `entries`.
        """
        wanted = [at for at, name in enumerate(self.names) if name in names]
        wanted.sort(key=lambda at: (-self.entries[at].natoms, at))
        share = wanted[rank::world_size]
        return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]


def gather_inputs(dataset: Dataset) -> list[Entry]:
    """Look at every structure of a data set, each rank at its share; on rank 0 all of them, on others nothing."""
    indices = range(distutils.get_rank(), len(dataset), distutils.get_world_size())
    own = [_entry(dataset[index], index) for index in indices]
    gathered = distutils.gather_objects(own)
    return [entry for entries in gathered or [] for entry in entries]


def without_labels(structure: Data) -> Data:
    """What a model may see of a structure: no labels, no edges of other positions, and neutral values where absent."""
    kept = Data(**{key: value for key, value in structure.to_dict().items() if key not in (*_LABELS, *_EDGES)})
    kept.pos = structure.pos.float()
    for key in _NEUTRAL:
        if key not in kept:
            kept[key] = torch.zeros(len(kept.pos), dtype=torch.long)
    return kept


def relaxed_labels(structure: Data) -> tuple[float, np.ndarray]:
    """Energy in eV and positions (N, 3) Å of the relaxed structure; NaN where the data set does not know them."""
    energy = next((structure[name] for name in _ENERGY_NAMES if structure.get(name) is not None), np.nan)
    pos = structure.get("pos_relaxed")
    nowhere = np.full((len(structure.pos), 3), np.nan, dtype=np.float32)
    return float(energy), nowhere if pos is None else np.asarray(pos, dtype=np.float32)


def _entry(structure: Data, index: int) -> Entry:
    entry = Entry(index, sid=_text(structure.get("sid")), fid=_text(structure.get("fid")))
    problem = _problem(structure)
    if problem:
        where = structure_name(structure) or f"the structure at {index}"
        return entry._replace(problem=f"{where} {problem}")
    close = overlap_of(structure)
    if close is not None and close.distance <= ONE_PLACE:
        where = structure_name(structure) or f"the structure at {index}"
        return entry._replace(problem=f"{where} has {close}, where they feel no force; {OVERLAP_REMEDY}")
    content = hashlib.blake2b(digest_size=16)
    for key in _CONTENT:
        if key in structure:
            content.update(np.ascontiguousarray(np.asarray(structure[key], dtype=np.float64)).tobytes())
    return entry._replace(
        natoms=len(structure.pos),
        highest=int(structure.atomic_numbers.max()),
        fields=frozenset({*structure.to_dict()} - {*_LABELS, *_EDGES, *_NEUTRAL}),
        has_fixed="fixed" in structure,
        digest=content.hexdigest(),
        doubt="" if close is None else f"has {close}; {OVERLAP_REMEDY}",
    )


def _problem(structure: Data) -> str:
    """Why a structure cannot be relaxed; empty if it can."""
    natoms = len(structure.pos)
    if structure.get("sid") is None:
        return "has no `sid`, by which its result could be found"
    if natoms == 0:
        return "has no atoms"
    if not torch.isfinite(structure.pos).all():
        return "has positions that are NaN or infinite"
    for key in ("atomic_numbers", "fixed", "tags", "pos_relaxed"):
        if structure.get(key) is not None and len(structure[key]) != natoms:
            return f"has {len(structure[key])} rows of `{key}` for {natoms} atoms"
    return ""


def _require_alike(entries: Sequence[Entry]) -> None:
    """All structures need the same fields to form batches."""
    for entry in entries:
        differing = entry.fields ^ entries[0].fields
        if differing:
            raise ValueError(
                f"dataset.relax.src: only some structures have `{min(differing)}`, as sid {entry.sid} shows; all must, "
                "or none"
            )


def _require_names(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"dataset.relax.src holds {len(twice)} identifiers more than once, first '{twice[0]}': a result could not "
            "be told from another; give every structure a `sid`, or `sid` and `fid`, of its own"
        )
    longest = max(names, key=len)
    if not longest or len(quote(longest, safe="")) > _LONGEST_NAME:
        raise ValueError(f"dataset.relax.src: the identifier '{longest}' is empty or too long for the name of a file")


def _text(identifier: Any) -> str:
    if identifier is None:
        return ""
    return str(identifier.reshape(-1)[0].item() if torch.is_tensor(identifier) else identifier)

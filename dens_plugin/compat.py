"""The one file that knows versions of torch, PyG, SciPy and fairchem-core, and evens them out.

`prepare_host` is called before fairchem's models are imported. Each of its steps does nothing where fairchem already
works: a compiled ``pyg-lib`` or ``torch-cluster``, an older SciPy, torch 2.4, a batch of one periodicity.
"""

from __future__ import annotations

import codecs
import importlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.special
import torch
import torch_geometric.typing
from torch_geometric.utils import to_dense_batch

from dens_plugin.cells import complete_cells, flat_cells
from dens_plugin.config_files import find_include
from dens_plugin.fields import structure_name, structure_names

if TYPE_CHECKING:
    from torch_geometric.data import Batch


TRUST = "DENS_TRUST_FILES"  # environment variable: 1 for files that may run code

_FOREIGN = re.compile(r"GLOBAL (\S+)")
_LONGEST_REASON = 200


def prepare_host() -> None:
    """Make fairchem-core 1.10 whole on this machine.

    SciPy's old name, graphs with open boundaries without pyg-lib, and batches of structures of several periodicities.
    Configs may include those of this package by their names, wherever they lie.
    """
    _restore_sph_harm()
    _replace_searches()
    _find_packaged_includes()


def load_checkpoint(
    path: str | Path, map_location: str | torch.device = "cpu", *, on_demand: bool = False, trusted: bool = False
) -> dict[str, Any]:
    """Read a checkpoint written by fairchem, by the authors' code or by this package.

    Args:
        path: the file.
        map_location: where tensors go.
        on_demand: read weights only when they are used, where the file's format allows it.
        trusted: whether the file may run code of its own, as any pickle can: see `read_tensors`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint, was cut short, or holds objects that need trust.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at '{path}'; give the path of a .pt file")
    problem = None if on_demand else damage(path)
    if problem is not None:
        raise ValueError(
            f"the checkpoint '{path}' is damaged or was cut short ({problem}); take another, such as the one before it"
        )
    mmap = on_demand and zipfile.is_zipfile(path)
    checkpoint = read_tensors(path, map_location, mmap=mmap, trusted=trusted)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not the dictionary of a checkpoint")
    return checkpoint


def require_weights(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise ValueError for a file that holds a dictionary and no weights in it.

    Args:
        checkpoint: of `load_checkpoint`.
        path: its name for people.
    """
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        held = ", ".join(map(str, list(checkpoint)[:3])) or "nothing"
        raise ValueError(
            f"'{path}' has no `state_dict` but {held}: give a checkpoint that a training wrote, or convert this one "
            "with `dens convert`"
        )


def read_tensors(
    path: str | Path, map_location: str | torch.device = "cpu", *, mmap: bool = False, trusted: bool = False
) -> Any:
    """Read a ``.pt`` file of tensors, NumPy's numbers, fairchem's normalisers and plain settings.

    A pickle may run any code when it is read. Whatever else a file holds is refused, unless the caller or the
    environment variable ``DENS_TRUST_FILES=1`` says that its source is trusted.

    Raises:
        ValueError: if the file cannot be read, or needs trust.
    """
    may_run_code = trusted or os.environ.get(TRUST) == "1"
    try:
        with _harmless_types_known():
            return torch.load(path, map_location=map_location, mmap=mmap, weights_only=not may_run_code)
    except Exception as error:  # torch raises a different type for each way in which a file can be broken
        other = _other_content(Path(path))
        if other is not None:
            raise ValueError(f"'{path}' {other}; give the path of a .pt file that a training wrote") from error
        foreign = _FOREIGN.search(str(error))
        if foreign is not None:
            raise ValueError(
                f"'{path}' holds more than weights and settings ({foreign[1]}), and reading that can run code: if you "
                f"trust where the file comes from, set the environment variable {TRUST}=1 (docs/trust.md)"
            ) from error
        what = " ".join(str(error).partition("Check the documentation")[0].split())[-_LONGEST_REASON:]
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint ({what or type(error).__name__}); it may have been cut short: "
            "take an older one"
        ) from error


def _other_content(path: Path) -> str | None:
    """What a file holds that is no checkpoint, in words; None for one that could be the beginning of one."""
    if path.stat().st_size == 0:
        return "is empty"
    with open(path, "rb") as file:
        head = file.read(512)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return (
            None
            if any(name.endswith("data.pkl") for name in names)
            else f"is an archive without weights ({', '.join(names[:3])})"
        )
    if head.startswith((b"PK", b"\x80")):  # an archive that was cut, or a pickle
        return None
    if not head.strip(b"\0"):
        return "begins with zeros, as a file of which the disk has lost the content"
    return "is no checkpoint but text" if _is_text(head) else "is no checkpoint but a file of another kind"


def _is_text(head: bytes) -> bool:
    """Whether the beginning of a file is one of text: nothing but printable bytes."""
    printable = set(range(32, 127)) | {9, 10, 13}
    text = head.decode(errors="replace").removesuffix("\ufffd")  # a letter may be cut at the end
    return "\ufffd" not in text and all(byte in printable or byte > 127 for byte in head)


@contextmanager
def _harmless_types_known() -> Iterator[None]:
    """Within the context, torch takes NumPy's numbers and arrays and fairchem's two transforms for plain data."""
    normalizer = importlib.import_module("fairchem.core.modules.normalization.normalizer").Normalizer
    references = importlib.import_module("fairchem.core.modules.normalization.element_references").LinearReferences
    rebuild, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "?", "U1")]
    before = torch.serialization.get_safe_globals()
    harmless = [normalizer, references, rebuild, scalar, np.ndarray, np.dtype, codecs.encode, set, *dtypes]
    torch.serialization.add_safe_globals(harmless)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def damage(path: Path, *, own: bool = False) -> str | None:
    """What is wrong with a checkpoint file, by the checksums (CRC-32) that it holds of its parts; None if nothing.

    Args:
        path: the file.
        own: whether this package wrote it; else it may be in torch's format of before 2020, which holds no checksums.
    """
    if not (own or zipfile.is_zipfile(path) or path.read_bytes()[:2] == b"PK"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            names = archive.namelist()
    except Exception as error:  # a damaged archive raises whatever its bytes ask for, as a password or zlib's error
        return " ".join(str(error).split()) or type(error).__name__
    if own and broken is None and not any(name.endswith("data.pkl") for name in names):
        return "it is an archive of something else"
    return None if broken is None else f"the checksum of its part '{broken}' is wrong"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the ways in which torch, CUDA's libraries and the system say so."""
    words = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or any(sign in words for sign in signs)


def radius_graph(
    x: torch.Tensor,
    r: float,
    batch: torch.Tensor | None = None,
    loop: bool = False,
    max_num_neighbors: int = 32,
    **_: Any,
) -> torch.Tensor:
    """Edges between points of a structure at most ``r`` apart, the nearest ``max_num_neighbors`` of each.

    Unlike the compiled versions, which keep whichever neighbours they meet first, this one keeps the nearest.

    Args:
        x: (N, 3) positions in Å.
        r: cutoff in Å.
        batch: (N,) index of the structure of each point, sorted; one structure where not given.
        loop: whether a point is its own neighbour.
        max_num_neighbors: the most incoming edges that a point may have.

    Returns:
        (2, E) row 0 the neighbour, row 1 the centre, sorted by centre and distance.
    """
    batch = x.new_zeros(len(x), dtype=torch.long) if batch is None else batch
    dense, present = to_dense_batch(x, batch)  # (B, M, 3), (B, M)
    index, _ = to_dense_batch(torch.arange(len(x), device=x.device), batch)  # (B, M)
    distance = (dense.unsqueeze(2) - dense.unsqueeze(1)).norm(dim=-1)  # (B, M, M), row the centre
    allowed = present.unsqueeze(2) & present.unsqueeze(1) & (distance <= r)
    if not loop:
        allowed &= ~torch.eye(distance.shape[1], dtype=torch.bool, device=x.device)
    distance = distance.masked_fill(~allowed, torch.inf)
    nearest, order = distance.sort(dim=-1, stable=True)
    kept = torch.isfinite(nearest[..., :max_num_neighbors])
    source = index.unsqueeze(1).expand_as(distance).gather(2, order)[..., :max_num_neighbors]
    target = index.unsqueeze(2).expand_as(source)
    edges = torch.stack([source[kept], target[kept]])  # (2, E)
    return edges[:, edges[1].argsort(stable=True)]


def radius_graph_pbc(
    data: Batch,
    radius: float,
    max_num_neighbors_threshold: int,
    enforce_max_neighbors_strictly: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """fairchem's function of this name, for structures of any periodicities in one batch.

    fairchem reads the periodicity of a batch's first structure and takes it for that of all. Here it searches structure
    by structure where they differ. Zero vectors of cells along open directions are completed as in ASE.

    Args:
        data: the batch, which stays as it is.
        radius: cutoff in Å.
        max_num_neighbors_threshold: the most edges that end at an atom.
        enforce_max_neighbors_strictly: whether ties at this limit are cut.

    Returns:
        Edges (2, E) sorted by centre, their cell offsets (E, 3), and edges per structure (B,).

    Raises:
        ValueError: for a cell without volume along a periodic vector, naming its structure.
    """
    search = importlib.import_module("fairchem.core.common.utils").radius_graph_pbc
    options = (radius, max_num_neighbors_threshold, enforce_max_neighbors_strictly)
    flags = periodicity(data)
    cells = complete_cells(data.cell, flags)
    _require_volumes(data, cells, flags)
    whole = SimpleNamespace(pos=data.pos, natoms=data.natoms, cell=cells, pbc=flags)
    if (flags == flags[0]).all():
        return search(whole, *options)
    edges, offsets, neighbors = zip(*(search(part, *options) for part in _each(whole)), strict=True)
    starts = data.natoms.cumsum(dim=0) - data.natoms
    shifted = [edge_index + start for edge_index, start in zip(edges, starts, strict=True)]
    return torch.cat(shifted, dim=1), torch.cat(offsets), torch.cat(neighbors)


def _each(whole: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """The structures of a batch, one by one."""
    parts = (
        whole.pos.split(whole.natoms.tolist()),
        *(values.split(1) for values in (whole.natoms, whole.cell, whole.pbc)),
    )
    for pos, natoms, cell, pbc in zip(*parts, strict=True):
        yield SimpleNamespace(pos=pos, natoms=natoms, cell=cell, pbc=pbc)


def periodicity(data: Batch) -> torch.Tensor:
    """(B, 3) bool, along which vectors of its cell each structure is periodic: all, where a batch does not say."""
    if "pbc" not in data:
        return torch.ones(len(data.natoms), 3, dtype=torch.bool, device=data.pos.device)
    return data.pbc.view(-1, 3).bool()  # collated to (B * 3,) or (B, 3)


def _require_volumes(data: Batch, cells: torch.Tensor, periodic: torch.Tensor) -> None:
    flat = flat_cells(cells, periodic).nonzero().view(-1).tolist()
    if flat:
        names = structure_names(data, flat) if "ptr" in data else structure_name(data) or "a structure"
        raise ValueError(
            f"the cell of {names} has no volume and is periodic: give it one, or set pbc to false along vectors that "
            "are zero"
        )


def _has_compiled_radius_graph() -> bool:
    typing = torch_geometric.typing
    return bool(getattr(typing, "WITH_RADIUS", False) or getattr(typing, "WITH_TORCH_CLUSTER", False))


def _replace_searches() -> None:
    models: Any = importlib.import_module("fairchem.core.models.base")  # importing fairchem takes seconds
    models.radius_graph_pbc = radius_graph_pbc
    if not _has_compiled_radius_graph():
        models.radius_graph = radius_graph


def _restore_sph_harm() -> None:
    """SciPy 1.17 dropped `sph_harm`, whose arguments its successor takes in another order."""
    if not hasattr(scipy.special, "sph_harm"):
        scipy.special.sph_harm = lambda m, n, theta, phi: scipy.special.sph_harm_y(n, m, phi, theta)


def _find_packaged_includes() -> None:
    def find(name: str, folders: Sequence[str]) -> str:
        found = find_include(name, Path(folders[0]))
        if found is None:
            raise FileNotFoundError(f"there is no config file '{name}' to include, in '{folders[0]}' or in the package")
        return str(found)

    utils: Any = importlib.import_module("fairchem.core.common.utils")
    utils.find_relative_file_in_paths = find

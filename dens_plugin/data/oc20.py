"""The OC20 S2EF release as LMDB files for fairchem: ``dens data oc20 RAW OUT``.

RAW is one split in the layout of :mod:`dens_plugin.data.release`. OUT gets

- ``data.NNNN.lmdb``: the structures as ``torch_geometric`` graphs without edges, for fairchem's ``LmdbDataset``,
- ``data_log.NNNN.txt``: a line ``random<sid>,frame<fid>`` per structure of that LMDB,
- ``metadata.npz``: ``natoms``, by which fairchem balances batches,
- ``manifest.json``: from which files and with which options it was made.

The structures and their order depend on RAW alone: its files are taken by number and dealt to at most 128 LMDBs in
consecutive groups. Worker processes read the files, one at a time each; this process writes.

Until everything is there it lies in a folder ``OUT.part``, which becomes OUT in a single rename, so no reader takes an
unfinished data set for a whole one. After an interruption (Ctrl-C, a killed job, an error) the same command goes on
after the last finished LMDB; to give up instead, delete ``OUT.part``.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dens_plugin.data.lmdb_file import PART, LmdbWriter, write_metadata
from dens_plugin.data.output import require_makeable
from dens_plugin.data.raw_graphs import Options, RawGraphs, read_graphs
from dens_plugin.data.release import RawFile, raw_files, read_log
from dens_plugin.settings import count

_MAX_SHARDS = 128  # few enough to hold them all open in every loader process
_MANIFEST = "manifest.json"


def convert(
    raw: str | PathLike,
    out: str | PathLike,
    *,
    workers: int = 1,
    ref_energy: bool = True,
    test: bool = False,
    progress: bool = True,
) -> None:
    """Convert one split of the OC20 S2EF release to LMDB files.

    Args:
        raw: Folder with ``N.extxyz[.xz]`` and ``N.txt[.xz]``.
        out: Folder to make.
        workers: Number of processes that read; the result does not depend on it.
        ref_energy: Subtract the reference energies of the logs from the energies.
        test: The frames carry no energies and forces, the logs need no reference energies.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If ``raw`` is no such folder or a file lacks its partner.
        ValueError: If a file's content is bad or it is there twice, or ``out`` was made from something else or cannot
            be made.
    """
    count(workers, "--workers", least=1)
    raw, out, options = Path(raw), Path(out), Options(ref_energy, test)
    pairs = raw_files(raw)
    manifest = _manifest(pairs, options)
    if _is_finished(out, manifest):
        print(f"{out} is finished already; nothing to do.")
        return
    require_makeable(out)
    part = _open_part(out, manifest)
    with tqdm(
        total=len(pairs), unit="file", desc=f"{raw.name} -> {out.name}", disable=None if progress else True
    ) as bar:
        _write_shards(part, pairs, options, workers=workers, bar=bar)
    _finish(part, out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dens data oc20``."""
    parser.add_argument("raw", metavar="RAW", help="folder of one split: N.extxyz[.xz] and N.txt[.xz]")
    parser.add_argument("out", metavar="OUT", help="folder to make; run again to go on after an interruption")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read (default: 1)")
    parser.add_argument("--no-ref-energy", action="store_true", help="do not subtract the log's reference energies")
    parser.add_argument("--test-data", action="store_true", help="the frames carry no energies and forces")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> None:
    """Do what ``dens data oc20`` was asked for."""
    convert(
        args.raw,
        args.out,
        workers=args.workers,
        ref_energy=not args.no_ref_energy,
        test=args.test_data,
        progress=not args.quiet,
    )


def _manifest(pairs: Sequence[RawFile], options: Options) -> dict:
    sizes = {path.name: path.stat().st_size for pair in pairs for path in pair}
    return {"made_by": "dens data oc20", "options": options._asdict(), "files": sizes}


def _is_finished(out: Path, manifest: dict) -> bool:
    """Whether ``out`` is this very data set; an empty or missing folder is not.

    Raises:
        ValueError: If ``out`` is something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    path = out / _MANIFEST
    if not path.is_file():
        raise ValueError(f"{out} exists and was not made by `dens data oc20`: give another OUT, or delete it first.")
    _require_same(out, json.loads(path.read_text()), manifest)
    return True


def _require_same(folder: Path, found: dict, manifest: dict) -> None:
    for key, what in (("options", "with other options"), ("files", "from other files")):
        if found.get(key) != manifest[key]:
            raise ValueError(
                f"{folder} was made {what} ({_difference(found.get(key) or {}, manifest[key])}): "
                "give another OUT, or delete that folder first."
            )


def _without_sizes(manifest: dict) -> dict:
    return {**manifest, "files": dict.fromkeys(manifest["files"], "there")}


def _difference(found: dict, wanted: dict) -> str:
    name = next(name for name in (*wanted, *found) if found.get(name) != wanted.get(name))
    return f"{name}: {found.get(name, 'not there')} then, {wanted.get(name, 'not there')} now"


def _open_part(out: Path, manifest: dict) -> Path:
    """The folder for unfinished work, with its finished LMDBs kept.

    The options and the names of the files have to be the same as last time. Their sizes need not: each LMDB knows those
    of its own raw files, so that a repaired file costs no more than the LMDB it belongs to.
    """
    part = out.absolute().with_name(out.absolute().name + PART)
    path = part / _MANIFEST
    if path.is_file():
        _require_same(part, _without_sizes(json.loads(path.read_text())), _without_sizes(manifest))
    part.mkdir(parents=True, exist_ok=True)
    _write_json(path, manifest)
    return part


def _write_shards(part: Path, pairs: Sequence[RawFile], options: Options, *, workers: int, bar: tqdm) -> None:
    groups = np.array_split(np.arange(len(pairs)), min(len(pairs), _MAX_SHARDS))
    shards = {number: [pairs[i] for i in group] for number, group in enumerate(groups)}
    todo = {number: shard for number, shard in shards.items() if not _is_done(part, number, shard)}
    bar.update(len(pairs) - sum(map(len, todo.values())))
    files = [pair for shard in todo.values() for pair in shard]
    for pair in files:  # all logs before any frames: they are small, and a typo there should not take hours to show
        read_log(pair.log, need_reference=options.needs_reference)
    with ExitStack() as stack:
        parsed = _parse_all(files, options, workers=workers, stack=stack)
        for number, shard in todo.items():
            _write_shard(part, number, shard, (_counted(next(parsed), bar) for _ in shard))


def _counted(parsed: RawGraphs, bar: tqdm) -> RawGraphs:
    bar.update()
    return parsed


def _is_done(part: Path, number: int, shard: Sequence[RawFile]) -> bool:
    side = part / f"shard.{number:04d}.json"
    if not (side.is_file() and (part / f"data.{number:04d}.lmdb").is_file()):
        return False
    return json.loads(side.read_text())["files"] == _sizes(shard)


def _sizes(shard: Sequence[RawFile]) -> dict[str, int]:
    return {path.name: path.stat().st_size for pair in shard for path in pair}


def _write_shard(part: Path, number: int, shard: Sequence[RawFile], parsed: Iterator[RawGraphs]) -> None:
    """Write one LMDB and what belongs to it; the LMDB comes last, as the sign that all is there."""
    path = part / f"data.{number:04d}.lmdb"
    path.unlink(missing_ok=True)
    ids, natoms = [], []
    with LmdbWriter(path) as writer:
        for file in parsed:
            for record in file.records:
                writer.append(record)
            ids += file.ids
            natoms += file.natoms
        (part / f"data_log.{number:04d}.txt").write_text("".join(f"{line}\n" for line in ids))
        _write_json(part / f"shard.{number:04d}.json", {"files": _sizes(shard), "natoms": natoms})


def _finish(part: Path, out: Path) -> None:
    sides = sorted(part.glob("shard.*.json"))
    write_metadata(part, [n for side in sides for n in json.loads(side.read_text())["natoms"]])
    part.replace(out)
    for side in sides:
        (out / side.name).unlink()


def _write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(path.name + PART)
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal: workers die silently, this process reports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)


def _parse_all(pairs: Sequence[RawFile], options: Options, *, workers: int, stack: ExitStack) -> Iterator[RawGraphs]:
    """The parsed files in order, read here or by worker processes that end with the stack."""
    if workers == 1:
        return (read_graphs(pair, options) for pair in pairs)
    pool = ProcessPoolExecutor(workers, initializer=_start_worker)
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return _parse_in_pool(pool, pairs, options, window=2 * workers)


def _parse_in_pool(
    pool: ProcessPoolExecutor, pairs: Sequence[RawFile], options: Options, *, window: int
) -> Iterator[RawGraphs]:
    waiting: deque[Future[RawGraphs]] = deque()
    try:
        for pair in pairs:
            waiting.append(pool.submit(read_graphs, pair, options))
            if len(waiting) >= window:  # bounds the memory that results wait in
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A worker process was killed, most likely for lack of memory: run again with fewer --workers; "
            "finished LMDB files are kept."
        ) from error

"""Relaxing the structures of a data set with a trained model, as for IS2RE by relaxation: `relax`.

Each structure goes down to the nearest minimum with L-BFGS; the energy there is the prediction. The numbers are those
of fairchem's `ml_relax`; this adds what a run over 25,000 structures needs: it goes on where it was ended, on any
number of ranks, halves batches that do not fit, and leaves out no structure. The steps are `inputs`,
`potential`, `minimiser`, `folder` and `result`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from fairchem.core.common import distutils, gp_utils
from tqdm import tqdm

from dens_plugin.checks.dataset import require_files
from dens_plugin.checks.preflight import limits_of
from dens_plugin.data.molecules.physical import PhysicalEnergies
from dens_plugin.data.overlap import overlap
from dens_plugin.data.structures import from_data
from dens_plugin.relaxation.folder import RESULT, RelaxationFolder
from dens_plugin.relaxation.inputs import Entry, Inputs, gather_inputs, without_labels
from dens_plugin.relaxation.minimiser import NOT_FINITE, OUT_OF_MEMORY, Outcome, outcomes
from dens_plugin.relaxation.potential import ModelPotential, Potential, model_potential
from dens_plugin.relaxation.result import Relaxations, record_of
from dens_plugin.relaxation.settings import RelaxationSettings

if TYPE_CHECKING:
    from fairchem.core.trainers import OCPTrainer
    from torch.utils.data import Dataset


T = TypeVar("T")


def require_relaxable(config: Mapping[str, Any]) -> None:
    """Look at a config before a model is built.

    Args:
        config: as the command line has it, with ``dataset`` and ``task``.

    Raises:
        FileNotFoundError: if ``dataset.relax.src`` does not exist.
        ValueError: if it is not given, or settings make no sense.
    """
    datasets = config.get("dataset")
    block = (datasets.get("relax") if isinstance(datasets, Mapping) else None) or {}
    if not block.get("src"):
        raise ValueError("a relaxation needs structures: set dataset.relax.src, e.g. --dataset.relax.src=DATA")
    require_files(block, "relax")
    RelaxationSettings.from_config(config)


def relax(trainer: OCPTrainer, physical: PhysicalEnergies | None = None) -> Path:
    """Relax every structure of ``dataset.relax.src``; the same command goes on with what an earlier one left undone.

    Args:
        trainer: with the weights of a checkpoint and its ``relax_dataset``.
        physical: what is added to energies that are written; nothing by default.

    Returns:
        The folder with ``relaxed.npz`` (`Relaxations`), a record per structure and, where asked for, trajectories.

    Raises:
        ValueError: before compute is spent, for settings or structures that cannot be relaxed, or a folder that belongs
            to another relaxation.
    """
    physical = PhysicalEnergies(None) if physical is None else physical
    settings = RelaxationSettings.from_config(trainer.config)
    if gp_utils.initialized():
        raise ValueError("relaxations are shared out by structures, not by atoms; leave out --gp-gpus")
    device = torch.device(trainer.device)
    entries = gather_inputs(trainer.relax_dataset)
    inputs = _on_first_rank(lambda: _checked_inputs(trainer, entries), device)
    with model_potential(trainer) as potential:
        folder, undone = _on_first_rank(lambda: _opened(trainer, settings, inputs, potential, physical), device)
        relax_structures(
            trainer.relax_dataset,
            inputs,
            undone,
            potential=potential,
            settings=settings,
            folder=folder,
            physical=physical,
        )
    folder.wait(inputs.names)
    distutils.synchronize()
    _on_first_rank(lambda: _conclude(trainer, folder, inputs), device)
    return folder.path


def relax_structures(
    dataset: Dataset,
    inputs: Inputs,
    undone: set[str],
    *,
    potential: Potential,
    settings: RelaxationSettings,
    folder: RelaxationFolder,
    physical: PhysicalEnergies,
) -> None:
    """Relax this rank's share and write each structure when it is done.

    Args:
        dataset: with the structures.
        inputs: its structures by name.
        undone: names of those that all ranks are to relax.
        potential: energies and forces.
        settings: of the optimizer, and the batch size.
        folder: for the results.
        physical: what is added to energies that are written.
    """
    rank, world_size = distutils.get_rank(), distutils.get_world_size()
    batches = inputs.batches(undone, rank, world_size, settings.batch_size)
    with tqdm(
        total=sum(map(len, batches)), desc=f"rank {rank}", unit="structure", disable=None if rank == 0 else True
    ) as progress:
        for batch in batches:
            sources = {inputs.names[at]: dataset[inputs.entries[at].place] for at in batch}
            structures = {name: without_labels(source) for name, source in sources.items()}
            names = {id(structure): name for name, structure in structures.items()}
            for outcome in outcomes(list(structures.values()), potential, settings):
                name = names[id(outcome.structure)]
                _warn_of_failure(name, outcome)
                outcome = outcome.shifted(physical.missing(outcome.structure.atomic_numbers.tolist()))
                record = record_of(name, outcome, sources[name])
                folder.write(record, outcome, with_frames=settings.trajectory != "none")
                progress.update()


def _checked_inputs(trainer: OCPTrainer, entries: list[Entry]) -> Inputs:
    inputs = Inputs.from_entries(entries)
    limit = limits_of(trainer.model).elements
    strange = [name for name, entry in zip(inputs.names, inputs.entries, strict=True) if entry.highest >= limit]
    if strange:
        raise ValueError(f"the model knows the elements 1 to {limit - 1}, and {strange[0]} has another")
    doubtful = [(name, entry.doubt) for name, entry in zip(inputs.names, inputs.entries, strict=True) if entry.doubt]
    if doubtful:
        name, doubt = doubtful[0]
        logging.warning(f"{len(doubtful)} of {len(inputs.names)} structures overlap, of which {name} {doubt}")
    unmarked = sum(not entry.has_fixed for entry in inputs.entries)
    if unmarked:
        logging.warning(f"{unmarked} of {len(inputs.names)} structures have no `fixed`: all of their atoms may move")
    return inputs


def _opened(
    trainer: OCPTrainer,
    settings: RelaxationSettings,
    inputs: Inputs,
    potential: ModelPotential,
    physical: PhysicalEnergies,
) -> tuple[RelaxationFolder, set[str]]:
    """The folder, and the names of the structures that it has no result of."""
    everything = {**settings.identity, "seed": potential.seed}
    if physical.outputs:
        everything["energies"] = "physical"  # earlier versions wrote them without the reference
    manifest = {"settings": everything, "model": potential.identity(), "data": inputs.identity()}
    text = json.dumps(manifest, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=5).hexdigest()
    results = Path(trainer.config["cmd"]["results_dir"]).parent
    folder = RelaxationFolder(settings.out or results / f"relaxed-{digest}")
    folder.open(manifest)
    done = folder.finished(inputs.names)
    logging.info(f"Relaxing {len(inputs.names)} structures into {folder.path}; {len(done)} are done already")
    return folder, set(inputs.names) - done


def _conclude(trainer: OCPTrainer, folder: RelaxationFolder, inputs: Inputs) -> None:
    result = folder.finish(inputs.names)
    metrics = result.metrics()
    _log(result, metrics)
    if metrics and trainer.logger is not None:
        named = {f"{'is2re' if 'energy' in name else 'is2rs'}_{name}": value for name, value in metrics.items()}
        trainer.logger.log(named, step=trainer.step, split="val")
    logging.info(f"Wrote {folder.path / RESULT}; `dens convergence {folder.path}` says more")


def _log(result: Relaxations, metrics: Mapping[str, float]) -> None:
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in result.counts().items() if count)
    logging.info(f"{len(result.ids)} structures: {counts}")
    if metrics:
        logging.info(", ".join(f"{name}: {value:.4g}" for name, value in metrics.items()))


def _warn_of_failure(name: str, outcome: Outcome) -> None:
    status, natoms = outcome.status, len(outcome.structure.pos)
    if status == OUT_OF_MEMORY:
        logging.warning(f"{name} ({natoms} atoms) does not fit into memory, not even alone; the others go on")
    elif status == NOT_FINITE:
        logging.warning(f"{name} ({natoms} atoms) has energies or forces that are not finite; the others go on")
    else:
        known = from_data(outcome.structure)
        close = overlap(outcome.frames[-1].pos, known.cell, known.pbc)
        if close is not None:
            logging.warning(f"{name} ended with {close}: predictions for that are arbitrary; the others go on")


def _on_first_rank(work: Callable[[], T], device: torch.device) -> T:
    """The result of something that one rank does for all; its error is raised on all, so that none waits for it."""
    outcome: list[Any] = [None, None]
    if distutils.is_master():
        try:
            outcome[0] = work()
        except (ValueError, OSError) as error:
            outcome[1] = error
    distutils.broadcast_object_list(outcome, src=0, device=device)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]

"""Whether the steps of a run are recorded as CUDA graphs: ``optim.cuda_graph``, and what cannot be recorded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fairchem.core.common import gp_utils

from dens_plugin.settings import switch
from dens_plugin.training.capture import recorder_for
from dens_plugin.training.graphs import GraphedStep
from dens_plugin.training.optimizer import is_fused

if TYPE_CHECKING:
    from dens_plugin.training.trainable import Trainable

CUDA_GRAPH = "cuda_graph"  # key of ``optim``


def graphed_step(trainer: Trainable) -> GraphedStep | None:
    """The steps of a run by recordings; None, and a line in the log where that is no matter of course, without.

    Raises:
        ValueError: if ``optim.cuda_graph`` is neither true nor false.
    """
    wanted = trainer.config["optim"].get(CUDA_GRAPH)
    if wanted is not None and not switch(wanted, f"optim.{CUDA_GRAPH}"):
        return None
    recorder = recorder_for(trainer.device)
    if recorder is None:
        if wanted:
            logging.warning(f"optim.{CUDA_GRAPH}: true is for CUDA; on {trainer.device.type} it changes nothing.")
        return None
    reason = obstacle(trainer)
    if reason is not None:
        logging.log(logging.WARNING if wanted else logging.INFO, f"Steps are computed without CUDA graphs: {reason}.")
        return None
    logging.info(f"Steps are recorded as CUDA graphs (optim.{CUDA_GRAPH}: false computes them without).")
    return GraphedStep(trainer, recorder)


def obstacle(trainer: Trainable) -> str | None:
    """In words, why the steps of a run cannot be recorded; None if they can."""
    if gp_utils.initialized():
        return "ranks share a graph and exchange features within a step"
    if trainer.scaler is not None:
        return "the scaler of --amp decides on the CPU; precision: bf16 needs none and is faster"
    if not (is_fused(trainer.optimizer) and all("capturable" in group for group in trainer.optimizer.param_groups)):
        return "only torch's fused Adam and AdamW can leave out a bad step without asking the GPU"
    if trainer.ema is not None and trainer.ema.num_updates is not None:
        return "the averages' decay changes with the step"
    if len({(value.dtype, value.device) for value in trainer._unwrapped_model.parameters()}) > 1:
        return "the model's parameters are of several number types or on several devices"
    return None

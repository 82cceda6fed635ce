"""Whether the steps of a run are recorded as CUDA graphs: ``optim.cuda_graph``, and what cannot be recorded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common import gp_utils
from torch import nn

from dens_plugin.backbones.description import describe
from dens_plugin.backbones.equiformer_v2.checkpointing import RecomputedBlock
from dens_plugin.graphs.capture import recorder_for
from dens_plugin.settings import switch
from dens_plugin.training.loading import LOADER_GRAPH, PAD
from dens_plugin.training.optimizer import with_fused_step

CUDA_GRAPH = "cuda_graph"  # key of ``optim``


def is_graphed(model: nn.Module, optim: Mapping[str, Any], device: torch.device, *, has_scaler: bool) -> bool:
    """Whether to record the steps of a run, for which loaders must pad their batches; the log says so, or why not.

    Args:
        model: without DDP around it.
        optim: the config's block.
        device: of the model.
        has_scaler: whether there is a gradient scaler, as with fairchem's ``--amp``.

    Raises:
        ValueError: if ``optim.cuda_graph`` is neither true nor false.
    """
    wanted = optim.get(CUDA_GRAPH)
    if wanted is not None and not switch(wanted, f"optim.{CUDA_GRAPH}"):
        return False
    if recorder_for(device) is None:
        if wanted:
            logging.warning(f"optim.{CUDA_GRAPH}: true is for CUDA; on a {device.type} it changes nothing.")
        return False
    reason = obstacle(model, optim, has_scaler=has_scaler)
    if reason is not None:
        logging.log(logging.WARNING if wanted else logging.INFO, f"Steps are computed without CUDA graphs: {reason}.")
        return False
    logging.info(f"Steps are recorded as CUDA graphs, and batches are padded for them (optim.{CUDA_GRAPH}: false).")
    return True


def obstacle(model: nn.Module, optim: Mapping[str, Any], *, has_scaler: bool) -> str | None:
    """In words, why the steps of a run cannot be recorded; None if they can."""
    known = describe(model)
    options = with_fused_step(optim, model.parameters())["optimizer_params"]
    if gp_utils.initialized():
        return "ranks share a graph and exchange features within a step"
    if has_scaler:
        return "the scaler of --amp decides on the CPU; model.backbone.precision: bf16 needs none"
    if not (options.get("fused") and optim.get("optimizer", "AdamW") in ("Adam", "AdamW")):
        return "only torch's fused Adam and AdamW leave out a bad step without asking the CPU"
    if optim.get("ema_warmup"):
        return "the decay of the averages changes with the step (optim.ema_warmup)"
    if known.search is None:
        return f"the model finds neighbours itself, since {known.own_search}"
    for key in (LOADER_GRAPH, PAD):
        if optim.get(key) is False:
            return f"optim.{key} is false"
    if any(isinstance(module, RecomputedBlock) for module in model.modules()):
        return "blocks that are computed twice (activation_checkpoint) save the state of a generator"
    if len({(value.dtype, value.device) for value in model.parameters()}) > 1:
        return "the model's parameters are of several number types or on several devices"
    return None

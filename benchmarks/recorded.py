"""Steps and inferences of our networks as the trainer runs them, with the loader's neighbours; recorded or not."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from contestants import loss
from modes import Mode
from torch import nn
from torch_geometric.data import Batch

from dens_plugin.backbones.neighbours import with_neighbours
from dens_plugin.graphs.capture import Recorder
from dens_plugin.graphs.recordings import Recordings
from dens_plugin.objectives.base import Outputs
from dens_plugin.padding.buckets import Buckets
from dens_plugin.padding.budgets import Budget
from dens_plugin.padding.pad import pad
from dens_plugin.training.graphed_step import GraphedStep
from dens_plugin.training.loading import loader_search
from dens_plugin.training.losses import Loss
from dens_plugin.training.optimizer import with_fused_step

_ADAMW = {"weight_decay": 1e-3}
_CALLS = 5  # on one batch: three ordinary ones, of which the last is watched, and two replays


def loaded(network: nn.Module, batches: Sequence[Batch]) -> list[Batch]:
    """Batches with their neighbours, in memory that a GPU copies from without waiting.

    Raises:
        ValueError: if the network finds neighbours itself.
    """
    search = loader_search(network, {"loader_graph": True})
    if search is None:
        raise ValueError("the network finds neighbours itself, which cannot be recorded")
    return [_pinned(with_neighbours(batch, search)) for batch in batches]


def padded(batches: Sequence[Batch]) -> list[Batch]:
    """Batches with neighbours in the few sizes of a loader."""
    buckets = Buckets([Budget.of(batch) for batch in batches])
    return [_pinned(pad(batch, buckets.budget_for(Budget.of(batch)))) for batch in batches]


def _pinned(batch: Batch) -> Batch:
    return batch.pin_memory() if torch.cuda.is_available() else batch


class Trained:
    """What `GraphedStep` needs of a trainer, around one network, with the loss of all contestants.

    Args:
        network: ours.
        mode: of its products.
        rate: of learning.
    """

    seed, accumulate_steps, step = 0, 1, 0
    scaler = ema = clip_grad_norm = None

    def __init__(self, network: nn.Module, mode: Mode, rate: float = 2e-4) -> None:
        self.model = self._unwrapped_model = network
        self.device, self.mode = next(network.parameters()).device, mode
        options = with_fused_step({"optimizer_params": _ADAMW}, network.parameters())["optimizer_params"]
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=rate, **options)

    def coefficients(self) -> Mapping[str, float]:
        """None that change."""
        return {}

    def _without_ddp(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _forward(self, batch: Batch) -> Outputs:
        return self.model(batch)

    def loss(self, outputs: Outputs, batch: Batch, _coefficients: Any = None) -> Loss:
        """As all contestants' loss."""
        value = loss(outputs, batch)
        return Loss(value, ~torch.isfinite(value.detach()))

    def training_errors(self, _outputs: Outputs, _batch: Batch) -> dict[str, Any]:
        """None are watched."""
        return {}


def ordinary_step(trained: Trained, batches: Sequence[Batch]) -> Callable[[int], None]:
    """Given a round, a step on its batch with AdamW, kernel after kernel."""

    def step(number: int) -> None:
        trained.model.train()
        trained.optimizer.zero_grad(set_to_none=True)
        batch = copy.copy(batches[number]).to(trained.device, non_blocking=True)
        with trained.mode.products():
            trained.loss(trained._forward(batch), batch).value.backward()
        trained.optimizer.step()

    return step


def recorded_step(trained: Trained, batches: Sequence[Batch], recorder: Recorder) -> Callable[[int], None]:
    """The same by recordings, where each size was met before."""
    graphed = GraphedStep(trained, recorder)  # type: ignore[arg-type]  # a trainer's part that steps need

    def step(number: int) -> None:
        with trained.mode.products():
            graphed(copy.copy(batches[number]), is_first=True, is_last=True)

    return step


def inferences(
    trained: Trained, batches: Sequence[Batch], recorder: Recorder | None
) -> Callable[[int], dict[str, torch.Tensor]]:
    """Given a round, energy and forces of its batch, by recordings where there is a recorder."""

    def outputs(batch: Batch) -> dict[str, torch.Tensor]:
        with torch.no_grad(), trained.mode.products():
            found: dict[str, torch.Tensor] = trained.model(batch)
        return found

    if recorder is None:
        call: Callable[[Batch], dict[str, torch.Tensor]] = lambda batch: outputs(batch.to(trained.device))  # noqa: E731
    else:
        call = Recordings(outputs, recorder, trained.device, what="an inference")

    def infer(number: int) -> dict[str, torch.Tensor]:
        trained.model.eval()
        return call(copy.copy(batches[number]))

    return infer


def largest_difference(trained: Trained, batch: Batch, recorder: Recorder) -> float:
    """Of the loss and of the norm of the gradient, relative, between ordinary steps on a batch and their replays.

    Raises:
        RuntimeError: if nothing was recorded.
    """
    rates = [group["lr"] for group in trained.optimizer.param_groups]
    decays = [group["weight_decay"] for group in trained.optimizer.param_groups]
    for group in trained.optimizer.param_groups:
        group |= {"lr": 0.0, "weight_decay": 0.0}  # so that all steps are the same
    graphed = GraphedStep(trained, recorder)  # type: ignore[arg-type]
    with trained.mode.products():
        rows = [graphed(copy.copy(batch), is_first=True, is_last=True).values[[0, 2]] for _ in range(_CALLS)]
    for group, rate, decay in zip(trained.optimizer.param_groups, rates, decays, strict=True):
        group |= {"lr": rate, "weight_decay": decay}
    if len(graphed) == 0:
        raise RuntimeError("nothing was recorded; the log says why")
    return float(((rows[-1] - rows[0]) / rows[0]).abs().max())

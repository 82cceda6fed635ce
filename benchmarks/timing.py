"""Seconds of training steps and of inferences, contestants in turn.

A round is one batch through all contestants, one after the other; the order rotates from round to round, and every
round has another batch. What else the machine does then affects all of them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from contestants import CONTESTANTS, Contestant, loss
from modes import Mode, Pairing
from structures import Sample
from torch import nn

if TYPE_CHECKING:
    from torch_geometric.data import Batch

_SEED = 0

Actions = dict[str, Callable[[int], None]]  # contestant -> what it does in a round


def interleaved(
    actions: Mapping[str, Callable[[int], Any]], rounds: int, device: str, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of every action in every round, in an order that rotates.

    Args:
        actions: name -> what to do in a round, given its number.
        rounds: number of rounds.
        device: what to wait for.
        warm_up: rounds that come before and are not counted.
    """
    names = list(actions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            torch.manual_seed(_SEED + number + warm_up)
            gc.collect()
            elapsed = _elapsed(lambda: actions[name](number % rounds), device)  # noqa: B023  (called at once)
            if number >= 0:
                seconds[name].append(elapsed)
    return seconds


def warm_up_rounds(rounds: int, device: str) -> int:
    """On CUDA each batch once, since kernels are compiled for kinds of sizes; on a CPU one round."""
    return rounds if device == "cuda" else 1


class Stepper:
    """A training step: forward, loss, backward, and AdamW as the contestant's trainer sets it up.

    Args:
        contestant: makes the batches from samples, corrupted and, of ours, with neighbours, as in a loader's workers.
        network: of the contestant.
        samples: one for each round.
        mode: of the network.

    Attributes:
        of_gradients: seconds of every step so far that all but AdamW took.
    """

    def __init__(self, contestant: Contestant, network: nn.Module, samples: list[Sample], mode: Mode) -> None:
        self._network, self._mode, self._scaler = network, mode, mode.scaler()
        self._batches = [contestant.loaded(network, contestant.training_batch(sample)) for sample in samples]
        self._optimizer = torch.optim.AdamW(network.parameters(), **contestant.optimizer_params(network))
        self.of_gradients: list[float] = []

    def __call__(self, number: int) -> None:
        """One step on the batch of a round."""
        device = self._batches[number].pos.device.type
        self.of_gradients.append(_elapsed(lambda: self._write_gradients(self._batches[number]), device))
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _write_gradients(self, batch: Batch) -> None:
        self._network.train()
        self._optimizer.zero_grad(set_to_none=True)
        with self._mode.products():
            with self._mode.autocast():
                found = loss(self._network(batch), batch)
            self._scaler.scale(found).backward()


def step_actions(
    model: str, networks: Mapping[str, nn.Module], samples: list[Sample], pair: Pairing
) -> dict[str, Stepper]:
    """A training step of each contestant."""
    return {
        name: Stepper(CONTESTANTS[model][name], network, samples, pair.mode(name)) for name, network in networks.items()
    }


def inference_actions(networks: Mapping[str, nn.Module], samples: list[Sample], pair: Pairing) -> Actions:
    """Energy and forces of a clean batch, without an autograd graph being asked for."""
    return {name: _predictor(network, samples, pair.mode(name)) for name, network in networks.items()}


def _predictor(network: nn.Module, samples: list[Sample], mode: Mode) -> Callable[[int], None]:
    def predict(number: int) -> None:
        network.eval()
        with torch.no_grad(), mode.products(), mode.autocast():
            network(samples[number].clean)

    return predict


def _elapsed(action: Callable[[], None], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()

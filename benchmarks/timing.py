"""Seconds of training steps and of inferences, contestants in turn.

A round is one batch through all contestants, one after the other; the order rotates from round to round, and every
round has another batch. What else the machine does then affects all of them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from contestants import CONTESTANTS, loss
from modes import Mode, Pairing
from structures import Sample
from torch import nn

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


def step_actions(model: str, networks: Mapping[str, nn.Module], samples: list[Sample], pair: Pairing) -> Actions:
    """A training step: forward, loss, backward, AdamW. Batches are corrupted beforehand, as in a loader's workers."""
    return {name: _stepper(model, name, network, samples, pair.mode(name)) for name, network in networks.items()}


def inference_actions(networks: Mapping[str, nn.Module], samples: list[Sample], pair: Pairing) -> Actions:
    """Energy and forces of a clean batch, without an autograd graph being asked for."""
    return {name: _predictor(network, samples, pair.mode(name)) for name, network in networks.items()}


def _stepper(model: str, name: str, network: nn.Module, samples: list[Sample], mode: Mode) -> Callable[[int], None]:
    batches = [CONTESTANTS[model][name].training_batch(sample) for sample in samples]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=1e-3)
    scaler = mode.scaler()

    def step(number: int) -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        with mode.products():
            with mode.autocast():
                found = loss(network(batches[number]), batches[number])
            scaler.scale(found).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


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

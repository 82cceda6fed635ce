"""A training step as CUDA graphs: the processor asks for thousands of kernels once, and then for all of them at once.

A step is two recordings. The first goes from a batch to its loss and gradients, one for each `signature` of batches;
the second from gradients to weights and averages, the decision to leave a bad step out included, one for all. Between
them ranks sum what is in one tensor (`FlatGradients`): nothing that is recorded speaks with other ranks.

What differs from step to step is in tensors that stay where they are: the batch, learning rates, the objective's
coefficients. Random numbers follow torch's generator, which is seeded for every step: a replay takes its seed from
there and begins to count anew, as a step without a graph does.

The first batches of a signature are ordinary steps, which compile kernels and make constants; they go through the same
two functions, so that it makes no difference for a run when something is recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from fairchem.core.common import distutils

from dens_plugin.fields import Identifiers, identifiers, rows_of
from dens_plugin.graphs.flat_gradients import FlatGradients
from dens_plugin.graphs.recordings import Recordings
from dens_plugin.training.ledger import Entry, Figures
from dens_plugin.training.optimizer import clip_gradients, divide_shared_gradients, take_step, with_rates
from dens_plugin.training.step_random import seed_step

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.graphs.capture import Recorder, Recording
    from dens_plugin.training.trainable import Trainable

_NOBODY = Identifiers({}, 0)


class GraphedStep:
    """The steps of a run, as `TrainingLoop.optimise` takes them, by recordings where there are some.

    Args:
        trainer: with an optimiser that decides itself whether to leave a step out, and without a gradient scaler.
        recorder: of its device.
        others: recordings that hold the same weights.
    """

    def __init__(self, trainer: Trainable, recorder: Recorder, others: Sequence[Recordings] = ()) -> None:
        self._trainer, self._recorder, self._others = trainer, recorder, others
        self._model = trainer._unwrapped_model
        self._parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        device = trainer.device
        rate_type = torch.float32 if device.type == "cuda" else torch.float64  # of torch's kernel on CUDA
        self._rates = [torch.zeros((), dtype=rate_type, device=device) for _ in trainer.optimizer.param_groups]
        self._coefficients = {
            name: torch.zeros((), dtype=torch.float64, device=device) for name in trainer.coefficients()
        }
        self._bad = torch.zeros((), device=device)  # on how many ranks the last batch was bad
        self._spoilt = torch.zeros((), dtype=torch.bool, device=device)  # whether a batch of this step was
        self._gradients: FlatGradients | None = None
        self._to_gradients = Recordings(
            self._gradients_of,
            recorder,
            device,
            before=_share_counts,
            seed=lambda: seed_step(trainer.seed, trainer.step, "train"),
            what="a training step",
        )
        self._update_recorded: Recording | None = None
        self._has_stepped = self._has_tried = False  # whether the optimiser has, and whether this was to be recorded
        self._places: list[int] = []

    def __call__(self, batch: Batch, *, is_first: bool, is_last: bool) -> Figures:
        """From a batch to gradients and, with the last one of an optimiser step, to new weights and averages.

        Args:
            batch: as a loader made it.
            is_first: of those that a step accumulates.
            is_last: of them.
        """
        trainer, names = self._trainer, identifiers(batch)
        self._take_over_numbers()
        if is_first and trainer.accumulate_steps > 1 and self._gradients is not None:
            self._gradients.flat.zero_()
        figures = self._to_gradients(batch)
        values = figures.values
        if distutils.get_world_size() > 1:
            torch.distributed.all_reduce(self._bad)
        bad = self._bad > 0
        self._spoilt.copy_(bad if is_first else self._spoilt | bad)
        updated = self._to_weights() if is_last else values[2:5]
        if is_last and not self._places and len(self._to_gradients) > 0:
            self._places = self._addresses()
        values = torch.cat([values[:1], bad.double()[None], updated, values[5:]])
        return Figures(trainer.step, names, figures.errors, is_last, values)

    def __len__(self) -> int:
        """The number of sizes of batches that were recorded."""
        return len(self._to_gradients)

    def forget_what_moved(self) -> None:
        """Record anew if weights, averages or the optimiser's state are no longer where they were."""
        if self._places and self._places != self._addresses():
            logging.warning("Weights or averages were moved in memory; the graphs of the step are recorded again.")
            self._forget()

    def _take_over_numbers(self) -> None:
        for rate, group in zip(self._rates, self._trainer.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        for name, value in self._trainer.coefficients().items():
            self._coefficients[name].fill_(value)

    def _gradients_of(self, batch: Batch) -> Figures:
        """The figures of a batch whose counts are those of all ranks; its gradients are kept. This is recorded."""
        trainer = self._trainer
        if not self._model.training:
            trainer.model.train()
        with trainer._without_ddp():
            outputs = trainer._forward(batch)
        loss = trainer.loss(outputs, batch, self._coefficients)
        self._keep(torch.autograd.grad(loss.value / trainer.accumulate_steps, self._parameters, allow_unused=True))
        self._bad.copy_(loss.bad)
        errors = trainer.training_errors(outputs, batch)
        return Entry(trainer.step, _NOBODY, loss.value.detach(), loss.bad, errors).figures()

    def _keep(self, found: Sequence[torch.Tensor | None]) -> None:
        """Gradients of all parameters; ranks agree on those that have one, which with DDP all must."""
        is_alone = distutils.get_world_size() == 1
        used = [value is not None or not is_alone for value in found]
        before = [False] * len(used) if self._gradients is None else self._gradients.used
        if any(now and not then for now, then in zip(used, before, strict=True)):
            if self._to_gradients.is_recording:
                raise RuntimeError("a batch has gradients for parameters that those before it had none for")
            self._enlarge([now or then for now, then in zip(used, before, strict=True)])
        assert self._gradients is not None
        self._gradients.take(found, add=self._trainer.accumulate_steps > 1)

    def _enlarge(self, used: Sequence[bool]) -> None:
        """Make room for the gradients of more parameters."""
        old, self._gradients = self._gradients, FlatGradients(self._parameters, used)
        if old is not None:
            self._gradients.take(old.views, add=False)
        self._forget()

    def _forget(self) -> None:
        for recordings in (self._to_gradients, *self._others):
            recordings.forget()
        self._update_recorded, self._has_tried, self._places = None, False, []

    def _to_weights(self) -> torch.Tensor:
        """(3,) figures of the optimiser's step."""
        assert self._gradients is not None
        if distutils.get_world_size() > 1:
            self._gradients.flat.mul_(1 / distutils.get_world_size())
            torch.distributed.all_reduce(self._gradients.flat)
        if len(self._to_gradients) > 0 and self._has_stepped and not self._has_tried:  # a step makes its state
            self._update_recorded, self._has_tried = self._to_gradients.record(self._weights_of), True
        if self._update_recorded is None:
            self._has_stepped = True
            with self._recorder.beside():
                return self._weights_of()
        self._update_recorded.replay()
        return self._update_recorded.outputs

    def _weights_of(self) -> torch.Tensor:
        """(3,) norm, bad gradient and taken, from the gradients of all ranks; this is recorded."""
        trainer = self._trainer
        assert self._gradients is not None
        self._gradients.attach()
        divide_shared_gradients(trainer.model)
        norm = clip_gradients(self._parameters, trainer.clip_grad_norm)
        bad_gradient = ~torch.isfinite(norm) & ~self._spoilt
        leave_out = self._spoilt | bad_gradient
        with with_rates(trainer.optimizer, self._rates):
            take_step(trainer.optimizer, leave_out=leave_out)
        if trainer.ema is not None:
            trainer.ema.update()
        return torch.stack([norm.double(), bad_gradient.double(), (~leave_out).double()])

    def _addresses(self) -> list[int]:
        """Of everything that recordings hold and others could move."""
        trainer = self._trainer
        averages = trainer.ema.shadow_params if trainer.ema is not None else []
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        held = (*self._model.parameters(), *self._model.buffers(), *averages, *states)
        return [value.data_ptr() for value in held if isinstance(value, torch.Tensor)]


def _share_counts(batch: Batch) -> None:
    """Make the counts of a batch those of all ranks."""
    if distutils.get_world_size() == 1:
        return
    counts = [rows.count for rows in (rows_of(batch) or {}).values()]
    summed = torch.stack(counts)
    torch.distributed.all_reduce(summed)
    for count, value in zip(counts, summed, strict=True):
        count.copy_(value)

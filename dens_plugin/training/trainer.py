"""fairchem's trainer with an objective: it prepares the training batches, adds outputs and says which rows count.

The loop, optimiser, EMA, schedulers, DDP, AMP, logging, checkpoints and all modes are the host's. Validation,
prediction and relaxation never see a corrupted batch and are the host's entirely.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from fairchem.core.modules.loss import DDPLoss

import dens_plugin.backbones.equiformer_v2
import dens_plugin.data.md_lmdb  # noqa: F401  (both register short names)
from dens_plugin import compat
from dens_plugin.fields import Rows, rows_of
from dens_plugin.objectives.s2ef import S2EF
from dens_plugin.training.checkpoint import warm_start, warn_of_other_model
from dens_plugin.training.config import objective_from_config, without_switches
from dens_plugin.training.history import FILE_NAME, HistoryLogger
from dens_plugin.training.loader import PreparingCollater
from dens_plugin.training.losses import Term, require_finite_loss, term, total_loss
from dens_plugin.training.metrics import RowEvaluator, statistics
from dens_plugin.training.preflight import require_files, require_labels, require_model
from dens_plugin.training.steps import accumulate_steps, autocast_dtype, gradients_kept, lengthen_warmup

if TYPE_CHECKING:
    from fairchem.core.modules.evaluator import Evaluator
    from torch.utils.data import DataLoader, Dataset
    from torch_geometric.data import Batch

_DEFAULT_METRICS = {"energy": ["mae"], "forces": ["mae", "cosine_similarity", "magnitude_error"]}


@registry.register_trainer("dens")
@registry.register_trainer("denoising_forces")
class DeNSTrainer(EquiformerV2ForcesTrainer):
    """The host's trainer for any `Objective`; options beside the host's:

    - ``task.objective``: name and settings of the objective.
    - ``task.warm_start``: a checkpoint whose weights to start from.
    - ``optim.autocast``: ``bf16`` to run the model under bfloat16 autocast.
    - ``optim.accumulate_steps``: batches per optimiser step.

    Raises:
        ValueError: before the first step, for a config, data set or model that cannot be meant.
    """

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """The host's loop, whose last steps are saved even where no evaluation falls on them."""
        super().train(disable_eval_tqdm)
        self.save(checkpoint_file="checkpoint.pt", training_state=True)

    def load(self, inference_only: bool) -> None:
        """Read the objective, then everything else."""
        self.objective = S2EF() if inference_only else objective_from_config(self.config)
        self.config["model"] = without_switches(self.config["model"])
        self.config["task"].setdefault("prediction_dtype", "float32")  # the host's float16 rounds total energies
        self._autocast_dtype = autocast_dtype(self.config)
        super().load(inference_only)

    @staticmethod
    def _get_timestamp(device: torch.device, suffix: str | None) -> str:
        """A name for the run's folders that no other run has; the host's has a granularity of 128 s."""
        now = torch.tensor(time.time_ns() // 1_000_000, dtype=torch.int64, device=device)
        distutils.broadcast(now, 0)
        seconds, milliseconds = divmod(now.item(), 1000)
        name = f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d-%H-%M-%S}-{milliseconds:03d}"
        return f"{name}-{suffix}" if suffix else name

    def load_logger(self) -> None:
        """Wrap the host's logger, so that every run has a history."""
        super().load_logger()
        if self.logger is not None:
            folder = Path(self.config["cmd"]["checkpoint_dir"])
            self.logger = HistoryLogger(self.logger, folder / FILE_NAME, self.config["cmd"]["print_every"])

    def load_task(self) -> None:
        """The host's, with defaults for what it cannot do without, and an evaluator that allows empty rows."""
        for output in self.config["outputs"].values():
            if output.get("level") == "atom":
                output.setdefault("train_on_free_atoms", True)
                output.setdefault("eval_on_free_atoms", True)
        metrics = self.config.setdefault("evaluation_metrics", {})
        metrics.setdefault("primary_metric", "forces_mae")
        metrics.setdefault("metrics", _DEFAULT_METRICS)
        super().load_task()
        self.evaluator = RowEvaluator(task=self.name, eval_metrics=metrics["metrics"])

    def load_model(self) -> None:
        """The host's, warm-started where asked."""
        super().load_model()
        if "warm_start" in self.config["task"]:
            warm_start(self._unwrapped_model, self.config["task"]["warm_start"])

    def load_datasets(self) -> None:
        """The host's, after a look at model and files and before one at the first structure; not for inference."""
        require_model(self._unwrapped_model, self.objective)
        for split, key in (("train", "dataset"), ("val", "val_dataset"), ("test", "test_dataset")):
            require_files(self.config[key], split)
        try:
            super().load_datasets()
        except AssertionError as error:
            raise ValueError(f"the data sets cannot be opened: {error}; `dens data check` says more") from error
        if self.train_dataset is not None:
            targets = [name for loss in self.config["loss_functions"] for name in loss]
            require_labels(self.collater([self.train_dataset[0]]), targets, self.objective)

    def get_dataloader(self, dataset: Dataset, sampler: Any, workers: int | None = None) -> DataLoader:
        """The host's; the one for training prepares its batches."""
        loader = super().get_dataloader(dataset, sampler, workers)
        if dataset is self.train_dataset:
            seed = self.config["cmd"]["seed"] or 0
            loader.collate_fn = PreparingCollater(loader.collate_fn, self.objective, seed, sampler.sampler)
        return loader

    def load_loss(self) -> None:
        """The host's, and the loss functions of the objective's own outputs."""
        super().load_loss()
        self._objective_losses = {name: DDPLoss(fn, reduction="mean") for name, fn in self.objective.losses().items()}

    def load_extras(self) -> None:
        """The host's, and gradient accumulation."""
        if self.train_loader is not None:
            lengthen_warmup(self.config["optim"], len(self.train_loader))
        super().load_extras()
        self._accumulate_steps = accumulate_steps(self.config["optim"])

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: dict | None = None, inference_only: bool = False
    ) -> None:
        """The host's, with a clear error for a broken file and the same behaviour on every torch."""
        if checkpoint is None:
            checkpoint = compat.load_checkpoint(checkpoint_path, torch.device("cpu") if self.cpu else self.device)
        warn_of_other_model(self.config["model"], checkpoint)
        try:
            super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint '{checkpoint_path}' does not fit the config: {str(error).strip()[:300]}; "
                "use the config of its own run"
            ) from error

    def _forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        with self._training_targets(batch), self._autocast():
            outputs = self.objective.forward(super()._forward, batch)
        return {name: _widened(value, self._autocast_dtype) for name, value in outputs.items()}

    def _compute_loss(self, out: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        if not rows_of(batch):
            return super()._compute_loss(out, batch)
        terms = [self._host_term(name, info, out, batch) for name, info in self.loss_functions]
        loss = total_loss(terms + self._objective_terms(out, batch))
        require_finite_loss(loss, batch, self.step)
        return loss

    def _compute_metrics(
        self, out: dict[str, torch.Tensor], batch: Batch, evaluator: Evaluator, metrics: dict | None = None
    ) -> dict:
        if not rows_of(batch):
            return super()._compute_metrics(out, batch, evaluator, metrics)
        metrics = metrics or {}
        if rows_of(batch)["forces"].mask.any():  # the host cannot average over no atoms
            metrics = self._host_metrics(out, batch, evaluator, metrics)
        physical = {name: self._denorm_preds(name, value.detach(), batch) for name, value in out.items()}
        for name, errors in self.objective.metrics(physical, batch).items():
            metrics = evaluator.update(name, statistics(errors), metrics)
        return metrics

    def _host_metrics(
        self, out: dict[str, torch.Tensor], batch: Batch, evaluator: Evaluator, metrics: dict | None
    ) -> dict:
        """The host's metrics on the rows that were predicted, which stand for the free atoms."""
        view = copy.copy(batch)
        view.fixed = (~rows_of(batch)["forces"].mask).int()
        with self._training_targets(batch, extra=False):
            predicted = {name: out[name] for name in self.output_targets}
            return super()._compute_metrics(predicted, view, evaluator, metrics)

    def _backward(self, loss: torch.Tensor) -> None:
        if self._accumulate_steps == 1:
            super()._backward(loss)
            return
        loss = loss / self._accumulate_steps  # a mean over the batches of a step
        position = self.step % self._accumulate_steps
        if position == 1:
            self.optimizer.zero_grad()
        if position != 0:
            loss.backward()
            return
        with gradients_kept(self.optimizer):
            super()._backward(loss)

    @contextlib.contextmanager
    def _training_targets(self, batch: Batch, *, extra: bool = True) -> Iterator[None]:
        """For a prepared batch: the host's targets on the rows that count, and the objective's outputs if ``extra``."""
        plain = self.output_targets
        if rows_of(batch):
            self.output_targets = {name: {**target, "eval_on_free_atoms": True} for name, target in plain.items()}
            if extra:
                own = {name: {"level": "atom", "property": name} for name in self.objective.outputs}
                self.output_targets = {**self.output_targets, **own}
        try:
            yield
        finally:
            self.output_targets = plain

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self._autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)

    def _host_term(self, name: str, info: dict[str, Any], out: dict[str, torch.Tensor], batch: Batch) -> Term:
        """A target of the host's own: its labels normalised as the host does."""
        target, prediction, rows = batch[name], out[name], rows_of(batch)
        target = target.view(prediction.shape)
        natoms = batch.natoms if len(target) == batch.num_graphs else batch.natoms[batch.batch]
        if name in self.elementrefs:
            target = self.elementrefs[name].dereference(target, batch)
        if name in self.normalizers:
            target = self.normalizers[name].norm(target)
        return term(
            info["coefficient"],
            info["fn"].loss_fn,
            prediction=prediction,
            target=target,
            rows=rows[name] if name in rows else _all_rows(target),
            natoms=natoms,
        )

    def _objective_terms(self, out: dict[str, torch.Tensor], batch: Batch) -> list[Term]:
        targets = self.objective.targets(batch)
        coefficients = self.objective.coefficients(self.epoch / self.config["optim"]["max_epochs"])
        return [
            term(
                coefficients[name],
                self._objective_losses[name].loss_fn,
                prediction=out[name],
                target=targets[name],
                rows=rows_of(batch)[name],
                natoms=batch.natoms[batch.batch],
            )
            for name in self.objective.outputs
        ]


def _all_rows(target: torch.Tensor) -> Rows:
    """Every row of a target (R, k) that the objective does not mention, as stress."""
    mask = torch.ones(len(target), dtype=torch.bool, device=target.device)
    return Rows(mask, mask.sum())


def _widened(value: torch.Tensor, autocast_dtype: torch.dtype | None) -> torch.Tensor:
    """Back to float32 what bf16 autocast left in bf16: losses and metrics are sums over many terms."""
    return value.float() if value.dtype == autocast_dtype else value

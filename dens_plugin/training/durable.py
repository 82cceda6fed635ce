"""fairchem's trainer without what it loses on the way: a run that may be interrupted at any moment.

It knows nothing of objectives. Checkpoints are written whole, with predecessors to fall back on; a resumed run is the
uninterrupted one, and what changed in between is said; validation means are exact.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.datasets.base_dataset import UnsupportedDatasetError
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from torch.optim.lr_scheduler import LambdaLR

from dens_plugin import compat
from dens_plugin.backbones.description import describe
from dens_plugin.backbones.family import families
from dens_plugin.checks.optim import require_optim, without_nulls
from dens_plugin.checks.resumption import FINISHED, is_finished
from dens_plugin.data.records import require_structures
from dens_plugin.disk import trouble
from dens_plugin.settings import with_numbers
from dens_plugin.training.checkpoints import (
    NEWEST,
    RUN,
    RunRecord,
    changes_schedule,
    commit,
    differences,
    newest_whole,
    recorded,
)
from dens_plugin.training.filling import filled_batches, fills
from dens_plugin.training.groups import for_groups, regrouped
from dens_plugin.training.history import FILE_NAME, SOURCE, WEIGHTS, HistoryLogger
from dens_plugin.training.interruption import workers_let_go
from dens_plugin.training.ledger import BadSteps
from dens_plugin.training.loading import EpochOrder
from dens_plugin.training.lock import locked
from dens_plugin.training.loop import TrainingLoop
from dens_plugin.training.optimizer import Averages, keep_way_of_stepping, with_fused_step
from dens_plugin.training.progress import StepLines, closing_line, validation_line
from dens_plugin.training.schedule import Schedule, schedule_at, stated_groups, suit_schedule, take_settings
from dens_plugin.training.step_random import seed_step
from dens_plugin.training.unused_folders import removed_if_unused
from dens_plugin.training.validation import MeanLoss, ShareSampler, is_better, summed
from dens_plugin.training.warm_start import changed_settings, warn_of_other_model

if TYPE_CHECKING:
    from torch.utils.data import BatchSampler, Dataset

    from dens_plugin.training.graphed_step import GraphedStep


_BEST = "best_checkpoint.pt"  # fairchem's name
_OTHER_GROUPS = (
    "the optimiser of that run had other parameters: start a run of its own from these weights by task.warm_start"
)
_TOLD = 5  # settings that differ, in a message
_UNEVALUATED = "unevaluated"  # in the config of a checkpoint that was written in front of its step's evaluation


class DurableTrainer(EquiformerV2ForcesTrainer):
    """fairchem's trainer for runs of weeks, with a loop of its own (`loop.py`); options beside fairchem's:

    - ``optim.autocast``: ``bf16`` to run the model under bfloat16 autocast.
    - ``optim.accumulate_steps``: batches per optimiser step.
    - ``optim.max_bad_steps``: how many steps in a row may be left out for a NaN, 10 by default.
    - ``optim.keep_checkpoints``: how many of the newest checkpoints to keep, 2 by default.
    """

    _loaded_config: dict[str, Any] | None = None  # of the checkpoint that was loaded
    _newest_step: int | None = None  # of the newest checkpoint that this process wrote
    _validated_step: int | None = None  # the last one that this process validated
    _spoilt_metric: float | None = None  # the last primary metric that was NaN or infinite
    _unsaved: str | None = None  # why the last attempt to save failed

    def load(self, inference_only: bool) -> None:
        """Read the options, then everything else."""
        self.config["task"].setdefault("prediction_dtype", "float32")  # fairchem's float16 rounds total energies
        self.config["optim"] = optim = without_nulls(with_numbers(self.config["optim"]))
        if not inference_only:
            require_optim(optim, amp=self.config["amp"])
        self._keep_checkpoints = optim.get("keep_checkpoints", 2)
        self._autocast_dtype = torch.bfloat16 if optim.get("autocast") == "bf16" else None
        self.accumulate_steps = optim.get("accumulate_steps", 1)
        self.bad_steps = BadSteps(optim.get("max_bad_steps", 10))
        with removed_if_unused(self.config["cmd"]):
            super().load(inference_only)

    def coefficients(self) -> Mapping[str, float]:
        """Weights in the loss that change during a run; none."""
        return {}

    def _graphed_step(self) -> GraphedStep | None:
        """What takes the steps of the run in place of the loop; nothing."""
        return None

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.config["cmd"]["seed"] or 0

    def load_optimizer(self) -> None:
        """fairchem's, fused where torch can."""
        stated = self.config["optim"]
        self.config["optim"] = with_fused_step(stated, self.model.parameters())
        try:
            super().load_optimizer()
        finally:
            self.config["optim"] = stated
        keep_way_of_stepping(self.optimizer)

    def load_extras(self) -> None:
        """fairchem's schedule and averages, and a record of what a step means."""
        if self.train_loader is None:
            super().load_extras()
        else:
            self._load_schedule(self.config["optim"])
        if self.ema is not None:
            self.ema = self._new_averages()
        self._stated_groups = stated_groups(self.optimizer)
        if self.train_loader is not None:
            self.config[RUN] = self._record()._asdict()

    def _load_schedule(self, optim: dict[str, Any]) -> None:
        """fairchem counts in steps what the config counts in epochs, and makes its averages; the schedule is ours."""
        suit_schedule(optim, len(self.train_loader))
        stated, optim["scheduler"] = optim["scheduler"], "Null"
        super().load_extras()
        optim["scheduler"] = stated
        self.scheduler = Schedule(self.optimizer, optim)

    @property
    def _warms_averages(self) -> bool:
        return bool(self.config["optim"].get("ema_warmup"))

    def _new_averages(self) -> Averages:
        return Averages(self.model.parameters(), self.ema_decay, use_num_updates=self._warms_averages)

    def load_datasets(self) -> None:
        """fairchem's, which asks for a number of structures per batch of every set, also where one has another way."""
        stated = self.config["optim"]
        if fills(stated):
            self.config["optim"] = {"batch_size": stated.get("eval_batch_size", 1), **stated}
        try:
            super().load_datasets()
        finally:
            self.config["optim"] = stated

    @staticmethod
    def _get_timestamp(device: torch.device, suffix: str | None) -> str:
        """A name for the run's folders that no other run has; fairchem's has a granularity of 128 s."""
        now = torch.tensor(time.time_ns() // 1_000_000, dtype=torch.int64, device=device)
        distutils.broadcast(now, 0)
        seconds, milliseconds = divmod(now.item(), 1000)
        name = f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d-%H-%M-%S}-{milliseconds:03d}"
        return f"{name}-{suffix}" if suffix else name

    def load_logger(self) -> None:
        """Wrap fairchem's logger, so that every run has a history."""
        super().load_logger()
        if self.logger is not None:
            self.logger = HistoryLogger(self.logger, self._folder / FILE_NAME, self.config["cmd"]["print_every"])

    def get_sampler(self, dataset: Dataset, batch_size: int, shuffle: bool) -> BatchSampler:
        """fairchem's for training, or filled batches; for evaluation one that counts every structure once.

        Raises:
            ValueError: if there are no structures, or if batches shall be balanced or filled up and the data set does
                not say how large its structures are.
        """
        require_structures(dataset, f"the data set '{dataset.config.get('src')}'")
        rank, ranks = _data_ranks()
        if shuffle and fills(self.config["optim"]):
            return filled_batches(dataset, self.config["optim"], seed=self.seed, rank=rank, num_replicas=ranks)
        if shuffle:
            try:
                batches = super().get_sampler(dataset, batch_size, shuffle)
            except UnsupportedDatasetError as error:
                raise ValueError(
                    "optim.load_balancing needs the training set's metadata.npz with the sizes of its structures "
                    "(`natoms`), which `dens data` writes; or set optim.load_balancing_on_error: warn_and_no_balance"
                ) from error
            batches.sampler = EpochOrder.of(batches.sampler)
            return batches
        return ShareSampler(dataset, batch_size=batch_size, rank=rank, num_replicas=ranks)

    def _record(self) -> RunRecord:
        return RunRecord(
            world_size=_data_ranks()[1],
            batch_size=self._batch_size,
            accumulate_steps=self.accumulate_steps,
            structures=len(self.train_dataset),
            batches_per_epoch=len(self.train_loader),
            seed=self.seed,
        )

    @property
    def _batch_size(self) -> int:
        """Structures of a rank's batch; about so many where batches are filled up."""
        if not fills(self.config["optim"]):
            return self.config["optim"].get("batch_size", 1)
        return max(round(len(self.train_dataset) / (len(self.train_loader) * _data_ranks()[1])), 1)

    @property
    def _folder(self) -> Path:
        return Path(self.config["cmd"]["checkpoint_dir"])

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """From the run's own newest checkpoint, if it is ahead of what was loaded, to its last step.

        Raises:
            FloatingPointError: after too many bad steps in a row, or if no validation had a finite primary metric.
            OSError: if the last checkpoint could not be written.
            ValueError: if another process trains in the run's folder.
        """
        with locked(self._folder, self.device):
            self._train(disable_eval_tqdm=disable_eval_tqdm)

    def _train(self, *, disable_eval_tqdm: bool) -> None:
        self._go_on_from_own()
        self._take_over_changes()
        if getattr(self, "primary_metric", None) != self._primary_metric:  # that of a checkpoint
            self.best_val_metric, self.primary_metric = None, self._primary_metric
        if _is_unevaluated(self._loaded_config):
            self.evaluate(disable_tqdm=disable_eval_tqdm)
        if self.step > 0 and is_finished({"epoch": self.epoch}, self.config["optim"]):
            logging.warning(f"This run is finished, at step {self.step:,}: {FINISHED}.")
        self._loaded_config = None
        record = self._record()
        logging.info(
            f"Effective batch: {record.effective_batch} structures per step = {record.batch_size} per batch x "
            f"{record.world_size} ranks x {record.accumulate_steps} accumulated."
        )
        self._lines = StepLines(
            last_step=self.config["optim"]["max_epochs"] * len(self.train_loader),
            epochs=self.config["optim"]["max_epochs"],
            structures_per_step=record.batch_size * record.world_size,
        )
        TrainingLoop(self, self._graphed_step()).run(disable_eval_tqdm=disable_eval_tqdm)
        if self.val_loader is not None and self.step not in (0, self._validated_step) and not self._has_best():
            self._update_best(disable_tqdm=disable_eval_tqdm)  # of a run that was finished when it was taken up
        self.save()
        if self._unsaved is not None:
            raise OSError(self._unsaved)
        self._require_best()
        if distutils.is_master():
            has_best = (self._folder / _BEST).is_file()
            path = self._folder / (_BEST if has_best else NEWEST)
            logging.info(closing_line(path, self._primary_metric, self.best_val_metric if has_best else None))

    def evaluate(self, *, disable_tqdm: bool = True) -> None:
        """What fairchem does every ``eval_every`` steps: validate, keep the best weights, relax, and say a plateau."""
        metrics = self._update_best(disable_tqdm=disable_tqdm) if self.val_loader is not None else {}
        if self.config["task"].get("eval_relaxations", False):
            self.run_relaxations()
        if self.scheduler.scheduler_type == "ReduceLROnPlateau":
            self.scheduler.step(metrics=metrics[self._primary_metric]["metric"])

    @property
    def _primary_metric(self) -> str:
        return self.evaluation_metrics["primary_metric"]

    def _update_best(self, *, disable_tqdm: bool) -> dict[str, Any]:
        metrics = self._validated("val", disable_tqdm)
        self._validated_step = self.step
        self.update_best(self._primary_metric, metrics, disable_tqdm)
        return metrics

    def update_best(self, primary_metric: str, val_metrics: dict[str, Any], disable_eval_tqdm: bool = True) -> None:
        """Keep the weights, and predict the test set, if the metric is the best so far."""
        if primary_metric not in val_metrics:
            logging.warning(
                f"The validation set has nothing to compute {primary_metric} of; no weights are kept as best."
            )
            return
        value = val_metrics[primary_metric]["metric"]
        if not math.isfinite(value):
            self._spoilt_metric = value
            logging.warning(f"{primary_metric} is {value} at step {self.step}; these weights are not kept as best.")
        if not is_better(primary_metric, value, self.best_val_metric):
            return
        self.best_val_metric = value
        self.save(metrics=val_metrics, checkpoint_file=_BEST, training_state=False)
        if self.test_loader is not None:
            self.predict(self.test_loader, results_file="predictions", disable_tqdm=disable_eval_tqdm)

    def _require_best(self) -> None:
        """Raise FloatingPointError if the set was validated, and never with a finite primary metric."""
        best = self.best_val_metric
        if self._spoilt_metric is not None and (best is None or not math.isfinite(best)):
            raise FloatingPointError(
                f"{self._primary_metric} was {self._spoilt_metric} in each validation, so no best_checkpoint.pt was "
                f"written, and the last weights are in '{self._folder / NEWEST}': lower optim.lr_initial, or look at "
                "dataset.val.src with `dens data check`"
            )

    def _has_best(self) -> bool:
        found = [(self._folder / _BEST).exists() if distutils.is_master() else None]
        distutils.broadcast_object_list(found, src=0, device=self.device)
        return bool(found[0])

    def report(self, row: Mapping[str, float]) -> None:
        """Print and log what the last training steps were like."""
        if distutils.is_master():
            logging.info(self._lines.line(row, time.monotonic()))
        if self.logger is not None:
            self.logger.log(dict(row), step=self.step, split="train")

    def _go_on_from_own(self) -> None:
        """Load the run's own newest checkpoint if it is ahead: after a requeue it beats an explicit `--checkpoint`."""
        found = [newest_whole(self._folder) if distutils.is_master() else None]
        distutils.broadcast_object_list(found, src=0, device=self.device)
        if found[0] is not None and compat.load_checkpoint(found[0], on_demand=True).get("step", 0) > self.step:
            logging.info(f"This run goes on from its own checkpoint {found[0]}.")
            self.load_checkpoint(str(found[0]))

    def _take_over_changes(self) -> None:
        """Say what changed since the checkpoint, let it hold, and keep the epoch where its number of steps changed."""
        saved = self._loaded_config
        if saved is None or self.step == 0:
            return
        texts = list(differences(saved, self.config))
        for text in texts:
            logging.warning(f"Resumed with a change: {text}.")
        before, is_moved = recorded(saved), False
        if before is not None and before.batches_per_epoch != len(self.train_loader):
            step = round(self.epoch * len(self.train_loader))
            self.step, is_moved = step - step % self.accumulate_steps, True
        take_settings(self.optimizer, self._stated_groups)
        if self.ema is not None:
            self.ema.decay = self.ema_decay
            self.ema.warm_up(self._warms_averages, updates=self.step // self.accumulate_steps)
        rate = self.scheduler.get_lr()
        is_movable = isinstance(getattr(self.scheduler, "scheduler", None), LambdaLR)
        if changes_schedule(saved, self.config) or (is_moved and is_movable):
            self.scheduler = schedule_at(
                self.step,
                self.optimizer,
                self._stated_groups,
                self.config["optim"],
                saved=saved["optim"],
                before=self.scheduler,
            )
        elif is_moved:
            name = self.scheduler.scheduler_type
            logging.warning(f"The schedule {name} cannot be moved to another step: it goes on from the old one.")
        if texts:
            logging.warning(
                f"The settings of now hold from step {self.step + 1} on; the learning rate is "
                f"{self.scheduler.get_lr():.3g} and was {rate:.3g}."
            )

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: dict | None = None, inference_only: bool = False
    ) -> None:
        """fairchem's, from a whole file, with averages kept on where the file holds weights alone.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is broken or does not fit the config.
        """
        if checkpoint is None:
            if Path(checkpoint_path) == self._folder / NEWEST:  # the run's own: it may fall back
                checkpoint_path = str(newest_whole(self._folder))
            checkpoint = compat.load_checkpoint(checkpoint_path, torch.device("cpu") if self.cpu else self.device)
        scheduler = ((checkpoint.get("config") or {}).get("optim") or {}).get("scheduler")
        if scheduler is not None and scheduler != self.config["optim"].get("scheduler"):
            checkpoint = {**checkpoint, "scheduler": None}  # the state of another kind
        if checkpoint.get("optimizer") is not None and not inference_only:
            state = regrouped(checkpoint["optimizer"], self.optimizer, self._unwrapped_model)
            schedule = for_groups(checkpoint.get("scheduler"), len(self.optimizer.param_groups))
            checkpoint = {**checkpoint, "optimizer": state, "scheduler": schedule}
        try:
            with removed_if_unused(self.config["cmd"]):
                super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint '{checkpoint_path}' does not fit the config: {self._misfit(checkpoint, error)}"
            ) from error
        warn_of_other_model(self.config["model"], checkpoint)
        if not inference_only:
            self._loaded_config = checkpoint.get("config")
            self._complete()

    def _misfit(self, checkpoint: Mapping[str, Any], error: Exception) -> str:
        """Why a checkpoint could not be loaded: by the settings that differ where its own config says so."""
        if "parameter groups" in str(error):
            return f"{error}; {_OTHER_GROUPS}"
        own = describe(self._unwrapped_model).family
        found = next((each for each in families() if each.knows(checkpoint["state_dict"])), None)
        if own is not None and found is not None and found is not own:
            return f"it holds weights of {found.title}, and the model is {own.title}; use the config of its own run"
        changed = changed_settings(self.config["model"], checkpoint)
        more = f"; and {len(changed) - _TOLD} more" if len(changed) > _TOLD else ""
        reason = "; ".join(changed[:_TOLD]) + more if changed else str(error).strip()[:300]
        return f"{reason}; use the config of its own run"

    def _complete(self) -> None:
        """Mend what fairchem leaves open after loading: no averages, and a schedule a step behind in its own files."""
        if self.ema is None and self.ema_decay:
            self.ema = self._new_averages()
        schedule = getattr(self.scheduler, "scheduler", None)
        if isinstance(schedule, LambdaLR) and schedule.last_epoch == self.step - 1:
            schedule.step()

    def save_step(self, *, evaluation_follows: bool = False) -> None:
        """Write the newest checkpoint; an evaluation that follows may take long and is made up for if it is lost."""
        if evaluation_follows:
            self.config[_UNEVALUATED] = True
        try:
            self.save()
        finally:
            self.config.pop(_UNEVALUATED, None)

    def save(
        self, metrics: dict | None = None, checkpoint_file: str = NEWEST, training_state: bool = True
    ) -> str | None:
        """Write a checkpoint, whole or not at all; it replaces one of the same step.

        A failure to write is logged, and raised at the end of the run if no later attempt succeeded.
        """
        path, temporary = self._folder / checkpoint_file, f".{checkpoint_file}.writing"
        replaces = checkpoint_file != NEWEST or self._newest_step == self.step
        try:
            if super().save(metrics, temporary, training_state) is None:
                return None
            commit(self._folder / temporary, path, keep=1 if replaces else self._keep_checkpoints)
        except (OSError, RuntimeError) as error:  # torch has no type of its own for a disk that is full
            self._not_saved(path, error, restore_average=not training_state)
            return None
        if checkpoint_file == NEWEST:
            self._newest_step = self.step
        self._unsaved = None
        return str(path)

    def _not_saved(self, path: Path, error: Exception, *, restore_average: bool) -> None:
        if restore_average and self.ema is not None:
            self.ema.restore()  # fairchem had put the averages in place of the weights
        (path.parent / f".{path.name}.writing").unlink(missing_ok=True)
        self._unsaved = (
            f"step {self.step} could not be saved to '{path}' ({trouble(path, error)}); the checkpoint before it "
            "is untouched: make room or make the folder writable, the run tries again at its next checkpoint"
        )
        logging.error(self._unsaved)

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict[str, Any]:
        """fairchem's, with exact means over the set on any number of ranks, and a note of which weights these are."""
        if self.logger is not None:
            source = str(self.config.get(f"{split}_dataset", {}).get("src"))
            self.logger.note({"split": split, "step": self.step, WEIGHTS: self._digest(), SOURCE: source})
        return self._validated(split, disable_tqdm)

    def _validated(self, split: str, disable_tqdm: bool) -> dict[str, Any]:
        """The metrics of a validation, exact on any number of ranks."""
        seed_step(self.seed, self.step, split)
        self._evaluation_loss = MeanLoss()
        start = time.monotonic()
        with self._without_ddp(), workers_let_go():
            metrics = super().validate(split, disable_tqdm)
        if distutils.is_master():
            loader = self.val_loader if split == "val" else self.test_loader
            errors = {name: value["metric"] for name, value in metrics.items()}
            logging.info(validation_line(len(loader.dataset), time.monotonic() - start, errors, split=split))
        return metrics

    def _digest(self) -> str:
        """A short name of the weights, averages included."""
        digest = hashlib.blake2b(digest_size=8)
        averages = self.ema.shadow_params if self.ema is not None else []
        for value in (*self._unwrapped_model.parameters(), *averages):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """fairchem's, on ranks with unequal shares."""
        seed_step(self.seed, self.step, "predict")
        with self._without_ddp(), workers_let_go():
            return super().predict(*args, **kwargs)

    def _aggregate_metrics(self, metrics: dict[str, Any]) -> dict[str, Any]:
        whole = summed(metrics)
        loss = self._evaluation_loss.value()
        return whole | {"loss": {"total": loss, "numel": 1, "metric": loss}}

    @contextlib.contextmanager
    def _without_ddp(self) -> Iterator[None]:
        wrapped, self.model = self.model, self._unwrapped_model
        try:
            yield
        finally:
            self.model = wrapped


def _is_unevaluated(config: Mapping[str, Any] | None) -> bool:
    return config is not None and _UNEVALUATED in config


def _data_ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks that see different structures."""
    if gp_utils.initialized():
        return gp_utils.get_dp_rank(), gp_utils.get_dp_world_size()
    return distutils.get_rank(), distutils.get_world_size()

"""fairchem's trainer without what it loses on the way: a run that may be interrupted at any moment.

It knows nothing of objectives. Checkpoints are written at the end of a step, whole, with predecessors to fall back on;
a resumed run is the uninterrupted one, and what changed in between is said; validation means are exact.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.datasets.base_dataset import UnsupportedDatasetError
from fairchem.core.models.equiformer_v2.trainers.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from dens_plugin import compat
from dens_plugin.checks.identifiers import require_identifiers
from dens_plugin.data.records import require_structures
from dens_plugin.training.evaluation import MeanLoss, ShareSampler, summed
from dens_plugin.training.history import FILE_NAME, SOURCE, WEIGHTS, HistoryLogger
from dens_plugin.training.interruption import workers_let_go
from dens_plugin.training.optimizer import Averages
from dens_plugin.training.order import EpochOrder
from dens_plugin.training.resume import RUN, RunRecord, differences, recorded
from dens_plugin.training.saving import NEWEST, commit, keep_checkpoints, newest_whole
from dens_plugin.training.step_random import seed_step
from dens_plugin.training.stepping import SteppingTrainer
from dens_plugin.training.warm_start import warn_of_other_model

if TYPE_CHECKING:
    from torch.utils.data import BatchSampler, Dataset
    from torch_geometric.data import Batch


_BEST = "best_checkpoint.pt"  # fairchem's name
_UNEVALUATED = "unevaluated"  # in the config of a checkpoint that was written in front of its step's evaluation


class DurableTrainer(SteppingTrainer):
    """fairchem's trainer for runs of weeks; options beside fairchem's and those of `SteppingTrainer`:

    - ``optim.keep_checkpoints``: how many of the newest checkpoints to keep, 2 by default.
    """

    _in_training = False  # whether validations are those of a training
    _validated = False  # whether there was one
    _save_due = False  # whether to save at the end of the step
    _loaded_config: dict[str, Any] | None = None  # of the checkpoint that was loaded
    _unevaluated_step: int | None = None  # the last of which a checkpoint was written in front of its evaluation
    _unsaved: str | None = None  # why the last attempt to save failed

    def load(self, inference_only: bool) -> None:
        """Read the options, then everything else."""
        self.config["task"].setdefault("prediction_dtype", "float32")  # fairchem's float16 rounds total energies
        self._keep_checkpoints = keep_checkpoints(self.config["optim"])
        super().load(inference_only)

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
        """fairchem's for training; for evaluation one that counts every structure once.

        Raises:
            ValueError: if there are no structures, or if batches shall be balanced and the data set does not say how
                large its structures are.
        """
        require_structures(dataset, f"the data set '{dataset.config.get('src')}'")
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
        rank, ranks = _data_ranks()
        return ShareSampler(dataset, batch_size=batch_size, rank=rank, num_replicas=ranks)

    def load_extras(self) -> None:
        """fairchem's, with a record of what a step means."""
        super().load_extras()
        if self.train_loader is not None:
            self.config[RUN] = self._record()._asdict()

    def _record(self) -> RunRecord:
        return RunRecord(
            world_size=_data_ranks()[1],
            batch_size=self.config["optim"].get("batch_size", 1),
            accumulate_steps=self._accumulate_steps,
            structures=len(self.train_dataset),
            batches_per_epoch=len(self.train_loader),
            seed=self._seed,
        )

    @property
    def _folder(self) -> Path:
        return Path(self.config["cmd"]["checkpoint_dir"])

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """fairchem's loop, from the run's own newest checkpoint if it is ahead of what was loaded, to its last step.

        Raises:
            FloatingPointError: after too many bad steps in a row.
            OSError: if the last checkpoint could not be written.
        """
        self._in_training = True
        self._go_on_from_own()
        self._tell_differences()
        self._finish_loaded_step(disable_eval_tqdm)
        record = self._record()
        logging.info(
            f"Effective batch: {record.effective_batch} structures per step = {record.batch_size} per batch x "
            f"{record.world_size} ranks x {record.accumulate_steps} accumulated."
        )
        super().train(disable_eval_tqdm)
        self._validate_once(disable_eval_tqdm)
        self.save(checkpoint_file=NEWEST, training_state=True)
        if self._unsaved is not None:
            raise OSError(self._unsaved)

    def _go_on_from_own(self) -> None:
        """Load the run's own newest checkpoint if it is ahead: after a requeue it beats an explicit `--checkpoint`."""
        found = [newest_whole(self._folder) if distutils.is_master() else None]
        distutils.broadcast_object_list(found, src=0, device=self.device)
        if found[0] is not None and compat.load_checkpoint(found[0], on_demand=True).get("step", 0) > self.step:
            logging.info(f"This run goes on from its own checkpoint {found[0]}.")
            self.load_checkpoint(str(found[0]))

    def _tell_differences(self) -> None:
        """Say what changed since the checkpoint, and keep the epoch where an epoch's number of steps changed."""
        if self._loaded_config is None or self.step == 0:
            return
        for text in differences(self._loaded_config, self.config):
            logging.warning(f"Resumed with a change: {text}.")
        before = recorded(self._loaded_config)
        if before is not None and before.batches_per_epoch != len(self.train_loader):
            step = round(self.epoch * len(self.train_loader))
            self.step = step - step % self._accumulate_steps
            self._move_schedule()

    def _finish_loaded_step(self, disable_tqdm: bool) -> None:
        """Make up for the evaluation that a run was interrupted in, and for what follows it in fairchem's loop."""
        if not _is_unevaluated(self._loaded_config):
            return
        primary = self.evaluation_metrics["primary_metric"]
        metrics = self.validate("val", disable_tqdm)
        self.update_best(primary, metrics, disable_tqdm)
        self.scheduler.step(metrics=metrics[primary]["metric"])
        self._loaded_config = None

    def _validate_once(self, disable_tqdm: bool) -> None:
        """Validate a run that ended before the first multiple of ``eval_every``, for a best checkpoint all the same."""
        if self._validated or self.val_loader is None or self.step == 0:
            return
        found = [(self._folder / _BEST).exists() if distutils.is_master() else None]
        distutils.broadcast_object_list(found, src=0, device=self.device)
        if not found[0]:
            self.update_best(
                self.evaluation_metrics["primary_metric"], self.validate("val", disable_tqdm), disable_tqdm
            )

    def _move_schedule(self) -> None:
        """A fresh schedule at the current step."""
        fresh = LRScheduler(self.optimizer, self.config["optim"])
        if not isinstance(fresh.scheduler, LambdaLR):
            logging.warning(f"{fresh.scheduler_type} cannot be moved to another step; it goes on in the old ones.")
            return
        fresh.scheduler.last_epoch = self.step - 1
        fresh.scheduler.step()
        self.scheduler.replace(fresh)

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
        warn_of_other_model(self.config["model"], checkpoint)
        try:
            super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint '{checkpoint_path}' does not fit the config: {str(error).strip()[:300]}; "
                "use the config of its own run"
            ) from error
        if not inference_only:
            self._loaded_config = checkpoint.get("config")
            self._complete()

    def _complete(self) -> None:
        """Mend what fairchem leaves open after loading: no averages, and a schedule a step behind in its own files."""
        if self.ema is None and self.ema_decay:
            self.ema = Averages(self.model.parameters(), self.ema_decay)
        schedule = getattr(self.scheduler, "scheduler", None)
        if _is_unevaluated(self._loaded_config):
            return
        if isinstance(schedule, LambdaLR) and schedule.last_epoch == self.step - 1:
            schedule.step()

    def save(
        self, metrics: dict | None = None, checkpoint_file: str = NEWEST, training_state: bool = True
    ) -> str | None:
        """Write a checkpoint, whole or not at all; one with the training state waits for the end of the step.

        A failure to write is logged, and raised at the end of the run if no later attempt succeeded.
        """
        if self._in_step and training_state:
            self._save_due = True
            return str(self._folder / checkpoint_file)
        return self._write(metrics, checkpoint_file, training_state)

    def _write(self, metrics: dict | None, file: str, training_state: bool) -> str | None:
        path, temporary = self._folder / file, f".{file}.writing"
        replaces = file != NEWEST or self._unevaluated_step == self.step
        try:
            if super().save(metrics, temporary, training_state) is None:
                return None
            commit(self._folder / temporary, path, keep=1 if replaces else self._keep_checkpoints)
        except (OSError, RuntimeError) as error:  # torch has no type of its own for a disk that is full
            self._not_saved(path, error, restore_average=not training_state)
            return None
        self._unsaved = None
        return str(path)

    def _save_unevaluated(self) -> None:
        """Write a checkpoint in front of an evaluation, which may take long and shall not be lost with its step."""
        self.config[_UNEVALUATED] = True
        try:
            self._write(None, NEWEST, training_state=True)
            self._unevaluated_step = self.step
        finally:
            del self.config[_UNEVALUATED]

    def finish_step(self, *, interrupted: bool) -> None:
        """Write the checkpoint that was asked for within the step, or one for the interruption."""
        if self._save_due or interrupted:
            self._save_due = False
            self.save(checkpoint_file=NEWEST, training_state=True)

    def _not_saved(self, path: Path, error: Exception, *, restore_average: bool) -> None:
        if restore_average and self.ema is not None:
            self.ema.restore()  # fairchem had put the averages in place of the weights
        (path.parent / f".{path.name}.writing").unlink(missing_ok=True)
        self._unsaved = (
            f"step {self.step} could not be saved to '{path}' ({str(error).splitlines()[0]}); the checkpoint before it "
            "is untouched: make room or make the folder writable, the run tries again at its next checkpoint"
        )
        logging.error(self._unsaved)

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict[str, Any]:
        """fairchem's, with exact means over the set on any number of ranks."""
        if self._save_due:
            self._save_unevaluated()
        seed_step(self._seed, self.step, split)
        self._evaluation_loss = MeanLoss()
        self._validated = True
        if not self._in_training and self.logger is not None:  # a result of its own, which must say of what weights
            source = str(self.config.get(f"{split}_dataset", {}).get("src"))
            self.logger.note({"split": split, "step": self.step, WEIGHTS: self._digest(), SOURCE: source})
        with self._without_ddp(), workers_let_go():
            return super().validate(split, disable_tqdm)

    def _digest(self) -> str:
        """A short name of the weights, averages included."""
        digest = hashlib.blake2b(digest_size=8)
        averages = self.ema.shadow_params if self.ema is not None else []
        for value in (*self._unwrapped_model.parameters(), *averages):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def predict(self, data: DataLoader | Batch, *args: Any, **kwargs: Any) -> Any:
        """fairchem's, on ranks with unequal shares.

        Raises:
            ValueError: for structures of a data set that cannot be told from one another.
        """
        if isinstance(data, DataLoader):
            require_identifiers(data.dataset)
        seed_step(self._seed, self.step, "predict")
        with self._without_ddp(), workers_let_go():
            return super().predict(data, *args, **kwargs)

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

"""fairchem's trainer with an objective: it prepares the training batches, adds outputs and says which rows count.

The loop, optimiser, EMA, schedulers, DDP, AMP, logging and all modes are fairchem's; what makes a run safe to interrupt
is `DurableTrainer`'s. Validation, prediction and relaxation (`relaxation.py`) never see a corrupted batch.
"""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.modules.loss import DDPLoss

import dens_plugin.checks.registered  # noqa: F401
from dens_plugin.checks.dataset import require_files, require_normalizers
from dens_plugin.checks.objective import objective_from_config, without_switches
from dens_plugin.checks.preflight import (
    limits_of,
    require_edges,
    require_fitting_scales,
    require_labels,
    require_model,
    require_one_scale,
    require_outputs,
    require_scales,
)
from dens_plugin.data.molecules.manifest import with_origin
from dens_plugin.data.molecules.physical import PhysicalEnergies
from dens_plugin.data.oc22_references import with_element_references
from dens_plugin.data.records import LABELS, CheckedDataset
from dens_plugin.fields import Rows, free_atoms, rows_of
from dens_plugin.objectives.noise import StructureRandom
from dens_plugin.objectives.s2ef import S2EF
from dens_plugin.relaxation.run import relax
from dens_plugin.settings import switch, with_numbers
from dens_plugin.training.durable import DurableTrainer
from dens_plugin.training.interruption import leave_to_trainer
from dens_plugin.training.loader import AllFreeCollater, PreparingCollater
from dens_plugin.training.losses import Term, term, total_loss
from dens_plugin.training.metrics import RowEvaluator, require_metric, statistics
from dens_plugin.training.neighbours import NeighbourCollater, loader_search
from dens_plugin.training.steps import LOADER_WORKERS
from dens_plugin.training.warm_start import warm_start

if TYPE_CHECKING:
    from fairchem.core.modules.evaluator import Evaluator
    from torch.utils.data import DataLoader, Dataset
    from torch_geometric.data import Batch, Data

_LOOKED_AT = 4  # training structures, before the first step
_DEFAULT_METRICS = {
    "energy": ["mae"],
    "forces": ["mae", "cosine_similarity", "magnitude_error"],
    "misc": ["energy_forces_within_threshold"],
}


@registry.register_trainer("dens")
@registry.register_trainer("denoising_forces")
class DeNSTrainer(DurableTrainer):
    """fairchem's trainer for any `Objective`; options beside fairchem's and those of `DurableTrainer`:

    - ``task.objective``: name and settings of the objective.
    - ``task.warm_start``: a checkpoint whose weights to start from.
    - ``task.predict_fixed_atoms``: whether predictions for the test set hold the forces of fixed atoms too.

    Raises:
        ValueError: before the first step, for a config, data set or model that cannot be meant.
    """

    def load(self, inference_only: bool) -> None:
        """Read the objective, then everything else."""
        self.objective = S2EF() if inference_only else objective_from_config(self.config)
        self.config["model"] = without_switches(self.config["model"])
        self._predict_fixed_atoms = switch(
            self.config["task"].get("predict_fixed_atoms", False), "task.predict_fixed_atoms"
        )
        if not inference_only:
            self.config |= with_element_references(self.config)
            self.config |= with_origin(self.config["dataset"])
        super().load(inference_only)

    def load_task(self) -> None:
        """fairchem's, with defaults for what it cannot do without, and an evaluator that allows empty rows."""
        for output in self.config["outputs"].values():
            if output.get("level") == "atom":
                output.setdefault("train_on_free_atoms", True)
                output.setdefault("eval_on_free_atoms", True)
        metrics = self.config.setdefault("evaluation_metrics", {})
        metrics.setdefault("primary_metric", "forces_mae")
        metrics.setdefault("metrics", _DEFAULT_METRICS)
        require_metric(metrics)
        super().load_task()
        self.evaluator = RowEvaluator(task=self.name, eval_metrics=metrics["metrics"])

    def load_model(self) -> None:
        """fairchem's, warm-started where asked.

        Raises:
            ValueError: if a head is one of another network, or the settings contradict each other.
        """
        try:
            super().load_model()
        except AttributeError as error:
            raise ValueError(
                f"a head does not fit the backbone ({error}); README.md has a table of which belong together"
            ) from error
        except (AssertionError, TypeError, ZeroDivisionError, IndexError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1].line
            raise ValueError(
                f"no model can be built from the settings under `model`: {error or type(error).__name__}, at {where!r}"
            ) from error
        if "warm_start" in self.config["task"]:
            warm_start(self._unwrapped_model, self.config["task"]["warm_start"])

    def load_datasets(self) -> None:
        """fairchem's, after a look at model and files and before one at the first structure; not for inference."""
        require_model(self._unwrapped_model, self.objective)
        for split in ("train", "val", "test", "relax"):
            require_files(self.config["dataset" if split == "train" else f"{split}_dataset"], split)
        self._search = loader_search(self._unwrapped_model, self.config["optim"])
        self.relax_dataset = None  # fairchem leaves it unset where there is none
        try:
            super().load_datasets()
        except AssertionError as error:
            raise ValueError(f"the data sets cannot be opened: {error}; `dens data check` says more") from error
        except ValueError as error:
            hint = "; dataset.val and dataset.test take over what dataset.train has: give each its own"
            raise ValueError(f"{error}{hint if 'sample_n' in str(error) else ''}") from error
        if self.relax_dataset is not None:
            self.relax_dataset = self._checked(self.relax_dataset)
        self._require_first_structures()

    def _require_first_structures(self) -> None:
        targets = [name for loss in self.config["loss_functions"] for name in loss]
        for split, dataset in (("train", self.train_dataset), ("val", self.val_dataset)):
            if dataset is not None:
                require_labels(self._checked(dataset)[0], targets, split)
        if self.train_dataset is not None:
            first = self._first_structures()
            require_edges(self._unwrapped_model, first)
            self._try_first_batch(self.collater(first[:1]))

    def _first_structures(self) -> list[Data]:
        return [self.train_dataset[index] for index in range(min(len(self.train_dataset), _LOOKED_AT))]

    def _try_first_batch(self, batch: Batch) -> None:
        """Let objective and model look at a batch; what they draw changes nothing."""
        self.objective.check(batch)
        prepared = self.objective.prepare(batch, StructureRandom(self._seed, epoch=0)).to(self.device)
        own = {name: {"level": "atom", "property": name} for name in self.objective.outputs}
        with torch.random.fork_rng(devices=[] if self.cpu else [self.device]):
            require_outputs(self._unwrapped_model, prepared, {**self.output_targets, **own})

    def _checked(self, dataset: Dataset) -> CheckedDataset:
        """The data set with a look at every structure that is read; labels count where something is made of them."""
        is_labelled = dataset is self.train_dataset or dataset is self.val_dataset
        return CheckedDataset(
            dataset,
            limits_of(self._unwrapped_model),
            LABELS if is_labelled else (),
            warns_of_overlaps=dataset is self.test_dataset,
        )

    def load_references_and_normalizers(self) -> None:
        """fairchem's, after which forces that are gradients must share the energy's scale."""
        transforms = self.config["dataset"].get("transforms") or {}
        require_normalizers(transforms, "dataset.train.transforms")
        if "normalizer" in transforms:
            transforms["normalizer"] = with_numbers(transforms["normalizer"])
        super().load_references_and_normalizers()
        require_scales(self.normalizers)
        if self.train_dataset is not None:
            require_fitting_scales(self.normalizers, self._first_structures(), self.elementrefs)
        require_one_scale(self._unwrapped_model, self.normalizers, self.output_targets)
        if "normalizer" in transforms:  # numbers, not the files they came from: a checkpoint must load anywhere
            transforms["normalizer"] = {
                name: {"mean": values.mean.item(), "rmsd": values.rmsd.item()}
                for name, values in self.normalizers.items()
            }

    def get_dataloader(self, dataset: Dataset, sampler: Any, workers: int | None = None) -> DataLoader:
        """fairchem's; the one for training prepares its batches, and all but those for relaxation find neighbours."""
        if workers is None:
            workers = self.config["optim"].get(LOADER_WORKERS)
        loader = super().get_dataloader(self._checked(dataset), sampler, workers)
        if loader.num_workers > 0:
            loader.worker_init_fn = leave_to_trainer
            loader.multiprocessing_context = "fork"  # local launches spawn by default, and an open LMDB cannot be sent
        if dataset is self.train_dataset:
            seed = self.config["cmd"]["seed"] or 0
            loader.collate_fn = PreparingCollater(loader.collate_fn, self.objective, seed, sampler.sampler)
        elif dataset is self.test_dataset and self._predict_fixed_atoms:
            loader.collate_fn = AllFreeCollater(loader.collate_fn)
        if self._search is not None and dataset is not self.relax_dataset:  # there atoms move on
            loader.collate_fn = NeighbourCollater(loader.collate_fn, self._search)
        return loader

    def predict(
        self,
        data: DataLoader | Batch,
        per_image: bool = True,
        results_file: str | None = None,
        disable_tqdm: bool = False,
    ) -> dict[str, Any]:
        """fairchem's; a file has energies as the files of the training data had them, and what was added to get those.

        Raises:
            ValueError: for structures of a data set that cannot be told from one another.
        """
        predictions = super().predict(data, per_image, None, disable_tqdm)
        if not per_image:
            return predictions
        physical = self.physical_energies()
        if physical.known and "energy" in predictions:
            structures = (data.dataset.raw(index)[0] for batch in data.batch_sampler for index in batch)
            added = [physical.missing(structure.atomic_numbers.tolist()) for structure in structures]
            energies = [float(energy) + missing for energy, missing in zip(predictions["energy"], added, strict=True)]
            predictions |= {"energy": energies, "energy_reference": added}
        self.save_results(predictions, results_file)
        return predictions

    def physical_energies(self) -> PhysicalEnergies:
        """What the model's energies lack, by the checkpoint that was loaded, or else by the training set."""
        return PhysicalEnergies.of(self._loaded_config or self.config, self.normalizers, self.elementrefs)

    def run_relaxations(self) -> None:
        """Relax the structures of ``dataset.relax.src``: see `relax`."""
        relax(self, self.physical_energies())

    def load_loss(self) -> None:
        """fairchem's, and the loss functions of the objective's own outputs."""
        super().load_loss()
        self._objective_losses = {name: DDPLoss(fn, reduction="mean") for name, fn in self.objective.losses().items()}

    def _forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        with self._training_targets(batch):
            return self.objective.forward(super()._forward, batch)

    def _compute_loss(self, out: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        terms = [self._host_term(name, info, out, batch) for name, info in self.loss_functions]
        if not rows_of(batch):
            return self._evaluation_loss.add(terms)
        loss = total_loss(terms + self._objective_terms(out, batch))
        self._agree(loss, batch)
        return loss

    def _compute_metrics(
        self, out: dict[str, torch.Tensor], batch: Batch, evaluator: Evaluator, metrics: dict | None = None
    ) -> dict:
        rows = rows_of(batch)
        if rows is None:
            return super()._compute_metrics(out, batch, evaluator, metrics)
        metrics = metrics or {}
        if len(rows["forces"].where()) > 0:  # fairchem cannot average over no atoms
            metrics = self._host_metrics(out, batch, evaluator, metrics)
        physical = {name: self._denorm_preds(name, value.detach(), batch) for name, value in out.items()}
        for name, errors in self.objective.metrics(physical, batch).items():
            metrics = evaluator.update(name, statistics(errors), metrics)
        return metrics

    def _host_metrics(
        self, out: dict[str, torch.Tensor], batch: Batch, evaluator: Evaluator, metrics: dict | None
    ) -> dict:
        """fairchem's metrics on the rows that were predicted, which stand for the free atoms."""
        view = copy.copy(batch)
        view.fixed = (~rows_of(batch)["forces"].mask).int()
        with self._training_targets(batch, extra=False):
            predicted = {name: out[name] for name in self.output_targets}
            return super()._compute_metrics(predicted, view, evaluator, metrics)

    @contextlib.contextmanager
    def _training_targets(self, batch: Batch, *, extra: bool = True) -> Iterator[None]:
        """For a prepared batch: fairchem's targets on the rows that count, and the objective's outputs if ``extra``."""
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

    def _host_term(self, name: str, info: dict[str, Any], out: dict[str, torch.Tensor], batch: Batch) -> Term:
        """A target of fairchem's own: its labels normalised as fairchem does."""
        target, prediction, rows = batch[name], out[name], (rows_of(batch) or {}).get(name)
        target = target.view(prediction.shape)
        if rows is None or len(rows.mask) != len(target):  # fairchem gives three rows of stress for a structure
            rows = self._evaluated_rows(name, target, batch)
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
            rows=rows,
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

    def _evaluated_rows(self, name: str, target: torch.Tensor, batch: Batch) -> Rows:
        """The rows of a target (R, k) of which no objective says anything: of evaluation batches, or stress."""
        settings = self.output_targets[name]
        if settings["level"] == "atom" and settings["train_on_free_atoms"]:
            mask = free_atoms(batch)
        else:
            mask = torch.ones(len(target), dtype=torch.bool, device=target.device)
        return Rows(mask, mask.sum())

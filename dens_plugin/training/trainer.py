"""fairchem's trainer with an objective: it prepares the training batches, adds outputs and says which rows count.

Optimiser, averages, schedules, DDP, AMP, logging and all modes are fairchem's; the loop is `loop.TrainingLoop`, and
what makes a run safe to interrupt is `DurableTrainer`'s. Prediction and relaxation never see a corrupted batch;
validation sees the clean one and, for objectives with outputs of their own, a corrupted copy.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry

import dens_plugin.checks.registered  # noqa: F401
from dens_plugin.checks.dataset import require_files, require_normalizers
from dens_plugin.checks.identifiers import require_identifiers
from dens_plugin.checks.metrics import with_metrics
from dens_plugin.checks.objective import labels_of, objective_from_config, without_switches
from dens_plugin.checks.preflight import (
    COMPOSED,
    lacking,
    limits_of,
    require_edges,
    require_fitting_scales,
    require_labels,
    require_model,
    require_one_scale,
    require_outputs,
    require_predicted,
    require_scales,
)
from dens_plugin.checks.schema import require_known_blocks
from dens_plugin.checks.trust import require_plain_files
from dens_plugin.data.layout import completed
from dens_plugin.data.molecules.dataset import with_references
from dens_plugin.data.molecules.manifest import ORIGIN, origin_by_looking, with_origin
from dens_plugin.data.molecules.physical import PhysicalEnergies
from dens_plugin.data.oc22_references import with_element_references
from dens_plugin.data.records import LABELS, CheckedDataset
from dens_plugin.fields import Rows, free_atoms, padding_of, real_atoms, real_structures, rows_of
from dens_plugin.graphs.capture import recorder_for
from dens_plugin.graphs.recordings import Recordings
from dens_plugin.objectives.base import Errors
from dens_plugin.objectives.noise import StructureRandom
from dens_plugin.objectives.s2ef import S2EF
from dens_plugin.padding.buckets import Buckets, padded
from dens_plugin.padding.pad import without_ghosts
from dens_plugin.relaxation.run import relax
from dens_plugin.settings import switch, with_numbers
from dens_plugin.training.durable import DurableTrainer
from dens_plugin.training.graph_choice import is_graphed
from dens_plugin.training.graphed_step import GraphedStep
from dens_plugin.training.interruption import leave_to_trainer, workers_let_go
from dens_plugin.training.loading import (
    LOADER_WORKERS,
    PAD,
    AllFreeCollater,
    FixedEpoch,
    HasEpoch,
    NeighbourCollater,
    PreparingCollater,
    is_padded,
    loader_search,
)
from dens_plugin.training.losses import Loss, Term, term, total_loss
from dens_plugin.training.optimizer import spare_from_decay
from dens_plugin.training.step_random import seed_step
from dens_plugin.training.validation import ObjectiveErrors, averaged, summed
from dens_plugin.training.warm_start import warm_start, warn_of_other_scales

if TYPE_CHECKING:
    from fairchem.core.modules.evaluator import Evaluator
    from torch.utils.data import DataLoader, Dataset
    from torch_geometric.data import Batch, Data

_LOOKED_AT = 4  # training structures, before the first step
_USES = {"train": "train on", "val": "compare predictions with"}  # of labels
_VALIDATION_EPOCH = -1  # of the noise of validation, the same in every evaluation


@registry.register_trainer("dens")
@registry.register_trainer("denoising_forces")
class DeNSTrainer(DurableTrainer):
    """fairchem's trainer for any `Objective`; options beside fairchem's and those of `DurableTrainer`:

    - ``task.objective``: name and settings of the objective.
    - ``task.warm_start``: a checkpoint whose weights to start from, with which heads drawn anew.
    - ``task.predict_fixed_atoms``: whether predictions for the test set hold the forces of fixed atoms too.

    Raises:
        ValueError: before the first step, for a config, data set or model that makes no sense.
    """

    _inferences: Recordings[dict[str, torch.Tensor]] | None = None  # of padded batches, where they are recorded
    _references: PhysicalEnergies | None = None  # that files of frames were read with

    def load(self, inference_only: bool) -> None:
        """Read the objective, then everything else."""
        require_plain_files(self.config)
        if not inference_only:
            require_known_blocks(self.config)
        self.objective = S2EF(labels=labels_of(self.config)) if inference_only else objective_from_config(self.config)
        self.config["model"] = without_switches(self.config["model"])
        self._predict_fixed_atoms = switch(
            self.config["task"].get("predict_fixed_atoms", False), "task.predict_fixed_atoms"
        )
        if not inference_only:
            self.config |= with_element_references(self.config)
            self.config |= with_origin(self.config["dataset"])
            self.config["evaluation_metrics"] = with_metrics(self.config.get("evaluation_metrics"), self.objective)
        super().load(inference_only)

    def load_task(self) -> None:
        """fairchem's, with defaults for what it cannot do without."""
        for output in self.config["outputs"].values():
            if output.get("level") == "atom":
                output.setdefault("train_on_free_atoms", True)
                output.setdefault("eval_on_free_atoms", True)
        super().load_task()

    def load_model(self) -> None:
        """fairchem's.

        Raises:
            ValueError: if a head is one of another network, or the settings contradict each other.
        """
        try:
            super().load_model()
        except AttributeError as error:
            raise ValueError(
                f"a head does not fit the backbone ({error}); docs/configs.md has a table of which belong together"
            ) from error
        except (AssertionError, TypeError, ZeroDivisionError, IndexError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1].line
            raise ValueError(
                f"no model can be built from the settings under `model`: {error or type(error).__name__}, at {where!r}"
            ) from error

    def load_optimizer(self) -> None:
        """fairchem's, whose weight decay spares what the network's authors spare."""
        spare_from_decay(self._unwrapped_model)
        super().load_optimizer()

    def load_datasets(self) -> None:
        """fairchem's, after a look at model and files and before one at the first structure; not for inference."""
        require_model(self._unwrapped_model, self.objective)
        for split in ("train", "val", "test", "relax"):
            require_files(self.config["dataset" if split == "train" else f"{split}_dataset"], split)
        if self.objective.labels or self.config["test_dataset"]:
            asked = {key: value for key, value in self.config["outputs"].items() if key not in self._trained_on}
            require_predicted(self._unwrapped_model, asked, self._whose_predictions)
        optim = self.config["optim"]
        self._is_graphed = is_graphed(self._unwrapped_model, optim, self.device, has_scaler=self.scaler is not None)
        self._pads = self._is_graphed or is_padded(optim)
        self._recorder = recorder_for(self.device) if self._is_graphed else None
        if self._recorder is not None:
            self._inferences = Recordings(self._outputs, self._recorder, self.device, what="an evaluation")
        self._search = loader_search(self._unwrapped_model, {**optim, PAD: self._pads})
        self._buckets: dict[str, Buckets] = {}
        self.relax_dataset = None  # fairchem leaves it unset where there is none
        try:
            super().load_datasets()
        except AssertionError as error:
            raise ValueError(f"the data sets cannot be opened: {error}; `dens data check` says more") from error
        except ValueError as error:
            if "No valid ase data" in str(error):
                raise ValueError(
                    f"ASE can read no file of dataset.*.src by its `pattern`:{str(error).partition('data:')[2]}"
                ) from error
            hint = "; dataset.val and dataset.test take over what dataset.train has: give each its own"
            raise ValueError(f"{error}{hint if 'sample_n' in str(error) else ''}") from error
        if self.relax_dataset is not None:
            self.relax_dataset = self._checked(self.relax_dataset)
        self._require_first_structures()
        self._corrupted_loader = None
        if self.val_dataset is not None and self.objective.outputs:
            size = self.config["optim"].get("eval_batch_size", self.config["optim"].get("batch_size", 1))
            loader = self._checked_loader(self.val_dataset, self.get_sampler(self.val_dataset, size, shuffle=False))
            self._corrupted_loader = self._prepared(loader, FixedEpoch(_VALIDATION_EPOCH), "corrupted evaluation")

    @property
    def _whose_predictions(self) -> str:
        """The model, in words of an error about what it lacks."""
        if self.objective.labels:
            return "the model"
        return "dataset.test needs predictions (to train without it set dataset.test to null), and the model"

    def _require_first_structures(self) -> None:
        for split, dataset in (("train", self.train_dataset), ("val", self.val_dataset)):
            if dataset is not None:
                use = dict.fromkeys(self._trained_on, _USES[split])
                require_labels(self._checked(dataset)[0], use | dict(self.objective.needs), split)
        if self.test_dataset is not None:
            require_identifiers(self._checked(self.test_dataset))
        if self.train_dataset is not None:
            first = self._first_structures()
            require_edges(self._unwrapped_model, first)
            self._try_first_batch(self.collater(first[:1]))

    @property
    def _trained_on(self) -> list[str]:
        """Names of labels."""
        return [label.name for label in self.objective.labels]

    def _first_structures(self) -> list[Data]:
        return [completed(self.train_dataset[index]) for index in range(min(len(self.train_dataset), _LOOKED_AT))]

    def _try_first_batch(self, batch: Batch) -> None:
        """Let objective and model look at a batch; what they draw changes nothing."""
        prepared = self.objective.prepare(batch, StructureRandom(self.seed, epoch=0)).to(self.device)
        outputs = {output.name: output for output in (*self.objective.labels, *self.objective.outputs)}
        with torch.random.fork_rng(devices=[] if self.cpu else [self.device]):
            require_outputs(self._unwrapped_model, prepared, outputs)

    def _checked(self, dataset: Dataset) -> CheckedDataset:
        """The data set with a look at every structure that is read; labels count where something is made of them."""
        is_labelled = dataset is self.train_dataset or dataset is self.val_dataset
        needed = {*self._trained_on, *self.objective.needs}
        labels = [name for name in LABELS if name in needed] if is_labelled else ()
        return CheckedDataset(
            dataset, limits_of(self._unwrapped_model), labels, warns_of_overlaps=dataset is self.test_dataset
        )

    def load_references_and_normalizers(self) -> None:
        """fairchem's, with the warm start, which depends on them; gradient forces must share the energy's scale."""
        transforms = self.config["dataset"].get("transforms") or {}
        require_normalizers(transforms, "dataset.train.transforms")
        if "normalizer" in transforms:
            transforms["normalizer"] = with_numbers(transforms["normalizer"])
        super().load_references_and_normalizers()
        require_scales(self.normalizers)
        if "warm_start" in self.config["task"]:
            checkpoint = warm_start(self._unwrapped_model, self.config["task"]["warm_start"])
            warn_of_other_scales(checkpoint, self.normalizers, self.elementrefs)
        if self.train_dataset is not None:
            require_fitting_scales(self.normalizers, self._first_structures(), self.elementrefs)
        require_one_scale(self._unwrapped_model, self.normalizers, self.output_targets)
        if "normalizer" in transforms:  # numbers, not the files they came from: a checkpoint must load anywhere
            transforms["normalizer"] = {
                name: {"mean": values.mean.item(), "rmsd": values.rmsd.item()}
                for name, values in self.normalizers.items()
            }

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """`DurableTrainer`'s, with a note in the checkpoints of what the training set is of, if no manifest says it."""
        if ORIGIN not in self.config:
            with contextlib.suppress(ValueError):  # a record that cannot be read is told when it is trained on
                self.config |= origin_by_looking(self.train_dataset)
        super().train(disable_eval_tqdm)

    def get_dataloader(self, dataset: Dataset, sampler: Any, workers: int | None = None) -> DataLoader:
        """fairchem's; the one for training prepares its batches, and all but those for relaxation find neighbours."""
        loader = self._checked_loader(dataset, sampler, workers)
        if dataset is self.train_dataset:
            return self._prepared(loader, sampler.sampler, "training")
        if dataset is self.test_dataset and self._predict_fixed_atoms:
            loader.collate_fn = AllFreeCollater(loader.collate_fn)
        if dataset is self.relax_dataset:  # there atoms move on
            return loader
        loader = self._with_neighbours(loader)
        return loader if dataset is self.test_dataset else self._padded(loader, "evaluation")

    def _checked_loader(self, dataset: Dataset, sampler: Any, workers: int | None = None) -> DataLoader:
        if workers is None:
            workers = self.config["optim"].get(LOADER_WORKERS)
        loader = super().get_dataloader(self._checked(dataset), sampler, workers)
        if loader.num_workers > 0:
            loader.worker_init_fn = leave_to_trainer
            loader.multiprocessing_context = "fork"  # local launches spawn by default, and an open LMDB cannot be sent
        return loader

    def _prepared(self, loader: DataLoader, epochs: HasEpoch, name: str) -> DataLoader:
        """A loader whose batches the objective prepares, with the noise of an epoch."""
        loader.collate_fn = PreparingCollater(loader.collate_fn, self.objective, self.seed, epochs)
        return self._padded(self._with_neighbours(loader), name)

    def _padded(self, loader: DataLoader, name: str) -> DataLoader:
        """A loader with batches of a few sizes, where ``optim.pad`` or graphs ask for them."""
        if self._pads:
            self._buckets[name] = buckets = padded(loader)
            sizes = ", ".join(f"{budget.atoms} atoms and {budget.edges} edges" for budget in buckets.budgets)
            logging.info(f"Batches of {name} are padded to {sizes}.")
        return loader

    def _with_neighbours(self, loader: DataLoader) -> DataLoader:
        if self._search is not None:
            loader.collate_fn = NeighbourCollater(loader.collate_fn, self._search)
        return loader

    def predict(
        self,
        data: DataLoader | Batch,
        per_image: bool = True,
        results_file: str | None = None,
        disable_tqdm: bool = False,
    ) -> dict[str, Any]:
        """fairchem's; its file has energies as those of the training data had them, and what was added for that."""
        predictions = super().predict(data, per_image, None, disable_tqdm)
        if not per_image:
            return predictions
        physical = self.physical_energies()
        names = [name for name in physical.outputs if name in predictions]
        if names:
            structures = (data.dataset.raw(index)[0] for batch in data.batch_sampler for index in batch)
            numbers = [structure.atomic_numbers.tolist() for structure in structures]
        for name in names:
            added = [physical.missing(each, name) for each in numbers]
            if any(added):
                values = [float(value) + missing for value, missing in zip(predictions[name], added, strict=True)]
                predictions |= {name: values, f"{name}_reference": added}
        self.save_results(predictions, results_file)
        return predictions

    def physical_energies(self) -> PhysicalEnergies:
        """What the model's energies lack, by the checkpoint that was loaded, or else by the training set."""
        return PhysicalEnergies.of(self._loaded_config or self.config, self.normalizers, self.elementrefs)

    def run_relaxations(self) -> None:
        """Relax the structures of ``dataset.relax.src``: see `relax`."""
        relax(self, self.physical_energies())

    def _graphed_step(self) -> GraphedStep | None:
        """Recordings take the steps where they can."""
        if self._recorder is None or self._inferences is None:
            return None
        return GraphedStep(self, self._recorder, others=[self._inferences])

    def load_loss(self) -> None:
        """fairchem's, and the loss functions of the objective's own outputs."""
        super().load_loss()
        names = {label.name for label in self.objective.labels}
        self._label_losses = {
            name: (info["coefficient"], info["fn"].loss_fn) for name, info in self.loss_functions if name in names
        }
        self._own_losses = {output.name: registry.get_loss_class(output.loss)() for output in self.objective.outputs}

    def _forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Of a prepared batch the outputs that have rows, of another one those of the config, (N, dim) or (B, dim)."""
        batch = batch.to(self.device, non_blocking=True)  # fairchem's loaders pin its memory
        is_evaluation = not (self.model.training or torch.is_grad_enabled())
        if self._inferences is not None and is_evaluation and padding_of(batch) is not None:
            return self._inferences(batch)
        return self._outputs(batch)

    def _outputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The same, of a batch on the device."""
        with self._autocast():
            asked = rows_of(batch)
            if asked is None and any(COMPOSED & settings.keys() for settings in self.output_targets.values()):
                outputs = super()._forward(batch)
            else:
                # DDP of a single rank only copies: buffers before the pass, gradients behind it
                found = (self.model if distutils.get_world_size() > 1 else self._unwrapped_model)(batch)
                sizes = self._sizes(batch) if asked is None else {name: len(each.mask) for name, each in asked.items()}
                missing = next((name for name in sizes if name not in found), None)
                if missing is not None:
                    raise ValueError(f"the model {lacking(missing, found)}")
                outputs = {name: found[name].view(size, -1) for name, size in sizes.items()}
        return {name: self._widened(value) for name, value in outputs.items()}

    def _sizes(self, batch: Batch) -> dict[str, int]:
        """Rows of the config's outputs, by what is no question to a GPU."""
        return {
            name: len(batch.pos) if settings["level"] == "atom" else len(batch.natoms)
            for name, settings in self.output_targets.items()
        }

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self._autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)

    def _widened(self, value: torch.Tensor) -> torch.Tensor:
        """Back to float32 what bf16 autocast left in bf16: losses and metrics are sums over many terms."""
        return value.float() if value.dtype == self._autocast_dtype else value

    def coefficients(self) -> Mapping[str, float]:
        """Weights of the objective's own outputs in the loss at this point of the run."""
        return self.objective.coefficients(self.epoch / self.config["optim"]["max_epochs"])

    def loss(
        self,
        outputs: Mapping[str, torch.Tensor],
        batch: Batch,
        coefficients: Mapping[str, torch.Tensor] | None = None,
    ) -> Loss:
        """The loss of a prepared batch: of labels by the config, of the objective's own outputs by the objective.

        Args:
            outputs: of the model.
            batch: prepared.
            coefficients: for a captured step, whose batch has the counts of all ranks; those of now by default.
        """
        terms = [self._label_term(name, outputs[name], batch, rows_of(batch)[name]) for name in self._label_losses]
        own = self._own_terms(outputs, batch, self.coefficients() if coefficients is None else coefficients)
        return total_loss(terms + own, is_told=coefficients is not None)

    def _compute_loss(self, out: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """fairchem's validation asks for it: of the labels alone, summed up for the whole set."""
        if rows_of(batch) is not None:
            return self.loss(out, batch).value
        terms = [
            self._label_term(name, out[name], batch, self._evaluated_rows(name, batch)) for name in self._label_losses
        ]
        return self._evaluation_loss.add(terms)

    def _compute_metrics(
        self,
        out: dict[str, torch.Tensor],
        batch: Batch,
        evaluator: Evaluator,
        metrics: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """fairchem's, of real atoms and structures."""
        real = without_ghosts(batch)
        of_atoms = {name for name, settings in self.output_targets.items() if settings["level"] == "atom"}
        sizes = {name: len(real.pos) if name in of_atoms else real.num_graphs for name in out}
        out = {name: value[: sizes[name]] for name, value in out.items()}
        return super()._compute_metrics(out, real, evaluator, metrics)

    def _label_term(self, name: str, prediction: torch.Tensor, batch: Batch, rows: Rows) -> Term:
        """An output with labels in the data, which are normalised as fairchem does."""
        target = batch[name].view(prediction.shape)
        natoms = batch.natoms if len(target) == batch.num_graphs else batch.natoms[batch.batch]
        if name in self.elementrefs:
            target = self.elementrefs[name].dereference(target, batch)
        if name in self.normalizers:
            target = self.normalizers[name].norm(target)
        coefficient, loss_fn = self._label_losses[name]
        return term(coefficient, loss_fn, prediction=prediction, target=target, rows=rows, natoms=natoms)

    def _own_terms(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, coefficients: Mapping[str, float | torch.Tensor]
    ) -> list[Term]:
        """The objective's own outputs."""
        targets, predictions = self.objective.targets(batch), self.objective.predictions(outputs, batch)
        of_row = {"atom": batch.natoms[batch.batch], "structure": batch.natoms}
        return [
            term(
                coefficients[output.name],
                self._own_losses[output.name],
                prediction=predictions[output.name],
                target=targets[output.name],
                rows=rows_of(batch)[output.name],
                natoms=of_row[output.level],
            )
            for output in self.objective.outputs
        ]

    def training_errors(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> dict[str, Errors]:
        """What is worth watching of a prepared batch: mean absolute errors of labels, and the objective's own."""
        physical = {name: self._denorm_preds(name, value.detach(), batch) for name, value in outputs.items()}
        found = {
            f"{label.name}_mae": Errors(
                (physical[label.name] - batch[label.name].view(physical[label.name].shape)).abs(),
                rows_of(batch)[label.name].mask,
            )
            for label in self.objective.labels
        }
        return found | self.objective.metrics(physical, batch)

    def _validated(self, split: str, disable_tqdm: bool) -> dict[str, Any]:
        """The errors of labels on the clean set, and the objective's own on a corrupted copy of it."""
        self._take_references()
        if "training" in self._buckets and self._buckets["training"].are_used and distutils.is_master():
            logging.info(f"Padding: {self._buckets['training'].waste} in training so far.")
        metrics = super()._validated(split, disable_tqdm) if self.objective.labels else {}
        if self._corrupted_loader is None or split != "val":
            return metrics
        own = self._corrupted_metrics(self._corrupted_loader)
        row = {name: values["metric"] for name, values in own.items()}
        if distutils.is_master():
            logging.info("On a corrupted copy: " + "  ".join(f"{name} {value:.4g}" for name, value in row.items()))
        if self.logger is not None:
            self.logger.log({**row, "epoch": self.epoch}, step=self.step, split=split)
        return metrics | own

    def _take_references(self) -> None:
        """Let files of frames lack what the training data do; it is known late, and they are read anew for it once."""
        known = self.physical_energies()
        if known == self._references:
            return
        self._references = known
        for loader in (self.val_loader, self.test_loader, self._corrupted_loader):
            with_references(None if loader is None else loader.dataset, known.missing)

    @torch.no_grad()
    def _corrupted_metrics(self, loader: DataLoader) -> dict[str, dict[str, Any]]:
        """Name -> total, numel and metric over all ranks."""
        errors = ObjectiveErrors(self.objective)
        seed_step(self.seed, self.step, "corrupted")
        self.model.eval()
        with self._without_ddp(), workers_let_go(), averaged(self.ema):
            for batch in loader:
                outputs = self._forward(batch)
                physical = {name: self._denorm_preds(name, value, batch) for name, value in outputs.items()}
                errors.add(outputs, physical, batch)
        return summed(errors.totals())

    def _evaluated_rows(self, name: str, batch: Batch) -> Rows:
        """The rows of a label in an evaluation batch."""
        settings = self.output_targets[name]
        if settings["level"] != "atom":
            return Rows.mean(real_structures(batch))
        return Rows.mean(free_atoms(batch) if settings["train_on_free_atoms"] else real_atoms(batch))

"""What is looked at before the first step, so that a run that cannot work says so in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.models.base import HydraModel

from dens_plugin.data.lmdb_file import require_whole_lmdb
from dens_plugin.nn.force_encoding import ForceEncoding
from dens_plugin.training.loader import require_finite_labels

if TYPE_CHECKING:
    from torch import nn
    from torch_geometric.data import Batch

    from dens_plugin.objectives.base import Objective

_LMDB_FORMATS = ("lmdb", "dens_lmdb", "single_point_lmdb", "trajectory_lmdb", "oc22_lmdb")


def require_files(dataset: Mapping[str, Any], split: str) -> None:
    """Raise for a data set of which the path does not exist or an LMDB was cut short.

    Raises:
        FileNotFoundError: naming the path and the config key.
        ValueError: naming a truncated file.
    """
    sources = dataset.get("src") or []
    for source in [sources] if isinstance(sources, str) else sources:
        if not Path(source).exists():
            raise FileNotFoundError(f"dataset.{split}.src: there is no '{source}'; set it to a data set's path")
        if dataset.get("format", "lmdb") in _LMDB_FORMATS:
            require_whole_lmdb(source)


def require_distinct(datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError if two splits name the same LMDB, which can be opened only once in a process."""
    seen: dict[Path, str] = {}
    for split, dataset in datasets.items():
        if dataset.get("format", "lmdb") not in _LMDB_FORMATS:
            continue
        sources = dataset.get("src") or []
        for source in [sources] if isinstance(sources, str) else sources:
            path = Path(source).resolve()
            if path in seen:
                raise ValueError(
                    f"dataset.{seen[path]}.src and dataset.{split}.src are both '{source}', and LMDB opens a file "
                    "only once in a process; give one of them a copy, or leave it out"
                )
            seen[path] = split


def require_scales(normalizers: Mapping[str, Any]) -> None:
    """Raise ValueError for a normaliser by which nothing can be divided."""
    for name, normalizer in normalizers.items():
        scale = normalizer.rmsd
        if not (torch.isfinite(scale) & (scale > 0)).all():
            raise ValueError(
                f"dataset.train.transforms.normalizer.{name}.stdev is {scale.tolist()}; it must be above 0: "
                "`dens data check` prints a normaliser for the data set"
            )


def require_labels(batch: Batch, targets: Mapping[str, Any], objective: Objective) -> None:
    """Raise ValueError if the first training structure lacks what the config trains on."""
    for name in targets:
        if name not in batch:
            raise ValueError(
                f"the training set has no `{name}`, only {', '.join(sorted(batch.keys()))}; "
                "map its name with `dataset.train.key_mapping` (old LMDBs: `{y: energy, force: forces}`)"
            )
    require_finite_labels(batch)
    objective.check(batch)


def require_model(model: nn.Module, objective: Objective) -> None:
    """Raise ValueError if the model lacks what the objective needs, or has what it does not use."""
    heads = model.output_heads if isinstance(model, HydraModel) else {}
    offered = {getattr(head, "output_name", name) for name, head in heads.items()}  # not all of the host's heads say
    for name in objective.outputs:
        if name not in offered:
            raise ValueError(
                f"the objective predicts `{name}` and {type(model).__name__} has no head for it; add "
                "`noise: {module: dens_plugin.NoiseHead}` to model.heads (or ESCNNoiseHead, ESENNoiseHead, "
                "EquiformerNoiseHead) beside the DeNS backbone of that family, or use a flat model: "
                "`equiformer_v2_dens`, `escn_dens`, `equiformer_dens`"
            )
    can_encode = any(isinstance(module, ForceEncoding) for module in model.modules())
    if can_encode and not objective.outputs:
        raise ValueError(
            "the model has parts for DeNS that this objective never uses, which distributed training refuses; use "
            "`objective: {name: dens, prob: 0}`, which is plain S2EF, or fairchem's own backbone and no noise head"
        )
    if objective.encode_forces and not can_encode:
        raise ValueError(
            "the objective encodes forces and the backbone does not: denoising would be ill-posed; use backbone "
            "dens_plugin.EquiformerV2DeNS, ESCNDeNS, ESENDeNS or EquiformerDeNS, or set `encode_forces: false` for the "
            "ablation"
        )


def require_one_scale(model: nn.Module, normalizers: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
    """Raise ValueError if forces or stress are derivatives of the energy and are not normalised by its factor."""
    if not any(getattr(module, "forces_are_gradients", False) for module in model.modules()):
        return
    scales = {
        name: normalizers[name].rmsd.item() if name in normalizers else 1.0
        for name in ("energy", "forces", "stress")
        if name in targets
    }
    if len(set(scales.values())) > 1:
        found = ", ".join(f"{name} {scale:g}" for name, scale in scales.items())
        raise ValueError(
            "the model's forces are gradients of its normalised energy: dataset.train.transforms.normalizer must give "
            f"one `stdev` to all of them, and has {found}; take that of the forces"
        )

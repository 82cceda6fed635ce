"""Checkpoints of other implementations of networks with DeNS, to this package's and to fairchem's plain ones.

Weights, normalisers and model settings are kept; optimiser, schedule and step count are not, since their lists follow
another order of parameters.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config

import dens_plugin.checks.registered  # noqa: F401
from dens_plugin.backbones.family import Family, State, family_of
from dens_plugin.checks.objective import without_switches
from dens_plugin.compat import load_checkpoint, prepare_host
from dens_plugin.data.output import require_makeable
from dens_plugin.settings import mapping, number

_DENS, _PLAIN = "dens", "plain"
_UNTRAINED = {"expand_index", "l_harmonic", "m_harmonic", "m_complex", "res_size", "to_m", "m_size"} | {
    "to_grid_mat",
    "balance_degree_weight",
    "from_grid_mat",
    "offset",
    "energy_lin_ref",
    "sphere_points",
    "sphharm_weights",
}
_OF_DENS = ("use_force_encoding", "model", "name")


def convert(
    source: str | Path, out: str | Path, *, to: str = _DENS, average: bool = True, config_yml: str | Path | None = None
) -> Path:
    """Convert a checkpoint of the authors' code, of fairchem 1.10 or of this package.

    Args:
        source: the checkpoint to read.
        out: the file to write; must not exist.
        to: ``dens`` for this package's network with DeNS, ``plain`` for fairchem's without.
        average: take the averaged weights (EMA) where the checkpoint has them.
        config_yml: the config of a checkpoint that holds none, with the ``model`` block of its code and numbers for
            ``dataset.train.transforms.normalizer``.

    Returns:
        The path of the new checkpoint.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        FileExistsError: if ``out`` exists.
        ValueError: if the checkpoint is of another model, or its weights do not fit its settings.
    """
    prepare_host()
    source, out = Path(source), Path(out)
    require_makeable(out)
    if out.exists():
        raise FileExistsError(f"'{out}' exists already; remove it or choose another name")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder '{out.parent}' to write '{out.name}' to; make it first")
    checkpoint = load_checkpoint(source)
    if not checkpoint.get("state_dict"):
        _model_settings(checkpoint, source)  # which says what else it lacks
    family = family_of(checkpoint.get("state_dict", {}), source)
    if family.same_everywhere:
        raise ValueError(
            f"'{source}' is an {family.title}, which needs no conversion: `task.warm_start: {source}` trains on from "
            "it, with DeNS or without, and `dens nve` and load_calculator take it as it is"
        )
    backbone = family.backbone if to == _DENS else family.plain
    if backbone is None:
        raise ValueError(f"fairchem has no {family.title} to convert to; use ours as it is")
    if config_yml is not None:
        checkpoint = _completed(checkpoint, load_config(Path(config_yml))[0], source)
    settings = _model_settings(checkpoint, source)
    weights = _averaged(checkpoint) if average and checkpoint.get("ema") else checkpoint["state_dict"]
    found = family.translate(weights, _hyperparameters(settings))
    if to == _DENS and family.encoding and not any(key.startswith(family.encoding) for key in found.state):
        raise ValueError(f"'{source}' is a plain {family.title}; train it with DeNS from `task.warm_start: {source}`")
    heads = _heads(settings, found.state, family, to)
    kept = (*(f"output_heads.{name}." for name in heads), "backbone.")
    state = {key: value for key, value in found.state.items() if key.startswith(kept)}
    if to == _PLAIN:
        state = {key: value for key, value in state.items() if not key.startswith(family.encoding)}
    model = _hydra(found.settings, backbone=backbone, heads=heads)
    state = _fitted(model, state, source)
    for note in found.notes:
        logging.warning(note)
    references = _references(checkpoint, found.references, source)
    _write(_assembled(checkpoint, state, model, to) | {"elementrefs": references}, out)
    return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dens convert`."""
    parser.add_argument("source", type=Path, help="checkpoint of the authors, of fairchem, or of this package")
    parser.add_argument("out", type=Path, help="checkpoint to write")
    parser.add_argument("--to", choices=[_DENS, _PLAIN], default=_DENS, help="the model to convert to")
    parser.add_argument("--config-yml", type=Path, metavar="FILE", help="the config of a checkpoint that holds none")
    parser.add_argument("--raw-weights", action="store_true", help="the last weights rather than their average (EMA)")


def run(args: argparse.Namespace) -> None:
    """Run `dens convert`."""
    out = convert(args.source, args.out, to=args.to, average=not args.raw_weights, config_yml=args.config_yml)
    print(f"Wrote {out}: weights, normalisers and settings. Optimiser and schedule start afresh.")


def _model_settings(checkpoint: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The model block of a checkpoint, whichever of its three layouts it has."""
    config = checkpoint.get("config")
    if config is None or "state_dict" not in checkpoint:
        raise ValueError(
            f"'{source}' lacks `config` or `state_dict`; give a checkpoint that a trainer wrote, or its config by "
            "--config-yml"
        )
    model = config.get("model_attributes") or config.get("model")
    if not isinstance(model, Mapping):
        raise ValueError(f"'{source}' has no settings of its model (found {model!r}); its config is incomplete")
    return without_switches(model)


def _completed(checkpoint: Mapping[str, Any], config: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """A checkpoint with the config that it lacks, and the normalisers in it."""
    if "config" in checkpoint:
        raise ValueError(f"'{source}' holds its own config; leave out --config-yml")
    train = mapping(config.get("dataset") or {}, "dataset").get("train") or {}
    blocks = (train.get("transforms") or {}).get("normalizer") or {}
    normalizers = {
        name: {
            "mean": torch.tensor(number(block.get("mean", 0.0), f"normalizer.{name}.mean")),
            "rmsd": torch.tensor(number(block.get("stdev", block.get("rmsd")), f"normalizer.{name}.stdev")),
        }
        for name, block in blocks.items()
    }
    return {"normalizers": normalizers, **checkpoint, "config": {"task": {}, **config}}


def _hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the backbone, whether they are flat or stand under ``backbone``."""
    flat = without_switches(settings.get("backbone", settings))
    return {key: value for key, value in flat.items() if key not in _OF_DENS}


def _hydra(settings: Mapping[str, Any], *, backbone: str, heads: dict[str, Any]) -> dict[str, Any]:
    """A hydra model block, of a backbone's hyper-parameters."""
    return {
        "name": "hydra",
        "otf_graph": True,
        "pass_through_head_outputs": True,
        "backbone": {"model": backbone, "otf_graph": True, **settings},
        "heads": heads,
    }


def _heads(settings: Mapping[str, Any], state: State, family: Family, to: str) -> dict[str, Any]:
    """The family's heads of those that the file has weights of, and others, such as stress, as the source has them.

    What is neither is a vector that served training alone; it is left out of plain networks.
    """
    named = {key.split(".")[1]: None for key in state if key.startswith("output_heads.")}
    standard = family.heads if to == _DENS else family.plain_heads
    heads: dict[str, Any] = {}
    for name in [*standard, *named]:
        if name not in named or name in heads:
            continue
        source = _as_now(settings.get("heads", {}).get(name, {}))
        if name in standard:
            heads[name] = {"module": standard[name]}
        elif source and not _is_auxiliary(source["module"]):
            heads[name] = source
        elif to == _DENS:
            heads[name] = {"module": family.auxiliary, "output_name": name}
    return heads


def _as_now(head: Mapping[str, Any]) -> dict[str, Any]:
    """A head's block, of fairchem's head for stress in DeNS too, which has an ablation switch more."""
    block = {key: value for key, value in head.items() if key != "use_denoising"}
    return block | {"module": "rank2_symmetric_head"} if block.get("module") == "dens_rank2_symmetric_head" else block


def _is_auxiliary(module: str) -> bool:
    return bool(getattr(registry.get_model_class(module), "auxiliary", False))


def _references(checkpoint: Mapping[str, Any], of_network: torch.Tensor | None, source: Path) -> dict[str, Any]:
    """fairchem's element references: a checkpoint's own, or the energies (Z,) that its network adds, in eV."""
    own = checkpoint.get("elementrefs", {})
    if of_network is None:
        return own
    if "energy" in own:
        raise ValueError(f"'{source}' has references of elements twice: in its network (energy_lin_ref) and beside it")
    scale = _normalizers(checkpoint.get("normalizers", {})).get("energy", {}).get("rmsd", torch.tensor(1.0))
    return {**own, "energy": {"element_references": of_network.detach().cpu() * scale.cpu()}}


def _averaged(checkpoint: Mapping[str, Any]) -> State:
    """The state dict with the averaged parameters, which fairchem keeps as a list in the model's order."""
    state, averages = checkpoint["state_dict"], checkpoint["ema"]["shadow_params"]
    names = [name for name in state if not _UNTRAINED.intersection(name.split("."))]
    shapes_differ = any(state[name].shape != value.shape for name, value in zip(names, averages, strict=False))
    if len(names) != len(averages) or shapes_differ:
        raise ValueError(
            f"the checkpoint's {len(averages)} averaged weights do not line up with its {len(names)} parameters; "
            "use --raw-weights, or convert best_checkpoint.pt, which holds averaged weights"
        )
    return {**state, **dict(zip(names, averages, strict=True))}


def _fitted(model: dict[str, Any], state: State, source: Path) -> State:
    """The whole state of the model: a conversion that cannot be used is an error.

    Constants, which are buffers and follow from the settings, are the model's own where the file has none.
    """
    settings = copy.deepcopy(model)
    built = registry.get_model_class(settings.pop("name"))(**settings)
    constants = built.state_dict().keys() - dict(built.named_parameters()).keys()
    complete = {key: value for key, value in built.state_dict().items() if key in constants} | state
    try:
        built.load_state_dict(complete)
    except RuntimeError as error:
        raise ValueError(f"the weights of '{source}' do not fit its settings: {error}") from error
    return {key: complete[key] for key in built.state_dict()}


def _assembled(checkpoint: Mapping[str, Any], state: State, model: dict[str, Any], to: str) -> dict[str, Any]:
    config = {key: value for key, value in checkpoint["config"].items() if key != "model_attributes"}
    config["model"] = model
    config["trainer"] = "dens_plugin.DeNSTrainer" if to == _DENS else "ocp"
    return {
        "state_dict": {f"module.{key}": value for key, value in state.items()},  # as fairchem saves it
        "normalizers": _normalizers(checkpoint.get("normalizers", {})),
        "config": config,
        "val_metrics": checkpoint.get("val_metrics"),
        "amp": None,
    }


def _normalizers(normalizers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    """{mean, std} of older files as {mean, rmsd}; the noise has no normaliser here, its sigma is a setting."""
    renamed = {
        name: {"rmsd" if key == "std" else key: torch.as_tensor(value) for key, value in values.items()}
        for name, values in normalizers.items()
    }
    return {name: values for name, values in renamed.items() if not name.startswith("denoising")}


def _write(checkpoint: dict[str, Any], out: Path) -> None:
    """Write under another name first, so that no half-written file is ever taken for a checkpoint."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        torch.save(checkpoint, partial)
        os.replace(partial, out)
    except RuntimeError as error:  # torch's, for a full disk or a folder that cannot be written
        raise OSError(
            f"'{out}' cannot be written ({str(error).splitlines()[0]}): make room, or name another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)

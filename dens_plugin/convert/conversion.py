"""Checkpoints of other implementations of networks with DeNS, to this package's and to fairchem's plain ones.

Weights, normalisers and model settings are kept; optimiser, schedule and step count are not, since their lists follow
another order of parameters.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config

import dens_plugin.checks.registered  # noqa: F401
from dens_plugin.backbones.equiformer import keys as equiformer_keys
from dens_plugin.backbones.equiformer.flat import PAPER_CHANNELS, backbone_settings
from dens_plugin.backbones.key_map import State, to_plain_keys, to_plugin_keys
from dens_plugin.checks.objective import without_switches
from dens_plugin.compat import load_checkpoint, prepare_host
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
_OF_ESEN = "backbone.blocks.0.edge_wise."  # how names of its parameters, and of no other network's, go on
_OUTPUTS = {"energy", "forces", "noise"}
_OF_DENS = ("use_force_encoding", "model", "name")
_AUTHORS_OPTIONS = {"use_noise_schedule_sigma_encoding": False, "use_tp_reparam": False, "use_grid": True}


class _Family(NamedTuple):
    """A network, with DeNS and without.

    Attributes:
        title: what people call it.
        sign: how names of its parameters, and of no other network's, begin.
        backbones: the backbone for each target of a conversion.
        heads: the heads, output -> module, for each target.
    """

    title: str
    sign: str
    backbones: dict[str, str]
    heads: dict[str, dict[str, str]]


_FAMILIES = (
    _Family(
        title="EquiformerV2",
        sign="backbone.blocks.0.ga.so2_conv_1.",
        backbones={_DENS: "dens_plugin.EquiformerV2DeNS", _PLAIN: "equiformer_v2_backbone"},
        heads={
            _DENS: {
                "energy": "dens_plugin.EnergyHead",
                "forces": "dens_plugin.ForceHead",
                "noise": "dens_plugin.NoiseHead",
            },
            _PLAIN: {"energy": "equiformerV2_scalar_head", "forces": "equiformerV2_vector_head"},
        },
    ),
    _Family(
        title="eSCN",
        sign="backbone.layer_blocks.0.message_block.",
        backbones={_DENS: "dens_plugin.ESCNDeNS", _PLAIN: "escn_backbone"},
        heads={
            _DENS: {
                "energy": "dens_plugin.ESCNEnergyHead",
                "forces": "dens_plugin.ESCNForceHead",
                "noise": "dens_plugin.ESCNNoiseHead",
            },
            _PLAIN: {"energy": "escn_energy_head", "forces": "escn_force_head"},
        },
    ),
    _Family(  # fairchem has no plain one, and ours costs nothing more at inference
        title="Equiformer",
        sign="backbone.blocks.0.attention.merge_source.",
        backbones={_DENS: "dens_plugin.EquiformerDeNS"},
        heads={_DENS: {"energy": "dens_plugin.EquiformerGradientHead", "noise": "dens_plugin.EquiformerNoiseHead"}},
    ),
)


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
    if out.exists():
        raise FileExistsError(f"'{out}' exists already; remove it or choose another name")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder '{out.parent}' to write '{out.name}' to; make it first")
    checkpoint = load_checkpoint(source)
    _refuse_esen(checkpoint, source)
    if config_yml is not None:
        checkpoint = _completed(checkpoint, load_config(Path(config_yml))[0], source)
    settings = _model_settings(checkpoint, source)
    weights = _averaged(checkpoint) if average and checkpoint.get("ema") else checkpoint["state_dict"]
    if equiformer_keys.is_authors(weights):
        settings = backbone_settings({key: value for key, value in settings.items() if key not in _OF_DENS})
        weights = equiformer_keys.to_plugin_keys(weights, settings.get("channels", PAPER_CHANNELS))
    state = to_plugin_keys(weights) if to == _DENS else to_plain_keys(weights)
    family = _family(state, source)
    if to not in family.backbones:
        raise ValueError(f"fairchem has no {family.title} to convert to; ours takes no more time at inference than one")
    if to == _DENS and not any(key.startswith("backbone.force_embedding.") for key in state):
        raise ValueError(f"'{source}' is a plain {family.title}; train it with DeNS from `task.warm_start: {source}`")
    model = _hydra(settings, backbone=family.backbones[to], heads=_heads(settings, family.heads[to]))
    _require_fit(model, state, source)
    _write(_assembled(checkpoint, state, model, to), out)
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


def _refuse_esen(checkpoint: Mapping[str, Any], source: Path) -> None:
    """Raise ValueError for an eSEN, whose parameters have one set of names everywhere."""
    if any(_OF_ESEN in key for key in checkpoint.get("state_dict", {})):
        raise ValueError(
            f"'{source}' is an eSEN, which needs no conversion: `task.warm_start: {source}` trains on from it, with "
            "DeNS or without, and `dens nve` and load_calculator take it as it is"
        )


def _family(state: State, source: Path) -> _Family:
    """The network that parameters belong to, by their names here."""
    for family in _FAMILIES:
        if any(key.startswith(family.sign) for key in state):
            return family
    known = ", ".join(family.title for family in _FAMILIES)
    raise ValueError(f"'{source}' is of another network than those that can be converted: {known}")


def _hydra(settings: Mapping[str, Any], *, backbone: str, heads: dict[str, Any]) -> dict[str, Any]:
    """A hydra model block, from hyper-parameters that are flat or already stand under ``backbone``."""
    flat = without_switches(settings.get("backbone", settings))
    for name, possible in _AUTHORS_OPTIONS.items():
        if flat.pop(name, possible) != possible:
            raise ValueError(f"the checkpoint's network has {name}: {not possible}, which fairchem's lacks")
    hyperparameters = {key: value for key, value in flat.items() if key not in _OF_DENS}
    return {
        "name": "hydra",
        "otf_graph": True,
        "pass_through_head_outputs": True,
        "backbone": {"model": backbone, "otf_graph": True, **hyperparameters},
        "heads": heads,
    }


def _heads(settings: Mapping[str, Any], standard: Mapping[str, str]) -> dict[str, Any]:
    """The standard heads, and those of other properties, such as stress, as the source has them."""
    others = {name: dict(head) for name, head in settings.get("heads", {}).items() if name not in _OUTPUTS}
    for head in others.values():
        head.pop("use_denoising", None)
        if head["module"] == "dens_rank2_symmetric_head":  # fairchem's head with an ablation switch
            head["module"] = "rank2_symmetric_head"
    return {**{name: {"module": module} for name, module in standard.items()}, **others}


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


def _require_fit(model: dict[str, Any], state: State, source: Path) -> None:
    """Build the model and load the weights strictly: a conversion that cannot be used is none."""
    settings = copy.deepcopy(model)
    built = registry.get_model_class(settings.pop("name"))(**settings)
    try:
        built.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights of '{source}' do not fit its settings: {error}") from error


def _assembled(checkpoint: Mapping[str, Any], state: State, model: dict[str, Any], to: str) -> dict[str, Any]:
    config = {key: value for key, value in checkpoint["config"].items() if key != "model_attributes"}
    config["model"] = model
    config["trainer"] = "dens_plugin.DeNSTrainer" if to == _DENS else "ocp"
    return {
        "state_dict": {f"module.{key}": value for key, value in state.items()},  # as fairchem saves it
        "normalizers": _normalizers(checkpoint.get("normalizers", {})),
        "elementrefs": checkpoint.get("elementrefs", {}),
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

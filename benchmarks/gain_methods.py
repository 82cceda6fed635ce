"""What `gains.py` compares: methods, networks, and points of a search in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dens_plugin.checks.objective import objective_from_config


class Network(NamedTuple):
    """Names of a network's parts.

    Attributes:
        settings: file of `configs/backbone`.
        backbone: without the encoding of forces.
        with_vectors: without it, and with all that heads for vectors need.
        encoding: with it.
        energy: the head for energy and, as its gradient, forces.
        vectors: the head for noise, or for another vector of an atom.
    """

    settings: str
    backbone: str
    with_vectors: str
    encoding: str
    energy: str
    vectors: str

    @classmethod
    def of(cls, name: str, settings: str, *, vectors: str = "NoiseHead", has_vectors: bool = True) -> Network:
        """By the names that this package's networks have in common."""
        dens = f"{name}DeNS"
        parts = (name, name if has_vectors else dens, dens, f"{name}GradientHead", f"{name}{vectors}")
        return cls(settings, *(f"dens_plugin.{part}" for part in parts))


class Pretraining(NamedTuple):
    """Denoising of other molecules, without labels, once for each seed and network.

    Attributes:
        molecules: of `SOURCES`.
        sigma: of the noise, Å.
        steps: of the optimiser, with batches of `batch_size`.
        batch_size: in structures.
    """

    molecules: str = "ani"
    sigma: float = 0.2
    steps: int = 10_000
    batch_size: int = 32


class Method(NamedTuple):
    """How a network is trained.

    Attributes:
        objective: the block of the config.
        heads: for vectors, beside that for energy and forces.
        encodes: whether forces are encoded.
        pretraining: that the weights come from.
        optim: settings beside the common ones, or instead of them.
        model: as ``optim``.
    """

    objective: Mapping[str, Any]
    heads: tuple[str, ...] = ()
    encodes: bool = False
    pretraining: Pretraining | None = None
    optim: Mapping[str, Any] = {}
    model: Mapping[str, Any] = {}


NETWORKS = {
    "painn": Network.of("PaiNN", "painn_molecule"),
    "torchmd_et": Network.of("TorchMDET", "torchmd_et_md17", vectors="VectorHead"),
    "torchmd_et_mini": Network.of("TorchMDET", "torchmd_et_mini_molecule", vectors="VectorHead"),
    "equiformer_mini": Network.of("Equiformer", "equiformer_mini_molecule", has_vectors=False),
}
_OTHERS = ("benzene", "toluene", "naphthalene", "salicylic", "azobenzene", "paracetamol")
SOURCES = {  # of pre-training: files beside the folder of molecules, and in it
    "ani": ("../ani/amons_train", "../ani/ani1_hydrocarbons_s01s02"),
    "md17": tuple(f"rmd17_{molecule}_train" for molecule in _OTHERS),
}
_DENS = {
    "name": "dens",
    "prob": 0.5,
    "corrupt_ratio": 0.5,
    "sigma": 0.05,
    "coefficient": 5,
    "decay_to": 0,
    "denominators": "own",
}
_NOISY_NODES = {"name": "noisy_nodes", "sigma": 0.005, "coefficient": 0.1, "keep_labels": True}


def _dens(**changes: Any) -> Method:
    return Method(_DENS | changes, ("noise",), encodes=True)


METHODS = {
    "s2ef": Method({"name": "s2ef"}),
    "dens": _dens(),
    "dens_p75": _dens(prob=0.75),  # `configs/objective/dens_molecule.yml`, chosen by validation
    "dens_quarter": _dens(prob=0.25, corrupt_ratio=0.25),
    "dens_copy": _dens(keep_labels=True),
    "dens_copy_p75": _dens(prob=0.75, keep_labels=True),
    "dens_no_encoding": _dens(prob=0.75, encode_forces=False),
    "dropped_labels": _dens(prob=0.75, only_drop_labels=True),
    "noisy_nodes": Method(_NOISY_NODES, ("noise",)),
    "ndem": Method({"name": "ndem"}, ("auxiliary_forces",)),
    "pretrained": Method({"name": "s2ef"}, pretraining=Pretraining()),
    "pretrained_md17": Method({"name": "s2ef"}, pretraining=Pretraining("md17", sigma=0.1)),
    "pretrained_dens": _dens(prob=0.75)._replace(pretraining=Pretraining()),
}
_OF_A_POINT = ("method", "objective", "optim", "model", "pretraining")


def read_points(path: Path) -> dict[str, Method]:
    """Methods with other settings, by the names that a file gives them.

    A name's block has ``method``, of `METHODS`, and what is to be different: ``objective``, ``optim``, ``model``,
    ``pretraining``.

    Raises:
        ValueError: for a file that is none, or a name or a setting that cannot be used.
    """
    try:
        blocks = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"'{path}' is no file of points: {error}") from error
    if not isinstance(blocks, dict) or not blocks:
        raise ValueError(f"'{path}' has no points; write `NAME: {{method: dens, objective: {{prob: 0.9}}}}` into it")
    points = {}
    for name, block in blocks.items():
        if not re.fullmatch(r"\w+", str(name)) or name in METHODS:
            raise ValueError(f"'{path}': {name!r} cannot be a name: it has letters, digits and _ and is no method's")
        try:
            points[name] = _changed(block)
        except ValueError as error:
            raise ValueError(f"'{path}': {name}: {error}") from error
    return points


def model(network: Network, method: Method) -> dict[str, Any]:
    """The block of a config; `configs/backbone` has the settings.

    Raises:
        ValueError: for weights of a pre-training that the network cannot take without an encoding.
    """
    vectors = {name: {"module": network.vectors, "output_name": name} for name in method.heads}
    plain = network.with_vectors if method.heads else network.backbone
    if method.pretraining and not method.encodes and plain != network.with_vectors:
        raise ValueError(f"weights of {network.with_vectors}, pre-trained on vectors, do not fit {plain}")
    backbone = network.encoding if method.encodes else plain
    return _hydra(backbone, {"energy": {"module": network.energy}, **vectors}, method.model)


def pretrained_model(network: Network) -> dict[str, Any]:
    """The same for pre-training, with noise alone."""
    return _hydra(network.with_vectors, {"noise": {"module": network.vectors}})


def _hydra(backbone: str, heads: dict[str, Any], changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    block = {"name": "hydra", "otf_graph": True, "pass_through_head_outputs": True, "heads": heads}
    changes = changes or {}
    return block | changes | {"backbone": {"model": backbone, **changes.get("backbone", {})}}


def _changed(block: Any) -> Method:
    if not isinstance(block, dict) or block.get("method") not in METHODS or set(block) - set(_OF_A_POINT):
        raise ValueError(
            f"a point needs `method`, one of {', '.join(METHODS)}, and may have {', '.join(_OF_A_POINT[1:])}; "
            f"got {block}"
        )
    for part in _OF_A_POINT[1:]:
        if not isinstance(block.get(part, {}), dict):
            raise ValueError(f"{part} must be a block of settings, got {block[part]!r}")
    method, pretraining = METHODS[block["method"]], block.get("pretraining", {})
    unknown = set(pretraining) - set(Pretraining._fields if method.pretraining else ())
    if unknown:
        raise ValueError(f"the pre-training of {block['method']} has no {', '.join(sorted(unknown))} to change")
    changed = method._replace(
        objective={**method.objective, **block.get("objective", {})},
        optim={**method.optim, **block.get("optim", {})},
        model={**method.model, **block.get("model", {})},
        pretraining=method.pretraining and method.pretraining._replace(**pretraining),
    )
    objective_from_config({"task": {"objective": dict(changed.objective)}})  # or an error
    return changed

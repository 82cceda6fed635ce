"""Starting from the weights of another run: a plain model's, a pre-trained one's, or those of the same model.

``task.warm_start`` is a checkpoint's path, or a block: ``{path: pre.pt, new_heads: [energy, forces]}``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dens_plugin.backbones.description import describe
from dens_plugin.backbones.family import Family, State, as_it_is, family_of
from dens_plugin.checks.warm_start import WarmStart, warm_start_of
from dens_plugin.compat import load_checkpoint, require_weights

_BACKBONE, _ENCODING, _HEADS = "backbone", "force encoding", "output_heads."
_REFERENCES = "element_references"  # in fairchem's modules and files


def warm_start(model: nn.Module, settings: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """Load a checkpoint's weights into the same backbone, with the same heads or others.

    Takes whatever code's checkpoints the backbone's family knows. Heads that are to be new keep their initial values,
    as do those that serve training alone and the encoding of forces if the checkpoint has none. What it has of these
    and the model has not is left out; a line in the log says all of it. Optimiser, schedule and EMA start afresh, with
    EMA on.

    Args:
        model: to be loaded, without DDP around it.
        settings: of ``task.warm_start``.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the checkpoint is of another backbone or does not fit the model, naming what differs.
    """
    wanted = warm_start_of(settings)
    checkpoint, own = load_checkpoint(wanted.path), describe(model).family
    found = _translated(checkpoint, own, wanted.path)
    weights = [name for name, _ in model.named_parameters()]  # the rest are constants, which follow from settings
    here, there = _parts(weights, own), _parts(found, own)
    heads = getattr(model, "output_heads", {})
    training_alone = {_head(name) for name, head in heads.items() if getattr(head, "auxiliary", False)}
    drawn = {_head(name) for name in wanted.new_heads} | ({_ENCODING, *training_alone} & set(here)) - set(there)
    _require_parts(wanted, here, there, drawn)
    taken = {key: value for key, value in found.items() if _part(key, own) in {*here} - drawn}
    asked = {key: value for key, value in model.state_dict().items() if _part(key, own) not in drawn}
    _require_fit(wanted, taken, asked, weights)
    model.load_state_dict(model.state_dict() | taken)
    unused = [part for part in there if part not in here or part in drawn]
    logging.info(
        f"Started from the weights of {wanted.path}: took {_words(part for part in here if part not in drawn)}; drew "
        f"anew {_words(part for part in here if part in drawn)}; left out of the checkpoint {_words(unused)}."
    )
    return checkpoint


def _translated(checkpoint: Mapping[str, Any], own: Family | None, path: Path) -> State:
    """The checkpoint's weights under this package's names; of a network that no family is of, as they are."""
    require_weights(checkpoint, path)
    if own is None:
        return as_it_is(checkpoint["state_dict"], {}).state
    family = family_of(checkpoint["state_dict"], path)
    if family is not own:
        raise ValueError(
            f"'{path}' holds weights of {family.title}, and the model is {own.title}, which cannot use them: start "
            f"from a checkpoint of {own.title}, or set model.backbone.model to {family.backbone}"
        )
    config = checkpoint.get("config") or {}
    model = config.get("model_attributes") or config.get("model")
    settings = model if isinstance(model, Mapping) else {}
    return family.translate(checkpoint["state_dict"], settings.get("backbone", settings)).state


def _part(key: str, family: Family | None) -> str:
    """What of a model a weight belongs to, in words."""
    if key.startswith(_HEADS):
        return _head(key.split(".")[1])
    return _ENCODING if family is not None and key.startswith(family.encoding) else _BACKBONE


def _head(name: str) -> str:
    return f"head {name}"


def _parts(keys: Iterable[str], family: Family | None) -> list[str]:
    """The parts that weights belong to, each once."""
    return list(dict.fromkeys(_part(key, family) for key in keys))


def _words(parts: Iterable[str]) -> str:
    return ", ".join(parts) or "nothing"


def _require_parts(wanted: WarmStart, here: list[str], there: list[str], drawn: set[str]) -> None:
    """Raise ValueError for a head to be new that the model lacks, and for one of the model's that has no weights."""
    surplus = sorted(drawn - set(here))
    if surplus:
        raise ValueError(f"task.warm_start.new_heads: the model has no {_words(surplus)}, only {_words(here)}")
    absent = [part for part in here if part not in there and part not in drawn]
    if absent:
        names = ", ".join(part.removeprefix("head ") for part in absent)
        raise ValueError(
            f"the checkpoint '{wanted.path}' has no {_words(absent)}, only {_words(there)}; give heads its names, or "
            f"draw them anew: `task.warm_start: {{path: ..., new_heads: [{names}]}}`"
        )


def _require_fit(wanted: WarmStart, taken: State, asked: State, weights: list[str]) -> None:
    """Raise ValueError for weights of the parts taken that are missing, of nothing, or of another shape."""
    lacking = [key for key in weights if key in asked and key not in taken]
    surplus = [key for key in taken if key not in asked]
    reshaped = [key for key in taken if key in asked and asked[key].shape != taken[key].shape]
    for kind, keys in (("lacks", lacking), ("has too much:", surplus), ("has in another shape:", reshaped)):
        if keys:
            raise ValueError(
                f"the checkpoint '{wanted.path}' does not fit the model: it {kind} {len(keys)} keys, first {keys[:3]}; "
                "compare the model's hyper-parameters with those of its run, or draw heads anew (new_heads)"
            )


def warn_of_other_scales(
    checkpoint: Mapping[str, Any], normalizers: Mapping[str, Any], references: Mapping[str, Any]
) -> None:
    """Warn of normalisers and element references that differ from those of the run that wrote the weights.

    A head's numbers are multiplied by the normaliser's scale and get its mean and the references added: with others the
    old weights give other energies and forces, until training changes them.

    Args:
        checkpoint: of that run.
        normalizers: of this run, each with ``mean`` and ``rmsd``.
        references: fairchem's element references of this run.
    """
    old = checkpoint.get("normalizers") or {}
    for name in dict.fromkeys([*old, *normalizers]):
        before, now = _scale(old.get(name, {})), _scale(normalizers.get(name, {}))
        if not torch.allclose(before, now, rtol=1e-5, atol=1e-8):
            (old_mean, old_scale), (mean, scale) = before.tolist(), now.tolist()
            logging.warning(
                f"The normaliser of `{name}` has mean {mean:g} and stdev {scale:g} here; the weights were trained with "
                f"{old_mean:g} and {old_scale:g}, so their predictions are off until training corrects them. To keep "
                f"them, set dataset.train.transforms.normalizer.{name} to {{mean: {old_mean:g}, stdev: {old_scale:g}}}."
            )
    had = checkpoint.get("elementrefs") or {}
    for name in dict.fromkeys([*had, *references]):
        before, now = had.get(name, {}).get(_REFERENCES), getattr(references.get(name), _REFERENCES, None)
        if before is None or now is None or not _are_close(before, now):
            logging.warning(
                f"References of elements are subtracted from `{name}` {_where(before, now)}: predictions of the "
                "weights are off until training corrects them. To keep them, take the references of their run "
                "(dataset.train.transforms.element_references)."
            )


def _scale(normalizer: Mapping[str, Any] | Any) -> torch.Tensor:
    """(2,) mean and scale of a normaliser, one that was saved or one in use; 0 and 1 without one."""
    values = normalizer if isinstance(normalizer, Mapping) else normalizer.state_dict()
    mean, scale = values.get("mean", 0.0), values.get("rmsd", values.get("std", 1.0))
    return torch.tensor([float(mean), float(scale)])


def _are_close(before: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether references (Z,) are the same, of elements that both know; rounding apart."""
    count = min(len(before), len(now))
    return torch.allclose(before[:count].double().cpu(), now[:count].double().cpu(), rtol=1e-5, atol=1e-5)


def _where(before: Any, now: Any) -> str:
    if before is not None and now is not None:
        return "here and where the weights are from, and they differ"
    return "here and not where the weights are from" if before is None else "where the weights are from and not here"


def warn_of_other_model(model: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Log where the config contradicts a checkpoint's model: some settings change numbers but no shape."""
    trained = _flat((checkpoint.get("config") or {}).get("model"))
    here = _flat(model)
    differing = [key for key in trained if key in here and trained[key] != here[key]]
    for key in differing:
        logging.warning(f"model.{key} is {here[key]!r} in the config and {trained[key]!r} in the checkpoint")


def changed_settings(model: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> list[str]:
    """What a config says of its model and the config in a checkpoint does not, both values of each setting in words."""
    trained, here = _flat((checkpoint.get("config") or {}).get("model")), _flat(model)
    if not trained:
        return []
    values = {
        key: [repr(block[key]) if key in block else "not set" for block in (trained, here)] for key in trained | here
    }
    return [f"model.{key}: {was} in the checkpoint, {now} now" for key, (was, now) in values.items() if was != now]


def _flat(block: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all settings of a block; nothing for a block of older checkpoints that is only a name."""
    if not isinstance(block, Mapping):
        return {}
    flat: dict[str, Any] = {}
    for key, value in block.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat

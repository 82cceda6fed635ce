"""What is looked at before the first step, so that a run that cannot work says so in seconds."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from fairchem.core.models.base import HydraModel

from dens_plugin.backbones.description import describe
from dens_plugin.backbones.family import families
from dens_plugin.backbones.heads import RowHead
from dens_plugin.data.records import Limits
from dens_plugin.data.structures import from_data
from dens_plugin.fields import NOISE

if TYPE_CHECKING:
    from torch import nn
    from torch_geometric.data import Batch, Data

    from dens_plugin.backbones.description import Description
    from dens_plugin.fields import Output
    from dens_plugin.objectives.base import Objective

COMPOSED = {"decomposition", "property"}  # keys of outputs that fairchem makes of others
_FAR = 100.0  # standard deviations
_NOTHING = 1e-12  # of any label, in its unit: what rounding leaves of the deviation of equal numbers


def require_scales(normalizers: Mapping[str, Any]) -> None:
    """Raise ValueError for a normaliser by which nothing can be divided."""
    for name, normalizer in normalizers.items():
        scale = normalizer.rmsd
        if not (torch.isfinite(scale) & (scale > _NOTHING)).all():
            raise ValueError(
                f"dataset.train.transforms.normalizer.{name}.stdev is {scale.tolist()}; it must be above 0, and more "
                "than the rounding of one value: "
                "`dens data check` prints a normaliser for the data set"
            )


def require_labels(structure: Data, needed: Mapping[str, str], split: str) -> None:
    """Raise ValueError if the first structure of ``dataset.<split>`` lacks a field of ``needed``: name -> what for."""
    for name, purpose in needed.items():
        if name not in structure:
            kind = {"train": "training", "val": "validation"}[split]
            raise ValueError(
                f"the {kind} set has no `{name}` to {purpose}, only {', '.join(sorted(structure.keys()))}; "
                f"map its name with `dataset.{split}.key_mapping` (old LMDBs: `{{y: energy, force: forces}}`; for a "
                "file of frames `energy_key`, `forces_key`)"
            )


def limits_of(model: nn.Module) -> Limits:
    """The elements that a model has embeddings of, and whether it looks across the faces of cells."""
    known = describe(model)
    elements = Limits().elements if known.elements is None else known.elements
    return Limits(elements, periodic=known.periodic is True, molecular=known.periodic is False)


def require_edges(model: nn.Module, structures: Sequence[Data]) -> None:
    """Raise ValueError if no two atoms of some structures are neighbours by the model's cutoff."""
    cutoff = describe(model).cutoff
    several = [known for known in map(from_data, structures) if len(known.numbers) > 1]
    if cutoff is None or not several:
        return
    atoms = (Atoms(known.numbers, positions=known.positions, cell=known.cell, pbc=known.pbc) for known in several)
    if not any(len(neighbor_list("i", each, cutoff)) for each in atoms):
        raise ValueError(
            f"no atom of the first {len(structures)} training structures has a neighbour within the model's cutoff of "
            f"{cutoff:g} Å (`cutoff`, `max_radius`): raise it, 5 Å is common, or give positions in Å"
        )


def require_fitting_scales(normalizers: Mapping[str, Any], structures: Sequence[Data], references: Mapping) -> None:
    """Raise ValueError if energies are nowhere near what their normaliser expects.

    Args:
        normalizers: of the targets, each with ``mean`` and ``rmsd``.
        structures: some of training.
        references: of the targets, which are subtracted before; energies that have some are not looked at.
    """
    if "energy" not in normalizers or "energy" in references:
        return
    mean, scale = (getattr(normalizers["energy"], name).item() for name in ("mean", "rmsd"))
    energies = [energy for energy in (from_data(structure).energy for structure in structures) if energy is not None]
    if energies and min(abs(energy - mean) for energy in energies) > _FAR * scale:
        raise ValueError(
            f"the first training energies, {min(energies):.6g} to {max(energies):.6g} eV, are more than {_FAR:g} "
            f"standard deviations from the mean of dataset.train.transforms.normalizer.energy (mean {mean:.6g}, stdev "
            f"{scale:.6g}): is it that of other data? `dens data check` prints the right one"
        )


def require_model(model: nn.Module, objective: Objective) -> None:
    """Raise ValueError if the model lacks what the objective needs, or has what it does not use."""
    known, heads = describe(model), model.output_heads if isinstance(model, HydraModel) else {}
    own = [output.name for output in objective.outputs]
    asked = {*own, *(label.name for label in objective.labels)}
    offered = _offered(heads, ("energy", "forces", "stress", *own))
    for output in own:
        if output not in offered:
            raise ValueError(
                f"the objective predicts `{output}` and the model has no head for it; {_head(output, known)}"
            )
    for name, head in heads.items():
        if isinstance(head, RowHead) and not asked.intersection(head.output_names):
            raise ValueError(
                f"model.heads.{name} predicts `{head.output_name}`, which the objective does not use: its parameters "
                "would have no gradient, which distributed training refuses; leave it out, or take an objective that "
                "asks for it, with probability 0 if need be"
            )
    backbone = type(model.backbone if isinstance(model, HydraModel) else model).__name__
    if known.encodes_forces and not own:
        plain = f", such as {known.family.plain}" if known.family and known.family.plain else ""
        raise ValueError(
            f"{backbone} encodes forces of corrupted structures, and the objective corrupts none: its parameters would "
            "have no gradient, which distributed training refuses; take a backbone without an encoding"
            f"{plain}, or an objective that corrupts structures, with probability 0 if need be"
        )
    if known.encodes_forces and not objective.encode_forces:
        plain = f"; {known.family.plain} is the same without" if known.family and known.family.plain else ""
        logging.warning(
            f"{backbone} can encode forces, and the objective gives it none: its parameters for that are not trained"
            f"{plain}."
        )
    if objective.encode_forces and not known.encodes_forces:
        raise ValueError(
            f"the objective encodes forces and {backbone} does not: denoising would be ill-posed; use the backbone "
            f"{known.family.backbone if known.family else _backbones()}, or set `encode_forces: false` for the ablation"
        )


def _head(output: str, known: Description) -> str:
    """How to get a head for an output, in words."""
    if known.family is None:
        return f"take a backbone that comes with heads for it: {_backbones()}"
    module = known.family.heads.get(output, known.family.auxiliary)
    named = "" if output in known.family.heads else f", output_name: {output}"
    return f"add `{output}: {{module: {module}{named}}}` to model.heads"


def _backbones() -> str:
    return " or ".join(family.backbone for family in families())


def _offered(heads: Mapping[str, nn.Module], names: Sequence[str]) -> dict[str, str]:
    """Output -> head, as far as heads say; raises ValueError for two that give the same, or one under a wrong name."""
    offered: dict[str, str] = {}
    for name, head in heads.items():
        output = getattr(head, "output_name", name)  # not all of fairchem's heads say
        if name != output and name in names:
            raise ValueError(
                f"model.heads.{name} is a {type(head).__name__}, which predicts `{output}`; give `{name}` a module "
                "that predicts it (docs/configs.md has a table), or call the head by what it predicts"
            )
        for each in head.output_names if isinstance(head, RowHead) else (output,):
            if each in offered:
                raise ValueError(f"model.heads.{offered[each]} and model.heads.{name} both predict `{each}`; keep one")
            offered[each] = name
    return offered


def require_outputs(model: nn.Module, batch: Batch, outputs: Mapping[str, Output]) -> None:
    """Raise ValueError if a model, tried on a batch, lacks an output or gives one of another number of rows.

    Args:
        model: without DDP around it.
        batch: prepared as for training, on the model's device.
        outputs: by name, what the objective trains on.
    """
    was_training = model.training
    found = model.eval()(batch)
    model.train(was_training)
    for name, output in outputs.items():
        if name not in found:
            raise ValueError(
                f"the config trains on `{name}`, and the model predicts {', '.join(sorted(found))}; add a head to "
                "model.heads, or take it out of `loss_functions`"
            )
        if isinstance(found[name], Mapping):
            raise ValueError(f"`{name}` comes as a block of outputs; set model.pass_through_head_outputs: true")
        rows = len(batch.pos) if output.level == "atom" else batch.num_graphs
        if found[name].shape[0] != rows:
            level = "atom" if output.level == "atom" else "system"
            raise ValueError(
                f"the model predicts {found[name].shape[0]} rows of `{name}` where {rows} belong; outputs.{name}.level "
                f"is {level!r}: set it to what the head predicts, 'atom' or 'system'"
            )


def require_predicted(model: nn.Module, outputs: Mapping[str, Mapping[str, Any]], whose: str) -> None:
    """Raise ValueError if no head of a model predicts one of the config's outputs; heads of other code may not say.

    Args:
        model: to predict with.
        outputs: the config's block.
        whose: the model, in words.
    """
    heads = list(getattr(model, "output_heads", {}).values())
    if heads and all(isinstance(head, RowHead) for head in heads):
        offered = {name for head in heads for name in head.output_names}
        for name, settings in outputs.items():
            if name not in offered and not COMPOSED & settings.keys():
                raise ValueError(f"{whose} {lacking(name, offered)}")


def lacking(name: str, offered: Collection[str]) -> str:
    """That a model predicts other things than an output, and what to do about it, in words."""
    if set(offered) <= {NOISE}:
        return f"predicts noise alone and no `{name}`, as after pre-training: fine-tune it first (docs/pretraining.md)"
    return (
        f"predicts {', '.join(sorted(offered))} and no `{name}`, which `outputs` of its config has: add a head for it "
        "to model.heads, or take it out of `outputs`"
    )


def require_one_scale(model: nn.Module, normalizers: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
    """Raise ValueError if forces or stress are derivatives of the energy and are not normalised by its factor."""
    if not describe(model).differentiates:
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

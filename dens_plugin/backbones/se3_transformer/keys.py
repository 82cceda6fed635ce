"""Weights of the SE(3)-Transformer of denoise pre-training (arXiv:2303.02216), after its authors', under names of here.

| authors | here |
|---|---|
| ``Gblock.2N.GMAB.{v,k}.kernel_unary.(k,l).rp.net`` | ``backbone.layers.N.attention.{value,key}.radial`` |
| ``Gblock.2N.GMAB.q.transform.l``, ``Gblock.2N.project.transform.l`` | ``...attention.query.l``, ``...project.l`` |
| ``Gblock.2N+1.transform.l.0.bn`` | ``backbone.layers.N.nonlinearity.norms.l`` |
| ``Gblock.2L.kernel_unary``, ``Gblock.2L.kernel_self.0`` | ``backbone.last.{convolution.radial,own.0}`` |
| ``FCblock.{0,2}`` | ``output_heads.energy.energy.{first,second}`` |

Their radial networks read four numbers beside the distance that are always zero: those weights are left out. Networks
of pairs of degrees stand in one tensor here, and rows of their last layer change their order, from output, input, path
to path, input, output. The authors find the couplings of degrees by a singular value decomposition, whose sign depends
on the machine (even on its number of threads) and stands in no file: it must be told.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch

from dens_plugin.nn.se3_transformer.edges import coupling_degrees

State = dict[str, torch.Tensor]
Coupling = tuple[int, int, int]

_PAIR = re.compile(r"^(.*)kernel_unary\.\((\d+),(\d+)\)\.rp\.net\.(\d)\.(.*)$")
_HEAD = {"FCblock.0.": "output_heads.energy.energy.first.", "FCblock.2.": "output_heads.energy.energy.second."}


def is_authors(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is of the authors' SE(3)-Transformer."""
    return any(key.startswith("Gblock.") and ".kernel_unary." in key for key in state)


def to_plugin_keys(state: Mapping[str, torch.Tensor], flipped: Collection[Coupling]) -> State:
    """The authors' state dict with this package's names.

    Args:
        state: of the network of denoise pre-training.
        flipped: the couplings (input degree, output degree, degree of harmonics) that have the other sign there.
    """
    last = max(int(key.split(".")[1]) for key in state if key.startswith("Gblock."))
    out: State = {}
    pairs: dict[str, dict[tuple[int, int], State]] = {}
    for key, value in state.items():
        match = _PAIR.match(key)
        if match:
            place, first, second, layer, kind = match.groups()
            networks = pairs.setdefault(place, {})
            networks.setdefault((int(first), int(second)), {})[f"{layer}.{kind}"] = value
        else:
            out |= _single(key, value, last)
    for place, networks in pairs.items():
        radial = _radial(networks, _inputs(state, place, last), set(flipped))
        out |= {f"{_place(place, last)}radial.{name}": value for name, value in radial.items()}
    return out


def _inputs(state: Mapping[str, torch.Tensor], theirs: str, last: int) -> dict[int, int]:
    """Channels of each degree that a module of theirs reads."""
    block = int(theirs.split(".")[1])
    if block == last:
        start, end, axis = f"Gblock.{last - 1}.transform.", ".0.bn.weight", 0
    else:
        start, end, axis = f"Gblock.{block}.GMAB.q.transform.", "", 1
    found = {key[len(start) : len(key) - len(end)]: value for key, value in state.items() if key.startswith(start)}
    return {int(degree): value.shape[axis] for degree, value in found.items() if degree.isdigit()}


def _place(theirs: str, last: int) -> str:
    """Where a module of theirs is here."""
    block, *rest = theirs.removeprefix("Gblock.").rstrip(".").split(".")
    if int(block) == last:
        return "backbone.last.convolution."
    return f"backbone.layers.{int(block) // 2}.attention." + {"v": "value.", "k": "key."}[rest[-1]]


def _single(key: str, value: torch.Tensor, last: int) -> State:
    """What is one tensor there and here."""
    for old, new in _HEAD.items():
        if key.startswith(old):
            return {new + key[len(old) :]: value}
    _, block, *rest = key.split(".")
    layer = f"backbone.layers.{int(block) // 2}."
    if int(block) == last:
        return {f"backbone.last.own.{rest[-1]}": value[0].T}
    if int(block) % 2:
        return {f"{layer}nonlinearity.norms.{rest[1]}.{rest[-1]}": value}
    part = "attention.query" if rest[:2] == ["GMAB", "q"] else "project"
    return {f"{layer}{part}.{rest[-1]}": value.T}


def _radial(networks: dict[tuple[int, int], State], inputs: dict[int, int], flipped: set[Coupling]) -> State:
    """The perceptrons of all pairs of degrees, input degrees first."""
    pairs = sorted(networks)
    stacked = {
        "first": torch.stack([networks[pair]["0.weight"][:, -1:].T for pair in pairs]),
        "first_bias": torch.stack([networks[pair]["0.bias"][None] for pair in pairs]),
        "second": torch.stack([networks[pair]["3.weight"].T for pair in pairs]),
        "second_bias": torch.stack([networks[pair]["3.bias"][None] for pair in pairs]),
    }
    for kind in ("weight", "bias"):
        norms = [torch.stack([networks[pair][f"{norm}.bn.{kind}"][None] for pair in pairs]) for norm in (1, 4)]
        stacked[f"norm_{kind}"] = torch.stack(norms)
        for index, pair in enumerate(pairs):
            value = networks[pair][f"6.{kind}"]
            stacked[f"last.{index}.{kind}"] = _reordered(value, pair, inputs[pair[0]], flipped)
    return stacked


def _reordered(value: torch.Tensor, pair: tuple[int, int], inputs: int, flipped: set[Coupling]) -> torch.Tensor:
    """Rows of a last layer in the order and with the signs of here."""
    signs = value.new_tensor([-1 if (*pair, degree) in flipped else 1 for degree in coupling_degrees(*pair)])
    by_path = value.view(-1, inputs, len(signs), *value.shape[1:])  # outputs, inputs, paths
    signed = by_path * signs.view(1, 1, -1, *[1] * (value.dim() - 1))
    return signed.transpose(0, 2).reshape(value.shape)  # paths, inputs, outputs

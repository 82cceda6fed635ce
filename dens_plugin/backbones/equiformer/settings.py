"""Hyper-parameters of the authors' Equiformer (v1), where channels are irreps, as arguments of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from e3nn import o3

from dens_plugin.settings import reject_unknown

PAPER_CHANNELS = [128, 64, 32]  # of L = 2

_CHANNELS = {
    "irreps_node_embedding": "channels",
    "irreps_feature": "feature_channels",
    "irreps_head": "head_channels",
    "irreps_mlp_mid": "ffn_channels",
}
_SAME = {
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "max_radius": "cutoff",
    "number_of_basis": "num_radial_basis",
    "fc_neurons": "radial_channels",
}
_ONLY: dict[str, Any] = {
    "basis_type": "exp",
    "irreps_node_attr": "1x0e",
    "rescale_degree": False,
    "nonlinear_message": True,
    "alpha_drop": 0.0,
    "proj_drop": 0.0,
    "out_drop": 0.0,
    "drop_path_rate": 0.0,
    "use_force_encoding": True,
    "otf_graph": True,
}
_DERIVED = ("irreps_in", "irreps_sh", "irreps_equivariant_inputs", "irreps_pre_attn", "norm_layer")


def backbone_settings(authors: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `EquiformerDeNS` from those of the authors' ``equiformer_md17_dens``; what is left out stays so.

    Raises:
        ValueError: for an option that this network lacks.
    """
    reject_unknown(authors, [*_CHANNELS, *_SAME, *_ONLY, *_DERIVED], "model")
    for name, possible in _ONLY.items():
        if authors.get(name, possible) != possible:
            raise ValueError(f"{name}: {authors[name]} is not supported; it must be {possible} or left out")
    settings = {ours: channels(authors[name], name) for name, ours in _CHANNELS.items() if name in authors}
    settings |= {ours: authors[name] for name, ours in _SAME.items() if name in authors}
    _require_derived(authors, settings.get("channels"))
    if "norm_layer" in authors:
        settings["norm"] = authors["norm_layer"] or "none"
    return settings


def channels(irreps: str, name: str) -> list[int]:
    """Channels per degree of irreps such as ``128x0e+64x1e+32x2e``.

    Raises:
        ValueError: unless they are even and of all degrees in order.
    """
    parsed = o3.Irreps(irreps)
    if [(ir.l, ir.p) for _, ir in parsed] != [(degree, 1) for degree in range(len(parsed))]:
        raise ValueError(f"{name}: '{irreps}' must be of even parity and of degrees 0, 1, ... in order, each once")
    return [mul for mul, _ in parsed]


def _require_derived(authors: Mapping[str, Any], embedding: Sequence[int] | None) -> None:
    """Raise ValueError for irreps that are not those which follow from the embedding's."""
    if embedding is None:
        return
    ones = [1] * len(embedding)
    expected = {"irreps_sh": ones, "irreps_equivariant_inputs": ones, "irreps_pre_attn": list(embedding)}
    for name, wanted in expected.items():
        given = authors.get(name)
        if given is not None and channels(given, name) != wanted:
            possible = "+".join(f"{mul}x{degree}e" for degree, mul in enumerate(wanted))
            raise ValueError(f"{name}: '{given}' is not supported; it must be '{possible}' or left out")

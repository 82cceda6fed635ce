"""Equiformer (v1) with the flat hyper-parameters of the authors' code, where channels are irreps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from e3nn import o3
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel

import dens_plugin.backbones.equiformer.model  # noqa: F401  (registers the parts)
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


@registry.register_model("equiformer_dens")
class FlatEquiformerDeNS(HydraModel):
    """Backbone and both heads in one, with the flat hyper-parameters of the authors' ``equiformer_md17_dens``.

    Args:
        irreps_in: not used, in theirs neither.
        irreps_equivariant_inputs: of encoded forces; degrees 0 to L.
        irreps_node_embedding: of a layer's features.
        num_layers: number of layers.
        irreps_node_attr: one scalar.
        irreps_sh: harmonics of degrees 0 to L.
        max_radius: cutoff in Å.
        number_of_basis: number of radial bases.
        basis_type: only ``exp``.
        fc_neurons: widths of the radial networks' hidden layers.
        irreps_feature: of the last features.
        irreps_head: of one head.
        num_heads: number of attention heads.
        irreps_pre_attn: as ``irreps_node_embedding``.
        rescale_degree: only False.
        nonlinear_message: only True.
        irreps_mlp_mid: inside the perceptrons.
        norm_layer: ``layer`` or None.
        alpha_drop: only 0, as all dropout.
        proj_drop: only 0.
        out_drop: only 0.
        drop_path_rate: only 0.
        use_force_encoding: only True; for the ablation set ``encode_forces: false`` in the objective.
        otf_graph: only True.

    Raises:
        ValueError: for an option of the authors' code that this network lacks.
    """

    def __init__(
        self,
        *,
        irreps_in: str = "64x0e",
        irreps_equivariant_inputs: str | None = None,
        irreps_node_embedding: str = "128x0e+64x1e+32x2e",
        num_layers: int = 6,
        irreps_node_attr: str = "1x0e",
        irreps_sh: str | None = None,
        max_radius: float = 5.0,
        number_of_basis: int = 32,
        basis_type: str = "exp",
        fc_neurons: Sequence[int] = (64, 64),
        irreps_feature: str = "512x0e+256x1e+128x2e",
        irreps_head: str = "32x0e+16x1e+8x2e",
        num_heads: int = 4,
        irreps_pre_attn: str | None = None,
        rescale_degree: bool = False,
        nonlinear_message: bool = True,
        irreps_mlp_mid: str = "384x0e+192x1e+96x2e",
        norm_layer: str | None = "layer",
        alpha_drop: float = 0.0,
        proj_drop: float = 0.0,
        out_drop: float = 0.0,
        drop_path_rate: float = 0.0,
        use_force_encoding: bool = True,
        otf_graph: bool = True,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(
            backbone={"model": "equiformer_dens_plugin_backbone", **backbone_settings(given)},
            heads={
                "energy": {"module": "equiformer_gradient_head"},
                "noise": {"module": "equiformer_noise_head"},
            },
            otf_graph=True,
            pass_through_head_outputs=True,
        )


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

"""Equiformer (v1) with the flat hyper-parameters of the authors' code, where channels are irreps."""

from __future__ import annotations

from collections.abc import Sequence

from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel

import dens_plugin.backbones.equiformer.model  # noqa: F401  (registers the parts)
from dens_plugin.backbones.equiformer.settings import backbone_settings


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

"""eSCN with DeNS: fairchem's backbone with a force encoding, its force head twice, for forces and for noise.

eSCN: Passaro and Zitnick, arXiv:2302.03655; with DeNS in Table 1(a) of arXiv:2403.09549. The encoding is added to the
initial node features, all degrees of them, as in EquiformerV2. eSCN's first layer has no residual connection: the
encoding goes on through that layer's messages, and through its network on the grid, which reads a node's own features.
Parameters keep fairchem's names, so that its eSCN checkpoints load into backbone, energy and force head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchem.core.models.escn.escn import eSCNBackbone, eSCNForceHead

from dens_plugin.backbones.escn_features import Coefficients, Features, convolve_features
from dens_plugin.fields import NOISE, corruption_of, rows_of
from dens_plugin.nn.force_encoding import ForceEncoding

if TYPE_CHECKING:
    from torch_geometric.data import Batch


@registry.register_model("escn_dens_plugin_backbone")
class ESCNDeNS(eSCNBackbone):
    """fairchem's ``escn_backbone`` that encodes the forces of a batch's corruption record.

    A batch without a record, as at inference, gets the host's numbers, and no autograd graph is built under
    ``torch.no_grad()``. Graphs without edges work.

    Args:
        otf_graph: whether edges are computed on the fly.
        **kwargs: as the host's.

    Raises:
        ValueError: for more than one resolution, which DeNS was never defined for, or for activation checkpointing,
            which the host's backbone accepts and ignores.
    """

    def __init__(self, *, otf_graph: bool = True, **kwargs: Any) -> None:
        super().__init__(otf_graph=otf_graph, **kwargs)
        if self.num_resolutions != 1:
            raise ValueError(f"DeNS needs one resolution, got lmax_list={self.lmax_list}; give a single degree")
        if self.activation_checkpoint:
            raise ValueError("fairchem's eSCN backbone ignores activation_checkpoint; leave it out, or lower the batch")
        self.direct_forces = True  # tells the host's `conditional_grad` that no position gradient will be taken
        self.force_embedding = ForceEncoding(self.lmax_list[0], self.sphere_channels)
        self._coefficients = Coefficients(self.lmax_list[0], self.mmax_list[0])
        convolve_features(self)

    def forward(self, data: Batch) -> dict[str, Any]:
        """Node embeddings, their values at points of a sphere (N * P, C), and graph of a batch, as the host's."""
        handle = self.layer_blocks[0].register_forward_pre_hook(
            lambda _, inputs: (self._initial_features(inputs[0].embedding, data), *inputs[1:])
        )
        try:
            return super().forward(data)
        finally:
            handle.remove()

    def _initial_features(self, embedding: torch.Tensor, data: Batch) -> Features:
        """Elements (N, L, C) and encoded forces; the host's full rotation matrices are freed."""
        corruption = corruption_of(data)
        if corruption is not None:
            embedding = embedding + self.force_embedding(corruption.forces.to(data.pos.dtype))
        return Features(embedding, self._coefficients, self.SO3_edge_rot.pop(0))

    def _init_edge_rot_mat(
        self, data: Batch, edge_index: torch.Tensor, edge_distance_vec: torch.Tensor
    ) -> torch.Tensor:
        """(E, 3, 3) edge frames, also of a graph without edges."""
        if edge_index.shape[1] == 0:
            return edge_distance_vec.new_zeros(0, 3, 3)
        return super()._init_edge_rot_mat(data, edge_index, edge_distance_vec)


@registry.register_model("escn_dens_force_head")
class ESCNForceHead(eSCNForceHead):
    """The host's force head, computed only where the prediction counts.

    The output at an atom needs no more than its own features, so the block runs on the atoms of ``rows``; the other
    rows are zero. Without ``rows``, as at inference, every atom counts.
    """

    def __init__(self, backbone: eSCNBackbone, output_name: str = "forces") -> None:
        super().__init__(backbone)
        self.output_name = output_name

    def forward(self, data: Batch, emb: dict[str, Any]) -> dict[str, torch.Tensor]:
        """{output_name: (N, 3)} in normalised units."""
        values, points = emb["sphere_values"], emb["sphere_points"]  # (N * P, C), (P, 3)
        rows = rows_of(data).get(self.output_name)
        if rows is None:
            return {self.output_name: self.force_block(values, points)}
        atoms = rows.mask.nonzero().view(-1)
        values = values.unflatten(0, (len(rows.mask), len(points))).index_select(0, atoms).flatten(0, 1)
        vectors = self.force_block(values, points)
        return {self.output_name: vectors.new_zeros(len(rows.mask), 3).index_copy(0, atoms, vectors)}


@registry.register_model("escn_dens_noise_head")
class ESCNNoiseHead(ESCNForceHead):
    """A second force head, for the noise of the corrupted atoms in units of its scale; does not run at inference."""

    def __init__(self, backbone: eSCNBackbone, output_name: str = NOISE) -> None:
        with torch.random.fork_rng(devices=[]):  # heads built after this one start as in a model without DeNS
            super().__init__(backbone, output_name)

    def forward(self, data: Batch, emb: dict[str, Any]) -> dict[str, torch.Tensor]:
        """{output_name: (N, 3)}, or nothing where no noise is asked for."""
        return super().forward(data, emb) if self.output_name in rows_of(data) else {}


@registry.register_model("escn_dens")
class FlatESCNDeNS(HydraModel):
    """Backbone and three heads in one, with the flat hyper-parameters of the authors' ``escn_dens``.

    Args:
        otf_graph: whether edges are computed on the fly.
        use_grid: of the authors' layout; only True, the network on a grid of the sphere, exists in fairchem.
        **backbone: hyper-parameters of fairchem's eSCN backbone.

    Attributes:
        backbone_class: the class that takes them.

    Raises:
        ValueError: for an option of the authors' code that fairchem's network lacks.
    """

    backbone_class = ESCNDeNS

    def __init__(self, *, otf_graph: bool = True, use_grid: bool = True, **backbone: Any) -> None:
        if not use_grid:
            raise ValueError("use_grid: False is not supported; it must be True or left out")
        super().__init__(
            backbone={"model": "dens_plugin.ESCNDeNS", "otf_graph": otf_graph, **backbone},
            heads={
                "energy": {"module": "escn_energy_head"},
                "forces": {"module": "dens_plugin.ESCNForceHead"},
                "noise": {"module": "dens_plugin.ESCNNoiseHead"},
            },
            otf_graph=otf_graph,
            pass_through_head_outputs=True,
        )

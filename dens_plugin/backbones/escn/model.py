"""eSCN with DeNS: fairchem's backbone with a force encoding, its force head twice, for forces and for noise.

eSCN: Passaro and Zitnick, arXiv:2302.03655; with DeNS in Table 1(a) of arXiv:2403.09549. The encoding is added to the
initial node features, all degrees of them, as in EquiformerV2. eSCN's first layer has no residual connection: the
encoding goes on through that layer's messages, and through its network on the grid, which reads a node's own features.
Parameters keep fairchem's names, so that its eSCN checkpoints load into backbone, energy and force head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchem.core.models.escn.escn import eSCNBackbone, eSCNEnergyHead, eSCNForceHead
from fairchem.core.models.escn.so3 import SO3_Embedding
from torch.nn import functional

from dens_plugin.backbones.description import Description, by_attributes
from dens_plugin.backbones.escn.family import FAMILY
from dens_plugin.backbones.escn.fast import Geometry, layer
from dens_plugin.backbones.escn.no_edges import allow_no_edges
from dens_plugin.backbones.forward_pass import require_directions, require_known_elements, require_sorted
from dens_plugin.backbones.heads import RowHead
from dens_plugin.backbones.neighbours import GraphOfRecord, degrees_of, found_graph
from dens_plugin.backbones.packed_rotation import rotations
from dens_plugin.fields import NOISE, corruption_of
from dens_plugin.nn.edge_frames import edge_frames
from dens_plugin.nn.escn.first_layer import group_edges
from dens_plugin.nn.force_encoding import ForceEncoding
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import RotatedEdges
from dens_plugin.nn.subnormals import without_subnormals
from dens_plugin.settings import switch

if TYPE_CHECKING:
    from fairchem.core.models.base import GraphData
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows

_ENCODING = 1e-3  # within which the authors draw the weights that encode forces


@registry.register_model("escn_dens_plugin_backbone")
class ESCNDeNS(eSCNBackbone):
    """fairchem's ``escn_backbone`` that encodes the forces of a batch's corruption record.

    A batch without a record, as at inference, gets fairchem's numbers, and no autograd graph is built under
    ``torch.no_grad()``. Graphs without edges work.

    Args:
        otf_graph: whether edges are computed on the fly.
        fast: whether to compute fairchem's numbers in the order of `escn.fast`.
        **kwargs: as fairchem's.

    Raises:
        ValueError: for more than one resolution, which DeNS was never defined for, or for activation checkpointing,
            which fairchem's backbone accepts and ignores.
    """

    def __init__(self, *, otf_graph: bool = True, fast: bool = True, **kwargs: Any) -> None:
        super().__init__(otf_graph=otf_graph, **kwargs)
        if self.num_resolutions != 1:
            raise ValueError(f"DeNS needs one resolution, got lmax_list={self.lmax_list}; give a single degree")
        if self.activation_checkpoint:
            raise ValueError("fairchem's eSCN backbone ignores activation_checkpoint; leave it out, or lower the batch")
        self.direct_forces = True  # tells fairchem's `conditional_grad` that no position gradient will be taken
        self.force_embedding = ForceEncoding(self.lmax_list[0], self.sphere_channels, within=_ENCODING)
        self.fast = switch(fast, "model.backbone.fast")
        allow_no_edges(self)

    def forward(self, data: Batch) -> dict[str, Any]:
        """Node embeddings, their values at points of a sphere (N * P, C), and graph of a batch, as fairchem's."""
        if self.fast:
            return self._fast_forward(data)
        handle = self.layer_blocks[0].register_forward_pre_hook(
            lambda _, inputs: inputs[0].set_embedding(self._encoded(inputs[0].embedding, data))
        )
        try:
            return super().forward(data)
        finally:
            handle.remove()

    def describe(self) -> Description:
        """What others must know of it."""
        return by_attributes(self, family=FAMILY, encodes_forces=True)

    def _fast_forward(self, data: Batch) -> dict[str, Any]:
        require_known_elements(data, self.max_num_elements)
        graph = found_graph(self, data)
        require_sorted(graph.edge_index, searched_by_host=self.otf_graph)
        frames = self._init_edge_rot_mat(data, graph.edge_index, graph.edge_distance_vec)
        geometry = self._geometry(graph, frames)
        nodes = SO3_Embedding(0, [*self.lmax_list], self.sphere_channels, data.pos.device, data.pos.dtype)
        scalars = self.sphere_embedding(graph.atomic_numbers_full.long())[:, None]
        features = functional.pad(scalars, (0, 0, 0, nodes.num_coefficients - 1))
        first, *others = self.layer_blocks
        features = layer(first, self._encoded(features, data), geometry)
        for block in others:
            features = features + layer(block, features, geometry)
        nodes.set_embedding(features)
        values = torch.einsum("nlc,pl->npc", features, self.sphharm_weights[0]).flatten(0, 1).to(features.dtype)
        return {"sphere_values": values, "sphere_points": self.sphere_points, "node_embedding": nodes, "graph": graph}

    def _geometry(self, graph: GraphData, frames: torch.Tensor) -> Geometry:
        """What all layers share, from a graph and the frames (E, 3, 3) of its edges."""
        layout, elements = Layout(self.lmax_list[0], self.mmax_list[0]), graph.atomic_numbers_full
        edges = RotatedEdges.build(graph.edge_index, rotations(frames, layout), layout, num_atoms=len(elements))
        ends = group_edges(edges, degrees_of(graph), is_padded=isinstance(graph, GraphOfRecord) and graph.is_padded)
        distances = without_subnormals(self.distance_expansion(graph.edge_distance))
        return Geometry(edges, ends, elements[graph.edge_index], distances)

    def _encoded(self, embedding: torch.Tensor, data: Batch) -> torch.Tensor:
        """Elements (N, L, C) with encoded forces."""
        corruption = corruption_of(data)
        if corruption is None:
            return embedding
        return embedding + self.force_embedding(corruption.forces.to(data.pos.dtype))

    def _init_edge_rot_mat(
        self, data: Batch, edge_index: torch.Tensor, edge_distance_vec: torch.Tensor
    ) -> torch.Tensor:
        """(E, 3, 3) edge frames, also of a graph without edges."""
        if self.fast:
            require_directions(data, edge_index, edge_distance_vec)
            return edge_frames(edge_distance_vec)
        if edge_index.shape[1] == 0:
            return edge_distance_vec.new_zeros(0, 3, 3)
        return super()._init_edge_rot_mat(data, edge_index, edge_distance_vec)


@registry.register_model("escn_dens_energy_head")
class ESCNEnergyHead(RowHead, eSCNEnergyHead):
    """fairchem's energy head under any name."""

    level: ClassVar = "structure"

    def __init__(self, backbone: eSCNBackbone, output_name: str = "energy", reduce: str = "sum") -> None:
        super().__init__(backbone, reduce)
        self.output_name = output_name

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(B,)."""
        return eSCNEnergyHead.forward(self, data, emb)["energy"]


@registry.register_model("escn_dens_force_head")
class ESCNForceHead(RowHead, eSCNForceHead):
    """fairchem's force head, computed only where the prediction counts.

    The output at an atom needs no more than its own features, so the block runs on the atoms that count.
    """

    def __init__(self, backbone: eSCNBackbone, output_name: str = "forces") -> None:
        super().__init__(backbone)
        self.output_name = output_name

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(n, 3)."""
        values, points = emb["sphere_values"], emb["sphere_points"]  # (N * P, C), (P, 3)
        if rows is not None:
            values = values.unflatten(0, (len(rows.mask), len(points))).index_select(0, rows.where()).flatten(0, 1)
        return self.force_block(values, points)


@registry.register_model("escn_dens_noise_head")
class ESCNNoiseHead(ESCNForceHead):
    """A second force head, for the noise of the corrupted atoms in units of its scale; does not run at inference."""

    auxiliary: ClassVar[bool] = True

    def __init__(self, backbone: eSCNBackbone, output_name: str = NOISE) -> None:
        with torch.random.fork_rng(devices=[]):  # heads built after this one start as in a model without DeNS
            super().__init__(backbone, output_name)


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
                "energy": {"module": "dens_plugin.ESCNEnergyHead"},
                "forces": {"module": "dens_plugin.ESCNForceHead"},
                "noise": {"module": "dens_plugin.ESCNNoiseHead"},
            },
            otf_graph=otf_graph,
            pass_through_head_outputs=True,
        )

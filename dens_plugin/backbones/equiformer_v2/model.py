"""EquiformerV2 with DeNS: fairchem's backbone with a force encoding, its vector head twice, for forces and for noise.

EquiformerV2: Liao, Wood, Das and Smidt, arXiv:2306.12059. Parameters keep fairchem's names, so that its EquiformerV2
checkpoints load into backbone, energy and force head; the noise head is one more vector head.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from fairchem.core.common import gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.models.equiformer_v2.heads import EqV2ScalarHead, EqV2VectorHead
from fairchem.core.models.equiformer_v2.so3 import SO3_Rotation
from torch import nn
from torch.nn import functional

from dens_plugin.backbones.description import Description, by_attributes
from dens_plugin.backbones.equiformer_v2.added_embedding import added_to_embedding
from dens_plugin.backbones.equiformer_v2.checkpointing import checkpoint_blocks
from dens_plugin.backbones.equiformer_v2.empty_graph import allow_empty_graphs
from dens_plugin.backbones.equiformer_v2.family import FAMILY
from dens_plugin.backbones.equiformer_v2.fast import SharedEmbedding, use_fast_path
from dens_plugin.backbones.equiformer_v2.step_weights import weights_of_blocks
from dens_plugin.backbones.forward_pass import Pass, require_directions, require_known_elements, require_sorted
from dens_plugin.backbones.heads import RowHead
from dens_plugin.backbones.neighbours import edges_to, found_graph
from dens_plugin.fields import NOISE, corruption_of
from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.edge_frames import edge_frames
from dens_plugin.nn.force_encoding import ForceEncoding
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.subnormals import without_subnormals
from dens_plugin.settings import switch

if TYPE_CHECKING:
    from fairchem.core.models.base import GraphData
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows

PRECISIONS = ("fp32", "tf32", "bf16")


@registry.register_model("equiformer_v2_dens_plugin_backbone")
class EquiformerV2DeNS(EquiformerV2Backbone):
    """fairchem's ``equiformer_v2_backbone`` that encodes the forces of a batch's corruption record.

    A batch without a record, as at inference, goes through fairchem's forward alone, and no autograd graph is built
    under ``torch.no_grad()``.

    Args:
        *args: as fairchem's.
        fast: whether to compute fairchem's numbers in the order of `equiformer_v2.fast`; under graph parallelism what
            needs edges is left to fairchem.
        precision: of an edge's features in the fast path: ``fp32``, the nodes' own; ``tf32``, whose products round
            their factors to 10 bits (CUDA only); ``bf16``, stored in 16 bits and summed in 32.
        **kwargs: as fairchem's; `activation_checkpoint` may be a number of blocks (`checkpoint_blocks`).

    Raises:
        ValueError: for more than one resolution, which DeNS was never defined for, or an unknown precision.
    """

    def __init__(self, *args: Any, fast: bool = True, precision: str = "fp32", **kwargs: Any) -> None:
        fast = switch(fast, "model.backbone.fast")
        _require_precision(precision, fast)
        super().__init__(*args, **kwargs)
        if self.num_resolutions != 1:
            raise ValueError(f"DeNS needs one resolution, got lmax_list={self.lmax_list}; give a single degree")
        self.direct_forces = True  # tells fairchem's `conditional_grad` that no position gradient will be taken
        self.force_embedding = ForceEncoding(self.lmax_list[0], self.sphere_channels, self.weight_init)
        self.shared: Pass | None = None
        if fast:
            layout = Layout(self.lmax_list[0], self.mmax_list[0])
            dtype = torch.bfloat16 if precision == "bf16" else None
            self.shared = Pass.unless_graph_parallel(layout, dtype, tf32=precision == "tf32")
            use_fast_path(self, self.shared)
        allow_empty_graphs(self)
        checkpoint_blocks(self)

    def forward(self, data: Batch) -> dict[str, Any]:
        """Node embeddings (N, L, C) and graph of a batch, as fairchem's."""
        corruption = corruption_of(data)
        forward = super().forward if self.shared is None else self._fast_forward
        if corruption is None:
            return forward(data)
        encoding = self.force_embedding(corruption.forces.to(data.pos.dtype))
        if gp_utils.initialized():
            encoding = gp_utils.scatter_to_model_parallel_region(encoding, dim=0)
        with added_to_embedding(self.edge_degree_embedding, encoding):
            return forward(data)

    def describe(self) -> Description:
        """What others must know of it."""
        return by_attributes(self, family=FAMILY, encodes_forces=True)

    def _fast_forward(self, data: Batch) -> dict[str, Any]:
        """fairchem's, without graph parallelism and without its look at the elements, which waits for a GPU."""
        require_known_elements(data, self.max_num_elements)
        graph = found_graph(self, data, enforce_max_neighbors_strictly=self.enforce_max_neighbors_strictly)
        self.SO3_rotation[0].set_wigner(self._init_edge_rot_mat(data, graph.edge_index, graph.edge_distance_vec))
        if machine_for(data.pos) is Machine.TRITON:
            self.shared.prepare(weights_of_blocks(self.blocks, self.shared.edge_dtype(data.pos)))
        elements = graph.atomic_numbers_full
        graph.edge_distance = self._edge_features(graph)
        edges = elements, graph.edge_distance, graph.edge_index
        x = self.edge_degree_embedding(*edges, len(elements), graph.node_offset)
        scalars = self.sphere_embedding(elements)[:, None]
        x.set_embedding(x.embedding + functional.pad(scalars, (0, 0, 0, x.embedding.shape[1] - 1)))
        for block in self.blocks:
            x = block(SharedEmbedding.of(x), *edges, batch=data.batch, node_offset=graph.node_offset)
        x.set_embedding(self.norm(x.embedding))
        return {"node_embedding": x, "graph": graph}

    def _edge_features(self, graph: GraphData) -> torch.Tensor:
        """(E, K) of distances, with elements where all blocks share their embeddings."""
        distances = without_subnormals(self.distance_expansion(graph.edge_distance))
        if not (self.share_atom_edge_embedding and self.use_atom_edge_embedding):
            return distances
        source, target = graph.atomic_numbers_full[graph.edge_index]
        return torch.cat([distances, self.source_embedding(source), self.target_embedding(target)], dim=1)

    def _init_edge_rot_mat(
        self, data: Batch, edge_index: torch.Tensor, edge_distance_vec: torch.Tensor
    ) -> torch.Tensor:
        """(E, 3, 3) edge frames; for a graph without edges fairchem's modules get one (`allow_empty_graphs`)."""
        if self.shared is not None:
            require_sorted(edge_index, searched_by_host=self.otf_graph)
            self.shared.begin(edge_index, num_atoms=len(data.pos), num_graphs=len(data.natoms))
            require_directions(data, edge_index, edge_distance_vec)
            return edge_frames(edge_distance_vec)
        if edge_index.shape[1] == 0:
            return torch.eye(3, dtype=edge_distance_vec.dtype, device=edge_distance_vec.device)[None]
        return super()._init_edge_rot_mat(data, edge_index, edge_distance_vec)


@registry.register_model("equiformer_v2_dens_force_head")
class ForceHead(RowHead, EqV2VectorHead):
    """fairchem's vector head, computed only where the prediction counts.

    The output at an atom needs no more than its incoming edges, so the block runs on the edges that end at atoms that
    count.
    """

    def __init__(self, backbone: EquiformerV2Backbone, output_name: str = "forces") -> None:
        super().__init__(backbone, output_name)
        self._backbone_rotation = [backbone.SO3_rotation]  # in a list, so that it is not registered a second time
        # Rotations of its own, as the backbone's hold one matrix for every edge. The state dict keeps its keys.
        self.force_block.SO3_rotation = nn.ModuleList(SO3_Rotation(lmax) for lmax in backbone.lmax_list)
        self._shared = _pass_of(backbone)
        if self._shared is not None:
            use_fast_path(self, self._shared)
        allow_empty_graphs(self)

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(n, 3), or (N, 3) on fairchem's path."""
        if self._shared is not None:
            return self._fast_vectors(emb, rows, self._shared)
        graph, edges, is_empty = emb["graph"], slice(None), False
        if rows is not None:
            edges = rows.mask[graph.edge_index[1]].nonzero().view(-1)
            is_empty = len(edges) == 0
        if is_empty and gp_utils.initialized():  # a share of the atoms of which none counts; its ranks keep in step
            edges, is_empty = slice(None), False
        self._take_rotations(slice(1) if is_empty else edges)
        out = EqV2VectorHead.forward(self, data, {**emb, "graph": _edge_subset(graph, edges)})
        return out[self.output_name]

    def _fast_vectors(self, emb: dict[str, Any], rows: Rows | None, shared: Pass) -> torch.Tensor:
        """(n, 3) by way of the edges that end at atoms of ``rows``."""
        nodes, graph = emb["node_embedding"].embedding, emb["graph"]
        edges, distance = shared.edges_of(graph.edge_index), graph.edge_distance
        if rows is not None:
            chosen = edges_to(graph, self.output_name, rows)
            edges, distance = edges.ending_at(rows.where(), chosen), distance[chosen]
        return self.force_block.vectors(nodes, graph.atomic_numbers_full, distance, edges)

    def _take_rotations(self, edges: slice | torch.Tensor) -> None:
        for own, shared in zip(self.force_block.SO3_rotation, self._backbone_rotation[0], strict=True):
            own.device, own.dtype = shared.device, shared.dtype
            own.wigner, own.wigner_inv = shared.wigner[edges], shared.wigner_inv[edges]


@registry.register_model("equiformer_v2_dens_noise_head")
class NoiseHead(ForceHead):
    """A second vector head, for the noise of the corrupted atoms in units of its scale; does not run at inference."""

    auxiliary: ClassVar[bool] = True

    def __init__(self, backbone: EquiformerV2Backbone, output_name: str = NOISE) -> None:
        with torch.random.fork_rng(devices=[]):  # heads built after this one start as in a model without DeNS
            super().__init__(backbone, output_name)


@registry.register_model("equiformer_v2_dens_energy_head")
class EnergyHead(RowHead, EqV2ScalarHead):
    """fairchem's energy head, which computes degree 0 only: no other degree enters the energy."""

    level: ClassVar = "structure"

    def __init__(self, backbone: EquiformerV2Backbone, output_name: str = "energy", reduce: str = "sum") -> None:
        super().__init__(backbone, output_name, reduce)
        shared = _pass_of(backbone)
        self._is_fast = shared is not None
        if self._is_fast:
            use_fast_path(self, shared)

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(B,)."""
        if not self._is_fast:
            return EqV2ScalarHead.forward(self, data, emb)[self.output_name]
        atoms = self.energy_block.scalars(emb["node_embedding"].embedding)[:, 0]
        energy = atoms.new_zeros(len(data.natoms)).index_add(0, data.batch, atoms)
        return energy / (self.avg_num_nodes if self.reduce == "sum" else data.natoms)


@registry.register_model("equiformer_v2_dens")
class FlatEquiformerV2DeNS(HydraModel):
    """Backbone and three heads in one, with the flat hyper-parameters of the authors' ``equiformer_v2_dens``.

    Args:
        otf_graph: whether edges are computed on the fly.
        use_tp_reparam: of the authors' layout; only False exists in fairchem.
        use_noise_schedule_sigma_encoding: of the authors' layout; only False, which the paper found better.
        **backbone: hyper-parameters of fairchem's EquiformerV2 backbone.

    Attributes:
        backbone_class: the class that takes them.

    Raises:
        ValueError: for an option of the authors' code that fairchem's network lacks.
    """

    backbone_class = EquiformerV2DeNS

    def __init__(
        self,
        *,
        otf_graph: bool = True,
        use_tp_reparam: bool = False,
        use_noise_schedule_sigma_encoding: bool = False,
        **backbone: Any,
    ) -> None:
        if use_tp_reparam or use_noise_schedule_sigma_encoding:
            raise ValueError(
                "use_tp_reparam and use_noise_schedule_sigma_encoding are not supported and must be False or left out"
            )
        super().__init__(
            backbone={"model": "dens_plugin.EquiformerV2DeNS", "otf_graph": otf_graph, **backbone},
            heads={
                "energy": {"module": "dens_plugin.EnergyHead"},
                "forces": {"module": "dens_plugin.ForceHead"},
                "noise": {"module": "dens_plugin.NoiseHead"},
            },
            otf_graph=otf_graph,
            pass_through_head_outputs=True,
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names without weight decay by EquiformerV2's own rule, as in the authors' runs."""
        return EquiformerV2Backbone.no_weight_decay(self)


def _pass_of(backbone: EquiformerV2Backbone) -> Pass | None:
    """What a backbone on the fast path shares with its heads; fairchem's backbone has none."""
    return getattr(backbone, "shared", None)


def _edge_subset(graph: GraphData, edges: slice | torch.Tensor) -> GraphData:
    """The graph with only ``edges``, in what a head reads of it."""
    return dataclasses.replace(graph, edge_index=graph.edge_index[:, edges], edge_distance=graph.edge_distance[edges])


def _require_precision(precision: str, fast: bool) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"model.backbone.precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision != "fp32" and not fast:
        raise ValueError(f"model.backbone.precision: {precision} needs the fast path; leave out `fast: false`")

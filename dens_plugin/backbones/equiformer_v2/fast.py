"""EquiformerV2's modules, computing the same numbers with fewer passes over memory.

Every class is one of fairchem's with another forward: parameters, state dict and random numbers stay fairchem's, so
that a run may change from one path to the other at any step. `use_fast_path` puts them in. What stays fairchem's: what
needs edges under graph parallelism, whose ranks exchange features within a block, and feed-forward networks with
gates, which have no grid.

The order of operations is that of `dens_plugin.nn.so2`: one packed rotation per edge and forward pass holds fairchem's
permutations and masks; edges go through a block some hundred at a time; linear layers on a grid's channels are folded.
EquiformerV2: Liao, Wood, Das and Smidt, arXiv:2306.12059.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
from fairchem.core.models.equiformer_v2.drop import GraphDropPath
from fairchem.core.models.equiformer_v2.input_block import EdgeDegreeEmbedding
from fairchem.core.models.equiformer_v2.layer_norm import (
    EquivariantLayerNormArraySphericalHarmonics,
    EquivariantRMSNormArraySphericalHarmonicsV2,
)
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding, SO3_Rotation
from fairchem.core.models.equiformer_v2.transformer_block import FeedForwardNetwork, SO2EquivariantGraphAttention
from torch import nn
from torch.nn import functional

from dens_plugin.backbones.equiformer_v2.weights import (
    AttentionWeights,
    FeedForwardWeights,
    attention_weights,
    feed_forward_weights,
    gates_of,
    has_gates,
    radial_function,
    radial_of,
    radial_weights,
    vector_weights,
)
from dens_plugin.backbones.forward_pass import Pass, edge_dtype
from dens_plugin.backbones.grids import flat_grid, grid_matrix
from dens_plugin.backbones.packed_rotation import rotations
from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.backends.triton.attention_logits import attention_logits
from dens_plugin.nn.backends.triton.drop_path import drop_path
from dens_plugin.nn.equiformer_v2.attention import softmax_by_target, vector_sum, weighted_sum
from dens_plugin.nn.equiformer_v2.convolution import Weights
from dens_plugin.nn.equiformer_v2.degree_norm import Affine, balance, computes, degree_norm
from dens_plugin.nn.equiformer_v2.message import messages
from dens_plugin.nn.equiformer_v2.radial import Radial
from dens_plugin.nn.so2.activation import Activation, GateActivation, GridActivation, grid_silu
from dens_plugin.nn.so2.grid_matrix import GridMatrix
from dens_plugin.nn.so2.grid_mlp import grid_mlp
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import RotatedEdges, by_parts
from dens_plugin.nn.so2.rotation import rotate_back
from dens_plugin.nn.zero_gradients import with_zero_gradients

_INFERENCE_NUMBERS = 15 << 18  # of an edge's two ends in its frame at a time: some 530 edges at the published size


def use_fast_path(model: nn.Module, shared: Pass | None) -> None:
    """Give fairchem's modules within ``model`` their fast forward; parameters and state dict stay as they are.

    Args:
        model: a backbone or one of its heads.
        shared: by the modules of both, or None where only those that need no edges are to be fast.
    """
    fast = _OF_NODES if shared is None else _OF_NODES | _OF_EDGES
    for module in model.modules():
        if type(module) in fast:
            # fairchem builds these deep inside its constructors, which offer no hook; the subclasses add no state.
            module.__class__ = fast[type(module)]
            module.shared = shared


class SharedEmbedding(SO3_Embedding):
    """fairchem's record of features, whose copy has the same tensor: a block replaces it and never writes to it."""

    @classmethod
    def of(cls, x: SO3_Embedding) -> SharedEmbedding:
        """The features of another record."""
        out = cls(0, [*x.lmax_list], x.num_channels, x.device, x.dtype)
        out.set_embedding(x.embedding)
        return out

    def clone(self) -> SharedEmbedding:
        """A record of its own for the same tensor."""
        return self.of(self)


class FastRotation(SO3_Rotation):
    """fairchem's rotation, packed: rows of |m| <= mmax in the order of `Layout`."""

    shared: Pass

    def set_wigner(self, rot_mat3x3: torch.Tensor) -> None:
        """Set the edges of the pass from their frames (E, 3, 3)."""
        self.device, self.dtype = rot_mat3x3.device, rot_mat3x3.dtype
        self.shared.rotate(rotations(rot_mat3x3, self.shared.layout))

    def rotate(self, embedding: torch.Tensor, out_lmax: int, out_mmax: int) -> torch.Tensor:
        """(E, S, C) of (E, L, C), into the edges' frames in fairchem's order: for a head of fairchem's."""
        return torch.bmm(self._by_degree(out_lmax, out_mmax), embedding)

    def rotate_inv(self, embedding: torch.Tensor, in_lmax: int, in_mmax: int) -> torch.Tensor:
        """(E, L, C) of (E, S, C), and back."""
        rotation = self._by_degree(in_lmax, in_mmax)
        scale = self.shared.edges.scale[self._order(rotation)]
        return torch.bmm(rotation.transpose(1, 2), embedding * scale[:, None])

    def _by_degree(self, lmax: int, mmax: int) -> torch.Tensor:
        """(E, S, L) rows in fairchem's order."""
        if Layout(lmax, mmax) != self.shared.layout:
            raise ValueError(f"a head needs the backbone's degrees {self.shared.layout}, got {Layout(lmax, mmax)}")
        rotation = self.shared.edges.rotation
        return rotation[:, self._order(rotation)]

    def _order(self, rotation: torch.Tensor) -> torch.Tensor:
        return self.shared.layout.constants_for(rotation).by_degree


class FastEdgeDegreeEmbedding(EdgeDegreeEmbedding):
    """Radial features of m = 0 alone are rotated back: those of the other orders are zero."""

    shared: Pass

    def forward(
        self,
        atomic_numbers: torch.Tensor,
        edge_distance: torch.Tensor,
        edge_index: torch.Tensor,
        num_nodes: int,
        node_offset: int = 0,
    ) -> SO3_Embedding:
        """(N, L, C)."""
        edges = self.shared.edges.of_order_zero()
        weights = radial_weights(self.rad_func, self, edge_distance.dtype)
        radial = radial_of(self.rad_func, weights, atomic_numbers, edge_distance, self.shared.edges)
        scale = self.shared.edges.scale[: len(edges.layout), None] / self.rescale_factor

        def sums(edges: RotatedEdges, hidden: torch.Tensor) -> torch.Tensor:
            features = functional.linear(hidden, radial.weight, radial.bias)
            return rotate_back(features.view(len(features), len(edges.layout), self.sphere_channels) * scale, edges)

        return _embedding(by_parts(sums, edges, radial.hidden, _limit(edges, self.sphere_channels)), self.lmax_list)


class FastGraphAttention(SO2EquivariantGraphAttention):
    """Graph attention over the pieces of a batch's edges."""

    shared: Pass

    def forward(
        self,
        x: SO3_Embedding,
        atomic_numbers: torch.Tensor,
        edge_distance: torch.Tensor,
        edge_index: torch.Tensor,
        node_offset: int = 0,
    ) -> SO3_Embedding:
        """(N, L, C')."""
        weights = self._weights(x.embedding)
        inputs = x.embedding, atomic_numbers, edge_distance, self.shared.edges
        values = self._at_targets(weighted_sum, weights, weights.second, *inputs)
        with self.shared.products():
            return _embedding(weights.projection(values), self.lmax_list)

    def vectors(
        self, nodes: torch.Tensor, atomic_numbers: torch.Tensor, edge_distance: torch.Tensor, edges: RotatedEdges
    ) -> torch.Tensor:
        """(M, 3) the coefficients of degree 1 of one output channel at the targets of ``edges``.

        Args:
            nodes: (N, L, C) features of all atoms.
            atomic_numbers: (N,).
            edge_distance: (E, K) features of the distances of ``edges``.
            edges: E of them.
        """
        inputs = nodes, atomic_numbers, edge_distance, edges
        vectors = self._at_targets(vector_sum, self._weights(nodes), vector_weights(self, edges.layout), *inputs)
        unused = [self.proj.bias, *(order.fc.weight for order in self.so2_conv_2.so2_m_conv[1:])]
        return with_zero_gradients(vectors, unused)

    def _at_targets(
        self,
        reduce: Callable[..., torch.Tensor],
        weights: AttentionWeights,
        last: Weights,
        nodes: torch.Tensor,
        atomic_numbers: torch.Tensor,
        edge_distance: torch.Tensor,
        edges: RotatedEdges,
    ) -> torch.Tensor:
        """(M, ...) of `weighted_sum` or `vector_sum`: a few edges at a time where nothing is kept for a gradient."""
        activation = self._activation(edges.layout)
        with torch.autocast(nodes.device.type, enabled=False), self.shared.products():
            radial = radial_of(radial_function(self), weights.radial, atomic_numbers, edge_distance, edges)

        def values(edges: RotatedEdges, hidden: torch.Tensor) -> torch.Tensor:
            activated, attention = self._activated(
                nodes, radial._replace(hidden=hidden), edges, weights.first, activation
            )
            with self.shared.products():
                return reduce(activated, attention, last, edges)

        if self.training:  # dropout draws its numbers for all edges at once
            return values(edges, radial.hidden)
        return by_parts(values, edges, radial.hidden, _limit(edges, self.sphere_channels))

    def _weights(self, nodes: torch.Tensor) -> AttentionWeights:
        prepared: AttentionWeights | None = self.shared.now.weights.get(self)
        return attention_weights(self, self.shared.edge_dtype(nodes)) if prepared is None else prepared

    def _activated(
        self, nodes: torch.Tensor, radial: Radial, edges: RotatedEdges, weights: Weights, activation: Activation
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Activated features (E, S, C) of the first convolution, and attention weights (E, H)."""
        dtype = self.shared.edge_dtype(nodes)
        with torch.autocast(nodes.device.type, enabled=False):
            with self.shared.products():
                width = self.num_heads * self.attn_alpha_channels
                scalars, features = messages(nodes, radial, weights, edges, dtype, num_scalars=width)
            attention = self._attention(scalars, edges)
        with self.shared.products():
            return activation(features, len(edges.layout)), attention

    def _attention(self, scalars: torch.Tensor, edges: RotatedEdges) -> torch.Tensor:
        """(E, H) attention weights of (E, H A) scalars."""
        attention = softmax_by_target(self._logits(scalars), edges)
        if self.alpha_dropout is None or not self.alpha_dropout.training:
            return attention
        # A mask is drawn in the order of memory: in fairchem's that of an einsum, whose heads newer versions of torch
        # put first.
        if _heads_come_first():
            attention = attention.t().contiguous().t()
        elif not attention.is_contiguous():
            attention = attention.contiguous()
        return self.alpha_dropout(attention[:, None, :, None]).squeeze(3).squeeze(1)

    def _logits(self, scalars: torch.Tensor) -> torch.Tensor:
        """(E, H)."""
        norm, slope = self.alpha_norm, self.alpha_act.alpha  # of fairchem's SmoothLeakyReLU: slope x + (1 - slope) silu
        if isinstance(norm, nn.LayerNorm) and machine_for(scalars) is Machine.TRITON:
            return attention_logits(scalars, (norm.weight, norm.bias, norm.eps), self.alpha_dot, slope)
        scalars = scalars.to(self.alpha_dot.dtype).unflatten(1, (self.num_heads, self.attn_alpha_channels))
        scalars = norm(scalars)
        activated = torch.add(functional.silu(scalars), scalars, alpha=slope / (1 - slope))
        return torch.einsum("eha,ha->eh", activated, (1 - slope) * self.alpha_dot)

    def _activation(self, layout: Layout) -> Activation:
        if self.use_gate_act:
            return GateActivation(layout)
        grid = self.SO3_grid[layout.lmax][layout.mmax]
        to_grid, from_grid = (grid_matrix(matrix, layout) for matrix in (grid.to_grid_mat, grid.from_grid_mat))
        return GridActivation(to_grid, from_grid, self.use_sep_s2_act)


class FastFeedForward(FeedForwardNetwork):
    """Folds its linear layers around the grid; networks with gates go fairchem's way."""

    shared: Pass | None

    def forward(self, input_embedding: SO3_Embedding) -> SO3_Embedding:
        """(N, L, C')."""
        if has_gates(self):
            return super().forward(input_embedding)
        features, shared = input_embedding.embedding, self.shared
        with nullcontext() if shared is None else shared.products():
            return _embedding(self._on_grid(features, self._weights(features)), input_embedding.lmax_list)

    def scalars(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C') of degree 0 alone, from node features (N, L, C): an energy head, in the nodes' precision."""
        if has_gates(self) or not self.use_sep_s2_act:
            return self.forward(_embedding(features, self.lmax_list)).embedding[:, 0]
        second = self.so3_linear_2
        gates = functional.linear(features[:, 0], *gates_of(self))
        scalars = functional.linear(functional.silu(gates), second.weight[0], second.bias)
        unused = [*self.so3_linear_1.parameters()]
        if self.use_grid_mlp:
            unused += self.grid_mlp.parameters()
        return with_zero_gradients(scalars, unused)

    def _weights(self, features: torch.Tensor) -> FeedForwardWeights:
        prepared = None if self.shared is None else self.shared.now.weights.get(self)
        if prepared is not None:
            return prepared
        dtype = edge_dtype(features) if self.shared is None else self.shared.edge_dtype(features)
        return feed_forward_weights(self, dtype)

    def _on_grid(self, features: torch.Tensor, weights: FeedForwardWeights) -> torch.Tensor:
        grid = self.SO3_grid[self.max_lmax][self.max_lmax]
        dtype = weights.first.weight.dtype
        to_grid, from_grid = (flat_grid(matrix, dtype) for matrix in (grid.to_grid_mat, grid.from_grid_mat))
        if self.use_sep_s2_act:
            from_grid = from_grid[:, 1:]
        with torch.autocast(features.device.type, enabled=False):
            hidden, gates = weights.first.with_gates(features, weights.gates)
            if weights.middle is not None:
                return weights.last(grid_mlp(hidden, weights.middle, to_grid, from_grid, gates))
            hidden = grid_silu(hidden, GridMatrix(to_grid), GridMatrix(from_grid))
            return weights.last(hidden if gates is None else torch.cat([functional.silu(gates)[:, None], hidden], 1))


class FastLayerNorm(EquivariantLayerNormArraySphericalHarmonics):
    """In one pass on a CPU, and on a GPU."""

    def forward(self, node_input: torch.Tensor) -> torch.Tensor:
        """(N, L, C)."""
        if not self.affine:
            return super().forward(node_input)
        affine = Affine(self.norm_l0.weight, self.affine_weight, self.norm_l0.bias)
        return _normed(self, node_input, affine) if _suits(self, node_input, affine) else super().forward(node_input)


class FastRMSNorm(EquivariantRMSNormArraySphericalHarmonicsV2):
    """In one pass on a CPU, and on a GPU."""

    def forward(self, node_input: torch.Tensor) -> torch.Tensor:
        """(N, L, C)."""
        if not (self.affine and self.centering):
            return super().forward(node_input)
        affine = Affine(None, self.affine_weight, self.affine_bias)
        return _normed(self, node_input, affine) if _suits(self, node_input, affine) else super().forward(node_input)


class FastDropPath(GraphDropPath):
    """Draws fairchem's number for each structure without asking the device how many there are."""

    shared: Pass

    def forward(self, x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """``x`` (N, ...) with whole structures dropped.

        Args:
            x: (N, ...).
            batch: (N,) structure of each atom.
        """
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        draws = torch.rand((self.shared.num_graphs, *(1 for _ in x.shape[1:])), dtype=x.dtype, device=x.device)
        if machine_for(x) is Machine.TRITON:
            return drop_path(x, draws, batch, keep)
        return x * ((keep + draws).floor() / keep)[batch]


_OF_NODES = {
    FeedForwardNetwork: FastFeedForward,
    EquivariantLayerNormArraySphericalHarmonics: FastLayerNorm,
    EquivariantRMSNormArraySphericalHarmonicsV2: FastRMSNorm,
}
_OF_EDGES = {
    SO3_Rotation: FastRotation,
    EdgeDegreeEmbedding: FastEdgeDegreeEmbedding,
    SO2EquivariantGraphAttention: FastGraphAttention,
    GraphDropPath: FastDropPath,
}


@functools.cache
def _heads_come_first() -> bool:
    """Whether torch's einsum gives fairchem's attention logits (E, H) in this order of memory."""
    scalars = torch.zeros(2, 3, 4, device="cpu")
    return torch.einsum("eha,ha->eh", scalars, scalars[0]).stride(0) == 1


def _limit(edges: RotatedEdges, channels: int) -> int:
    """How many edges to take at a time where nothing is kept for a gradient."""
    return max(1, _INFERENCE_NUMBERS // (len(edges.layout) * 2 * channels))


def _suits(norm: nn.Module, features: torch.Tensor, affine: Affine) -> bool:
    """Whether features are (N, L, C) of a norm of fairchem's, and of a type that `degree_norm` computes."""
    return features.shape[1:] == ((norm.lmax + 1) ** 2, norm.num_channels) and computes(features, affine)


def _normed(norm: nn.Module, features: torch.Tensor, affine: Affine) -> torch.Tensor:
    kind, is_separate = _balance_of(norm), affine.first is not None
    of_squares = balance(
        norm.lmax, norm.num_channels, norm.eps, kind=kind, is_separate=is_separate, device=features.device
    )
    return degree_norm(features, of_squares, affine)


def _balance_of(norm: nn.Module) -> str:
    """How a norm of fairchem's weighs components, as `balance` calls it."""
    if norm.normalization == "norm":
        return "none"
    return "degrees" if norm.std_balance_degrees else "components"


def _embedding(features: torch.Tensor, lmax_list: list[int]) -> SO3_Embedding:
    """fairchem's record of features (N, L, C)."""
    out = SO3_Embedding(0, list(lmax_list), features.shape[2], features.device, features.dtype)
    out.set_embedding(features)
    return out

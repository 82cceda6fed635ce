"""Equiformer (v1) with forces as gradients, and with DeNS, for molecules.

Equiformer: Liao and Smidt, arXiv:2206.11990; with DeNS in Tables 4 to 6 of arXiv:2403.09549. The network is in
`dens_plugin.nn.equiformer`; here it meets fairchem's batches, graphs and heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface, GraphModelMixin, HeadInterface
from torch import nn

from dens_plugin.backbones.description import Description, by_attributes
from dens_plugin.backbones.equiformer.family import FAMILY
from dens_plugin.backbones.gradients import EnergyHead, WithForces
from dens_plugin.backbones.heads import RowHead
from dens_plugin.backbones.neighbours import edges_to
from dens_plugin.fields import NOISE, corruption_of
from dens_plugin.nn.equiformer.activation import silu
from dens_plugin.nn.equiformer.attention import GraphAttention, GraphConvolution, MessageSizes, PathWeights
from dens_plugin.nn.equiformer.block import Block, FeedForward
from dens_plugin.nn.equiformer.coupled_edges import CoupledEdges, EdgeGeometry
from dens_plugin.nn.equiformer.embedding import AtomEmbedding, DegreeForceEncoding, EdgeDegreeEmbedding
from dens_plugin.nn.equiformer.layer_norm import LayerNorm
from dens_plugin.nn.equiformer.linear import Draw, FeatureLinear, Linear, normal, uniform
from dens_plugin.nn.features import Features, total
from dens_plugin.settings import suggestion, switch

if TYPE_CHECKING:
    from fairchem.core.models.base import GraphData
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows

_INTERACTIONS = {"attention": GraphAttention, "convolution": GraphConvolution}
_NORMS = {"layer": LayerNorm, "none": nn.Identity}
_DRAWS: dict[str, Draw] = {"normal": normal, "uniform": uniform}

# Averages of QM9 within 5 Å, which the published models use for all molecules.
_AVERAGE_ATOMS = 18.03065905448718
_AVERAGE_DEGREE = 15.57930850982666


@registry.register_model("equiformer_plugin_backbone")
class Equiformer(nn.Module, BackboneInterface, GraphModelMixin):
    """Equiformer with the hyper-parameters of L = 2 on MD17 (3.50M parameters with `EquiformerGradientHead`).

    Channels are given per degree, degree 0 first; their number is L + 1.

    Args:
        channels: of a layer's features.
        num_layers: number of layers.
        num_heads: number of attention heads.
        head_channels: of one head.
        ffn_channels: inside the perceptrons.
        feature_channels: of the last features; above degree 0 they exist only in `EquiformerDeNS`.
        cutoff: in Å.
        max_neighbors: the most edges that end at an atom.
        num_radial_basis: number of exponential normal bases.
        radial_channels: widths of the radial networks' hidden layers.
        max_num_elements: the largest atomic number plus one.
        use_pbc: whether structures are periodic.
        use_pbc_single: search periodic neighbours one structure at a time, for less memory.
        interaction: ``attention``, or ``convolution`` for Table 5 without attention.
        norm: ``layer``, or ``none`` for Table 5 without layer normalisation.
        weight_init: ``normal``, or ``uniform``, which the paper needs without layer normalisation.
        smooth_cutoff: whether messages fade out towards the cutoff. In the published network they end there, and its
            energy jumps when two atoms pass it; weights that were trained without this option mean nothing with it.
        otf_graph: only True: the neighbours of moved atoms are not those stored with a structure.

    Raises:
        ValueError: for options that do not exist, or sizes that do not fit one another.
    """

    is_differentiated: ClassVar[bool] = True
    """Forces are gradients, whatever heads there are."""

    _features_of_all_degrees: ClassVar[bool] = False

    def __init__(
        self,
        *,
        channels: Sequence[int] = (128, 64, 32),
        num_layers: int = 6,
        num_heads: int = 4,
        head_channels: Sequence[int] = (32, 16, 8),
        ffn_channels: Sequence[int] = (384, 192, 96),
        feature_channels: Sequence[int] = (512, 256, 128),
        cutoff: float = 5.0,
        max_neighbors: int = 1000,
        num_radial_basis: int = 32,
        radial_channels: Sequence[int] = (64, 64),
        max_num_elements: int = 64,
        use_pbc: bool = False,
        use_pbc_single: bool = False,
        interaction: str = "attention",
        norm: str = "layer",
        weight_init: str = "normal",
        smooth_cutoff: bool = False,
        otf_graph: bool = True,
    ) -> None:
        super().__init__()
        smooth_cutoff = switch(smooth_cutoff, "model.backbone.smooth_cutoff")
        if not otf_graph:
            raise ValueError(
                "Equiformer finds neighbours itself, as those of corrupted structures are stored nowhere; leave "
                "`otf_graph` out of the backbone or set it to true"
            )
        _require_sizes(
            num_layers=num_layers,
            num_heads=num_heads,
            max_neighbors=max_neighbors,
            num_radial_basis=num_radial_basis,
            max_num_elements=max_num_elements,
        )
        _require_lists(
            channels=channels,
            head_channels=head_channels,
            ffn_channels=ffn_channels,
            feature_channels=feature_channels,
            radial_channels=radial_channels,
        )
        _require_degrees(
            channels, head_channels=head_channels, ffn_channels=ffn_channels, feature_channels=feature_channels
        )
        self.otf_graph, self.enforce_max_neighbors_strictly = True, True
        self.cutoff, self.max_neighbors = cutoff, max_neighbors
        self.use_pbc, self.use_pbc_single = use_pbc, use_pbc_single
        self.max_num_elements = max_num_elements
        self.feature_channels = list(feature_channels if self._features_of_all_degrees else feature_channels[:1])
        self._interaction = _choice(_INTERACTIONS, interaction, "interaction")
        self._sizes = MessageSizes(
            channels, num_heads, head_channels, [num_radial_basis, *radial_channels], _AVERAGE_DEGREE
        )
        self._norm = _choice(_NORMS, norm, "norm")
        self._draw = _choice(_DRAWS, weight_init, "weight_init")
        self.vector_heads: list[RowHead] = []  # those that read features above degree 0; they add themselves

        self.geometry = EdgeGeometry(len(channels) - 1, num_radial_basis, cutoff, smooth=smooth_cutoff)
        self.atom_embedding = AtomEmbedding(max_num_elements, channels)
        self.edge_embedding = EdgeDegreeEmbedding(channels, self._sizes.radial, _AVERAGE_DEGREE)
        blocks = [self._block(ffn_channels, Linear(ffn_channels, channels)) for _ in range(num_layers - 1)]
        same = list(feature_channels) == list(channels)
        shortcut = None if same else FeatureLinear(channels, self.feature_channels)
        last = self._block(ffn_channels, FeatureLinear(ffn_channels, self.feature_channels), shortcut=shortcut)
        self.blocks = nn.ModuleList([*blocks, last])
        self.norm = self._norm(self.feature_channels)
        self.draw_weights(self)

    def message_passing(self, inputs: Sequence[int], outputs: Sequence[int]) -> nn.Module:
        """A module that passes messages as the layers do, between features of other channels."""
        return self._interaction(inputs, outputs, self._sizes)

    def _block(self, hidden: Sequence[int], contract: Linear, *, shortcut: Linear | None = None) -> Block:
        channels = self._sizes.channels
        return Block(
            (self._norm(channels), self._norm(channels)),
            self.message_passing(channels, channels),
            FeedForward(channels, hidden, contract),
            shortcut=shortcut,
        )

    def draw_weights(self, module: nn.Module) -> None:
        """Draw the weights of ``module`` as ``weight_init`` says, where that is not what they have."""
        if self._draw is normal:
            return
        for part in module.modules():
            if isinstance(part, (Linear, PathWeights)):
                part.reset_parameters(self._draw)

    def forward(self, data: Batch) -> dict[str, Any]:
        """Features [(N, 2l + 1, C_l)], edges, and the positions (N, 3) to differentiate by.

        An autograd graph is built under ``torch.no_grad()`` too, for the forces; `EquiformerGradientHead` ends it.
        """
        with torch.enable_grad():
            positions = data.pos.detach().requires_grad_()  # not the caller's tensor, which stays as it is
            with torch.no_grad():  # which atoms are neighbours is not differentiated
                graph = self.generate_graph(data)
            edges = self._edges(graph, positions)
            features = self._first_features(data, edges)
            *blocks, last = self.blocks
            for block in blocks:
                features = block(features, edges)
            # Energies need scalars alone.
            is_vectorial = any(head.asked(data) for head in self.vector_heads)
            features = last(features, edges, stop=None if is_vectorial else 1)
            return {"features": self.norm(features), "graph": graph, "edges": edges, "positions": positions}

    def describe(self) -> Description:
        """What others must know of it."""
        return by_attributes(self, family=FAMILY, reads_records=True)

    def _first_features(self, data: Batch, edges: CoupledEdges) -> Features:
        atoms = self.atom_embedding(data.atomic_numbers.long())
        return total(atoms, self.edge_embedding(edges, len(data.pos)))

    def _edges(self, graph: GraphData, positions: torch.Tensor) -> CoupledEdges:
        source, target = graph.edge_index
        vectors = positions[source] - positions[target] + graph.offset_distances.to(positions.dtype)
        return self.geometry(source, target, vectors)


@registry.register_model("equiformer_dens_plugin_backbone")
class EquiformerDeNS(Equiformer):
    """Equiformer that encodes the forces of a batch's corruption record (4.00M parameters for L = 2, with both heads).

    A batch without a record, as at inference, goes through `Equiformer` alone. Encoded forces are constants: no
    gradient with respect to positions passes through them.

    Args:
        **kwargs: as of `Equiformer`.
    """

    _features_of_all_degrees: ClassVar[bool] = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.force_embedding = DegreeForceEncoding(self._sizes.channels)

    def describe(self) -> Description:
        """What others must know of it."""
        return super().describe()._replace(encodes_forces=True)

    def _first_features(self, data: Batch, edges: CoupledEdges) -> Features:
        features = super()._first_features(data, edges)
        corruption = corruption_of(data)
        if corruption is None:
            return features
        return total(features, self.force_embedding(corruption.forces.to(data.pos.dtype)))


@registry.register_model("equiformer_energy_head")
class EquiformerEnergyHead(EnergyHead):
    """The energy, a sum over atoms, for data without forces."""

    def __init__(self, backbone: Equiformer, output_name: str = "energy") -> None:
        super().__init__(output_name)
        channels = backbone.feature_channels[:1]
        self.hidden = Linear(channels, channels)
        self.out = Linear(channels, [1])
        backbone.draw_weights(self)

    def energies(self, data: Batch, emb: dict[str, Any]) -> torch.Tensor:
        """(B,)."""
        atoms = self.out([silu(self.hidden(emb["features"][:1])[0])])[0].flatten() / _AVERAGE_ATOMS**0.5  # (N,)
        return atoms.new_zeros(data.num_graphs).index_add(0, data.batch, atoms)


@registry.register_model("equiformer_gradient_head")
class EquiformerGradientHead(WithForces, EquiformerEnergyHead):
    """Energy, and forces as its gradient."""

    def __init__(self, backbone: Equiformer) -> None:
        super().__init__(backbone)


@registry.register_model("equiformer_noise_head")
class EquiformerNoiseHead(RowHead, nn.Module, HeadInterface):
    """One more block of message passing, for the noise of corrupted atoms in units of its scale.

    It does not run at inference, and in training on the edges that end at atoms whose noise counts.

    Raises:
        ValueError: for a backbone without the features that it needs.
    """

    auxiliary: ClassVar[bool] = True

    def __init__(self, backbone: Equiformer, output_name: str = NOISE) -> None:
        super().__init__()
        if len(backbone.feature_channels) < 2:
            raise ValueError("the noise head needs features of degree 1; use the backbone dens_plugin.EquiformerDeNS")
        self.output_name = output_name
        backbone.vector_heads.append(self)
        with torch.random.fork_rng(devices=[]):  # what is drawn after this starts as in a model without DeNS
            self.block = backbone.message_passing(backbone.feature_channels, [0, 1])
            backbone.draw_weights(self)

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(N, 3)."""
        edges = emb["edges"]
        if rows is not None:
            edges = edges.select(edges_to(emb["graph"], self.output_name, rows))
        return self.block(emb["features"], edges)[0].squeeze(-1)


def _require_sizes(**sizes: Any) -> None:
    """Raise ValueError unless a setting is a whole number above 0."""
    for name, size in sizes.items():
        if not _is_size(size):
            raise ValueError(f"{name} must be a whole number above 0, got {size!r}")


def _require_lists(**lists: Any) -> None:
    """Raise ValueError for sizes that are no list of numbers of something."""
    for name, sizes in lists.items():
        if isinstance(sizes, str) or not isinstance(sizes, Sequence) or not all(map(_is_size, sizes)):
            raise ValueError(f"{name} must be a list of whole numbers above 0, e.g. [64, 32], got {sizes!r}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require_degrees(channels: Sequence[int], **others: Sequence[int]) -> None:
    """Raise ValueError for channels of less than two degrees, and for sizes that are not given for the same degrees."""
    if len(channels) < 2:
        raise ValueError(f"channels must have a number for degree 0, degree 1, ..., got {list(channels)}")
    for name, sizes in others.items():
        if len(sizes) != len(channels):
            raise ValueError(
                f"{name} must have a number for each of the {len(channels)} degrees of channels {list(channels)}, got "
                f"{list(sizes)}"
            )


def _choice(options: dict[str, Any], name: str, key: str) -> Any:
    if name not in options:
        raise ValueError(f"unknown {key} '{name}'; {suggestion(str(name), options)}")
    return options[name]

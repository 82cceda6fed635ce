"""eSEN with DeNS: fairchem's backbone with a force encoding, its heads, and a second vector head for the noise.

eSEN: Fu et al., "Learning Smooth and Expressive Interatomic Potentials for Physical Property Prediction",
arXiv:2502.12147. It predicts forces directly, by `ESENEnergyHead` and `ESENForceHead`, or as the gradient of the
energy, by `ESENGradientHead`. Parameters keep fairchem's names, so that its eSEN checkpoints load.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import GraphData
from fairchem.core.models.esen.esen import Linear_Force_Head, MLP_EFS_Head, MLP_Energy_Head, eSEN_Backbone

from dens_plugin.backbones.description import Description, by_attributes
from dens_plugin.backbones.esen.empty_graph import allow_empty_graphs, with_edge_to_nowhere
from dens_plugin.backbones.esen.family import FAMILY
from dens_plugin.backbones.esen.polar_edges import Frames, frames_without_waiting, turned_at_poles, wigner_of_turn
from dens_plugin.backbones.heads import Asked, RowHead, where_it_counts
from dens_plugin.backbones.neighbours import recorded_graph
from dens_plugin.fields import NOISE, corruption_of
from dens_plugin.nn.force_encoding import ForceEncoding

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows


@registry.register_model("esen_dens_plugin_backbone")
class ESENDeNS(eSEN_Backbone):
    """fairchem's ``esen_backbone`` that encodes the forces of a batch's corruption record.

    A batch without a record, as at inference, goes through fairchem's forward alone. Encoded forces are constants:
    no gradient with respect to positions passes through them. Numbers are fairchem's but where it is wrong: isolated
    atoms alone in a batch (`esen.empty_graph`), and gradients by bonds along the y axis (`esen.polar_edges`).

    Args:
        otf_graph: only True: the neighbours of moved atoms are not those stored with a structure.
        **kwargs: as fairchem's.

    Raises:
        ValueError: for ``otf_graph: false``.
    """

    def __init__(self, *, otf_graph: bool = True, **kwargs: Any) -> None:
        if not otf_graph:
            raise ValueError(
                "dens_plugin.ESENDeNS finds neighbours itself, as those of corrupted structures are stored nowhere; "
                "leave `otf_graph` out of the backbone or set it to true"
            )
        super().__init__(otf_graph=True, **kwargs)
        self.force_embedding = ForceEncoding(self.lmax, self.sphere_channels)
        turn = wigner_of_turn([getattr(self, f"Jd_{degree}") for degree in range(self.lmax + 1)])
        self.register_buffer("_turn", turn, persistent=False)
        allow_empty_graphs(self)

    def forward(self, data: Batch) -> dict[str, Any]:
        """Node embeddings (N, L, C) and graph of a batch, as fairchem's.

        For gradients fairchem writes the positions to differentiate by into the batch, and its head finds them there.
        """
        if not self.direct_forces:
            data.pos = data.pos.detach()  # not the caller's tensor, which fairchem would mark, and fail to mark twice
        corruption = corruption_of(data)
        if corruption is None:
            return super().forward(data)
        encoding = self.force_embedding(corruption.forces.to(data.pos.dtype))
        # fairchem adds the edge degree embedding to the element embedding inside this module, and the blocks follow.
        with self.edge_degree_embedding.register_forward_hook(lambda _module, _inputs, nodes: nodes + encoding):
            return super().forward(data)

    def describe(self) -> Description:
        """What others must know of it."""
        return by_attributes(self, family=FAMILY, encodes_forces=True, reads_records=True)

    def generate_graph(self, data: Batch, **kwargs: Any) -> dict[str, Any]:
        """fairchem's graph; where it has no edge, one to nowhere, which `allow_empty_graphs` drops."""
        known = recorded_graph(self, data)
        graph = super().generate_graph(data, **kwargs) if known is None else _as_fairchems(known)
        return graph if graph["edge_index"].shape[1] > 0 else with_edge_to_nowhere(graph, data.pos, self.cutoff)

    def get_rotmat_and_wigner(self, edge_distance_vecs: torch.Tensor) -> Frames:
        """fairchem's edge frames; for gradients those of edges along the y axis can be differentiated too."""
        frames_of = super().get_rotmat_and_wigner
        if self.direct_forces and edge_distance_vecs.is_cuda:
            jd = [getattr(self, f"Jd_{degree}").to(edge_distance_vecs.dtype) for degree in range(self.lmax + 1)]
            return frames_without_waiting(edge_distance_vecs, jd)
        if self.direct_forces:
            return frames_of(edge_distance_vecs)
        # Under bf16 autocast fairchem would take edges within 4° of the axis for constants, not only within 0.08°.
        with torch.autocast(edge_distance_vecs.device.type, enabled=False):
            return turned_at_poles(frames_of, edge_distance_vecs, self._turn)


def _as_fairchems(graph: GraphData) -> dict[str, Any]:
    """As fairchem's eSEN keeps its graph."""
    unused = {"offset_distances": None, "neighbors": None, "node_offset": 0}
    return {field.name: getattr(graph, field.name) for field in dataclasses.fields(GraphData)} | unused


@registry.register_model("esen_dens_energy_head")
class ESENEnergyHead(RowHead, MLP_Energy_Head):
    """fairchem's energy head under any name."""

    level: ClassVar = "structure"

    def __init__(self, backbone: eSEN_Backbone, output_name: str = "energy", reduce: str = "sum") -> None:
        super().__init__(backbone, reduce)
        self.output_name = output_name

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(B,)."""
        return MLP_Energy_Head.forward(self, data, emb)["energy"]


class _VectorHead(RowHead, Linear_Force_Head):
    """fairchem's linear vector head under any name, zero where the prediction does not count.

    It is one linear map per atom, C channels to one: computing all rows costs less than picking some.
    """

    def __init__(self, backbone: eSEN_Backbone, output_name: str) -> None:
        super().__init__(backbone)
        self.output_name = output_name

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(N, 3)."""
        return Linear_Force_Head.forward(self, data, emb)["forces"]


@registry.register_model("esen_dens_force_head")
class ESENForceHead(_VectorHead):
    """Forces (N, 3) directly, in normalised units.

    Raises:
        ValueError: beside a gradient head, or if the backbone was told that forces are gradients.
    """

    def __init__(self, backbone: eSEN_Backbone, output_name: str = "forces") -> None:
        if not backbone.direct_forces:
            raise ValueError(
                "dens_plugin.ESENForceHead predicts forces directly, and the backbone is set up for gradients; drop "
                "`direct_forces: false` and any gradient head, or use dens_plugin.ESENGradientHead alone"
            )
        super().__init__(backbone, output_name)


@registry.register_model("esen_dens_noise_head")
class ESENNoiseHead(_VectorHead):
    """A second vector head, for the noise of the corrupted atoms in units of its scale; does not run at inference."""

    auxiliary: ClassVar[bool] = True

    def __init__(self, backbone: eSEN_Backbone, output_name: str = NOISE) -> None:
        with torch.random.fork_rng(devices=[]):  # heads built after this one start as in a model without DeNS
            super().__init__(backbone, output_name)


@registry.register_model("esen_dens_gradient_head")
class ESENGradientHead(RowHead, MLP_EFS_Head):
    r"""Energy, forces and, with the backbone's ``regress_stress``, stress, of which the latter two are derivatives.

    .. math:: F = -\partial E / \partial x, \qquad \sigma = V^{-1} \, \partial E / \partial \varepsilon

    at the positions that the model is given: those of the corrupted structure, its encoded forces being constants.
    No energy is set to zero, whose forces would be zero too. A batch that asks for energies alone gets no gradient. All
    are in the units of the normalised energy, so that the normalisers of energy, forces and stress must have one
    ``stdev``.

    Raises:
        ValueError: for a backbone with ``regress_forces: false``, or beside a direct force head.
    """

    output_name = "energy"
    level: ClassVar = "structure"

    def __init__(self, backbone: eSEN_Backbone) -> None:
        if not backbone.regress_forces:
            raise ValueError(
                "dens_plugin.ESENGradientHead needs a backbone with `regress_forces: true`; for energies alone use "
                "dens_plugin.ESENEnergyHead"
            )
        super().__init__(backbone)
        self.reduce = "sum"  # read by fairchem's energy head, of which this is the derivative

    @property
    def output_names(self) -> tuple[str, ...]:
        """Stress where the backbone has a strain to differentiate by."""
        return ("energy", "forces", "stress") if self.regress_stress else ("energy", "forces")

    def forward(self, data: Batch, emb: dict[str, Any]) -> dict[str, torch.Tensor]:
        """As of every head; afterwards the batch is as it came: fairchem strains its cell and marks its positions."""
        out = super().forward(data, emb)
        data.pos = data.pos.detach()
        if emb["orig_cell"] is not None:
            data.cell = emb["orig_cell"]
        # fairchem lifts `torch.no_grad` for the derivatives; nothing of their graph need outlive this call.
        return out if torch.is_grad_enabled() else {name: value.detach() for name, value in out.items()}

    def predict(self, data: Batch, emb: dict[str, Any], asked: Asked) -> dict[str, torch.Tensor]:
        """{energy: (B,), forces: (N, 3), stress: (B, 9)}."""
        with torch.enable_grad():
            energy = MLP_Energy_Head.forward(self, data, emb)["energy"]
            by = {"forces": data.pos, "stress": emb["displacement"]}
            by = {name: variable for name, variable in by.items() if name in asked}
            found = torch.autograd.grad(energy.sum(), [*by.values()], create_graph=self.training) if by else ()
        out, gradients = {"energy": energy}, dict(zip(by, found, strict=True))
        if "forces" in gradients:
            out["forces"] = where_it_counts(-gradients["forces"], asked["forces"])
        if "stress" in gradients:
            volume = torch.det(data.cell).abs()
            out["stress"] = (gradients["stress"].view(-1, 3, 3) / volume.view(-1, 1, 1)).view(-1, 9)
        return {name: out[name] for name in asked}

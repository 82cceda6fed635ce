"""PaiNN with DeNS, for molecules and crystals, with direct forces or forces as gradients.

PaiNN: Schütt, Unke and Gastegger, arXiv:2102.03150, in the form of the Open Catalyst Project, whose weights load. The
layers are in `dens_plugin.nn.painn`; here they meet fairchem's batches, graphs and heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.gemnet.layers.embedding_block import AtomEmbedding
from torch import nn

from dens_plugin.backbones.painn.family import FAMILY
from dens_plugin.backbones.pair_backbone import PairBackbone
from dens_plugin.fields import corruption_of
from dens_plugin.nn.force_encoding import VectorForceEncoding
from dens_plugin.nn.painn.layers import Form, Message, Update
from dens_plugin.nn.painn.radial import CosineEnvelope, PolynomialEnvelope, RadialBases
from dens_plugin.nn.pairs import Edges
from dens_plugin.settings import mapping, reject_unknown, suggestion

if TYPE_CHECKING:
    from torch_geometric.data import Batch

_ENVELOPES = {"polynomial": PolynomialEnvelope, "cosine": CosineEnvelope}


@registry.register_model("painn_plugin_backbone")
class PaiNN(PairBackbone):
    """PaiNN without DeNS. Defaults are fairchem's, for its checkpoints; `configs/backbone` has one for molecules.

    Args:
        hidden_channels: C.
        num_layers: of messages and updates.
        num_rbf: number of Gaussians.
        cutoff: in Å.
        max_neighbors: the most edges that end at an atom.
        rbf: only ``{name: gaussian}``.
        envelope: ``{name: polynomial, exponent: 5}``, fairchem's, or ``{name: cosine}``, the paper's.
        form: ``open_catalyst``, fairchem's, or ``paper``, which has no layer norms and no factors that keep the size of
            features, and whose filters end at the cutoff. fairchem's jump there, as do forces that are their gradient.
        use_pbc: whether structures are periodic.
        use_pbc_single: search periodic neighbours one structure at a time, for less memory.
        num_elements: the largest atomic number.
        otf_graph: only True: the neighbours of moved atoms are not those stored with a structure.

    Raises:
        ValueError: for options that do not exist.
    """

    family = FAMILY

    def __init__(
        self,
        *,
        hidden_channels: int = 512,
        num_layers: int = 6,
        num_rbf: int = 128,
        cutoff: float = 12.0,
        max_neighbors: int = 50,
        rbf: Mapping[str, Any] | None = None,
        envelope: Mapping[str, Any] | None = None,
        form: Form = "open_catalyst",
        use_pbc: bool = True,
        use_pbc_single: bool = False,
        num_elements: int = 83,
        otf_graph: bool = True,
    ) -> None:
        super().__init__(
            cutoff=cutoff,
            max_neighbors=max_neighbors,
            use_pbc=use_pbc,
            use_pbc_single=use_pbc_single,
            max_num_elements=num_elements + 1,
            otf_graph=otf_graph,
        )
        if hidden_channels % 2:
            raise ValueError(f"model.backbone.hidden_channels must be even, as heads halve it, got {hidden_channels}")
        if form not in get_args(Form):
            raise ValueError(f"unknown form '{form}' in model.backbone; {suggestion(str(form), get_args(Form))}")
        if dict(rbf or {"name": "gaussian"}) != {"name": "gaussian"}:
            raise ValueError(f"model.backbone.rbf must be {{name: gaussian}} or left out, got {rbf}")
        self.hidden_channels, self.form = hidden_channels, form
        self.scalar_channels = self.vector_channels = hidden_channels
        self.atom_emb = AtomEmbedding(hidden_channels, num_elements)
        self.radial_basis = RadialBases(num_rbf, cutoff, _envelope(envelope, form), smooth=form == "paper")
        self.message_layers = nn.ModuleList([Message(hidden_channels, num_rbf, form) for _ in range(num_layers)])
        self.update_layers = nn.ModuleList([Update(hidden_channels, form) for _ in range(num_layers)])

    def features(self, data: Batch, edges: Edges) -> dict[str, torch.Tensor]:
        """Scalars (N, C) and vectors (N, 3, C)."""
        bases = self.radial_basis(edges.distances)
        scalars, vectors = self.atom_emb(data.atomic_numbers.long()), self._first_vectors(data)
        for message, update in zip(self.message_layers, self.update_layers, strict=True):
            scalars, vectors = update(*message(scalars, vectors, edges, bases))
        return {"scalars": scalars, "vectors": vectors}

    def _first_vectors(self, data: Batch) -> torch.Tensor | None:
        """(N, 3, C) before the first layer; None for zeros."""
        return None


@registry.register_model("painn_dens_plugin_backbone")
class PaiNNDeNS(PaiNN):
    """PaiNN that encodes the forces of a batch's corruption record in its vectors, which otherwise start at zero.

    A batch without a record, as at inference, goes through `PaiNN` alone. Encoded forces are constants: no gradient
    with respect to positions passes through them.

    Args:
        **kwargs: as of `PaiNN`.
    """

    encodes_forces = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.force_embedding = VectorForceEncoding(self.hidden_channels)

    def _first_vectors(self, data: Batch) -> torch.Tensor | None:
        corruption = corruption_of(data)
        return None if corruption is None else self.force_embedding(corruption.forces.to(data.pos.dtype))


def _envelope(settings: Mapping[str, Any] | None, form: Form) -> nn.Module:
    usual = {"name": "cosine" if form == "paper" else "polynomial"}
    settings = mapping(usual if settings is None else settings, "model.backbone.envelope")
    name = settings.pop("name", None)
    if name not in _ENVELOPES:
        raise ValueError(
            f"unknown envelope '{name}' in model.backbone.envelope.name; {suggestion(str(name), _ENVELOPES)}"
        )
    reject_unknown(settings, ["exponent"] if name == "polynomial" else [], "model.backbone.envelope")
    return _ENVELOPES[name](**settings)

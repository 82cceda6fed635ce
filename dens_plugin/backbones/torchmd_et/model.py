"""TorchMD-NET's equivariant transformer (ET), for molecules and crystals, plain and with DeNS.

ET: Thölke and De Fabritiis, arXiv:2202.02541, the backbone of NDeM and of pre-training via denoising (PVD). The layers
are in `dens_plugin.nn.torchmd`; parameters have TorchMD-NET's names, so that its checkpoints load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from torch import nn

from dens_plugin.backbones.pair_backbone import PairBackbone
from dens_plugin.backbones.sizes import require_sizes
from dens_plugin.backbones.torchmd_et.family import FAMILY
from dens_plugin.fields import corruption_of
from dens_plugin.nn.force_encoding import VectorForceEncoding
from dens_plugin.nn.torchmd.attention import Attention, NeighbourEmbedding, Radial
from dens_plugin.nn.torchmd.radial import ExpNormal, Gaussians
from dens_plugin.nn.torchmd.whitening import WhitenedNorm
from dens_plugin.settings import suggestion

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.nn.pairs import Edges

_EXPANSIONS = {"expnorm": ExpNormal, "gauss": Gaussians}
_NORMS = {"none": nn.Identity, "whitened": WhitenedNorm}


@registry.register_model("torchmd_et_plugin_backbone")
class TorchMDET(PairBackbone):
    """ET without DeNS. Defaults are those of the paper on MD17 (1.34M parameters with `TorchMDETGradientHead`).

    Args:
        embedding_dimension: C.
        num_layers: number of layers.
        num_heads: of attention; they divide C.
        num_rbf: number of radial bases.
        rbf_type: ``expnorm`` or ``gauss``.
        trainable_rbf: whether the bases' parameters are trained.
        cutoff: in Å.
        max_neighbors: the most edges that end at an atom.
        vector_cutoff: whether vectors too end smoothly at the cutoff, as newer versions of TorchMD-NET can. Without, as
            in the paper, energies jump a little there.
        layernorm_on_vec: ``whitened``, PVD's for QM9, or ``none``. Energies then depend on the orientation of molecules
            whose vectors lie in a plane.
        max_num_elements: the largest atomic number plus one.
        use_pbc: whether structures are periodic.
        use_pbc_single: search periodic neighbours one structure at a time, for less memory.
        otf_graph: only True: the neighbours of moved atoms are not those stored with a structure.

    Raises:
        ValueError: for options that do not exist, or heads that do not divide the channels.
    """

    family = FAMILY

    def __init__(
        self,
        *,
        embedding_dimension: int = 128,
        num_layers: int = 6,
        num_heads: int = 8,
        num_rbf: int = 32,
        rbf_type: str = "expnorm",
        trainable_rbf: bool = False,
        cutoff: float = 5.0,
        max_neighbors: int = 1000,
        vector_cutoff: bool = False,
        layernorm_on_vec: str = "none",
        max_num_elements: int = 100,
        use_pbc: bool = False,
        use_pbc_single: bool = False,
        otf_graph: bool = True,
    ) -> None:
        super().__init__(
            cutoff=cutoff,
            max_neighbors=max_neighbors,
            use_pbc=use_pbc,
            use_pbc_single=use_pbc_single,
            max_num_elements=max_num_elements,
            otf_graph=otf_graph,
        )
        require_sizes(embedding_dimension=embedding_dimension, num_layers=num_layers, num_heads=num_heads)
        require_sizes(max_neighbors=max_neighbors, num_rbf=num_rbf, max_num_elements=max_num_elements)
        if embedding_dimension % num_heads or embedding_dimension % 2:
            raise ValueError(
                f"embedding_dimension must be even and a multiple of num_heads, got {embedding_dimension} channels and "
                f"{num_heads} heads"
            )
        channels = self.channels = self.scalar_channels = self.vector_channels = embedding_dimension
        self.embedding = nn.Embedding(max_num_elements, channels)
        self.distance_expansion = _choice(_EXPANSIONS, rbf_type, "rbf_type")(num_rbf, cutoff, trainable=trainable_rbf)
        self.neighbor_embedding = NeighbourEmbedding(channels, num_rbf, max_num_elements)
        self.attention_layers = nn.ModuleList(
            Attention(channels, num_rbf, num_heads, vector_cutoff=vector_cutoff) for _ in range(num_layers)
        )
        self.out_norm = nn.LayerNorm(channels)
        self.out_norm_vec = _choice(_NORMS, layernorm_on_vec, "layernorm_on_vec")(channels)

    def features(self, data: Batch, edges: Edges) -> dict[str, torch.Tensor]:
        """Scalars (N, C) and vectors (N, 3, C)."""
        radial = Radial.of(edges, self.distance_expansion, self.cutoff)
        numbers, vectors = data.atomic_numbers.long(), self._first_vectors(data, edges)
        scalars = self.neighbor_embedding(numbers, self.embedding(numbers), edges, radial)
        for layer in self.attention_layers:
            scalars, vectors = layer(scalars, vectors, edges, radial)
        return {"scalars": self.out_norm(scalars), "vectors": self.out_norm_vec(vectors)}

    def _first_vectors(self, data: Batch, edges: Edges) -> torch.Tensor:
        """(N, 3, C) before the first layer."""
        return edges.directions.new_zeros(len(data.pos), 3, self.channels)


@registry.register_model("torchmd_et_dens_plugin_backbone")
class TorchMDETDeNS(TorchMDET):
    """ET that encodes the forces of a batch's corruption record in its vectors, which otherwise start at zero.

    A batch without a record, as at inference, goes through `TorchMDET` alone.

    Args:
        **kwargs: as of `TorchMDET`.
    """

    encodes_forces = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.force_embedding = VectorForceEncoding(self.channels)

    def _first_vectors(self, data: Batch, edges: Edges) -> torch.Tensor:
        corruption = corruption_of(data)
        if corruption is None:
            return super()._first_vectors(data, edges)
        return self.force_embedding(corruption.forces.to(data.pos.dtype))


def _choice(options: dict[str, Any], name: str, key: str) -> Any:
    if name not in options:
        raise ValueError(f"unknown {key} '{name}' in model.backbone; {suggestion(str(name), options)}")
    return options[name]

# ruff: noqa: D101, D102  (classes are named as the figures' boxes; only what differs from them is explained)
"""Equiformer (v1) with DeNS in the straightforward way: an e3nn tensor product for every product in the papers.

It is what `dens_plugin.nn.equiformer` is measured against, in speed (`molecule_step.py`) and in numbers (tests). All
parts run on all atoms and edges in every pass, and every layer couples features with harmonics anew. Names and layouts
of parameters are those of the authors' checkpoints, so that these load as they are, 3j symbols included, and
`dens_plugin.backbones.equiformer.keys` turns its state dict into the package's.

Equiformer: Liao and Smidt, arXiv:2206.11990. Flat features (N, sum of multiplicities times 2l + 1), as e3nn has them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from e3nn import o3
from e3nn.nn import Activation, Gate
from torch import nn
from torch_geometric.data import Batch
from torch_geometric.utils import scatter, softmax

from dens_plugin.compat import radius_graph
from dens_plugin.fields import Corruption, corruption_of

_AVERAGE_ATOMS = 18.03065905448718
_AVERAGE_DEGREE = 15.57930850982666


class Biased(nn.Module):
    """A tensor product of unscaled paths with weights of variance 1 / fan-in, and a bias for scalars."""

    def __init__(self, product: o3.TensorProduct, fan_in: Sequence[int], *, bias: bool = True) -> None:
        super().__init__()
        self.tp = product
        self.irreps_out = product.irreps_out
        scalars = product.irreps_out.count("0e") if bias else 0
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(scalars))] if scalars else [])
        with torch.no_grad():
            for weight, count in zip(product.weight_views(), fan_in, strict=True):
                weight.mul_(count**-0.5)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        out = self.tp(x, torch.ones_like(x[:, :1]) if y is None else y)
        for bias in self.bias:
            out = torch.cat([out[:, : len(bias)] + bias, out[:, len(bias) :]], dim=1)
        return out


def linear(irreps_in: Any, irreps_out: Any, *, bias: bool = True) -> Biased:
    """Mixes channels of equal degree."""
    irreps_in, irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
    paths = [
        (i, 0, o, "uvw", True)
        for i, (_, ir_in) in enumerate(irreps_in)
        for o, (_, ir_out) in enumerate(irreps_out)
        if ir_in == ir_out
    ]
    product = o3.TensorProduct(irreps_in, "1x0e", irreps_out, paths, path_normalization="none", internal_weights=True)
    total = {o: sum(irreps_in[p[0]].mul for p in paths if p[2] == o) for o in range(len(irreps_out))}
    return Biased(product, [total[p[2]] for p in paths], bias=bias)


class Depthwise(nn.Module):
    """Each channel with the harmonics of its edge, by every path to a degree of the features."""

    def __init__(self, irreps: o3.Irreps, irreps_sh: o3.Irreps, *, internal_weights: bool) -> None:
        super().__init__()
        found = [
            (ir_out.l, i, j, mul)
            for i, (mul, ir_in) in enumerate(irreps)
            for j, (_, ir_sh) in enumerate(irreps_sh)
            for ir_out in ir_in * ir_sh
            if ir_out.l <= irreps.lmax
        ]
        order = sorted(range(len(found)), key=lambda k: found[k][0])
        irreps_out = o3.Irreps([(found[k][3], (found[k][0], 1)) for k in order])
        paths = [(i, j, order.index(k), "uvu", True) for k, (_, i, j, _) in enumerate(found)]
        self.irreps_out = irreps_out.simplify()
        self.tp = o3.TensorProduct(
            irreps,
            irreps_sh,
            irreps_out,
            paths,
            path_normalization="none",
            internal_weights=internal_weights,
            shared_weights=internal_weights,
        )

    def forward(self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        return self.tp(x, y, weight)


class Radial(nn.Module):
    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in itertools.pairwise(widths[:-1]):
            layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False))
        self.offset = nn.Parameter(torch.empty(widths[-1]).uniform_(-1, 1) / math.sqrt(widths[-2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + self.offset


class Basis(nn.Module):
    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff)
        self.register_buffer("means", torch.linspace(start, 1, count))
        self.register_buffer("betas", torch.full((count,), (2 / count * (1 - start)) ** -2))

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        distance = distance[:, None]
        envelope = 0.5 * (torch.cos(distance * math.pi / self.cutoff) + 1) * (distance < self.cutoff)
        return envelope * torch.exp(-self.betas * (torch.exp(-5 * distance / self.cutoff) - self.means) ** 2)


class Norm(nn.Module):
    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.irreps = irreps
        self.affine_weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.affine_bias = nn.Parameter(torch.zeros(irreps.count("0e")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, start = [], 0
        for part, (mul, ir) in zip(self.irreps.slices(), self.irreps, strict=True):
            field = x[:, part].reshape(-1, mul, ir.dim)
            if ir.l == 0:
                field = field - field.mean(dim=1, keepdim=True)
            norm = field.pow(2).mean(dim=(1, 2), keepdim=True)
            field = field * (norm + 1e-5).pow(-0.5) * self.affine_weight[start : start + mul, None]
            out.append((field + self.affine_bias[:, None] if ir.l == 0 else field).flatten(1))
            start += mul
        return torch.cat(out, dim=1)


def gate(irreps: o3.Irreps) -> Gate:
    """SiLU of scalars, sigmoid gates of the other degrees."""
    scalars, gated = o3.Irreps(irreps[:1]), o3.Irreps(irreps[1:])
    gates = o3.Irreps(f"{gated.num_irreps}x0e")
    return Gate(scalars, [nn.functional.silu], gates, [torch.sigmoid], gated)


class SeparableProduct(nn.Module):
    """A depthwise product and a linear map; parameters of the radial weights and the gate where there are any."""

    def __init__(
        self, irreps: o3.Irreps, irreps_sh: o3.Irreps, irreps_out: Any, *, radial: Sequence[int] | None
    ) -> None:
        super().__init__()
        self.dtp = Depthwise(irreps, irreps_sh, internal_weights=radial is None)
        if radial is not None:
            self.dtp_rad = Radial([*radial, self.dtp.tp.weight_numel])
        self.lin = linear(self.dtp.irreps_out, irreps_out)


class Attention(nn.Module):
    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, sizes: dict[str, Any]) -> None:
        super().__init__()
        irreps, sh, radial = sizes["irreps"], sizes["irreps_sh"], sizes["radial"]
        self.irreps_head, self.heads = sizes["irreps_head"], sizes["num_heads"]
        values = o3.Irreps([(mul * self.heads, ir) for mul, ir in self.irreps_head])
        self.irreps_values = values
        scalars = values.count("0e")
        self.merge_src = linear(irreps_in, irreps)
        self.merge_dst = linear(irreps_in, irreps, bias=False)
        self._gate = [gate(irreps)]  # in a list: its constants are not in the authors' files
        self.sep_act = SeparableProduct(irreps, sh, self._gate[0].irreps_in, radial=radial)
        self.sep_alpha = linear(self.sep_act.dtp.irreps_out, f"{scalars}x0e")
        self.sep_value = SeparableProduct(irreps, sh, values, radial=None)
        self.alpha_dot = nn.Parameter(torch.empty(1, self.heads, scalars // self.heads))
        nn.init.xavier_uniform_(self.alpha_dot[0])
        self._act = [Activation(f"{scalars}x0e", [lambda x: 0.6 * x + 0.4 * x * (2 * torch.sigmoid(x) - 1)])]
        self.proj = linear(values, irreps_out)

    def forward(self, x: torch.Tensor, graph: dict[str, torch.Tensor]) -> torch.Tensor:
        source, target, sh = graph["source"], graph["target"], graph["sh"]
        message = self.merge_src(x)[source] + self.merge_dst(x)[target]
        message = self.sep_act.dtp(message, sh, self.sep_act.dtp_rad(graph["basis"]))
        score = self._act[0](self.sep_alpha(message)).view(len(source), self.heads, -1)
        attention = softmax((score * self.alpha_dot).sum(-1), target, num_nodes=len(x))
        value = self.sep_value.dtp(self._gate[0](self.sep_act.lin(message)), sh)
        value = self._by_head(self.sep_value.lin(value)) * attention[:, :, None]
        received = scatter(value, target, dim=0, dim_size=len(x))
        return self.proj(self._flat(received))

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, part].reshape(len(x), self.heads, -1) for part in self.irreps_values.slices()], dim=2)

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :, part].reshape(len(x), -1) for part in self.irreps_head.slices()], dim=1)


class GatedLinear(nn.Module):
    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> None:
        super().__init__()
        self._gate = [gate(irreps_out)]
        product = linear(irreps_in, self._gate[0].irreps_in.simplify())
        self.tp, self.bias = product.tp, product.bias
        self._product = [product]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._gate[0](self._product[0](x))


class FeedForward(nn.Module):
    def __init__(self, irreps_in: o3.Irreps, irreps_mid: o3.Irreps, irreps_out: o3.Irreps) -> None:
        super().__init__()
        self.fctp_1 = GatedLinear(irreps_in, irreps_mid)
        self.fctp_2 = linear(irreps_mid, irreps_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fctp_2(self.fctp_1(x))


class Block(nn.Module):
    def __init__(self, irreps_out: o3.Irreps, sizes: dict[str, Any]) -> None:
        super().__init__()
        irreps = sizes["irreps"]
        self.norm_1, self.norm_2 = Norm(irreps), Norm(irreps)
        self.ga = Attention(irreps, irreps, sizes)
        self.ffn = FeedForward(irreps, sizes["irreps_mlp_mid"], irreps_out)
        self.ffn_shortcut = linear(irreps, irreps_out) if irreps_out != irreps else None

    def forward(self, x: torch.Tensor, graph: dict[str, torch.Tensor]) -> torch.Tensor:
        x = x + self.ga(self.norm_1(x), graph)
        return (x if self.ffn_shortcut is None else self.ffn_shortcut(x)) + self.ffn(self.norm_2(x))


class AtomEmbedding(nn.Module):
    def __init__(self, elements: int, irreps: o3.Irreps) -> None:
        super().__init__()
        self.elements = elements
        self.atom_type_lin = linear(f"{elements}x0e", irreps)
        with torch.no_grad():
            self.atom_type_lin.tp.weight.mul_(elements**0.5)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        weight = self.atom_type_lin.tp.weight
        return self.atom_type_lin(nn.functional.one_hot(numbers, self.elements).to(weight.dtype))


class EdgeDegreeEmbedding(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        irreps = sizes["irreps"]
        self.exp = linear("1x0e", irreps)
        self.dw = Depthwise(irreps, sizes["irreps_sh"], internal_weights=False)
        self.rad = Radial([*sizes["radial"], self.dw.tp.weight_numel])
        self.proj = linear(self.dw.irreps_out, irreps)

    def forward(self, x: torch.Tensor, graph: dict[str, torch.Tensor]) -> torch.Tensor:
        constant = self.exp(torch.ones_like(x[:, :1]))
        message = self.proj(self.dw(constant[graph["source"]], graph["sh"], self.rad(graph["basis"])))
        return scatter(message, graph["target"], dim=0, dim_size=len(x)) / _AVERAGE_DEGREE**0.5


class EquiformerTwin(nn.Module):
    """Energy, forces and noise; irreps as strings, with the authors' names for them.

    Args:
        irreps_node_embedding: of a layer's features.
        irreps_feature: of the last features.
        irreps_head: of one head.
        irreps_mlp_mid: inside the perceptrons.
        num_layers: number of layers.
        num_heads: number of attention heads.
        number_of_basis: number of radial bases.
        fc_neurons: widths of the radial networks' hidden layers.
        max_radius: cutoff in Å.
        elements: the largest atomic number plus one.
        denoise: whether there are a force encoding and a noise head.
    """

    def __init__(
        self,
        *,
        irreps_node_embedding: str = "128x0e+64x1e+32x2e",
        irreps_feature: str = "512x0e+256x1e+128x2e",
        irreps_head: str = "32x0e+16x1e+8x2e",
        irreps_mlp_mid: str = "384x0e+192x1e+96x2e",
        num_layers: int = 6,
        num_heads: int = 4,
        number_of_basis: int = 32,
        fc_neurons: Sequence[int] = (64, 64),
        max_radius: float = 5.0,
        elements: int = 64,
        denoise: bool = True,
    ) -> None:
        super().__init__()
        irreps, features = o3.Irreps(irreps_node_embedding), o3.Irreps(irreps_feature)
        self.cutoff, self.denoise = max_radius, denoise
        self.irreps_sh = o3.Irreps.spherical_harmonics(irreps.lmax, p=1)
        sizes = {
            "irreps": irreps,
            "irreps_sh": self.irreps_sh,
            "irreps_head": o3.Irreps(irreps_head),
            "irreps_mlp_mid": o3.Irreps(irreps_mlp_mid),
            "num_heads": num_heads,
            "radial": [number_of_basis, *fc_neurons],
        }
        self.atom_embed = AtomEmbedding(elements, irreps)
        self.rbf = Basis(number_of_basis, max_radius)
        self.edge_deg_embed = EdgeDegreeEmbedding(sizes)
        outputs = [irreps] * (num_layers - 1) + [features]
        self.blocks = nn.ModuleList(Block(out, sizes) for out in outputs)
        self.norm = Norm(features)
        scalars = features[:1]
        self.energy_head = nn.Sequential(
            linear(features, scalars), Activation(scalars, [nn.functional.silu]), linear(scalars, "1x0e")
        )
        if denoise:
            self.force_embed = linear(self.irreps_sh, irreps)
            self.denoising_pos_head = Attention(features, o3.Irreps("1x1e"), sizes)

    def forward(self, data: Batch) -> dict[str, torch.Tensor]:
        """{energy: (B,), forces: (N, 3)} and, for a corrupted batch, {noise: (N, 3)}; of all atoms."""
        positions = data.pos.detach().requires_grad_()
        source, target = radius_graph(data.pos, self.cutoff, data.batch, max_num_neighbors=1000)
        vectors = positions[source] - positions[target]
        graph = {
            "source": source,
            "target": target,
            "sh": o3.spherical_harmonics(self.irreps_sh, vectors, normalize=True, normalization="component"),
            "basis": self.rbf(vectors.norm(dim=1)),
        }
        atoms = self.atom_embed(data.atomic_numbers)
        x = atoms + self.edge_deg_embed(atoms, graph)
        corruption = corruption_of(data)
        if self.denoise:
            x = x + self.force_embed(self._encoded(positions, corruption))
        for block in self.blocks:
            x = block(x, graph)
        x = self.norm(x)
        energy = scatter(self.energy_head(x)[:, 0], data.batch, dim_size=data.num_graphs) / _AVERAGE_ATOMS**0.5
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        out = {"energy": energy, "forces": -gradient}
        if self.denoise and corruption is not None:
            out["noise"] = self.denoising_pos_head(x, graph)
        return out

    def _encoded(self, positions: torch.Tensor, corruption: Corruption | None) -> torch.Tensor:
        if corruption is None:
            return positions.new_zeros(len(positions), self.irreps_sh.dim)
        harmonics = o3.spherical_harmonics(self.irreps_sh, corruption.forces, normalize=True, normalization="component")
        return harmonics * corruption.forces.norm(dim=1, keepdim=True) / math.sqrt(3)

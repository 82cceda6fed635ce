from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
from e3nn import o3
from torch import nn

from dens_plugin.nn.equiformer.activation import gate, sigmoid, silu, smooth_leaky_relu
from dens_plugin.nn.equiformer.attention import GraphAttention, GraphConvolution, MessageSizes
from dens_plugin.nn.equiformer.coupled_edges import EdgeGeometry
from dens_plugin.nn.equiformer.depthwise import DepthwisePaths, depthwise_linear
from dens_plugin.nn.equiformer.embedding import DegreeForceEncoding, EdgeDegreeEmbedding
from dens_plugin.nn.equiformer.layer_norm import LayerNorm
from dens_plugin.nn.equiformer.linear import FeatureLinear, Linear, normal, uniform
from dens_plugin.nn.equiformer.radial import ExpNormalBasis, RadialNetwork
from dens_plugin.nn.wigner import wigner_3j
from dens_plugin.testing import assert_close, default_dtype

CHANNELS = {2: [6, 4, 2], 3: [6, 4, 4, 2]}
DEGREES = pytest.mark.parametrize("lmax", [2, 3])


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        yield


def random_features(count, channels):
    return [torch.randn(count, 2 * degree + 1, width) for degree, width in enumerate(channels)]


def turned(features, rotation):
    """Features in a coordinate system that was turned."""
    return [o3.Irrep(degree, 1).D_from_matrix(rotation) @ x for degree, x in enumerate(features)]


def random_edges(lmax, count=12, atoms=4, rotation=None):
    generator = torch.Generator().manual_seed(1)
    source, target = torch.randint(atoms, (2, count), generator=generator)
    vectors = torch.randn(count, 3, generator=generator)
    return EdgeGeometry(lmax, 5, 4.0)(source, target, vectors if rotation is None else vectors @ rotation.T)


def sizes(lmax):
    return MessageSizes(CHANNELS[lmax], 2, [width // 2 for width in CHANNELS[lmax]], [5, 8], 3.0)


def flat(features):
    """As e3nn lays features out: channels before components."""
    return torch.cat([x.transpose(1, 2).flatten(1) for x in features], dim=1)


class TestSymbols:
    @pytest.mark.parametrize("degrees", [(1, 1, 0), (1, 2, 2), (2, 2, 1), (1, 3, 3), (2, 2, 2)])
    def test_are_orthogonal_and_have_a_fixed_sign(self, degrees):
        symbol = wigner_3j(*degrees)
        size = 2 * degrees[2] + 1
        assert torch.allclose(torch.einsum("ijk,ijl->kl", symbol, symbol), torch.eye(size) / size)
        flattened = symbol.flatten()
        assert flattened[flattened.abs() > 1e-6][0] > 0

    def test_do_not_depend_on_the_sign_of_another_version(self, monkeypatch):
        here = wigner_3j(1, 2, 2)
        other = o3.wigner_3j
        monkeypatch.setattr(o3, "wigner_3j", lambda *degrees, **options: -other(*degrees, **options))
        assert torch.equal(wigner_3j(1, 2, 2), here)


@DEGREES
class TestDepthwiseLinear:
    def test_is_what_the_twin_computes(self, lmax, monkeypatch):
        """Against e3nn's tensor product, with weights per edge; signs of symbols aside, which go with the weights."""
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        twin = importlib.import_module("equiformer_twin")
        irreps = o3.Irreps([(width, (degree, 1)) for degree, width in enumerate(CHANNELS[lmax])])
        product = twin.Depthwise(irreps, o3.Irreps.spherical_harmonics(lmax, p=1), internal_weights=False)
        paths, edges = DepthwisePaths(CHANNELS[lmax]), random_edges(lmax)
        features, weights = random_features(12, CHANNELS[lmax]), torch.randn(12, sum(paths.widths))
        matrices = [torch.eye(width) for width in paths.widths]
        ours = depthwise_linear(features, edges, matrices=matrices, paths=paths, weights=weights)
        theirs = product(flat(features), torch.cat(edges.harmonics, dim=1), self.reordered(weights, product, lmax))
        assert_close(flat(ours), theirs, 1e-12)

    @staticmethod
    def reordered(weights, product, lmax):
        """By input, harmonics' and output degree, as e3nn's instructions are."""
        inverse = [
            (output, inputs, edge, width)
            for output in range(lmax + 1)
            for inputs, width in enumerate(CHANNELS[lmax])
            for edge in range(lmax + 1)
            if abs(inputs - edge) <= output <= inputs + edge
        ]
        parts = dict(zip([path[:3] for path in inverse], weights.split([path[3] for path in inverse], 1), strict=True))
        order = sorted(parts, key=lambda path: (path[1], path[2], path[0]))
        assert len(order) == len(product.tp.instructions)
        signs = [torch.sign((wigner_3j(i, e, o) * o3.wigner_3j(i, e, o)).sum()) for o, i, e in order]
        return torch.cat([sign * parts[path] for sign, path in zip(signs, order, strict=True)], dim=1)

    def test_is_equivariant(self, lmax):
        paths, rotation = DepthwisePaths(CHANNELS[lmax]), o3.rand_matrix()
        features, matrices = random_features(12, CHANNELS[lmax]), [torch.randn(width, 3) for width in paths.widths]
        here = depthwise_linear(features, random_edges(lmax), matrices=matrices, paths=paths)
        there = depthwise_linear(
            turned(features, rotation), random_edges(lmax, rotation=rotation), matrices=matrices, paths=paths
        )
        for degree, x in enumerate(turned(here, rotation)):
            assert_close(there[degree], x, 1e-11)

    def test_computes_only_what_is_wanted(self, lmax):
        paths, edges = DepthwisePaths(CHANNELS[lmax]), random_edges(lmax)
        features, matrices = random_features(12, CHANNELS[lmax]), [torch.randn(width, 3) for width in paths.widths]
        every = depthwise_linear(features, edges, matrices=matrices, paths=paths)
        (one,) = depthwise_linear(features, edges, matrices=matrices[1:2], paths=paths, first=1)
        assert_close(one, every[1], 1e-13)


@DEGREES
@pytest.mark.parametrize("cls", [GraphAttention, GraphConvolution])
class TestMessagePassing:
    def test_is_equivariant(self, lmax, cls):
        block, rotation = cls(CHANNELS[lmax], CHANNELS[lmax], sizes(lmax)), o3.rand_matrix()
        features = random_features(4, CHANNELS[lmax])
        here = block(features, random_edges(lmax))
        there = block(turned(features, rotation), random_edges(lmax, rotation=rotation))
        for x, y in zip(there, turned(here, rotation), strict=True):
            assert y.abs().max() > 1e-3
            assert_close(x, y, 1e-10)

    def test_vectors_alone_are_those_among_all(self, lmax, cls):
        """A block for degree 1 with the weights of one for all degrees."""
        every, vectors = cls(CHANNELS[lmax], CHANNELS[lmax], sizes(lmax)), cls(CHANNELS[lmax], [0, 1], sizes(lmax))
        state = {name: value for name, value in every.state_dict().items() if name in vectors.state_dict()}
        vectors.load_state_dict(state | {"project.weight": every.project.matrices()[1][:, 0]})
        features, edges = random_features(4, CHANNELS[lmax]), random_edges(lmax)
        (vector,) = vectors(features, edges)
        assert_close(vector, every(features, edges)[1][..., :1], 1e-12)

    def test_fewer_degrees_are_the_first_of_all(self, lmax, cls):
        block, features = cls(CHANNELS[lmax], CHANNELS[lmax], sizes(lmax)), random_features(4, CHANNELS[lmax])
        edges = random_edges(lmax)
        (scalars,) = block(features, edges, stop=1)
        assert_close(scalars, block(features, edges)[0], 1e-13)

    def test_an_atom_without_edges_gets_the_bias(self, lmax, cls):
        block = cls(CHANNELS[lmax], CHANNELS[lmax], sizes(lmax))
        nn.init.normal_(block.project.bias)
        edges = random_edges(lmax).select(torch.tensor([], dtype=torch.long))
        scalars, *others = block(random_features(4, CHANNELS[lmax]), edges)
        assert torch.equal(scalars[:, 0], block.project.bias.expand(4, -1))
        assert not any(x.any() for x in others)


def test_attention_is_shared_among_the_edges_of_an_atom():
    """Many copies of one edge give what one of them gives."""
    block, features = GraphAttention([6, 4, 2], [6, 4, 2], sizes(2)), random_features(2, [6, 4, 2])
    edges = random_edges(2, count=1, atoms=2)
    copies = edges.select(torch.zeros(7, dtype=torch.long))
    for one, many in zip(block(features, edges), block(features, copies), strict=True):
        assert_close(many, one, 1e-12)


def test_convolution_adds_edges_up():
    block, features = GraphConvolution([6, 4, 2], [6, 4, 2], sizes(2)), random_features(2, [6, 4, 2])
    edges = random_edges(2, count=1, atoms=2)
    copies = edges.select(torch.zeros(7, dtype=torch.long))
    for one, many in zip(block(features, edges), block(features, copies), strict=True):
        assert_close(many, 7 * one, 1e-12)


class TestLayerNorm:
    def test_mean_square_is_one_and_mean_zero(self):
        out = LayerNorm([6, 4, 2], eps=0.0)(random_features(5, [6, 4, 2]))
        assert torch.allclose(out[0].mean(dim=-1), torch.zeros(5, 1), atol=1e-12)
        for x in out:
            assert torch.allclose(x.square().mean(dim=(1, 2)), torch.ones(5))

    def test_does_not_notice_scale(self):
        features, norm = random_features(5, [6, 4, 2]), LayerNorm([6, 4, 2], eps=0.0)
        for x, y in zip(norm(features), norm([7 * x for x in features]), strict=True):
            assert_close(y, x, 1e-12)


class TestActivations:
    @pytest.mark.parametrize("function", [silu, sigmoid, smooth_leaky_relu])
    def test_second_moment_is_one(self, function):
        x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(3))
        assert function(x).square().mean().item() == pytest.approx(1, abs=5e-3)

    def test_gate_lets_signs_pass(self):
        features = [torch.randn(3, 1, 12), *random_features(3, [6, 4, 2])[1:]]
        out = gate(features, [6, 4, 2])
        assert torch.equal(out[1].sign(), features[1].sign())
        assert_close(out[2], features[2] * sigmoid(features[0][..., 10:]), 1e-14)


class TestLinear:
    def test_mixes_within_degrees_and_shifts_scalars(self):
        linear, features = Linear([6, 4, 2], [3, 2, 1]), random_features(5, [6, 4, 2])
        nn.init.normal_(linear.bias)
        out = linear(features)
        assert [x.shape for x in out] == [(5, 1, 3), (5, 3, 2), (5, 5, 1)]
        assert_close(linear([0 * features[0], *features[1:]])[1], out[1], 1e-14)
        assert torch.equal(linear([0 * x for x in features])[0][0, 0], linear.bias)

    @pytest.mark.parametrize(("draw", "variance"), [(normal, 1.0), (uniform, 1 / 3)])
    def test_initial_variance(self, draw, variance):
        linear = Linear([400, 100], [200, 300])
        linear.reset_parameters(draw)
        for weight in linear.matrices():
            assert (weight.var() * len(weight)).item() == pytest.approx(variance, rel=3e-2)

    def test_features_of_higher_degrees_are_drawn_apart(self):
        """What is drawn after them does not notice them."""
        drawn = []
        for outputs in ([8], [8, 4, 2]):
            torch.manual_seed(5)
            drawn.append((FeatureLinear([6, 4, 2], outputs).matrices()[0], torch.rand(3)))
        assert torch.equal(drawn[0][0], drawn[1][0])
        assert torch.equal(drawn[0][1], drawn[1][1])


class TestRadial:
    def test_basis_ends_smoothly_at_the_cutoff(self):
        distance = torch.tensor([0.5, 3.999, 4.0, 5.0], requires_grad=True)
        basis = ExpNormalBasis(8, 4.0)(distance)
        assert basis[0].max() > 0.5
        assert basis[1].abs().max() < 1e-6
        assert not basis[2:].any()
        (slope,) = torch.autograd.grad(basis.sum(), distance)
        assert slope[1].abs() < 1e-2
        assert not slope[2:].any()

    def test_part_of_the_outputs(self):
        network, basis = RadialNetwork([5, 8, 7]), torch.randn(3, 5)
        rows = torch.tensor([4, 1])
        assert_close(network.partial(basis, rows), network(basis)[:, rows], 1e-14)


@DEGREES
def test_edge_embedding_is_the_full_product_on_scalars(lmax):
    """Of which only the paths from scalars contribute."""
    embedding = EdgeDegreeEmbedding(CHANNELS[lmax], [5, 8], 3.0)
    edges, paths = random_edges(lmax), DepthwisePaths(CHANNELS[lmax])
    scalars = (embedding.expand.weight + embedding.expand.bias).expand(12, 1, -1)
    features = [scalars, *(torch.zeros_like(x) for x in random_features(12, CHANNELS[lmax])[1:])]
    full = depthwise_linear(
        features, edges, matrices=embedding.linear.matrices(), paths=paths, weights=embedding.radial(edges.basis)
    )
    for ours, messages in zip(embedding(edges, 4), full, strict=True):
        expected = messages.new_zeros(4, *messages.shape[1:]).index_add(0, edges.target, messages) / math.sqrt(3)
        assert_close(ours, expected, 1e-12)


class TestForceEncoding:
    def test_degree_one_is_the_force_times_weights(self):
        encoding, forces = DegreeForceEncoding([6, 4, 2]), torch.randn(5, 3)
        scalars, vectors, _ = encoding(forces)
        assert_close(vectors, forces[:, :, None] * encoding.weight[6:10], 1e-12)
        assert_close(scalars[:, 0], forces.norm(dim=1, keepdim=True) / math.sqrt(3) * encoding.weight[:6], 1e-12)

    def test_no_force_encodes_to_nothing(self):
        assert not any(x.any() for x in DegreeForceEncoding([6, 4, 2])(torch.zeros(5, 3)))

    def test_is_drawn_apart(self):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        DegreeForceEncoding([6, 4, 2])
        assert torch.equal(torch.rand(3), expected)

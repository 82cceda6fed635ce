from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import DEVICE, assert_twins, graph, needs_triton, order, random, relative, rotation

from dens_plugin.nn.backends.triton.rotate_to_edges import rotate_to_edges

DOUBLE = torch.float64


def radial_index(lmax, mmax, rows):
    """Row of the radial functions of each coefficient, from the definition."""
    pairs = order(lmax, mmax)
    if rows == lmax + 1:
        return [degree for degree, _ in pairs]
    own = [pair for pair in pairs if pair[1] >= 0]
    return [own.index((degree, abs(m))) for degree, m in pairs]


@pytest.mark.parametrize("rows", [4, 9])
def test_twin_is_the_formula_and_its_gradient(rows):
    lmax, mmax, channels = 3, 2, 2
    edges = graph([0, 1, 0], [0, 0, 2], 4)
    nodes = random(4, 16, channels, dtype=DOUBLE).requires_grad_()
    radial = random(3, rows, 2 * channels, dtype=DOUBLE).requires_grad_()
    turn = rotation(3, lmax, mmax, DOUBLE)
    source = torch.einsum("esl,elc->esc", turn, nodes[edges.source])
    target = torch.einsum("esl,elc->esc", turn, nodes[edges.target])
    expected = torch.cat([source, target], dim=2) * radial[:, radial_index(lmax, mmax, rows)]
    torch.testing.assert_close(kernel_twins.rotate_to_edges(nodes, edges, turn, radial), expected)


def test_identity_gathers():
    edges = graph([1, 0], [0, 1], 2)
    nodes = random(2, 4, 3)
    turn = torch.eye(4, device=DEVICE)[[0, 2, 3, 1]].expand(2, 4, 4)  # degree 1 permuted
    out = kernel_twins.rotate_to_edges(nodes, edges, turn)
    assert torch.equal(out[0, 0], torch.cat([nodes[1, 0], nodes[0, 0]]))
    assert torch.equal(out[1, 1:, :3], nodes[0, [2, 3, 1]])


def test_wrong_shapes_are_refused():
    edges = graph([1, 0], [0, 1], 2)
    turn = rotation(2, 2, 1)
    with pytest.raises(ValueError, match=r"neither 3 .* nor 5"):
        rotate_to_edges(random(2, 9, 4), edges, turn, random(2, 4, 8))
    with pytest.raises(ValueError, match="no largest degree"):
        rotate_to_edges(random(2, 9, 4), edges, turn[:, :6], random(2, 3, 8))
    with pytest.raises(ValueError, match="radial functions"):
        rotate_to_edges(random(2, 9, 4), edges, turn, random(2, 3, 4))
    with pytest.raises(ValueError, match="pointers"):
        rotate_to_edges(random(3, 9, 4), edges, turn)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lmax", "mmax", "rows", "channels", "source", "target", "atoms"),
    [
        (2, 1, 5, 5, [1, 0, 0], [0, 0, 2], 4),  # C no power of two; atoms 1 and 3 are no target, 3 no source either
        (2, 2, 3, 4, [0, 1], [0, 1], 2),  # a row per degree; an edge to the atom itself
        (1, 0, 0, 4, [0, 0], [1, 1], 2),  # no radial functions, m = 0 only
        (2, 1, 5, 4, [], [], 2),  # no edges
    ],
)
def test_triton_is_the_twin(lmax, mmax, rows, channels, source, target, atoms, dtype):
    edges = graph(source, target, atoms)
    turn = rotation(len(source), lmax, mmax)
    inputs = [random(atoms, (lmax + 1) ** 2, channels)]
    inputs += [random(len(source), rows, 2 * channels)] if rows else []
    assert_twins(
        lambda nodes, *radial: rotate_to_edges(nodes, edges, turn, *radial),
        lambda nodes, *radial: kernel_twins.rotate_to_edges(nodes, edges, turn, *radial),
        inputs,
        [],
        dtype,
    )


@needs_triton
def test_triton_at_the_size_of_the_paper():
    edges = graph([0], [0], 1)
    turn = rotation(1, 6, 2)
    assert_twins(
        lambda nodes, radial: rotate_to_edges(nodes, edges, turn, radial),
        lambda nodes, radial: kernel_twins.rotate_to_edges(nodes, edges, turn, radial),
        [random(1, 49, 130), random(1, 18, 260)],  # two blocks of channels, the second nearly empty
        [],
        torch.float32,
    )


@needs_triton
def test_triton_forward_at_the_largest_degree():
    edges = graph([0], [0], 1)
    nodes, turn = random(1, 81, 4), rotation(1, 8, 6)
    out = rotate_to_edges(nodes, edges, turn)
    assert relative(out, kernel_twins.rotate_to_edges(nodes, edges, turn)) <= 1e-6


@needs_triton
def test_triton_keeps_nan_on_its_edges():
    edges = graph([1, 2], [0, 0], 3)
    nodes = random(3, 4, 2)
    nodes[2, 3, 1] = torch.nan
    out = rotate_to_edges(nodes, edges, rotation(2, 1, 1))
    assert out[1, 1:, 1].isnan().any()
    assert not out[0].isnan().any()

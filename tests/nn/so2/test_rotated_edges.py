from __future__ import annotations

import torch
from so2_samples import GRAPHS, LAYOUT, graph, on_all_graphs

from dens_plugin.nn.so2 import rotated_edges


@on_all_graphs
def test_targets_and_rows(targets):
    edges = graph(targets)
    assert edges.target.tolist() == targets
    assert torch.equal(edges.targets[edges.row], edges.target)


@on_all_graphs
def test_pieces_hold_every_edge_once(targets, monkeypatch):
    for limit in (1, 3, 100):
        monkeypatch.setattr(rotated_edges, "_CPU_EDGES", limit)
        edges = graph(targets)
        numbers = torch.arange(len(targets))
        assert [number for piece in edges.pieces for number in numbers[piece.edges].tolist()] == numbers.tolist()
        for piece in edges.pieces:
            counts = edges.offsets.diff()[piece.targets]
            assert counts.sum() == len(numbers[piece.edges])
            assert counts.sum() < limit + counts.max()
            assert set(counts.tolist()) == {piece.degree} if piece.degree else len(set(counts.tolist())) > 1


@on_all_graphs
def test_parts_are_pieces_by_themselves(targets, monkeypatch):
    monkeypatch.setattr(rotated_edges, "_CPU_EDGES", 3)
    edges = graph(targets)
    parts = list(edges.parts(3))
    assert [piece for piece, _ in parts] == list(edges.pieces)
    for piece, part in parts:
        assert torch.equal(part.target, edges.target[piece.edges])
        assert torch.equal(part.source, edges.source[piece.edges])
        assert torch.equal(part.packed, edges.packed[piece.edges])
        ((all_targets, all_edges, degree),) = part.pieces
        assert (len(part.targets[all_targets]), len(part.source[all_edges])) == (len(part.targets), len(part.source))
        assert degree == piece.degree


def test_ending_at_some_atoms():
    edges = graph(GRAPHS["unequal degrees"])
    some = edges.ending_at(torch.tensor([0, 2, 3]), torch.tensor([0, 4]))
    assert some.target.tolist() == [0, 3]
    assert some.targets.tolist() == [0, 2, 3]
    assert torch.equal(some.packed, edges.packed[[0, 4]])
    assert torch.equal(some.source, edges.source[[0, 4]])


def test_rotations_mix_no_degrees():
    edges = graph(GRAPHS["equal degrees"])
    for s, (degree, _) in enumerate(LAYOUT.coefficients):
        first, last = LAYOUT.packed_starts[s : s + 2]
        others = edges.rotation[:, s].clone()
        others[:, degree**2 : (degree + 1) ** 2] -= edges.packed[:, first:last]
        assert not others.any()


def test_of_order_zero():
    edges = graph(GRAPHS["equal degrees"])
    zero = edges.of_order_zero()
    assert zero.layout.coefficients == ((0, 0), (1, 0), (2, 0))
    assert torch.equal(zero.rotation, edges.rotation[:, : LAYOUT.degrees_of(0)])
    assert zero.pieces == edges.pieces

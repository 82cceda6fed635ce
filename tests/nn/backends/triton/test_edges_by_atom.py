from __future__ import annotations

from kernel_samples import graph


def test_both_orders_list_every_edge_once():
    edges = graph([3, 0, 3, 1, 0], [0, 0, 2, 2, 3], 5)
    for atom in range(5):
        ending = slice(edges.offsets[atom], edges.offsets[atom + 1])
        assert (edges.target[ending] == atom).all()
        starting = edges.by_source[edges.source_offsets[atom] : edges.source_offsets[atom + 1]]
        assert (edges.source[starting] == atom).all()
    assert edges.offsets.tolist() == [0, 2, 2, 4, 5, 5]
    assert sorted(edges.by_source.tolist()) == list(range(5))


def test_no_edges():
    edges = graph([], [], 3)
    assert edges.offsets.tolist() == edges.source_offsets.tolist() == [0, 0, 0, 0]

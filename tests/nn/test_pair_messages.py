from __future__ import annotations

import pytest
import torch

from dens_plugin.nn import pair_messages as message
from dens_plugin.nn.backends.cpu.team import loops_reason
from dens_plugin.nn.pairs import Edges
from dens_plugin.testing import assert_close

needs_loops = pytest.mark.skipif(loops_reason() is not None, reason="loops do not run here")
CHANNELS = 21  # no multiple of a vector's length


@pytest.fixture
def sample():
    """Two structures, one of them with a pair of an atom and its own image, and one without pairs."""
    torch.manual_seed(0)
    pairs = torch.tensor([[0, 1, 2, 0, 4, 5], [1, 2, 0, 0, 5, 6]])
    batch = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    vectors = torch.randn(6, 3, requires_grad=True)
    sizes = (7, 3 * CHANNELS), (7, 3, CHANNELS), (6, 3 * CHANNELS)
    return [torch.randn(size, requires_grad=True) for size in sizes], vectors, (pairs, batch)


def derivatives(sum_messages, sample, *, with_vectors=True):
    """Sums, their gradients, and the gradients of a function of both."""
    (factors, vectors, filters), between, (pairs, batch) = sample
    edges = Edges.of(pairs, between, batch, 3)
    sums = sum_messages(factors, vectors if with_vectors else None, filters, edges)
    inputs = [factors, filters, between, *([vectors] if with_vectors else [])]
    gradients = torch.autograd.grad(sum(value.square().sum() for value in sums), inputs, create_graph=True)
    loss = sum((0.1 * value).sin().sum() for value in gradients) + sum(value.sum() for value in sums)
    return *sums, *gradients, *torch.autograd.grad(loss, inputs)


@needs_loops
@pytest.mark.parametrize("with_vectors", [True, False])
def test_loops_give_what_torch_gives(sample, with_vectors):
    found = derivatives(message.sum_messages, sample, with_vectors=with_vectors)
    expected = derivatives(message._by_torch, sample, with_vectors=with_vectors)
    for value, reference in zip(found, expected, strict=True):
        assert_close(value, reference, 1e-5)


@needs_loops
def test_threads_change_nothing(sample):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = derivatives(message.sum_messages, sample)
        torch.set_num_threads(1)
        one = derivatives(message.sum_messages, sample)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, same) for value, same in zip(several, one, strict=True))


def test_pairs_of_a_structure_stand_together(sample):
    *_, (pairs, batch) = sample
    assert Edges.of(pairs, torch.randn(6, 3), batch, 3).offsets.tolist() == [0, 4, 4, 6]

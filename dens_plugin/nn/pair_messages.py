"""Sums of messages along pairs of atoms, by loops for float32 on a CPU and by plain torch elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.cpu import painn_message as loops
from dens_plugin.nn.backends.cpu.team import uses_loops
from dens_plugin.nn.pairs import Edges


def sum_messages(
    factors: torch.Tensor, vectors: torch.Tensor | None, filters: torch.Tensor, edges: Edges
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""What atoms hear: scalars (N, C) and vectors (N, 3, C).

    .. math:: s_b = \sum_a h^1_a W^1_{ab}, \qquad t_b = \sum_a h^2_a W^2_{ab} v_a + h^3_a W^3_{ab} \hat{r}_{ab}

    Args:
        factors: (N, 3 C), h.
        vectors: (N, 3, C), v; None for zeros.
        filters: (H, 3 C), W.
        edges: of the batch.
    """
    if not uses_loops(factors, filters, edges.directions):
        return _by_torch(factors, vectors, filters, edges)
    if vectors is None:
        vectors = factors.new_zeros(len(factors), 3, factors.shape[1] // 3)
    pairs = loops.Pairs(edges.first, edges.second, edges.offsets)
    inputs = (tensor.contiguous() for tensor in (factors, vectors, filters, edges.directions))
    scalars, sums = _Messages.apply(pairs, *inputs)
    return scalars, sums


def _by_torch(
    factors: torch.Tensor, vectors: torch.Tensor | None, filters: torch.Tensor, edges: Edges
) -> tuple[torch.Tensor, torch.Tensor]:
    num_atoms, channels = len(factors), factors.shape[1] // 3
    source, target = torch.cat([edges.first, edges.second]), torch.cat([edges.second, edges.first])
    directions = torch.cat([edges.directions, -edges.directions])
    both_ways = factors.index_select(0, source).view(2, -1, 3 * channels) * filters
    of_scalars, of_vectors, of_directions = both_ways.view(-1, 3 * channels).split(channels, dim=1)
    messages = directions[:, :, None] * of_directions[:, None]
    if vectors is not None:
        messages = torch.addcmul(messages, vectors.index_select(0, source), of_vectors[:, None])
    return (
        of_scalars.new_zeros(num_atoms, channels).index_add(0, target, of_scalars),
        messages.new_zeros(num_atoms, 3, channels).index_add(0, target, messages),  # of another type under autocast
    )


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: loops.Pairs, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.pairs = pairs
        ctx.save_for_backward(*inputs)
        return tuple(loops.messages(pairs, loops.Inputs(*inputs)))

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *_Gradients.apply(ctx.pairs, *(tensor.contiguous() for tensor in grad), *ctx.saved_tensors)


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: loops.Pairs, *grad_and_inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.pairs = pairs
        ctx.save_for_backward(*grad_and_inputs)
        grad, inputs = loops.Sums(*grad_and_inputs[:2]), loops.Inputs(*grad_and_inputs[2:])
        return tuple(loops.gradients(pairs, inputs, grad))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_of_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        grad, inputs = loops.Sums(*saved[:2]), loops.Inputs(*saved[2:])
        outer = loops.Inputs(*(tensor.contiguous() for tensor in grad_of_gradients))
        of_grad, of_inputs = loops.second_gradients(ctx.pairs, inputs, grad, outer)
        return None, *of_grad, *of_inputs

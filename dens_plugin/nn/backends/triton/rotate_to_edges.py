r"""Features of an edge's two atoms in the edge's frame, times its radial functions: gather, rotate, multiply.

.. math:: y_{esc} = R_{e r(s) c} \sum_l D_{esl} \, x_{a(e, c), l, c \bmod C},
    \qquad a = \text{source for } c < C, \text{ target otherwise}

with the rotation D in the order of `packing`. D is block-diagonal: a coefficient of degree l needs the 2l+1 components
of that degree only, 235 numbers of 1,421 at lmax 6, mmax 2. A program takes one edge, one of its ends and some
channels, and goes through the degrees. Backward,

.. math:: dR_{erc} = \sum_{s: r(s) = r} dy_{esc} \sum_l D_{esl} x_{alc}, \qquad
    dx_{nlc} = \sum_{e, c': a(e, c') = n} \sum_s D_{esl} R_{e r(s) c'} \, dy_{esc'}

are two kernels. The second takes one atom and degree, and adds the edges that end there, then those that start there,
in the order of `EdgesByAtom`: no atomics, hence the same sum every time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl
from dens_plugin.nn.backends.triton.edges_by_atom import EdgesByAtom
from dens_plugin.nn.backends.triton.packing import (
    coefficient_of,
    degrees,
    order_of,
    radial_row_of,
    radial_shared,
)
from dens_plugin.nn.backends.triton.rotation import rotate_degree, rotation_constants


def rotate_to_edges(
    nodes: torch.Tensor, edges: EdgesByAtom, rotation: torch.Tensor, radial: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotate the features of both ends of each edge into its frame, in m-primary order.

    Args:
        nodes: (N, L, C) features of atoms.
        edges: E edges.
        rotation: (E, S, L) in the order of `packing`; it has no gradient.
        radial: (E, R, 2C), a row per degree or per degree and |m| as in `packing.expand_radial`, or None.

    Returns:
        (E, S, 2C) of the nodes' type, source's channels first, summed in float32.

    Raises:
        ValueError: if S, L and R fit no largest degree and order, or the shapes do not fit each other.
    """
    _check(nodes, edges, rotation, radial)
    out: torch.Tensor = _RotateToEdges.apply(nodes, radial, rotation, *edges)
    return out


def _check(nodes: torch.Tensor, edges: EdgesByAtom, rotation: torch.Tensor, radial: torch.Tensor | None) -> None:
    atoms, components, channels = nodes.shape
    expected = {
        "pointers to edges": (edges.offsets, (atoms + 1,)),
        "targets": (edges.target, (rotation.shape[0],)),
        "rotation": (rotation, (*edges.source.shape, rotation.shape[1], components)),
    }
    if radial is not None:
        expected["radial functions"] = radial, (*edges.source.shape, radial.shape[1], 2 * channels)
        radial_shared(radial.shape[1], *degrees(rotation.shape[1], components))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} must have shape {shape}")


class _RotateToEdges(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, nodes: torch.Tensor, radial: torch.Tensor | None, rotation: torch.Tensor, *edges: torch.Tensor
    ) -> torch.Tensor:
        nodes, rotation = nodes.contiguous(), rotation.contiguous()
        radial = None if radial is None else radial.contiguous()
        ctx.constants = _constants(nodes, rotation, radial)
        ctx.save_for_backward(nodes, radial, rotation, *edges)
        edge_count, coefficients, _ = rotation.shape
        out = nodes.new_empty(edge_count, coefficients, 2 * nodes.shape[2])
        _launch_by_edge(_forward_kernel, ctx.constants, nodes, radial, rotation, *edges[:2], out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        nodes, radial, rotation, *order = ctx.saved_tensors
        edges = EdgesByAtom(*order)
        grad = grad.contiguous()
        grad_nodes = grad_radial = None
        if radial is not None and ctx.needs_input_grad[1]:
            grad_radial = torch.empty_like(radial)
            _launch_by_edge(
                _radial_kernel, ctx.constants, nodes, grad, rotation, edges.source, edges.target, grad_radial
            )
        if ctx.needs_input_grad[0]:
            grad_nodes = torch.empty_like(nodes)
            arguments = (grad, grad if radial is None else radial, rotation, *edges[2:], grad_nodes)
            atoms, lmax, block = nodes.shape[0], ctx.constants["lmax"], ctx.constants["block"]
            grid = (atoms, lmax + 1, -(-nodes.shape[2] // block))
            launch(_nodes_kernel, grid, arguments, num_warps=1, **ctx.constants)
        return grad_nodes, grad_radial, *(None for _ in range(6))


def _constants(nodes: torch.Tensor, rotation: torch.Tensor, radial: torch.Tensor | None) -> dict[str, Any]:
    constants = rotation_constants(rotation, nodes.shape[2])
    lmax, mmax = constants["lmax"], constants["mmax"]
    rows = 0 if radial is None else radial.shape[1]
    return {**constants, "radial_rows": rows, "shared": rows > 0 and radial_shared(rows, lmax, mmax)}


def _launch_by_edge(
    kernel: Any, constants: dict[str, Any], nodes: torch.Tensor, other: torch.Tensor | None, *rest: torch.Tensor
) -> None:
    blocks = -(-constants["channels"] // constants["block"])
    arguments = (nodes, nodes if other is None else other, *rest)
    launch(kernel, (rest[0].shape[0], 2 * blocks), arguments, num_warps=1, **constants)


@jit
def _end(source, target, channels: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """Of this program: the edge, its atom at one end, the end (0 for the source), its channels (1, block)."""
    edge = tl.program_id(0).to(tl.int64)
    blocks: constexpr = (channels + block - 1) // block
    end = tl.program_id(1) // blocks
    atom = tl.where(end == 0, tl.load(source + edge), tl.load(target + edge)).to(tl.int64)
    column = (tl.program_id(1) % blocks) * block + tl.arange(0, block)[None, :]
    return edge, atom, end, column


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    nodes,
    radial,
    rotation,
    source,
    target,
    out,
    coefficients: constexpr,
    channels: constexpr,
    lmax: constexpr,
    mmax: constexpr,
    rows: constexpr,
    components: constexpr,
    block: constexpr,
    radial_rows: constexpr,
    shared: constexpr,
):
    edge, atom, end, column = _end(source, target, channels, block)
    inside = column < channels
    position = tl.arange(0, rows)
    m = order_of(position)
    for degree in tl.static_range(lmax + 1):
        s = coefficient_of(position, degree, lmax)
        exists = (m <= degree) & (m <= mmax)
        y = rotate_degree(
            nodes, atom, rotation, edge, s, exists, column, coefficients, channels, lmax, degree, rows, block
        )
        if radial_rows > 0:
            row = radial_row_of(m, degree, lmax, shared)[:, None]
            at = (edge * radial_rows + row) * (2 * channels) + end * channels + column
            y *= tl.load(radial + at, mask=exists[:, None] & inside, other=0.0).to(tl.float32)
        at = (edge * coefficients + s[:, None]) * (2 * channels) + end * channels + column
        tl.store(out + at, y.to(out.dtype.element_ty), mask=exists[:, None] & inside)


@jit
def _radial_kernel(  # type: ignore[no-untyped-def]
    nodes,
    grad,
    rotation,
    source,
    target,
    grad_radial,
    coefficients: constexpr,
    channels: constexpr,
    lmax: constexpr,
    mmax: constexpr,
    rows: constexpr,
    components: constexpr,
    block: constexpr,
    radial_rows: constexpr,
    shared: constexpr,
):
    edge, atom, end, column = _end(source, target, channels, block)
    inside = column < channels
    position = tl.arange(0, rows)
    m = order_of(position)
    for degree in tl.static_range(lmax + 1):
        s = coefficient_of(position, degree, lmax)
        exists = (m <= degree) & (m <= mmax)
        y = rotate_degree(
            nodes, atom, rotation, edge, s, exists, column, coefficients, channels, lmax, degree, rows, block
        )
        at = (edge * coefficients + s[:, None]) * (2 * channels) + end * channels + column
        y *= tl.load(grad + at, mask=exists[:, None] & inside, other=0.0).to(tl.float32)  # (rows, channels)
        base = grad_radial + edge * (radial_rows * 2 * channels) + end * channels + column
        if shared:  # all orders of the degree share a row
            total = tl.sum(tl.where(exists[:, None], y, 0.0), axis=0, keep_dims=True)
            tl.store(base + degree * (2 * channels), total.to(grad_radial.dtype.element_ty), mask=inside)
        else:  # +m and -m share one
            for order in tl.static_range(mmax + 1):
                total = tl.sum(tl.where((m == order)[:, None], y, 0.0), axis=0, keep_dims=True)
                row = radial_row_of(order, degree, lmax, shared)
                mask = inside & (order <= degree)
                tl.store(base + row * (2 * channels), total.to(grad_radial.dtype.element_ty), mask=mask)


@jit
def _rotate_back(  # type: ignore[no-untyped-def]
    total,
    edge,
    end,
    grad,
    radial,
    rotation,
    degree,
    k,
    column,
    coefficients: constexpr,
    channels: constexpr,
    lmax: constexpr,
    mmax: constexpr,
    radial_rows: constexpr,
    shared: constexpr,
):
    """Add one end of an edge to the gradient of an atom's components of one degree: (components, block)."""
    for position in tl.static_range(2 * mmax + 1):
        m = order_of(position)
        s = coefficient_of(position, degree, lmax)
        at = (edge * coefficients + s) * (2 * channels) + end * channels + column
        dy = tl.load(grad + at, mask=(column < channels) & (m <= degree), other=0.0).to(tl.float32)  # (1, block)
        if radial_rows > 0:
            row = radial_row_of(m, degree, lmax, shared)
            at = (edge * radial_rows + row) * (2 * channels) + end * channels + column
            dy *= tl.load(radial + at, mask=(column < channels) & (m <= degree), other=0.0).to(tl.float32)
        at = (edge * coefficients + s) * ((lmax + 1) * (lmax + 1)) + degree * degree + k
        d = tl.load(rotation + at, mask=(k <= 2 * degree) & (m <= degree), other=0.0).to(tl.float32)  # (components,)
        total += d[:, None] * dy
    return total


@jit
def _nodes_kernel(  # type: ignore[no-untyped-def]
    grad,
    radial,
    rotation,
    offsets,
    by_source,
    source_offsets,
    grad_nodes,
    coefficients: constexpr,
    channels: constexpr,
    lmax: constexpr,
    mmax: constexpr,
    rows: constexpr,
    components: constexpr,
    block: constexpr,
    radial_rows: constexpr,
    shared: constexpr,
):
    atom = tl.program_id(0).to(tl.int64)
    degree = tl.program_id(1)
    column = tl.program_id(2) * block + tl.arange(0, block)[None, :]
    k = tl.arange(0, components)
    total = tl.zeros((components, block), tl.float32)
    for edge in range(tl.load(offsets + atom), tl.load(offsets + atom + 1)):
        total = _rotate_back(
            total,
            edge,
            1,
            grad,
            radial,
            rotation,
            degree,
            k,
            column,
            coefficients,
            channels,
            lmax,
            mmax,
            radial_rows,
            shared,
        )
    for number in range(tl.load(source_offsets + atom), tl.load(source_offsets + atom + 1)):
        edge = tl.load(by_source + number)
        total = _rotate_back(
            total,
            edge,
            0,
            grad,
            radial,
            rotation,
            degree,
            k,
            column,
            coefficients,
            channels,
            lmax,
            mmax,
            radial_rows,
            shared,
        )
    at = (atom * ((lmax + 1) * (lmax + 1)) + degree * degree + k[:, None]) * channels + column
    mask = (k <= 2 * degree)[:, None] & (column < channels)
    tl.store(grad_nodes + at, total.to(grad_nodes.dtype.element_ty), mask=mask)

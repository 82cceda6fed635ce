"""Triton's kernels in plain torch, to compare them with, and to stand for them on a machine without a GPU."""

from __future__ import annotations

import math
import sys
import types

import torch
from torch.nn.functional import silu

from dens_plugin.nn.backends.triton.packing import degrees, radial_shared

KERNELS = "dens_plugin.nn.backends.triton."


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def s2_activation(convolved, to_grid, from_grid, *, has_gates, allow_tf32=False):
    """With the grid (E, G, C) in memory."""
    coefficients = to_grid.shape[1]
    rows = convolved.to(wide(convolved.dtype)).unflatten(1, (coefficients + has_gates, -1))
    grid = silu(to_grid.detach().to(rows.dtype) @ rows[:, int(has_gates) :])
    out = from_grid.detach().to(rows.dtype).T @ grid
    if has_gates:
        out = torch.cat([silu(rows[:, :1]), out[:, 1:]], dim=1)
    return out.to(convolved.dtype)


def rotate_to_edges(nodes, edges, rotation, radial=None):
    """With the zeros of the rotation and the features of both ends in memory."""
    lmax, mmax = degrees(rotation.shape[1], rotation.shape[2])
    ends = nodes.to(wide(nodes.dtype))
    ends = torch.cat([ends[edges.source], ends[edges.target]], dim=-1)  # (E, L, 2C)
    out = rotation.detach().to(ends.dtype) @ ends  # (E, S, 2C)
    if radial is not None:
        out = out * expand_radial(radial.to(ends.dtype), lmax, mmax)
    return out.to(nodes.dtype)


def expand_radial(radial, lmax, mmax):
    """Radial functions for every coefficient: (E, R, C) to (E, S, C)."""
    if radial_shared(radial.shape[1], lmax, mmax):
        orders = [radial[:, m:] for m in range(mmax + 1)]
    else:
        orders = list(radial.split([lmax + 1 - m for m in range(mmax + 1)], dim=1))
    return torch.cat([orders[0], *(order for order in orders[1:] for _ in "+-")], dim=1)


def aggregate(values, weights, rotation, scale, offsets, target):
    """With every message in the global frame (E, L, H V) in memory."""
    values = values.to(wide(values.dtype))
    if weights is not None:
        heads = weights.to(values.dtype).repeat_interleave(values.shape[2] // weights.shape[1], dim=1)  # (E, H V)
        values = values * heads[:, None]
    rotation = rotation.detach().to(values.dtype) * scale.detach().to(values.dtype)[:, None]
    messages = rotation.mT @ values  # (E, L, H V)
    return messages.new_zeros(len(offsets) - 1, *messages.shape[1:]).index_add(0, target, messages)


def orders_of(features, layout, channels):
    """For every order m > 0 the coefficients (E, 2, n C) of +m and of -m, which are the last columns."""
    sizes = [2 * layout.degrees_of(m) * channels for m in range(1, layout.mmax + 1)]
    return [part.unflatten(1, (2, -1)) for part in features[:, features.shape[1] - sum(sizes) :].split(sizes, dim=1)]


def spread(features, layout, channels, *, is_conjugate):
    planes = []
    for part in orders_of(features, layout, channels):
        plus, minus = part.unbind(1)
        planes += [plus + minus, *((-plus, minus) if is_conjugate else (minus, plus))]
    return torch.cat(planes, dim=1)


def join(planes, layout, channels, out, *, is_conjugate):
    sizes = [3 * layout.degrees_of(m) * channels for m in range(1, layout.mmax + 1)]
    for part, both in zip(planes.split(sizes, dim=1), orders_of(out, layout, channels), strict=True):
        p, q, r = part.chunk(3, dim=1)
        both[:, 0], both[:, 1] = (p + r, p + q) if is_conjugate else (p - q, p + r)


def softmax_by_target(logits, offsets):
    """By sums over targets."""
    values = logits.float()
    target = torch.searchsorted(offsets, torch.arange(len(values), device=offsets.device), right=True) - 1
    of_target, shape = target[:, None].expand_as(values), (len(offsets) - 1, values.shape[1])
    largest = values.new_zeros(shape).scatter_reduce(0, of_target, values, "amax", include_self=False)
    exponentials = (values - largest[target]).exp()
    return (exponentials / values.new_zeros(shape).index_add(0, target, exponentials)[target]).to(logits.dtype)


def normed(features, balance, weights, bias, *, is_separate):
    lmax = len(weights[1])
    sizes = torch.arange(lmax + 1, device=features.device)
    weight = torch.cat([weights[0][None], weights[1]]).repeat_interleave(
        2 * sizes + 1, dim=0, output_size=(lmax + 1) ** 2
    )
    centered = torch.cat([features[:, :1] - features[:, :1].mean(2, keepdim=True), features[:, 1:]], dim=1)
    squares = (balance[:-1, None] * centered**2).sum(2)
    total = squares.sum(1, keepdim=True)
    if is_separate:
        others = squares[:, 1:].sum(1, keepdim=True).expand(-1, squares.shape[1] - 1)
        total = torch.cat([squares[:, :1], others], dim=1)
    out = centered * (total + balance[-1]).rsqrt()[..., None] * weight
    return torch.cat([out[:, :1] + bias, out[:, 1:]], dim=1)


def normed_backward(grad, features, balance, weights, *, is_separate):
    inputs = [tensor.detach().requires_grad_() for tensor in (features, *weights, torch.zeros_like(weights[0]))]
    with torch.enable_grad():
        out = normed(inputs[0], balance, inputs[1:3], inputs[3], is_separate=is_separate)
        of_features, first, others, bias = torch.autograd.grad(out, inputs, grad, materialize_grads=True)
    return of_features, torch.cat([first[None], others, bias[None]])


def degree_sums(of_components, lowest=0):
    sizes = [2 * degree + 1 for degree in range(lowest, math.isqrt(of_components.shape[-3] + lowest**2))]
    return torch.stack([part.sum(-3) for part in of_components.split(sizes, dim=-3)], dim=-3)


def stand_in(monkeypatch):
    """Put the twins in the places of the kernels, wherever these were imported."""
    kernels = {
        getattr(module, name): twin
        for module in [sys.modules[name] for name in list(sys.modules) if name.startswith(KERNELS)]
        for name, twin in globals().items()
        if getattr(getattr(module, name, None), "__module__", None) == module.__name__
    }
    for module in [sys.modules[name] for name in list(sys.modules) if name.startswith("dens_plugin.")]:
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value in kernels:
                monkeypatch.setattr(module, name, kernels[value])


def layer_norm(features, norm):
    weight, bias, eps = norm
    return torch.nn.functional.layer_norm(features, weight.shape, weight.to(features), bias.to(features), eps)


def attention_logits(scalars, norm, vectors, slope):
    scalars = scalars.to(wide(scalars.dtype)).unflatten(1, vectors.shape)
    normed = layer_norm(scalars, norm)
    return ((slope * normed + (1 - slope) * silu(normed)) * vectors.to(normed)).sum(2)


def norm_silu(features, norm, tables=None, elements=None):
    out = features.to(wide(features.dtype))
    if tables is not None:
        out = out + sum(table.to(out.dtype)[numbers] for table, numbers in zip(tables, elements.numbers, strict=True))
    return silu(layer_norm(out, norm)).to(features.dtype)


def drop_path(features, draws, batch, keep):
    return features * ((keep + draws).floor() / keep)[batch].view(-1, *(1 for _ in features.shape[1:])).to(features)

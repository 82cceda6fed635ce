"""What the kernels that rotate share: the sizes of their tiles, and the product of one degree's block."""

from __future__ import annotations

from typing import Any

import torch

from dens_plugin.nn.backends.triton.availability import constexpr, jit, tl
from dens_plugin.nn.backends.triton.packing import degrees

# Channels of one program, which is a single warp: a thread then holds 4 of them and all rows, reads the rotation (the
# same for all channels) from the first-level cache, and needs no shared memory. From 32 components on (lmax 8), half.
_CHANNELS = 128


def rotation_constants(rotation: torch.Tensor, channels: int) -> dict[str, Any]:
    """Compile-time constants of a kernel for rotations (E, S, L) of features with C channels.

    Raises:
        ValueError: if S and L fit no largest degree and order.
    """
    lmax, mmax = degrees(rotation.shape[1], rotation.shape[2])
    components = _power_of_two(2 * lmax + 1)
    return {
        "coefficients": rotation.shape[1],
        "channels": channels,
        "lmax": lmax,
        "mmax": mmax,
        "rows": _power_of_two(2 * mmax + 1),
        "components": components,
        "block": min(_CHANNELS if components < 32 else _CHANNELS // 2, _power_of_two(channels)),
    }


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


@jit
def rotate_degree(  # type: ignore[no-untyped-def]
    nodes,
    atom,
    rotation,
    edge,
    s,
    exists,
    column,
    coefficients: constexpr,
    channels: constexpr,
    lmax: constexpr,
    degree: constexpr,
    rows: constexpr,
    block: constexpr,
):
    """Coefficients s (rows,) of an edge, all of one degree, from an atom's components of it: (rows, block)."""
    y = tl.zeros((rows, block), tl.float32)
    for component in tl.static_range(degree * degree, (degree + 1) * (degree + 1)):
        at = (edge * coefficients + s) * ((lmax + 1) * (lmax + 1)) + component
        d = tl.load(rotation + at, mask=exists, other=0.0).to(tl.float32)  # (rows,)
        at = (atom * ((lmax + 1) * (lmax + 1)) + component) * channels + column
        y += d[:, None] * tl.load(nodes + at, mask=column < channels, other=0.0).to(tl.float32)
    return y

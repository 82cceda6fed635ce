"""EquiformerV2's norms of an atom's features, in one pass over memory, for float32 on a CPU.

    y_nic = s_n d_nic a_l(i),c + [i = 0] b_c        s_n = ( sum over i and c of  w_i d_nic^2 + eps )^(-1/2)

with d = x, but for degree 0, which loses its mean over the channels. Degree 0 may have a sum of its own, which makes it
an ordinary layer norm: the separable one of EquiformerV2, arXiv:2306.12059.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.cpu.degree_norm import normed, normed_backward


def degree_norm(
    features: torch.Tensor, balance: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, is_separate: bool
) -> torch.Tensor:
    """Normed features; whoever calls it has asked `uses_loops`.

    Args:
        features: (N, L, C).
        balance: (L + 1,) weights w of the components' squares, and eps (`balance`).
        weight: (lmax + 1, C), a.
        bias: (C,), b.
        is_separate: whether degree 0 has a sum of its own.

    Returns:
        (N, L, C).
    """
    out: torch.Tensor = _DegreeNorm.apply(features, balance, weight, bias, is_separate)
    return out


@functools.cache
def balance(lmax: int, channels: int, eps: float, *, kind: str, is_separate: bool) -> torch.Tensor:
    """Weights of the squares, and eps.

    Args:
        lmax: largest degree.
        channels: C.
        eps: added to the sums.
        kind: of the mean over components: of ``degrees``, each by itself before; of all ``components``; or ``none``,
            which is a sum.
        is_separate: as for `degree_norm`.
    """
    sizes = [2 * degree + 1 for degree in range(1 if is_separate else 0, lmax + 1)]
    count = {"degrees": len(sizes), "components": sum(sizes), "none": 1}[kind]
    weights = [1 / ((size if kind == "degrees" else 1) * count * channels) for size in sizes for _ in range(size)]
    first = [1 / channels] if is_separate else []
    with torch.inference_mode(False):  # whose tensors no later training step could use
        return torch.tensor([*first, *weights, eps], dtype=torch.float32, device="cpu")


class _DegreeNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        balance: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        is_separate: bool,
    ) -> torch.Tensor:
        features, weight = features.contiguous(), weight.contiguous()
        ctx.save_for_backward(features, balance, weight)
        ctx.is_separate = is_separate
        return normed(features, balance, weight, bias.contiguous(), is_separate=is_separate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_features, of_weight, of_bias = normed_backward(grad, *ctx.saved_tensors, is_separate=ctx.is_separate)
        return of_features, None, of_weight, of_bias, None

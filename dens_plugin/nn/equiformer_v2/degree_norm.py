"""EquiformerV2's norms of an atom's features, in one pass over memory: by loops on a CPU, by kernels on a GPU.

    y_nic = s_n d_nic a_l(i),c + [i = 0] b_c        s_n = ( sum over i and c of  w_i d_nic^2 + eps )^(-1/2)

with d = x, but for degree 0, which loses its mean over the channels. Degree 0 may have a sum of its own, which makes it
an ordinary layer norm: the separable one of EquiformerV2, arXiv:2306.12059.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.backends.cpu import degree_norm as loops
from dens_plugin.nn.backends.triton import degree_norm as kernels


class Affine(NamedTuple):
    """What a norm multiplies by and adds.

    Attributes:
        first: (C,) of degree 0 where that has a sum of its own; None if it is the first row of ``weight``.
        weight: (lmax, C) of the degrees above, or (lmax + 1, C) of all.
        bias: (C,) of degree 0.
    """

    first: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All there are."""
        return [tensor for tensor in self if tensor is not None]

    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (C,) of degree 0 and (lmax, C) of the others."""
        return (self.weight[0], self.weight[1:]) if self.first is None else (self.first, self.weight)

    def together(self) -> torch.Tensor:
        """(lmax + 1, C) weights of all degrees."""
        return self.weight if self.first is None else torch.cat([self.first[None], self.weight])


def computes(features: torch.Tensor, affine: Affine) -> bool:
    """Whether `degree_norm` has code for the machine of these, and what they are stored in."""
    return machine_for(features, *affine.tensors) is not Machine.PLAIN


def degree_norm(features: torch.Tensor, balance: torch.Tensor, affine: Affine) -> torch.Tensor:
    """Normed features; whoever calls it has asked `computes`.

    Args:
        features: (N, L, C).
        balance: (L + 1,) weights w of the components' squares, and eps (`balance`).
        affine: a and b.

    Returns:
        (N, L, C).
    """
    out: torch.Tensor = _DegreeNorm.apply(features, balance, *affine)
    return out


@functools.cache
def balance(
    lmax: int, channels: int, eps: float, *, kind: str, is_separate: bool, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Weights of the squares, and eps; made once, as a copy to a GPU waits for it.

    Args:
        lmax: largest degree.
        channels: C.
        eps: added to the sums.
        kind: of the mean over components: of ``degrees``, each by itself before; of all ``components``; or ``none``,
            which is a sum.
        is_separate: whether degree 0 has a sum of its own.
        device: where they shall be.
    """
    sizes = [2 * degree + 1 for degree in range(1 if is_separate else 0, lmax + 1)]
    count = {"degrees": len(sizes), "components": sum(sizes), "none": 1}[kind]
    weights = [1 / ((size if kind == "degrees" else 1) * count * channels) for size in sizes for _ in range(size)]
    first = [1 / channels] if is_separate else []
    with torch.inference_mode(False):  # whose tensors no later training step could use
        return torch.tensor([*first, *weights, eps], dtype=torch.float32, device=device)


class _DegreeNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        balance: torch.Tensor,
        first: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        affine = Affine(first, weight, bias)
        features, is_separate = features.contiguous(), first is not None
        ctx.save_for_backward(features, balance, *affine)
        if features.is_cuda:
            return kernels.normed(features, balance, affine.split(), bias, is_separate=is_separate)
        return loops.normed(features, balance, affine.together(), bias.contiguous(), is_separate=is_separate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, balance, *tensors = ctx.saved_tensors
        affine = Affine(*tensors)
        inputs, is_separate = (grad, features, balance), affine.first is not None
        if features.is_cuda:
            of_features, of_affine = kernels.normed_backward(*inputs, affine.split(), is_separate=is_separate)
            of_weight, of_bias = of_affine[:-1], of_affine[-1]
        else:
            of_features, of_weight, of_bias = loops.normed_backward(*inputs, affine.together(), is_separate=is_separate)
        if affine.first is None:
            return of_features, None, None, of_weight, of_bias
        return of_features, None, of_weight[0], of_weight[1:], of_bias

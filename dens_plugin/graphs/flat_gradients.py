"""The gradients of all parameters in one tensor that never moves, to be summed over batches and over ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

_ALIGNED = 64  # numbers; kernels for many tensors read 16 bytes at a time where all tensors begin at multiples


class FlatGradients:
    """Views of one tensor as the gradients of parameters.

    Args:
        parameters: of one type of number, on one device.
        used: whether each has a gradient; the others keep none, and an optimiser leaves them as they are.

    Attributes:
        flat: all gradients, with gaps that are zero.
        used: as given.
        views: of each parameter, None where it has none.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], used: Sequence[bool]) -> None:
        self.used = tuple(used)
        self._parameters = list(parameters)
        chosen = [parameter for parameter, has in zip(parameters, used, strict=True) if has]
        sizes = [-(-parameter.numel() // _ALIGNED) * _ALIGNED for parameter in chosen]
        self.flat = parameters[0].new_zeros(sum(sizes)).detach()
        starts = itertools.accumulate(sizes, initial=0)
        views = (self.flat.as_strided(p.shape, p.stride(), start) for p, start in zip(chosen, starts, strict=False))
        self.views = [next(views) if has else None for has in used]

    def attach(self) -> None:
        """Give the parameters their gradients, whatever they had."""
        for parameter, view in zip(self._parameters, self.views, strict=True):
            parameter.grad = view

    def take(self, found: Sequence[torch.Tensor | None], *, add: bool) -> None:
        """Replace the gradients, or add to them; what is None is zero.

        Args:
            found: of each parameter.
            add: to what is there.
        """
        pairs = [(view, value) for view, value in zip(self.views, found, strict=True) if view is not None]
        if not add and any(value is None for _, value in pairs):
            self.flat.zero_()
        views, values = zip(*((view, value) for view, value in pairs if value is not None), strict=True)
        if add:
            torch._foreach_add_(views, values)
        else:
            torch._foreach_copy_(views, values)

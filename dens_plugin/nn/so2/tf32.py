"""Products of float32 in TF32: within a context, and in the backward passes of what was computed within it.

torch has one switch for a whole process and reads it at each product, in the backward pass again. So a function with a
backward pass of its own keeps how it was set in the forward pass, as those under autocast do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

_F = TypeVar("_F", bound=type[torch.autograd.Function])


@contextmanager
def tf32_products(allow: bool) -> Iterator[None]:
    """Within the context, products of float32 round their factors to TF32's 10 bits, or do not; on CUDA alone."""
    switch = torch.backends.cuda.matmul
    before = switch.allow_tf32
    switch.allow_tf32 = allow
    try:
        yield
    finally:
        switch.allow_tf32 = before


def backward_as_forward(function: _F) -> _F:
    """Give the products of a function's backward pass the precision of those of its forward pass.

    Whether they are in TF32 is kept; autocast, which a function's tensors have behind them, is off even if a person
    calls ``backward`` within its context.

    Args:
        function: a class with `forward` and `backward`, which are replaced.
    """
    forward, backward = function.forward, function.backward

    def keeping(ctx: Any, *inputs: Any) -> Any:
        ctx.allow_tf32 = torch.backends.cuda.matmul.allow_tf32
        return forward(ctx, *inputs)

    def restoring(ctx: Any, *grads: Any) -> Any:
        device = next(grad.device.type for grad in grads if grad is not None)
        with tf32_products(ctx.allow_tf32), torch.autocast(device, enabled=False):
            return backward(ctx, *grads)

    function.forward, function.backward = staticmethod(keeping), staticmethod(restoring)
    return function

"""Adding a term to the first node features of a fairchem model without copying its forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def added_to_embedding(module: nn.Module, term: torch.Tensor) -> Iterator[None]:
    """Within the context, add ``term`` to the ``embedding`` that ``module`` returns.

    fairchem's backbones sum their initial node features from several modules; adding to the output of one of them adds
    to the sum.

    Args:
        module: one whose output has an attribute ``embedding`` (N, L, C), as fairchem's ``SO3_Embedding``.
        term: (N, L, C).
    """

    def add(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        output.set_embedding(output.embedding + term)
        return output

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()

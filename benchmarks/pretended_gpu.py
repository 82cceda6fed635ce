"""The device ``meta`` in place of a GPU: a step runs as it would there, but nothing is computed and nothing launched.

What asks for a GPU (`is_cuda`, Triton) gets the answer of one. Tensors have shapes alone, so that a question about
their values, which would make a GPU wait, is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import nn

from dens_plugin.nn.backends.triton import availability

DEVICE = torch.device("meta")


@contextmanager
def pretended_gpu(launched: Callable[[Any], None]) -> Iterator[None]:
    """Within the context, ``meta`` is a GPU that runs Triton's kernels.

    Args:
        launched: is called with every kernel instead of running it.
    """

    def run(kernel: Any, *_: Any, **__: Any) -> None:
        launched(kernel)

    with ExitStack() as stack:
        replace = [
            mock.patch.object(torch.Tensor, "is_cuda", property(lambda tensor: tensor.is_meta), create=True),
            mock.patch.object(torch, "autocast", return_value=nullcontext()),  # which does not know the device
            mock.patch.object(torch, "is_autocast_enabled", return_value=False),
            mock.patch.object(availability, "triton_reason", return_value=None),
            mock.patch.object(availability, "run", run),
        ]
        for patch in replace:
            stack.enter_context(patch)
        yield


def moved(record: Any) -> Any:
    """A record of tensors on the device, within tuples and dictionaries too."""
    if isinstance(record, torch.Tensor):
        return record.to(DEVICE)
    if isinstance(record, dict):
        return {key: moved(value) for key, value in record.items()}
    return type(record)(*(moved(value) for value in record)) if isinstance(record, tuple) else record


def move_model(model: nn.Module) -> nn.Module:
    """A model with its constants on the device, those that are plain attributes too."""
    model = model.to(DEVICE)
    for module in model.modules():  # eSCN's grids
        plain = {name: value for name, value in vars(module).items() if torch.is_tensor(value)}
        vars(module).update(moved(plain))
    return model

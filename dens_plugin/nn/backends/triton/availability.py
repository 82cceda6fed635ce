"""Whether Triton's kernels can run here, and the parts of Triton that they are written in.

Everything else of this folder imports Triton from here, and therefore imports without it. Triton 3.0 came with torch
2.4, 3.6 with torch 2.11; the kernels use what both have.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
    from triton import jit
    from triton.language import constexpr
except ImportError:  # the CPU builds of torch, and those for macOS and Windows, come without it
    triton = tl = None
    constexpr = object

    def jit(kernel: Callable[..., Any]) -> Callable[..., Any]:
        """Leave a kernel as it is: nothing calls it."""
        return kernel


__all__ = ["STORAGE", "constexpr", "jit", "launch", "tl", "triton_reason", "uses_triton"]

_OLDEST_TRITON = (3, 0)
# Storage types with the compute capability that they need; the arithmetic is float32 in each.
STORAGE = {torch.float32: (7, 0), torch.float16: (7, 0), torch.bfloat16: (8, 0)}


def triton_reason(dtype: torch.dtype = torch.float32, device: torch.device | int | None = None) -> str | None:
    """Why tensors of this type and device are computed by plain torch, or None where Triton's kernels compute them.

    The last check runs a kernel of one element: what a driver, a missing C compiler or missing headers of Python forbid
    shows there, once, and not in the middle of a step.

    Args:
        dtype: the storage type of the tensors.
        device: a CUDA device; by default the current one.
    """
    if dtype not in STORAGE:
        return f"the kernels do not store {str(dtype).removeprefix('torch.')}"
    if triton is None:
        return "Triton is not installed"
    if _version(triton.__version__) < _OLDEST_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, _OLDEST_TRITON))}"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    index = torch.cuda.current_device() if device is None else torch.device(device).index
    capability = torch.cuda.get_device_capability(index)
    if capability < STORAGE[dtype]:
        name = str(dtype).removeprefix("torch.")
        return f"compute capability {_dotted(capability)} is below the {_dotted(STORAGE[dtype])} that {name} needs"
    return _probe(index)


def uses_triton(tensor: torch.Tensor) -> bool:
    """Whether the kernels compute this tensor: a CUDA tensor of a storage type, on a device that runs them."""
    return tensor.is_cuda and triton_reason(tensor.dtype, tensor.device) is None


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], **constants: Any) -> None:
    """Run a kernel on the device of its first argument; an empty grid is no launch.

    Args:
        kernel: a function under `jit`.
        grid: number of programs along each axis.
        arguments: tensors and numbers, by position.
        constants: compile-time constants, and `num_warps`.
    """
    if all(grid):
        run(kernel, grid, arguments, constants)


def run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Run a kernel: all launches come by here, so that a test may look at them."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


@jit
def _add_one(number):  # type: ignore[no-untyped-def]
    tl.store(number, tl.load(number) + 1)


@functools.cache
def _probe(index: int | None) -> str | None:
    """What keeps the smallest kernel from running on a device."""
    number = torch.zeros(1, device=torch.device("cuda", index))
    try:
        launch(_add_one, (1,), (number,))
    except Exception as error:  # whatever it is, plain torch computes the same
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"Triton cannot build or run a kernel here: {first_line}"
    return None if number.item() == 1 else "Triton's kernels compute wrong numbers here"

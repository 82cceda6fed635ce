"""Which machine's code computes with some tensors."""

from __future__ import annotations

import enum

import torch

from dens_plugin.nn.backends.cpu.team import uses_loops
from dens_plugin.nn.backends.triton.availability import uses_triton


class Machine(enum.Enum):
    """Whose code computes: plain torch's, the loops of `cpu`, or the kernels of `triton`."""

    PLAIN = "plain torch"
    CPU = "loops for a CPU"
    TRITON = "kernels of Triton's"


def machine_for(*tensors: torch.Tensor) -> Machine:
    """Loops for float32 on a CPU, kernels for what they store on a GPU, plain torch for everything else."""
    if tensors[0].is_cuda:
        return Machine.TRITON if all(uses_triton(tensor) for tensor in tensors) else Machine.PLAIN
    return Machine.CPU if uses_loops(*tensors) else Machine.PLAIN

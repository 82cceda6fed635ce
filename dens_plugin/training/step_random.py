"""The random numbers of a step as a function of seed, step and rank.

Dropout, stochastic depth and edge frames draw from torch's global generator. Seeded anew for every step, they are the
same whether the run was interrupted or not, and whatever an evaluation drew between two steps.
"""

from __future__ import annotations

import hashlib

import torch
from fairchem.core.common import distutils, gp_utils


def seed_step(seed: int, step: int, stage: str) -> None:
    """Seed torch's global generators, of all devices in use, for one step.

    Ranks draw different numbers, but for those that share a graph and so must agree on it.

    Args:
        seed: the run's.
        step: of training, from 1.
        stage: what is done in it, as "train" or "val"; each has numbers of its own.
    """
    rank = gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()
    digest = hashlib.blake2b(f"{seed}/{step}/{stage}/{rank}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    if torch.cuda.is_initialized():
        torch.manual_seed(number)
    else:  # torch would note the call stack for a GPU that may come later, which takes longer than some layers
        torch.default_generator.manual_seed(number)

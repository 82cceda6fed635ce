"""Edges in two orders, so that sums over them need neither atomics nor luck: each atom adds its own, one by one."""

from __future__ import annotations

from typing import NamedTuple

import torch


class EdgesByAtom(NamedTuple):
    """Edges sorted by target, with a second order by source; made by `edges_of` once per graph.

    Attributes:
        source: (E,) atom at which an edge starts.
        target: (E,) atom at which it ends, not decreasing.
        offsets: (N+1,) edges offsets[n] ... offsets[n+1]-1 end at atom n.
        by_source: (E,) numbers of the edges sorted by source.
        source_offsets: (N+1,) by_source[source_offsets[n] ... source_offsets[n+1]-1] start at atom n.
    """

    source: torch.Tensor
    target: torch.Tensor
    offsets: torch.Tensor
    by_source: torch.Tensor
    source_offsets: torch.Tensor


def edges_of(source: torch.Tensor, target: torch.Tensor, atoms: int) -> EdgesByAtom:
    """Order edges, without waiting for the device.

    Args:
        source: (E,) indices below `atoms`.
        target: (E,) indices below `atoms`, sorted.
        atoms: N; atoms may be without edges.
    """
    starts = torch.arange(atoms + 1, device=target.device, dtype=target.dtype)
    sources, by_source = torch.sort(source, stable=True)
    return EdgesByAtom(
        source.contiguous(),
        target.contiguous(),
        torch.searchsorted(target.contiguous(), starts),
        by_source,
        torch.searchsorted(sources, starts),
    )

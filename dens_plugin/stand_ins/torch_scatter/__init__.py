"""The part of torch-scatter's interface that fairchem-core 1.10 uses, on PyG's own scatter and segment."""

from __future__ import annotations

import torch
from torch_geometric.utils import scatter as _pyg_scatter
from torch_geometric.utils import segment as _pyg_segment

from . import utils

__version__ = "0.0.0+dens_plugin"
__all__ = ["scatter", "segment_coo", "segment_csr", "utils"]


def scatter(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    """Reduce ``src`` along ``dim`` into the rows named by ``index``; empty rows are zero.

    Args:
        src: values, any shape.
        index: (src.shape[dim],) or broadcastable to ``src``, int64.
        dim: the dimension to reduce.
        out: added to the result of a sum; not supported for other reductions.
        dim_size: rows of the result; one more than the largest index where not given.
        reduce: ``sum`` (or ``add``), ``mean``, ``mul``, ``min`` or ``max``.

    Raises:
        NotImplementedError: for an index that differs along other dimensions, or ``out`` with another reduction.
    """
    dim = src.dim() + dim if dim < 0 else dim
    if out is not None:
        if reduce not in ("sum", "add"):
            raise NotImplementedError(f"this stand-in supports `out` for sums only, not reduce='{reduce}'")
        return out + scatter(src, index, dim, dim_size=out.shape[dim], reduce="sum")
    return _pyg_scatter(src, _flat(index, dim), dim, dim_size, reduce)


def segment_coo(
    src: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    """`scatter` for a sorted index over its last dimension."""
    return scatter(src, index, index.dim() - 1, out, dim_size, reduce)


def segment_csr(
    src: torch.Tensor, indptr: torch.Tensor, out: torch.Tensor | None = None, reduce: str = "sum"
) -> torch.Tensor:
    """Reduce the slices ``src[indptr[i]:indptr[i + 1]]``."""
    if out is not None:
        raise NotImplementedError("this stand-in of segment_csr does not support `out`; install torch-scatter")
    return _pyg_segment(src, indptr, reduce)


def _flat(index: torch.Tensor, dim: int) -> torch.Tensor:
    """The (src.shape[dim],) index behind an index that was broadcast over the other dimensions."""
    if index.dim() == 1:
        return index
    index = index.movedim(dim, 0).flatten(1)
    if not torch.equal(index, index[:, :1].expand_as(index)):
        raise NotImplementedError("this stand-in of torch_scatter needs one index per row; install torch-scatter")
    return index[:, 0]

"""A name for fairchem-core to import where torch-sparse is not installed; using it says what is missing."""

from __future__ import annotations

__version__ = "0.0.0+dens_plugin"
__all__ = ["SparseTensor"]


class SparseTensor:
    """Stands for ``torch_sparse.SparseTensor``, which GemNet and DimeNet++ need and no DeNS model does."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise ImportError(
            "this model (GemNet, GemNet-OC or DimeNet++) needs the package torch-sparse, which is not installed; "
            "run `pip install torch-sparse --no-build-isolation` with a compiler, or use EquiformerV2 or eSCN"
        )

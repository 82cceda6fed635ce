"""What all heads share: which of their outputs a batch asks for, on which rows, and nothing else is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from dens_plugin.fields import rows_of

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows

Asked = dict[str, "Rows | None"]  # output -> its rows, None for all of them


class RowHead:
    """A head with one output. Put it before fairchem's class; the heir says only how some rows are computed.

    A batch that no training loader prepared asks for everything but what is `auxiliary`. A prepared batch asks for the
    outputs that it lists rows of, and for no other: a head none of whose outputs is asked for returns nothing.

    Attributes:
        output_name: what it predicts.
        level: whether its rows are atoms or structures.
        auxiliary: whether it serves training alone, as a head for noise does.
    """

    output_name: str
    level: ClassVar[Literal["atom", "structure"]] = "atom"
    auxiliary: ClassVar[bool] = False

    @property
    def output_names(self) -> tuple[str, ...]:
        """All that it may predict."""
        return (self.output_name,)

    def asked(self, data: Batch) -> Asked:
        """Those of `output_names` that a batch asks for."""
        rows = rows_of(data)
        if rows is None:
            return {} if self.auxiliary else dict.fromkeys(self.output_names)
        return {name: rows[name] for name in self.output_names if name in rows}

    def forward(self, data: Batch, emb: dict[str, Any]) -> dict[str, torch.Tensor]:
        """{output: (N, k) or (B,)} in normalised units, of what is asked for."""
        asked = self.asked(data)
        return self.predict(data, emb, asked) if asked else {}

    def predict(self, data: Batch, emb: dict[str, Any], asked: Asked) -> dict[str, torch.Tensor]:
        """Everything asked for, which is not nothing; heads with several outputs override it."""
        rows = asked[self.output_name]
        if rows is not None and rows.chosen is None and self.level == "atom":
            rows = rows.listed()
        return {self.output_name: where_it_counts(self.values(data, emb, rows), rows)}

    def values(self, data: Batch, emb: dict[str, Any], rows: Rows | None) -> torch.Tensor:
        """(n, k) for the n rows of ``rows.where()`` in their order; or for all of them, whichever costs less.

        Args:
            data: the batch.
            emb: what the backbone returned.
            rows: those that count, None for all.
        """
        raise NotImplementedError


def where_it_counts(values: torch.Tensor, rows: Rows | None) -> torch.Tensor:
    """Values of all rows or of ``rows.where()``, in a tensor of all rows which is zero where they do not count."""
    if rows is None:
        return values
    if len(values) != len(rows.mask):
        return values.new_zeros(len(rows.mask), *values.shape[1:]).index_copy(0, rows.where(), values)
    return torch.where(rows.mask.view(-1, *[1] * (values.dim() - 1)), values, values.new_zeros(()))

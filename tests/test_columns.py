"""Tables on a terminal."""

from __future__ import annotations

from dens_plugin.columns import aligned


def test_columns_are_as_wide_as_their_cells():
    rows = [["", "MAE", "RMSE"], ["forces", "4,210,059.4", "4,210,059.4"], ["energy", "1.0", "2.0"]]
    assert aligned(rows, left=1) == [
        "                MAE         RMSE",
        "forces  4,210,059.4  4,210,059.4",
        "energy          1.0          2.0",
    ]


def test_no_rows():
    assert aligned([]) == []

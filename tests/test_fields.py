"""The records that a batch carries."""

from __future__ import annotations

import pytest
import torch

from dens_plugin.fields import Rows

MASK = torch.tensor([False, True, True, False])


@pytest.mark.parametrize("rows", [Rows(MASK, MASK.sum()), Rows(MASK, MASK.sum()).listed()], ids=["mask", "listed"])
def test_rows_that_count(rows):
    assert rows.where().tolist() == [1, 2]


def test_a_list_of_another_mask_is_refused():
    rows = Rows(MASK, MASK.sum()).listed()
    for mask in (~MASK, torch.ones_like(MASK)):
        with pytest.raises(ValueError, match=r"lists 2 rows or edges that count, and its mask .* \(`Rows.listed`\)"):
            rows._replace(mask=mask).where()

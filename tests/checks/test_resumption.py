from __future__ import annotations

import pytest

from dens_plugin.checks.resumption import is_finished


@pytest.mark.parametrize(("epoch", "finished"), [(2.9, False), (3.0, True), (4.0, True)])
def test_all_epochs_are_done(epoch, finished):
    assert is_finished({"epoch": epoch}, {"max_epochs": 3}) == finished


def test_weights_alone_are_a_beginning():
    assert not is_finished({}, {"max_epochs": 3})

import pytest
from fairchem.core.common.data_parallel import StatefulDistributedSampler

from dens_plugin.training.loading import EpochOrder


@pytest.mark.parametrize("size", [1, 2, 7, 12, 10_001])
@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"drop_last": True}], ids=str)
def test_is_fairchems(size, options):
    """On every rank, in every epoch, from every start."""
    for rank in range(3):
        arguments = {"batch_size": 2, "num_replicas": 3, "rank": rank, "seed": 5, "shuffle": True} | options
        host = StatefulDistributedSampler(range(size), **arguments)
        ours = EpochOrder.of(host)
        assert len(ours) == len(host)
        for epoch, start in ((0, 0), (1, 0), (2, 1)):
            host.set_epoch_and_start_iteration(epoch, start)
            ours.set_epoch_and_start_iteration(epoch, start)
            assert list(ours) == list(host)

"""Random networks of every operation: pruned equals masked, always; random_net.py checks more of them."""

import pytest
from random_moves import OPERATIONS
from random_net import Statistics, run


def assert_telling(statistics: Statistics, share: float) -> None:
    """The networks were worth checking: channels left, joins were met, every operation was there."""
    assert statistics.lost_channels >= 0.8 * statistics.graphs
    assert statistics.joined >= 0.3 * statistics.graphs
    assert statistics.trained >= 0.5 * statistics.graphs
    assert statistics.constant_outputs <= 0.3 * statistics.graphs
    assert set(statistics.containing) == OPERATIONS
    rare = {op: count for op, count in statistics.containing.items() if count < share * statistics.graphs}
    assert not rare


def test_random_networks() -> None:
    assert_telling(run(120, seed=0), share=0.01)


@pytest.mark.long
def test_many_random_networks() -> None:
    assert_telling(run(500, seed=1), share=0.05)

"""How often the seam rule loses, doubles or keeps what it should not, with a detector that errs."""

import pytest
from erring import simulate


@pytest.fixture(scope="module")
def total():
    """Counts over a few scenes, always the same ones."""
    return simulate(scenes=5, side=2048, seed=0)


def test_scenes_hold_enough_to_count(total):
    """Protects the rates below from being about a handful of objects."""
    assert total["small"] + total["middle"] + total["large"] > 150
    assert total["companion"] > 20 and total["knot"] > 20


def test_none_is_doubled(total):
    """Protects users from counting a galaxy twice, whatever the detector does."""
    assert total["doubled"] == 0


@pytest.mark.parametrize("kind, most", [("small", 0.01), ("middle", 0.01), ("large", 0.05), ("companion", 0.1)])
def test_few_are_lost(total, kind, most):
    """Protects completeness: far fewer are lost than the 3 % that the detector misses in each tile."""
    assert total[f"{kind} lost"] <= most * total[kind]


def test_most_knots_go(total):
    """Protects purity: what only the finest level shows, now and then, in the middle of a disc, gets no row."""
    assert total["knot kept"] <= 0.25 * total["knot"]

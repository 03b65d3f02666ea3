"""Logits to probabilities."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from surveycat.mrcnn.config import Calibration


@given(
    st.floats(0.001, 0.999), st.floats(-8, 8), st.floats(-8, 6), st.floats(0.2, 2), st.floats(0, 1), st.floats(-3, 3)
)
def test_what_is_left_out_could_not_have_reached_the_score(score, box, galaxy, weight, other, bias):
    """Boxes below the limit are never asked for their class: none of them may belong into the catalogue."""
    calibration = Calibration(weight, other, bias, galaxy_most=6.0)
    probability = 1 / (1 + math.exp(-calibration.galaxy_logit(box, galaxy)))
    if box < calibration.least_box_logit(score) - 1e-6:
        assert probability < score


def test_no_wanted_score_leaves_nothing_out():
    """Score 0 asks for everything; without a largest second opinion nothing can be left out either."""
    assert Calibration(galaxy_most=6.0).least_box_logit(0.0) == -math.inf
    assert Calibration().least_box_logit(0.5) < -1e8
    assert np.isfinite(Calibration(galaxy_most=6.0).least_box_logit(1.0))

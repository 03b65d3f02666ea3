"""Levels are averages of blocks, whatever the size of the image."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from surveycat.levels import halve, level_shape


def rows_of(array):
    """What `halve` reads from."""
    return lambda y0, y1: array[y0:y1]


sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


def block_average(image, level):
    """Average of blocks of 2^level pixels as one would write it down.

    The last blocks average what they have.
    """
    step = 2**level
    height, width = level_shape(image.shape[:2], level)
    return np.array(
        [
            [image[y * step : (y + 1) * step, x * step : (x + 1) * step].mean(axis=(0, 1)) for x in range(width)]
            for y in range(height)
        ]
    )


@settings(max_examples=40, deadline=None)
@given(shape=sizes, level=st.integers(1, 5), strip=st.sampled_from([1, 100, 10**6]), seed=st.integers(0, 99))
def test_levels_are_averages_of_blocks(shape, level, strip, seed):
    """Made one from the other in strips, a level equals the average of its pixels, ragged edges included."""
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.float32)
    current = image
    for below in range(level):
        current = np.concatenate(list(halve(rows_of(current), shape, below, strip)))
    assert current.shape == (*level_shape(shape, level), 3)
    np.testing.assert_allclose(current, block_average(image, level), atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(shape=st.tuples(st.integers(1, 100000), st.integers(1, 100000)), level=st.integers(0, 12))
def test_level_shape_is_the_size_rounded_up(shape, level):
    """A level covers the whole image, and no block of it is empty."""
    for n, n_blocks in zip(shape, level_shape(shape, level), strict=True):
        assert (n_blocks - 1) * 2**level < n <= n_blocks * 2**level

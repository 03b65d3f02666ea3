"""The painted fields themselves: a test of the tool is only as good as its truth."""

import numpy as np
from simulate import simulate_field


def window_of(row):
    """Where in the image the mask of a row lies."""
    height, width = row["mask"].shape
    return np.s_[row["y0"] : row["y0"] + height, row["x0"] : row["x0"] + width]


def test_same_seed_same_field():
    """A figure quoted for a seed must be there again tomorrow."""
    one, two = (simulate_field((200, 200), 2, 2, 3, seed=4) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1]["x"], two[1]["x"])
    assert not np.array_equal(one[0], simulate_field((200, 200), 2, 2, 3, seed=5)[0])


def test_truth_is_where_the_light_is():
    """Each mask is bright, its centroid is the row's position, and beyond all masks there is sky."""
    image, truth = simulate_field((400, 400), 5, 5, 0, seed=1)
    sky = np.ones(image.shape[:2], bool)
    for row in truth:
        window = window_of(row)
        light = np.where(row["mask"], image[window][..., 1].astype(float), 0)
        y, x = np.indices(light.shape)
        assert row["mask"].sum() == row["area"] > 0
        assert light[row["mask"]].mean() > 20
        # Asinh lets faint outskirts weigh more than in flux: within a pixel is all one can ask.
        assert abs((light * x).sum() / light.sum() + row["x0"] - row["x"]) < 1
        assert abs((light * y).sum() / light.sum() + row["y0"] - row["y"]) < 1
        sky[window] &= ~row["mask"]
    assert image[sky].mean() < 15


def test_ellipticals_are_redder_and_counts_are_kept():
    """Colours are those of real galaxies: early types have more red than blue."""
    image, truth = simulate_field((600, 600), 6, 6, 10, seed=2, n_faint=7)
    assert len(truth) == 19 and len(truth.meta["stars"]) == 10
    redness = {"spiral": [], "elliptical": []}
    for row in truth[:12]:
        window = window_of(row)
        pixels = image[window][row["mask"]].astype(float).mean(axis=0)
        redness[row["class"]].append(pixels[0] / pixels[2])
    assert min(redness["elliptical"]) > np.median(redness["spiral"])


def test_sky_is_as_dark_and_noisy_as_that_of_sdss():
    """Median, 90th and 99th percentile of empty sky in the real picture of run 4192: 6, 20 and 33 in red."""
    image, _ = simulate_field((300, 300), 0, 0, 0, seed=3)
    assert np.allclose(np.percentile(image[..., 0], [50, 90, 99]), [6, 20, 33], atol=3)

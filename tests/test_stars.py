"""The size of stars, and what is no larger, on artificial fields and a real one."""

import numpy as np
import pytest
import shapely
from test_measure import FakeImage, gaussian, make_objects

from surveycat import measure
from surveycat.catalog import FLAGS
from surveycat.stars import _windows, stars


def star_field(stretch=None, n_stars=40, n_galaxies=40, seed=6):
    """Stars of sigma 1.3 px and round galaxies of 1.4 to 3 times that size, over a range of fluxes."""
    rng = np.random.default_rng(seed)
    shape, step = (560, 560), 48
    spots = [(x, y) for x in range(30, 540, step) for y in range(30, 540, step)]
    rng.shuffle(spots)
    data = rng.normal(0, 1, shape)
    sigmas = [1.3] * n_stars + list(1.3 * rng.uniform(1.5, 3, n_galaxies))
    places = []
    for (x, y), sigma in zip(spots, sigmas, strict=False):
        x, y = x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5)
        flux = 10 ** rng.uniform(3.2, 4.2) * (sigma / 1.3)
        y0, x0 = int(y) - 20, int(x) - 20
        data[y0 : y0 + 41, x0 : x0 + 41] += gaussian((41, 41), x - x0, y - y0, sigma, flux=flux)
        places.append((x, y, sigma))
    if stretch:
        data = np.clip(np.rint(255 * np.arcsinh(data / 20) / np.arcsinh(2000 / 20) + 4), 0, 255)
    return data, places


@pytest.mark.parametrize("stretch", [False, True])
def test_unresolved_objects_are_flagged(stretch):
    """Stars get the flag and galaxies 1.5 times as large do not, on linear data and in a picture."""
    data, places = star_field(stretch)
    image = FakeImage({"r": data}, picture=stretch)
    rows, columns = np.indices((31, 31)) - 15
    masks = [np.hypot(rows, columns) < 2.5 * sigma for *_, sigma in places]
    origins = [(round(y) - 15, round(x) - 15) for x, y, _ in places]
    table = measure.measure(make_objects(masks, origins), image)
    flagged = (table["flags"] >> FLAGS["unresolved"] & 1).astype(bool)
    is_star = np.array([sigma == 1.3 for *_, sigma in places])
    assert flagged[is_star].mean() >= 0.95
    assert flagged[~is_star].mean() <= (0.1 if stretch else 0.0)


def test_too_few_stars_flag_nothing():
    """No stars to compare with: no flag, rather than a guess."""
    data, places = star_field(n_stars=3, n_galaxies=2)
    image = FakeImage({"r": data})
    assert np.isnan(stars(image).radius(100.0))
    x, y, _ = places[0]
    table = measure.measure(make_objects([np.ones((9, 9), bool)], [(round(y) - 4, round(x) - 4)]), image)
    assert not table["flags"][0] >> FLAGS["unresolved"] & 1


def test_star_windows_are_bounded():
    """A survey mosaic costs no more than 9 windows, inside of the image and apart from each other."""
    for shape in [(40, 50), (600, 500), (2048, 1489), (60_000, 80_000)]:
        windows = _windows(shape)
        assert 1 <= len(windows) <= 9
        squares = [shapely.box(*window) for window in windows]
        assert shapely.union_all(squares).area == sum(square.area for square in squares)
        assert shapely.box(0, 0, *shape).contains(shapely.union_all(squares))


@pytest.mark.parametrize("name", ["blank", "tiny", "nan"])
def test_no_stars_at_all(name):
    """Empty, tiny and dataless images have no stars, and say so."""
    data = {"blank": np.zeros((300, 300)), "tiny": np.ones((5, 4)), "nan": np.full((90, 90), np.nan)}[name]
    assert np.isnan(stars(FakeImage({"r": data})).intercept)


def test_stars_and_galaxies_of_a_real_field(shared_data):
    """On the frames of Stripe 82 the flag tells the listed stars from the listed galaxies."""
    from astropy.io import fits
    from astropy.table import Table

    folder = shared_data / "fields" / "sdss_351.65+0.10_run4192"
    data = fits.getdata(folder / "fpC-004192-r4-0300.fit.gz").astype(np.float32)
    image = FakeImage({"r": data})
    rates = {}
    for name, magnitude in (("stars.csv", "psfmag_r"), ("galaxies.csv", "petromag_r")):
        rows = Table.read(folder / name)
        rows = rows[(rows["edge_px"] > 20) & (rows[magnitude] < 20.5)]
        rows = rows[rows["saturated"] == 0] if "saturated" in rows.colnames else rows
        origins = [(round(y) - 4, round(x) - 4) for x, y in zip(rows["x"], rows["y"], strict=True)]
        table = measure.measure(make_objects([np.ones((9, 9), bool)] * len(rows), origins), image)
        rates[name] = (table["flags"] >> FLAGS["unresolved"] & 1).mean()
    assert rates["stars.csv"] >= 0.95
    assert rates["galaxies.csv"] <= 0.02

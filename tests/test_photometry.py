"""Apertures, errors and concentration of linear data, against photutils, injected noise and injected sources."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_measure import FakeImage, gaussian, make_objects

from surveycat import measure
from surveycat.calibration import Calibration
from surveycat.catalog import FLAGS
from surveycat.footprint import Footprint
from surveycat.photometry import MANY, Crowd, concentration, gini, likelihood_ratio, median, mirrored, sky_and_noise
from surveycat.stars import Stars

NOISE = 2.0


def exponential(shape, x, y, scale, ratio=1.0, flux=1.0):
    """Disc with an exponential profile, blurred by a PSF of 3 px FWHM."""
    rows, columns = np.indices(shape)
    radius = np.hypot(columns - x, (rows - y) / ratio)
    light = ndimage.gaussian_filter(np.exp(-radius / scale), 1.27)
    return flux * light / light.sum()


def scene(seed=0, places=((60, 60, 4, 0.6, 30_000), (160, 70, 3, 1, 20_000), (110, 150, 6, 0.5, 80_000))):
    """Galaxies on a noisy sky: image without sky and noise, image, masks at 1.5 sigma, their corners."""
    clean = sum(exponential((220, 220), *place) for place in places)
    image = clean + np.random.default_rng(seed).normal(50, NOISE, clean.shape)
    labels, _ = ndimage.label(clean > 1.5 * NOISE)
    slices = ndimage.find_objects(labels)
    masks = [labels[where] == number for number, where in enumerate(slices, 1)]
    return clean, image, labels, masks, [(where[0].start, where[1].start) for where in slices]


def test_kron_fluxes_and_radii_agree_with_photutils():
    """Flux, half-light radius and aperture of isolated galaxies are those of photutils within 2 % (5 % the radii)."""
    from photutils.segmentation import SegmentationImage, SourceCatalog

    _, image, labels, masks, origins = scene()
    table = measure.measure(make_objects(masks, origins), FakeImage({"r": image}))
    reference = SourceCatalog(image - 50, SegmentationImage(labels))
    np.testing.assert_allclose(table["flux_kron_r"], reference.kron_flux, rtol=0.02)
    np.testing.assert_allclose(table["r50_pix"].value, reference.flux_radius(0.5).value, rtol=0.05)
    theirs = 2.5 * reference.kron_radius.value * reference.semimajor_axis.value
    np.testing.assert_allclose(table["kron_radius_pix"].value, theirs, rtol=0.05)
    np.testing.assert_allclose(table["gini"], reference.gini, rtol=0.02)


def test_kron_flux_is_nearly_all_of_the_light():
    """An exponential disc has 94 % or more of its light in the aperture, and the magnitude follows from it."""
    _, image, _, masks, origins = scene()
    view = FakeImage({"r": image})
    view.calibration = {"r": Calibration(0.01, "FLUX20")}
    table = measure.measure(make_objects(masks, origins), view)
    order = np.argsort(table["x"])
    np.testing.assert_allclose(table["flux_kron_r"][order], [30_000, 80_000, 20_000], rtol=0.06)
    np.testing.assert_allclose(table["mag_r"].value, 22.5 - 2.5 * np.log10(table["flux_kron_r"] * 0.01), atol=1e-4)
    np.testing.assert_allclose(table["mag_err_r"].value, 1.0857 * table["flux_kron_err_r"] / table["flux_kron_r"], 1e-3)


def test_errors_are_the_scatter_of_repeated_measurements():
    """Over 60 realisations of the noise, the scatter of fluxes is what the error columns say, to a third.

    That of positions is up to 1.6 times theirs, for the window in which a centre is found follows the noise too.
    """
    clean, _, _, masks, origins = scene()
    objects, rows = make_objects(masks, origins), []
    for seed in range(60):
        image = FakeImage({"r": clean + np.random.default_rng(seed).normal(50, NOISE, clean.shape)})
        table = measure.measure(objects, image, Stars())
        rows.append([np.asarray(table[name]) for name in ("flux_r", "flux_kron_r", "x", "y")])
    scatter = np.std(rows, axis=0)
    names = {"flux_err_r": 0.35, "flux_kron_err_r": 0.35, "x_err": 0.65, "y_err": 0.65}
    for found, (name, tolerance) in zip(scatter, names.items(), strict=True):
        np.testing.assert_allclose(found, np.asarray(table[name]), rtol=tolerance, err_msg=name)


def test_gain_adds_the_photons():
    """With a gain the error of a bright source is that of its photons."""
    _, image, _, masks, origins = scene()
    view = FakeImage({"r": image})
    without = measure.measure(make_objects(masks, origins), view)
    view.calibration = {"r": Calibration(gain=0.5)}
    table = measure.measure(make_objects(masks, origins), view)
    photons = table["flux_err_r"] ** 2 - without["flux_err_r"] ** 2
    np.testing.assert_allclose(photons, table["flux_r"] / 0.5, rtol=1e-3)


def test_colours_come_from_one_aperture():
    """A galaxy twice as bright in another band has twice the Kron flux there, to 1 %, though it is faint in it."""
    clean, image, _, masks, origins = scene()
    faint = 0.3 * clean + np.random.default_rng(9).normal(20, 0.1, clean.shape)
    table = measure.measure(make_objects(masks, origins), FakeImage({"g": faint, "r": image}))
    np.testing.assert_allclose(table["flux_kron_g"] / table["flux_kron_r"], 0.3, rtol=0.03)


def test_a_band_without_data_there_has_no_flux():
    """Where a band has no data below a galaxy its flux and magnitude are NaN, and those of the others are not."""
    clean, image, _, masks, origins = scene()
    holed = image.copy()
    holed[:, :110] = np.nan
    table = measure.measure(make_objects(masks, origins), FakeImage({"g": holed, "r": image}))
    assert np.isnan(table["flux_kron_g"]).tolist() == (table["x"].value < 130).tolist()
    assert np.isfinite(table["flux_kron_r"]).all()


# --- pixels of one's own ---


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(2, 14)), min_size=2, max_size=5))
def test_overlapping_objects_share_no_pixel(circles):
    """Whatever overlaps, each pixel of the union belongs to exactly one object, in every window that shows it."""
    rows, columns = np.indices((60, 60))
    masks = [np.hypot(rows - y - 8, columns - x - 8) < radius for y, x, radius in circles]
    prints = [Footprint.from_mask(mask, (0, 0), 0, (60, 60)) for mask in masks]
    crowd = Crowd(prints, np.full(len(prints), -1))
    box = (0, 0, 60, 60)
    own = [crowd.split(number, box, 0)[0] for number in range(len(prints))]
    assert np.array_equal(np.sum(own, axis=0) == 1, np.any(masks, axis=0))
    assert max(np.sum(own, axis=0).max(), 1) == 1
    part = (10, 5, 40, 47)
    for number, whole in enumerate(own):
        mine, others = crowd.split(number, part, 0)
        assert np.array_equal(mine, whole[10:40, 5:47]) and not (mine & others).any()


def test_a_companion_has_its_pixels_and_its_host_loses_them():
    """The light of a companion on a disc counts once; the Kron flux of the host is mended from its other side."""
    disc = exponential((160, 160), 80, 80, 8, flux=100_000)
    knot = gaussian((160, 160), 95, 80, 1.5, flux=6_000)
    image = disc + knot + np.random.default_rng(3).normal(10, 1, disc.shape)
    masks = [disc > 3, knot > 30]
    table = measure.measure(make_objects(masks, [(0, 0)] * 2, hosts=[-1, 0]), FakeImage({"r": image}), Stars())
    both = masks[0] & masks[1]
    assert table["flux_r"][0] == pytest.approx(disc[masks[0] & ~both].sum(), rel=0.02)
    alone = measure.measure(make_objects(masks[:1], [(0, 0)]), FakeImage({"r": image - knot}), Stars())
    assert table["flux_kron_r"][0] == pytest.approx(alone["flux_kron_r"][0], rel=0.02)
    assert table["x"][0].value == pytest.approx(80, abs=0.2)


def test_masks_that_cover_each_other_entirely():
    """An object all of whose pixels another one has gets no light but a row and a place."""
    masks = [np.ones((9, 9), bool)] * 2
    table = measure.measure(make_objects(masks, [(20, 20)] * 2), FakeImage({"r": np.ones((60, 60))}), Stars())
    assert table["x"].value == pytest.approx([24, 24]) and table["flux_r"][1] == 0


def test_mirrored_pixels():
    """A gap in a symmetric source is filled exactly; where the other side is bad too, with nothing."""
    light = gaussian((41, 41), 20, 20, 4, flux=1000)
    bad = np.zeros(light.shape, bool)
    bad[18:25, 24:30] = True
    np.testing.assert_allclose(mirrored(np.where(bad, 99, light), bad, 20, 20), light)
    everywhere = bad | bad[::-1, ::-1]
    assert (mirrored(light, everywhere, 20, 20)[everywhere] == 0).all()


def test_gini_of_extremes():
    """0 for equal pixels, 1 for one that has it all, NaN without light or with a single pixel."""
    assert gini(np.ones(50)) == pytest.approx(0)
    assert gini(np.eye(1, 50)[0]) == pytest.approx(1)
    assert np.isnan(gini(np.zeros(5))) and np.isnan(gini(np.ones(1)))


def test_noise_of_the_sky():
    """Level, noise and the error of the level come back from a sky with objects in it; none from too few pixels."""
    values = np.random.default_rng(0).normal(30, 4, (100, 100))
    values[40:50, 40:50] += 500
    sky, noise, error = sky_and_noise(values, np.ones(values.shape, bool))
    assert sky == pytest.approx(30, abs=0.15) and noise == pytest.approx(4, rel=0.03)
    assert error == pytest.approx(0.04, rel=0.05)
    assert np.isnan(sky_and_noise(values, np.zeros(values.shape, bool))[1:]).all()


@pytest.mark.parametrize("n", [1, 2, 301, MANY, MANY + 1])
@pytest.mark.parametrize("kind", ["noise", "steps", "sorted", "constant", "sample misleads"])
def test_median_is_that_of_numpy(n, kind):
    """The short cut for many values is exact, also where the sample at which it looks first misleads."""
    values = np.random.default_rng(n).normal(100, 20, n).astype(np.float32)
    values = {"noise": values, "steps": np.rint(values), "sorted": np.sort(values), "constant": np.full(n, 3.5),
              "sample misleads": np.where(np.arange(n) % 16, values, 1e4)}[kind]  # fmt: skip
    assert median(values) == np.median(values)


# --- stars and galaxies ---


def stars_and_galaxies(fwhm, seed):
    """Image with 60 stars and 60 small galaxies behind the same PSF; their masks, corners, and which are stars."""
    rng, sigma, shape = np.random.default_rng(seed), fwhm / 2.355, (900, 900)
    image, masks, origins = rng.normal(100, 5, shape), [], []
    for number, (row, column) in enumerate(np.ndindex(11, 11)):
        y, x = 45 + row * 80 + rng.uniform(-3, 3), 45 + column * 80 + rng.uniform(-3, 3)
        flux, cut = 10 ** rng.uniform(3.4, 4.6), np.s_[int(y) - 40 : int(y) + 40, int(x) - 40 : int(x) + 40]
        local = x - int(x) + 40, y - int(y) + 40
        if number % 2:
            light = gaussian((80, 80), *local, sigma, flux=flux)
        else:
            light = ndimage.gaussian_filter(exponential((80, 80), *local, rng.uniform(1.5, 3), 0.7, flux), sigma / 2)
        image[cut] += light[: image[cut].shape[0], : image[cut].shape[1]]
        mask = light > 4
        masks.append(mask)
        origins.append((int(y) - 40, int(x) - 40))
    return image, masks, origins, np.arange(len(masks)) % 2 == 1


@pytest.mark.parametrize("fwhm", [2.6, 3.2, 4.0])
def test_point_sources_lose_their_score(fwhm):
    """Of 60 stars at most one keeps a score of 0.5, and no galaxy loses it, whatever the PSF."""
    image, masks, origins, star = stars_and_galaxies(fwhm, seed=int(fwhm * 10))
    table = measure.measure(make_objects(masks, origins), FakeImage({"r": image}))
    flagged = table["flags"] >> FLAGS["point_source"] & 1 == 1
    assert (np.asarray(table["score"])[star] >= 0.5).sum() <= 1
    assert (np.asarray(table["score"])[~star] >= 0.5).all()
    assert not flagged[~star].any() and flagged[star].sum() >= star.sum() - 1
    assert np.median(table["conc_excess"][star].value) == pytest.approx(0, abs=0.03)


def test_a_large_galaxy_with_a_nucleus_like_a_star_keeps_its_score(monkeypatch):
    """What is measured on averages is no point source, however sharp its middle: it gets no concentration."""
    image, *_ = stars_and_galaxies(3.0, seed=5)
    galaxy = gaussian(image.shape, 450, 450, 60, flux=400_000)
    image += galaxy + gaussian(image.shape, 450, 450, 1.27, flux=50_000)
    objects = make_objects([galaxy[::4, ::4] > 5], [(0, 0)], levels=[2])
    monkeypatch.setattr(measure, "MAX_SIDE", 256)
    table = measure.measure(objects, FakeImage({"r": image}))
    assert table["x_max"][0].value - table["x_min"][0].value > 128
    assert np.isnan(table["conc_excess"][0]) and table["score"][0] == pytest.approx(0.9)
    assert not table["flags"][0] >> FLAGS["point_source"] & 1


def test_without_stars_nothing_loses_its_score():
    """Where the PSF is not known the excess is NaN and every score stays."""
    _, image, _, masks, origins = scene()
    table = measure.measure(make_objects(masks, origins), FakeImage({"r": image}), Stars())
    assert np.isnan(table["conc_excess"]).all() and table["score"] == pytest.approx([0.9] * 3)


def test_likelihood_of_galaxies_and_stars():
    """A clear star loses, a clear galaxy and an unknown do not gain, and a larger error decides less."""
    ratio = likelihood_ratio(np.array([0.0, 0.7, 0.3, np.nan, 0.0]), np.array([0.02, 0.02, 0.03, 0.02, 0.5]))
    assert ratio[0] < 0.02 and ratio[1] == ratio[2] == ratio[3] == 1
    assert ratio[0] < ratio[4] <= 1


def test_error_of_the_concentration():
    """The error is the scatter over realisations of the noise."""
    star, rng = gaussian((25, 25), 12, 12, 1.3, flux=3000), np.random.default_rng(5)
    found = [concentration(star + rng.normal(0, 4, star.shape), 12, 12, 4) for _ in range(200)]
    values, errors = np.array(found).T
    assert values.std() == pytest.approx(errors.mean(), rel=0.2)


def test_different_psf_in_bands_is_flagged():
    """Where stars are 10 % larger in one band, colours carry a flag."""
    image, masks, origins, _ = stars_and_galaxies(3.0, seed=1)
    blurred, *_ = stars_and_galaxies(3.8, seed=1)
    for other, differs in ((image, False), (blurred, True)):
        table = measure.measure(make_objects(masks, origins), FakeImage({"g": other, "r": image}))
        assert (table["flags"] >> FLAGS["psf_unmatched"] & 1 == differs).all()


def test_pictures_have_no_photometry():
    """An 8-bit picture gets none of the columns of linear data."""
    _, image, _, masks, origins = scene()
    table = measure.measure(make_objects(masks, origins), FakeImage({"r": np.clip(image, 0, 255)}, picture=True))
    assert not {"flux_kron_r", "flux_err_r", "conc_excess", "mag_r"} & set(table.colnames)


def test_weights_give_the_errors():
    """With inverse variances the error of a flux is their sum, also where the sky says otherwise."""
    _, image, _, masks, origins = scene()
    view = FakeImage({"r": image})
    view.weight = lambda name, box: np.full((box[2] - box[0], box[3] - box[1]), 1 / 25, np.float32)
    table = measure.measure(make_objects(masks, origins), view, Stars())
    pixels = np.array([mask.sum() for mask in masks])
    assert (table["flux_err_r"] >= 5 * np.sqrt(pixels)).all()
    assert (table["flux_err_r"] <= 5.6 * np.sqrt(pixels)).all()


class Weighted(FakeImage):
    """An image with inverse variances; where these are 0 it has no data, as `Image` has it."""

    def __init__(self, planes, weights, **options):
        super().__init__({name: np.where(weights > 0, values, np.nan) for name, values in planes.items()}, **options)
        self.weights = weights

    def weight(self, name, box):
        return self.weights[box[0] : box[2], box[1] : box[3]].astype(np.float32)


def test_errors_from_uneven_weights_are_the_scatter_of_repeated_measurements():
    """Half of the image is 4 times as noisy, a line across galaxies has no data: the weights tell errors to a third."""
    clean, _, _, masks, origins = scene()
    noise = np.full(clean.shape, NOISE)
    noise[:, 110:] *= 4
    weights = 1 / noise**2
    weights[:, 61] = weights[152] = 0
    objects, rows = make_objects(masks, origins), []
    for seed in range(40):
        image = Weighted({"r": clean + np.random.default_rng(seed).normal(50, noise)}, weights)
        table = measure.measure(objects, image, Stars())
        rows.append([np.asarray(table[name]) for name in ("flux_r", "flux_kron_r")])
    scatter = np.std(rows, axis=0)
    for found, name in zip(scatter, ("flux_err_r", "flux_kron_err_r"), strict=True):
        np.testing.assert_allclose(found, np.asarray(table[name]), rtol=0.35, err_msg=name)


def test_pixels_without_weight_count_nowhere():
    """Garbage in them reaches neither flux, sky nor place; the Kron flux is mended from the other side."""
    clean, image, _, masks, origins = scene()
    bad = np.random.default_rng(2).random(clean.shape) < 0.03
    weights = np.where(bad, 0, 1 / NOISE**2)
    whole = measure.measure(make_objects(masks, origins), FakeImage({"r": image}), Stars())
    garbage = Weighted({"r": np.where(bad, 30_000, image)}, weights)
    table = measure.measure(make_objects(masks, origins), garbage, Stars())
    np.testing.assert_allclose(table["sky_r"], whole["sky_r"], atol=0.15)
    np.testing.assert_allclose(table["flux_kron_r"], whole["flux_kron_r"], rtol=0.03)
    for name in ("x", "y"):
        np.testing.assert_allclose(table[name].value, whole[name].value, atol=0.15)
    for number, (mask, (y0, x0)) in enumerate(zip(masks, origins, strict=True)):
        kept = mask & ~bad[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
        seen = image[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]][kept]
        assert table["flux_r"][number] == pytest.approx(seen.sum() - kept.sum() * table["sky_r"][number], rel=1e-4)


def test_weights_of_large_objects(monkeypatch):
    """Averaged over blocks, an object has the error that it has at full resolution, weights of 0 included."""
    clean, image, _, masks, origins = scene()
    weights = np.random.default_rng(4).uniform(0.5, 1.5, clean.shape) / NOISE**2
    weights[:, ::9] = 0
    view, objects = Weighted({"r": image}, weights), make_objects([clean[::4, ::4] > 4], [(0, 0)], levels=[2])
    fine = measure.measure(objects, view, Stars())
    monkeypatch.setattr(measure, "MAX_SIDE", 64)
    coarse = measure.measure(objects, view, Stars())
    # an average stands for the pixels of its block that have no data too, whose noise then counts
    assert coarse["flux_err_r"][0] == pytest.approx(fine["flux_err_r"][0], rel=0.15)

"""Measurements against independent ones: shapely for outlines, photutils for light, geometry for the sky."""

from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
import shapely
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_footprint import blob

from surveycat import catalog, measure
from surveycat.bands import reference_of
from surveycat.catalog import FLAGS, SCHEMA
from surveycat.detections import Detections
from surveycat.footprint import Footprint
from surveycat.photometry import sky_and_noise
from surveycat.simplify import MAX_VERTICES
from surveycat.stars import Stars


class FakeImage:
    """An image in memory, with what `measure` asks of one; `largest_read` is in pixels."""

    def __init__(self, planes, wcs=None, picture=False):
        self.planes, self.wcs, self.picture = planes, wcs, picture
        self.bands, self.calibration = list(planes), {}
        self.shape = next(iter(planes.values())).shape
        self.largest_read = 0

    def band(self, name, box):
        y0, x0, y1, x1 = box
        assert 0 <= y0 < y1 <= self.shape[0] and 0 <= x0 < x1 <= self.shape[1]
        self.largest_read = max(self.largest_read, (y1 - y0) * (x1 - x0))
        return self.planes[name][y0:y1, x0:x1].astype(np.float32)

    def weight(self, name, box):
        return None

    def pixel_to_sky(self, x, y):
        sky = self.wcs.pixel_to_world(x, y).icrs
        return sky.ra.deg, sky.dec.deg


def make_objects(masks, origins, levels=None, hosts=None):
    """Objects as stitching gives them, from a list of masks."""
    n = len(masks)
    levels = np.zeros(n, int) if levels is None else levels
    boxes = [(y, x, y + m.shape[0], x + m.shape[1]) for m, (y, x) in zip(masks, origins, strict=True)]
    found = Detections.from_masks(0, levels, boxes, np.full(n, 0.9), np.linspace(0, 1, n), masks, origins)
    return SimpleNamespace(
        detections=found,
        n_seen=np.ones(n, int),
        n_tiles=np.full(n, 2),
        host=np.full(n, -1) if hosts is None else np.array(hosts),
        flags=np.zeros(n, np.int32),
    )


def gaussian(shape, x, y, sigma_a, sigma_b=None, angle=0.0, flux=1.0):
    """Elliptical Gaussian, sampled at pixel centres; `angle` from +x to +y in degrees."""
    rows, columns = np.indices(shape)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = (columns - x) * cos + (rows - y) * sin, (rows - y) * cos - (columns - x) * sin
    sigma_b = sigma_a if sigma_b is None else sigma_b
    return flux / (2 * np.pi * sigma_a * sigma_b) * np.exp(-((along / sigma_a) ** 2 + (across / sigma_b) ** 2) / 2)


def make_wcs(shape, ra=120.0, dec=30.0, scale=0.4, rotation=0.0, mirrored=False):
    """TAN WCS; not mirrored is as on the sky: north up (+y), east left, turned by `rotation`."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = ra, dec
    wcs.wcs.crpix = shape[1] / 2 + 0.5, shape[0] / 2 + 0.5
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    flip = 1 if mirrored else -1
    wcs.wcs.cd = np.array([[flip * cos, -sin], [flip * sin, cos]]) * scale / 3600
    wcs.wcs.radesys = "ICRS"
    return wcs


# Light ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y"), [(50.0, 40.0), (50.37, 40.81), (3.2, 77.9)])
def test_light_of_a_galaxy_on_a_bright_sky(x, y):
    """Sky neither pulls the centroid to the middle of the mask nor adds to the flux, at the border too."""
    rng = np.random.default_rng(1)
    galaxy = gaussian((80, 100), x, y, 5, 3, 30, flux=50_000)
    image = FakeImage({"r": 1000 + galaxy + rng.normal(0, 3, galaxy.shape)})
    mask = galaxy > 3
    rows, columns = np.indices(mask.shape)
    mask &= columns < x + 8  # lopsided: a centroid of the mask would be off
    table = measure.measure(make_objects([mask], [(0, 0)]), image)
    light = np.where(mask, galaxy, 0)
    assert table["x_iso"][0].value == pytest.approx((light * columns).sum() / light.sum(), abs=0.05)
    assert table["y_iso"][0].value == pytest.approx((light * rows).sum() / light.sum(), abs=0.05)
    assert table["flux_r"][0] == pytest.approx(light.sum(), rel=0.01)


def test_agrees_with_photutils_on_the_same_pixels():
    """Centroid to 0.1 px; axes, angle, flux and half-light radius as photutils measures them."""
    from photutils.centroids import centroid_com
    from photutils.segmentation import SegmentationImage, SourceCatalog

    rng = np.random.default_rng(2)
    sky = rng.normal(0, 1, (120, 150))
    places = [(30.3, 40.2, 6, 3, 20), (100.8, 35.5, 4, 4, 0), (75.1, 90.7, 9, 4, -65)]
    clean = sum(gaussian(sky.shape, *place, flux=20_000) for place in places)
    labels, n = ndimage.label(clean > 3)
    slices = ndimage.find_objects(labels)
    masks = [labels[s] == i + 1 for i, s in enumerate(slices)]
    image = FakeImage({"r": clean + sky + 50})
    table = measure.measure(make_objects(masks, [(s[0].start, s[1].start) for s in slices]), image)
    reference = SourceCatalog(clean + sky, SegmentationImage(labels))
    for i in range(n):
        x, y = centroid_com(clean + sky, mask=labels != i + 1)
        assert np.hypot(table["x"][i].value - x, table["y"][i].value - y) < 0.1
    for mine, theirs in [
        ("semimajor_pix", reference.semimajor_axis),
        ("semiminor_pix", reference.semiminor_axis),
    ]:
        np.testing.assert_allclose(table[mine].value, theirs.value, rtol=0.02)
    # That of photutils holds half of the Kron flux, which is not quite the footprint's.
    np.testing.assert_allclose(table["half_light_radius_pix"].value, reference.flux_radius(0.5).value, rtol=0.04)
    np.testing.assert_allclose(table["flux_r"], reference.segment_flux, rtol=0.005)
    turn = table["orientation_pix"].value - reference.orientation.value
    assert np.abs((turn[[0, 2]] + 90) % 180 - 90).max() < 1
    np.testing.assert_allclose(table["ellipticity"], reference.ellipticity.value, atol=0.02)


def test_neighbours_do_not_raise_the_sky():
    """A bright star in the margin of the window is not sky."""
    galaxy = gaussian((80, 80), 40, 40, 4, flux=10_000)
    star = gaussian((80, 80), 40, 58, 1.3, flux=100_000)
    noise = np.random.default_rng(3).normal(200, 2, galaxy.shape)
    table = measure.measure(make_objects([galaxy > 5], [(0, 0)]), FakeImage({"r": galaxy + star + noise}))
    assert table["flux_r"][0] == pytest.approx(galaxy[galaxy > 5].sum(), rel=0.02)


def test_sky_begins_three_pixels_beyond_the_footprint():
    """Protects the rim of the window, and masks that fill it: the same pixels as by scipy's dilation."""
    for shape, share in (((1, 1), 1.0), ((2, 9), 0.2), ((40, 31), 0.005), ((12, 12), 1.0)):
        mask = np.random.default_rng(6).random(shape) < share
        near = ndimage.binary_dilation(mask, np.ones((3, 3), bool), iterations=3)
        assert np.array_equal(measure._beyond(mask), ~near)


def test_star_on_the_rim_does_not_take_the_position():
    """A faint galaxy whose outline touches a bright star is listed where it is, not on the star; a lone one as ever."""
    galaxy = gaussian((80, 80), 40, 40, 5, flux=10_000)
    star = gaussian((80, 80), 43, 27, 1.5, flux=50_000)
    mask = galaxy > 3
    assert mask[29, 43] and not mask[27, 43]
    noise = np.random.default_rng(5).normal(100, 1, mask.shape)
    for light in (galaxy, galaxy + star):
        table = measure.measure(make_objects([mask], [(0, 0)]), FakeImage({"r": light + noise}))
        assert np.hypot(table["x"][0].value - 40, table["y"][0].value - 40) < 1


def test_sky_of_an_eight_bit_picture_is_finer_than_its_steps():
    """A median would give whole counts, and a wrong flux for every large galaxy."""
    sky = np.rint(np.random.default_rng(4).normal(12.37, 2, (64, 64)))
    assert sky_and_noise(sky, np.ones(sky.shape, bool))[0] == pytest.approx(12.37, abs=0.15)


def test_pixels_without_data_do_not_count():
    """NaN in a FITS mosaic is no light, and a window of nothing but NaN gives the centroid of the mask."""
    galaxy = gaussian((60, 60), 30, 30, 3, flux=10_000)
    galaxy[:, 31:] = np.nan
    table = measure.measure(make_objects([np.ones((9, 9), bool)], [(26, 26)]), FakeImage({"r": galaxy}))
    assert table["flux_r"][0] == pytest.approx(np.nansum(galaxy[26:35, 26:35]), rel=0.01)
    assert table["x"][0].value < 30
    nothing = FakeImage({"r": np.full((60, 60), np.nan)})
    table = measure.measure(make_objects([np.ones((9, 5), bool)], [(26, 20)]), nothing)
    assert (table["x"][0].value, table["y"][0].value, table["flux_r"][0]) == (22, 30, 0)


def test_position_comes_from_the_r_band():
    """The paper's choice; where no band has that name, the middle one."""
    planes = {b: gaussian((60, 60), x, 30, 3, flux=9_000) for b, x in [("g", 27), ("r", 30), ("i", 33)]}
    mask = np.ones((20, 30), bool)
    table = measure.measure(make_objects([mask], [(20, 15)]), FakeImage(planes))
    assert table["x"][0].value == pytest.approx(30, abs=0.05)
    assert {"flux_g", "flux_r", "flux_i"} <= set(table.colnames)
    planes = dict(zip(["blue", "green", "red"], planes.values(), strict=True))
    assert reference_of(FakeImage(planes)) == "green"
    assert reference_of(FakeImage({"image": planes["red"]})) == "image"


def test_a_neighbour_in_the_mask_does_not_pull_the_position():
    """In a picture a row keeps its place on its own galaxy where a mask reaches over half of the next one."""
    shape = (220, 220)
    alone = gaussian(shape, 110.3, 120.6, 12, flux=60_000)
    both = alone + gaussian(shape, 100, 45, 14, flux=80_000)
    mask = np.ones((160, 120), bool)  # its upper edge is 25 px from the neighbour's centre
    for planes in (alone, both):
        table = measure.measure(make_objects([mask], [(45, 50)]), FakeImage({"r": planes}, picture=True))
        np.testing.assert_allclose([table["x"][0].value, table["y"][0].value], [110.3, 120.6], atol=0.5)


def test_a_knot_at_one_end_of_a_disc_is_not_its_middle():
    """An edge-on galaxy of Hubble's picture was catalogued at the brightest of its knots, outside of its core."""
    rows, columns = np.indices((61, 91))
    mask = ((columns - 45) / 34) ** 2 + ((rows - 30) / 18) ** 2 < 1
    disc, knot = gaussian(mask.shape, 45, 30, 14, 4, flux=1000), gaussian(mask.shape, 29, 30, 2, flux=200)
    table = measure.measure(make_objects([mask], [(0, 0)]), FakeImage({"r": disc + knot}))
    assert 45 - table["x"][0].value < 16 / 2  # nearer to the middle than to the knot


@pytest.mark.parametrize("picture", [True, False])
def test_companion_whose_mask_reaches_over_a_bright_galaxy_keeps_its_place(picture):
    """Protects mergers: a galaxy must not seem to be there twice because its neighbour's mask holds its core."""
    shape = (160, 200)
    light = gaussian(shape, 80, 80, 12, 7, flux=80_000) + gaussian(shape, 130, 80, 6, flux=9_000)
    rows, columns = np.indices(shape)
    galaxy, companion = np.hypot(rows - 80, columns - 80) < 34, np.hypot(rows - 80, columns - 114) < 36
    objects = make_objects([galaxy, companion], [(0, 0), (0, 0)])
    table = measure.measure(objects, FakeImage({"r": light}, picture=picture))
    np.testing.assert_allclose(table["x"].value, [80, 130], atol=1)


def test_large_objects_are_read_in_strips(monkeypatch):
    """Memory is bounded, and the numbers are those of a measurement on all pixels at once."""
    galaxy = gaussian((700, 900), 433.3, 351.8, 90, 50, 25, flux=5e6)
    galaxy[galaxy < 20] = 0
    noise = np.random.default_rng(5).normal(100, 2, galaxy.shape)
    image = FakeImage({"r": galaxy + noise}, make_wcs(galaxy.shape))
    coarse = galaxy[4::8, 4::8] > 0
    objects = make_objects([coarse], [(0, 0)], levels=[3])
    whole = measure.measure(objects, image)
    monkeypatch.setattr(measure, "MAX_SIDE", 128)
    monkeypatch.setattr(measure, "MAX_STRIP", 16_000)
    image.largest_read = 0
    strips = measure.measure(objects, image, Stars())
    assert image.largest_read <= 16_000
    for name in (
        "x",
        "y",
        "semimajor_pix",
        "semiminor_pix",
        "orientation_pix",
        "half_light_radius_pix",
        "flux_r",
    ):
        assert u.Quantity(strips[name]).value[0] == pytest.approx(u.Quantity(whole[name]).value[0], rel=0.006), name
    assert strips["area_pix"][0] == whole["area_pix"][0] == coarse.sum() * 64 * u.pix**2


def test_averages_of_ragged_blocks():
    """The last block averages what it has; NaN is left out."""
    values = np.arange(35, dtype=np.float32).reshape(5, 7)
    values[0, 0] = np.nan
    mean = measure._average(values, 4)
    assert mean.shape == (2, 2)
    assert mean[0, 0] == pytest.approx(np.nanmean(values[:4, :4]))
    assert mean[1, 1] == pytest.approx(values[4:, 4:].mean())


# Tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sky", [True, False])
def test_nothing_found_is_an_empty_table_with_all_columns(sky):
    """No caller needs a special case, and files of empty fields can be joined with others."""
    planes = {band: np.zeros((50, 60)) for band in "gri"}
    image = FakeImage(planes, make_wcs((50, 60)) if sky else None)
    empty = catalog.finish(measure.measure(make_objects([], []), image))
    one = catalog.finish(measure.measure(make_objects([np.ones((5, 5), bool)], [(9, 9)]), image))
    assert len(empty) == 0 and empty.colnames == one.colnames
    wanted = [c.name for c in SCHEMA if c.when == "always" or (sky and c.when == "sky")]
    assert set(wanted) <= set(empty.colnames)
    assert ("ra" in empty.colnames) == sky
    assert [empty[name].dtype.kind for name in empty.colnames] == [one[name].dtype.kind for name in one.colnames]


def test_hosts_are_ids_and_objects_outside_the_image_go():
    """Rows that cannot be measured are left out without turning hosts into others."""
    mask = np.ones((5, 5), bool)
    origins = [(90, 90), (10, 10), (30, 30), (12, 12)]
    image = FakeImage({"r": np.zeros((60, 60))})
    table = measure.measure(make_objects([mask] * 4, origins, hosts=[-1, -1, 0, 1]), image)
    assert table["id"].tolist() == [1, 2, 3]
    assert table["host"].tolist() == [0, 0, 1]
    assert table["x_min"].value.tolist() == [10, 30, 12]


def test_class_and_probabilities():
    """The class is the more probable one, and the two probabilities sum to 1."""
    image = FakeImage({"r": np.zeros((60, 60))})
    table = measure.measure(make_objects([np.ones((5, 5), bool)] * 5, [(9, 9)] * 5), image)
    assert table["class"].tolist() == ["elliptical", "elliptical", "spiral", "spiral", "spiral"]
    np.testing.assert_allclose(table["p_spiral"] + table["p_elliptical"], 1)


def test_fluxes_of_pictures_are_marked():
    """A sum of stretched 8-bit values is no photometry."""
    objects = make_objects([np.ones((5, 5), bool)], [(9, 9)])
    planes = {"r": np.zeros((60, 60))}
    for picture in (True, False):
        table = measure.measure(objects, FakeImage(planes, picture=picture))
        assert (table["flags"][0] >> FLAGS["uncalibrated"] & 1) == picture


# Sky ------------------------------------------------------------------------------------------------------

PLACES = [(120.0, 30.0), (0.0, 0.0), (359.9999, -60.0), (200.0, 89.99), (10.0, -89.999)]


def sky_table(ra, dec, rotation, mirrored, angle=35.0):
    """Measure one elongated galaxy off the centre of an image somewhere on the sky."""
    shape = (200, 240)
    wcs = make_wcs(shape, ra, dec, rotation=rotation, mirrored=mirrored)
    galaxy = gaussian(shape, 131.3, 84.6, 12, 5, angle, flux=1e5)
    image = FakeImage({"r": galaxy}, wcs)
    return measure.measure(make_objects([galaxy > 5], [(0, 0)]), image), wcs


@pytest.mark.parametrize(("ra", "dec"), PLACES)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 77, 200])
def test_sky_position_size_and_angle(ra, dec, rotation, mirrored):
    """Position as astropy's, angle east of north whatever the handedness, also at RA 0 and the poles."""
    table, wcs = sky_table(ra, dec, rotation, mirrored)
    place = SkyCoord(table["ra"], table["dec"])[0]
    truth = wcs.pixel_to_world(131.3, 84.6)
    assert place.separation(truth) < 0.01 * u.arcsec
    assert 0 <= table["ra"][0].value < 360
    tip = wcs.pixel_to_world(131.3 + 6 * np.cos(np.radians(35)), 84.6 + 6 * np.sin(np.radians(35)))
    wanted = truth.position_angle(tip).deg
    turn = table["position_angle"][0].value - wanted
    assert abs((turn + 90) % 180 - 90) < 0.3
    assert 0 <= table["position_angle"][0].value < 180
    assert table["semimajor"][0].to_value("arcsec") == pytest.approx(0.4 * table["semimajor_pix"][0].value, rel=1e-3)
    assert table["semiminor"][0].to_value("arcsec") == pytest.approx(0.4 * table["semiminor_pix"][0].value, rel=1e-3)
    assert table["area"][0].to_value("arcsec2") == pytest.approx(0.16 * table["area_pix"][0].value, rel=1e-3)


def test_pixels_that_are_not_square():
    """Angles and axes are those on the sky, not of the pixel grid."""
    shape = (200, 240)
    wcs = make_wcs(shape)
    wcs.wcs.cd = np.array([[-0.8, 0], [0, 0.4]]) / 3600
    galaxy = gaussian(shape, 120, 100, 6, 6, flux=1e5)
    table = measure.measure(make_objects([galaxy > 2], [(0, 0)]), FakeImage({"r": galaxy}, wcs))
    assert table["semimajor"][0].value == pytest.approx(2 * table["semiminor"][0].value, rel=0.01)
    assert table["position_angle"][0].value == pytest.approx(90, abs=0.5)
    assert table["ellipticity"][0] == pytest.approx(0.5, abs=0.01)
    assert table["area"][0].value == pytest.approx(0.32 * table["area_pix"][0].value, rel=1e-4)


def parse_region(text):
    """Corners of a polygon as unit vectors, shape (n, 3)."""
    shape, frame, *numbers = text.split()
    assert (shape, frame) == ("POLYGON", "ICRS")
    ra, dec = np.radians(np.array(numbers, float).reshape(-1, 2)).T
    assert ((0 <= ra) & (ra < 2 * np.pi)).all()
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def steradians(corners):
    """Area to the left of the boundary as seen from inside of the sphere, from the angles (Girard)."""
    before, after = np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0)
    to_before = np.cross(corners, np.cross(before, corners))
    to_after = np.cross(corners, np.cross(after, corners))
    # From inside, a turn to the left is a negative rotation about the outward direction.
    angles = np.arctan2(-np.einsum("ij,ij->i", np.cross(to_after, to_before), corners), (to_after * to_before).sum(1))
    return np.mod(angles, 2 * np.pi).sum() - (len(corners) - 2) * np.pi


def test_the_tests_own_spherical_area():
    """N, E, S, W around a point runs counter-clockwise as seen from inside; the reverse is all but it."""
    octant = np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])  # RA 0h on the equator, the pole, RA 6h
    assert steradians(octant) == pytest.approx(np.pi / 2)
    north_east_south_west = np.array([[1, 0, 0.1], [1, 0.1, 0], [1, 0, -0.1], [1, -0.1, 0]])
    north_east_south_west /= np.linalg.norm(north_east_south_west, axis=1)[:, None]
    assert steradians(north_east_south_west) == pytest.approx(0.02, rel=0.02)
    assert steradians(north_east_south_west[::-1]) == pytest.approx(4 * np.pi - 0.02, rel=0.01)


@pytest.mark.parametrize(("ra", "dec"), PLACES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_polygon_on_the_sky(ra, dec, mirrored):
    """Corners the wrong way round mean the whole sky but the galaxy: area below 2 pi, the galaxy inside."""
    table, _ = sky_table(ra, dec, 20, mirrored)
    corners = parse_region(table["s_region"][0])
    assert len(corners) <= MAX_VERTICES
    area = steradians(corners)
    assert area < 2 * np.pi
    assert (area * u.sr).to_value("arcsec2") == pytest.approx(table["area"][0].value, rel=0.02)
    place = SkyCoord(table["ra"], table["dec"]).cartesian.xyz.value[:, 0]
    east = np.cross([0, 0, 1], place)
    east /= np.linalg.norm(east)
    plane = shapely.Polygon(corners @ np.column_stack([east, np.cross(place, east)]))
    assert plane.is_valid and plane.contains(shapely.Point(0, 0))


@settings(max_examples=60, deadline=None)
@given(
    ra=st.floats(0, 360, exclude_max=True) | st.sampled_from([0.0, 1e-5, 359.99999]),
    dec=st.floats(-90, 90) | st.sampled_from([-90.0, -89.9999, 89.9999, 90.0]),
    rotation=st.floats(0, 360),
    mirrored=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_polygons_anywhere_on_the_sky(ra, dec, rotation, mirrored, seed):
    """In DALI's order for either parity, across RA 0 and over the poles: the area is the mask's to 3 %."""
    footprint = Footprint.from_mask(blob(seed, (60, 80), smooth=6), (70, 80), 0, (200, 240))
    image = FakeImage({"r": np.zeros((200, 240))}, make_wcs((200, 240), ra, dec, rotation=rotation, mirrored=mirrored))
    (text,) = measure._regions(image.pixel_to_sky, [footprint.outline], np.array([mirrored]))
    corners = parse_region(text)
    assert len(corners) <= MAX_VERTICES
    area = (steradians(corners) * u.sr).to_value("arcsec2")
    assert area == pytest.approx(0.16 * footprint.mask.sum(), rel=0.03)


def test_off_the_projection_is_nan_not_an_error():
    """A header that does not reach as far as the image leaves holes in the table, not a traceback."""
    wcs = make_wcs((60, 60), scale=3600 * 4)
    wcs.wcs.ctype = "RA---SIN", "DEC--SIN"
    image = FakeImage({"r": np.zeros((60, 60))}, wcs)
    table = measure.measure(make_objects([np.ones((5, 5), bool)] * 2, [(28, 28), (0, 0)]), image)
    table = catalog.finish(table)
    assert np.isfinite(table["ra"][0]) and table["s_region"][0].startswith("POLYGON")
    assert np.isnan(table["ra"][1]) and table["s_region"][1] == "" and table["name"][1] == ""

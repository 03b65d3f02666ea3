"""Regions, segmentation maps and MOCs, read back by the packages that astronomers use."""

import builtins
import importlib.util

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from detectors import BlobDetector
from hypothesis import given, settings
from hypothesis import strategies as st
from mocpy import MOC
from regions import PolygonPixelRegion, PolygonSkyRegion, Regions
from scipy import ndimage
from test_measure import FakeImage, make_objects

import surveycat
from surveycat import catalog, measure, products
from surveycat.errors import OptionError, OutputError
from surveycat.footprint import Footprint
from surveycat.stars import Stars

SHAPE = (300, 420)


@pytest.fixture
def field(tmp_path):
    """A FITS image with a position, five galaxies, and a strip without data."""
    rng = np.random.default_rng(4)
    data = rng.normal(10, 1, SHAPE)
    for y, x in ((50, 60), (70, 200), (150, 100), (220, 300), (250, 60)):
        data[y - 6 : y + 7, x - 9 : x + 10] += 60
    data[:, 380:] = np.nan
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ("RA---TAN", "DEC--TAN"), (359.99, 30.0), (210, 150)
    wcs.wcs.cd = np.array([[-0.9, 0.1], [0.1, 0.9]]) * 0.4 / 3600
    fits.PrimaryHDU(data.astype(np.float32), wcs.to_header()).writeto(tmp_path / "a.fits")
    return tmp_path / "a.fits"


def run(path, **options):
    """Catalogue of an image by a stub of a network."""
    return surveycat.run(path, detector=BlobDetector(100), **options)


def test_everything_in_one_run(field, tmp_path):
    """All files of one run tell of the same objects at the same places."""
    names = {"regions": "cat.reg", "segmap": "seg.fits", "moc": "moc.fits", "preview": "p.png"}
    table = run(field, out=tmp_path / "cat.parquet", **{kind: tmp_path / name for kind, name in names.items()})
    assert len(table) == 5 and all((tmp_path / name).exists() for name in names.values())

    shapes = Regions.read(tmp_path / "cat.reg", format="ds9")
    assert [int(shape.meta["text"]) for shape in shapes] == table["id"].tolist()
    centres = SkyCoord(table["ra"], table["dec"])
    wcs = WCS(fits.getheader(field))
    assert all(isinstance(shape, PolygonSkyRegion) for shape in shapes)
    assert all(shape.contains(centre, wcs) for shape, centre in zip(shapes, centres, strict=True))

    with fits.open(tmp_path / "seg.fits") as hdus:
        labels, header = hdus[1].data, hdus[1].header
    assert labels.shape == SHAPE and np.array_equal(np.unique(labels), np.arange(6))
    assert np.array_equal(np.bincount(labels.ravel())[1:], table["area_pix"].value)
    x, y = WCS(header).world_to_pixel(centres)
    assert np.array_equal(labels[np.rint(y).astype(int), np.rint(x).astype(int)], table["id"])

    moc = MOC.from_fits(tmp_path / "moc.fits")
    assert moc.contains_skycoords(centres).all()
    area = moc.sky_fraction * 4 * np.pi * np.degrees(1) ** 2 * 3600**2
    assert area == pytest.approx(300 * 380 * 0.4**2 * 0.8, rel=0.05)
    assert not moc.contains_skycoords(wcs.pixel_to_world([410, -20], [150, 150])).any()


def test_regions_in_pixels_without_a_position(tmp_path):
    """Without a WCS the polygons are in pixels, and a segmentation map needs no position; a MOC does."""
    picture = np.full((90, 120, 3), 20, np.uint8)
    picture[30:45, 50:80] = 200
    run(picture, regions=tmp_path / "a.reg", segmap=tmp_path / "s.fits")
    (shape,) = Regions.read(tmp_path / "a.reg", format="ds9")
    assert isinstance(shape, PolygonPixelRegion) and shape.area == 450
    assert fits.getdata(tmp_path / "s.fits", 1)[30:45, 50:80].all()
    with pytest.raises(OptionError, match="m.fits needs the image's place on the sky"):
        run(picture, moc=tmp_path / "m.fits")


def test_nothing_found_gives_empty_files(tmp_path):
    """No galaxy is no error: the files say so."""
    run(np.full((90, 120, 3), 20, np.uint8), regions=tmp_path / "a.reg", segmap=tmp_path / "s.fits")
    assert len(Regions.read(tmp_path / "a.reg", format="ds9")) == 0
    assert not fits.getdata(tmp_path / "s.fits", 1).any()


def test_region_of_an_image(field, tmp_path):
    """A map of a part of an image has that part's size and WCS."""
    table = run(field, region="100,40,320,260", segmap=tmp_path / "s.fits")
    with fits.open(tmp_path / "s.fits") as hdus:
        labels, header = hdus[1].data, hdus[1].header
    assert labels.shape == (220, 220)
    x, y = WCS(header).world_to_pixel(SkyCoord(table["ra"], table["dec"]))
    assert np.array_equal(labels[np.rint(y).astype(int), np.rint(x).astype(int)], table["id"])
    np.testing.assert_allclose(x + 100, table["x"].value, atol=0.01)
    np.testing.assert_allclose(table["x_iso"].value, table["x"].value, atol=0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_painted_outlines_are_the_masks(seed, strip):
    """Painted in strips of any height, outlines give back exactly the footprints, the smaller ones on top."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(3, 60, 80)), (0, 4, 4))
    masks = list(noise > 0.05)
    image = FakeImage({"r": np.zeros((60, 80))}, picture=True)
    table = catalog.finish(measure.measure(make_objects(masks, [(0, 0)] * 3), image, Stars()))
    prints = [Footprint.from_mask(mask, (0, 0), 0, (60, 80)) for mask in masks]
    wanted = np.zeros((60, 80), int)
    order = sorted(range(3), key=lambda i: -prints[i].mask.sum())
    for i in order:
        wanted[prints[i].on_grid((0, 0, 60, 80), 0)] = i + 1
    found = np.concatenate([products.paint_rows(table, y, min(y + strip, 60), 80) for y in range(0, 60, strip)])
    assert np.array_equal(found, wanted)


def test_failed_tiles_are_not_in_the_area(field, tmp_path):
    """What could not be searched is left out of the MOC."""
    from surveycat.image import open_image
    from surveycat.tiles import TileGrid

    with open_image(field) as image:
        products.write_moc(image, [], tmp_path / "all.fits")
        products.write_moc(image, [next(iter(TileGrid(SHAPE).tiles()))], tmp_path / "part.fits")
        inside = SkyCoord(*image.pixel_to_sky([100], [100]), unit="deg")
    assert MOC.from_fits(tmp_path / "all.fits").contains_skycoords(inside).all()
    assert not MOC.from_fits(tmp_path / "part.fits").contains_skycoords(inside).any()


@pytest.mark.parametrize(("kind", "name"), [("regions", "a.txt"), ("segmap", "a.png"), ("moc", "a.reg")])
def test_wrong_suffixes_are_refused_before_the_work(tmp_path, kind, name):
    """The message names the file and the suffixes that work."""
    with pytest.raises(OutputError, match=rf"{name}: unknown suffix .* use one of {products.SUFFIXES[kind][0]}"):
        run(np.zeros((50, 50, 3), np.uint8), **{kind: tmp_path / name})


def test_two_outputs_of_one_name(field, tmp_path):
    """The catalogue is not overwritten by the map."""
    with pytest.raises(OutputError, match="two outputs have one name"):
        run(field, out=tmp_path / "a.fits2.fits", segmap=tmp_path / "a.fits2.fits")


@pytest.mark.parametrize("kind", ["regions", "moc"])
def test_missing_packages_are_named(tmp_path, monkeypatch, kind):
    """Without the optional package there is one line with the command that installs it, before the work."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    package = products.NEEDS[kind]
    with pytest.raises(OutputError, match=f"--{kind} needs the package {package}.*pip install {package}"):
        run(np.zeros((50, 50, 3), np.uint8), **{kind: tmp_path / f"a{products.SUFFIXES[kind][0]}"})


def test_missing_packages_do_not_matter_unless_asked_for(tmp_path, monkeypatch):
    """A run without these files needs neither package."""
    real = builtins.__import__

    def refusing(name, *args, **kwargs):
        assert name.partition(".")[0] not in products.NEEDS.values()
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)
    run(np.zeros((50, 50, 3), np.uint8), out=tmp_path / "a.parquet")

"""Injection: what is added has the light its magnitude says, and the rates are those of what is found."""

import importlib

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from click.testing import CliRunner
from detectors import BlobDetector
from PIL import Image as Pillow

import surveycat
from surveycat import cli
from surveycat.artificial import Psf
from surveycat.bands import Bands
from surveycat.errors import ImageError, OptionError, OutputError
from surveycat.image import open_image

ZERO_POINT, SKY, NOISE = 25.0, 100.0, 3.0


@pytest.fixture(scope="module")
def module():
    """The module, whose place in the package the function has."""
    return importlib.import_module("surveycat.inject")


def save_sky(path, fwhm=3.0, band="r"):
    """Write a FITS image of sky and 30 stars, with its zero point; the same stars at any seeing."""
    rng = np.random.default_rng(11)
    data = rng.normal(SKY, NOISE, (520, 560)).astype(np.float32)
    for y, x in np.stack([rng.uniform(40, 480, 30), rng.uniform(40, 520, 30)], axis=1):
        row, column = round(y), round(x)
        star = Psf(fwhm).at(20 + y - row, 20 + x - column, (41, 41))
        data[row - 20 : row + 21, column - 20 : column + 21] += rng.uniform(5e3, 2e4) * star
    fits.PrimaryHDU(data, fits.Header({"MAGZERO": ZERO_POINT, "FILTER": band})).writeto(path)
    return path


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """A FITS image of sky and 30 stars."""
    return save_sky(tmp_path_factory.mktemp("inject") / "sky.fits")


def test_light_has_the_magnitude(module, field):
    """Counts that were added give back magnitude and place, for stars and galaxies alike."""
    with open_image(field) as image:
        known = module.Field.of(image)
        assert known.zero_point == pytest.approx(ZERO_POINT)
        assert known.psf.fwhm == pytest.approx(3.0, rel=0.06)
        objects = module.draw(image.shape, 8, 8, (16.0, 19.0), (1.0, 4.0), None, np.random.default_rng(0))
        for i in range(16):
            stamp = module.stamp_of(objects, i, known, np.random.default_rng(1))
            flux = stamp.light[0].sum()
            measured = ZERO_POINT - 2.5 * np.log10(flux)
            assert measured == pytest.approx(objects["magnitude"][i], abs=0.08)
            rows, columns = stamp.light[0].sum(axis=1), stamp.light[0].sum(axis=0)
            y = stamp.y0 + rows @ np.arange(len(rows)) / flux
            x = stamp.x0 + columns @ np.arange(len(columns)) / flux
            assert (y, x) == (pytest.approx(objects["y"][i], abs=0.06), pytest.approx(objects["x"][i], abs=0.06))


def test_each_band_has_a_psf_of_its_own(module, tmp_path):
    """Stars and galaxies are added as wide in each band as its own stars, with one centre and their light."""
    bands = Bands(tuple(str(save_sky(tmp_path / f"{b}.fits", w, b)) for b, w in (("r", 3.0), ("g", 4.2))), ("r", "g"))
    with open_image(bands) as image:
        known = module.Field.of(image)
    assert {name: psf.fwhm for name, psf in known.psfs.items()} == pytest.approx({"r": 3.0, "g": 4.2}, rel=0.06)
    objects = module.draw((520, 560), 1, 1, (16.0, 17.0), (1.0, 2.0), None, np.random.default_rng(0))
    for i in range(2):
        r, g = module.stamp_of(objects, i, known, np.random.default_rng(1)).light
        rows, columns = np.indices(r.shape)
        centres = [(float((rows * b).sum() / b.sum()), float((columns * b).sum() / b.sum())) for b in (r, g)]
        assert centres[0] == pytest.approx(centres[1], abs=0.05)
        assert r.max() / r.sum() > 1.1 * g.max() / g.sum()


def test_detector_that_finds_what_is_bright(field, tmp_path):
    """Completeness is 1 for bright and 0 for faint objects; rates count each object that was free, once."""
    result = surveycat.inject(
        field,
        tmp_path / "out",
        galaxies=30,
        stars=15,
        magnitudes=(15.0, 27.0),
        sizes=(1.0, 3.0),
        detector=BlobDetector(threshold=60),
        seed=3,
    )
    objects, rates = result.objects, result.rates
    bright, free = objects["magnitude"] < 18, ~np.asarray(objects["on_object"])
    large = bright & (objects["half_light_radius"].value > 2)  # linear data tell smaller ones from stars, or do not
    assert (large & free).sum() >= 3 and objects["found"][large].all()
    assert objects["found"][bright & (objects["kind"] == "star") & free].mean() < 0.5
    assert not objects["found"][(objects["magnitude"] > 24) & free].any()
    everything = rates[np.isinf(rates["size_high"].value)]
    assert everything["added"].sum() == free.sum()
    assert everything["found"].sum() == (np.asarray(objects["found"]) & free).sum()
    by_size = rates[(rates["kind"] == "galaxy") & np.isfinite(rates["size_high"].value)]
    assert by_size["added"].sum() == (free & (objects["kind"] == "galaxy")).sum()
    stored = QTable.read(tmp_path / "out" / "objects.ecsv")
    assert np.array_equal(stored["x"], objects["x"]) and stored.meta["zero_point"] == ZERO_POINT
    assert "AB magnitudes in r, from MAGZERO" in QTable.read(tmp_path / "out" / "rates.ecsv").meta["magnitudes"]
    with Pillow.open(tmp_path / "out" / "rates.png") as picture:
        assert min(picture.size) > 300
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"objects.ecsv", "rates.ecsv", "rates.png"}


def test_objects_depend_on_the_seed_alone(module):
    """The same seed draws the same objects, another one others; in a round none comes near another."""
    one, two, other = (
        module.draw((700, 900), 40, 40, (16, 20), (1, 4), None, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert all(np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == "f") for name in one)
    assert not np.array_equal(one["x"], other["x"])
    for number in np.unique(one["round"]):
        x, y = (one[axis][one["round"] == number] for axis in "xy")
        apart = np.hypot(x[:, None] - x, y[:, None] - y) + 1e9 * np.eye(len(x))
        assert apart.min() >= module.LEAST_APART


def test_no_galaxy_is_denser_than_galaxies_are(module):
    """Bright ones are larger where the sizes asked for would make them stars; without a zero point none is."""
    surface = 5 * np.log10(0.4)  # AB magnitudes, 0.4 arcsec per pixel
    drawn = [
        module.draw((900, 900), 200, 10, (16, 21), (1, 4), None, np.random.default_rng(0), value)
        for value in (surface, np.nan)
    ]
    bound, free = ({name: each[name][each["kind"] == "galaxy"] for name in each} for each in drawn)
    area = 2 * np.pi * bound["half_light_radius"] ** 2 * bound["axis_ratio"]
    brightness = bound["magnitude"] + 2.5 * np.log10(area) + surface
    limit = np.where(bound["sersic"] == 1, module.DENSEST[1.0], module.DENSEST[4.0])
    assert (brightness > limit - 1e-9).all() and (brightness < limit + 0.05).any()
    assert (free["half_light_radius"] < 4).all() and (free["half_light_radius"] < bound["half_light_radius"]).any()
    faint = (free["magnitude"] > 20.6) & (free["axis_ratio"] > 0.6)
    assert np.array_equal(free["half_light_radius"][faint], bound["half_light_radius"][faint])


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture of sky and 60 blobs, as a file."""
    rng = np.random.default_rng(6)
    pixels = rng.normal(14, 2, (300, 340, 3))
    for y, x in rng.integers(20, 280, (60, 2)):
        pixels[y - 15 : y + 16, x - 15 : x + 16] += 40000 * Psf(5.0).at(15, 15, (31, 31))[..., None]
    path = tmp_path_factory.mktemp("picture") / "sky.png"
    Pillow.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


def test_a_fine_image_is_searched_as_run_does(tmp_path):
    """What counts is what `run` would find: at less than its resolution where stars are 7 px wide, unless told."""
    path = save_sky(tmp_path / "fine.fits", fwhm=7.0)
    options = {"galaxies": 2, "stars": 0, "fwhm": 7.0, "detector": BlobDetector(threshold=60)}
    levels = [
        surveycat.inject(path, resample=resample, **options).objects.meta["searched_level"]
        for resample in ("auto", "none", 2)
    ]
    assert levels[0] > 0 and levels[1:] == [0, 1]
    with pytest.raises(OptionError, match="resample is 3; give auto, none"):
        surveycat.inject(path, resample=3, **options)


def test_a_dim_picture_is_searched_as_run_does(tmp_path):
    """The network is shown artificial objects as bright as those that a picture of low contrast has."""
    noise = np.random.default_rng(3).normal(40, 0.85, (300, 300, 3))
    Pillow.fromarray(np.rint(noise).astype(np.uint8)).save(tmp_path / "dim.png")
    options = {"galaxies": 2, "stars": 0, "fwhm": 3.0, "zero_point": 22.5, "detector": BlobDetector(threshold=60)}
    assert surveycat.inject(tmp_path / "dim.png", **options).objects.meta["searched_gain"] > 2


def test_object_on_an_object_is_not_counted(picture):
    """What was there already is not taken for an artificial star that was found."""
    detector = BlobDetector(threshold=60)
    result = surveycat.inject(picture, galaxies=0, stars=60, magnitudes=(8.0, 9.0), detector=detector, fwhm=4.0)
    on_object = np.asarray(result.objects["on_object"])
    assert on_object.any() and result.objects["found"][on_object].all()
    assert not result.objects["found"][~on_object].any()
    assert result.rates["found"].sum() == 0 and result.rates["added"].sum() == (~on_object).sum() > 30


def test_picture_says_that_its_magnitudes_are_its_own(tmp_path):
    """Without a zero point magnitudes are of the picture, which is said; one that is given is used."""
    rng = np.random.default_rng(6)
    picture = rng.integers(10, 20, (300, 300, 3), np.uint8)
    options = {"galaxies": 4, "stars": 4, "detector": BlobDetector(threshold=60), "fwhm": 3.0}
    own = surveycat.inject(picture, **options)
    assert (
        own.objects.meta["magnitudes"].startswith("a picture has no zero point") and own.objects.meta["zero_point"] == 0
    )
    given = surveycat.inject(picture, zero_point=23.54, **options)
    assert np.asarray(given.objects["magnitude"] - own.objects["magnitude"]) == pytest.approx(23.54)
    assert np.array_equal(given.objects["found"], own.objects["found"])


def test_real_galaxies_are_added(shared_data, field):
    """A cutout's light arrives with its magnitude, and its file is named."""
    result = surveycat.inject(
        field,
        galaxies=5,
        stars=0,
        magnitudes=(15.0, 16.0),
        cutouts=shared_data / "cutouts" / "gz1" / "val",
        detector=BlobDetector(threshold=60),
    )
    assert all(name.endswith(".jpg") for name in result.objects["cutout"])
    assert result.objects["found"].all()


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"galaxies": -1}, OptionError, "galaxies is -1"),
        ({"galaxies": 0, "stars": 0}, OptionError, "nothing to add"),
        ({"magnitudes": (20.0, 18.0)}, OptionError, "magnitudes are 20 to 18"),
        ({"sizes": (0.0, 2.0)}, OptionError, "sizes begin at 0 px"),
        ({"magnitudes": (18.0, np.inf)}, OptionError, "magnitudes are 18 to inf"),
        ({"fwhm": 0.1}, OptionError, "fwhm is 0.1 px"),
        ({"zero_point": np.nan}, OptionError, "zero-point is nan"),
        ({"seed": -1}, OptionError, "seed is -1"),
        ({"min_score": 2.0}, OptionError, "min-score is 2"),
    ],
)
def test_options_that_cannot_be_meant(field, tmp_path, options, error, match):
    """Refused before any work, in one line; no folder is left."""
    with pytest.raises(error, match=match):
        surveycat.inject(field, tmp_path / "out", detector=BlobDetector(), **options)
    assert list(tmp_path.iterdir()) == []


def test_outputs_and_images_that_cannot_be(field, tmp_path):
    """An earlier result is kept, a missing parent named, an image without stars refused with the way out."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rates.ecsv").write_text("mine")
    with pytest.raises(OutputError, match="rates.ecsv exists already"):
        surveycat.inject(field, tmp_path / "out", detector=BlobDetector())
    assert (tmp_path / "out" / "rates.ecsv").read_text() == "mine"
    with pytest.raises(OutputError, match="there is no folder"):
        surveycat.inject(field, tmp_path / "none" / "out", detector=BlobDetector())
    empty = np.random.default_rng(0).integers(5, 9, (300, 300, 3), np.uint8)
    with pytest.raises(ImageError, match="too few stars .* fwhm"):
        surveycat.inject(empty, tmp_path / "new", detector=BlobDetector())
    assert not (tmp_path / "new").exists()


def test_command_line(picture, tmp_path, monkeypatch, module):
    """The command passes on what it is given, says what came out, and errors are one line."""
    monkeypatch.setattr(module, "DetectorSpec", lambda weights, preset: BlobDetector(threshold=60))
    arguments = ["inject", str(picture), "--out", str(tmp_path / "out"), *"--galaxies 9 --stars 9 --fwhm 4".split()]
    result = CliRunner().invoke(cli.main, [*arguments, "--magnitudes", "18,19", "--sizes", "1,2", "--zero-point", "22"])
    assert result.exit_code == 0, result.output
    objects = QTable.read(tmp_path / "out" / "objects.ecsv")
    free = objects[~objects["on_object"]]
    galaxies, stars = (free[free["kind"] == kind]["found"] for kind in ("galaxy", "star"))
    said = f"{galaxies.sum()} of {len(galaxies)} galaxies found, {stars.sum()} of {len(stars)} stars catalogued"
    assert said in result.output and galaxies.sum() > 3 and objects.meta["zero_point"] == 22
    again = CliRunner().invoke(cli.main, arguments)
    assert again.exit_code == 1 and "exists already" in again.output and "Traceback" not in again.output
    assert CliRunner().invoke(cli.main, [*arguments, "--magnitudes", "a,b"]).exit_code == 2

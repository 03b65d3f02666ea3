"""Masks and weights: what they leave out is neither sky nor galaxy, wherever and however the image is read."""

import logging
import pickle

import numpy as np
import pytest
from astropy.io import fits
from detectors import BlobDetector
from PIL import Image as Pillow
from test_bands import SHAPE as BAND_SHAPE
from test_bands import header, save
from test_unfinished import interrupted

import surveycat
from surveycat.bands import Bands
from surveycat.errors import ImageError, OptionError, OutputError
from surveycat.image import open_image

SHAPE = (300, 420)
NOISE = 5.0
PLACES = ((60, 80), (60, 320), (230, 200))  # (row, column) of three sources
BAD = np.s_[40:90, 300:345]  # around the second


@pytest.fixture
def sky():
    """Noise and three round sources, float32."""
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    data = np.random.default_rng(2).normal(100, NOISE, SHAPE)
    for y, x in PLACES:
        data += 900 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 40)
    return data.astype(np.float32)


@pytest.fixture
def image(sky, tmp_path):
    """The sky as FITS."""
    fits.PrimaryHDU(sky).writeto(tmp_path / "image.fits")
    return tmp_path / "image.fits"


def map_of(path, inside, outside, dtype, where=BAD, shape=SHAPE):
    """A FITS image with one value in a box and another one elsewhere."""
    values = np.full(shape, outside, dtype)
    values[where] = inside
    fits.PrimaryHDU(values).writeto(path)
    return path


@pytest.fixture
def mask(tmp_path):
    """A mask of 16-bit numbers, as bit masks come."""
    return map_of(tmp_path / "mask.fits", 64, 0, np.int16)


@pytest.fixture
def weight(tmp_path):
    """Inverse variances with a hole."""
    return map_of(tmp_path / "weight.fits", 0, NOISE**-2, np.float32)


def found(path, **options):
    """Places (row, column) of rows, sorted."""
    table = surveycat.run(path, detector=BlobDetector(60, 30, 1.0), resample="none", **options)
    return sorted(zip(np.rint(table["y"].value).tolist(), np.rint(table["x"].value).tolist(), strict=True)), table


# What is left out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mask", "weight"])
def test_what_is_left_out_is_blank_in_every_reading(image, mask, weight, sky, kind):
    """Data, blank map, picture, levels and regions agree: nothing is there, and all else is as without the file."""
    with open_image(image) as whole, open_image(image, **{kind: {"mask": mask, "weight": weight}[kind]}) as cut:
        box = (0, 0, *SHAPE)
        expected = sky.copy()
        expected[BAD] = np.nan
        np.testing.assert_array_equal(cut.band(cut.bands[0], box), expected)
        np.testing.assert_array_equal(cut.blank(box), np.isnan(expected))
        assert whole.read(box)[BAD].max() > 150 and cut.read(box)[BAD].max() < 60
        near = np.s_[:, :150]
        assert np.abs(whole.read(box)[near].astype(int) - cut.read(box)[near]).mean() < 2  # the stretch is hardly moved
        assert cut.read((22, 32, 38, 48), 1).max() > 100 and cut.read((22, 152, 43, 170), 1).max() < 40
        part = cut.region((30, 290, 120, 400))
        np.testing.assert_array_equal(part.blank((0, 0, 90, 110)), np.isnan(expected[30:120, 290:400]))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_pixels_without_weight(image, tmp_path, bad):
    """Zero, negative, NaN and infinite inverse variances say nothing of a pixel: it is blank, and its weight is 0."""
    path = map_of(tmp_path / "w.fits", bad, 0.04, np.float32)
    with open_image(image, weight=path) as opened:
        name = opened.bands[0]
        weights = opened.weight(name, (-5, 280, 100, 360))
        assert weights.dtype == np.float32 and weights.shape == (105, 80)
        assert (weights[:5] == 0).all() and (weights[45:95, 20:65] == 0).all()
        assert weights[5, 0] == np.float32(0.04)
        assert np.isnan(opened.band(name, (40, 300, 90, 345))).all()


def test_without_weights_there_are_none(image, mask):
    """None, so that the noise of the sky is taken: a mask is no weight."""
    with open_image(image, mask=mask) as opened:
        assert opened.weight(opened.bands[0], (0, 0, 10, 10)) is None


def test_a_mask_takes_the_weight_too(image, mask, tmp_path):
    """A masked pixel must not bring its weight into an error."""
    flat = map_of(tmp_path / "flat.fits", 1, 1, np.float32)
    with open_image(image, mask=mask, weight=flat) as opened:
        weights = opened.weight(opened.bands[0], (0, 0, *SHAPE))
    assert (weights[BAD] == 0).all() and weights.sum() == weights.size - weights[BAD].size


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
def test_masks_of_every_type(image, tmp_path, dtype):
    """Whatever the numbers are, what is not 0 is bad: high bits of a long number, too."""
    path = map_of(tmp_path / "m.fits", 2**40 if dtype == np.int64 else 1, 0, dtype)
    with open_image(image, mask=path) as opened:
        blank = opened.blank((0, 0, *SHAPE))
    assert blank[BAD].all() and blank.sum() == blank[BAD].size


def test_a_picture_is_masked_with_the_colour_of_its_sky(tmp_path, mask):
    """In a JPEG or PNG, too, nothing is found in masked pixels, and nothing is measured there."""
    pixels = np.full((*SHAPE, 3), 12, np.uint8)
    for y, x in PLACES:
        pixels[y - 9 : y + 10, x - 9 : x + 10] = 200
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png", mask=mask) as opened:
        assert (opened.read((40, 300, 90, 345)) == 12).all() and (opened.read((51, 71, 70, 90)) == 200).all()
        assert opened.blank((0, 0, *SHAPE)).sum() == 50 * 45 and np.isnan(opened.band("r", (50, 310, 60, 320))).all()
    assert found(tmp_path / "a.png", mask=mask)[0] == sorted((PLACES[0], PLACES[2]))


@pytest.mark.parametrize("workers", [0, 2])
def test_run_finds_nothing_there(image, mask, weight, workers):
    """The masked source has no row; the others are as without; workers open the files themselves."""
    assert found(image)[0] == sorted(PLACES)
    for options in ({"mask": mask}, {"weight": weight}):
        places, table = found(image, workers=workers, **options)
        assert places == sorted((PLACES[0], PLACES[2]))
        about = table.meta["inputs"][0]
        (kind,) = options
        assert about[kind]["name"] == f"{kind}.fits" and len(about[kind]["sha256"]) == 64
    assert {"mask", "weight"}.isdisjoint(found(image)[1].meta["inputs"][0])


@pytest.mark.parametrize(
    "options", [{"resample": 2}, {"region": "10,20,410,290"}, {"region": "10,20,410,290", "resample": 2}]
)
def test_coarse_searches_and_regions_leave_it_out_too(image, mask, options):
    """Levels are made of masked pixels, and a region knows where in the mask it lies."""
    table = surveycat.run(image, detector=BlobDetector(60, 8, 0.0), mask=mask, **options)
    places = zip(table["y"].value.tolist(), table["x"].value.tolist(), strict=True)
    for place, expected in zip(sorted(places), sorted((PLACES[0], PLACES[2])), strict=True):
        assert place == pytest.approx(expected, abs=1)


def test_a_cube_has_weights_of_its_planes(tmp_path):
    """Three planes take weights of three planes, each its own, or of one; planes of other bands are refused."""
    planes = np.random.default_rng(5).normal(100, 5, (3, 60, 70)).astype(np.float32)
    weights = np.stack([np.full((60, 70), value, np.float32) for value in (1, 2, 3)])
    weights[1, 10:20, 10:20] = 0
    for name, values, bands in (
        ("a", planes, "gri"),
        ("w", weights, "gri"),
        ("x", weights, "zrg"),
        ("y", weights[0], ""),
    ):
        fits.PrimaryHDU(values, fits.Header({"BANDS": bands} if bands else {})).writeto(tmp_path / f"{name}.fits")
    with open_image(tmp_path / "a.fits", weight=tmp_path / "w.fits") as opened:
        box = (0, 0, 60, 70)
        assert [float(opened.weight(band, box)[0, 0]) for band in "gri"] == [1, 2, 3]
        assert np.isnan(opened.band("r", box)).sum() == 100 and not np.isnan(opened.band("g", box)).any()
        assert not opened.blank(box).any()
    with open_image(tmp_path / "a.fits", weight=tmp_path / "y.fits") as opened:
        assert all((opened.weight(band, box) == 1).all() for band in "gri")
    with pytest.raises(ImageError, match=r"x.fits has the planes z, r, g, .*a.fits has i, r, g: give the same"):
        open_image(tmp_path / "a.fits", weight=tmp_path / "x.fits")


def test_extensions_of_the_image_s_own_file(sky, tmp_path):
    """Mask and weight may lie beside the image in one file, as pipelines write them."""
    bad, weights = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 0.04, np.float32)
    bad[BAD], weights[:5] = 1, 0
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(sky, name="SCI"), fits.ImageHDU(bad, name="MASK")]
    fits.HDUList([*hdus, fits.ImageHDU(weights, name="IVAR")]).writeto(tmp_path / "all.fits")
    path = tmp_path / "all.fits"
    with open_image(f"{path}[SCI]", mask=f"{path}[MASK]", weight=f"{path}[IVAR]") as opened:
        blank = opened.blank((0, 0, *SHAPE))
        assert blank[BAD].all() and blank[:5].all() and blank.sum() == blank[BAD].size + blank[:5].size
        assert opened.auxiliary["mask"]["name"] == "all.fits[MASK]" and len(opened.auxiliary["weight"]["sha256"]) == 64
        assert opened.source.open().key == opened.key


def test_errors_come_from_the_weights(image, tmp_path):
    """Weights that are four times smaller double the errors of fluxes."""
    errors = []
    for number, value in enumerate((NOISE**-2, NOISE**-2 / 4)):
        path = map_of(tmp_path / f"w{number}.fits", value, value, np.float32)
        table = found(image, weight=path)[1]
        errors.append(np.asarray(table["flux_err_image"]))
    assert (errors[0] > 0).all()
    np.testing.assert_allclose(errors[1] / errors[0], 2, rtol=0.1)


def test_another_process_sees_the_same(image, mask, weight, tmp_path):
    """The source of an image travels as names, and its scratch is not that of the image without them."""
    with open_image(image, mask=mask, weight=weight, scratch=tmp_path / "scratch") as opened:
        again = pickle.loads(pickle.dumps(opened.source)).open()
        np.testing.assert_array_equal(again.read((0, 0, *SHAPE)), opened.read((0, 0, *SHAPE)))
        with open_image(image, mask=mask) as masked, open_image(image) as whole:
            assert len({again.key, masked.key, whole.key}) == 3 and again.key == opened.key


def test_resuming_with_another_mask_is_refused(image, mask, tmp_path):
    """Tiles seen under two masks must not be mixed; the difference is named."""
    out, other = tmp_path / "cat.parquet", map_of(tmp_path / "other.fits", 1, 0, np.uint8, np.s_[:9, :9])
    interrupted(image, out, stop_at=1, mask=mask)
    with pytest.raises(OutputError, match=r"input.mask.name mask.fits, not other.fits"):
        surveycat.run(image, out, detector=BlobDetector(), mask=other, resume=True)


# With bands ------------------------------------------------------------------------------------------------


@pytest.fixture
def bands(tmp_path):
    """Two bands of noise; g is shifted by (10.4, -3.3) pixels and has larger pixels."""
    rng = np.random.default_rng(4)
    heads = {"r": header(BAND_SHAPE, FILTER="r"), "g": header(BAND_SHAPE, (10.4, -3.3), 0.5, FILTER="g")}
    paths = [save(tmp_path / f"{name}.fits", rng.normal(100, 5, BAND_SHAPE), heads[name]) for name in "gr"]
    return Bands(tuple(paths), ("g", "r"))


def test_one_mask_for_all_bands(bands, tmp_path):
    """It lies on the pixels of the reference band and takes all bands there."""
    path = map_of(tmp_path / "m.fits", 1, 0, np.uint8, np.s_[50:70, 90:130], BAND_SHAPE)
    with open_image(bands, mask=path) as opened:
        expected = np.zeros(BAND_SHAPE, bool)
        expected[50:70, 90:130] = True
        for name in opened.bands:
            missing = np.isnan(opened.band(name, (0, 0, *BAND_SHAPE)))
            assert missing[expected].all() and not missing[100:150, 100:150].any()
        np.testing.assert_array_equal(opened.blank((0, 0, *BAND_SHAPE)), expected)


def test_weights_go_with_their_bands(bands, tmp_path):
    """A band that is resampled takes its weights along: right place, and in units of the resampled pixels."""
    values = np.full(BAND_SHAPE, 0.04)
    values[90:110, 120:150] = 0.01
    values[30:40, 30:40] = 0
    weights = [save(tmp_path / f"w{name}.fits", values, header(BAND_SHAPE)) for name in "gr"]
    with open_image(bands, weight=weights) as opened:
        box = (0, 0, *BAND_SHAPE)
        np.testing.assert_allclose(opened.weight("r", box), values.astype(np.float32))
        moved, data = opened.weight("g", box), opened.band("g", box)
        assert np.isnan(data[moved == 0]).all()
        area = (0.4 / 0.5) ** 2
        levels, counts = np.unique(np.round(moved[moved > 0] * area**2, 6), return_counts=True)
        np.testing.assert_allclose(levels, [0.01, 0.04])
        assert counts[0] * area == pytest.approx(20 * 30, rel=0.05)
        ra, dec = surveycat_wcs(bands, "g", 134.5, 99.5)  # the middle of the box of lesser weight
        x, y = opened.sky_to_pixel(ra, dec)
        rows, columns = np.nonzero((moved > 0) & (moved * area**2 < 0.02))
        assert (columns.mean(), rows.mean()) == pytest.approx((float(x), float(y)), abs=0.5)


def surveycat_wcs(bands, name, x, y):
    """ICRS degrees of a pixel of one band's own file."""
    with open_image(bands.paths[bands.names.index(name)]) as one:
        return one.pixel_to_sky(x, y)


def test_as_many_weights_as_bands(bands, weight):
    """One weight for two bands would be wrong for one of them: the line names files and bands."""
    with pytest.raises(OptionError, match=r"1 weights .*weight.fits.* for 2 bands: give one for each file of .*g.fits"):
        open_image(bands, weight=weight)


# What is refused, and what is said --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mask", "weight"])
def test_bad_files(image, tmp_path, kind):
    """Another shape, no FITS, no file, no name: one line that names the file, the shapes and the way out."""
    small = map_of(tmp_path / "small.fits", 1, 1, np.float32, shape=(300, 419))
    Pillow.new("L", SHAPE[::-1]).save(tmp_path / "grey.png")
    for path, error, words in (
        (small, ImageError, rf"--{kind} .*small.fits has 419 x 300 pixels, .*image.fits has 420 x 300"),
        (tmp_path / "grey.png", ImageError, rf"--{kind} .*grey.png is not FITS: give a FITS image"),
        ("compact", ImageError, rf"--{kind} compact does not exist: .*give a FITS image"),
        (np.zeros(SHAPE), OptionError, rf"{kind} is of type ndarray, not a file's name"),
    ):
        with pytest.raises(error, match=words) as caught:
            open_image(image, **{kind: path})
        assert "\n" not in str(caught.value)


def test_a_picture_has_no_weights(tmp_path, weight):
    """Errors are measured on linear data only: the way out is a mask."""
    Pillow.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"--weight .*weight.fits is given for .*a.png, a picture.* as --mask"):
        open_image(tmp_path / "a.png", weight=weight)


def test_nothing_left_is_an_error(image, tmp_path):
    """A mask the wrong way round leaves no data, and the line says that it may be the mask."""
    everything = map_of(tmp_path / "m.fits", 1, 1, np.uint8)
    with pytest.raises(ImageError, match="no data: all pixels are NaN, infinite or BLANK, masked or without weight"):
        open_image(image, mask=everything)


def test_a_mask_is_of_one_image(image, mask, tmp_path):
    """Two separate images with one mask are refused before the work; an output may not be the mask."""
    other = map_of(tmp_path / "b.fits", 1, 0, np.float32)
    with pytest.raises(OptionError, match=r"mask.fits as mask or weight for 2 images; run them one by one"):
        surveycat.run([image, other], detector=BlobDetector(), mask=mask)
    with pytest.raises(OutputError, match="is an input"):
        surveycat.run(image, mask, detector=BlobDetector(), mask=mask, overwrite=True)


@pytest.mark.parametrize(("factor", "said"), [(1, False), (1 / NOISE**2, True), (NOISE**4, True), (1.5, False)])
def test_what_is_no_inverse_variance_is_said(image, tmp_path, caplog, factor, said):
    """A map of rms or variance gives wrong errors: the noise it would mean is compared with that of the sky."""
    path = map_of(tmp_path / "w.fits", factor / NOISE**2, factor / NOISE**2, np.float32)
    with caplog.at_level(logging.INFO, "surveycat"):
        found(image, weight=path)
    assert ("are they inverse variances in units of the image?" in caplog.text) == said

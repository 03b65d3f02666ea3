"""Artificial light: of the right amount, at the right place, of the right shape, and nothing else changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from scipy import ndimage

from surveycat import artificial
from surveycat.artificial import Psf, Stamp, altered, measure_psf, real_galaxy, sersic
from surveycat.centroid import half_light_radius
from surveycat.errors import ImageError, OptionError
from surveycat.image import open_image


def sky(shape, rng, level=100.0, noise=2.0):
    """Empty linear sky."""
    return rng.normal(level, noise, shape).astype(np.float32)


@settings(max_examples=12, deadline=None)
@given(st.floats(2.0, 7.0), st.floats(2.5, 4.5), st.floats(0.75, 1.0), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_psf_has_light_one_and_its_half_light_radius(fwhm, beta, ratio, y, x):
    """A star is as bright as its magnitude says, and half of it is where the size of galaxies is counted from."""
    psf = Psf(fwhm, beta, ratio, 0.4)
    light = psf.at(100 + y, 100 + x, (201, 201))
    width = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    beyond = (1 + (100 / width) ** 2) ** (1 - beta)  # of a round Moffat
    assert light.sum() == pytest.approx(1 - beyond, abs=0.01)
    if ratio > 0.97:
        large = Psf(4 * fwhm, beta).at(100, 100, (201, 201))  # so that pixels do not count
        assert half_light_radius(large, 100, 100) == pytest.approx(4 * psf.half_light_radius, rel=0.06)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0.5, 1.0, 2.5, 4.0]),
    st.floats(1.0, 8.0),
    st.floats(0.3, 1.0),
    st.floats(0, 3.1),
    st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
)
def test_sersic_is_where_and_as_large_as_asked(index, radius, ratio, angle, moved):
    """Light 1, half of it within the ellipse of the half-light radius, and through the PSF where it was moved to."""
    half = int(np.ceil(6 * radius)) + 1
    light = sersic(index, radius, ratio, angle, half)
    assert light.sum() == pytest.approx(1, abs=1e-4)
    seen = artificial.blurred(light, Psf(3.0, 4.0), *moved)
    grid = np.arange(len(seen)) - len(seen) // 2
    centre = [seen.sum(axis=axis) @ grid / seen.sum() for axis in (1, 0)]
    assert centre == pytest.approx(moved, abs=0.03)
    if radius * ratio < 2:
        return  # the pixels themselves are as large
    fine = np.kron(light, np.ones((7, 7))) / 49
    step = (np.arange(len(fine)) + 0.5) / 7 - half - 0.5
    dy, dx = step[:, None], step
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    inside = fine[np.hypot(along, across / ratio) < radius].sum()
    # what lies beyond 6 radii is left out: for n = 4 that is a tenth of the light
    assert inside == pytest.approx(0.5 if index < 4 else 0.55, abs=0.08)


@pytest.mark.parametrize("fwhm, ratio, galaxies", [(2.8, 1.0, 0), (3.5, 0.85, 25)])
def test_psf_is_measured_among_galaxies(fwhm, ratio, galaxies):
    """The seeing comes from stars though half of what is bright is extended."""
    rng = np.random.default_rng(5)
    light, true = sky((600, 600), rng), Psf(fwhm, 3.0, ratio, 0.7)
    for number in range(25 + galaxies):
        y, x = rng.uniform(60, 540, 2)
        row, column = round(y), round(x)
        profile = true.at(40 + y - row, 40 + x - column, (81, 81))
        if number >= 25:
            profile = artificial.blurred(sersic(1.0, rng.uniform(2, 6), 0.6, 0.3, 20), true)
        h, w = profile.shape
        light[row - h // 2 : row + h - h // 2, column - w // 2 : column + w - w // 2] += rng.uniform(6e3, 4e4) * profile
    psf = measure_psf(light)
    assert psf.fwhm == pytest.approx(fwhm, rel=0.06)
    assert psf.ratio == pytest.approx(ratio, abs=0.06)


def test_no_stars_is_no_psf():
    """An empty sky gives no seeing, rather than one fitted to noise."""
    assert measure_psf(sky((300, 300), np.random.default_rng(1))) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_picture_without_added_light_stays_as_it_is(seed):
    """Undoing the stretch and stretching again changes no count that is not burnt out."""
    picture = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(artificial.altered_picture(picture, np.zeros((3, 16, 16), np.float32)), picture)
    tiny = artificial.altered_picture(picture, np.full((3, 16, 16), 1e-9, np.float32))
    dim = picture.max(axis=-1) < 200
    assert np.abs(tiny[dim].astype(int) - picture[dim]).max(initial=0) <= 1


def test_light_added_to_a_picture_comes_back():
    """What is added can be measured again by undoing the stretch: magnitudes in pictures mean something."""
    rng = np.random.default_rng(2)
    picture = rng.integers(8, 20, (41, 41, 3), np.uint8)
    added = 20 * Psf(4.0).at(20, 20, (41, 41)) * np.array([1.3, 1.0, 0.6], np.float32)[:, None, None]
    changed = artificial.altered_picture(picture, added)
    gained = (artificial.light_of_picture(changed) - artificial.light_of_picture(picture)).sum(axis=(1, 2))
    assert gained == pytest.approx(added.sum(axis=(1, 2)), rel=0.05)


@pytest.mark.parametrize("kind", ["picture", "fits"])
def test_altered_image_differs_under_stamps_only(kind, tmp_path):
    """Same stretch, same pixels elsewhere, on every level; a region places stamps in its own pixels."""
    from astropy.io import fits

    rng = np.random.default_rng(3)
    source = rng.integers(5, 30, (300, 320, 3), np.uint8)
    if kind == "fits":
        fits.PrimaryHDU(sky((300, 320), rng)).writeto(tmp_path / "sky.fits")
        source = tmp_path / "sky.fits"
    planes = 3 if kind == "picture" else 1
    light = np.full((planes, 20, 30), 0.5 if kind == "picture" else 400.0, np.float32)
    with open_image(source) as whole:
        image = whole.region((40, 60, 300, 320))
        with altered(image, [Stamp(100, 50, light), Stamp(-10, -10, light), Stamp(250, 255, light)]) as changed:
            before, after = (one.read((0, 0, 260, 260)).astype(int) for one in (image, changed))
            differs = (before != after).any(axis=-1)
            expected = np.zeros((260, 260), bool)
            expected[100:120, 50:80] = expected[:10, :20] = expected[250:, 255:] = True
            # SDSS's pictures are JPEG: light reaches over its block of 16 pixels, and no further
            assert differs[expected].mean() > 0.99
            assert not differs[~ndimage.binary_dilation(expected, np.ones((3, 3)), iterations=16)].any()
            coarse = changed.read((0, 0, 130, 130), 1).astype(int) - image.read((0, 0, 130, 130), 1)
            assert coarse[52:58, 27:38].min() > 0
        assert np.array_equal(image.read((0, 0, 260, 260)), before)


def test_real_galaxy_is_shrunk_to_size(shared_data):
    """Cutouts of real galaxies get the radius asked for, and are never enlarged."""
    files = artificial.galaxy_files(shared_data / "cutouts" / "gz1" / "val")
    rng = np.random.default_rng(4)
    for path in files[:6]:
        light, radius = real_galaxy(path, 3.0, rng)
        assert radius == pytest.approx(3.0, rel=0.01)
        assert light[1].sum() == pytest.approx(1, abs=1e-4) and light.min() >= 0
        rows, columns = light[1].sum(axis=1), light[1].sum(axis=0)
        centre = rows @ np.arange(len(rows)), columns @ np.arange(len(columns))
        assert half_light_radius(light[1], centre[1], centre[0]) == pytest.approx(3.0, rel=0.15)
    largest, own = real_galaxy(files[0], 1e3, rng)
    with Pillow.open(files[0]) as picture:
        assert own < 1e3 and largest.shape[1:] in (picture.size, picture.size[::-1])


def test_folder_without_galaxies_is_refused(tmp_path):
    """One line that names the folder or the file."""
    with pytest.raises(OptionError, match="no pictures"):
        artificial.galaxy_files(tmp_path)
    Pillow.new("RGB", (64, 64)).save(tmp_path / "black.png")
    with pytest.raises(ImageError, match="black.png shows nothing"):
        real_galaxy(tmp_path / "black.png", 3.0, np.random.default_rng(0))
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ImageError, match="text.png cannot be read"):
        real_galaxy(tmp_path / "text.png", 3.0, np.random.default_rng(0))

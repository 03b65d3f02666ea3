"""The map of what was searched: each bit where it belongs, on the sky where the image is."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from click.testing import CliRunner
from detectors import BAD, BlobDetector, Choking
from PIL import Image

import surveycat
from surveycat import coverage, pipeline
from surveycat.cli import main
from surveycat.coverage import BITS, coverage_strips
from surveycat.image import open_image
from surveycat.tiles import Tile, TileGrid

SEEN, FAILED, BLANK, CAPPED = (bit for bit, _ in BITS.values())
SHAPE = (500, 700)


def black(bad_at=None):
    """A dark picture, with a pixel that some detectors cannot stand."""
    pixels = np.full((*SHAPE, 3), 4, np.uint8)
    if bad_at:
        pixels[bad_at] = BAD
    return pixels


def read(path):
    """Map and header."""
    with fits.open(path) as hdus:
        return hdus["COVERAGE"].data, hdus["COVERAGE"].header


def test_failed_tile_is_a_hole_where_no_other_shows_the_sky(tmp_path):
    """What a neighbour shows as well is seen all the same; the whole of the failed tile is marked."""
    surveycat.run(black(bad_at=(499, 699)), detector=Choking(), coverage=tmp_path / "cov.fits")
    data, _ = read(tmp_path / "cov.fits")
    failed = np.zeros(SHAPE, bool)
    failed[244:, 444:] = True  # the last tile
    unseen = np.zeros(SHAPE, bool)
    unseen[448:, 640:] = True  # beyond the last tiles but one, at 192 + 256 and 384 + 256
    assert data.dtype == np.uint8 and np.array_equal(data & FAILED > 0, failed)
    assert np.array_equal(data & SEEN == 0, unseen) and not (data & (BLANK | CAPPED)).any()


@pytest.mark.parametrize("strip", [1, 7 * 700, 10**9])
def test_all_bits_whatever_the_strips(tmp_path, monkeypatch, strip):
    """Failed and capped tiles of any level, tiles that reach past the image, blank pixels: as painted at once."""
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    data[100:120, 30:60] = np.nan
    fits.writeto(tmp_path / "image.fits", data)
    grid = TileGrid(SHAPE)
    failed = [grid.tile(5), Tile(len(grid) + 1, 1, 60, 90, 256), Tile(-7, 0, -20, 500, 160)]
    capped = [grid.tile(len(grid) - 1), Tile(-1, 0, 0, 0, 160)]
    monkeypatch.setattr(coverage, "STRIP_PIXELS", strip)
    with open_image(tmp_path / "image.fits") as image:
        found = np.concatenate(list(coverage_strips(image, failed, capped)))
    expected = np.zeros(SHAPE, np.uint8)
    for tile in [tile for tile in grid.tiles() if tile.level == 0 and tile.index != 5]:
        expected[tile.y0 : tile.y0 + 256, tile.x0 : tile.x0 + 256] |= SEEN
    for tiles, bit in ((failed, FAILED), (capped, CAPPED)):
        for tile in tiles:
            y0, x0, y1, x1 = (max(side, 0) << tile.level for side in tile.box)
            expected[y0:y1, x0:x1] |= bit
    expected[100:120, 30:60] |= BLANK
    assert np.array_equal(found, expected)


def test_lasting_cap_is_on_the_map(tmp_path):
    """A crowd that not even windows resolve is marked, and only there."""
    pixels = black()
    pixels[8:240:12, 8:240:12] = 255
    surveycat.run(pixels, detector=BlobDetector(threshold=100, min_area=1, most=20), coverage=tmp_path / "cov.fits")
    data, _ = read(tmp_path / "cov.fits")
    assert (data[10:230, 10:230] & CAPPED).all() and not (data[:, 420:] & CAPPED).any()


def test_map_lies_where_the_image_lies(tmp_path):
    """A position is the same pixel in map and image, also of a region; the header says what the bits are."""
    Image.fromarray(black()).save(tmp_path / "field.png")
    options = {"detector": BlobDetector(), "ra": 351.65, "dec": -1.17, "pixel_scale": 0.4}
    surveycat.run(tmp_path / "field.png", coverage=tmp_path / "part.fits", region="100,50,400,450", **options)
    data, header = read(tmp_path / "part.fits")
    assert data.shape == (400, 300) and (data == SEEN).all()
    x, y = WCS(header).world_to_pixel_values(351.65, -1.17)
    assert (x + 100, y + 50) == pytest.approx((350, 250), abs=1e-6)
    assert (header["LTV1"], header["LTV2"]) == (-100, -50)
    assert [header[f"BIT{n}"] for n in range(4)] == list(BITS) and "8 capped" in str(header["COMMENT"])


def test_resumed_run_makes_its_own_map(tmp_path):
    """A map in scratch of an earlier attempt must not be taken for that of this one."""
    with open_image(black()) as image:
        for failed in ([], [TileGrid(SHAPE).tile(0)]):
            coverage.write_coverage(tmp_path / "cov.fits", image, failed, [], tmp_path / "scratch")
            assert bool((read(tmp_path / "cov.fits")[0] & FAILED).any()) == bool(failed)


def test_command(tmp_path, monkeypatch):
    """`--coverage` writes beside the catalogue, and exit code 3 says that the map is worth a look."""
    monkeypatch.setattr(pipeline, "DetectorSpec", lambda *weights, **options: Choking())
    Image.fromarray(black(bad_at=(499, 699))).save(tmp_path / "field.png")
    names = [str(tmp_path / name) for name in ("field.png", "cat.parquet", "cov.fits")]
    result = CliRunner().invoke(main, ["run", names[0], "--out", names[1], "--coverage", names[2]])
    assert result.exit_code == 3, result.stderr
    assert (read(names[2])[0] & FAILED).any()
    again = CliRunner().invoke(main, ["run", names[0], "--out", str(tmp_path / "b.fits"), "--coverage", names[2]])
    assert again.exit_code == 1 and "cov.fits exists already" in again.stderr

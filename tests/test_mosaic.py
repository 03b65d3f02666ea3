"""Fields put together from cutouts: every pixel where the WCS says, in every format."""

import errno
import json
import threading

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner
from detectors import BlobDetector
from PIL import Image
from scipy import ndimage
from skyserver_loopback import Loopback, Sky

import surveycat
from surveycat.cli import main
from surveycat.errors import OptionError, OutputError, OutsideFootprint, PositionError, ServiceError
from surveycat.image import open_image
from surveycat.mosaic import avm_packet, fetch, with_xmp
from surveycat.skyserver import SkyServer
from surveycat.wcs import sky_to_pixel, tan_wcs


def galaxies_around(ra, dec, half, step):
    """Lay galaxies out on a grid of positions, `half` and `step` in degrees."""
    offsets = np.arange(-half, half + step / 2, step)
    return [[(ra + x / np.cos(np.radians(dec))) % 360, dec + y, 2.5, 200.0] for x in offsets for y in offsets]


def service(server, **options):
    """Give a client of a loopback server that does not wait long."""
    return SkyServer(server.url, **{"rate": 1000, "backoff": 0.01, "attempts": 3} | options)


def in_small_cutouts(monkeypatch, block):
    """Have fields made of blocks of few pixels, so that several need little time."""
    monkeypatch.setattr("surveycat.mosaic.BLOCK", block)
    monkeypatch.setattr("surveycat.mosaic.SIZES", (64, int(1.42 * block) + 20))


def misplacement(path, positions):
    """Give the distances, in pixels, of the light from where the file's own WCS puts each position."""
    with open_image(path) as image:
        assert image.wcs_source in ("avm", "header")
        x, y = sky_to_pixel(image.wcs, *np.transpose(positions))
        inside = (x > 20) & (x < image.shape[1] - 20) & (y > 20) & (y < image.shape[0] - 20)
        assert inside.sum() >= 4
        distances = []
        for column, row in zip(x[inside], y[inside], strict=True):
            left, top = round(column) - 15, round(row) - 15
            light = image.band("r", (top, left, top + 31, left + 31)) - 20
            cy, cx = ndimage.center_of_mass(np.maximum(light, 0))
            distances.append(np.hypot(left + cx - column, top + cy - row))
    return np.array(distances)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".fits"])
def test_a_small_field_is_one_cutout_untouched(suffix, tmp_path):
    """The pixels are those that SkyServer sent, and the file says where they are."""
    ra, dec = 359.999, 20.0
    places = galaxies_around(ra, dec, 0.012, 0.006)
    out = tmp_path / f"field{suffix}"
    with Loopback(Sky(places)) as server:
        got = fetch(ra, dec, (2.0, 1.8), out, service=service(server))
        sent = service(server).cutout(ra, dec, got["shape"][1], got["shape"][0]).pixels
    assert len(server.requests) == 2 and got["cutouts"] == 1 and got["black"] == 0
    with open_image(out) as image:
        stored = image.read((0, 0, *image.shape), 0)
        assert (stored == (sent[::-1] if suffix == ".fits" else sent)).all()
        assert image.pixel_scale == pytest.approx(0.396127, rel=1e-4)
    assert misplacement(out, [place[:2] for place in places]).max() < 0.3


@pytest.mark.parametrize("ra, dec", [(0.0, 0.0), (150.0, 65.0), (10.0, -89.99)])
def test_a_large_field_is_placed_by_its_wcs(ra, dec, tmp_path, monkeypatch):
    """Many cutouts, askew on the field at high declinations and around the pole: each galaxy where the WCS says."""
    in_small_cutouts(monkeypatch, 150)
    places = galaxies_around(ra, min(max(dec, -89.0), 89.0), 0.04, 0.01)
    if dec < -89:
        places = [[a, -90 + r / 100, 2.5, 200.0] for a in range(0, 360, 60) for r in (1.5, 3)]
    out = tmp_path / "field.png"
    with Loopback(Sky(places)) as server:
        got = fetch(ra, dec, 6.0, out, pixel_scale=1.0, service=service(server))
    assert got["shape"] == (360, 360) and got["cutouts"] == len(server.requests) == 9
    assert misplacement(out, [place[:2] for place in places]).max() < 0.3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".fits"])
def test_run_needs_no_position_of_a_fetched_field(suffix, tmp_path, monkeypatch):
    """Galaxies of a field of several cutouts come out within 0.1 arcsec of where they are, in every format."""
    in_small_cutouts(monkeypatch, 150)
    places = galaxies_around(150.0, 40.0, 0.012, 0.008)
    out = tmp_path / f"field{suffix}"
    with Loopback(Sky([[ra, dec, 1.5, 180.0] for ra, dec, *_ in places])) as server:
        fetch(150.0, 40.0, 2.0, out, service=service(server))
    assert len(server.requests) == 9
    table = surveycat.run(out, detector=BlobDetector(threshold=60), resample="none")
    assert len(table) == len(places) == 16
    ra, dec = np.array([place[:2] for place in places]).T
    east = (table["ra"].value[:, None] - ra) * np.cos(np.radians(40.0))
    assert np.hypot(east, table["dec"].value[:, None] - dec).min(axis=0).max() * 3600 < 0.1


def test_seams_do_not_show(tmp_path, monkeypatch):
    """Neighbouring cutouts agree on what lies across their border: galaxies on seams are whole."""
    wcs = tan_wcs((240, 240), 200.0, 40.0, 1.0)
    middle = [(200.0, 40.0)]
    assert np.allclose(sky_to_pixel(wcs, *middle[0]), 120)
    whole = {}
    for size in (120, 160):
        in_small_cutouts(monkeypatch, size)
        with Loopback(Sky([[200.0, 40.0, 6.0, 200.0]])) as server:
            fetch(200.0, 40.0, 4.0, tmp_path / f"{size}.png", pixel_scale=1.0, service=service(server))
        whole[size] = np.asarray(Image.open(tmp_path / f"{size}.png")).astype(float)[100:140, 100:140]
    assert np.abs(whole[120] - whole[160]).mean() < 6  # each cutout has noise of its own, sigma 3


def test_edge_of_the_survey_is_black_and_reported(tmp_path, caplog, monkeypatch):
    """A field half outside is written, black there, with a warning; one wholly outside is an error."""
    in_small_cutouts(monkeypatch, 100)
    half = Sky([], inside=lambda ra, dec: (ra < 30.0) & (dec > -90))
    with Loopback(half) as server:
        got = fetch(30.0, 0.0, 3.0, tmp_path / "half.png", pixel_scale=0.9, service=service(server))
        pixels = np.asarray(Image.open(tmp_path / "half.png"))
        assert got["black"] == pytest.approx(0.5, abs=0.1) and "has no image in SDSS" in caplog.text
        assert not pixels[:, :90].any() and pixels[:, 110:].any(axis=2).mean() > 0.9
        with pytest.raises(OutsideFootprint):
            fetch(40.0, 0.0, 3.0, tmp_path / "none.png", pixel_scale=0.9, service=service(server))
    assert not (tmp_path / "none.png").exists()


def test_a_failing_cutout_leaves_nothing(tmp_path, monkeypatch):
    """When one cutout cannot be had, there is no half-filled picture."""
    in_small_cutouts(monkeypatch, 100)

    def manners(kind, number, parameters):
        return "busy-503" if number >= 2 else None

    with Loopback(Sky([]), manners) as server, pytest.raises(ServiceError, match="HTTP 503"):
        fetch(30.0, 0.0, 5.0, tmp_path / "field.png", pixel_scale=1.0, service=service(server, attempts=2))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_asked_again_after_the_end(tmp_path, monkeypatch):
    """A command that ends early, by a refusal or Ctrl-C, does not wait for cutouts that are being asked for again."""
    in_small_cutouts(monkeypatch, 100)
    with Loopback(Sky([]), lambda kind, number, parameters: "busy-503" if number else "small") as server:
        words = ["--size", "5", "--pixel-scale", "1", "--no-cache", "--skyserver", server.url]
        done = CliRunner().invoke(main, ["fetch", "--ra", "30", "--dec", "0", "--out", str(tmp_path / "f.png"), *words])
        for thread in threading.enumerate():
            if thread.name.startswith("surveycat-fetch"):
                thread.join(30)
        assert done.exit_code == 1 and "was the size clamped" in done.stderr
        assert len(server.requests) < 10  # six attempts for each of the four that were under way would be more


def test_a_full_disk_is_noticed_before_anything_is_fetched(tmp_path, monkeypatch):
    """A large field is put together in a file, whose room on the disk is taken first."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("surveycat.mosaic.IN_MEMORY", 0)
    monkeypatch.setattr("os.posix_fallocate", full)
    with Loopback(Sky([])) as server, pytest.raises(OutputError, match="No space left on device.*TMPDIR"):
        fetch(30.0, 0.0, 50.0, tmp_path / "field.png", pixel_scale=1.0, service=service(server))
    assert server.requests == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"size": 0}, OptionError, "0 x 0 arcmin"),
        ({"size": 10_000}, OptionError, "10000 x 10000 arcmin"),
        ({"ra": 400.0}, PositionError, "ra 400.0"),
        ({"pixel_scale": 100.0}, OptionError, "pixel-scale is 100"),
        ({"size": 600, "out": "big.jpg"}, OptionError, "they end at 65500"),
        ({"out": "field.gif"}, OutputError, "field.gif"),
    ],
)
def test_what_cannot_be_fetched_is_refused(change, error, said, tmp_path):
    """Before anything is asked for."""
    usual = {"ra": 10.0, "dec": 0.0, "size": 2.0, "out": "field.png"} | change
    usual["out"] = tmp_path / usual["out"]
    with pytest.raises(error, match=said):
        fetch(**usual, service=SkyServer("http://127.0.0.1:9"))


def test_avm_is_what_pyavm_writes(tmp_path):
    """Other programs find the position: FITS conventions and pyavm's tags agree with ours."""
    import pyavm

    wcs = tan_wcs((100, 140), 12.5, -7.25, 0.5)
    Image.fromarray(np.zeros((100, 140, 3), np.uint8)).save(tmp_path / "plain.jpg")
    data = with_xmp((tmp_path / "plain.jpg").read_bytes(), avm_packet(wcs, (100, 140)))
    (tmp_path / "tagged.jpg").write_bytes(data)
    theirs = pyavm.AVM.from_image(str(tmp_path / "tagged.jpg")).to_wcs(target_shape=(140, 100))
    x, y = np.array([10.0, 100.0]), np.array([20.0, 90.0])
    ours = wcs.pixel_to_world(x, y)
    assert ours.separation(theirs.pixel_to_world(x, 99 - y)).arcsec.max() < 1e-6  # pyavm counts rows from the bottom


def test_fits_is_right_for_others(tmp_path):
    """The header is plain FITS: i, r, g planes, north up when rows count upwards."""
    with Loopback(Sky([[80.0, 10.0, 2.0, 200.0]])) as server:
        fetch(80.0, 10.0, 2.0, tmp_path / "field.fits", pixel_scale=1.0, service=service(server))
    with fits.open(tmp_path / "field.fits") as hdus:
        data, header = hdus[0].data, hdus[0].header
    assert data.shape == (3, 120, 120) and data.dtype == np.uint8
    assert header["PC2_2"] > 0 > header["PC1_1"]
    y, x = np.unravel_index(data[0].argmax(), data[0].shape)
    assert (x + 1, y + 1) == pytest.approx((header["CRPIX1"], header["CRPIX2"]), abs=1)


def test_from_the_command_line(tmp_path, monkeypatch):
    """`surveycat fetch` takes the address from the environment, says what it made, and refuses to replace it."""
    with Loopback(Sky([[351.65, 0.1, 3.0, 200.0]])) as server:
        monkeypatch.setenv("SURVEYCAT_SKYSERVER", server.url)
        monkeypatch.setenv("SURVEYCAT_CACHE", str(tmp_path / "cache"))
        words = ["fetch", "--ra", "351.65", "--dec", "0.10", "--size", "2x1", "--out", str(tmp_path / "field.jpg")]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0 and "303 x 151 pixels from 1 cutouts" in done.stdout
        again = CliRunner().invoke(main, words)
        assert again.exit_code == 1 and "exists already" in again.stderr
        replaced = CliRunner().invoke(main, [*words, "--overwrite"])
        assert replaced.exit_code == 0
        wrong = CliRunner().invoke(main, [*words[:6], "big", *words[7:], "--overwrite"])
        assert wrong.exit_code == 1 and "--size is 'big'" in wrong.stderr
    assert len(server.requests) == 1  # the second time it came from the cache
    assert json.dumps(server.requests[0][1])

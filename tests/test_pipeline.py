"""The straight line: from pixels to a catalogue, with a stand-in for the network."""

import numpy as np
import pytest
from astropy.table import Table
from detectors import BAD, BlobDetector, Choking
from PIL import Image
from simulate import simulate_field

import surveycat
from surveycat import catalog
from surveycat.errors import OptionError, OutputError, RunFailed, SurveycatError, WeightsError

SKY = {"ra": 351.65, "dec": -1.17}


@pytest.fixture(scope="module")
def field():
    """A simulated field of 600 x 500 pixels and its truth; several tiles, two levels."""
    return simulate_field((500, 600), n_spiral=6, n_elliptical=6, n_star=10, seed=5)


@pytest.fixture
def path(field, tmp_path):
    """The same as a PNG file."""
    Image.fromarray(field[0]).save(tmp_path / "field.png")
    return tmp_path / "field.png"


def blobs():
    """A detector that finds what stands out of the sky, stars too."""
    return BlobDetector(threshold=30, min_area=40, smooth=1.0)


def nearest(table, truth):
    """Distance in pixels from each true galaxy to the nearest row."""
    x, y = np.asarray(table["x"]), np.asarray(table["y"])
    return np.array([np.hypot(x - row["x"], y - row["y"]).min() for row in truth])


def same_rows(one, other, tolerance=1e-4):
    """Say whether two catalogues have the same rows: text and integers equal, floats close."""
    assert one.colnames == other.colnames and len(one) == len(other)
    for name in one.colnames:
        a, b = (np.asarray(getattr(table[name], "value", table[name])) for table in (one, other))
        if a.dtype == object:
            assert all(np.allclose(u, v, atol=tolerance) for u, v in zip(a, b, strict=True)), name
        elif a.dtype.kind == "f":
            assert np.allclose(a, b, atol=tolerance, equal_nan=True), name
        else:
            assert np.array_equal(a, b), name


def test_every_galaxy_that_is_detected_gets_a_row(field, path):
    """Nothing is lost or doubled between the detector and the table, over seams and levels."""
    table = surveycat.run(path, detector=blobs(), **SKY)
    large = field[1][field[1]["area"] > 150]
    assert np.max(nearest(table, large)) < 1.5
    x, y = np.asarray(table["x"]), np.asarray(table["y"])
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + 100 * np.eye(len(x))
    assert apart.min() > 3, "an object has two rows"
    assert list(table["id"]) == list(range(1, len(table) + 1))


def test_file_holds_what_was_returned(path, tmp_path):
    """The file opens with astropy alone, units included, and says how it was made."""
    table = surveycat.run(path, tmp_path / "cat.parquet", detector=blobs(), **SKY)
    from_file = Table.read(tmp_path / "cat.parquet")
    assert str(from_file["ra"].unit) == "deg" and str(from_file["area"].unit) == "arcsec2"
    same_rows(table, catalog.read(tmp_path / "cat.parquet"), tolerance=0)
    for meta in (table.meta, from_file.meta):
        assert meta["surveycat_version"] == surveycat.__version__
        assert meta["weights"] == "BlobDetector"
        assert meta["inputs"][0]["name"] == "field.png" and len(meta["inputs"][0]["sha256"]) == 64
        assert meta["inputs"][0]["wcs_source"] == "radec"
        assert meta["options"]["ra"] == 351.65 and meta["options"]["min_score"] == 0.5
        assert meta["tiles_failed"] == [] and meta["run_seconds"] > 0


def test_workers_change_nothing(path):
    """One process and two give the same rows, ids and classes."""
    same_rows(surveycat.run(path, detector=blobs(), **SKY), surveycat.run(path, detector=blobs(), workers=2, **SKY))


def test_array_and_file_give_the_same(field, path):
    """An image in memory is as good as one on disk, for workers too."""
    from_file = surveycat.run(path, detector=blobs(), **SKY)
    same_rows(from_file, surveycat.run(field[0], detector=blobs(), **SKY))
    same_rows(from_file, surveycat.run(field[0], detector=blobs(), workers=1, **SKY))


def test_several_images_give_one_table(field, path, tmp_path):
    """A column says which image a row is of, and ids are unique over all."""
    Image.fromarray(field[0][::-1]).save(tmp_path / "flipped.png")
    one = surveycat.run(path, detector=blobs())
    both = surveycat.run([path, tmp_path / "flipped.png"], tmp_path / "both.fits", detector=blobs())
    assert set(both["image"]) == {"field.png", "flipped.png"}
    assert len(both) == 2 * len(one) and len(set(both["id"])) == len(both)
    assert [about["name"] for about in both.meta["inputs"]] == ["field.png", "flipped.png"]


def test_region_gives_the_rows_of_the_whole(field, path):
    """A part of an image is given in pixels and sky positions of the whole image."""
    whole = surveycat.run(path, detector=blobs(), **SKY)
    part = surveycat.run(path, detector=blobs(), region="200,150,560,460", **SKY)
    inside = whole[
        (np.asarray(whole["x_min"]) > 200) & (np.asarray(whole["x_max"]) < 560)
        & (np.asarray(whole["y_min"]) > 150) & (np.asarray(whole["y_max"]) < 460)
    ]  # fmt: skip
    assert len(inside) > 3
    for row in inside:
        i = np.argmin(np.hypot(np.asarray(part["x"] - row["x"]), np.asarray(part["y"] - row["y"])))
        for name in ("x", "y", "x_min", "y_max", "ra", "dec", "area_pix"):
            assert part[name][i].value == pytest.approx(row[name].value, abs=0.01), name
        assert np.allclose(part["footprint_x"][i], row["footprint_x"])


def test_no_galaxy_is_an_empty_table(tmp_path):
    """Nothing found is a table with all columns and no rows, and a file of it."""
    table = surveycat.run(np.zeros((300, 300, 3), np.uint8), tmp_path / "none.parquet", detector=blobs(), **SKY)
    assert len(table) == 0 and {"ra", "x", "class", "footprint_x", "flags"} <= set(table.colnames)
    assert len(Table.read(tmp_path / "none.parquet")) == 0


@pytest.mark.parametrize("shape", [(1, 1), (255, 257), (20, 1000)])
def test_odd_sizes(shape):
    """Smaller than a tile, larger by a pixel, thin: all are images."""
    image = np.zeros((*shape, 3), np.uint8)
    image[: min(9, shape[0]), : min(9, shape[1])] = 200
    table = surveycat.run(image, detector=BlobDetector(min_area=1))
    assert len(table) == 1 and table["x"][0].value == (min(9, shape[1]) - 1) / 2


def test_failed_tiles_are_recorded_and_flagged(field, tmp_path):
    """A tile that could not be searched is named in the meta, and rows that touch it say so."""
    bad = field[0].copy()
    bad[499, 599] = BAD
    table = surveycat.run(bad, tmp_path / "cat.parquet", detector=Choking(threshold=30, min_area=40, smooth=1.0))
    failed = Table.read(tmp_path / "cat.parquet").meta["tiles_failed"]
    assert failed == table.meta["tiles_failed"]
    assert [(tile["level"], tile["reason"]) for tile in failed] == [(0, "ValueError: cannot stand this colour")]
    tile = failed[0]
    near = (np.asarray(table["x_max"]) > tile["x0"]) & (np.asarray(table["y_max"]) > tile["y0"])
    flagged = np.asarray(table["flags"]) >> catalog.FLAGS["near_failed_tile"] & 1
    assert near.any() and not near.all() and np.array_equal(flagged, near)


def test_nothing_searched_is_an_error(tmp_path):
    """If every tile fails there is no catalogue: an empty one would be a lie."""
    bad = np.zeros((100, 100, 3), np.uint8)
    bad[50, 50] = BAD
    with pytest.raises(RunFailed, match="none of its tiles could be searched; the first: ValueError: cannot"):
        surveycat.run(bad, tmp_path / "cat.parquet", detector=Choking())
    assert not list(tmp_path.iterdir())


def test_progress_names_the_stages(path):
    """Whoever shows progress hears of the stages by name, each up to its total."""
    heard = []
    surveycat.run(path, detector=blobs(), progress=lambda *news: heard.append(news))
    assert heard[0][0] == "tiles" and {stage for stage, _, _ in heard} <= {"tiles", "second looks"}
    last = [news for news in heard if news[0] == "tiles"][-1]
    assert last[1] == last[2]


class Unused:
    """A detector that must not be asked."""

    def load(self):
        """Fail."""
        raise AssertionError("the work has begun")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"min_score": 1.5}, OptionError, "min-score is 1.5; give a probability"),
        ({"region": "1,2,3"}, OptionError, "region '1,2,3'"),
        ({"region": "9000,0,9100,50"}, OptionError, "outside"),
        ({"ra": 10.0}, SurveycatError, "dec"),
        ({"out": "cat.xlsx"}, OutputError, "unknown suffix '.xlsx'"),
        ({"out": "nowhere/cat.fits"}, OutputError, "no folder nowhere"),
        ({"preview": "p.gif"}, OutputError, "unknown suffix '.gif'"),
        ({"images": []}, OptionError, "no image was given"),
        ({"images": ["a.png", "b.png"], "ra": 1.0, "dec": 2.0}, OptionError, "one sky position for 2 images"),
        ({"images": ["a.png", "b.png"], "preview": "p.png"}, OptionError, "one preview p.png for 2 images"),
    ],
)
def test_refused_before_the_work(path, options, error, words, tmp_path, monkeypatch):
    """What can be known to be wrong is said before any network is loaded, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(error, match=words):
        surveycat.run(options.pop("images", path), detector=Unused(), **options)
    assert set(tmp_path.iterdir()) == before


def test_existing_output_is_kept(path, tmp_path):
    """A catalogue of yesterday is not lost by a slip, and is replaced when that is asked for."""
    out = tmp_path / "cat.ecsv"
    out.write_text("yesterday")
    with pytest.raises(OutputError, match="exists already"):
        surveycat.run(path, out, detector=Unused())
    assert out.read_text() == "yesterday"
    surveycat.run(path, out, detector=blobs(), overwrite=True)
    assert len(catalog.read(out)) > 0


def test_an_input_is_never_an_output(field, tmp_path):
    """`--overwrite` must not destroy the image."""
    image = tmp_path / "image.fits"
    from astropy.io import fits

    fits.writeto(image, field[0][..., 1].astype(np.float32))
    with pytest.raises(OutputError, match="is an input"):
        surveycat.run(image, image, detector=Unused(), overwrite=True)


def test_unknown_weights_are_refused(path):
    """The name that came, and what there is."""
    with pytest.raises(WeightsError, match="no weights called 'grand'"):
        surveycat.run(path, weights="grand")


def test_preview_is_drawn(path, tmp_path):
    """A picture of the image with what was found."""
    surveycat.run(path, preview=tmp_path / "p.png", detector=blobs(), **SKY)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width >= 600 and picture.height >= 500

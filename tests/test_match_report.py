"""The report of a match: its figures are counts that one can check, and its files say the same."""

import json

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner
from PIL import Image

from surveycat.cli import main
from surveycat.errors import OptionError, OutputError
from surveycat.match import identify, match
from surveycat.match_report import FILES, figures, kinds, report, text
from surveycat.tablefile import read_table

ARCSEC = 1 / 3600


def scene(n=200, seed=0):
    """A reference of n galaxies and 20 stars; a catalogue of those brighter than 19, 10 false ones, one star."""
    rng = np.random.default_rng(seed)
    ra, dec = 10 + rng.uniform(-0.05, 0.05, n + 20), rng.uniform(-0.05, 0.05, n + 20)
    reference = Table({"ra": ra, "dec": dec, "petroMag_r": rng.uniform(15, 21, n + 20)})
    reference["petroR90_r"] = rng.uniform(2, 20, n + 20)
    reference["type"] = [3] * n + [6] * 20
    reference["t01_smooth_or_features_a02_features_or_disk_debiased"] = rng.uniform(0, 1, n + 20)
    seen = np.flatnonzero((reference["petroMag_r"] < 19) & (np.arange(n + 20) < n)).tolist() + [n]
    table = Table({"ra": ra[seen], "dec": dec[seen]})
    table["ra"] += 0.1 * ARCSEC
    table["p_spiral"] = reference["t01_smooth_or_features_a02_features_or_disk_debiased"][seen]
    false = Table(
        {"ra": 10 + rng.uniform(-0.05, 0.05, 10), "dec": rng.uniform(0.051, 0.055, 10), "p_spiral": [0.5] * 10}
    )
    for row in false:
        table.add_row(row)
    table["flux_r"] = np.linspace(1, 100, len(table))
    table["semimajor"] = np.linspace(1, 5, len(table))
    corners = [(10.06, -0.06), (10.06, 0.06), (9.94, 0.06), (9.94, -0.06)]
    outline = "POLYGON ICRS " + " ".join(f"{a} {d}" for a, d in corners)
    table.meta["inputs"] = [{"name": "field", "s_region": outline}]
    return table, reference, seen


@pytest.fixture(scope="module")
def found():
    table, reference, seen = scene()
    outside = reference[:30].copy()
    outside["dec"] += 1.0
    for row in outside:
        reference.add_row(row)
    return figures(identify(table, reference), 2.0), len(seen) - 1, reference


def test_completeness_counts_galaxies_in_the_area(found):
    """Stars and what lies outside of the images are not missed galaxies; all bins together are the whole."""
    numbers, n_seen, _ = found
    overall = numbers["completeness"]["overall"]
    assert (overall["n"], overall["with_partner"]) == (200, n_seen)
    assert overall["low"] < overall["fraction"] < overall["high"]
    for by in ("by_magnitude", "by_size"):
        bins = numbers["completeness"][by]["bins"]
        assert sum(each["n"] for each in bins) == 200 and sum(each["with_partner"] for each in bins) == n_seen
    for each in numbers["completeness"]["by_magnitude"]["bins"]:
        assert each["n"] == 0 or each["fraction"] == (1.0 if each["to"] <= 19 else 0.0)
    assert numbers["reference"]["stars_in_area"] == 20 and numbers["reference"]["stars_with_partner"] == 1
    assert numbers["reference"]["area_from"] == "images"


def test_purity_counts_rows_of_the_catalogue(found):
    """False rows have no partner; a star that is taken for a galaxy has one, and is listed as such."""
    numbers, n_seen, _ = found
    overall = numbers["purity"]["overall"]
    assert (overall["n"], overall["with_partner"]) == (n_seen + 11, n_seen + 1)
    assert sum(each["n"] for each in numbers["purity"]["by_size"]["bins"]) == n_seen + 11


def test_positions_and_classes(found):
    """The shift that was put in comes out, and classes that are the votes agree with them."""
    numbers, n_seen, _ = found
    positions = numbers["positions"]
    np.testing.assert_allclose(positions["east"]["median"], -0.1, atol=1e-6)
    np.testing.assert_allclose([positions["north"]["median"], positions["median_separation"]], [0, 0.1], atol=1e-6)
    assert numbers["wcs"]["verdict"] == "good"
    assert numbers["classes"]["agree"]["fraction"] == 1.0 and numbers["classes"]["n"] == n_seen + 1


def test_area_without_outlines_is_the_hull():
    """A catalogue that does not know its images covers what lies between its objects."""
    table, reference, _ = scene()
    table.meta = {}
    numbers = figures(identify(table, reference), 2.0)
    assert numbers["reference"]["area_from"] == "hull" and 150 < numbers["reference"]["in_area"] <= 220


@pytest.mark.parametrize(
    ("column", "values"),
    [("type", [3, 6, 0]), ("type", ["GALAXY", "STAR", "?"]), ("extendedness", [1.0, 0.0, np.nan]),
     ("starnotgal", [0, 1, 5]), ("class", ["galaxy", "star", "QSO"]), ("objc_type", ["3", "6", ""])],
)  # fmt: skip
def test_stars_are_told_from_galaxies(column, values):
    """Surveys have different codes for the same."""
    assert kinds(Table({column: values})).tolist() == ["galaxy", "star", ""]


def test_reference_without_magnitudes_and_catalogue_without_anything():
    """What is not there is left out, and the report is made all the same."""
    table, reference, _ = scene()
    numbers = figures(identify(table["ra", "dec"], reference["ra", "dec"]), 2.0)
    assert numbers["completeness"]["by_magnitude"] is None and numbers["classes"] is None
    numbers = figures(identify(table[:0], reference), 2.0)
    assert numbers["purity"]["overall"]["fraction"] is None and numbers["wcs"]["verdict"] == "unknown"
    assert "nothing to count" in text(numbers)


def test_files(tmp_path):
    """All files are there, say the same, and are pictures of something; a report is not replaced unasked."""
    table, reference, _ = scene()
    matched = identify(table, reference)
    numbers = report(matched, tmp_path / "r", radius=2.0)
    assert sorted(each.name for each in (tmp_path / "r").iterdir()) == sorted(FILES)
    assert json.loads((tmp_path / "r" / "report.json").read_text()) == numbers
    assert (tmp_path / "r" / "report.txt").read_text() == text(numbers)
    for name in FILES[2:]:
        picture = np.asarray(Image.open(tmp_path / "r" / name).convert("L"))
        assert min(picture.shape) > 400 and 0.001 < (picture < 200).mean() < 0.5
    with pytest.raises(OutputError, match="holds a report already"):
        report(matched, tmp_path / "r", radius=2.0)
    with pytest.raises(OutputError, match="there is no folder"):
        report(matched, tmp_path / "a" / "b", radius=2.0)
    report(identify(table["ra", "dec"], reference["ra", "dec"]), tmp_path / "r", radius=2.0, overwrite=True)
    assert not (tmp_path / "r" / "classes.png").exists()


def test_json_has_no_nan(tmp_path):
    """Other programs read the JSON, which knows no NaN."""
    table, reference, _ = scene()
    table["ra"] += 0.01
    report(identify(table, reference, radius=0.5), tmp_path / "r", radius=0.5)
    json.loads((tmp_path / "r" / "report.json").read_text(), parse_constant=pytest.fail)


def test_wrong_column_is_named(tmp_path):
    """A slip in --mag-column costs one line, and no half report."""
    table, reference, _ = scene()
    with pytest.raises(OptionError, match="--mag-column rmag is no column of the reference"):
        match(table, reference, tmp_path / "m.parquet", report=tmp_path / "r", mag_column="rmag")
    assert not any(tmp_path.iterdir())


def test_command_warns_of_a_mirrored_field(tmp_path, shared_data):
    """From the command line: real galaxies, mirrored, against the survey's detections."""
    folder = shared_data / "fields" / "sdss_351.65+0.10_run4192"
    table = read_table(folder / "galaxies.csv")["id", "ra", "dec", "petromag_r", "r50_px"]
    table["ra"] = 2 * 351.65 - table["ra"]
    table.write(tmp_path / "mirrored.ecsv")
    arguments = ["match", "mirrored.ecsv", "lsst_detections_r.csv", "--out", "m.parquet", "--report", "report"]
    arguments = [str(folder / each) if each.startswith("lsst") else each for each in arguments]
    arguments = [
        str(tmp_path / each) if each in ("mirrored.ecsv", "m.parquet", "report") else each for each in arguments
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert "the WCS looks mirrored" in result.stderr
    assert "WARNING: the WCS looks mirrored" in (tmp_path / "report" / "report.txt").read_text()

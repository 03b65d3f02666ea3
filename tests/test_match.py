"""Matching two tables: who is whose partner, what the joined table holds, and what a user can get wrong."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from click.testing import CliRunner
from test_catalog import make_table

import surveycat
from surveycat.cli import main
from surveycat.errors import OptionError, OutputError, PositionError, SurveycatError
from surveycat.match import MATCH_FLAGS, match
from surveycat.tablefile import read_table

ARCSEC = 1 / 3600
DR7 = 587722981741363294


def here(*arcsec):
    """Positions along a parallel, arcsec from RA 10 at Dec 0."""
    return {"ra": 10 + np.array(arcsec) * ARCSEC, "dec": np.zeros(len(arcsec))}


def flag(*names):
    return sum(1 << MATCH_FLAGS[name] for name in names)


@pytest.fixture
def catalogue():
    table = Table({"id": [1, 2, 3], **here(0, 10, 20)})
    table["class"] = ["spiral", "elliptical", "spiral"]
    table["ra"].unit = "deg"
    return table


@pytest.fixture
def reference():
    table = Table({"objid": [DR7, DR7 + 1, DR7 + 2], **here(10.5, 0.2, 1.0), "mag": [17.5, 18.0, 19.0]})
    table["mag"].unit = "mag"
    return table


def test_left_join_keeps_every_row(catalogue, reference):
    """Each object has one row, in its order, with its nearest partner or none."""
    result = match(catalogue, reference)
    assert isinstance(result, QTable)
    assert result["cat_id"].tolist() == [1, 2, 3] and result["ref_objid"].tolist() == [DR7 + 1, DR7, 0]
    assert result["separation"].unit == u.arcsec
    np.testing.assert_allclose(result["separation"].value, [0.2, 0.5, np.nan], atol=1e-7)
    assert result["n_candidates"].tolist() == [2, 1, 0]
    assert result["match_flag"].tolist() == [flag("matched"), flag("matched"), 0]
    assert np.isnan(result["ref_mag"][2].value) and result["ref_mag"].unit == u.mag
    assert result.meta["match"]["n_matched"] == 2


def test_inner_join_and_all_pairs(catalogue, reference):
    """`inner` leaves out rows without a partner; `all_pairs` has a row for every pair, nearest first."""
    assert match(catalogue, reference, join="inner")["cat_id"].tolist() == [1, 2]
    result = match(catalogue, reference, all_pairs=True)
    assert result["cat_id"].tolist() == [1, 1, 2, 3]
    assert result["ref_objid"].tolist() == [DR7 + 1, DR7 + 2, DR7, 0]
    assert result["match_flag"].tolist() == [flag("matched"), flag("matched", "not_nearest"), flag("matched"), 0]


def test_flags_say_what_is_doubtful():
    """A second choice and a tie are matches that a careful user will look at."""
    result = match(Table(here(0, 1.0)), Table(here(0.2, 2.5)), radius=2)
    assert result["match_flag"].tolist() == [flag("matched"), flag("matched", "not_nearest")]
    result = match(Table(here(0)), Table(here(1, -1)), radius=2)
    assert result["match_flag"].tolist() == [flag("matched", "tied")]


def test_large_galaxy_finds_its_partner_in_its_footprint(catalogue):
    """The position of a large galaxy is uncertain by more than the radius; its outline is not."""
    corners = [(-6, -4), (6, -4), (6, 4), (-6, 4)]
    outline = " ".join(f"{10 + x * ARCSEC:.8f} {y * ARCSEC:.8f}" for x, y in corners)
    catalogue["s_region"] = [f"POLYGON ICRS {outline}", "", ""]
    reference = Table(here(5, 7))
    assert match(catalogue, reference)["match_flag"].tolist() == [0, 0, 0]
    result = match(catalogue, reference, footprint=True)
    assert result["match_flag"].tolist() == [flag("matched", "in_footprint"), 0, 0]
    assert result["n_candidates"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(result["separation"][0].value, 5, atol=1e-6)


def test_prefixes(catalogue, reference):
    """Names are the user's to choose, as long as no two columns are called the same."""
    result = match(catalogue, reference, prefixes=("", "sdss_"))
    assert {"id", "ra", "sdss_ra", "sdss_objid"} < set(result.colnames)
    with pytest.raises(OptionError, match="column ra is in both tables"):
        match(catalogue, reference, prefixes=("", ""))
    catalogue["separation"] = 1.0
    with pytest.raises(OptionError, match="column separation is in a table already"):
        match(catalogue, reference, prefixes=("", "ref_"))


def test_identifiers(catalogue, reference):
    """Identifiers that differ in the last of 18 digits are different, in integers and in text; 0 is none."""
    catalogue["dr7objid"] = [str(DR7 + 1), str(DR7 + 5), "0"]
    reference.rename_column("objid", "DR7OBJID")
    reference.add_row([0, 10.0, 0.0, 20.0])
    result = match(catalogue, reference, on="dr7objid")
    assert result["ref_DR7OBJID"].tolist() == [DR7 + 1, 0, 0]
    assert result["match_flag"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(result["separation"][0].value, 0.2, atol=1e-7)
    reference["DR7OBJID"] = reference["DR7OBJID"].astype(float)
    with pytest.raises(OptionError, match="floating-point"):
        match(catalogue, reference, on="dr7objid")
    with pytest.raises(OptionError, match="--on name is no column of the catalogue"):
        match(catalogue, reference, on="name")


def test_identifiers_need_no_positions(catalogue):
    """A list of identifiers and labels is a reference too."""
    catalogue["dr8objid"] = [5, 6, 7]
    result = match(catalogue, Table({"dr8objid": [7, 5], "label": ["a", "b"]}), on="dr8objid")
    assert result["ref_label"].tolist() == ["b", "", "a"] and np.isnan(result["separation"].value).all()


@pytest.mark.parametrize("suffix", ["parquet", "fits", "vot", "ecsv"])
def test_files_keep_units_and_missing_values(tmp_path, catalogue, suffix):
    """What is written reads back the same, whatever types the reference came in."""
    reference = Table({**here(10.5, 0.2), "n": MaskedColumn([1, 2], mask=[True, False])})
    reference["big"] = np.array([2**63 + 1, 1], np.uint64)
    reference["flux"] = np.array([[1.0, 2.0], [3.0, 4.0]], ">f4")
    reference["name"] = np.array([b"abc", b"d"])
    reference["type"] = np.array([3, 6], np.uint16)
    reference["id"] = ["x", "y"]
    path = tmp_path / f"m.{suffix}"
    match(catalogue, reference, path)
    table = read_table(path)
    assert table["ref_n"].tolist() == [2, 0, 0] and table["ref_type"].tolist() == [6, 3, 0]
    text = {name: np.ma.filled(table[name], "").tolist() for name in ("ref_big", "ref_name")}  # ECSV masks ""
    assert text == {"ref_big": ["1", str(2**63 + 1), ""], "ref_name": ["d", "abc", ""]}
    np.testing.assert_array_equal(np.ma.filled(table["ref_flux_1"], np.nan), [4, 2, np.nan])
    assert str(table["separation"].unit) == "arcsec" and str(table["cat_ra"].unit) == "deg"
    assert table.meta["match"]["flags"] == MATCH_FLAGS and table.meta["match"]["radius"] == 2.0


def test_tables_in_memory_with_masked_quantities(catalogue):
    """A table as astropy reads it may hold masked quantities: what is masked is missing, not its old value."""
    reference = QTable({**here(0.2, 10.2), "z": Masked([0.1, 0.2], mask=[False, True])})
    reference["flux"] = Masked([5.0, 6.0] * u.nJy, mask=[True, False])
    result = match(catalogue, reference)
    np.testing.assert_array_equal(result["ref_z"][:2], [0.1, np.nan])
    np.testing.assert_array_equal(result["ref_flux"][:2].to_value(u.nJy), [np.nan, 6])


def test_unmatched_rows_of_the_reference(tmp_path, catalogue, reference):
    """What the catalogue has missed is a table of its own, its columns as they were."""
    reference["id"] = ["a", "b", "c"]  # a column that our own catalogues have as numbers
    match(catalogue, reference, unmatched=tmp_path / "missed.fits")
    missed = read_table(tmp_path / "missed.fits")
    assert missed.colnames == reference.colnames and missed["id"].tolist() == ["c"]
    assert missed["objid"].tolist() == [DR7 + 2]


def test_catalogues_match_each_other(tmp_path):
    """Two catalogues of our own have lists in them, and meta; both come through."""
    surveycat.write(make_table(4), tmp_path / "a.parquet")
    surveycat.write(make_table(3), tmp_path / "b.fits")
    result = match(tmp_path / "a.parquet", tmp_path / "b.fits", tmp_path / "m.parquet", radius=3600)
    table = read_table(tmp_path / "m.parquet")
    assert (np.asarray(result["match_flag"]) > 0).sum() == 3
    assert [len(each) for each in table["ref_footprint_x"]].count(0) == 1


@pytest.mark.parametrize("n", [(0, 3), (3, 0), (0, 0)])
def test_empty_tables(catalogue, reference, n):
    """Nothing to match is a result with all its columns."""
    result = match(catalogue[: n[0]], reference[: n[1]])
    assert len(result) == n[0] and {"cat_id", "ref_mag", "separation", "match_flag"} < set(result.colnames)
    assert not result["match_flag"].any()


def test_outputs_are_checked_before_anything_is_read(tmp_path, catalogue):
    """A result that cannot be written is said at once, and an existing one is kept."""
    (tmp_path / "m.parquet").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        match(catalogue, tmp_path / "nothing.csv", tmp_path / "m.parquet")
    with pytest.raises(SurveycatError, match="there is no table"):
        match(catalogue, tmp_path / "nothing.csv", tmp_path / "m.parquet", overwrite=True)
    assert (tmp_path / "m.parquet").read_text() == "precious"


def test_a_report_that_cannot_be_written_is_said_before_the_match(tmp_path, catalogue, monkeypatch):
    """Not after the tables are read, and SDSS was asked."""

    def refused(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(OutputError, match="cannot write into .*: Permission denied; choose another folder"):
        match(catalogue, tmp_path / "nothing.csv", report=tmp_path / "report")


def test_no_output_replaces_another_or_an_input(tmp_path, catalogue):
    """Neither is written when both have one name, and a table that was matched is not lost to `overwrite`."""
    out, other = tmp_path / "m.csv", tmp_path / "ours.csv"
    with pytest.raises(OutputError, match="two outputs have one name"):
        match(catalogue, catalogue, out, unmatched=out)
    assert not out.exists()
    catalogue.write(other)
    with pytest.raises(OutputError, match="ours.csv is an input"):
        match(catalogue, other, other, overwrite=True)


def test_what_is_wrong_is_said_of_the_right_table(catalogue, reference):
    """Both tables have positions to get wrong."""
    with pytest.raises(PositionError, match="the catalogue: no columns with positions"):
        match(catalogue["id", "class"], reference)
    with pytest.raises(PositionError, match="the catalogue is in pixels only: make it again with --wcs"):
        match(make_table(sky=False), reference)
    with pytest.raises(PositionError, match="the reference: no columns with positions"):
        match(catalogue, reference["objid", "mag"])
    with pytest.raises(OptionError, match="--join outer"):
        match(catalogue, reference, join="outer")
    with pytest.raises(OptionError, match="--footprint needs the column s_region"):
        match(catalogue, reference, footprint=True)


def test_function_stays_callable_when_its_module_is_imported():
    """`surveycat.match` is the function, also after something has imported the module of that name."""
    import surveycat.match

    assert surveycat.match is match


# Command line ---------------------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(main, ["match", *map(str, arguments)])


def test_command(tmp_path, catalogue, reference):
    """One line says how many were found; `--prefixes` and `--unmatched` do what they say."""
    catalogue.write(tmp_path / "cat.ecsv")
    reference.write(tmp_path / "ref.fits")
    out, missed = tmp_path / "m.parquet", tmp_path / "missed.csv"
    result = command(tmp_path / "cat.ecsv", tmp_path / "ref.fits", "--out", out, "--prefixes", ",r_",
                     "--unmatched", missed)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("2 of 3 objects have a partner among the 3 of ")
    assert {"id", "r_objid"} < set(read_table(out).colnames) and len(read_table(missed)) == 1


def test_command_says_errors_in_one_line(tmp_path, catalogue):
    """A user's slip costs one line and exit code 1; wrong usage exits with 2."""
    catalogue.write(tmp_path / "cat.ecsv")
    result = command(tmp_path / "cat.ecsv", "gz9", "--out", tmp_path / "m.parquet")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "there is no table gz9: give the path of a file, or sdss, gz1 or gz2" in result.stderr
    result = command(tmp_path / "cat.ecsv", "gz9", "--out", tmp_path / "m.parquet", "--prefixes", "a")
    assert result.exit_code == 2 and not (tmp_path / "m.parquet").exists()


# Real tables ----------------------------------------------------------------------------------------------


def test_galaxies_find_themselves_in_galaxy_zoo(shared_data):
    """Galaxies whose Galaxy Zoo identifier is known are matched with that row, and get its votes."""
    field = shared_data / "fields" / "sdss_351.65+0.10_run4192"
    zoo = "gz2:" + str(shared_data / "catalogs" / "gz2_stripe82_coadd.csv.gz")
    result = match(field / "galaxies.csv", zoo)
    known = np.asarray(result["cat_objid"]) > 0
    assert known.sum() == 3 and (result["cat_objid"] == result["gz2_objid"])[known].all()
    assert (np.asarray(result["match_flag"]) > 0).sum() == 3
    votes = result["gz2_t01_smooth_or_features_a01_smooth_weighted_fraction"][known]
    np.testing.assert_allclose(votes, result["cat_gz2_smooth"][known], atol=5e-4)


def test_two_epochs_are_the_same_stars(shared_data):
    """Star lists of one sky, in two headers' positions: the same stars, by position as by identifier."""
    runs = [shared_data / "fields" / f"sdss_351.65+0.10_run{run}" / "stars.csv" for run in (4192, 6377)]
    by_position, by_name = match(*runs, join="inner"), match(*runs, join="inner", on="sdssid")
    named = by_position[np.asarray(by_position["cat_sdssid"]) > 0]
    assert len(by_name) > 80
    assert set(named["cat_sdssid"]) == set(by_name["cat_sdssid"])
    assert (named["cat_sdssid"] == named["ref_sdssid"]).all()

"""The catalogue: names, ids and hosts, and what each file format keeps."""

import csv
import io
import os
import shutil
import stat
import subprocess

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from surveycat import catalog
from surveycat.catalog import FLAGS, LIST, SCHEMA, TEXT
from surveycat.errors import OutputError, SurveycatError
from surveycat.tablefile import read_table

SUFFIXES = list(catalog.FORMATS)
META = {
    "version": "0.1",
    "options": {"min_score": 0.5, "region": None},
    "input": "Sky №1.jpg",
    "tiles": [1, 2],
}


def make_table(n=3, sky=True, bands="gri"):
    """Measured objects with outlines of different lengths, as `measure` would give them."""
    rng = np.random.default_rng(7)
    columns = {}
    for column in SCHEMA:
        if column.when == "images" or column.name == "name" or (column.when == "sky" and not sky):
            continue
        if column.dtype == LIST:
            values = catalog.lists([np.arange(4 + i) + 0.5 for i in range(n)])
        elif column.dtype == TEXT:
            values = np.array([f"text {i}" for i in range(n)], dtype="U10")
        else:
            values = (rng.uniform(1, 300, n)).astype(column.dtype)
        names = [column.name.format(band=b) for b in bands] if "{band}" in column.name else [column.name]
        columns.update({name: values for name in names})
    columns["id"], columns["host"] = np.arange(1, n + 1), np.zeros(n, int)
    if sky:
        columns["ra"], columns["dec"] = np.linspace(359.9, 360, n), np.linspace(-0.1, 0.1, n)
    return catalog.conform(QTable(columns))


@pytest.fixture(params=[3, 0], ids=["rows", "empty"])
def finished(request):
    return catalog.finish(make_table(request.param), META)


# Schema ---------------------------------------------------------------------------------------------------


def test_ucds_are_those_of_the_ivoa():
    """A UCD with a slip is silently ignored by every tool that reads it."""
    from astropy.io.votable.ucd import parse_ucd

    for column in SCHEMA:
        parse_ucd(column.ucd, check_controlled_vocabulary=True)
    for band in "ugrizy":
        parse_ucd(catalog._expand(f"flux_{band}").ucd, check_controlled_vocabulary=True)


def test_schema_has_units_that_every_format_knows():
    """Units must be valid in FITS and in VOTable alike."""
    for column in SCHEMA:
        u.Unit(column.unit).to_string("fits")
        u.Unit(column.unit).to_string("vounit")


def test_text_and_units_that_fits_does_not_know(tmp_path):
    """File names with accents, and what other surveys' tables bring along, must not end a run when it is written."""
    table = Table({"image": ["na\u00efve.jpg", "b.jpg"], "gr\u00f6\u00dfe": [1, 2], "flux": [1.0, 2.0]})
    table["flux"].unit, table["flux"].description = u.nmgy, "in \u00b5m\nof light"
    catalog.write_table(table, tmp_path / "table.fits")
    back = read_table(tmp_path / "table.fits")
    assert list(back["image"]) == ["na\\xefve.jpg", "b.jpg"] and str(back["flux"].unit) == "nmgy"
    assert back.colnames[1] == "gr\\xf6\\xdfe" and list(back["flux"]) == [1.0, 2.0]


def test_descriptions_are_short_enough_to_stay_on_one_line():
    """astropy breaks longer ones over two lines in VOTables, and they do not come back the same."""
    for column in SCHEMA:
        assert len(column.description) <= 58, column.name


def test_columns_come_in_the_order_of_the_schema():
    """Readers of the documentation find the columns where it says."""
    table = make_table(bands="irg")
    shuffled = catalog.finish(table[table.colnames[::-1]])
    wanted = []
    for column in SCHEMA:
        wanted += [column.name.format(band=b) for b in "gri"] if "{band}" in column.name else [column.name]
    assert shuffled.colnames == [name for name in wanted if name != "image"]


def test_unknown_columns_are_kept_behind_the_others():
    """Later stages add columns of their own (matches); the schema must not eat them."""
    table = make_table()
    table["separation"] = [1, 2, 3] * u.arcsec
    kept = catalog.finish(table)
    assert kept.colnames[-1] == "separation"
    assert kept["separation"].unit == u.arcsec


def test_documentation_lists_every_column():
    """The column list of README is made from the schema, one line each."""
    lines = catalog.columns_markdown().splitlines()
    assert len(lines) == len(SCHEMA) + 2
    assert any(line.startswith("| `flux_*` ") for line in lines)
    assert all(line.count("|") == 6 for line in lines)


def test_flag_names():
    """Bits are named as the schema's meta has them."""
    assert catalog.flag_names(1 << FLAGS["blended"] | 1 << FLAGS["unresolved"]) == ["blended", "unresolved"]
    assert catalog.flag_names(0) == []


def test_bits_that_stitching_sets_are_those_named_here():
    """Stitching may not import the catalogue, so the two lists of bits must be held together."""
    from surveycat import stitch

    for name in ("edge_truncated", "single_look", "blended", "capped"):
        assert getattr(stitch, name.upper()) == 1 << FLAGS[name]


# Names, ids, hosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ra", "dec", "name"),
    [
        (309.42929, -1.18633, "SVC J203743.02-011110.7"),
        (15 * (20 + 37 / 60 + 43.02 / 3600), -(1 + 10 / 60 + 10.7 / 3600), "SVC J203743.02-011010.7"),
        (359.999999, 0.0, "SVC J235959.99+000000.0"),
        (360.0, -0.000001, "SVC J000000.00-000000.0"),
        (-1e-12, 89.99999, "SVC J000000.00+895959.9"),
        (0.0, 90.0, "SVC J000000.00+900000.0"),
        (np.nan, 1.0, ""),
    ],
)
def test_iau_name(ra, dec, name):
    """Names are truncated as the IAU asks, and safe at RA 0, the equator and the pole."""
    assert catalog.iau_name([ra], [dec]).tolist() == [name]


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 360, exclude_max=True), st.floats(-90, 90))
def test_iau_name_lies_below_the_position_by_less_than_its_last_digit(ra, dec):
    """Truncation: the name, read as a position, is never beyond the true one and never a digit short."""
    (name,) = catalog.iau_name([ra], [dec])
    assert len(name) == len("SVC J203743.02-011010.7")
    time, arc = name[5:14], name[14:]
    seconds = int(time[:2]) * 3600 + int(time[2:4]) * 60 + float(time[4:])
    arcsec = int(arc[1:3]) * 3600 + int(arc[3:5]) * 60 + float(arc[5:])
    behind = (ra * 240 - seconds + 43200) % 86400 - 43200
    assert -1e-6 <= behind < 0.01 + 1e-6
    assert -1e-6 <= abs(dec) * 3600 - arcsec < 0.1 + 1e-6


def test_hosts_follow_their_rows():
    """A host is named by its new id when rows before it were left out, and by 0 when it is gone itself."""
    table = make_table(5)
    table["host"] = [0, 0, 2, 1, 2]
    assert catalog.finish(table[1:])["host"].tolist() == [0, 1, 0, 1]
    assert catalog.finish(table[[4, 1]])["host"].tolist() == [2, 0]
    assert catalog.finish(table)["id"].tolist() == [1, 2, 3, 4, 5]


def test_join_keeps_hosts_apart_and_fills_what_an_image_lacks():
    """Hosts point within their own image; an image without sky position or band leaves NaN, not 0."""
    first, second = make_table(3), make_table(2, sky=False, bands="r")
    first["host"], second["host"] = [0, 1, 0], [0, 1]
    joined = catalog.finish(catalog.join([first, second], ["a.jpg", "b.fits"]))
    assert joined["image"].tolist() == ["a.jpg"] * 3 + ["b.fits"] * 2
    assert joined["host"].tolist() == [0, 1, 0, 0, 4]
    assert joined["name"][3] == ""
    assert np.isnan(joined["ra"][3:]).all() and np.isnan(joined["flux_g"][3:]).all()
    assert np.array_equal(joined["flux_r"][3:], second["flux_r"])
    assert joined["ra"].unit == u.deg and joined["flux_g"].dtype == np.float64
    assert [list(row) for row in joined["footprint_x"]] == [
        list(row) for table in (first, second) for row in table["footprint_x"]
    ]


def test_join_of_nothing_found():
    """Two images without galaxies give an empty table with all columns."""
    joined = catalog.finish(catalog.join([make_table(0), make_table(0)], ["a", "b"]))
    assert len(joined) == 0 and "image" in joined.colnames


# Files ----------------------------------------------------------------------------------------------------


def assert_same(back, table, name):
    """Compare one column after a round trip."""
    column = catalog._expand(name)
    if column.dtype == LIST:
        assert [list(row) for row in back[name]] == [list(row) for row in table[name]]
    elif column.dtype == TEXT:
        assert back[name].astype(str).tolist() == table[name].tolist()
    else:
        wanted = np.asarray(u.Quantity(table[name]).value)
        np.testing.assert_array_equal(np.asarray(u.Quantity(back[name]).value), wanted)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(finished, suffix, tmp_path):
    """Values, units, descriptions, UCDs and order survive every format; meta all but CSV."""
    path = tmp_path / f"cat{suffix}"
    catalog.write(finished, path)
    back = catalog.read(path)
    assert back.colnames == finished.colnames
    assert len(back) == len(finished)
    for name in finished.colnames:
        assert_same(back, finished, name)
        assert all(row.dtype == np.float32 for row in back["footprint_x"])
        assert back[name].unit == finished[name].unit
        assert back[name].info.description == finished[name].info.description
        assert back[name].info.meta["ucd"] == finished[name].info.meta["ucd"]
    if suffix != ".csv":
        assert back.meta == finished.meta
        assert back.meta["flags"] == FLAGS and back.meta["options"]["region"] is None


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".csv"])
def test_astropy_alone_reads_units(finished, suffix, tmp_path, recwarn):
    """`Table.read(path)` with no argument gives units, descriptions and types, without a warning."""
    path = tmp_path / f"cat{suffix}"
    catalog.write(finished, path)
    back = Table.read(path)
    assert back.colnames == finished.colnames and len(back) == len(finished)
    for name in finished.colnames:
        column = catalog._expand(name)
        assert back[name].unit == (u.Unit(column.unit) if column.unit else None), name
        assert back[name].description == column.description
        assert back[name].info.meta["ucd"] == column.ucd
        if column.dtype not in (LIST, TEXT):
            assert back[name].dtype.newbyteorder("=") == np.dtype(column.dtype), name
        if len(back):
            assert_same(back, finished, name)
    assert not [str(w.message) for w in recwarn]


def test_parquet_for_others(finished, tmp_path):
    """pyarrow sees lists, types, units; pandas opens it; VOParquet's header holds every column."""
    import pandas
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "cat.parquet"
    catalog.write(finished, path)
    arrow = pyarrow.parquet.read_table(path)
    assert arrow.schema.field("footprint_x").type == pa.list_(pa.float32())
    assert arrow.schema.field("x_min").type == pa.int32()
    assert arrow.schema.field("class").type == pa.string()
    assert arrow.schema.field("ra").metadata[b"unit"] == b"deg"
    assert arrow.schema.field("ra").metadata[b"ucd"] == b"pos.eq.ra;meta.main"
    frame = pandas.read_parquet(path)
    assert len(frame) == len(finished) and frame.columns.tolist() == finished.colnames
    if len(frame):
        assert frame["footprint_x"][1].tolist() == list(finished["footprint_x"][1])

    metadata = arrow.schema.metadata
    assert metadata[b"IVOA.VOTable-Parquet.version"] == b"1.0"
    assert b"<DATA" not in metadata[b"IVOA.VOTable-Parquet.content"]
    votable = Table.read(path, format="parquet.votable")
    assert votable.colnames == finished.colnames and len(votable) == len(finished)
    assert votable["ra"].unit == u.deg and votable["ra"].info.meta["ucd"] == "pos.eq.ra;meta.main"


def test_fits_for_topcat(finished, tmp_path):
    """TOPCAT reads UCDs and descriptions from TUCDn and TCOMMn; the file keeps to the standard."""
    from astropy.io import fits

    path = tmp_path / "cat.fits"
    catalog.write(finished, path)
    with fits.open(path) as hdus:
        hdus.verify("exception")
        header = hdus[1].header
        number = finished.colnames.index("ra") + 1
        assert header[f"TUCD{number}"] == "pos.eq.ra;meta.main"
        assert header[f"TCOMM{number}"] == catalog._expand("ra").description
        assert header[f"TFORM{finished.colnames.index('footprint_x') + 1}"].startswith(("PE", "1PE"))
        assert header["NAXIS2"] == len(finished)


@pytest.fixture
def stilts():
    """Command line of STIL, the library that TOPCAT reads tables with; Debian has it as `stilts`."""
    if shutil.which("stilts") is None:
        pytest.skip("stilts is not on the PATH: apt-get install stilts")

    def run(*arguments):
        answer = subprocess.run(["stilts", *arguments], capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout + answer.stderr

    return run


def test_stil_finds_nothing_wrong_with_our_votables(finished, tmp_path, stilts):
    """votlint is silent, with rows and without."""
    catalog.write(finished, tmp_path / "cat.vot")
    assert stilts("votlint", str(tmp_path / "cat.vot")) == ""


@pytest.mark.parametrize("suffix", [".vot", ".fits", ".ecsv"])
def test_stil_reads_what_we_say_of_columns(suffix, tmp_path, stilts):
    """All rows come, with names, units, UCDs and descriptions; STIL of Debian does not read Parquet."""
    table, path = catalog.finish(make_table(3), META), tmp_path / f"cat{suffix}"
    catalog.write(table, path)
    said = stilts("tpipe", f"in={path}", "cmd=meta name units ucd description", "ofmt=csv")
    known = {row["Name"]: row for row in csv.DictReader(io.StringIO(said))}
    assert list(known) == table.colnames
    for name, row in known.items():
        column = catalog._expand(name)
        unit = u.Unit(column.unit) if column.unit else None
        assert (u.Unit(row["Units"]) if row["Units"] else None) == unit, name
        assert (row["UCD"], row["Description"]) == (column.ucd, column.description)
    assert "rows: 3" in stilts("tpipe", f"in={path}", "omode=count")


def test_lsdb_takes_a_catalogue(tmp_path):
    """The recipe of README: a catalogue becomes one of LSDB and finds itself in a cross-match."""
    lsdb = pytest.importorskip("lsdb", reason="lsdb is not installed: pip install 'surveycat[lsdb]'")
    import pandas

    catalog.write(catalog.finish(make_table(20)), tmp_path / "cat.parquet")
    frame = pandas.read_parquet(tmp_path / "cat.parquet")
    ours = lsdb.from_dataframe(frame, ra_column="ra", dec_column="dec")
    matched = ours.crossmatch(ours, radius_arcsec=2, suffixes=("_cat", "_ref")).compute()
    assert len(matched) == 20 and (matched["id_cat"] == matched["id_ref"]).all()
    assert sorted(map(len, matched["footprint_x_cat"])) == list(range(4, 24))


def test_csv_is_plain(finished, tmp_path):
    """CSV opens anywhere: one line of names, then rows; lists are JSON."""
    import json

    import pandas

    path = tmp_path / "cat.csv"
    catalog.write(finished, path)
    frame = pandas.read_csv(path)
    assert frame.columns.tolist() == finished.colnames
    if len(frame):
        assert json.loads(frame["footprint_y"][0]) == list(finished["footprint_y"][0])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_values_survive(suffix, tmp_path):
    """NaN stays NaN and empty text stays empty, in joined tables too."""
    joined = catalog.finish(catalog.join([make_table(2), make_table(1, sky=False)], ["a", "b"]))
    path = tmp_path / f"cat{suffix}"
    catalog.write(joined, path)
    back = catalog.read(path)
    assert np.isnan(back["ra"][2]) and np.isfinite(back["ra"][:2]).all()
    assert back["name"].tolist() == joined["name"].tolist() and back["name"][2] == ""
    assert back["s_region"][2] == ""


def test_existing_output_is_refused_unless_asked(tmp_path):
    """A night's catalogue is not lost to a slip."""
    path = tmp_path / "cat.parquet"
    catalog.write(make_table(2), path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="cat.parquet exists already"):
        catalog.write(make_table(3), path)
    assert path.read_bytes() == before
    catalog.write(make_table(3), path, overwrite=True)
    assert len(catalog.read(path)) == 3


@pytest.mark.parametrize("name", ["cat.hdf5", "cat", "cat.parquet.bak"])
def test_unknown_suffix_names_the_known_ones(name, tmp_path):
    """The refusal lists what would work."""
    with pytest.raises(OutputError, match=r"use one of \.parquet \.fits \.vot \.xml \.ecsv \.csv"):
        catalog.check_output(tmp_path / name)


def test_missing_or_wrong_folder(tmp_path):
    """A missing folder and a folder in place of a file are said before the work starts."""
    with pytest.raises(OutputError, match="there is no folder"):
        catalog.check_output(tmp_path / "nowhere" / "cat.fits")
    (tmp_path / "folder.fits").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        catalog.check_output(tmp_path / "folder.fits", overwrite=True)


def test_unwritable_folder():
    """A folder in which no file can be made is said before the work starts, to root as well."""
    with pytest.raises(OutputError, match="cannot write into /proc"):
        catalog.check_output("/proc/cat.fits")


def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path):
    """The name only ever holds a complete file; a full disk leaves the old one and no rubbish."""
    path = tmp_path / "cat.fits"
    path.write_text("old")

    def fill_disk(partial):
        with open(partial, "w") as file:
            file.write("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        catalog.atomic_write(path, fill_disk)
    with pytest.raises(ZeroDivisionError):
        catalog.atomic_write(path, lambda partial: 1 / 0)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["cat.fits"]


def test_files_have_the_usual_permissions(tmp_path):
    """Colleagues can read the catalogue: not the 0600 of a temporary file."""
    mask = os.umask(0o022)
    try:
        catalog.write(make_table(1), tmp_path / "cat.csv")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "cat.csv").stat().st_mode) == 0o644


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_give_one_line(suffix, tmp_path):
    """Half a file, a missing file and an unknown one are user errors, with the name in one line."""
    whole, half = tmp_path / f"whole{suffix}", tmp_path / f"half{suffix}"
    catalog.write(catalog.finish(make_table(3)), whole)
    half.write_bytes(whole.read_bytes()[: len(whole.read_bytes()) // 4])
    for path in (half, tmp_path / f"missing{suffix}", tmp_path / "odd.txt"):
        with pytest.raises(SurveycatError, match=f"cannot read .*{path.name}") as caught:
            catalog.read(path)
        assert "\n" not in str(caught.value)

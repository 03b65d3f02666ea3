"""Lists of targets as people have them: every format, identifiers whole, bad rows told apart."""

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from surveycat.errors import OptionError, PositionError, SurveycatError
from surveycat.targets import columns_of, read_targets

BIG = 1237648702966464577


def table():
    """Give three targets with ids that floating point cannot hold."""
    return Table({"objid": np.arange(BIG, BIG + 3), "ra": [1.0, 2.0, 3.0], "dec": [-1.0, 0.0, 1.0], "r": [5, 6, 7]})


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "fits", "vot", "ecsv", "parquet", "txt"])
def test_formats(suffix, tmp_path):
    """All formats give the same targets, ids as int64 and exact."""
    path, kind = tmp_path / f"list.{suffix}", {"csv.gz": "ascii.csv", "csv": "ascii.csv", "txt": "ascii"}
    if suffix == "csv.gz":
        import gzip

        table().write(tmp_path / "plain", format="ascii.csv")
        path.write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    else:
        formats = {"vot": "votable", "ecsv": "ascii.ecsv"} | kind
        table().write(path, format=formats.get(suffix, suffix))
    found = read_targets(path, columns=["R"])
    assert found.id.dtype == np.int64 and found.id.tolist() == [BIG, BIG + 1, BIG + 2]
    assert found.ra.tolist() == [1.0, 2.0, 3.0] and found.dec.tolist() == [-1.0, 0.0, 1.0]
    assert found.others["R"].tolist() == [5, 6, 7] and not found.refused and not found.images
    assert found.one(1) == {"id": BIG + 1, "ra": 2.0, "dec": 0.0, "R": 6}
    assert set(columns_of(path)) >= {"objid", "ra", "dec", "r"}


def test_published_tables_of_galaxy_zoo(tmp_path, shared_data):
    """The columns and quirks of Galaxy Zoo 1 (sexagesimal) and 2; excerpts of real ones are read whole."""
    path = tmp_path / "GalaxyZoo1_DR_table2.csv"
    path.write_text("OBJID,RA,DEC,NVOTE\n587727178986356823,00:00:00.41,-10:22:25.7,59\n587727227300741210,00:00:00.74,"
                    "-09:13:20.2,18\n")  # fmt: skip
    found = read_targets(path)
    assert found.id.tolist() == [587727178986356823, 587727227300741210]
    assert np.allclose(found.ra, [0.41 / 240, 0.74 / 240]) and found.dec[0] == pytest.approx(
        -(10 + 22 / 60 + 25.7 / 3600)
    )
    real = read_targets(shared_data / "catalogs" / "gz2_types_bbergerud.csv.gz", columns=["petroR90_g"])
    assert len(real) == 29407 and real.id[0] == 587722981751193901 and not real.refused
    assert real.others["petroR90_g"][0] == pytest.approx(5.710853)


def test_identifiers_stay_what_they_are(tmp_path):
    """Text that looks like a number but is written otherwise stays text; what does not fit int64 too."""
    for ids in (["007", "8"], ["J1234+56", "8"], [str(2**63), "8"], ["a", "b"]):
        path = tmp_path / "list.csv"
        path.write_text("name,ra,dec\n" + "".join(f"{each},1,2\n" for each in ids))
        assert read_targets(path).id.tolist() == ids


def test_identifiers_that_went_through_floating_point_are_refused(tmp_path, shared_data):
    """Rather than joined with the wrong galaxy."""
    Table({"objid": [1.5e18], "ra": [1.0], "dec": [2.0]}).write(tmp_path / "list.fits")
    with pytest.raises(OptionError, match="column objid .* floating point"):
        read_targets(tmp_path / "list.fits")
    with pytest.raises(OptionError, match=r"specobjid .* holds 3.72236e\+18"):
        read_targets(shared_data / "catalogs" / "sdss_dr14_spectro_photo_10k.csv.gz")


def test_bad_rows_are_told_apart(tmp_path):
    """Each with its row, its identifier and why; the good ones stay."""
    path = tmp_path / "list.csv"
    path.write_text(
        "objid,ra,dec\n1,10,20\n2,10,99\n3,ten,20\n4,,\n1,11,21\n,10,20\n5,-9999,-9999\n6,10:00:00,20:00:00\n2,10,20\n"
    )
    found = read_targets(path)
    assert found.id.tolist() == [1, 6, 2] and found.row.tolist() == [0, 7, 8] and found.n_rows == 9
    assert found.ra.tolist() == [10.0, 150.0, 10.0]
    reasons = {row: (name, reason) for row, name, reason in found.refused}
    assert {row: name for row, (name, _) in reasons.items()} == {1: "2", 2: "3", 3: "4", 4: "1", 5: "", 6: "5"}
    assert all("no position" in reasons[row][1] for row in (1, 2, 3, 6))
    assert reasons[4][1] == "the identifier is that of row 0 already" and "no identifier" in reasons[5][1]


def test_masked_identifiers_are_none(tmp_path):
    """A missing integer is no 0."""
    rows = table()
    rows["objid"] = MaskedColumn(rows["objid"], mask=[False, True, False])
    rows.write(tmp_path / "list.ecsv", format="ascii.ecsv")
    found = read_targets(tmp_path / "list.ecsv")
    assert found.id.tolist() == [BIG, BIG + 2] and found.refused[0][:2] == (1, "")


@pytest.mark.parametrize(
    "text, options, error, said",
    [
        ("x,ra,dec\n1,2,3\n", {}, OptionError, "no identifiers among x, ra, dec"),
        ("objid,a,b\n1,2,3\n", {}, PositionError, "no columns with positions"),
        ("objid,ra,dec\n1,2,3\n", {"id_column": "nr"}, OptionError, "--id-column nr is no column"),
        ("objid,ra,dec\n1,2,3\n", {"columns": ["z"]}, OptionError, "has no column z; it has objid, ra, dec"),
        ("objid,ra,dec\n1,2\n1,2,3,4\n", {}, SurveycatError, "cannot read"),
        ("", {}, SurveycatError, "it is empty"),
    ],
)
def test_lists_that_cannot_be_used(text, options, error, said, tmp_path):
    """One line that names the file, the value and the way out."""
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(error, match=said) as caught:
        read_targets(path, **options)
    assert "\n" not in str(caught.value)


def test_columns_can_be_named(tmp_path):
    """Identifier and position from any column."""
    (tmp_path / "list.csv").write_text("nr,objid,lon,lat\nx1,5,10,20\n")
    found = read_targets(tmp_path / "list.csv", "nr", ra_column="lon", dec_column="lat")
    assert found.id.tolist() == ["x1"] and (found.ra[0], found.dec[0]) == (10.0, 20.0)


def test_a_list_of_images(tmp_path):
    """Images without positions name themselves, or by an identifier that is given."""
    (tmp_path / "list.csv").write_text("image,run\n/data/a.fits,1\n/data/b.jpg,2\n")
    found = read_targets(tmp_path / "list.csv")
    assert found.images and found.id.tolist() == ["a.fits", "b.jpg"] and np.isnan(found.ra).all()
    assert found.others["image"].tolist() == ["/data/a.fits", "/data/b.jpg"]
    assert read_targets(tmp_path / "list.csv", "run").id.tolist() == [1, 2]

"""Tables as others write them: every format, identifiers of 64 bits exact, what is missing stays missing."""

import gzip

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from surveycat.errors import SurveycatError
from surveycat.tablefile import COOSYS, read_table, ucd

DR8 = 1237653651835781245  # no float64 holds it
SPECTRUM = 2**63 + 5  # beyond int64


def small_table():
    table = Table({"objid": [DR8, DR8 + 1, DR8 + 3], "ra": [1.5, 2.5, 3.5], "dec": [-1.0, 0.0, 1.0]})
    table["plate"] = MaskedColumn([5, 6, DR8 + 2], mask=[False, True, False])
    table["kind"] = ["a", "bc", "d"]
    return table


@pytest.mark.parametrize("suffix", ["parquet", "fits", "fits.gz", "vot", "ecsv", "csv", "csv.gz", "tsv", "txt", "mrt"])
def test_every_format_gives_the_same_table(tmp_path, suffix):
    """A user's reference may be in any of these; identifiers are exact also in a column with gaps."""
    table, path = small_table(), tmp_path / f"table.{suffix}"
    formats = {"vot": "votable", "ecsv": "ascii.ecsv", "csv": "ascii.csv", "tsv": "ascii.tab", "txt": "ascii",
               "mrt": "ascii.mrt", "fits.gz": "fits"}  # fmt: skip
    if suffix == "parquet":
        write_parquet(table, path)
    elif suffix == "csv.gz":
        table.write(tmp_path / "table.csv", format="ascii.csv")
        path.write_bytes(gzip.compress((tmp_path / "table.csv").read_bytes()))
    else:
        table.write(path, format=formats.get(suffix, suffix))
    read = read_table(path)
    assert read["objid"].tolist() == [DR8, DR8 + 1, DR8 + 3] and read["objid"].dtype.kind == "i"
    assert read["plate"].tolist() == [5, None, DR8 + 2]
    assert read["ra"].tolist() == [1.5, 2.5, 3.5] and read["kind"].tolist() == ["a", "bc", "d"]


def write_parquet(table, path):
    """Write as another program would: nulls, and no metadata of ours."""
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({name: table[name].tolist() for name in table.colnames}), path)


def test_parquet_of_others(tmp_path):
    """Lists, dates, dictionaries and nulls come through; what has no like in a table is left out."""
    import datetime

    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "ra": pa.array([1.0, None]),
        "shape": pa.array([[1.0, 2.0], None]),
        "night": pa.array([datetime.date(2020, 1, 2), None]),
        "band": pa.array(["r", None]).dictionary_encode(),
        "known": pa.array([True, None]),
        "nested": pa.array([{"a": 1}, {"a": 2}]),
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.colnames == ["ra", "shape", "night", "band", "known"]
    assert table["ra"].tolist() == [1.0, None] and [len(each) for each in table["shape"]] == [2, 0]
    assert table["night"].tolist() == ["2020-01-02", None] and table["band"].tolist() == ["r", None]


def test_folder_of_parts(tmp_path):
    """A dataset in parts is one table, also in folders of folders, whatever else lies there."""
    (tmp_path / "parts").mkdir()
    with pytest.raises(SurveycatError, match="holds no file .parquet"):
        read_table(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    write_parquet(small_table(), tmp_path / "part-0.parquet")
    write_parquet(small_table(), tmp_path / "parts" / "part-1.parquet")
    assert len(read_table(tmp_path)) == 6


def test_identifiers_of_spectra_beyond_63_bits(tmp_path):
    """Text keeps what int64 cannot hold; a float would not."""
    (tmp_path / "t.csv").write_text(f"specobjid,ra,dec\n{SPECTRUM},1,2\n")
    assert str(read_table(tmp_path / "t.csv")["specobjid"][0]) == str(SPECTRUM)


def test_ucds_and_frames_are_kept(tmp_path):
    """Columns are found by UCD, and frames by COOSYS, so the reader must bring both."""
    columns = [fits.Column("alpha", "D", array=[1.0]), fits.Column("delta", "D", array=[2.0])]
    hdu = fits.BinTableHDU.from_columns(columns)
    hdu.header["TUCD1"], hdu.header["TUCD2"] = "pos.eq.ra;meta.main", "POS.EQ.DEC;meta.main"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "t.fits")
    table = read_table(tmp_path / "t.fits")
    assert [ucd(table[name]) for name in table.colnames] == ["pos.eq.ra;meta.main", "pos.eq.dec;meta.main"]
    (tmp_path / "t.vot").write_text(VOTABLE)
    table = read_table(tmp_path / "t.vot")
    assert ucd(table["a"]) == "pos.eq.ra;meta.main" and table["a"].info.meta[COOSYS] == ("eq_FK5", "J2000", "J2015.5")


VOTABLE = """<?xml version="1.0"?>
<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE>
<COOSYS ID="sys" system="eq_FK5" equinox="J2000" epoch="J2015.5"/><TABLE>
<FIELD name="a" ucd="pos.eq.ra;meta.main" ref="sys" datatype="double" unit="deg"/>
<FIELD name="d" ucd="pos.eq.dec;meta.main" ref="sys" datatype="double" unit="deg"/>
<DATA><TABLEDATA><TR><TD>10.5</TD><TD>-3</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>
"""


def test_answer_of_skyserver(shared_data):
    """A saved answer of SkyServer has a line of its own before the header."""
    table = read_table(shared_data / "skyserver" / "astroquery" / "xid_im.txt")
    assert table["objid"][0] == 1237653651835781245


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.fits", b"SIMPLE", "cannot read .*t.fits as a table"),
        ("t.parquet", b"PAR1", "cannot read .*t.parquet as a table"),
        ("t.csv", b"", "cannot read .*t.csv as a table"),
        ("t.dat", b"some prose without columns\nof (1) different\n lengths\n", "none of the known layouts"),
        ("t.vot", b"<html></html>", "cannot read .*t.vot as a table"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    """One line that names the file, whatever the library said."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SurveycatError, match=message) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_image_is_no_table(tmp_path):
    """The FITS image instead of the table is a common slip."""
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    with pytest.raises(SurveycatError, match="holds images, but no table"):
        read_table(tmp_path / "image.fits")


def test_missing_file(tmp_path):
    """The message says what could be meant."""
    with pytest.raises(SurveycatError, match="there is no table .*nothing.csv"):
        read_table(tmp_path / "nothing.csv")

"""Where rows are: columns by UCD and name, units, sexagesimal text, frames, epochs, and what cannot be a position."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time
from astropy.utils.masked import Masked

from surveycat.errors import PositionError
from surveycat.positions import positions
from surveycat.tablefile import COOSYS

PLACES = SkyCoord([10.68470833, 351.65, 0.0], [41.26875, -0.1, 89.5], unit="deg")


def assert_at(found, places, arcsec=1e-4):
    assert SkyCoord(found.ra, found.dec, unit="deg").separation(places).arcsec.max() < arcsec


@pytest.mark.parametrize(
    ("ra", "dec"),
    [("ra", "dec"), ("RA", "DEC"), ("RAJ2000", "DEJ2000"), ("_RAJ2000", "_DEJ2000"), ("ALPHA_J2000", "DELTA_J2000"),
     ("RA_ICRS", "DE_ICRS"), ("coord_ra", "coord_dec"), ("raMean", "decMean"), ("cat_ra", "cat_dec")],
)  # fmt: skip
def test_columns_by_name(ra, dec):
    """Names of the large surveys, in any case; degrees without a unit."""
    found = positions(Table({"id": [1, 2, 3], "z": [0.1, 0.2, 0.3], ra: PLACES.ra.deg, dec: PLACES.dec.deg}))
    assert found.columns == (ra, dec)
    assert_at(found, PLACES)


def test_ucd_before_name():
    """What a table says of its columns counts more than what they are called."""
    table = Table({"ra": [0.0] * 3, "dec": [0.0] * 3, "a": PLACES.ra.deg, "d": PLACES.dec.deg})
    for name, said in (("a", "pos.eq.ra;meta.main"), ("d", "pos.eq.dec;meta.main")):
        table[name].info.meta = {"ucd": said}
    assert positions(table).columns == ("a", "d")


def test_columns_that_are_named():
    """The user's word counts most; a slip in it names the columns that there are."""
    table = Table({"ra": [0.0] * 3, "dec": [0.0] * 3, "a": PLACES.ra.deg, "d": PLACES.dec.deg})
    assert_at(positions(table, "a", "d"), PLACES)
    with pytest.raises(PositionError, match="--ra-column b is no column .*ra, dec, a, d"):
        positions(table, "b", "d")
    with pytest.raises(PositionError, match="give both"):
        positions(table, "a")


@pytest.mark.parametrize("unit", ["deg", "rad", "arcsec"])
def test_units(unit):
    """A unit is believed."""
    table = QTable({"ra": PLACES.ra.to(unit), "dec": PLACES.dec.to(unit)})
    assert_at(positions(table), PLACES)


def test_hours():
    """Right ascension in hours, said by the unit."""
    assert_at(positions(Table({"ra": PLACES.ra.hourangle * u.hourangle, "dec": PLACES.dec.deg * u.deg})), PLACES)


def test_lsst_radians_without_a_unit():
    """Old LSST tables hold radians and do not say so; newer ones hold degrees."""
    radians = Table({"coord_ra": PLACES.ra.rad, "coord_dec": PLACES.dec.rad})
    found = positions(radians)
    assert_at(found, PLACES)
    assert "radians" in found.notes[0]
    assert_at(positions(Table({"coord_ra": PLACES.ra.deg, "coord_dec": PLACES.dec.deg})), PLACES)


@pytest.mark.parametrize("form", [{"sep": ":"}, {"sep": " "}, {"sep": "hms"}])
def test_sexagesimal(form):
    """Galaxy Zoo 1 has hours and degrees as text, also south of -0 degrees."""
    places = SkyCoord([10.68470833, 351.65, 0.001], [-0.00875, 41.5, -89.5], unit="deg")
    dec_form = {"sep": "dms"} if form["sep"] == "hms" else form
    ra = places.ra.to_string(unit="hourangle", precision=6, pad=True, **form)
    dec = places.dec.to_string(unit="deg", precision=5, pad=True, alwayssign=True, **dec_form)
    assert_at(positions(Table({"RA": ra, "DEC": dec})), places)


def test_text_with_numbers():
    """Degrees that came as text (padded, from a fixed-width file) are degrees; gaps are gaps."""
    found = positions(Table({"ra": [" 10.5 ", ""], "dec": ["-3", "nan"]}))
    assert found.ra[0] == 10.5 and found.dec[0] == -3 and np.isnan(found.ra[1])
    assert found.notes == ("1 of 2 rows have no position and no partner",)


def test_gaps_and_sentinels():
    """Masked values, NaN and -9999 are no positions; the other rows are."""
    table = Table(
        {"ra": MaskedColumn([1.0, 2.0, np.nan, -9999, 5], mask=[0, 1, 0, 0, 0]), "dec": [1, 2, 3, -9999, 5.0]}
    )
    assert np.isfinite(positions(table).ra).tolist() == [True, False, False, False, True]
    quantity = QTable({"ra": Masked([1.0, 2.0] * u.deg, mask=[False, True]), "dec": [1.0, 2.0] * u.deg})
    assert np.isfinite(positions(quantity).ra).tolist() == [True, False]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ra": [10.0, 11.0], "dec": [0.0, 120.0]}, "row 1 has ra 11 and dec 120"),
        ({"ra": ["12:61:00"], "dec": ["1:2:3"]}, "minutes or seconds pass 60"),
        ({"ra": ["twelve"], "dec": ["1"]}, "'twelve', which is no angle"),
        ({"x": [1], "y": [2]}, "no columns with positions among x, y"),
        ({"ra": [1] * u.m, "dec": [2] * u.m}, "unit 'm', which is no angle"),
        ({"ra": [[1, 2]], "dec": [[1, 2]]}, "one number per row"),
    ],
)
def test_what_cannot_be_a_position_is_named(columns, message):
    """A wrong column must not give a catalogue without matches and without a word."""
    with pytest.raises(PositionError, match=message):
        positions(Table(columns))


def test_frames():
    """Galactic, FK4 and ecliptic positions are brought to ICRS, by name or as asked."""
    galactic = PLACES.galactic
    assert_at(positions(Table({"glon": galactic.l.deg, "glat": galactic.b.deg})), PLACES)
    old = PLACES.transform_to("fk4")
    table = Table({"ra": old.ra.deg, "dec": old.dec.deg})
    assert_at(positions(table, frame="fk4:B1950"), PLACES, 0.01)
    assert_at(positions(Table({"RAB1950": old.ra.deg, "DEB1950": old.dec.deg})), PLACES, 0.01)
    table.meta = {"RADESYS": "FK4", "EQUINOX": 1950.0}
    assert_at(positions(table), PLACES, 0.01)
    table.meta = {}
    table["ra"].info.meta = {COOSYS: ("eq_FK4", "B1950", None)}
    assert_at(positions(table), PLACES, 0.01)
    ecliptic = PLACES.barycentricmeanecliptic
    assert_at(positions(Table({"elon": ecliptic.lon.deg, "elat": ecliptic.lat.deg})), PLACES)
    with pytest.raises(PositionError, match="--frame b1875 is no frame"):
        positions(table, frame="b1875")


def test_column_of_coordinates():
    """An astropy table may hold coordinates themselves, in any frame."""
    found = positions(QTable({"place": PLACES.galactic, "ra": [1, 2, 3], "dec": [1, 2, 3]}))
    assert found.columns == ("place",)
    assert_at(found, PLACES)


@pytest.mark.filterwarnings("ignore:ERFA function")
def test_proper_motions():
    """Positions move to the epoch of the image along great circles, as astropy moves them; NaN stays at home."""
    moving = SkyCoord(
        PLACES.ra, PLACES.dec, pm_ra_cosdec=[1000, -500, 300] * u.mas / u.yr, pm_dec=[-300, 10, 2000] * u.mas / u.yr,
        obstime=Time(2015.5, format="jyear"), distance=1e6 * u.pc,
    )  # fmt: skip
    table = Table(
        {"ra": PLACES.ra.deg, "dec": PLACES.dec.deg, "pmra": [1000.0, -500, 300], "pmdec": [-300.0, 10, 2000]}
    )
    table["ref_epoch"] = 2015.5
    found = positions(table, epoch=2003.8)
    assert_at(found, moving.apply_space_motion(Time(2003.8, format="jyear")), 1e-3)
    assert "from column ref_epoch to 2003.8" in found.notes[0]
    table["pmra"][1] = table["pmdec"][1] = np.nan
    assert_at(positions(table, epoch=2003.8, reference_epoch=2003.8), PLACES)
    assert np.isclose(positions(table, epoch=1900).ra[1], PLACES.ra.deg[1], atol=1e-12)
    assert "not applied; --epoch" in positions(table).notes[0]


def test_positions_of_no_rows():
    """An empty table has no positions, and is no error."""
    assert len(positions(Table({"ra": np.zeros(0), "dec": np.zeros(0)})).ra) == 0

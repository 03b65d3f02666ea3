"""Where the rows of any table are on the sky: which columns say it, in which units, frame and epoch.

Columns are found by UCD, then by name; what was chosen and what was assumed is said in notes.
"""

import re
from dataclasses import dataclass

import numpy as np

from surveycat.errors import PositionError
from surveycat.tablefile import COOSYS, ucd

__all__ = ["FRAMES", "Positions", "angle", "positions"]

EQUATORIAL, GALACTIC, ECLIPTIC = "icrs", "galactic", "ecliptic"
FRAMES = ("icrs", "fk5", "fk4", "galactic", "ecliptic")
"""What ``--frame`` takes; fk5 and fk4 also with an equinox, as in ``fk4:B1950``."""

UCDS = (
    ("pos.eq.ra;meta.main", "pos.eq.dec;meta.main", EQUATORIAL),
    ("pos_eq_ra_main", "pos_eq_dec_main", EQUATORIAL),
    ("pos.eq.ra", "pos.eq.dec", EQUATORIAL),
    ("pos.galactic.lon;meta.main", "pos.galactic.lat;meta.main", GALACTIC),
    ("pos.galactic.lon", "pos.galactic.lat", GALACTIC),
    ("pos.ecliptic.lon;meta.main", "pos.ecliptic.lat;meta.main", ECLIPTIC),
    ("pos.ecliptic.lon", "pos.ecliptic.lat", ECLIPTIC),
)
NAMES = (
    ("ra", "dec", EQUATORIAL),
    ("raj2000", "dej2000", EQUATORIAL),
    ("raj2000", "decj2000", EQUATORIAL),
    ("ra_j2000", "dec_j2000", EQUATORIAL),
    ("_raj2000", "_dej2000", EQUATORIAL),
    ("ra_icrs", "de_icrs", EQUATORIAL),
    ("_ra", "_de", EQUATORIAL),
    ("ra", "de", EQUATORIAL),
    ("coord_ra", "coord_dec", EQUATORIAL),
    ("alpha_j2000", "delta_j2000", EQUATORIAL),
    ("alphawin_j2000", "deltawin_j2000", EQUATORIAL),
    ("alpha_sky", "delta_sky", EQUATORIAL),
    ("x_world", "y_world", EQUATORIAL),
    ("ra_deg", "dec_deg", EQUATORIAL),
    ("radeg", "decdeg", EQUATORIAL),
    ("radeg", "dedeg", EQUATORIAL),
    ("ramean", "decmean", EQUATORIAL),
    ("right_ascension", "declination", EQUATORIAL),
    ("rightascension", "declination", EQUATORIAL),
    ("ra1", "dec1", EQUATORIAL),
    ("rab1950", "deb1950", "fk4"),
    ("glon", "glat", GALACTIC),
    ("elon", "elat", ECLIPTIC),
)
MOTION_UCDS = (("pos.pm;pos.eq.ra", "pos.pm;pos.eq.dec"),)
MOTION_NAMES = (("pmra", "pmdec"), ("pmra", "pmde"), ("pm_ra", "pm_dec"), ("pmra_cosdec", "pmdec"))
HOW_TO = "name them with --ra-column and --dec-column"

_SEXAGESIMAL = re.compile(
    r"\s*([-+\u2212]?)\s*(\d+)\s*(?:[:hd°]|\s)\s*(\d+)\s*(?:[:m'′]|\s)\s*(\d+(?:\.\d*)?)\s*[s\"″]?\s*", re.IGNORECASE
)


@dataclass(frozen=True)
class Positions:
    """Positions of the rows of a table.

    Parameters
    ----------
    ra, dec : float64 ndarray, shape (N,)
        ICRS degrees; NaN where a row has none.
    columns : tuple of str
        Names of the columns that say so.
    notes : tuple of str
        What the user should know.
    """

    ra: np.ndarray
    dec: np.ndarray
    columns: tuple
    notes: tuple = ()


def positions(table, ra_column=None, dec_column=None, frame=None, epoch=None, reference_epoch=None):
    """Find out where the rows of a table are.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Any table; a column of `~astropy.coordinates.SkyCoord` is one way to hold positions.
    ra_column, dec_column : str, optional
        Names of the columns, found by UCD or name by default.
    frame : str, optional
        One of `FRAMES`; what the table itself says by default, else ICRS.
    epoch : float, optional
        Julian year to which rows with proper motions are moved; where they are listed by default.
    reference_epoch : float, optional
        Julian year of the listed positions; what the table says by default, else 2000.

    Returns
    -------
    Positions

    Raises
    ------
    PositionError
        If no such columns are found, or they do not hold positions.
    """
    notes = []
    if (ra_column is None) != (dec_column is None):
        raise PositionError(f"only one of --ra-column {ra_column} and --dec-column {dec_column} is given: give both")
    coordinate = None if ra_column else _coordinate_column(table)
    if coordinate is not None:
        place = table[coordinate].icrs
        ra, dec, columns = _bare(place.ra.deg), _bare(place.dec.deg), (coordinate,)
    else:
        ra_column, dec_column, kind = _find_columns(table, ra_column, dec_column, notes)
        columns = ra_column, dec_column
        ra, dec = _degrees(table, columns, kind, notes)
        system = _frame(table, columns, kind, frame)
        ra, dec = _to_icrs(ra, dec, system)
    ra, dec = _moved(table, ra, dec, columns, epoch, reference_epoch, notes)
    return Positions(ra, dec, columns, tuple(notes))


def _bare(column):
    """Values as float64 without a unit; what is masked is NaN."""
    values = np.array(np.ma.getdata(getattr(column, "unmasked", column)), float)
    values[np.asarray(getattr(column, "mask", False))] = np.nan
    return values


# Columns --------------------------------------------------------------------------------------------------


def _coordinate_column(table):
    """Name of the first column of SkyCoord, None without one."""
    return next((name for name in table.colnames if type(table[name]).__name__ == "SkyCoord"), None)


def _find_columns(table, ra_column, dec_column, notes):
    """Names of the columns of longitude and latitude, and their kind of frame."""
    if ra_column is not None:
        for option, name in (("--ra-column", ra_column), ("--dec-column", dec_column)):
            if name not in table.colnames:
                raise PositionError(f"{option} {name} is no column of the table; it has {_listed(table.colnames)}")
        return ra_column, dec_column, _kind_of(table, ra_column)
    ucds = [ucd(table[name]) for name in table.colnames]
    for lon, lat, kind in UCDS:
        if lon in ucds and lat in ucds:
            if ucds.count(lon) > 1:
                notes.append(f"several columns are {lon}: the first is taken; {HOW_TO} to choose others")
            return table.colnames[ucds.index(lon)], table.colnames[ucds.index(lat)], kind
    found = _by_name(table.colnames, NAMES) or _by_ending(table.colnames)
    if found is None:
        raise PositionError(f"no columns with positions among {_listed(table.colnames)}: {HOW_TO}")
    return found


def _kind_of(table, ra_column):
    """Kind of frame of a column that the user names, by its UCD or name."""
    known = {lon: kind for lon, _, kind in (*UCDS, *NAMES)}
    return known.get(ucd(table[ra_column]), known.get(ra_column.lower(), EQUATORIAL))


def _by_name(colnames, wanted):
    """First of the wanted pairs that is there, in any case: names as they are, and what else is said of it."""
    actual = {}
    for name in colnames:
        actual.setdefault(name.lower(), name)
    for lon, lat, *rest in wanted:
        if lon in actual and lat in actual:
            return (actual[lon], actual[lat], *rest)
    return None


def _by_ending(colnames):
    """Columns like ``cat_ra`` and ``cat_dec``."""
    for name in colnames:
        ending = re.fullmatch(r"(.+[._])(ra)", name, re.IGNORECASE)
        twin = ending and ending[1] + ("DEC" if ending[2].isupper() else "dec")
        if twin in colnames:
            return name, twin, EQUATORIAL
    return None


def _listed(names, most=12):
    """Names in one line, not too many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# Values ---------------------------------------------------------------------------------------------------


def _degrees(table, columns, kind, notes):
    """Both columns in degrees, NaN where a row has no position; out of range is an error."""
    raw = [table[name] for name in columns]
    if any(getattr(column, "ndim", 1) != 1 for column in raw):
        raise PositionError(f"columns {columns[0]} and {columns[1]} do not hold one number per row: {HOW_TO}")
    ra, dec = (_angle(column, name, kind == EQUATORIAL and number == 0) for number, (column, name) in
               enumerate(zip(raw, columns, strict=True)))  # fmt: skip
    if _in_radians(raw, columns, ra, dec):
        notes.append(f"columns {columns[0]} and {columns[1]} have no unit; taken for radians")
        ra, dec = np.degrees(ra), np.degrees(dec)
    missing = ~np.isfinite(ra) | ~np.isfinite(dec) | ((ra == dec) & (dec < -90))  # -99, -999, -9999
    ra, dec = np.where(missing, np.nan, ra), np.where(missing, np.nan, dec)
    wrong = np.flatnonzero((np.abs(dec) > 90) | (ra < -360) | (ra > 720))
    if len(wrong):
        row = wrong[0]
        place = f"{columns[0]} {ra[row]:g} and {columns[1]} {dec[row]:g} degrees"
        raise PositionError(f"row {row} has {place}, which is no position: {HOW_TO}")
    if missing.any():
        notes.append(f"{missing.sum()} of {len(missing)} rows have no position and no partner")
    return np.mod(ra, 360), dec


def _in_radians(raw, columns, ra, dec):
    """LSST's ``coord_ra`` without a unit is in radians, unless its values are not."""
    if not columns[0].lower().endswith("coord_ra") or any(_unit(column) for column in raw) or not len(ra):
        return False
    return np.nanmax(np.abs(ra), initial=0) <= 2 * np.pi and np.nanmax(np.abs(dec), initial=0) <= np.pi / 2


def _unit(column):
    """Unit of a column as text, "" if it has none."""
    return str(getattr(column, "unit", None) or "").strip().strip('"').lower()


def _angle(column, name, in_hours):
    """One column in degrees; sexagesimal text of a right ascension is in hours, unless the unit says degrees."""
    unit = _unit(column)
    if column.dtype.kind in "USO":
        return _from_text(_texts(column), name, in_hours and not unit.startswith("d"))
    values = _bare(column)
    if unit in ("", "---", "unknown"):
        return values
    if unit in ("h", "hr", "hour", "hours", "hourangle"):
        return values * 15
    from astropy.units import Unit, UnitsError

    try:
        return values * Unit(unit.replace("degrees", "deg").replace("radians", "rad")).to("deg")
    except (ValueError, UnitsError) as error:
        raise PositionError(f"column {name} has the unit {unit!r}, which is no angle: {HOW_TO}") from error


def _texts(column):
    """A column of text as a list of str; what is masked is empty."""
    filled = column.filled("") if hasattr(column, "filled") else column
    return [value.decode() if isinstance(value, bytes) else str(value) for value in filled.tolist()]


def _from_text(texts, name, in_hours):
    """Degrees from numbers or sexagesimal text."""
    result = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        if text.strip() in ("", "--", "nan", "NaN", "null"):
            continue
        try:
            result[row] = angle(text, in_hours)
        except ValueError as error:
            raise PositionError(f"row {row} of column {name} is {text.strip()!r}, {error}: {HOW_TO}") from error
    return result


def angle(text, in_hours=False):
    """Read an angle: a number of degrees, or sexagesimal.

    Parameters
    ----------
    text : str
        As ``351.65``, ``23:26:36``, ``23h26m36s``, ``-00 06 00`` or ``-00d06m00s``.
    in_hours : bool, optional
        Whether sexagesimal text is in hours, as right ascensions are; not if it says degrees.

    Returns
    -------
    float
        Degrees.

    Raises
    ------
    ValueError
        If it is none; the message goes on after the text, as in "..., which is no angle".
    """
    parts = _SEXAGESIMAL.fullmatch(text)
    if parts is None:
        try:
            return float(text)
        except ValueError as error:
            raise ValueError("which is no angle") from error
    sign, whole, minutes, seconds = parts.groups()
    if int(minutes) >= 60 or float(seconds) > 60:
        raise ValueError("whose minutes or seconds pass 60")
    value = int(whole) + int(minutes) / 60 + float(seconds) / 3600
    degrees_said = "d" in text.lower() or "°" in text
    return (-1 if sign in ("-", "\u2212") else 1) * value * (15 if in_hours and not degrees_said else 1)


# Frames and epochs ----------------------------------------------------------------------------------------


def _frame(table, columns, kind, asked):
    """Frame of the columns: asked for, or as the file says, or by the columns' names."""
    if asked is not None:
        return _named_frame(asked, f"--frame {asked}")
    if kind != EQUATORIAL:
        return _named_frame(kind, kind)
    said = (table[columns[0]].info.meta or {}).get(COOSYS)
    if said:
        system, equinox, _ = said
    else:
        header = {str(key).upper(): value for key, value in table.meta.items()}
        system, equinox = header.get("RADESYS", header.get("RADECSYS")), header.get("EQUINOX")
    system = re.sub(r"^eq_", "", str(system or "").strip().lower())
    if system in ("fk4", "fk5"):
        return _named_frame(f"{system}:{equinox}" if equinox else system, f"the table's {system} {equinox}")
    return _named_frame(system if system in ("galactic", "ecliptic") else EQUATORIAL, system)


def _named_frame(name, where):
    """astropy's frame of a name like ``fk5``, ``fk4:B1950`` or ``galactic``."""
    from astropy import coordinates
    from astropy.time import Time

    kind, _, equinox = name.lower().partition(":")
    if kind not in FRAMES:
        raise PositionError(f"{where} is no frame that is known here: use one of {', '.join(FRAMES)}")
    if kind == EQUATORIAL:
        return coordinates.ICRS()
    if kind == "galactic":
        return coordinates.Galactic()
    if kind == "ecliptic":
        return coordinates.BarycentricMeanEcliptic()
    letter = "B" if kind == "fk4" else "J"
    year = equinox.lstrip("bjBJ") or ("1950" if kind == "fk4" else "2000")
    try:
        time = Time(f"{letter}{float(year):.4f}")
    except ValueError as error:
        raise PositionError(f"{where} has the equinox {equinox!r}, which is no year: give one like J2000") from error
    return coordinates.FK4(equinox=time) if kind == "fk4" else coordinates.FK5(equinox=time)


def _to_icrs(ra, dec, system):
    """Change the frame of positions to ICRS; NaN stays."""
    from astropy.coordinates import ICRS, SkyCoord

    if isinstance(system, ICRS) or not len(ra):
        return ra, dec
    known = np.isfinite(ra)
    place = SkyCoord(np.where(known, ra, 0), np.where(known, dec, 0), unit="deg", frame=system).icrs
    return np.where(known, place.ra.deg, np.nan), np.where(known, place.dec.deg, np.nan)


def _moved(table, ra, dec, columns, epoch, reference_epoch, notes):
    """Move positions along their proper motions to an epoch."""
    motion = _motion_columns(table)
    if motion is None or epoch is None:
        if motion is not None:
            notes.append(
                f"proper motions ({motion[0]}, {motion[1]}) are not applied; --epoch YEAR moves positions to it"
            )
        elif epoch is not None:
            notes.append(f"--epoch {epoch:g} changes nothing: the reference has no proper motions")
        return ra, dec
    since, source = _listed_epoch(table, columns, reference_epoch)
    notes.append(f"positions are moved along their proper motions from {source} to {epoch:g}")
    years = np.nan_to_num(epoch - since)
    return _along(ra, dec, *(np.nan_to_num(_rate(table[name])) * years for name in motion))


def _motion_columns(table):
    """Names of the columns of proper motion, in right ascension (times cos Dec) and declination; None without."""
    ucds = [ucd(table[name]) for name in table.colnames]
    for lon, lat in MOTION_UCDS:
        if lon in ucds and lat in ucds:
            return table.colnames[ucds.index(lon)], table.colnames[ucds.index(lat)]
    return _by_name(table.colnames, MOTION_NAMES)


def _rate(column):
    """Proper motion in degrees per year; mas per year without a unit."""
    from astropy.units import Unit

    unit = Unit(_unit(column) or "mas/yr")
    return _bare(column) * unit.to("deg/yr")


def _listed_epoch(table, columns, asked):
    """Julian year of the listed positions, of each row or of all, and where that is said."""
    if asked is not None:
        return asked, f"{asked:g} (--reference-epoch)"
    name = next((each for each in table.colnames if each.lower() in ("ref_epoch", "refepoch")), None)
    if name is not None:
        return _bare(table[name]), f"column {name}"
    said = (table[columns[0]].info.meta or {}).get(COOSYS) if len(columns) == 2 else None
    year = re.fullmatch(r"[BJ]?(\d+(?:\.\d+)?)", str(said[2] or "")) if said else None
    return (float(year[1]), f"{year[1]} (COOSYS)") if year else (2000.0, "2000 (assumed; see --reference-epoch)")


def _along(ra, dec, east, north):
    """Move positions by small angles (degrees), in a straight line in space."""
    a, d = np.radians(ra), np.radians(dec)
    outward = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    eastward = np.array([-np.sin(a), np.cos(a), np.zeros_like(a)])
    northward = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    x, y, z = outward + np.radians(east) * eastward + np.radians(north) * northward
    return np.mod(np.degrees(np.arctan2(y, x)), 360), np.degrees(np.arctan2(z, np.hypot(x, y)))

"""The catalogue: one schema, and files in the formats that astronomers' tools open.

`SCHEMA` says what every column is called, holds and means. Tables in memory, headers of files, the column
list of the documentation and the tests are all made from it, so that they cannot disagree.

Tables are `~astropy.table.QTable`. A catalogue without objects has all its columns and no rows. Missing
numbers are NaN, missing text is empty, and an object on no larger one has ``host`` 0.
"""

import contextlib
import io
import json
import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from surveycat.errors import OutputError, SurveycatError

__all__ = [
    "FLAGS",
    "SCHEMA",
    "Column",
    "atomic_write",
    "check_distinct",
    "check_output",
    "check_writable",
    "column_of",
    "columns_markdown",
    "conform",
    "finish",
    "flag_names",
    "iau_name",
    "in_order",
    "join",
    "lists",
    "read",
    "write",
    "write_table",
]

FLAGS = {
    "edge_truncated": 0,
    "single_look": 1,
    "blended": 2,
    "capped": 3,
    "unresolved": 4,
    "near_failed_tile": 5,
    "outside_domain": 6,
    "uncalibrated": 7,
    "point_source": 8,
    "psf_unmatched": 9,
}
"""Bit of each flag: ``table["flags"] >> FLAGS["blended"] & 1``."""

BAND = "([A-Za-z0-9]+)"  # the name of a band in that of a column
LIST = "list of float32"
TEXT = "text"
META_KEYWORD = "SVCMETA"  # the FITS card and the VOTable INFO that hold `table.meta` as JSON


@dataclass(frozen=True)
class Column:
    """What one column of the catalogue holds.

    Parameters
    ----------
    name : str
        Name of the column; ``{band}`` in it stands for the name of a band.
    dtype : str
        numpy dtype as it is stored, or ``"text"``, or ``"list of float32"`` (one list per row).
    unit : str
        Unit, "" for none.
    ucd : str
        IVOA Unified Content Descriptor (UCD1+).
    description : str
        One line for file headers and the documentation.
    when : {"always", "sky", "bands", "linear", "calibrated", "images"}
        When the column is present: always, with a sky position, per band, with linear data (FITS), per band with a
        zero point, or with several input images. Those with ``{band}`` in their name are there for each band.
    """

    name: str
    dtype: str
    unit: str
    ucd: str
    description: str
    when: str = "always"

    @property
    def fill(self):
        """Value that stands for "not known": NaN, "" or 0."""
        if self.dtype == TEXT:
            return ""
        return np.nan if self.dtype.startswith("f") else 0


SCHEMA = (
    Column("id", "i8", "", "meta.id;meta.main", "Number of the object, 1 to N, as in segmentation maps"),
    Column("name", TEXT, "", "meta.id", "IAU style name made from the position, truncated", "sky"),
    Column("ra", "f8", "deg", "pos.eq.ra;meta.main", "Right ascension of the centroid, ICRS", "sky"),
    Column("dec", "f8", "deg", "pos.eq.dec;meta.main", "Declination of the centroid, ICRS", "sky"),
    Column("x", "f8", "pix", "pos.cartesian.x;instr.det", "Centroid (windowed), column, the first being 0"),
    Column("y", "f8", "pix", "pos.cartesian.y;instr.det", "Centroid (windowed), row, the first being 0"),
    Column("x_err", "f4", "pix", "stat.error;pos.cartesian.x", "Error of x from the noise of the pixels", "linear"),
    Column("y_err", "f4", "pix", "stat.error;pos.cartesian.y", "Error of y from the noise of the pixels", "linear"),
    Column("x_iso", "f8", "pix", "pos.cartesian.x;instr.det", "Centroid of the footprint's light, column", "linear"),
    Column("y_iso", "f8", "pix", "pos.cartesian.y;instr.det", "Centroid of the footprint's light, row", "linear"),
    Column("x_min", "i4", "pix", "pos.cartesian.x;stat.min", "First column of the footprint"),
    Column("y_min", "i4", "pix", "pos.cartesian.y;stat.min", "First row of the footprint"),
    Column("x_max", "i4", "pix", "pos.cartesian.x;stat.max", "Column after the last one of the footprint"),
    Column("y_max", "i4", "pix", "pos.cartesian.y;stat.max", "Row after the last one of the footprint"),
    Column("class", TEXT, "", "src.morph.type", "spiral or elliptical, whichever is more probable"),
    Column("score", "f4", "", "stat.probability", "Probability that the object is a galaxy"),
    Column("p_spiral", "f4", "", "stat.probability;src.morph.type", "Probability of spiral, given a galaxy"),
    Column("p_elliptical", "f4", "", "stat.probability;src.morph.type", "The same of an elliptical"),
    Column("area_pix", "f8", "pix2", "phys.angArea;instr.pixel", "Area of the footprint in pixels"),
    Column("area", "f8", "arcsec2", "phys.angArea", "Area of the footprint on the sky", "sky"),
    Column("semimajor", "f4", "arcsec", "phys.angSize.smajAxis", "Semi-major axis, rms of the light", "sky"),
    Column("semiminor", "f4", "arcsec", "phys.angSize.sminAxis", "Semi-minor axis, rms of the light", "sky"),
    Column("position_angle", "f4", "deg", "pos.posAng", "Major axis, east of north, 0 to 180", "sky"),
    Column("semimajor_pix", "f4", "pix", "phys.angSize.smajAxis", "Semi-major axis, rms of the light"),
    Column("semiminor_pix", "f4", "pix", "phys.angSize.sminAxis", "Semi-minor axis, rms of the light"),
    Column("orientation_pix", "f4", "deg", "pos.posAng;instr.pixel", "Major axis from +x to +y, -90 to 90"),
    Column("ellipticity", "f4", "", "src.ellipticity", "1 - semiminor / semimajor"),
    Column("half_light_radius_pix", "f4", "pix", "phys.angSize;instr.pixel",
           "Radius with half of the footprint's light, PSF included"),
    Column("r50_pix", "f4", "pix", "phys.angSize;instr.pixel", "Radius with half of the Kron flux", "linear"),
    Column("kron_radius_pix", "f4", "pix", "phys.angSize;instr.pixel", "Semi-major axis of Kron's aperture", "linear"),
    Column("concentration", "f4", "", "src.morph.param", "5 log10 of the ratio of radii with 80 and 20 %", "linear"),
    Column("gini", "f4", "", "src.morph.param", "Gini coefficient of the footprint's pixels", "linear"),
    Column("conc_excess", "f4", "mag", "src.morph.param", "mag(2 px) - mag(6 px), above that of stars", "linear"),
    Column("conc_excess_err", "f4", "mag", "stat.error;src.morph.param", "Error of conc_excess", "linear"),
    Column("flux_{band}", "f8", "", "phot.flux;em.opt",
           "Band {band}: light of the footprint, units of the input", "bands"),
    Column("flux_err_{band}", "f8", "", "stat.error;phot.flux;em.opt", "Band {band}: error of the flux", "linear"),
    Column("flux_kron_{band}", "f8", "", "phot.flux;em.opt", "Band {band}: light in the Kron aperture", "linear"),
    Column("flux_kron_err_{band}", "f8", "", "stat.error;phot.flux;em.opt", "Band {band}: its error", "linear"),
    Column("sky_{band}", "f8", "", "instr.skyLevel;em.opt", "Band {band}: local sky, per pixel", "linear"),
    Column("mag_{band}", "f4", "mag", "phot.mag;em.opt", "Band {band}: AB magnitude of flux_kron", "calibrated"),
    Column("mag_err_{band}", "f4", "mag", "stat.error;phot.mag;em.opt", "Band {band}: error of the magnitude",
           "calibrated"),
    Column("footprint_x", LIST, "pix", "pos.outline;instr.det", "Outline, columns of its corners"),
    Column("footprint_y", LIST, "pix", "pos.outline;instr.det", "Outline, rows of its corners"),
    Column("s_region", TEXT, "", "pos.outline", "Outline on the sky, POLYGON ICRS in DALI's order", "sky"),
    Column("host", "i8", "", "meta.id.parent", "id of the larger object on which this one lies, 0 for none"),
    Column("level", "i2", "", "meta.number", "The mask is of the image averaged over 2^level px"),
    Column("n_seen", "i4", "", "meta.number", "Number of tiles in which the object was seen"),
    Column("n_tiles", "i4", "", "meta.number", "Number of tiles in which it could have been seen whole"),
    Column("flags", "i4", "", "meta.code", "Bit mask; table.meta['flags'] names the bits"),
    Column("image", TEXT, "", "meta.id;meta.file", "Name of the input image", "images"),
)  # fmt: skip

_BAND_UCD = {"u": "em.opt.U", "g": "em.opt.B", "r": "em.opt.R", "i": "em.opt.I", "z": "em.opt.I"}


def columns_markdown():
    """List the columns as a table in Markdown, for the documentation.

    Returns
    -------
    str
        One line for each entry of `SCHEMA`, below two lines of heading.
    """
    when = {
        "always": "",
        "sky": "with a sky position",
        "bands": "for each band",
        "linear": "from linear data",
        "calibrated": "where the zero point is known",
        "images": "with several images",
    }
    lines = ["| column | type | unit | meaning | present |", "|---|---|---|---|---|"]
    for column in SCHEMA:
        name = column.name.replace("{band}", "*")
        meaning = column.description.removeprefix("Band {band}: ")
        meaning = meaning[0].upper() + meaning[1:] if column.name != "class" else meaning
        kind = np.dtype(column.dtype).name if column.dtype not in (TEXT, LIST) else column.dtype
        lines.append(f"| `{name}` | {kind} | {column.unit} | {meaning} | {when[column.when]} |")
    return "\n".join(lines)


def flag_names(flags):
    """Name the bits that are set in a value of the column ``flags``.

    Parameters
    ----------
    flags : int
        Bit mask.

    Returns
    -------
    list of str
        Names in `FLAGS`, in the order of their bits.
    """
    return [name for name, bit in FLAGS.items() if int(flags) >> bit & 1]


def iau_name(ra, dec, prefix="SVC"):
    """Make names of the form ``SVC J203743.02-011010.7`` from positions.

    Digits are cut off, not rounded, as the IAU asks. A relative 1e-15 in the input does not change a name:
    what lies within 1e-5 of the last digit below a full one counts as full.

    Parameters
    ----------
    ra, dec : array_like, shape (N,)
        ICRS position in degrees. Any right ascension is brought to 0..360.
    prefix : str, optional
        Acronym before the ``J``.

    Returns
    -------
    ndarray of str, shape (N,)
        Empty where a coordinate is not finite.
    """
    ra, dec = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    names = np.full(len(ra), "", dtype=f"U{len(prefix) + 20}")
    finite = np.isfinite(ra) & np.isfinite(dec)
    # Integer hundredths of a second of time and tenths of an arcsecond.
    time = np.floor(np.mod(ra[finite], 360) * 24000 + 1e-5).astype(np.int64) % 8_640_000
    arc = np.floor(np.abs(dec[finite]) * 36000 + 1e-5).astype(np.int64)
    signs = np.where(dec[finite] < 0, "-", "+")
    names[finite] = [
        f"{prefix} J{t // 360000:02d}{t // 6000 % 60:02d}{t // 100 % 60:02d}.{t % 100:02d}"
        f"{sign}{a // 36000:02d}{a // 600 % 60:02d}{a // 10 % 60:02d}.{a % 10}"
        for t, sign, a in zip(time.tolist(), signs.tolist(), arc.tolist(), strict=True)
    ]
    return names


def finish(table, meta=None):
    """Turn measured objects into a catalogue: ids, names, the order of columns, types, units and meta.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Objects as `measure.measure` or `join` gives them; rows may have been left out or sorted since, for
        a ``host`` is found by its old ``id``, and is 0 if it is gone. Columns that the schema does not know
        are kept, behind the others.
    meta : dict, optional
        What is to be said about the run; becomes ``table.meta``, to which the names of the flags are added.

    Returns
    -------
    `~astropy.table.QTable`
        New table with ``id`` 1..N in the order of the rows, and ``name`` where there is a sky position.
    """
    table = table.copy(copy_data=False)
    old_id, table["id"] = np.asarray(table["id"]), np.arange(1, len(table) + 1)
    table["host"] = _renumbered(np.asarray(table["host"]), old_id)
    if "ra" in table.colnames:
        table["name"] = iau_name(_values(table["ra"], "deg"), _values(table["dec"], "deg"))
    table.meta = {**table.meta, **_simple(meta or {}), "flags": dict(FLAGS)}
    return conform(table)


def join(tables, names):
    """Put the objects of several images into one table, with a column ``image``.

    Parameters
    ----------
    tables : list of `~astropy.table.Table`
        Measured objects of each image, at least one table; ``id`` and ``host`` are each table's own.
    names : list of str
        What the column ``image`` says for each table.

    Returns
    -------
    `~astropy.table.QTable`
        Rows in the order given. Columns that one image lacks (sky position, a band) hold NaN or "" in its
        rows.
    """
    from astropy.table import QTable, vstack

    present = [_expand(name) for table in tables for name in table.colnames]
    wanted = {column.name: column for column in present if column}
    parts, offset = [], 0
    wanted.pop("name", None)  # `finish` makes it
    for table, image in zip(tables, names, strict=True):
        part = table.copy(copy_data=False)
        part["image"] = np.full(len(table), str(image))
        part["id"] = np.asarray(table["id"]) + offset
        part["host"] = np.where(np.asarray(table["host"]) > 0, np.asarray(table["host"]) + offset, 0)
        for name in wanted.keys() - set(part.colnames):
            part[name] = np.full(len(table), wanted[name].fill)
        part.meta = {}
        parts.append(conform(part))
        offset += int(np.max(table["id"], initial=0))
    return QTable(vstack(parts))


def _renumbered(host, old_id):
    """Turn hosts, given as old ids, into new ones, which count the rows from 1; 0 if there is no such row."""
    order = np.argsort(old_id, kind="stable")
    place = np.minimum(np.searchsorted(old_id[order], host), len(old_id) - 1)
    return np.where(old_id[order][place] == host, order[place] + 1, 0) if len(old_id) else host


# Columns --------------------------------------------------------------------------------------------------


def _expand(name):
    """Find the entry of the schema for a column, None if there is none."""
    for column in SCHEMA:
        if column.name == name:
            return column
    for template in (column for column in SCHEMA if "{band}" in column.name):
        band = re.fullmatch(template.name.format(band=BAND), name)
        if band:
            ucd = template.ucd.removesuffix("em.opt") + _BAND_UCD.get(band[1], "em.opt")
            return replace(template, name=name, ucd=ucd, description=template.description.format(band=band[1]))
    return None


def column_of(name):
    """Entry of the schema for a column, bands filled in.

    Parameters
    ----------
    name : str
        Name of the column.

    Returns
    -------
    Column or None
        None for one that the schema does not know.
    """
    return _expand(name)


def in_order(names):
    """Sort names of columns as the schema has them; those that it does not know come last, as they came.

    Parameters
    ----------
    names : iterable of str
        The names.

    Returns
    -------
    list of str
    """
    return _in_order(list(names))


def _in_order(names):
    """Sort names of columns as the schema has them; bands by name, unknown ones last as they came."""
    rank = {column.name: number for number, column in enumerate(SCHEMA)}
    known = [name for name in names if _expand(name)]
    known.sort(key=lambda name: (rank[_template(name)], _band_rank(name)))
    return known + [name for name in names if not _expand(name)]


def _template(name):
    """Name in the schema of a column that it knows."""
    if any(column.name == name for column in SCHEMA):
        return name
    return name.rpartition("_")[0] + "_{band}"


def _band_rank(name):
    """Order of a column of one band among its like: u, g, r, i, z, then any other by name."""
    band = name.rpartition("_")[2]
    return ("ugriz".index(band) if band in tuple("ugriz") else 5, band)


def _values(column, unit=""):
    """Give a column as a bare array; what has a unit is converted to `unit`."""
    if getattr(column, "unit", None) is not None and unit:
        import astropy.units as u

        return u.Quantity(column).to_value(unit)
    if hasattr(column, "filled"):
        return column.filled(np.nan) if column.dtype.kind == "f" else np.asarray(column.filled())
    return np.asarray(getattr(column, "value", column))


def lists(rows):
    """Make a column of lists: an object array of float32 arrays.

    Parameters
    ----------
    rows : sequence of array_like
        The list of each row; they may differ in length.

    Returns
    -------
    ndarray of object, shape (N,)
        Always one-dimensional, also where all lists have one length.
    """
    lists = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        lists[number] = np.asarray(row, dtype=np.float32)
    return lists


def _text(values):
    """Bring a column of text to numpy's unicode type, from bytes too; masked entries are empty."""
    values = values.filled("") if hasattr(values, "filled") else values
    return np.asarray([v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(values).tolist()], dtype="U")


def _stored(column, values):
    """Bring values to the type in which the schema stores them."""
    if column.dtype == LIST:
        return lists(values)
    if column.dtype == TEXT:
        return _text(values)
    return np.asarray(_values(values, column.unit)).astype(column.dtype)


def _plain(table):
    """Give a table of bare columns as it is written: stored types, units, descriptions, UCDs."""
    from astropy.table import Column as AstropyColumn
    from astropy.table import Table

    plain = Table(meta=_simple(table.meta))
    for name in _in_order(table.colnames):
        column = _expand(name)
        if column is None:
            extra = table[name]
            plain[name] = AstropyColumn(_values(extra), unit=extra.info.unit, description=extra.info.description)
            plain[name].info.meta = dict(extra.info.meta or {})
            continue
        plain[name] = AstropyColumn(
            _stored(column, table[name]),
            unit=column.unit or None,
            description=column.description,
            meta={"ucd": column.ucd},
        )
    return plain


def conform(table):
    """Bring a table to the schema: the order of columns, their types, units, descriptions and UCDs.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Columns in any order; bare numbers are taken in the schema's units. Columns that the schema does not
        know stay, behind the others.

    Returns
    -------
    `~astropy.table.QTable`
        New table.
    """
    from astropy.table import QTable

    plain = _plain(table)
    for name in plain.colnames:
        if plain[name].dtype == object:
            plain[name].unit = None  # a Quantity cannot hold lists; the unit goes into files all the same
    return QTable(plain)


def _simple(value):
    """Reduce meta data to what YAML and JSON can hold: dict, list, str, int, float, bool, None."""
    if isinstance(value, dict):
        return {str(key): _simple(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [_simple(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


# Files ----------------------------------------------------------------------------------------------------


def check_output(path, overwrite=False, known=None):
    """Refuse an output that cannot be written, before any work is done for it.

    Parameters
    ----------
    path : path-like
        File to be written.
    overwrite : bool, optional
        Whether an existing file may be replaced.
    known : iterable of str, optional
        Suffixes that are allowed; those of catalogues by default.

    Returns
    -------
    `~pathlib.Path`
        The path.

    Raises
    ------
    OutputError
        If the suffix is unknown, the folder is missing or not writable, or the file exists.
    """
    path = Path(path)
    known = list(FORMATS if known is None else known)
    if path.suffix.lower() not in known:
        raise OutputError(f"cannot write {path}: unknown suffix {path.suffix!r}; use one of {' '.join(known)}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another name or ask to overwrite it")
    check_writable(path.parent)
    return path


def check_writable(folder):
    """Refuse a folder into which nothing can be written, before any work is done for it.

    Parameters
    ----------
    folder : path-like
        It exists.

    Raises
    ------
    OutputError
        With the reason that the file system gives.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}; choose another folder") from error


def check_distinct(outputs, inputs):
    """Refuse outputs of which one would replace another, or an input.

    Parameters
    ----------
    outputs : list of `~pathlib.Path`
        Files to be written, as `check_output` gives them.
    inputs : iterable of path-like
        Files that are read; what does not exist is none.

    Raises
    ------
    OutputError
        With the names.
    """
    if len({output.absolute() for output in outputs}) < len(outputs):
        raise OutputError(f"two outputs have one name ({', '.join(map(str, outputs))}); give each its own")
    inputs = [Path(path) for path in inputs if Path(path).exists()]
    for output in (output for output in outputs if output.exists()):
        if any(output.samefile(path) for path in inputs):
            raise OutputError(f"{output} is an input; give the output another name")


def atomic_write(path, save):
    """Write a file so that its name only ever holds a complete one.

    The content goes to a hidden file beside it, which is flushed to the disk and then renamed.

    Parameters
    ----------
    path : path-like
        Final name. What it held before stays until the new content is complete.
    save : callable
        Called with the name of the file to be written, which has the same suffix.

    Raises
    ------
    OutputError
        If the file system refuses; nothing is left behind.
    """
    path = Path(path)
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    os.close(handle)
    try:
        save(partial)
        _flush(partial)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; free space or choose another") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    _flush(path.parent)


def _flush(path):
    """Have the system put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask():
    """Tell the process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write(table, path, overwrite=False):
    """Write a catalogue; the suffix chooses the format, the file appears whole or not at all.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Catalogue.
    path : path-like
        ``.parquet`` (with VOParquet metadata), ``.fits``, ``.vot`` or ``.xml`` (VOTable), ``.ecsv`` or
        ``.csv``. All but CSV keep units, UCDs, descriptions and meta.
    overwrite : bool, optional
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        If the suffix is unknown, the folder cannot be written, or the file exists.
    """
    write_table(_plain(table), path, overwrite)


def write_table(table, path, overwrite=False):
    """Write any table as `write` does, its columns as they are, whatever the schema says of their names.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Bare columns of types that all formats know (bool, integers but for int8 and large unsigned ones, float32,
        float64, text), or of lists; a column's ``info.meta`` may hold a ``ucd``.
    path, overwrite
        As in `write`.
    """
    path = check_output(path, overwrite)
    plain = table.copy(copy_data=False)
    plain.meta = _simple(table.meta)
    save, _ = FORMATS[path.suffix.lower()]
    atomic_write(path, lambda partial: save(plain, partial))


def read(path):
    """Read a catalogue that `write` wrote.

    Parameters
    ----------
    path : path-like
        File; its suffix says the format.

    Returns
    -------
    `~astropy.table.QTable`
        Columns with the schema's types, units and descriptions, whatever the format could keep of them.

    Raises
    ------
    SurveycatError
        If there is no such file, its suffix is unknown, or it is not a table of that format.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise SurveycatError(f"cannot read {path}: unknown suffix {path.suffix!r}; known are {' '.join(FORMATS)}")
    if not path.is_file():
        raise SurveycatError(f"cannot read {path}: there is no such file")
    _, load = FORMATS[path.suffix.lower()]
    try:
        table = load(path)
    except Exception as error:  # each format's reader has its own kinds; all mean the same to the user
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SurveycatError(f"cannot read {path} as a {path.suffix} table: {reason}; is it complete?") from error
    return conform(table)


def _filled(table):
    """Give a table at least one row: astropy tells the type of a list column by its first element."""
    if len(table):
        return table
    from astropy.table import Table

    row = Table(meta=table.meta)
    for name in table.colnames:
        value = lists([[0.0]]) if table[name].dtype == object else np.zeros(1, table[name].dtype)
        row[name] = type(table[name])(value, **_info(table[name]))
    return row


def _info(column):
    """What goes with a column besides its values."""
    return {"unit": column.unit, "description": column.description, "meta": dict(column.info.meta or {})}


def _votable(table):
    """Build the VOTable document of a table, meta in an INFO element."""
    from astropy.io.votable.tree import Info, VOTableFile

    document = VOTableFile.from_table(_filled(table))
    element = document.get_first_table()
    element.array = element.array[: len(table)]
    element.infos.append(Info(name=META_KEYWORD, value=json.dumps(table.meta)))
    return document


def _write_votable(table, path):
    """Write a VOTable; one without rows has an element DATA too, without which STIL sees no table."""
    import xml.etree.ElementTree as ElementTree

    if len(table):
        _votable(table).to_xml(path)
        return
    root, namespace = _columns_as_xml(table)
    (element,) = root.iter(f"{namespace}TABLE")
    fields = element.findall(f"{namespace}FIELD")
    for field in fields:
        if field.get("arraysize") == "1":
            field.set("arraysize", "*")  # text: 1 is deprecated
    data = ElementTree.Element(f"{namespace}DATA")
    ElementTree.SubElement(data, f"{namespace}TABLEDATA")
    element.insert(len(fields), data)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _columns_as_xml(table):
    """Root element of the VOTable of a table without its rows, which has no element DATA, and its namespace."""
    import xml.etree.ElementTree as ElementTree

    buffer = io.BytesIO()
    _votable(table[:0]).to_xml(buffer)
    root = ElementTree.fromstring(buffer.getvalue())
    namespace = root.tag.partition("}")[0] + "}"
    ElementTree.register_namespace("", namespace.strip("{}"))
    return root, namespace


def _read_votable(path):
    from astropy.io import votable

    element = votable.parse(path).get_first_table()
    table = element.to_table(use_names_over_ids=True)
    table.meta = next((json.loads(info.value) for info in element.infos if info.name == META_KEYWORD), {})
    return table


def _write_fits(table, path):
    """Write a binary table; UCDs and descriptions both as TUCDn, TCOMMn (TOPCAT) and in astropy's own way."""
    from astropy.io import fits

    columns = [
        fits.Column(_ascii(name), _fits_format(table[name]), _fits_unit(table[name]), array=_fits_values(table[name]))
        for name in table.colnames
    ]
    hdu = fits.BinTableHDU.from_columns(columns, nrows=len(table), name="CATALOG")
    hdu.header[META_KEYWORD] = json.dumps(table.meta)
    for number, name in enumerate(table.colnames, start=1):
        hdu.header[f"TUCD{number}"] = _ascii(table[name].info.meta.get("ucd", ""))
        hdu.header[f"TCOMM{number}"] = _ascii(table[name].description or "")
    for line in _fits_yaml(table):
        hdu.header["COMMENT"] = line
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, overwrite=True)


def _ascii(text):
    """Write text as FITS can hold it: printable ASCII in one line, other characters as Python escapes them."""
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode()


def _fits_values(column):
    """Give the values of a column, its text in ASCII."""
    return np.char.encode(column, "ascii", "backslashreplace") if column.dtype.kind == "U" else column


def _fits_format(column):
    """Give the TFORM of a column; lists have variable length."""
    if column.dtype == object:
        return "PE()"
    if column.dtype.kind == "U":
        return f"{max(1, _fits_values(column).dtype.itemsize)}A"
    return {"b1": "L", "u1": "B", "i2": "I", "i4": "J", "i8": "K", "f4": "E", "f8": "D"}[column.dtype.str[1:]]


def _fits_unit(column):
    """Give the TUNIT of a column, None without a unit; one that FITS does not know is written as astropy does."""
    if column.unit is None:
        return None
    try:
        return column.unit.to_string("fits")
    except ValueError:
        return _ascii(str(column.unit))


def _fits_yaml(table):
    """Describe the columns in COMMENT cards as astropy reads them: YAML, cut after 70 characters."""
    from astropy.table import meta

    head = table[:0]
    head.meta = {"__serialized_columns__": {}}
    yield "--BEGIN-ASTROPY-SERIALIZED-COLUMNS--"
    for line in meta.get_yaml_from_table(head):  # in ASCII, other characters escaped
        pieces = [line[start : start + 70] for start in range(0, max(1, len(line)), 70)]
        yield from [piece + "\\" for piece in pieces[:-1]]
        yield pieces[-1]
    yield "--END-ASTROPY-SERIALIZED-COLUMNS--"


def _read_fits(path):
    from astropy.io import fits
    from astropy.table import Table

    with fits.open(path, memmap=False) as hdus:
        table = Table.read(hdus[1], character_as_bytes=False)
        table.meta = json.loads(hdus[1].header.get(META_KEYWORD, "{}"))
    return table


def _write_ecsv(table, path):
    table.write(path, format="ascii.ecsv", overwrite=True)


def _read_ecsv(path):
    from astropy.table import Table

    return Table.read(path, format="ascii.ecsv")


def _write_csv(table, path):
    """Write bare CSV; lists as JSON arrays. Units, descriptions, UCDs and meta are lost."""
    table = table.copy()
    for name in table.colnames:
        if table[name].dtype == object:
            table[name] = [json.dumps([float(v) for v in row]) for row in table[name]]
    table.write(path, format="ascii.csv", overwrite=True)


def _read_csv(path):
    from astropy.table import Table

    header = Table.read(path, format="ascii.csv", data_end=1).colnames
    text = {name: str for name in header if _expand(name) and _expand(name).dtype in (TEXT, LIST)}
    table = Table.read(path, format="ascii.csv", converters=text)
    for name in text:
        if _expand(name).dtype == LIST:
            table[name] = lists([json.loads(row) for row in table[name]])
    return table


def _write_parquet(table, path):
    """Write Parquet with units and UCDs in astropy's keys, in VOParquet's, and at each field."""
    import pyarrow as pa
    import pyarrow.parquet
    from astropy.table import meta

    keys = {"table_meta_yaml": "\n".join(meta.get_yaml_from_table(table))}
    keys["IVOA.VOTable-Parquet.version"] = "1.0"
    keys["IVOA.VOTable-Parquet.content"] = _voparquet_header(table)
    arrays, fields = [], []
    for name in table.colnames:
        column = table[name]
        if column.dtype.kind == "U":
            keys[f"table::len::{name}"] = str(max(1, column.dtype.itemsize // 4))
        arrays.append(_arrow(column))
        said = {"unit": str(column.unit or ""), "ucd": column.info.meta.get("ucd", "")}
        said["description"] = column.description or ""
        fields.append(pa.field(name, arrays[-1].type, metadata={k: v for k, v in said.items() if v}))
    schema = pa.schema(fields, metadata=keys)
    pyarrow.parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")


def _arrow(column):
    """Bring one column to Arrow: text as string, lists as list of float."""
    import pyarrow as pa

    if column.dtype == object:
        return pa.array(list(column), type=pa.list_(pa.float32()))
    if column.dtype.kind == "U":
        return pa.array(column.tolist(), type=pa.string())
    return pa.array(np.asarray(column))


def _voparquet_header(table):
    """Make the VOTable without data that the VOParquet convention puts into the file's metadata."""
    import xml.etree.ElementTree as ElementTree

    root, _ = _columns_as_xml(table)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False)


def _read_parquet(path):
    from astropy.table import Table

    return Table.read(path, format="parquet")


FORMATS = {
    ".parquet": (_write_parquet, _read_parquet),
    ".fits": (_write_fits, _read_fits),
    ".vot": (_write_votable, _read_votable),
    ".xml": (_write_votable, _read_votable),
    ".ecsv": (_write_ecsv, _read_ecsv),
    ".csv": (_write_csv, _read_csv),
}
"""Suffix -> (write a plain table to a file, read one)."""

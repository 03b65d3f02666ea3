"""Any table that an astronomer keeps in a file: read whole, whoever wrote it.

The format follows from the suffix; what is not known by its suffix is tried as text. Identifiers stay exact: integers
of 64 bits never pass through floating point, also where values are missing (those are masked).
"""

import bz2
import gzip
import json
import re
from pathlib import Path

import numpy as np

from surveycat import catalog
from surveycat.errors import SurveycatError
from surveycat.wcs import one_line, quiet

__all__ = ["COOSYS", "UCD", "filled", "missing", "read_table", "ucd"]

UCD = "ucd"
COOSYS = "coosys"
"""Keys of a column's meta: its UCD, and as VOTables say it (system, equinox, epoch), texts or None."""

COMPRESSED = (".gz", ".bz2")


def read_table(path):
    """Read a table of any format.

    Parameters
    ----------
    path : path-like
        Parquet (a file, or a folder of parts), FITS, VOTable, ECSV, CSV, or text in columns (MRT, IPAC, SExtractor,
        tabs, blanks), all but Parquet also as ``.gz`` or ``.bz2``.

    Returns
    -------
    `~astropy.table.Table`
        Values that are missing are masked. The column's ``info.meta`` holds what the file says under `UCD` and
        `COOSYS`; the table's meta holds the header.

    Raises
    ------
    SurveycatError
        If there is no such file, or it is not a table.
    """
    path = Path(path)
    if not path.exists():
        raise SurveycatError(f"there is no table {path}: give the path of a file, or sdss, gz1 or gz2")
    if path.is_file() and not path.stat().st_size:
        raise SurveycatError(f"cannot read {path} as a table: it is empty; a list without rows has its columns' names")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = next((each for each in reversed(suffixes) if each not in COMPRESSED), "")
    try:
        with quiet():
            table = _read_parquet(path) if path.is_dir() else READERS.get(suffix, _read_text)(path)
    except Exception as error:  # each format's reader has its own kinds; all mean the same to the user
        reason = one_line(str(error).splitlines()[0] if str(error).strip() else type(error).__name__)
        raise SurveycatError(
            f"cannot read {path} as a table: {reason}; is it complete, and its suffix right?"
        ) from error
    if not table.colnames:
        raise SurveycatError(f"cannot read {path} as a table: it has no columns")
    return table


def ucd(column):
    """UCD of a column in lower case, "" if it has none."""
    return str((column.info.meta or {}).get(UCD, "")).strip().lower()


def filled(column):
    """Values of a column without unit and mask; what is masked is missing: NaN, "" or 0.

    Parameters
    ----------
    column : `~astropy.table.Column`, `~astropy.units.Quantity` or their like

    Returns
    -------
    ndarray
    """
    values = np.ma.getdata(getattr(column, "unmasked", getattr(column, "value", column)))
    mask = np.asarray(getattr(column, "mask", False))
    if mask.any() and values.dtype.kind in "biufUS":
        values = values.copy()
        values[mask] = missing(values.dtype)
    return np.asarray(values)


def missing(dtype):
    """Value that stands for "not known": NaN, "", 0 or False."""
    return np.nan if dtype.kind == "f" else dtype.type()


def _set_meta(column, key, value):
    column.info.meta = {**(column.info.meta or {}), key: value}


# FITS and VOTable -----------------------------------------------------------------------------------------


def _read_fits(path):
    from astropy.io import fits
    from astropy.table import Table

    with fits.open(path, memmap=False) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, (fits.BinTableHDU, fits.TableHDU))]
        if not tables:
            raise ValueError("the FITS file holds images, but no table")
        hdu = next((each for each in tables if len(each.data)), tables[0])
        table, header = Table.read(hdu, character_as_bytes=False), hdu.header
    for number, name in enumerate(hdu.columns.names, start=1):
        if header.get(f"TUCD{number}") and name in table.colnames:
            _set_meta(table[name], UCD, header[f"TUCD{number}"])
    if catalog.META_KEYWORD in header:
        table.meta = json.loads(header[catalog.META_KEYWORD])
    return table


def _read_votable(path):
    from astropy.io import votable

    document = votable.parse(path)
    element = document.get_first_table()
    table = element.to_table(use_names_over_ids=True)
    systems = {system.ID: system for system in _coordinate_systems(document)}
    for name, field in zip(table.colnames, element.fields, strict=True):
        system = systems.get(field.ref)
        if system is not None:
            _set_meta(table[name], COOSYS, (system.system, system.equinox, system.epoch))
    ours = [info.value for info in element.infos if info.name == catalog.META_KEYWORD]
    if ours:
        table.meta = json.loads(ours[0])
    return table


def _coordinate_systems(holder):
    """COOSYS elements of a VOTable document and of all its resources."""
    yield from holder.coordinate_systems
    for resource in holder.resources:
        yield from _coordinate_systems(resource)


# Text -----------------------------------------------------------------------------------------------------


def _read_ecsv(path):
    from astropy.table import Table

    return Table.read(path, format="ascii.ecsv")


def _read_csv(path):
    from astropy.table import Table

    opener = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)
    with opener(path, "rt", encoding="utf-8", errors="replace") as file:
        first, second = file.readline(), file.readline()
    if first.startswith("# %ECSV"):
        return _read_ecsv(path)
    if "," not in first + second:
        return _read_text(path)
    start = 1 if first.startswith("#Table") else 0  # as SkyServer writes it
    return Table.read(path, format="ascii.csv", header_start=start, data_start=start + 1)


def _read_text(path):
    from astropy.table import Table

    try:
        return Table.read(path, format="ascii")
    except Exception as error:  # the message is a list of all that was tried, pages long
        raise ValueError("none of the known layouts of text fits; give it a line with the columns' names") from error


# Parquet --------------------------------------------------------------------------------------------------


def _read_parquet(path):
    import pyarrow.dataset
    from astropy.table import Table

    files = sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [str(path)]
    if not files:
        raise ValueError("the folder holds no file .parquet")
    arrow = pyarrow.dataset.dataset(files, format="parquet").to_table()
    table = Table()
    for field in arrow.schema:
        values = _from_arrow(arrow.column(field.name).combine_chunks())
        if values is not None:
            table[field.name] = values
            _describe(table[field.name], {k.decode(): v.decode() for k, v in (field.metadata or {}).items()})
    keys = arrow.schema.metadata or {}
    _describe_all(table, keys.get(b"table_meta_yaml"), keys.get(b"IVOA.VOTable-Parquet.content"))
    return table


def _from_arrow(array):
    """Bring a column of Arrow to numpy: missing values masked, lists as an object array; None if it has no like."""
    import pyarrow as pa
    from astropy.table import MaskedColumn

    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(array)
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_large_string(kind):
        array = array.cast(pa.string())
    gaps = np.asarray(array.is_null())
    if pa.types.is_string(array.type):
        values = np.array(["" if value is None else value for value in array.to_pylist()], dtype="U")
    elif pa.types.is_boolean(array.type) or pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        values = np.asarray(array.fill_null(False if pa.types.is_boolean(array.type) else 0))
    else:
        return None
    return MaskedColumn(values, mask=gaps) if gaps.any() else values


def _lists(array):
    lists = np.empty(len(array), dtype=object)
    for row, values in enumerate(array.to_pylist()):
        lists[row] = np.asarray([] if values is None else values)
    return lists


def _describe(column, said):
    """Give a column the unit, description and UCD that a file has for it."""
    from astropy.units import Unit

    if said.get("unit") and column.dtype != object:
        column.unit = Unit(said["unit"], parse_strict="silent")
    if said.get("description"):
        column.description = said["description"]
    if said.get(UCD):
        _set_meta(column, UCD, said[UCD])


def _describe_all(table, astropy_yaml, votable):
    """Give columns what is said of them in the file's metadata: in astropy's way, or in VOParquet's."""
    if astropy_yaml is not None:
        from astropy.table.meta import get_header_from_yaml

        header = get_header_from_yaml(astropy_yaml.decode().split("\n"))
        table.meta = header.get("meta", {})
        said = {each["name"]: {**each, **each.get("meta", {})} for each in header["datatype"]}
    elif votable is not None:
        fields = re.findall(r"<(?:\w+:)?FIELD\b([^>]*)>", votable.decode())
        attributes = [dict(re.findall(r'(\w+)="([^"]*)"', each)) for each in fields]
        said = {each["name"]: each for each in attributes if "name" in each}
    else:
        return
    for name in set(said) & set(table.colnames):
        _describe(table[name], said[name])


# Others ---------------------------------------------------------------------------------------------------


def _read_by_astropy(path):
    from astropy.table import Table

    return Table.read(path)


READERS = {
    ".parquet": _read_parquet,
    ".parq": _read_parquet,
    ".pq": _read_parquet,
    ".fits": _read_fits,
    ".fit": _read_fits,
    ".fts": _read_fits,
    ".vot": _read_votable,
    ".votable": _read_votable,
    ".xml": _read_votable,
    ".ecsv": _read_ecsv,
    ".csv": _read_csv,
    ".hdf5": _read_by_astropy,
    ".h5": _read_by_astropy,
}
"""Suffix -> reader; any other is read as text in columns."""

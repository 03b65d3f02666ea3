"""The list of a bulk run: what is to be looked at, and where it is on the sky.

Any table of positions with an identifier, the published tables of Galaxy Zoo among them, or a list of images that
know themselves where they are. Rows that cannot be used are told apart from the others, each with its reason: one bad
row must not stop a million good ones. Identifiers stay what they are, integers of 64 bits or text.
"""

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from surveycat.errors import OptionError, PositionError, SurveycatError
from surveycat.positions import positions
from surveycat.tablefile import read_table
from surveycat.wcs import one_line

__all__ = ["Targets", "columns_of", "read_targets"]

ID_NAMES = ("dr7objid", "objid", "dr8objid", "specobjid", "name", "id", "iauname")
IMAGE_NAMES = ("image", "file", "filename", "path")
ALL_COLUMNS = "surveycat_columns"  # key of a table's meta: the columns of the file, of which some are read
FLOATING = re.compile(r"[-+]?\d+(\.\d*)?[eE]\+?\d+|\d{16,}\.0*")  # what is left of an id of 64 bits
MOST_UNREADABLE = 1000  # rows whose position is no number; with more it is the column that is wrong


@dataclass(frozen=True, eq=False)
class Targets:
    """The rows of a list that can be used, and those that cannot.

    Parameters
    ----------
    id : ndarray, shape (N,)
        int64 where all identifiers are integers of that size, else text. Each occurs once.
    ra, dec : ndarray of float64, shape (N,)
        ICRS degrees; NaN in a list of images.
    row : ndarray of int64, shape (N,)
        Row in the list, the first being 0.
    others : dict of ndarray
        Further columns of the list, by name, each of length N.
    images : bool
        Whether it is a list of images: ``others[IMAGE]`` are their paths.
    refused : list of (int, str, str)
        Row, identifier as text, and reason.
    """

    id: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    row: np.ndarray
    others: dict
    images: bool = False
    refused: list = field(default_factory=list)

    def __len__(self):
        return len(self.id)

    @property
    def n_rows(self):
        """Number of rows of the list, those that cannot be used included."""
        return len(self.id) + len(self.refused)

    def select(self, index):
        """The targets at `index` (ints, or a bool for each), without the refused ones."""
        others = {name: values[index] for name, values in self.others.items()}
        return Targets(self.id[index], self.ra[index], self.dec[index], self.row[index], others, self.images)

    def one(self, i):
        """All that the list says of target `i`, by name, for a template of file names."""
        return {"id": self.id[i], "ra": self.ra[i], "dec": self.dec[i]} | {n: v[i] for n, v in self.others.items()}


def read_targets(path, id_column=None, columns=(), ra_column=None, dec_column=None):
    """Read a list.

    Parameters
    ----------
    path : path-like
        CSV, FITS, VOTable, ECSV, Parquet or text, as `surveycat.tablefile.read_table` reads it.
    id_column : str, optional
        Column with the identifier; the first of `ID_NAMES` that is there by default, in any case.
    columns : sequence of str, optional
        Further columns that are needed.
    ra_column, dec_column : str, optional
        Columns with the position; found by UCD or name by default. A list without any, but with a column
        ``image``, is one of images.

    Returns
    -------
    Targets

    Raises
    ------
    SurveycatError, OptionError, PositionError
        If it is no table, or lacks a column, or identifiers are floating point.
    """
    table = _read(Path(path), id_column, columns, ra_column, dec_column)
    names = {name.lower(): name for name in reversed(table.colnames)}
    missing = [name for name in columns if name.lower() not in names]
    if missing:
        raise OptionError(f"{path} has no column {missing[0]}; it has {_listed(table)}")
    image_name = next((names[name] for name in IMAGE_NAMES if name in names), None)
    images = image_name is not None and ra_column is None and not _has_positions(table)
    ids, lacking, id_name = _identifiers(table, id_column, names, image_name if images else None, path)
    nowhere = np.full(len(table), np.nan)
    ra, dec, problems = (nowhere, nowhere, {}) if images else _places(table, ra_column, dec_column)
    if not images:
        lost = np.flatnonzero(~np.isfinite(ra)).tolist()
        problems = {row: f"no position: {problems[row]}" if row in problems else "no position" for row in lost}
    problems |= {row: f"no identifier in column {id_name}" for row in np.flatnonzero(lacking).tolist()}
    problems = _repeated(ids, problems) | problems
    refused = [(row, "" if lacking[row] else str(ids[row]), problems[row]) for row in sorted(problems)]
    good = np.setdiff1d(np.arange(len(table)), [row for row, _, _ in refused])
    others = {name: _plain(table[names[name.lower()]])[good] for name in columns}
    if images:
        others["image"] = _plain(table[image_name])[good].astype(str)
    return Targets(_as_integers(ids[good]), ra[good], dec[good], good, others, images, refused)


def _listed(table, most=12):
    """Name the columns of the file, not too many."""
    names = table.meta.get(ALL_COLUMNS, table.colnames)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# Reading --------------------------------------------------------------------------------------------------


def columns_of(path):
    """Names of the columns of a list; of a CSV file no more than its first line is read.

    Parameters
    ----------
    path : path-like
        The list.

    Returns
    -------
    list of str
    """
    return _csv_header(Path(path)) or read_table(path).colnames


def _csv_header(path):
    """Names in the first line of a plain CSV file, None if it is not one."""
    import pyarrow as pa

    if not path.is_file() or ".csv" not in [suffix.lower() for suffix in path.suffixes[-2:]]:
        return None
    try:
        with pa.input_stream(str(path), compression="detect") as file:
            head = file.read(2**16).decode("utf-8", "replace")
    except (pa.ArrowInvalid, OSError) as error:
        raise SurveycatError(f"cannot read {path} as a table: {one_line(error)}; is it complete?") from error
    if head.startswith(("#", "\ufeff")) or "," not in head.partition("\n")[0]:
        return None
    return next(csv.reader(head.splitlines()))


def _read(path, id_column, columns, ra_column, dec_column):
    """Read the table; of plain CSV files only what is needed, identifiers as text."""
    header = _csv_header(path)
    if header is None:
        return read_table(path)
    import pyarrow as pa
    from astropy.table import Table
    from pyarrow import csv as arrow_csv

    wanted = {name.lower() for name in (id_column, *columns, ra_column, dec_column) if name}
    wanted |= {*ID_NAMES, *IMAGE_NAMES} | {name.lower() for name in header if _is_position(name)}
    kept = [name for name in dict.fromkeys(header) if name.lower() in wanted]
    identifiers = {name for name in kept if name.lower() in {*ID_NAMES, (id_column or "").lower()}}
    options = arrow_csv.ConvertOptions(
        include_columns=kept or header[:1], column_types={name: pa.string() for name in identifiers}
    )
    try:
        arrow = arrow_csv.read_csv(str(path), convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise SurveycatError(f"cannot read {path} as a table: {one_line(error)}; is it complete?") from error
    table = Table({name: _from_arrow(arrow.column(name)) for name in arrow.column_names})
    table.meta[ALL_COLUMNS] = header
    del arrow
    pa.default_memory_pool().release_unused()
    return table


def _is_position(name):
    name = name.lower()
    return name.strip("_ ").startswith(("ra", "de", "coord_", "glon", "glat", "right", "alpha", "delta"))


def _from_arrow(column):
    """Bring a column of Arrow to numpy: numbers with NaN for what is missing, else text."""
    import pyarrow as pa

    if pa.types.is_string(column.type):
        column = _integers_of_text(column)
    if pa.types.is_integer(column.type) and not column.null_count:
        return column.to_numpy()
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.cast(pa.float64()).to_numpy()
    words = column.cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()  # what repeats is kept once
    return np.array(words.dictionary.to_pylist(), dtype=object)[words.indices.to_numpy()]


def _integers_of_text(column):
    """Give text as int64 where every value is an integer as it would be written, else as it is."""
    import pyarrow as pa
    from pyarrow import compute

    try:
        integers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column
    return integers if compute.all(compute.equal(integers.cast(pa.string()), column)).as_py() else column


def _plain(column):
    """Give a column as a bare array of numbers or text."""
    if hasattr(column, "filled"):
        column = column.filled(np.nan if column.dtype.kind == "f" else "" if column.dtype.kind in "US" else 0)
    values = np.asarray(getattr(column, "value", column))
    if values.dtype.kind in "SO":
        values = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()], dtype=str)
    return values


# Identifiers ----------------------------------------------------------------------------------------------


def _identifiers(table, id_column, names, image_name, path):
    """Give the identifiers (integers or text), where there is none, and the name of their column."""
    if id_column is not None and id_column.lower() not in names:
        raise OptionError(f"--id-column {id_column} is no column of {path}; it has {_listed(table)}")
    known = (id_column.lower(),) if id_column else ID_NAMES
    name = next((names[each] for each in known if each in names), None)
    if name is None and image_name is not None:
        names = np.array([Path(str(each)).name for each in _plain(table[image_name])], dtype=str)
        return names, names == "", image_name
    if name is None:
        raise OptionError(f"{path} has no identifiers among {_listed(table)}; name the column by --id-column")
    column = table[name]
    if column.dtype.kind == "f":
        raise OptionError(
            f"column {name} of {path} holds floating point numbers, which cannot hold ids of 64 bits: "
            "save it as integers or text"
        )
    missing = np.ma.getmaskarray(column) if hasattr(column, "mask") else np.zeros(len(column), bool)
    values = _plain(column)
    if values.dtype.kind in "iu":
        return values, missing, name
    texts = np.array([text.strip() for text in values.astype(str).tolist()], dtype=str)
    rounded = next((text for text in texts.tolist() if FLOATING.fullmatch(text)), None)
    if rounded is not None:
        raise OptionError(
            f"column {name} of {path} holds {rounded}: an id of 64 bits that went through floating point is lost; "
            "take another column by --id-column, or the original table"
        )
    return texts, missing | (texts == ""), name


def _as_integers(texts):
    """Give identifiers as int64 where all are integers as text would write them, else as text."""
    if texts.dtype.kind in "iu" and (not len(texts) or int(texts.max()) < 2**63):
        return texts.astype(np.int64)
    texts = texts.astype(str)
    try:
        values = np.array([int(text) for text in texts.tolist()], dtype=np.int64)
    except (ValueError, OverflowError):
        return texts
    return values if len(values) and (values.astype(str) == texts).all() else texts


# Positions ------------------------------------------------------------------------------------------------


def _has_positions(table):
    try:
        positions(table[:0])
    except PositionError:
        return False
    return True


def _places(table, ra_column, dec_column):
    """Give ra, dec (NaN where there is none) and {row: reason} for the rows whose position is none."""
    positions(table[:0], ra_column, dec_column)  # columns that are missing are nobody's row
    problems = {}

    def places(start, stop):
        try:
            found = positions(table[start:stop], ra_column, dec_column)
        except PositionError as error:
            if stop - start > 1:
                middle = (start + stop) // 2
                halves = places(start, middle), places(middle, stop)
                return tuple(np.concatenate(pair) for pair in zip(*halves, strict=True))
            said = str(error).partition(":")[0]
            problems[start] = re.sub(r"^row 0 (has|of) |, which is no (position|angle)", "", said)
            if len(problems) > MOST_UNREADABLE:
                raise
            return np.array([np.nan]), np.array([np.nan])
        return found.ra, found.dec

    ra, dec = places(0, len(table)) if len(table) else (np.empty(0), np.empty(0))
    return ra, dec, problems


def _repeated(ids, problems):
    """Give {row: reason} for the rows whose identifier an earlier, usable row has."""
    in_order = np.sort(ids)
    if not (in_order[1:] == in_order[:-1]).any():
        return {}
    usable = np.setdiff1d(np.arange(len(ids)), list(problems))
    _, first, which = np.unique(ids[usable], return_index=True, return_inverse=True)
    again = np.flatnonzero(first[which] != np.arange(len(usable)))
    return {int(usable[i]): f"the identifier is that of row {usable[first[which[i]]]} already" for i in again.tolist()}

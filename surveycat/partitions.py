"""The rows of all parts of a bulk run, put together by HEALPix cell, one region of the sky after the other.

Sources are row groups of parts, and of the dataset of an earlier run. They are looked through once for where on the sky
their rows are. Then the sky is divided into regions, HEALPix cells that hold no more than `REGION_ROWS` rows each, and
region by region rows are ordered, numbered, told apart into views of one galaxy, and written::

    sources -> index -> region 1: rows in it and near it -> order, hosts, primaries -> partitions
                        region 2: ...

So memory does not grow with the number of rows, and the dataset does not depend on how they were grouped into parts.
"""

import contextlib
import functools
import os
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from surveycat import catalog
from surveycat.errors import RunFailed
from surveycat.primary import LEAST_ARCSEC, primary, same_galaxy
from surveycat.wcs import unit_vectors

__all__ = ["EXTRA", "INDEX", "Growing", "column_of", "plain", "said_of", "to_arrow", "write_partitions"]

INDEX = "_healpix_29"  # what hats calls its index: HEALPix cell of order 29
EXTRA = {
    "cutout_id": ("", "meta.id", "Target in whose cutout, or image in which, the object was found"),
    "target_id": ("", "meta.id.cross", "The target, if the object is the one on it, else 0 or empty"),
    "is_target": ("", "meta.code", "Whether the object is the one on the target"),
    "target_separation": ("arcsec", "pos.angDistance", "Distance of the centroid from the target of its cutout"),
    "is_primary": ("", "meta.code", "Whether it is the one to count of all views of the same galaxy"),
    INDEX: ("", "pos.healpix", "HEALPix cell of order 29, nested"),
}
MADE_LAST = (INDEX, "name", "is_primary", "target_id")
KEYS = ("ra", "dec", "cutout_id", "id", "host", "is_target", "target_separation", "score", "flags", "area")
REGION_ROWS = 2**14
CLOSERS = 8  # files that wait for the disk at a time
KEPT_ROWS = 2**17  # rows of which the keys are kept, since regions have their neighbours' rows in common
FINEST, ALL = 8, 29  # orders of the cells by which the sky is divided, and of the index
CELL_ARCSEC = 58.6 * 3600  # side of a cell of order 0
CHAIN = 4  # steps from one view to the next that are looked at before it is asked whether more are needed


# Columns --------------------------------------------------------------------------------------------------


column_of = functools.lru_cache(None)(catalog.column_of)  # the same names are looked up for every part


def _is_ours(name):
    """Whether a column is not one that was carried along from an earlier list."""
    return name in EXTRA or column_of(name) is not None


def said_of(name):
    """Give unit, UCD and description of a column, for the metadata of its field.

    Parameters
    ----------
    name : str
        Of a column of the dataset.

    Returns
    -------
    dict of str
    """
    column = column_of(name)
    if column is not None:
        said = (column.unit, column.ucd, column.description)
    else:
        said = EXTRA.get(name, ("", "", ""))
    return {key: value for key, value in zip(("unit", "ucd", "description"), said, strict=True) if value}


def to_arrow(values):
    """Bring an array of numbers or text to Arrow; text stays text where there is none.

    Parameters
    ----------
    values : array_like, shape (N,)

    Returns
    -------
    `pyarrow.Array`
    """
    import pyarrow as pa

    values = np.asarray(values)
    return pa.array(values.tolist(), pa.string()) if values.dtype.kind == "U" else pa.array(values)


def plain(column):
    """Give a column of Arrow as numpy: text as str, not as objects.

    Parameters
    ----------
    column : `pyarrow.ChunkedArray`
        Without nulls.

    Returns
    -------
    ndarray
    """
    import pyarrow as pa

    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=str) if len(column) else np.empty(0, "U1")
    return column.to_numpy()


def _cells(ra, dec, order):
    """HEALPix cells, nested, of positions in degrees."""
    from astropy_healpix import healpy

    return healpy.ang2pix(2**order, ra, dec, nest=True, lonlat=True) if len(ra) else np.empty(0, np.int64)


# Sources and regions --------------------------------------------------------------------------------------


class _Sources:
    """Row groups of files, and where on the sky their rows are.

    Parameters
    ----------
    paths : list of path-like
        Parquet files.

    Attributes
    ----------
    counts : ndarray of int64
        Rows in each cell of order `FINEST`.
    widest : float
        Arcsec; no view reaches further to its partners.
    schema : `pyarrow.Schema` or None
        Of all columns that any of them has.
    """

    def __init__(self, paths):
        import pyarrow as pa

        self.counts, self.widest, self.schema = np.zeros(12 * 4**FINEST, np.int64), LEAST_ARCSEC, None
        self._groups, self._read_before = [], OrderedDict()
        numbers, cells, schemas = [], [], {}
        for path in paths:
            with _opened(path) as file:
                schemas[file.schema_arrow] = None  # of thousands of parts all but a few are equal
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, ["ra", "dec", "area"])
                    here, count = np.unique(_cells(*map(plain, table.columns[:2]), FINEST), return_counts=True)
                    self.counts[here] += count
                    self.widest = max(self.widest, np.sqrt(plain(table["area"]).max(initial=0) / np.pi))
                    numbers.append(np.full(len(here), len(self._groups), np.int32))
                    cells.append(here.astype(np.int32))
                    self._groups.append((path, group))
        self._numbers = np.concatenate([np.empty(0, np.int32), *numbers])
        self._cells = np.concatenate([np.empty(0, np.int32), *cells])
        if schemas:
            self.schema = pa.unify_schemas(list(schemas))

    def read(self, number):
        """Give all columns of a source."""
        path, group = self._groups[number]
        with _opened(path) as file:
            return file.read_row_group(group)

    def near(self, region, arcsec):
        """Give the keys of all rows in a region and of at least those within a distance of it."""
        order = int(np.clip(np.floor(np.log2(CELL_ARCSEC / (4 * arcsec))), -1, FINEST))
        if order < 0:  # as far as half the sky
            return self._keys_in(np.unique(self._numbers), None, order)
        shift = 2 * (FINEST - order)
        coarse = self._cells >> shift
        wanted = np.unique(coarse[region.holds(self._cells, FINEST)])
        wanted = np.union1d(wanted, _neighbours(wanted, order))
        return self._keys_in(np.unique(self._numbers[np.isin(coarse, wanted)]), wanted, order)

    def inside(self, region):
        """Give the keys of all rows in a region."""
        numbers = np.unique(self._numbers[region.holds(self._cells, FINEST)])
        parts = [keys.select(region.holds(keys.index, ALL)) for keys in map(self._keys, numbers.tolist())]
        return _Keys.joined(parts)

    def _keys_in(self, numbers, cells, order):
        """Keys of the rows of some sources that lie in some cells."""
        parts = [self._keys(number) for number in numbers.tolist()]
        if cells is not None:
            parts = [keys.select(np.isin(keys.index >> 2 * (ALL - order), cells)) for keys in parts]
        return _Keys.joined(parts)

    def _keys(self, number):
        """Keys of all rows of a source."""
        if number not in self._read_before:
            path, group = self._groups[number]
            with _opened(path) as file:
                table = file.read_row_group(group, list(KEYS))
            self._read_before[number] = _Keys.of(table, number)
        self._read_before.move_to_end(number)
        while len(self._read_before) > 1 and sum(map(len, self._read_before.values())) > KEPT_ROWS:
            self._read_before.popitem(last=False)
        return self._read_before[number]


@contextlib.contextmanager
def _opened(path):
    import pyarrow.parquet

    # Not as one file of a dataset: the names of its folders would become columns.
    with open(path, "rb") as file:
        yield pyarrow.parquet.ParquetFile(file)


@dataclass(frozen=True, eq=False)
class _Keys:
    """What is needed of rows to order and compare them: columns of equal length."""

    columns: dict

    @classmethod
    def of(cls, table, number):
        """Take them from a table of source `number`."""
        columns = {name: plain(table[name]) for name in KEYS}
        columns["index"] = _cells(columns["ra"], columns["dec"], ALL)
        columns["source"] = np.full(len(table), number, np.int32)
        columns["at"] = np.arange(len(table), dtype=np.int32)
        return cls(columns)

    @classmethod
    def joined(cls, parts):
        """Join those of several sources, of which there is at least one."""
        return cls({name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns})

    def __getattr__(self, name):
        return self.columns[name]

    def __len__(self):
        return len(self.columns["ra"])

    def select(self, index):
        """Those at `index`."""
        return _Keys({name: values[index] for name, values in self.columns.items()})

    def in_order(self):
        """Order of rows in the dataset: along the sky, and where that is the same, by cutout."""
        return np.lexsort([self.id, self.cutout_id, self.index])

    def rank(self):
        """Rank of rows as views of a galaxy, the best first."""
        cut = self.flags >> catalog.FLAGS["edge_truncated"] & 1
        separation = np.nan_to_num(self.target_separation, nan=np.inf)
        order = np.lexsort([self.id, self.cutout_id, -self.score, separation, cut, ~self.is_target.astype(bool)])
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank


@dataclass(frozen=True)
class _Region:
    """A HEALPix cell, and how many rows of the dataset come before it."""

    order: int
    cell: int
    before: int

    def holds(self, cells, order):
        """Which of some cells of an order that is no less than its own lie in it."""
        return cells >> 2 * (order - self.order) == self.cell


def _regions(counts):
    """Divide the sky into cells of at most `REGION_ROWS` rows, if `FINEST` allows it; empty ones are left out."""
    before = np.concatenate([[0], np.cumsum(counts)])

    def divided(order, cell):
        start, stop = (n << 2 * (FINEST - order) for n in (cell, cell + 1))
        rows = before[stop] - before[start]
        if not rows:
            return []
        if rows <= REGION_ROWS or order == FINEST:
            return [_Region(order, cell, int(before[start]))]
        return [region for child in range(4 * cell, 4 * cell + 4) for region in divided(order + 1, child)]

    return [region for cell in range(12) for region in divided(0, cell)]


def _neighbours(cells, order):
    """Cells that touch some cells of an order."""
    from astropy_healpix import neighbours

    with np.errstate(invalid="ignore"):  # some cells have seven
        return neighbours(cells.astype(np.int64), 2**order, order="nested")


# One region -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of a region in their order, with what is known only when all are there."""

    keys: _Keys
    id: np.ndarray
    host: np.ndarray
    primary: np.ndarray


class _Dataset:
    """All regions; `rows` of one at a time."""

    def __init__(self, sources):
        self._sources, self.regions = sources, _regions(sources.counts)
        self._starts = np.array([region.cell << 2 * (ALL - region.order) for region in self.regions])
        self._ids_in = functools.lru_cache(4)(self._ids_in)

    def rows(self, region):
        """Order the rows of a region, number them, and choose the primary ones."""
        arcsec = CHAIN * self._sources.widest
        while True:
            near = self._sources.near(region, arcsec)
            inside = region.holds(near.index, ALL)
            hosts = _hosts(near, inside)
            chosen, reached = _primary(near, inside)
            # Whether two are of one galaxy is up to all partners of both.
            if _distance(near, reached, inside) <= arcsec - 2 * self._sources.widest and hosts.min() >= -1:
                break
            if arcsec > 180 * 3600:
                raise RunFailed("a row lies on one that is not there; start afresh with --overwrite, and report it")
            arcsec *= 4
        mine = np.flatnonzero(inside)
        mine = mine[near.select(mine).in_order()]
        ids = region.before + 1 + np.arange(len(mine))
        return _Rows(near.select(mine), ids, self._host_ids(near, mine, ids, hosts[mine]), chosen[mine])

    def _host_ids(self, near, mine, ids, hosts):
        """Give the final ids of hosts, 0 without one; they may lie in another region."""
        final = np.full(len(near) + 1, 0)  # the last entry answers for -1
        final[mine] = ids
        abroad = np.setdiff1d(hosts[hosts >= 0], mine)
        for host in abroad.tolist():
            region = self.regions[int(np.searchsorted(self._starts, near.index[host], side="right")) - 1]
            final[host] = self._ids_in(region)[int(near.source[host]), int(near.at[host])]
        return final[hosts]

    def _ids_in(self, region):
        """Final ids of the rows of a region by source and place in it."""
        keys = self._sources.inside(region)
        keys = keys.select(keys.in_order())
        places = zip(keys.source.tolist(), keys.at.tolist(), strict=True)
        return {place: region.before + 1 + number for number, place in enumerate(places)}


def _hosts(near, inside):
    """Give the position of the host of each row inside, -1 for rows without one, -2 where it is not among these.

    In a part an id counts the rows of its cutout, in a dataset all rows: either way it is one of a row of that cutout.
    """
    hosts = np.full(len(near), -1)
    lying_on = np.flatnonzero(inside & (near.host > 0))
    if len(lying_on):
        cutout, width = np.unique(near.cutout_id, return_inverse=True)[1], near.id.max() + 1
        row = cutout * width + near.id
        order = np.argsort(row)
        wanted = cutout[lying_on] * width + near.host[lying_on]
        place = order[np.minimum(np.searchsorted(row, wanted, sorter=order), len(order) - 1)]
        hosts[lying_on] = np.where(row[place] == wanted, place, -2)
    return hosts


def _primary(near, inside):
    """Choose views; gives also the rows outside that have a say in what becomes of those inside."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = same_galaxy(near.ra, near.dec, near.cutout_id, near.area, near.flags)
    chain = connected_components(coo_array((np.ones(len(i)), (i, j)), (len(near), len(near))), directed=False)[1]
    has_a_say = ~inside & np.isin(chain, np.unique(chain[inside]))
    return primary(i, j, near.rank()), np.flatnonzero(has_a_say)


def _distance(near, rows, inside):
    """How far the farthest of some rows is from the nearest one inside, arcsec."""
    from scipy.spatial import cKDTree

    if not len(rows):
        return 0.0
    points = unit_vectors(near.ra, near.dec).T
    chord = cKDTree(points[inside]).query(points[rows])[0].max()
    return np.degrees(2 * np.arcsin(min(chord / 2, 1))) * 3600


# Writing --------------------------------------------------------------------------------------------------


def write_partitions(paths, folder, targets, keep, order):
    """Write the rows of some files by HEALPix cell.

    Parameters
    ----------
    paths : list of path-like
        Parquet files of rows.
    folder : path-like
        Where to write ``Norder=4/Dir=0/Npix=1153.parquet``.
    targets : `~surveycat.targets.Targets`
        The list.
    keep : list of str
        Columns of the list that rows on targets get.
    order : int
        Order of the cells.

    Returns
    -------
    counts : dict of int
        ``detections``, ``on_target``, ``primary``.
    partitions : list of dict
        ``path``, ``Npix``, ``rows`` of each.

    Raises
    ------
    RunFailed
        If a file does not hold what was written.
    OSError
        If it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources, kept = _Sources(paths), _Kept(targets, keep)
    dataset = _Dataset(sources)
    counts = dict.fromkeys(("detections", "on_target", "primary"), 0)
    with contextlib.closing(_Partitions(folder, order)) as partitions:
        for region in dataset.regions:
            rows = dataset.rows(region)
            partitions.add(kept.added_to(_table(rows, sources)), rows.keys.index)
            counts["detections"] += len(rows.keys)
            counts["on_target"] += int(rows.keys.is_target.sum())
            counts["primary"] += int(rows.primary.sum())
    return counts, partitions.verified()


def _table(rows, sources):
    """Give the rows of a region with all their columns."""
    import pyarrow as pa

    keys, pieces, positions = rows.keys, [], []
    names = [name for name in sources.schema.names if name not in MADE_LAST and _is_ours(name)]
    empty = sources.schema.empty_table().select(names)
    for number in np.unique(keys.source).tolist():
        mine = np.flatnonzero(keys.source == number)
        table = sources.read(number).take(keys.at[mine])
        pieces.append(table.select([name for name in names if name in table.column_names]))
        positions.append(mine)
    table = pa.concat_tables([empty, *pieces], promote_options="default").take(np.argsort(np.concatenate(positions)))
    new = {"id": rows.id, "host": rows.host, "name": catalog.iau_name(keys.ra, keys.dec).tolist()}
    new |= {"is_primary": rows.primary, INDEX: keys.index}
    arrays = {name: table[name] for name in names} | {name: pa.array(values) for name, values in new.items()}
    none = "" if pa.types.is_string(arrays["cutout_id"].type) else 0
    arrays["target_id"] = pa.compute.if_else(arrays["is_target"], arrays["cutout_id"], none)
    names = _in_order(tuple(arrays))
    fields = [pa.field(name, arrays[name].type, metadata=said_of(name)) for name in names]
    return pa.Table.from_arrays([arrays[name] for name in names], schema=pa.schema(fields))


@functools.lru_cache(None)
def _in_order(names):
    """Order the columns: the index, those of the schema, ours, others."""
    known = [name for name in catalog.in_order(names) if column_of(name)]
    ours = [name for name in EXTRA if name in names and name != INDEX]
    return list(dict.fromkeys([INDEX, *known, *ours, *names]))


class _Kept:
    """Columns of the list for the rows on targets."""

    def __init__(self, targets, keep):
        self._targets, self._keep = targets, keep
        self._order = np.argsort(targets.id) if keep else None

    def added_to(self, table):
        """The table with these columns."""
        if not self._keep:
            return table
        ids, on_target = plain(table["cutout_id"]), table["is_target"].to_numpy()
        found = np.searchsorted(self._targets.id, ids, sorter=self._order)
        place = self._order[np.minimum(found, len(self._order) - 1)]
        for name in self._keep:
            values = self._targets.others[name]
            # No nulls: many readers turn integers with nulls into floating point, which loses ids of 64 bits.
            none = np.zeros(1, values.dtype)[0] if values.dtype.kind != "f" else np.nan
            called = name if name not in table.column_names else f"list_{name}"
            table = table.append_column(called, to_arrow(np.where(on_target, values[place], none)))
        return table


class Growing:
    """A Parquet file to which tables of one schema are added, one after the other.

    Parameters
    ----------
    path : path-like
        The file; it is whole, and on the disk, when this is closed.
    """

    def __init__(self, path):
        self._file, self._writer, self.rows = open(path, "wb"), None, 0

    def add(self, table):
        """Write some rows; the first table may have none, and says which columns there are."""
        import pyarrow as pa
        import pyarrow.parquet

        if self._writer is None:
            # Of numbers, few repeat: a dictionary takes longer than it saves.
            repeated = [each.name for each in table.schema if pa.types.is_string(each.type)]
            self._writer = pyarrow.parquet.ParquetWriter(
                self._file, table.schema, compression="zstd", use_dictionary=repeated
            )
        if len(table):
            self._writer.write_table(table)
            self.rows += len(table)

    def close(self):
        """End the file."""
        with self._file:
            if self._writer is not None:
                self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())


class _Partitions:
    """Files by cell, written one after the other, and the schema that all have.

    Parameters
    ----------
    folder : Path
        Where they are.
    order : int
        Order of the cells.
    """

    def __init__(self, folder, order):
        self._folder, self._order, self._written, self._file = folder, order, [], None
        # That a file is on the disk is waited for while the next ones are written.
        self._closing, self._closed = ThreadPoolExecutor(CLOSERS, thread_name_prefix="surveycat-close"), deque()

    def add(self, table, index):
        """Write rows that follow those written before along the sky."""
        cells = index >> 2 * (ALL - self._order)
        edges = np.flatnonzero(np.diff(cells, prepend=-1, append=-1)).tolist()
        if not self._written:
            self._write_common(table.schema)
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            cell = int(cells[start])
            if not self._written or self._written[-1][0] != cell:
                self._begin(cell)
            self._file.add(table.slice(start, stop - start))
            self._written[-1][2] = self._file.rows

    def _begin(self, cell):
        self._end()
        path = self._folder / f"Norder={self._order}" / f"Dir={cell // 10000 * 10000}" / f"Npix={cell}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = Growing(path)
        self._written.append([cell, path, 0])

    def _write_common(self, schema):
        import pyarrow.parquet

        pyarrow.parquet.write_metadata(schema.remove_metadata(), self._folder / "_common_metadata")

    def _end(self):
        """End the file that is being written."""
        if self._file is not None:
            self._closed.append(self._closing.submit(self._file.close))
        while len(self._closed) > 2 * CLOSERS:
            self._closed.popleft().result()

    def close(self):
        """Wait until all files are on the disk."""
        self._end()
        with self._closing:
            for closed in self._closed:
                closed.result()

    def verified(self):
        """Count the rows of all files once more; gives the list of partitions."""
        for _, path, rows in self._written:
            with _opened(path) as file:
                found = file.metadata.num_rows
            if found != rows:
                raise RunFailed(f"{path} has {found} rows instead of {rows}: is the disk sound? Go on by --resume")
        return [
            {"path": str(path.relative_to(self._folder.parent)), "Npix": cell, "rows": rows}
            for cell, path, rows in self._written
        ]

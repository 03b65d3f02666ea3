"""The output of a bulk run: parts while it runs, one dataset at its end.

While a run is under way, ``<out>.partial/parts/`` holds a folder for every few hundred targets that are done, which
appears whole or not at all: what was found (``rows.parquet``) and what became of each target (``targets.parquet``). A
process may be killed at any moment, and another one goes on. At the end all parts, and the dataset of an earlier run
to whose list rows were added, become one dataset::

    out/manifest.json                             what was done with what, and counts that add up
        targets.parquet                           what became of each target
        unmatched.parquet, failures.parquet       those without a detection on them, those that failed and why
        dataset/Norder=4/Dir=0/Npix=1153.parquet  the rows, by HEALPix cell of their position
        hats.properties, partition_info.csv       what LSDB wants to know

It is put together beside its place, counted, and then moved there, so that ``out`` always is one whole dataset.
"""

import contextlib
import csv
import fcntl
import functools
import json
import logging
import os
import shutil
import uuid
from pathlib import Path

import numpy as np

from surveycat import catalog
from surveycat.errors import OptionError, OutputError, RunFailed
from surveycat.primary import primary
from surveycat.unfinished import partial_folder

__all__ = ["OUTCOMES", "Store", "check_place", "is_outcome", "plain", "rows_table"]

OUTCOMES = ("detected", "undetected", "failed")
INDEX = "_healpix_29"  # what hats calls its index: HEALPix cell of order 29
EXTRA = {
    "cutout_id": ("", "meta.id", "Target in whose cutout, or image in which, the object was found"),
    "target_id": ("", "meta.id.cross", "The target, if the object is the one on it, else 0 or empty"),
    "is_target": ("", "meta.code", "Whether the object is the one on the target"),
    "target_separation": ("arcsec", "pos.angDistance", "Distance of the centroid from the target of its cutout"),
    "is_primary": ("", "meta.code", "Whether it is the one to count of all views of the same galaxy"),
    INDEX: ("", "pos.healpix", "HEALPix cell of order 29, nested"),
}
OUTCOME_COLUMNS = ["id", "ra", "dec", "outcome", "n_detections", "attempts", "stage", "reason"]
MADE_LAST = (INDEX, "name", "is_primary", "target_id")
SOURCES_OPEN = 12  # tables of parts that are kept in memory while partitions are written

log = logging.getLogger(__name__)


# Tables ---------------------------------------------------------------------------------------------------


def rows_table(measured, ids):
    """Put the objects of many cutouts into one Arrow table.

    Parameters
    ----------
    measured : list of dict
        Columns of each cutout, as `surveycat.measure.columns` gives them, with ``is_target`` and
        ``target_separation``.
    ids : sequence
        The cutout's identifier for each, int or str.

    Returns
    -------
    `pyarrow.Table`
        With units, UCDs and descriptions at its fields.
    """
    import pyarrow as pa

    counts = [len(columns["id"]) for columns in measured]
    present = dict.fromkeys(name for columns in measured for name in columns)
    arrays, fields = [], []
    for name in ("cutout_id", *present):
        if name == "cutout_id":
            values = [np.repeat(np.asarray(ids), counts)]
        else:
            values = [
                columns[name] if name in columns else _missing(name, n)
                for columns, n in zip(measured, counts, strict=True)
            ]
        arrays.append(_joined(name, values))
        fields.append(pa.field(name, arrays[-1].type, metadata=_said_of(name)))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


_column = functools.lru_cache(None)(catalog.column_of)  # the same names are looked up for every part


def _is_ours(name):
    """Whether a column is not one that was carried along from an earlier list."""
    return name in EXTRA or _column(name) is not None


def _missing(name, n):
    column = _column(name)
    return np.full(n, np.nan if column is None else column.fill)


def _joined(name, values):
    """Join the arrays of a column and bring them to the type of the schema."""
    import pyarrow as pa

    column = _column(name)
    if column is not None and column.dtype == catalog.LIST:
        rows = [row for array in values for row in array]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int32)
        flat = np.concatenate([np.empty(0, np.float32), *rows]).astype(np.float32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
    if column is not None and column.dtype == catalog.TEXT:
        return pa.array([str(text) for array in values for text in array], type=pa.string())
    joined = np.concatenate(values) if values else np.empty(0)
    if column is not None:
        joined = joined.astype(column.dtype)
    return _arrow(joined)


def _arrow(values):
    """Bring an array of numbers or text to Arrow; text stays text where there is none."""
    import pyarrow as pa

    values = np.asarray(values)
    return pa.array(values.tolist(), pa.string()) if values.dtype.kind == "U" else pa.array(values)


def _said_of(name):
    """Unit, UCD and description of a column, for the metadata of its field."""
    column = _column(name)
    if column is not None:
        said = (column.unit, column.ucd, column.description)
    else:
        said = EXTRA.get(name, ("", "", ""))
    return {key: value for key, value in zip(("unit", "ucd", "description"), said, strict=True) if value}


def _outcomes_table(ids, ra, dec, outcomes, n_detections, attempts, stages, reasons):
    """Say what became of targets."""
    import pyarrow as pa

    return pa.table(
        {
            "id": _arrow(ids),
            "ra": np.asarray(ra, float),
            "dec": np.asarray(dec, float),
            "outcome": pa.array(list(outcomes), pa.string()),
            "n_detections": np.asarray(n_detections, np.int32),
            "attempts": np.asarray(attempts, np.int32),
            "stage": pa.array(list(stages), pa.string()),
            "reason": pa.array(list(reasons), pa.string()),
        }
    )


def _write(table, path):
    import pyarrow.parquet

    with open(path, "wb") as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


def _read(path, columns=None):
    import pyarrow.parquet

    # Not as one file of a dataset: the names of its folders would become columns.
    with open(path, "rb") as file:
        return pyarrow.parquet.ParquetFile(file).read(columns=columns)


def _total(column):
    return int(column.to_numpy().sum())


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


def is_outcome(done, outcome):
    """Say of which targets something became.

    Parameters
    ----------
    done : `pyarrow.Table`
        As `Store.done` gives it.
    outcome : str
        One of `OUTCOMES`.

    Returns
    -------
    ndarray of bool
    """
    from pyarrow import compute

    return compute.equal(done["outcome"], outcome).to_numpy()


# The store ------------------------------------------------------------------------------------------------


class Store:
    """Where a bulk run keeps what it has done, and makes its dataset of it.

    Parameters
    ----------
    out : path-like
        The dataset.
    made_with : dict
        Everything on which rows depend, as JSON can hold it. What is there already must have been made with the same.
    resume, overwrite : bool
        Go on with what is there, or start afresh.

    Raises
    ------
    OptionError, OutputError
        If there is something and neither is wanted, or it was made otherwise, or it is in use.
    """

    def __init__(self, out, made_with, resume=False, overwrite=False):
        self.out, self.partial = Path(out), partial_folder(out)
        self.parts, self.made_with = self.partial / "parts", json.loads(json.dumps(made_with, default=str))
        check_place(self.out, resume, overwrite)
        try:
            self.partial.mkdir(exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise OutputError(f"cannot make the folder {self.partial}: {reason}; choose another output") from error
        self._lock = _locked(self.partial)
        try:
            self._begin(overwrite)
        except BaseException:
            self.close()
            raise

    def _begin(self, overwrite):
        self._roll_forward()
        if overwrite:
            shutil.rmtree(self.parts, ignore_errors=True)
            (self.partial / "manifest.json").unlink(missing_ok=True)
        self.replaces = overwrite
        for folder in (self.partial, *([] if overwrite else [self.out])):
            if (folder / "manifest.json").exists():
                self._check_manifest(folder)
        self.parts.mkdir(exist_ok=True)
        for left in self.parts.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
        if not (self.partial / "manifest.json").exists():
            self.note({})

    def close(self):
        """Let other processes use the output."""
        self._lock.close()
        with contextlib.suppress(OSError):
            if not any(self.parts.glob("*")) and not (self.partial / "next").exists():
                shutil.rmtree(self.partial, ignore_errors=True)

    def _check_manifest(self, folder):
        """Refuse to go on with what was made otherwise."""
        path = folder / "manifest.json"
        try:
            before = json.loads(path.read_text())["made_with"]
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(f"cannot read {path} ({error}); start afresh with --overwrite") from error
        for name in {**before, **self.made_with}:
            if before.get(name) != self.made_with.get(name):
                raise OutputError(
                    f"{folder} was made with {name} {before.get(name)}, not {self.made_with.get(name)}; run it as "
                    "before to go on, or add --overwrite to start afresh"
                )

    def note(self, counts):
        """Write how far the run is."""
        manifest = {"state": "unfinished", "made_with": self.made_with, "counts": counts}
        text = json.dumps(manifest, indent=1)
        catalog.atomic_write(self.partial / "manifest.json", lambda path: Path(path).write_text(text))

    # what is done

    def sources(self):
        """Yield (file of rows, file of targets) of everything that is done, the oldest first."""
        if not self.replaces and (self.out / "targets.parquet").exists():
            for path in sorted(self.out.glob("dataset/*/*/*.parquet")):
                yield path, None
            yield None, self.out / "targets.parquet"
        for folder in sorted(self.parts.glob("[!.]*")):
            yield folder / "rows.parquet", folder / "targets.parquet"

    def done(self):
        """Give what became of the targets so far: an Arrow table, None if there are none.

        A part that cannot be read is removed with a warning, and so done again.
        """
        import pyarrow as pa

        tables = []
        for rows, targets in list(self.sources()):
            if targets is None:
                continue
            try:
                table = _read(targets, OUTCOME_COLUMNS)
                if rows is not None and _n_rows(rows) != _total(table["n_detections"]):
                    raise ValueError("its rows are not those that were counted")
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                if rows is None:
                    raise OutputError(f"cannot read {targets} ({error}); start afresh with --overwrite") from error
                log.warning("%s is damaged (%s); its targets are done again", targets.parent, error)
                shutil.rmtree(targets.parent)
                continue
            tables.append(table)
        return _latest(pa.concat_tables(tables)) if tables else None

    def add(self, rows, outcomes):
        """Keep what was found in some cutouts and what became of their targets; the part appears whole or not at all.

        Parameters
        ----------
        rows : `pyarrow.Table`
            As `rows_table` gives it.
        outcomes : dict
            ``ids, ra, dec, outcomes, n_detections, attempts, stages, reasons``: a list each.

        Raises
        ------
        OutputError
            If it cannot be written, for instance because the disk is full.
        """
        name = f"{len(list(self.parts.glob('[!.]*'))):06d}-{uuid.uuid4().hex[:12]}"
        beside = self.parts / f".{name}"
        try:
            beside.mkdir()
            _write(rows, beside / "rows.parquet")
            _write(_outcomes_table(**outcomes), beside / "targets.parquet")
            os.rename(beside, self.parts / name)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            reason = error.strerror or error
            raise OutputError(
                f"cannot write into {self.parts}: {reason}; make room, then go on with --resume"
            ) from error

    # the end

    def publish(self, targets, keep, refused, order, about):
        """Make the dataset of all that is done, count it, and put it in its place.

        Parameters
        ----------
        targets : `~surveycat.targets.Targets`
            The list.
        keep : list of str
            Columns of the list that the rows on targets get.
        refused : list
            Rows of the list that could not be used: (row, id, reason).
        order : int
            Order of the HEALPix cells.
        about : dict
            What else the manifest is to say.

        Returns
        -------
        dict
            The manifest.

        Raises
        ------
        RunFailed
            If counts do not add up.
        OutputError
            If it cannot be written.
        """
        following = self.partial / "next"
        shutil.rmtree(following, ignore_errors=True)
        try:
            following.mkdir()
            done = self.done()
            counts, partitions = _write_dataset(self, following / "dataset", done, targets, keep, order)
            counts |= _write_targets(following, done, targets, refused)
            _check_counts(counts, done, targets, refused)
            manifest = {"state": "finished", "made_with": self.made_with, **about, "counts": counts}
            manifest |= {"healpix_order": order, "partitions": partitions}
            _write_hats(following, self.out.name, counts["detections"], order, partitions)
            (following / "manifest.json").write_text(json.dumps(manifest, indent=1))
            (self.partial / "READY").touch()
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"cannot write {following}: {reason}; make room, then go on with --resume") from error
        self._roll_forward()
        return manifest

    def _roll_forward(self):
        """Put a dataset that is ready into its place; may be interrupted and repeated at any point."""
        ready, following, previous = (self.partial / name for name in ("READY", "next", "previous"))
        if not ready.exists():
            shutil.rmtree(following, ignore_errors=True)
            return
        if following.exists():
            if self.out.exists():
                shutil.rmtree(previous, ignore_errors=True)
                os.rename(self.out, previous)
            os.rename(following, self.out)
        shutil.rmtree(self.parts, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)
        (self.partial / "manifest.json").unlink(missing_ok=True)
        ready.unlink()
        self.parts.mkdir(exist_ok=True)


def check_place(out, resume=False, overwrite=False):
    """Refuse a place that cannot be used, or whose content was not to be touched.

    Parameters
    ----------
    out : path-like
        The dataset.
    resume, overwrite : bool
        As in `Store`.

    Raises
    ------
    OptionError, OutputError
        With the way out.
    """
    out, partial = Path(out), partial_folder(out)
    if resume and overwrite:
        raise OptionError("both resume and overwrite were asked for; go on with what there is, or start afresh")
    if not out.parent.is_dir():
        raise OutputError(f"cannot write {out}: there is no folder {out.parent}; make it first")
    if out.exists() and not (out / "manifest.json").is_file():
        raise OutputError(f"{out} is there and is no dataset of a bulk run; choose another name")
    if not (resume or overwrite):
        if partial.exists():
            raise OutputError(
                f"{partial} holds an unfinished run; add --resume to go on with it, --overwrite to start afresh"
            )
        if out.exists():
            raise OutputError(f"{out} exists already; --resume adds what is new in the list, --overwrite starts afresh")


def _locked(folder):
    """Lock a folder for this process, for as long as the file that is returned is open."""
    lock = open(folder / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise OutputError(f"{folder} is in use by another process; wait for it, or choose another output") from error
    return lock


def _n_rows(path):
    import pyarrow.parquet

    with open(path, "rb") as file:
        return pyarrow.parquet.ParquetFile(file).metadata.num_rows


def _latest(table):
    """Keep one outcome for each target: that of the last attempt."""
    ids = plain(table["id"])
    order = np.lexsort([table["attempts"].to_numpy(), ~is_outcome(table, "failed"), ids])
    last = np.append(ids[order][1:] != ids[order][:-1], True)
    return table.take(np.sort(order[last]))


# Putting the dataset together -----------------------------------------------------------------------------


def _write_dataset(store, folder, done, targets, keep, order):
    """Write the rows of all sources by HEALPix cell; gives counts and the list of partitions."""
    paths = [rows for rows, _ in store.sources() if rows is not None]
    rows = _all_rows(paths, store)
    cells = rows["index"] >> 2 * (29 - order)
    final = np.lexsort([rows["local"], rows["cutout"], rows["index"]])
    place = np.empty(len(final), np.int64)
    place[final] = np.arange(1, len(final) + 1)
    rows["id"], rows["host"] = place, np.where(rows["host"] < 0, 0, place[rows["host"]])
    # Here memory grows with the number of rows: what is not needed any more goes.
    rows["primary"] = primary(**{name: rows.pop(name) for name in ("ra", "dec", "cutout", "area", "flags", "rank")})
    open_source = functools.lru_cache(SOURCES_OPEN)(_read)
    edges = np.flatnonzero(np.diff(cells[final], prepend=-1, append=-1))
    partitions, files = [], []
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        these, cell = final[start:stop], int(cells[final[start]])
        table = _gathered(these, rows, paths, open_source)
        table = _with_kept(table, targets, keep)
        path = folder / f"Norder={order}" / f"Dir={cell // 10000 * 10000}" / f"Npix={cell}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(table, path)
        partitions.append({"path": str(path.relative_to(folder.parent)), "Npix": cell, "rows": len(table)})
        files.append((path, len(table)))
    _write_common(folder, open_source, paths, table if partitions else None)
    for path, count in files:
        if _n_rows(path) != count:
            raise RunFailed(f"{path} has {_n_rows(path)} rows instead of {count}: is the disk sound? Go on by --resume")
    counts = {"detections": len(final), "on_target": int(rows["target"].sum()), "primary": int(rows["primary"].sum())}
    return counts, partitions


def _all_rows(paths, store):
    """Read what is needed to order all rows: arrays by name, one value per row, sources in order."""
    from astropy_healpix import healpy

    names = ("ra", "dec", "cutout_id", "id", "host", "is_target", "target_separation", "score", "flags", "area")
    parts, old = [], []
    for number, path in enumerate(paths):
        table = _read(path, list(names))
        part = {name: plain(table[name]) for name in names}
        part["source"] = np.full(len(table), number, np.int32)
        part["at"] = np.arange(len(table), dtype=np.int32)
        parts.append(part)
        old.append(np.full(len(table), store.parts not in path.parents))
    if not parts:
        parts = [{name: np.empty(0, np.int64) for name in (*names, "source", "at")}]
        old = [np.empty(0, bool)]
    rows = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}  # never both at once
    was_published = np.concatenate(old)
    rows["cutout"] = np.unique(rows.pop("cutout_id"), return_inverse=True)[1].astype(np.int32)
    rows["host"], rows["local"] = (numbers.astype(np.int32) for numbers in _hosts(rows, was_published))
    del rows["id"]
    rows["index"] = (
        healpy.ang2pix(2**29, rows["ra"], rows["dec"], nest=True, lonlat=True)
        if len(was_published)
        else (np.empty(0, np.int64))
    )
    rows["target"] = rows.pop("is_target").astype(bool)
    truncated = rows["flags"] >> catalog.FLAGS["edge_truncated"] & 1
    separation = np.nan_to_num(rows.pop("target_separation"), nan=np.inf)
    best_first = np.lexsort([rows["local"], rows["cutout"], -rows.pop("score"), separation, truncated, ~rows["target"]])
    rows["rank"] = np.empty(len(best_first), np.int32)
    rows["rank"][best_first] = np.arange(len(best_first), dtype=np.int32)
    return rows


def _hosts(rows, was_published):
    """Give for each row the position of its host among all rows, -1 without one, and its number in its cutout.

    In a part an id counts the rows of its cutout, in a dataset all rows.
    """
    positions = np.arange(len(was_published))
    order = np.lexsort([rows["id"], rows["cutout"]])
    cutouts = rows["cutout"][order]
    first = np.flatnonzero(np.append(True, cutouts[1:] != cutouts[:-1])) if len(order) else order
    start = np.repeat(first, np.diff(np.append(first, len(order))))
    local = np.empty(len(order), np.int64)
    local[order] = positions - start
    start_of = np.empty(len(order), np.int64)
    start_of[order] = start
    in_cutout = order[np.minimum(start_of + np.maximum(rows["host"] - 1, 0), len(order) - 1)] if len(order) else order
    published = np.flatnonzero(was_published)
    by_id = published[np.argsort(rows["id"][published])]
    in_all = np.full(len(order), -1)
    if len(published):
        found = np.searchsorted(rows["id"][by_id], rows["host"][published])
        in_all[published] = by_id[np.minimum(found, len(by_id) - 1)]
    return np.where(rows["host"] > 0, np.where(was_published, in_all, in_cutout), -1), local


def _gathered(these, rows, paths, open_source):
    """Give the rows at the positions `these`, in that order, with the columns that are known only now."""
    import pyarrow as pa

    pieces, positions = [], []
    for number in np.unique(rows["source"][these]).tolist():
        mine = these[rows["source"][these] == number]
        table = open_source(paths[number]).take(rows["at"][mine])
        pieces.append(table.select([name for name in table.column_names if name not in MADE_LAST and _is_ours(name)]))
        positions.append(mine)
    table = pa.concat_tables(pieces, promote_options="default")
    table = table.take(np.argsort(np.concatenate(positions))).take(np.argsort(np.argsort(these)))
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    new = {"id": rows["id"][these], "host": rows["host"][these], "name": catalog.iau_name(ra, dec).tolist()}
    new |= {"is_primary": rows["primary"][these], INDEX: rows["index"][these]}
    arrays = {name: table[name] for name in table.column_names} | {name: pa.array(v) for name, v in new.items()}
    none = "" if pa.types.is_string(arrays["cutout_id"].type) else 0
    arrays["target_id"] = pa.compute.if_else(arrays["is_target"], arrays["cutout_id"], none)
    names = _in_order(tuple(arrays))
    fields = [pa.field(name, arrays[name].type, metadata=_said_of(name)) for name in names]
    return pa.Table.from_arrays([arrays[name] for name in names], schema=pa.schema(fields))


@functools.lru_cache(None)
def _in_order(names):
    """Order the columns: the index, those of the schema, ours, others."""
    known = [name for name in catalog.in_order(names) if _column(name)]
    ours = [name for name in EXTRA if name in names and name != INDEX]
    return list(dict.fromkeys([INDEX, *known, *ours, *names]))


def _with_kept(table, targets, keep):
    """Add columns of the list, for the rows on targets."""

    if not keep:
        return table
    ids = plain(table["cutout_id"])
    order = np.argsort(targets.id)
    found = np.minimum(np.searchsorted(targets.id, ids, sorter=order), max(len(order) - 1, 0))
    on_target = table["is_target"].to_numpy()
    for name in keep:
        values = targets.others[name]
        values = values.astype(str) if values.dtype.kind == "O" else values
        # No nulls: many readers turn integers with nulls into floating point, which loses ids of 64 bits.
        none = np.zeros(1, values.dtype)[0] if values.dtype.kind != "f" else np.nan
        values = np.where(on_target, values[order[found]], none) if len(values) else np.empty(0, values.dtype)
        called = name if name not in table.column_names else f"list_{name}"
        table = table.append_column(called, _arrow(values))
    return table


def _write_common(folder, open_source, paths, table):
    """Write the schema that all partitions have, also where there is none."""
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    if table is not None:
        pyarrow.parquet.write_metadata(table.schema.remove_metadata(), folder / "_common_metadata")


def _write_targets(folder, done, targets, refused):
    """Write what became of the rows of the list; gives their counts."""
    import pyarrow as pa

    if done is None:
        done = _outcomes_table(targets.id[:0], [], [], [], [], [], [], [])
    order = np.argsort(targets.id)
    place = np.searchsorted(targets.id, plain(done["id"]), sorter=order) if len(done) else np.empty(0, np.int64)
    done = done.append_column("row", pa.array(targets.row[order[place]], pa.int64()))
    which = {outcome: is_outcome(done, outcome) for outcome in OUTCOMES}
    _write(done, folder / "targets.parquet")
    unmatched = done.filter(pa.array(which["undetected"])).drop_columns(["outcome", "stage", "reason"])
    _write(unmatched, folder / "unmatched.parquet")
    failed = done.filter(pa.array(which["failed"]))
    rows, ids, reasons = (list(values) for values in zip(*refused, strict=True)) if refused else ([], [], [])
    failures = {
        "row": pa.array(failed["row"].to_pylist() + rows, pa.int64()),
        "id": pa.array([str(each) for each in failed["id"].to_pylist()] + ids, pa.string()),
        "stage": pa.array(failed["stage"].to_pylist() + ["list"] * len(rows), pa.string()),
        "reason": pa.array(failed["reason"].to_pylist() + reasons, pa.string()),
        "attempts": pa.array(failed["attempts"].to_pylist() + [1] * len(rows), pa.int32()),
    }
    _write(pa.table(failures).sort_by("row"), folder / "failures.parquet")
    counts = {outcome: int(these.sum()) for outcome, these in which.items()}
    counts["failed"] += len(refused)
    return {"targets": targets.n_rows, **counts, "failed_in_list": len(refused)}


def _check_counts(counts, done, targets, refused):
    """Refuse a dataset whose numbers do not add up."""
    found = 0 if done is None else _total(done["n_detections"])
    checks = (
        ("targets", counts["targets"], sum(counts[name] for name in OUTCOMES)),
        ("detections", counts["detections"], found),
        ("rows on targets", counts["on_target"], 0 if targets.images else counts["detected"]),
    )
    for what, first, second in checks:
        if first != second:
            raise RunFailed(f"the {what} do not add up ({first} and {second}); go on with --overwrite, and report it")


def _write_hats(folder, name, n_rows, order, partitions):
    """Describe the dataset as a HATS catalogue, so that LSDB opens it (IVOA Note HATS 1.0)."""
    properties = {
        "obs_collection": name,
        "dataproduct_type": "object",
        "hats_nrows": n_rows,
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": INDEX,
        "hats_col_healpix_order": 29,
        "hats_npix_suffix": ".parquet",
        "hats_order": order,
        "hats_version": "v0.1",
        "hats_skymap_order": order,
    }
    text = "".join(f"{key}={value}\n" for key, value in properties.items())
    for file in ("hats.properties", "properties"):
        (folder / file).write_text(text)
    with open(folder / "partition_info.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Norder", "Npix", "num_rows"])
        writer.writerows([order, each["Npix"], each["rows"]] for each in partitions)

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

It is put together beside its place (`surveycat.partitions`), counted, and then moved there, so that ``out`` always is
one whole dataset.
"""

import contextlib
import csv
import fcntl
import itertools
import json
import logging
import os
import shutil
import uuid
from pathlib import Path

import numpy as np

from surveycat import catalog
from surveycat.errors import OptionError, OutputError, RunFailed
from surveycat.partitions import INDEX, Growing, column_of, plain, said_of, to_arrow, write_partitions
from surveycat.unfinished import partial_folder

__all__ = ["OUTCOMES", "Store", "check_place", "failures_by_stage", "is_outcome", "rows_table"]

OUTCOMES = ("detected", "undetected", "failed")
OUTCOME_COLUMNS = ["id", "ra", "dec", "outcome", "n_detections", "attempts", "stage", "reason"]
DONE_COLUMNS = ["id", "ra", "dec", "outcome", "attempts"]  # what is needed to go on
ROWS_AT_ONCE = 2**14

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
        fields.append(pa.field(name, arrays[-1].type, metadata=said_of(name)))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _missing(name, n):
    column = column_of(name)
    return np.full(n, np.nan if column is None else column.fill)


def _joined(name, values):
    """Join the arrays of a column and bring them to the type of the schema."""
    import pyarrow as pa

    column = column_of(name)
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
    return to_arrow(joined)


def _outcomes_table(ids, ra, dec, outcomes, n_detections, attempts, stages, reasons):
    """Say what became of targets."""
    import pyarrow as pa

    return pa.table(
        {
            "id": to_arrow(ids),
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
    with contextlib.closing(Growing(path)) as file:
        file.add(table)


def _read(path, columns=None):
    import pyarrow.parquet

    # Not as one file of a dataset: the names of its folders would become columns.
    with open(path, "rb") as file:
        return pyarrow.parquet.ParquetFile(file).read(columns=columns)


def _total(column):
    return int(column.to_numpy().sum())


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
                table = _read(targets, [*DONE_COLUMNS, "n_detections"])
                if rows is not None and _n_rows(rows) != _total(table["n_detections"]):
                    raise ValueError("its rows are not those that were counted")
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                if rows is None:
                    raise OutputError(f"cannot read {targets} ({error}); start afresh with --overwrite") from error
                log.warning("%s is damaged (%s); its targets are done again", targets.parent, error)
                shutil.rmtree(targets.parent)
                continue
            tables.append(table.select(DONE_COLUMNS))
        if not tables:
            return None
        table = pa.concat_tables(tables)
        return table.filter(pa.array(_is_latest(table)))

    def outcomes(self):
        """Yield what became of the targets so far, some thousands at a time."""
        import pyarrow as pa

        paths = [targets for _, targets in self.sources() if targets is not None]
        if not paths:
            return
        light = ["id", "outcome", "attempts"]
        latest, start = _is_latest(pa.concat_tables([_read(path, light) for path in paths])), 0
        waiting = []
        for table in (table for path in paths for table in _row_groups(path, OUTCOME_COLUMNS)):
            waiting.append(table.filter(pa.array(latest[start : start + len(table)])))
            start += len(table)
            if sum(map(len, waiting)) >= ROWS_AT_ONCE:
                yield pa.concat_tables(waiting)
                waiting = []
        yield from [pa.concat_tables(waiting)] if waiting else []

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
            paths = [rows for rows, _ in self.sources() if rows is not None]
            counts, partitions = write_partitions(paths, following / "dataset", targets, keep, order)
            outcomes, n_detections = _write_targets(following, self.outcomes(), targets, refused)
            counts |= outcomes
            _check_counts(counts, n_detections, targets)
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


def _row_groups(path, columns):
    """Read a file piece by piece."""
    import pyarrow.parquet

    with open(path, "rb") as file:
        file = pyarrow.parquet.ParquetFile(file)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


def _is_latest(table):
    """Tell for each outcome whether it is that of the last attempt at its target."""
    ids = plain(table["id"])
    order = np.lexsort([table["attempts"].to_numpy(), ~is_outcome(table, "failed"), ids])
    latest = np.empty(len(ids), bool)
    latest[order] = np.append(ids[order][1:] != ids[order][:-1], True)
    return latest


# Putting the dataset together -----------------------------------------------------------------------------


def _write_targets(folder, done, targets, refused):
    """Write what became of the rows of the list; gives the counts of targets, and that of all that was found."""
    import pyarrow as pa

    order = np.argsort(targets.id)
    counts, n_detections, failed = dict.fromkeys(OUTCOMES, 0), 0, []
    start = _outcomes_table(targets.id[:0], [], [], [], [], [], [], [])
    with (
        contextlib.closing(Growing(folder / "targets.parquet")) as all_of_them,
        contextlib.closing(Growing(folder / "unmatched.parquet")) as unmatched,
    ):
        for table in itertools.chain([start], done):
            place = np.searchsorted(targets.id, plain(table["id"]), sorter=order)
            table = table.append_column("row", pa.array(targets.row[order[place]], pa.int64()))
            which = {outcome: is_outcome(table, outcome) for outcome in OUTCOMES}
            counts = {outcome: counts[outcome] + int(these.sum()) for outcome, these in which.items()}
            n_detections += _total(table["n_detections"])
            all_of_them.add(table)
            unmatched.add(table.filter(pa.array(which["undetected"])).drop_columns(["outcome", "stage", "reason"]))
            failed.append(table.filter(pa.array(which["failed"])))
    _write_failures(folder / "failures.parquet", pa.concat_tables(failed), refused)
    counts["failed"] += len(refused)
    return {"targets": targets.n_rows, **counts, "failed_in_list": len(refused)}, n_detections


def _write_failures(path, failed, refused):
    """Write which targets failed, and which rows of the list could not be used."""
    import pyarrow as pa

    rows, ids, reasons = (list(values) for values in zip(*refused, strict=True)) if refused else ([], [], [])
    failures = {
        "row": pa.array(failed["row"].to_pylist() + rows, pa.int64()),
        "id": pa.array([str(each) for each in failed["id"].to_pylist()] + ids, pa.string()),
        "stage": pa.array(failed["stage"].to_pylist() + ["list"] * len(rows), pa.string()),
        "reason": pa.array(failed["reason"].to_pylist() + reasons, pa.string()),
        "attempts": pa.array(failed["attempts"].to_pylist() + [1] * len(rows), pa.int32()),
    }
    _write(pa.table(failures).sort_by("row"), path)


def failures_by_stage(out):
    """Say how many targets failed at each stage, and why the first of them did.

    Parameters
    ----------
    out : path-like
        A dataset.

    Returns
    -------
    list of str
    """
    from pyarrow import compute

    table, lines = _read(Path(out) / "failures.parquet"), []
    for counted in compute.value_counts(table["stage"]).to_pylist():
        first = table.slice(compute.index(table["stage"], counted["values"]).as_py(), 1).to_pylist()[0]
        where = f"row {first['row']}" + (f", {first['id']}" if first["id"] else "")
        lines.append(f"{counted['values']}: {counted['counts']}, such as {where}: {first['reason']}")
    return lines


def _check_counts(counts, found, targets):
    """Refuse a dataset whose numbers do not add up."""
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

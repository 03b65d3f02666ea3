"""Cross-identification: a catalogue beside any other table of the sky, row by row.

    catalogue, reference -> positions -> candidate pairs -> one partner each -> one table

`match` is the line itself. Missing values are as everywhere in our catalogues: NaN, "" or 0.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from surveycat import catalog, galaxyzoo
from surveycat.errors import OptionError, PositionError
from surveycat.pairs import Pairs, find_pairs, mutual_nearest, one_to_one, separations, tied
from surveycat.positions import Positions, positions
from surveycat.tablefile import filled, missing, read_table, ucd

__all__ = ["JOINS", "MATCH_FLAGS", "Matched", "identify", "joined", "match"]

log = logging.getLogger(__name__)

JOINS = ("left", "inner")
MATCH_FLAGS = {"matched": 0, "not_nearest": 1, "tied": 2, "in_footprint": 3}
"""Bit of each: has a partner; the nearest candidate of one of the two went to a closer row; another candidate is
exactly as near; the partner lies beyond the radius, in the footprint."""

ADDED = ("separation", "n_candidates", "match_flag")


@dataclass(frozen=True, eq=False)
class Matched:
    """Two tables and which of their rows belong together.

    Parameters
    ----------
    catalog, reference : `~astropy.table.Table`
        What was matched.
    places, reference_places : Positions
        Where their rows are.
    candidates : Pairs
        All pairs that could be.
    chosen : Pairs
        Those that are: at most one for each row, or all.
    flags : int ndarray
        `MATCH_FLAGS` of the chosen ones.
    """

    catalog: object
    reference: object
    places: Positions
    reference_places: Positions
    candidates: Pairs
    chosen: Pairs
    flags: np.ndarray


def match(
    table,
    reference,
    out=None,
    *,
    radius=2.0,
    all_pairs=False,
    footprint=False,
    on=None,
    join="left",
    prefixes=None,
    ra_column=None,
    dec_column=None,
    frame=None,
    epoch=None,
    reference_epoch=None,
    unmatched=None,
    report=None,
    mag_column=None,
    size_column=None,
    service=None,
    cache=None,
    overwrite=False,
):
    """Find the rows of a reference table that are the objects of a catalogue.

    Of all pairs within the radius the closest is taken first, then the closest of the rows that are left, and so on:
    each row has at most one partner, and no two rows without each other are closer than each is to its own. Equal
    separations are decided by the order of the rows.

    Parameters
    ----------
    table : `~astropy.table.Table` or path
        The catalogue: any table with positions.
    reference : `~astropy.table.Table`, path, or str
        The other table; or ``"sdss"``, the survey's photometry and spectra around the catalogue's objects; or
        ``"gz1"``, ``"gz2"``, ``"gz2:PATH"``: the published Galaxy Zoo tables.
    out : path, optional
        Where to write the result; the suffix chooses the format.
    radius : float, optional
        Largest separation in arcsec, included.
    all_pairs : bool, optional
        Keep every pair, one row each, instead of one partner for each row.
    footprint : bool, optional
        A reference position in an object's outline (column ``s_region``) is a candidate at any separation.
    on : str, optional
        Compare identifiers in a column of this name, which both tables have, instead of positions.
    join : {"left", "inner"}, optional
        Keep rows of the catalogue without a partner, or not.
    prefixes : tuple of str, optional
        What is put before the names of columns of the catalogue and of the reference: ``("cat_", "ref_")`` by
        default, with ``sdss_``, ``gz1_`` or ``gz2_`` for these references.
    ra_column, dec_column, frame, epoch, reference_epoch : optional
        How to read the reference's positions; see `surveycat.positions.positions`.
    unmatched : path, optional
        Where to write the rows of the reference that have no partner.
    report : path, optional
        Folder for a report on completeness, purity, positions and classes; see `surveycat.match_report.report`.
    mag_column, size_column : str, optional
        Columns of the reference by which the report lists completeness; found by name by default.
    service : `~surveycat.skyserver.SkyServer`, optional
        Whom to ask for ``"sdss"``.
    cache : path, optional
        Folder in which Galaxy Zoo's tables are kept once fetched; see `surveycat.cache.default_cache`.
    overwrite : bool, optional
        Replace files that exist.

    Returns
    -------
    `~astropy.table.QTable`
        Columns of both, prefixed; ``separation`` in arcsec, NaN without a partner; ``n_candidates``, the number of
        rows of the reference within the radius (or footprint); ``match_flag``, a bit mask of `MATCH_FLAGS`, 0 without
        a partner.

    Raises
    ------
    SurveycatError
        If a table, an option or an output cannot be used. Nothing is written then.
    """
    from astropy.table import QTable

    from surveycat import match_report

    if join not in JOINS:
        raise OptionError(f"--join {join} is not known: use one of {', '.join(JOINS)}")
    outputs = [catalog.check_output(path, overwrite) for path in (out, unmatched) if path is not None]
    catalog.check_distinct(outputs, [path for path in (table, reference) if isinstance(path, (str, Path))])
    if report is not None:
        match_report.check_folder(report, overwrite)
    table, name = _load(table), _known_name(reference)
    if name == "sdss":
        loaded = _sdss(table, radius, all_pairs or footprint or report is not None, service)
    else:
        loaded = _load_reference(reference, cache)
    how = {"ra_column": ra_column, "dec_column": dec_column, "frame": frame}
    how |= {"epoch": epoch, "reference_epoch": reference_epoch}
    matched = identify(table, loaded, radius, all_pairs, footprint, on, how)
    prefixes = prefixes or ("cat_", f"{name or 'ref'}_")
    options = {"reference": name or str(reference) if isinstance(reference, (str, Path)) else "table", "radius": radius}
    options |= {"all_pairs": all_pairs, "footprint": footprint, "on": on, "join": join, "prefixes": list(prefixes)}
    result = joined(matched, join, prefixes, {**options, **{k: v for k, v in how.items() if v is not None}})
    if report is not None:
        best = replace(matched, chosen=matched.candidates.select(one_to_one(matched.candidates)))
        columns = {"mag_column": mag_column, "size_column": size_column}
        found = match_report.report(best, report, radius=radius, **columns, overwrite=overwrite)
        for warning in found["wcs"]["warnings"]:
            log.warning("%s", warning)
    if unmatched is not None:
        catalog.write_table(without_partner(matched), unmatched, overwrite)
    if out is not None:
        catalog.write_table(result, out, overwrite)
    return QTable(result)


def _load(table):
    """The table, or what a path holds."""
    return read_table(table) if isinstance(table, (str, Path)) else table


def _known_name(reference):
    """Short name of a reference that is known by name, "" for any other."""
    name = reference.partition(":")[0] if isinstance(reference, str) else ""
    return name if name in ("sdss", *galaxyzoo.RELEASES) else ""


def _load_reference(reference, cache):
    """The reference, or what a path or a name stands for."""
    name = _known_name(reference)
    if name:
        return galaxyzoo.load(name, reference.partition(":")[2] or None, cache)
    return _load(reference)


def _sdss(table, radius, whole_fields, service):
    """Objects of SDSS around those of a catalogue; all of its fields where more than the nearest are wanted."""
    from surveycat import match_report, sdss

    places = _places(table, "the catalogue", None)
    fields = match_report.fields(table, places) if whole_fields else None
    return sdss.reference(places.ra, places.dec, radius, fields, service)


# Pairs ----------------------------------------------------------------------------------------------------


def identify(table, reference, radius=2.0, all_pairs=False, footprint=False, on=None, how=None):
    """Find out which rows of two tables belong together.

    Parameters
    ----------
    table, reference : `~astropy.table.Table`
        Catalogue and reference.
    radius, all_pairs, footprint, on
        As in `match`.
    how : dict, optional
        How to read the reference's positions: arguments of `surveycat.positions.positions`.

    Returns
    -------
    Matched
    """
    places = _places(table, "the catalogue", on)
    others = _places(reference, "the reference", on, **(how or {}))
    if on is not None:
        candidates = _same_identifier(table, reference, places, others, on)
    else:
        regions = _regions(table) if footprint else None
        candidates = find_pairs(places.ra, places.dec, others.ra, others.dec, radius, regions)
    index = np.arange(len(candidates)) if all_pairs else one_to_one(candidates)
    flags = 1 << MATCH_FLAGS["matched"] | (~mutual_nearest(candidates)).astype(int) << MATCH_FLAGS["not_nearest"]
    flags |= tied(candidates).astype(int) << MATCH_FLAGS["tied"]
    flags |= candidates.in_footprint.astype(int) << MATCH_FLAGS["in_footprint"]
    return Matched(table, reference, places, others, candidates, candidates.select(index), flags[index])


def _places(table, what, on, **how):
    """Positions of a table; none at all are allowed where identifiers are compared."""
    try:
        found = positions(table, **how)
    except PositionError as error:
        if on is None and "footprint_x" in table.colnames and "s_region" not in table.colnames:
            raise PositionError(f"{what} is in pixels only: make it again with --wcs, or --ra and --dec") from error
        if on is None:
            raise PositionError(f"{what}: {error}") from error
        return Positions(*np.full((2, len(table)), np.nan), ())
    for note in found.notes:
        log.info("%s: %s", what, note)
    return found


def _regions(table):
    """Footprints of the catalogue as text."""
    names = [name for name in table.colnames if name.lower().endswith("s_region")]
    if not names:
        raise OptionError("--footprint needs the column s_region, which the catalogue does not have: leave it away")
    return np.asarray(table[names[0]]).astype(str).tolist()


def _same_identifier(table, reference, places, others, on):
    """Pairs of rows with the same identifier."""
    keys, other_keys = _keys(table, on, "the catalogue"), _keys(reference, on, "the reference")
    order = np.argsort(other_keys, kind="stable")
    low, high = (np.searchsorted(other_keys[order], keys, side) for side in ("left", "right"))
    count = np.where((keys != "") & (keys != "0"), high - low, 0)
    first = np.repeat(np.arange(len(keys)), count)
    second = order[np.repeat(low - np.cumsum(count) + count, count) + np.arange(count.sum())]
    apart = separations(places.ra[first], places.dec[first], others.ra[second], others.dec[second])
    return Pairs.sorted(first, second, apart)


def _keys(table, on, what):
    """Identifiers of a column as text, "" where there is none."""
    name = next((each for each in table.colnames if each.lower() == on.lower()), None)
    name = name or next((each for each in table.colnames if each.lower().endswith(f"_{on.lower()}")), None)
    if name is None:
        raise OptionError(f"--on {on} is no column of {what}: it has {', '.join(table.colnames[:12])} ...")
    values = np.asarray(filled(table[name]))
    if values.dtype.kind == "f":
        raise OptionError(
            f"--on {on}: in {what} it holds floating-point numbers, which do not keep 64-bit identifiers: "
            "write them as integers or text"
        )
    return np.char.strip(values.astype("U"))


# Result ---------------------------------------------------------------------------------------------------


def joined(matched, join, prefixes, options):
    """Put both tables side by side.

    Parameters
    ----------
    matched : Matched
    join, prefixes
        As in `match`.
    options : dict
        Said in the meta of the result.

    Returns
    -------
    `~astropy.table.Table`
        In the order of the catalogue's rows, several partners of one row by separation.
    """
    from astropy.table import Column, Table

    pairs, n_rows = matched.chosen, len(matched.catalog)
    alone = np.setdiff1d(np.arange(n_rows), pairs.first) if join == "left" else np.zeros(0, np.int64)
    left = np.concatenate([pairs.first, alone])
    right = np.concatenate([pairs.second, np.full(len(alone), -1)])
    separation = np.concatenate([pairs.separation, np.full(len(alone), np.nan)])
    flags = np.concatenate([matched.flags, np.zeros(len(alone), int)])
    order = np.argsort(left, kind="stable")
    left, right = left[order], right[order]
    candidates = np.bincount(matched.candidates.first, minlength=n_rows).astype(np.int32)

    counts = {"n_catalog": n_rows, "n_reference": len(matched.reference), "n_matched": len(np.unique(pairs.first))}
    about = {"flags": dict(MATCH_FLAGS), **counts, **options}
    result = Table(meta={**matched.catalog.meta, "match": about})
    for side, index, prefix in ((matched.catalog, left, prefixes[0]), (matched.reference, right, prefixes[1])):
        _add_columns(result, side, index, prefix)
    clash = [name for name in ADDED if name in result.colnames]
    if clash:
        raise OptionError(f"column {clash[0]} is in a table already: choose --prefixes that keep them apart")
    result["separation"] = Column(separation[order], unit="arcsec", description="Distance of the two positions")
    result["separation"].info.meta = {"ucd": "pos.angDistance"}
    result["n_candidates"] = Column(candidates[left], description="Rows of the reference that could be the partner")
    result["match_flag"] = Column(
        flags[order].astype(np.int32), description="Bit mask; meta['match']['flags']: its bits"
    )
    result["match_flag"].info.meta = {"ucd": "meta.code"}
    return result


def without_partner(matched):
    """Rows of the reference that nothing was matched with, their columns as they were.

    Parameters
    ----------
    matched : Matched

    Returns
    -------
    `~astropy.table.Table`
    """
    from astropy.table import Table

    result = Table()
    rows = np.setdiff1d(np.arange(len(matched.reference)), matched.chosen.second)
    _add_columns(result, matched.reference, rows, "")
    return result


def _add_columns(result, table, index, prefix):
    """Add a table's columns to another, in rows that `index` names; -1 is a row of missing values."""
    from astropy.table import Column

    left_out = []
    for name in table.colnames:
        parts = _storable(table[name])
        if parts is None:
            left_out.append(name)
            continue
        for ending, values in parts.items():
            full = f"{prefix}{name}{ending}"
            if full in result.colnames:
                raise OptionError(f"column {full} is in both tables: choose --prefixes that keep them apart")
            column = Column(_taken(values, index), description=table[name].info.description)
            column.unit = None if values.dtype == object else table[name].info.unit
            column.info.meta = {"ucd": ucd(table[name])} if ucd(table[name]) else {}
            result[full] = column
    if left_out:
        log.info("columns that no table file can hold are left out: %s", ", ".join(left_out))


STORED = {"i1": "i2", "u2": "i4", "u4": "i8", "u8": "i8", "f2": "f4", "f16": "f8"}
"""Types that not all our formats know, and the ones that take their place."""


def _storable(column):
    """A column as arrays that every format can hold: {ending of the name: values}, None if there are none."""
    if type(column).__name__ == "SkyCoord":
        return {"_ra": np.asarray(column.icrs.ra.deg), "_dec": np.asarray(column.icrs.dec.deg)}
    values = column.isot if type(column).__name__ == "Time" else filled(column)
    if values.dtype == object or values.ndim == 1:
        values = _simple_type(values)
        return None if values is None else {"": values}
    if values.ndim == 2 and values.dtype.kind in "biuf":
        return {f"_{number}": _simple_type(part) for number, part in enumerate(values.T)}
    return None


def _simple_type(values):
    """Values in a type that all our formats know; None if there is none."""
    kind = values.dtype.kind
    if kind == "O":
        if all(isinstance(value, (np.ndarray, list, tuple)) for value in values):
            return values
        return np.array(["" if value is None else str(value) for value in values], dtype="U")
    if kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max:
        return values.astype("U")  # identifiers of spectra can pass 63 bits
    if kind not in "biufU":
        return None
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return native.astype(STORED.get(native.dtype.str[1:], native.dtype), copy=False)


def _taken(values, index):
    """Values in rows, missing ones where the row is -1."""
    if values.dtype == object:
        return catalog.lists([() if row < 0 else values[row] for row in index])
    result = np.full(len(index), missing(values.dtype), values.dtype)
    result[index >= 0] = values[index[index >= 0]]
    return result

"""What a match says of a catalogue: completeness, purity, positions, classes; as figures, text and plots.

`figures` makes everything that the report says, as plain numbers; the text, the JSON file and the plots only show it.
"""

import json
import re
from pathlib import Path

import numpy as np

from surveycat import astrometry, catalog, galaxyzoo
from surveycat.errors import OptionError, OutputError
from surveycat.pairs import gnomonic, in_regions, parse_regions
from surveycat.tablefile import filled, ucd
from surveycat.wcs import unit_vectors

__all__ = ["check_folder", "covered", "fields", "figures", "kinds", "report", "text"]

MAGNITUDES = (
    r"petromag_?r", r"cmodelmag_?r", r"modelmag_?r", r"mag_?r", r"r_?mag", r"rpetmag", r"kronmag_?r", r"apmag_?r",
    r"psfmag_?r", r"r", r"mag_?auto", r"mag", r"petromag_?[giz]", r"[giz]_?mag", r"mag_?[giz]", r"phot_g_mean_mag",
)  # fmt: skip
SIZES = (
    r"petror90_?r", r"petror50_?r", r"petrorad_?r", r"r90_px", r"r50_px", r"semimajor", r"half_light_radius\w*",
    r"flux_radius", r"kron_radius", r"fwhm\w*", r"a_image", r"a_px",
)  # fmt: skip
FILES = ("report.json", "report.txt", "sky.png", "completeness.png", "positions.png", "classes.png")
OWN_SIZES = (r"semimajor", r"semimajor_pix", *SIZES)
KINDS = {
    "type": {"3": "galaxy", "6": "star"},
    "objc_type": {"3": "galaxy", "6": "star"},
    "extendedness": {"1": "galaxy", "1.0": "galaxy", "0": "star", "0.0": "star"},
    "starnotgal": {"0": "galaxy", "1": "star"},
    "class": {},
}
"""Columns that tell stars from galaxies, and their values besides the words themselves."""
MAX_FIELDS = 20  # images whose WCS is looked at
LEAST_IN_FIELD = 5
SURE_VOTES = 0.8


def report(matched, folder, *, radius, mag_column=None, size_column=None, overwrite=False):
    """Write the report of a match into a folder.

    Parameters
    ----------
    matched : `~surveycat.match.Matched`
        A match, one partner for each row.
    folder : path-like
        Made if it is not there. It then holds ``report.json``, ``report.txt``, and plots: ``sky.png``,
        ``completeness.png``, ``positions.png``, and ``classes.png`` where the reference has fractions of votes.
    radius : float
        Arcsec, as matched.
    mag_column, size_column : str, optional
        Columns of the reference by which completeness is listed; found by UCD or name by default.
    overwrite : bool, optional
        Replace a report that is there.

    Returns
    -------
    dict
        What ``report.json`` holds.

    Raises
    ------
    OutputError, OptionError
        If the folder cannot be used, or a column is not there.
    """
    from surveycat.match_plots import plots

    folder = check_folder(folder, overwrite)
    found = figures(matched, radius, mag_column, size_column)
    folder.mkdir(exist_ok=True)
    for name in FILES:  # of an older report, which may have had more plots
        (folder / name).unlink(missing_ok=True)
    catalog.atomic_write(folder / "report.json", lambda path: Path(path).write_text(json.dumps(found, indent=1)))
    catalog.atomic_write(folder / "report.txt", lambda path: Path(path).write_text(text(found)))
    for name, figure in plots(matched, found).items():
        catalog.atomic_write(folder / name, lambda path, figure=figure: figure.savefig(path, dpi=110))
    return found


def check_folder(folder, overwrite=False):
    """Refuse a folder that cannot hold a report.

    Parameters
    ----------
    folder : path-like
        May exist or not; the folder above it must.
    overwrite : bool, optional
        Whether a report in it may be replaced.

    Returns
    -------
    `~pathlib.Path`
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--report {folder} is a file: name a folder")
    if not folder.resolve().parent.is_dir():
        raise OutputError(f"--report {folder}: there is no folder {folder.resolve().parent}; make it first")
    if (folder / FILES[0]).exists() and not overwrite:
        raise OutputError(f"--report {folder} holds a report already; choose another folder or ask to overwrite it")
    catalog.check_writable(folder if folder.exists() else folder.resolve().parent)
    return folder


# Figures --------------------------------------------------------------------------------------------------


def figures(matched, radius, mag_column=None, size_column=None):
    """Work out everything that a report says.

    Parameters
    ----------
    matched, radius, mag_column, size_column
        As in `report`.

    Returns
    -------
    dict
        Plain numbers, texts and lists.
    """
    table, reference = matched.catalog, matched.reference
    area, source = covered(matched)
    kind = kinds(reference)
    wanted = area & (kind != "star")
    partner = np.isin(np.arange(len(reference)), matched.chosen.second)
    has_partner = np.isin(np.arange(len(table)), matched.chosen.first)
    placed = np.isfinite(matched.places.ra)
    mag, size = (
        _column(reference, mag_column, MAGNITUDES, "--mag-column"),
        _column(reference, size_column, SIZES, "--size-column"),
    )
    own_mag, own_size = _own_magnitude(table), _column(table, None, OWN_SIZES, "")
    return {
        "radius_arcsec": radius,
        "catalog": {"rows": len(table), "with_partner": int(has_partner.sum())},
        "reference": {
            "rows": len(reference),
            "in_area": int(area.sum()),
            "area_from": source,
            "stars_in_area": int((area & (kind == "star")).sum()),
            "stars_with_partner": int((partner & (kind == "star")).sum()),
        },
        "completeness": {
            "overall": _fraction(partner, wanted),
            "by_magnitude": _binned(partner, wanted, mag, _magnitude_edges),
            "by_size": _binned(partner, wanted, size, _size_edges),
        },
        "purity": {
            "overall": _fraction(has_partner, placed),
            "by_magnitude": _binned(has_partner, placed, own_mag, _magnitude_edges),
            "by_size": _binned(has_partner, placed, own_size, _size_edges),
        },
        "positions": _positions(matched),
        "wcs": _wcs(matched, radius),
        "classes": _classes(matched),
    }


def covered(matched):
    """Which rows of the reference lie in the area that the catalogue covers, and how that area is known.

    Parameters
    ----------
    matched : `~surveycat.match.Matched`

    Returns
    -------
    inside : bool ndarray, shape (M,)
    source : str
        "images", from outlines in the catalogue's meta, or "hull", the convex hull of its positions.
    """
    there = matched.reference_places
    outlines = _outlines(matched.catalog)
    if outlines:
        return in_regions(there.ra, there.dec, outlines), "images"
    here = matched.places
    keep, known = np.isfinite(here.ra), np.isfinite(there.ra)
    inside = np.zeros(len(there.ra), bool)
    if keep.any():
        inside[known] = _in_hull(
            unit_vectors(here.ra[keep], here.dec[keep]).T, unit_vectors(there.ra[known], there.dec[known]).T
        )
    return inside, "hull"


def _outlines(table):
    """Outlines of the images of a catalogue, where its meta has them all."""
    inputs = table.meta.get("inputs") or []
    regions = [each.get("s_region", "") for each in inputs if isinstance(each, dict)]
    return regions if regions and all(regions) else []


def fields(table, places):
    """Corners of the fields that a catalogue covers: of its images, else all its positions as one field.

    Parameters
    ----------
    table : `~astropy.table.Table`
    places : `~surveycat.positions.Positions`

    Returns
    -------
    list of float ndarray, shape (K, 2)
        RA and Dec, degrees.
    """
    outlines = _outlines(table)
    if outlines:
        return [np.array(each.split()[2:], float).reshape(-1, 2) for each in outlines]
    known = np.isfinite(places.ra)
    return [np.column_stack([places.ra, places.dec])[known]] if known.any() else []


def _in_hull(vectors, others):
    """Which of other unit vectors lie in the convex hull of some; all of them if these fill half the sky."""
    import shapely

    centre = astrometry.middle(vectors)
    if (vectors @ centre).min() < 0.1:
        return np.ones(len(others), bool)
    hull = shapely.MultiPoint(gnomonic(vectors, centre)).convex_hull
    near = others @ centre > 0.05
    inside = np.zeros(len(others), bool)
    inside[near] = shapely.intersects_xy(hull, *gnomonic(others[near], centre).T)
    return inside


def kinds(table):
    """Tell stars from galaxies in a reference that does: "star", "galaxy" or "" for each row.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Recognised are SDSS's ``type`` and ``objc_type`` (6 and 3, or words), LSST's ``extendedness`` (0 and 1),
        ``starnotgal`` (1 and 0) and words in ``class``.

    Returns
    -------
    ndarray of str, shape (N,)
    """
    names = {name.lower(): name for name in table.colnames}
    wanted = next((name for name in KINDS if name in names), None)
    if wanted is None:
        return np.full(len(table), "", dtype="U6")
    words = {"star": "star", "galaxy": "galaxy", **KINDS[wanted]}
    values, index = np.unique(
        np.char.lower(np.char.strip(filled(table[names[wanted]]).astype("U"))), return_inverse=True
    )
    return np.array([words.get(value, "") for value in values.tolist()], dtype="U6")[index]


def _column(table, asked, patterns, option):
    """Name and values of a column, asked for or the first that fits; None without one."""
    if asked is not None and asked not in table.colnames:
        raise OptionError(
            f"{option} {asked} is no column of the reference: it has {', '.join(table.colnames[:12])} ..."
        )
    name = asked or _by_ucd(table, patterns) or _by_pattern(table.colnames, patterns)
    if name is None or filled(table[name]).dtype.kind not in "iuf" or filled(table[name]).ndim != 1:
        return None
    values = filled(table[name]).astype(float)
    return name, np.where(np.abs(values) < 99 if patterns is MAGNITUDES else values > 0, values, np.nan)


def _by_ucd(table, patterns):
    """Column of r magnitudes by its UCD."""
    if patterns is not MAGNITUDES:
        return None
    return next((name for name in table.colnames if ucd(table[name]).startswith("phot.mag;em.opt.r")), None)


def _by_pattern(names, patterns):
    for pattern in patterns:
        for name in names:
            if re.fullmatch(pattern, name.lower()):
                return name
    return None


def _own_magnitude(table):
    """Magnitude of the catalogue's rows: its own, or of its r flux, whose zero point need not be known."""
    own = _column(table, None, MAGNITUDES, "")
    if own is not None or "flux_r" not in table.colnames:
        return own
    flux = filled(table["flux_r"]).astype(float)
    return "-2.5 log10 flux_r", -2.5 * np.log10(np.where(flux > 0, flux, np.nan))


def _fraction(hit, among):
    """Fraction of rows, with the interval that holds it with 68 % (Wilson 1927)."""
    n, k, z = int(among.sum()), int((hit & among).sum()), 1.0
    if not n:
        return {"n": 0, "with_partner": 0, "fraction": None, "low": None, "high": None}
    centre, half = (k + z**2 / 2) / (n + z**2), z * np.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
    low, high = max(0.0, min(k / n, centre - half)), min(1.0, max(k / n, centre + half))
    return {"n": n, "with_partner": k, "fraction": k / n, "low": float(low), "high": float(high)}


def _binned(hit, among, column, make_edges):
    """Fractions in bins of a column: its name and the bins; None without a column."""
    if column is None:
        return None
    name, values = column
    present = values[among & np.isfinite(values)]
    if not len(present):
        return None
    edges = make_edges(present)
    bins = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        here = among & (values >= low) & ((values < high) | ((values == high) & (high == edges[-1])))
        bins.append({"from": float(low), "to": float(high), **_fraction(hit, here)})
    return {"column": name, "bins": bins}


def _magnitude_edges(values):
    """Bins of half a magnitude, or of one where these would be too many."""
    step = 0.5 if np.ptp(values) < 8 else 1.0
    low = np.floor(values.min() / step) * step
    return low + step * np.arange(max(1, int(np.floor((values.max() - low) / step)) + 1) + 1)


def _size_edges(values):
    """Six bins of equal ratio between the extremes, of which the outermost percent is left out."""
    low, high = np.percentile(values, [1, 99])
    edges = np.geomspace(low, max(high, low * 1.01), 7)
    edges[0], edges[-1] = min(values.min(), low), max(values.max(), edges[-1])
    return edges


def _positions(matched):
    """Residuals of positions, reference minus catalogue, arcsec."""
    east, north, _ = astrometry.residuals(matched)
    apart = matched.chosen.separation[np.isfinite(matched.chosen.separation)]
    result = {"n": len(east), "median_separation": float(np.median(apart)) if len(apart) else None}
    for name, values in (("east", east), ("north", north)):
        median, mad = astrometry.spread(values)
        error = 1.2533 * mad / np.sqrt(len(values)) if len(values) else np.nan  # of a median
        result[name] = {"median": _number(median), "mad_sigma": _number(mad), "median_error": _number(error)}
    return result


def _number(value):
    """A number for JSON, which knows no NaN."""
    return float(value) if np.isfinite(value) else None


def _wcs(matched, radius):
    """Verdicts on the WCS of each image (at most `MAX_FIELDS`), and their warnings."""
    here, there = matched.places, matched.reference_places
    judged = []
    for name, rows, outline in _fields(matched):
        corners = parse_regions([outline])[1]
        centre = astrometry.middle(corners) if len(corners) else None
        verdict = astrometry.check_wcs(here.ra[rows], here.dec[rows], there.ra, there.dec, radius, centre)
        judged.append({"image": name, **verdict})
    prefix = (lambda each: f"{each['image']}: ") if len(judged) > 1 else lambda each: ""
    warnings = [prefix(each) + warning for each in judged for warning in each["warnings"]]
    verdicts = {each["verdict"] for each in judged}
    overall = next((verdict for verdict in ("wrong", "good") if verdict in verdicts), "unknown")
    return {"verdict": overall, "warnings": warnings, "fields": judged}


def _fields(matched):
    """Images of the catalogue with enough objects: name, rows, outline."""
    table = matched.catalog
    outlines = dict(enumerate(_outlines(table)))
    names = [each.get("name", "") for each in table.meta.get("inputs") or [] if isinstance(each, dict)]
    if "image" not in table.colnames:
        yield names[0] if len(names) == 1 else "", np.arange(len(table)), outlines.get(0, "") if len(names) == 1 else ""
        return
    image = filled(table["image"]).astype("U")
    enough = [name for name in dict.fromkeys(image.tolist()) if (image == name).sum() >= LEAST_IN_FIELD]
    for name in enough[:MAX_FIELDS]:
        outline = outlines.get(names.index(name), "") if name in names else ""
        yield name, np.flatnonzero(image == name), outline


def _classes(matched):
    """Classes of the catalogue against the votes of the reference; None where there are none."""
    name, fraction = galaxyzoo.features_fraction(matched.reference)
    if name is None or "p_spiral" not in matched.catalog.colnames:
        return None
    pairs = matched.chosen
    spiral, votes = filled(matched.catalog["p_spiral"]).astype(float)[pairs.first], fraction[pairs.second]
    known = np.isfinite(spiral) & np.isfinite(votes)
    spiral, votes = spiral[known], votes[known]
    sure = (votes >= SURE_VOTES) | (votes <= 1 - SURE_VOTES)
    return {
        "column": name,
        "n": int(known.sum()),
        "agree": _fraction((spiral > 0.5) == (votes > 0.5), np.ones(len(votes), bool)),
        "agree_where_votes_are_sure": _fraction((spiral > 0.5) == (votes > 0.5), sure),
        "pairs": [[round(float(a), 4), round(float(b), 4)] for a, b in zip(spiral, votes, strict=True)][:10_000],
    }


# Text -----------------------------------------------------------------------------------------------------


def text(found):
    """Say the figures in a page of text.

    Parameters
    ----------
    found : dict
        What `figures` gives.

    Returns
    -------
    str
    """
    catalogue, reference, positions = found["catalog"], found["reference"], found["positions"]
    where = {"images": "in the images", "hull": "in the convex hull of the catalogue"}[reference["area_from"]]
    lines = [
        f"Match within {found['radius_arcsec']:g} arcsec",
        "",
        f"catalogue     {catalogue['rows']} rows, {catalogue['with_partner']} with a partner",
        f"reference     {reference['rows']} rows, {reference['in_area']} {where}",
    ]
    if reference["stars_in_area"]:
        stars = f"{reference['stars_in_area']} of these are stars, {reference['stars_with_partner']} of which"
        lines.append(f"              {stars} are in the catalogue; completeness leaves stars out")
    lines += ["", *_listing("completeness", "of the reference's rows are in the catalogue", found["completeness"])]
    lines += ["", *_listing("purity", "of the catalogue's rows are in the reference", found["purity"])]
    lines += ["", f"positions     {positions['n']} pairs; reference minus catalogue:"]
    if positions["n"]:
        lines[-1] = lines[-1].replace(";", f", median separation {positions['median_separation']:.3f} arcsec;")
        lines += [
            f"  {name:5}       median {each['median']:+.3f} +- {each['median_error']:.3f} arcsec, scatter (1.48 MAD) "
            f"{each['mad_sigma']:.3f}"
            for name, each in ((name, positions[name]) for name in ("east", "north"))
        ]
    lines += [
        "",
        f"WCS           {found['wcs']['verdict']}",
        *(f"  WARNING: {each}" for each in found["wcs"]["warnings"]),
    ]
    if found["classes"]:
        lines += ["", *_class_lines(found["classes"])]
    return "\n".join(lines) + "\n"


def _listing(name, meaning, listed):
    """Lines of a fraction, overall and in bins."""
    overall = listed["overall"]
    if overall["fraction"] is None:
        yield f"{name:13} nothing to count"
        return
    yield f"{name:13} {overall['fraction']:.3f}: {overall['with_partner']} of {overall['n']} {meaning}"
    for by in ("by_magnitude", "by_size"):
        if listed[by]:
            yield f"  by {listed[by]['column']}"
            for each in listed[by]["bins"]:
                if each["n"]:
                    yield (
                        f"    {each['from']:8.2f} to {each['to']:8.2f}   {each['fraction']:.3f} "
                        f"({each['low']:.3f} to {each['high']:.3f})   {each['with_partner']} of {each['n']}"
                    )


def _class_lines(classes):
    yield f"classes       {classes['n']} objects, p_spiral against {classes['column']}"
    for name, meaning in (
        ("agree", "agree"),
        ("agree_where_votes_are_sure", f"agree where that is {SURE_VOTES:g} or more, or {1 - SURE_VOTES:.1g} or less"),
    ):
        share = classes[name]
        if share["n"]:
            yield f"  {share['fraction']:.3f} {meaning}: {share['with_partner']} of {share['n']}"

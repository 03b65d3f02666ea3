"""The published tables of Galaxy Zoo 1 (Lintott et al. 2011, table 2) and Galaxy Zoo 2 (Hart et al. 2016, table 1).

Their columns have other names from file to file; here they have one name each. Identifiers are integers of 64 bits.
"""

import gzip
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surveycat import __version__
from surveycat.cache import default_cache
from surveycat.catalog import atomic_write
from surveycat.errors import ServiceError, SurveycatError
from surveycat.tablefile import filled, read_table

__all__ = ["RELEASES", "features_fraction", "fetched", "load"]

log = logging.getLogger(__name__)

ATTEMPTS, TIMEOUT = 4, 60.0  # seconds without a byte


@dataclass(frozen=True)
class Release:
    """A published table.

    Parameters
    ----------
    url : str
        Where it is published.
    keep : str
        Pattern of the names of columns that are kept, in lower case.
    rename : dict
        Names in lower case that stand for others.
    needs : tuple of str
        Patterns one of which a column must fit for the file to be such a table.
    """

    url: str
    keep: str
    rename: dict
    needs: tuple


RELEASES = {
    "gz1": Release(
        "https://galaxy-zoo-1.s3.amazonaws.com/GalaxyZoo1_DR_table2.csv.gz",
        r"\w*objid|ra|dec|nvote\w*|p_\w+|spiral|elliptical|uncertain",
        {"objid": "dr7objid", "objid8": "dr8objid"},
        (r"p_cs(_debiased)?", r"spiral"),
    ),
    "gz2": Release(
        "https://gz2hart.s3.amazonaws.com/gz2_hart16.csv.gz",
        r"\w*objid|ra|dec|sample|gz2class|total_\w+|t\d\d_\w+(fraction|debiased)",
        {"objid": "dr7objid", "gz2_class": "gz2class"},
        (r"t01_smooth_or_features_a02_features_or_disk_\w*(fraction|debiased)",),
    ),
}
_DR7 = re.compile(r"58[78]\d{15}")  # skyVersion 1, rerun 40 and on: 18 digits


def load(name, path=None, folder=None):
    """Read a published table; without a path it is fetched once and kept.

    Parameters
    ----------
    name : {"gz1", "gz2"}
    path : path-like, optional
        File, of any format.
    folder : path-like, optional
        Where a fetched table is kept; see `fetched`.

    Returns
    -------
    `~astropy.table.Table`
        Identifiers, positions, classes and fractions of votes; names in lower case, ``dr7objid`` for identifiers of
        data release 7 and ``gz2class`` for the class, whatever the file calls them.

    Raises
    ------
    SurveycatError
        If the file is not such a table.
    """
    release = RELEASES[name]
    table = read_table(path if path is not None else fetched(name, folder))
    columns = {}
    for column in table.colnames:
        known = _name(column.lower(), table[column], release)
        if re.fullmatch(release.keep, known) and known not in columns:
            columns[known] = column
    if not any(re.fullmatch(needed, known) for needed in release.needs for known in columns):
        raise SurveycatError(
            f"{path or release.url} is no table of {name}: it has no column {release.needs[0]}; give another file"
        )
    table = table[list(columns.values())]
    table.rename_columns(list(columns.values()), list(columns))
    return table


def fetched(name, folder=None, pause=2.0):
    """Fetch a published table, unless it was fetched before.

    Parameters
    ----------
    name : {"gz1", "gz2"}
    folder : path-like, optional
        Where it is kept; see `surveycat.cache.default_cache`.
    pause : float, optional
        Seconds before the second attempt, twice that before the third, and so on.

    Returns
    -------
    `~pathlib.Path`
        The whole file, or none at all is there.

    Raises
    ------
    ServiceError
        If it could not be fetched.
    """
    url = RELEASES[name].url
    path = Path(folder or default_cache()) / "galaxyzoo" / url.rpartition("/")[2]
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("%s is fetched from %s into %s, once", name, url, path.parent)
    for attempt in range(ATTEMPTS):
        time.sleep(pause * attempt)
        try:
            atomic_write(path, lambda partial: _download(url, partial))
            return path
        except ServiceError as error:
            reason = error
    raise ServiceError(f"{url}: {reason} ({ATTEMPTS} attempts); fetch it by other means and give {name}:FILE")


def _download(url, path):
    """Bring a gzip file, and make sure that it is one and whole."""
    import requests

    headers = {"User-Agent": f"surveycat/{__version__}"}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer, open(path, "wb") as file:
            answer.raise_for_status()
            for piece in answer.iter_content(2**20):
                file.write(piece)
    except requests.RequestException as error:
        raise ServiceError(" ".join(str(error).split())[:200]) from error
    try:
        with gzip.open(path) as file:
            while file.read(2**24):
                pass
    except (OSError, EOFError) as error:
        raise ServiceError(f"what came is no whole gzip file: {error}") from error


def _name(name, column, release):
    """One name for a column; ``objid`` is ``dr7objid`` only if its values are."""
    renamed = release.rename.get(name, name)
    if renamed == "dr7objid" and name != "dr7objid" and not _is_dr7(column):
        return name
    return renamed


def _is_dr7(column):
    """Tell by its first value whether a column holds identifiers of data release 7."""
    return len(column) > 0 and bool(_DR7.fullmatch(str(column[0]).strip()))


def features_fraction(table):
    """Fraction of votes for a disc or features (GZ2), or for a spiral (GZ1), the best that a table has.

    Of a catalogue of ours it is the probability of a spiral.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Any table; names of columns may have a prefix.

    Returns
    -------
    name : str or None
        Of the column, None if there is none.
    fraction : float ndarray, shape (N,) or None
        0 to 1; NaN where there are no votes, for what is uncertain (GZ1) and for stars and artifacts.
    """
    for wanted in FRACTIONS:
        name = next((each for each in table.colnames if re.search(wanted, each.lower())), None)
        if name is not None:
            values = filled(table[name])
            values = values.astype(float) if values.dtype.kind in "iuf" else np.full(len(values), np.nan)
            return name, np.where(_voted(table) & (values >= 0) & (values <= 1), values, np.nan)
    return None, None


def _voted(table):
    """Rows that are neither uncertain (GZ1's flags) nor mostly called a star or an artifact (GZ2)."""
    names = {name.lower(): name for name in table.colnames}
    result = np.ones(len(table), bool)
    if {"spiral", "elliptical"} <= set(names):
        result &= (filled(table[names["spiral"]]) > 0) | (filled(table[names["elliptical"]]) > 0)
    artifact = next((each for name, each in names.items() if re.search(ARTIFACT, name)), None)
    if artifact is not None:
        result &= ~(filled(table[artifact]) > 0.5)
    return result


ARTIFACT = r"t01_smooth_or_features_a03_star_or_artifact_(weighted_)?fraction$"


FRACTIONS = (
    r"t01_smooth_or_features_a02_features_or_disk_debiased$",
    r"t01_smooth_or_features_a02_features_or_disk_weighted_fraction$",
    r"t01_smooth_or_features_a02_features_or_disk_fraction$",
    r"(^|_)p_cs_debiased$",
    r"(^|_)p_cs$",
    r"(^|_)gz2_features$",
    r"^(gz1_)?spiral$",
    r"(^|_)p_spiral$",
)

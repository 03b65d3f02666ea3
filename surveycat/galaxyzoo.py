"""The published tables of Galaxy Zoo 1 (Lintott et al. 2011, table 2) and Galaxy Zoo 2 (Hart et al. 2016, table 1).

Their columns have other names from file to file; here they have one name each. Identifiers are integers of 64 bits.
"""

import re
from dataclasses import dataclass

import numpy as np

from surveycat.errors import SurveycatError
from surveycat.tablefile import read_table

__all__ = ["RELEASES", "features_fraction", "load"]


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


def load(name, path=None):
    """Read a published table; without a path it is fetched once and kept.

    Parameters
    ----------
    name : {"gz1", "gz2"}
    path : path-like, optional
        File, of any format.

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
    table = read_table(path)
    columns = {}
    for column in table.colnames:
        known = _name(column.lower(), table[column], release)
        if re.fullmatch(release.keep, known) and known not in columns:
            columns[known] = column
    if not any(re.fullmatch(needed, known) for needed in release.needs for known in columns):
        raise SurveycatError(f"{path} is no table of {name}: it has no column {release.needs[0]}; give another file")
    table = table[list(columns.values())]
    table.rename_columns(list(columns.values()), list(columns))
    return table


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

    Parameters
    ----------
    table : `~astropy.table.Table`
        Any table; names of columns may have a prefix.

    Returns
    -------
    name : str or None
        Of the column, None if there is none.
    fraction : float ndarray, shape (N,) or None
        0 to 1; NaN where there are no votes, and for stars and artifacts.
    """
    for wanted in FRACTIONS:
        name = next((each for each in table.colnames if re.search(wanted, each.lower())), None)
        if name is not None:
            values = np.ma.filled(np.ma.asarray(table[name]).astype(float), np.nan)
            return name, np.where((values >= 0) & (values <= 1), values, np.nan)
    return None, None


FRACTIONS = (
    r"t01_smooth_or_features_a02_features_or_disk_debiased$",
    r"t01_smooth_or_features_a02_features_or_disk_weighted_fraction$",
    r"t01_smooth_or_features_a02_features_or_disk_fraction$",
    r"(^|_)p_cs_debiased$",
    r"(^|_)p_cs$",
    r"(^|_)gz2_features$",
    r"(^|_)spiral$",
)

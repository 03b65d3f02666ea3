"""Objects of the Sloan Digital Sky Survey as a reference: photometry, and spectra where there are any.

`nearest` asks for the object at each of many positions, a thousand in one request; `in_fields` for all objects of some
fields. Both give the same columns, one row for an object.
"""

import logging

import numpy as np

from surveycat.errors import OptionError
from surveycat.skyserver import RADIUS_LIMIT, SkyServer, stacked
from surveycat.wcs import unit_vectors

__all__ = ["PHOTOMETRY", "SPECTROSCOPY", "in_fields", "nearest", "query", "reference"]

log = logging.getLogger(__name__)

PHOTOMETRY = ("objID", "ra", "dec", "type", "petroMag_r", "modelMag_u", "modelMag_g", "modelMag_r", "modelMag_i",
              "modelMag_z", "petroR50_r", "petroR90_r")  # fmt: skip
SPECTROSCOPY = ("specObjID", "z", "zErr", "class")
LARGEST_FIELD = 1.5  # degrees from its middle to its farthest corner
MOST_FIELDS = 50


def reference(ra, dec, radius, fields=None, service=None):
    """Gather the objects that can be partners of some positions.

    Parameters
    ----------
    ra, dec : float ndarray, shape (N,)
        Positions, degrees; NaN are left out.
    radius : float
        Arcsec.
    fields : list of float ndarray, shape (K, 2), optional
        Corners (RA, Dec) of fields of which all objects are wanted.
    service : `~surveycat.skyserver.SkyServer`, optional
        Whom to ask.

    Returns
    -------
    `~astropy.table.Table`
        Columns of `PHOTOMETRY`, and of `SPECTROSCOPY` prefixed ``spec_``; sorted by ``objID``, which is unique.
    """
    from astropy.table import unique

    service = service or SkyServer()
    parts = [nearest(ra, dec, radius, service)]
    if fields is not None:
        parts.append(in_fields(fields, service))
    table = stacked(parts)
    table = unique(table, keys="objID") if len(table) else table
    log.info("SkyServer: %d objects of SDSS DR%d", len(table), service.release)
    return table


def nearest(ra, dec, radius, service):
    """Ask for the nearest object at each position; see `reference`."""
    known = np.isfinite(ra) & np.isfinite(dec)
    if not 0 < radius <= RADIUS_LIMIT:
        raise OptionError(f"--radius {radius:g}: SDSS needs more than 0 and at most {RADIUS_LIMIT:g} arcsec")
    table = service.cross_id(ra[known] % 360, dec[known], radius, PHOTOMETRY, SPECTROSCOPY)
    table.remove_column("row")
    return table


def in_fields(fields, service):
    """Ask for all primary objects of some fields, in pieces that no limit cuts; see `reference`."""
    if len(fields) > MOST_FIELDS:
        log.warning("%d fields: only the objects nearest to the catalogue's are asked for", len(fields))
        fields = []
    if not fields:
        return service.cross_id([], [], 1.0, PHOTOMETRY, SPECTROSCOPY)
    return stacked([service.sql(query(corners), key="objID") for corners in fields])


def query(corners):
    """Build the query for all primary objects in a box in RA and Dec around a field.

    Parameters
    ----------
    corners : float ndarray, shape (K, 2)
        RA and Dec, degrees.

    Returns
    -------
    str
        With ``{after}`` for the last ``objID`` of the piece before.

    Raises
    ------
    OptionError
        If the field is too large.
    """
    vectors = unit_vectors(*np.asarray(corners, float).T).T
    middle = vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    reach = np.degrees(np.arccos(np.clip((vectors @ middle).min(), -1, 1))) + 1e-4
    if reach > LARGEST_FIELD:
        raise OptionError(
            f"the catalogue's field reaches {reach:.1f} degrees from its middle, and SkyServer is asked for at most "
            f"{LARGEST_FIELD:g}: match parts, or without --report, --footprint and --all"
        )
    ra, dec = np.degrees(np.arctan2(middle[1], middle[0])) % 360, np.degrees(np.arcsin(middle[2]))
    south, north = max(dec - reach, -90), min(dec + reach, 90)
    columns = [f"p.{name}" for name in PHOTOMETRY] + [f"s.{name} AS spec_{name}" for name in SPECTROSCOPY]
    return (
        f"SELECT TOP 500000 {', '.join(columns)} FROM PhotoPrimary p LEFT JOIN SpecObj s ON s.bestObjID = p.objID "
        f"WHERE {_ra_range(ra, dec, reach)} AND p.dec BETWEEN {south:.6f} AND {north:.6f} "
        "AND p.objID > {after} ORDER BY p.objID"
    )


def _ra_range(ra, dec, reach):
    """Condition on the right ascension of what lies within a distance (degrees)."""
    if abs(dec) + reach >= 89.9:
        return "p.ra BETWEEN 0 AND 360"
    width = np.degrees(np.arcsin(np.sin(np.radians(reach)) / np.cos(np.radians(dec))))
    low, high = (ra - width) % 360, (ra + width) % 360
    if low <= high:
        return f"p.ra BETWEEN {low:.6f} AND {high:.6f}"
    return f"(p.ra > {low:.6f} OR p.ra < {high:.6f})"

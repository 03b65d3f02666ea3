"""Astronomy Visualization Metadata: the sky position that press pictures carry in their XMP packet.

Only the spatial tags are read, and each by itself: pyavm 0.9.9 refuses a whole file for one other tag that is
wrong, such as an empty Spatial.Notes.
"""

import math
import re
import xml.etree.ElementTree

import numpy as np

from surveycat.wcs import cd_matrix

__all__ = ["avm_tags", "avm_wcs"]

SPATIAL = "{http://www.communicatingastronomy.org/avm/1.0/}Spatial."
ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
FRAMES = {
    "ICRS": ("RA---", "DEC--"),
    "FK5": ("RA---", "DEC--"),
    "FK4": ("RA---", "DEC--"),
    "GAL": ("GLON-", "GLAT-"),
    "ECL": ("ELON-", "ELAT-"),
}


def avm_tags(xmp):
    """Spatial tags of a picture.

    Parameters
    ----------
    xmp : bytes
        XMP packet of a picture; may be empty.

    Returns
    -------
    dict of str to list of str
        For example ``{"Scale": ["-1.6e-05", "1.6e-05"]}``; empty without AVM, or if the packet is not XML.
    """
    match = re.search(rb"<rdf:RDF.*</rdf:RDF>", xmp, re.DOTALL)
    if match is None:
        return {}
    try:
        root = xml.etree.ElementTree.fromstring(match[0])
    except xml.etree.ElementTree.ParseError:
        return {}
    tags = {}
    for element in root.iter():
        for key, value in element.attrib.items():
            if key.startswith(SPATIAL):
                tags[key[len(SPATIAL) :]] = [value.strip()]
        if element.tag.startswith(SPATIAL):
            texts = [item.text or "" for item in element.iter(ITEM)] or [element.text or ""]
            tags[element.tag[len(SPATIAL) :]] = [text.strip() for text in texts]
    return tags


def avm_wcs(tags, shape):
    """WCS from AVM tags, in rows as stored.

    Parameters
    ----------
    tags : dict
        From `avm_tags`.
    shape : tuple of int
        (H, W) of the picture, which may be a scaled copy of the one that was tagged.

    Returns
    -------
    `~astropy.wcs.WCS`

    Raises
    ------
    ValueError
        The tags give no position for this picture; the message says why.

    Notes
    -----
    AVM's ReferencePixel is 1-based and counts rows from the bottom of the picture, and its Rotation is
    CROTA2: from "up" counter-clockwise to north. Checked on ESA's picture of the Hubble Ultra Deep Field: the
    bright galaxy EIS J033238.61-274631.6 is found within 0.5" so, and no bright galaxy within 3" with rows
    from the top or the rotation reversed.
    """
    from astropy.wcs import WCS

    shrink = _shrink(tags, shape)
    frame = tags.get("CoordinateFrame", [""])[0] or "ICRS"
    if frame not in FRAMES:
        raise ValueError(f"coordinate frame {frame!r} is not known")
    projection = (tags.get("CoordsystemProjection", [""])[0] or "TAN")[:3]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [axis + projection for axis in FRAMES[frame]]
    wcs.wcs.cunit = "deg", "deg"
    wcs.wcs.crval = _numbers(tags, "ReferenceValue", 2)
    if frame in ("ICRS", "FK5", "FK4"):
        wcs.wcs.radesys = frame
    if frame in ("FK5", "FK4"):
        wcs.wcs.equinox = 1950.0 if frame == "FK4" else 2000.0
    # edges of pixels scale, not their centres: pixel 1 of a half-size copy covers pixels 1 and 2
    from_left, from_bottom = (np.array(_numbers(tags, "ReferencePixel", 2)) - 0.5) / shrink + 0.5
    wcs.wcs.crpix = from_left, shape[0] + 1 - from_bottom
    wcs.wcs.cd = _matrix(tags) * shrink * [1, -1]
    wcs.array_shape = shape
    wcs.wcs.set()
    return wcs


def _shrink(tags, shape):
    """How many pixels of the tagged picture make one of this, along x and y."""
    height, width = shape
    if not any(tags.get("ReferenceDimension", [])):
        return np.ones(2)
    size = np.array(_numbers(tags, "ReferenceDimension", 2))
    shrink = size / (width, height)
    if (shrink <= 0).any() or abs(shrink[0] * height - size[1]) > max(2 * shrink[0], 0.01 * size[1]):
        raise ValueError(f"they are for {size[0]:g} x {size[1]:g} pixels, not the shape of this picture: cropped?")
    return shrink


def _matrix(tags):
    if not any(tags.get("Scale", [])):
        return np.reshape(_numbers(tags, "CDMatrix", 4), (2, 2))
    rotation = _numbers(tags, "Rotation", 1)[0] if any(tags.get("Rotation", [])) else 0.0
    if len(tags["Scale"]) == 1:
        scale = abs(_numbers(tags, "Scale", 1)[0])
        return cd_matrix((-scale, scale), rotation)
    return cd_matrix(_numbers(tags, "Scale", 2), rotation)


def _numbers(tags, name, count):
    words = " ".join(tags.get(name, [])).split()
    if len(words) != count:
        raise ValueError(f"Spatial.{name} has {len(words)} numbers, not {count}")
    numbers = [float(word) for word in words]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"Spatial.{name} is not finite")
    return numbers

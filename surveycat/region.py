"""Boxes of pixels: their overlap with an image, and what a user asks for with ``--region``.

A box is ``(y0, x0, y1, x1)``, half-open, in 0-based pixels.
"""

import re

import numpy as np

from surveycat.errors import OptionError

__all__ = ["overlap", "parse_region"]

HOW_TO = "give x0,y0,x1,y1 in pixels, or ra0d,dec0d,ra1d,dec1d in degrees"
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"


def overlap(box, shape):
    """Part of a box inside an image.

    Parameters
    ----------
    box : tuple of int
        ``(y0, x0, y1, x1)``.
    shape : tuple of int
        (h, w) of the image.

    Returns
    -------
    inside, target : tuple of int or None
        The common part in pixels of the image, and the same part in pixels of the box; None, None if there is
        none.
    """
    y0, x0, y1, x1 = box
    inside = max(y0, 0), max(x0, 0), min(y1, shape[0]), min(x1, shape[1])
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return None, None
    return inside, (inside[0] - y0, inside[1] - x0, inside[2] - y0, inside[3] - x0)


def parse_region(region, image):
    """Box of a region that a user asks for.

    Parameters
    ----------
    region : str or sequence of 4
        ``"x0,y0,x1,y1"`` in pixels (half-open), or ``"351.60d,0.05d,351.70d,0.15d"``: two opposite corners of
        a box in RA and Dec, in ICRS degrees, the shorter way round in RA.
    image : `~surveycat.image.Image`

    Returns
    -------
    tuple of int
        ``(y0, x0, y1, x1)``, clipped to the image; for a sky box, the smallest that holds it.

    Raises
    ------
    OptionError
        Malformed, empty, or outside the image.
    """
    text = region if isinstance(region, str) else ",".join(map(str, region))
    words = [word.strip() for word in text.split(",")]
    if len(words) != 4 or not all(re.fullmatch(f"{NUMBER}d?", word) for word in words):
        raise OptionError(f"region {text!r} is not four numbers: {HOW_TO}")
    if len({word.endswith("d") for word in words}) > 1:
        raise OptionError(f"region {text!r} mixes pixels and degrees: {HOW_TO}")
    values = [float(word.rstrip("d")) for word in words]
    box = _sky_box(text, values, image) if words[0].endswith("d") else _pixel_box(text, values)
    inside, _ = overlap(box, image.shape)
    if inside is None:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise OptionError(f"region {text!r} is outside the image of {size} pixels: {HOW_TO}")
    return inside


def _pixel_box(text, values):
    if any(value != np.floor(value) for value in values):
        raise OptionError(f"region {text!r} has fractions of pixels: {HOW_TO}")
    x0, y0, x1, y1 = map(int, values)
    if x1 <= x0 or y1 <= y0:
        raise OptionError(f"region {text!r} is empty: x1 must be more than x0, and y1 more than y0")
    return y0, x0, y1, x1


def _sky_box(text, values, image):
    x, y = image.sky_to_pixel(*_outline(text, values, image))
    if not np.isfinite(x + y).any():
        raise OptionError(f"region {text!r} is on another side of the sky than the image: {HOW_TO}")
    far = 2**40  # beyond any image, and still an integer
    # coordinates are of pixel centres, boxes of edges
    x0, y0 = (int(np.floor(np.clip(np.nanmin(values), -far, far) + 0.5)) for values in (x, y))
    x1, y1 = (int(np.ceil(np.clip(np.nanmax(values), -far, far) + 0.5)) for values in (x, y))
    return y0, x0, y1, x1


def _outline(text, values, image):
    """Points along the four sides of a box in RA and Dec."""
    ra0, dec0, ra1, dec1 = values
    if image.wcs is None:
        raise OptionError(f"region {text!r} is in degrees, but the image has no sky position: give pixels")
    if max(abs(dec0), abs(dec1)) > 90:
        raise OptionError(f"region {text!r} has a declination outside -90 to 90 degrees: {HOW_TO}")
    width = (ra1 - ra0 + 180) % 360 - 180
    if width == 0 or dec0 == dec1:
        raise OptionError(f"region {text!r} is empty: its corners must differ in RA and in Dec")
    along, start, end = np.linspace(0, 1, 33), np.zeros(33), np.ones(33)
    ra = ra0 + width * np.concatenate([along, along, start, end])
    dec = dec0 + (dec1 - dec0) * np.concatenate([start, end, along, along])
    return ra % 360, dec

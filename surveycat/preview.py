"""A picture for people: what was found, drawn over the image."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from surveycat.catalog import atomic_write, check_output

__all__ = ["FORMATS", "preview"]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
COLOURS = {"spiral": (86, 180, 233), "elliptical": (230, 159, 0)}
"""Blue and orange of Okabe and Ito, which colour-blind people tell apart, on black and on white."""

MAX_SIDE = 2048  # pixels of the picture; larger images are averaged over blocks
MIN_SIDE = 700  # smaller ones are enlarged, by whole numbers
LABEL_SIZE = 12
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def preview(table, image, path):
    """Draw a catalogue over its image and write the picture.

    Outlines are coloured by class and labelled with their score; a label that would cover another is left
    out. A bar shows the scale and two arrows north and east, as the WCS has them. An existing file is
    replaced.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Catalogue of this image.
    image : `image.Image`
        The image; where it is larger than `MAX_SIDE` a coarser level is drawn.
    path : path-like
        File to be written: ``.png``, ``.jpg`` or ``.jpeg``.

    Raises
    ------
    OutputError
        If the suffix is unknown or the folder cannot be written.
    """
    path = check_output(Path(path), overwrite=True, known=FORMATS)
    picture, scale = _background(image)
    outlines = _outlines(table, scale)
    # Panels first: an object below one is outlined on it, not hidden.
    panels = [_draw_legend(picture, table), _draw_scale_bar(picture, image.pixel_scale, scale)]
    if image.wcs is not None:
        panels.append(_draw_compass(picture, image, scale))
    _draw_outlines(picture, table, outlines)
    _draw_scores(picture, table, outlines, panels)
    kind = FORMATS[path.suffix.lower()]
    atomic_write(path, lambda partial: picture.save(partial, format=kind, quality=92, compress_level=3))


def _background(image):
    """Read the image at a size fit for looking at.

    Returns
    -------
    picture : `PIL.Image.Image`
        RGB.
    scale : float
        Pixels of the picture per pixel of the image.
    """
    from PIL import Image

    level = next(level for level in range(64) if max(image.level_shape(level)) <= MAX_SIDE)
    height, width = image.level_shape(level)
    picture = Image.fromarray(image.read((0, 0, height, width), level))
    zoom = max(1, MIN_SIDE // max(height, width))
    if zoom > 1:
        picture = picture.resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
    return picture, zoom / 2**level


@lru_cache
def _font(size=LABEL_SIZE):
    """Load the font that comes with Pillow."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _outlines(table, scale):
    """Convert the footprints to pixels of the picture: a list of arrays (x, y), shape (n, 2)."""
    corners = zip(table["footprint_x"], table["footprint_y"], strict=True)
    # Both count from the centre of the first pixel, hence the halves.
    return [(np.column_stack([x, y]) + 0.5) * scale - 0.5 for x, y in corners]


def _draw_outlines(picture, table, outlines):
    """Draw the outlines in the colours of their classes."""
    from PIL import ImageDraw

    draw, width = ImageDraw.Draw(picture), 2 if max(picture.size) >= 1500 else 1
    for outline, kind in zip(outlines, table["class"], strict=True):
        corners = [tuple(corner) for corner in outline.tolist()]
        draw.line([*corners, corners[0]], fill=COLOURS[str(kind)], width=width)


def _draw_scores(picture, table, outlines, panels):
    """Write the scores, the best first; what would cover another, or lie on a panel (x0, y0, x1, y1), is left out."""
    from PIL import ImageDraw

    draw, scores = ImageDraw.Draw(picture), np.asarray(table["score"])
    taken = np.zeros((picture.height, picture.width), bool)
    for x0, y0, x1, y1 in panels:
        taken[y0:y1, x0:x1] = True
    for row in np.argsort(-scores, kind="stable"):
        text = f"{scores[row]:.2f}"
        x0, y0, x1, y1 = _label_box(draw, text, outlines[row], picture.size)
        if not taken[y0:y1, x0:x1].any():
            taken[y0:y1, x0:x1] = True
            fill = COLOURS[str(table["class"][row])]
            draw.text((x0, y0), text, fill=fill, font=_font(), stroke_width=1, stroke_fill=BLACK)


def _label_box(draw, text, corners, size):
    """Place a label at the upper right of an outline, inside of the picture: x0, y0, x1, y1."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=_font(), stroke_width=1)
    extent = np.array([right - min(left, 0), bottom - min(top, 0)])
    place = np.array([corners[:, 0].max() + 2, corners[:, 1].min() - extent[1]])
    place = np.clip(place, 0, np.maximum(np.array(size) - extent, 0))
    return np.concatenate([place, place + extent]).astype(int).tolist()


def _draw_legend(picture, table):
    """Say which colour is which, and how many there are of each, at the upper left; gives the panel's box."""
    from PIL import ImageDraw

    lines = [f"{name} {np.sum(np.asarray(table['class']) == name)}" for name in COLOURS]
    font, step = _font(LABEL_SIZE + 3), LABEL_SIZE + 8
    width = int(max(font.getlength(line) for line in lines)) + 20
    box = _darken(picture, (0, 0, width, step * len(lines) + 12))
    draw = ImageDraw.Draw(picture)
    for number, (line, colour) in enumerate(zip(lines, COLOURS.values(), strict=True)):
        draw.text((10, 8 + number * step), line, fill=colour, font=font)
    return box


def _darken(picture, box):
    """Dim a box (x0, y0, x1, y1), so that what is drawn there can be read on any sky; gives the part in the picture."""
    box = (max(0, box[0]), max(0, box[1]), min(picture.width, box[2]), min(picture.height, box[3]))
    if box[0] < box[2] and box[1] < box[3]:
        picture.paste(picture.crop(box).point(lambda value: value * 0.35), box)
    return box


def _draw_scale_bar(picture, pixel_scale, scale):
    """Draw a bar of a round length at the lower left, on the sky where the scale is known; gives the panel's box."""
    from PIL import ImageDraw

    unit = scale if pixel_scale is None else scale / pixel_scale
    length, label = _round_length(picture.width / 5 / unit, in_pixels=pixel_scale is None)
    width, y = length * unit, picture.height - 16
    box = _darken(picture, (0, y - 28, int(max(width, _font(LABEL_SIZE + 3).getlength(label))) + 28, picture.height))
    draw = ImageDraw.Draw(picture)
    draw.line([(12, y), (12 + width, y)], fill=WHITE, width=2)
    for x in (12, 12 + width):
        draw.line([(x, y - 4), (x, y + 4)], fill=WHITE, width=2)
    draw.text((14, y - 24), label, fill=WHITE, font=_font(LABEL_SIZE + 3))
    return box


def _round_length(longest, in_pixels):
    """Choose the longest round length that is not longer than asked.

    Parameters
    ----------
    longest : float
        Arcseconds, or pixels.
    in_pixels : bool
        Which of the two.

    Returns
    -------
    length : float
        In the same unit.
    label : str
        With its unit.
    """
    if in_pixels:
        power = 10.0 ** np.floor(np.log10(longest))
        length = max(step * power for step in (1, 2, 5) if step * power <= longest)
        return length, f"{length:g} px"
    units = [
        (1e-3, '"'),
        (1e-2, '"'),
        (0.1, '"'),
        (1, '"'),
        (10, '"'),
        (60, "'"),
        (600, "'"),
        (3600, "\N{DEGREE SIGN}"),
    ]
    sizes = {'"': 1, "'": 60, "\N{DEGREE SIGN}": 3600}
    rounds = [(step * size, unit) for size, unit in units for step in (1, 2, 5)]
    rounds += [(30, '"'), (1800, "'"), (36000, "\N{DEGREE SIGN}")]
    length, unit = max(((length, unit) for length, unit in rounds if length <= longest), default=rounds[0])
    return length, f"{length / sizes[unit]:g}{unit}"


def _draw_compass(picture, image, scale):
    """Draw arrows to north and east, as they are at the image's centre, at the lower right; gives the panel's box."""
    from PIL import ImageDraw

    size, pad = 42, 12
    arrows = size * np.array(_north_and_east(image))
    reach = np.vstack([arrows * 1.3, [0, 0]])  # with the letters beyond the tips
    low, high = reach.min(axis=0) - pad, reach.max(axis=0) + pad
    centre = np.array(picture.size) - high
    box = _darken(picture, (*(centre + low).astype(int).tolist(), picture.width, picture.height))
    draw = ImageDraw.Draw(picture)
    for name, arrow in zip("NE", arrows, strict=True):
        along, across = 9 / size * arrow, 3 / size * np.array([-arrow[1], arrow[0]])
        tip = centre + arrow
        draw.line([tuple(centre), tuple(tip)], fill=WHITE, width=2)
        draw.polygon([tuple(tip), tuple(tip - along + across), tuple(tip - along - across)], fill=WHITE)
        letter = tuple(centre + arrow * 1.3)
        draw.text(letter, name, fill=WHITE, font=_font(LABEL_SIZE + 3), anchor="mm")
    return box


def _north_and_east(image):
    """Tell where north and east are at the centre of the image.

    Returns
    -------
    list of ndarray, shape (2,)
        Unit vectors (x, y) in pixels of the image, y down the rows.
    """
    height, width = image.shape
    x, y = (width - 1) / 2, (height - 1) / 2
    ra, dec = (float(value) for value in image.pixel_to_sky(x, y))
    step = 2 * image.pixel_scale / 3600
    sign = -1 if dec + step > 90 else 1  # at the pole, go south and turn round
    north = np.array([float(v) for v in image.sky_to_pixel(ra, dec + sign * step)]) - (x, y)
    turn = min(step / np.cos(np.radians(dec)), 1.0)  # near the pole a step to the east would run round it
    east = np.array([float(v) for v in image.sky_to_pixel(ra + turn, dec)]) - (x, y)
    return [sign * north / np.hypot(*north), east / np.hypot(*east)]

"""What SkyServer draws into its pictures when it is asked to (``opt=``): found so that it can be said.

All of it is thinner than any star: strokes of one pixel or two, bright against both sides. Grid lines are pale green
and straight for tens of pixels, labels are white strokes in the upper left corner, and what marks objects (squares
around spectra, circles around photometry, boxes, outlines) is a stroke of a pure colour around an empty middle.
"""

import numpy as np

__all__ = ["LARGEST", "drawn", "overlay_note"]

LARGEST = 2048  # pixels; SkyServer makes no larger pictures
BRIGHT_SKY = 150  # counts; strokes were drawn before the picture was inverted
RISE = 30  # counts by which a stroke stands above both of its sides
REACH = 3  # pixels from a stroke to its sides
LINE = 32  # pixels; the least length of a grid line
LABEL = (10, 80, 18, 180)  # rows and columns between which labels stand
LETTERS = 150  # pixels of strokes there that make a label
PURE = 40  # counts between the largest and least channel of a coloured stroke
SIDES = 8, 256  # pixels; extent of a mark around an object
THICK = 6.0  # pixels of a mark for each pixel of its two extents, at most
COVERED = 0.8  # of the rows and of the columns that a mark spans


def overlay_note(image):
    """Say what is drawn into a picture.

    Parameters
    ----------
    image : `~surveycat.image.Image`
        Of a region, the whole is looked at.

    Returns
    -------
    list of str
        One line, or none.
    """
    if not image.picture or max(image.raster.shape) > LARGEST:
        return []
    found = drawn(image.raster.array)
    if not found:
        return []
    return [
        f"{' and '.join(found)} are drawn into the picture, as SkyServer does, and may be taken for galaxies: fetch it "
        "again without opt=, or with surveycat fetch"
    ]


def drawn(picture):
    """Find what SkyServer draws into pictures.

    Parameters
    ----------
    picture : ndarray of uint8, shape (H, W, 3)

    Returns
    -------
    list of str
        What is there, in words: of "grid lines", "labels" and "marks around objects".
    """
    picture = np.asarray(picture)
    if np.median(picture) > BRIGHT_SKY:
        picture = 255 - picture
    red, green, blue = (picture[..., channel].astype(np.int16) for channel in range(3))
    value, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    across, along = _ridge(value), _ridge(value.T).T
    pale_green = (green >= red) & (green >= blue) & (green - red > 10) & (least > 0.5 * value)
    found = []
    if _longest(along & pale_green) >= LINE and _longest((across & pale_green).T) >= LINE:
        found.append("grid lines")
    y0, y1, x0, x1 = LABEL
    white = (value - least < 40) & (least > 100)
    if np.count_nonzero(((across | along) & white)[y0:y1, x0:x1]) >= LETTERS:
        found.append("labels")
    if _around_something((across | along) & (value - least > PURE)):
        found.append("marks around objects")
    return found


def _ridge(value):
    """Where values rise above those `REACH` pixels to the left and to the right."""
    ridge = np.zeros(value.shape, bool)
    sides = np.maximum(value[:, : -2 * REACH], value[:, 2 * REACH :])
    ridge[:, REACH:-REACH] = value[:, REACH:-REACH] - sides > RISE
    return ridge


def _longest(ridge):
    """Length of the longest run of set pixels along rows."""
    padded = np.pad(ridge, ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(padded, axis=1)
    starts, ends = np.nonzero(steps == 1)[1], np.nonzero(steps == -1)[1]
    return int((ends - starts).max(initial=0))


def _around_something(strokes):
    """Whether there is a thin stroke around an empty middle; three sides of a square, or two, are enough."""
    from scipy import ndimage

    labels, _ = ndimage.label(strokes, np.ones((3, 3), bool))
    for number, where in enumerate(ndimage.find_objects(labels), 1):
        height, width = (side.stop - side.start for side in where)
        if not (SIDES[0] <= min(height, width) and max(height, width) <= SIDES[1]):
            continue
        stroke = labels[where] == number
        middle = stroke[height // 4 : -(height // 4), width // 4 : -(width // 4)]
        covered = min(stroke.any(axis=0).mean(), stroke.any(axis=1).mean())
        if not middle.any() and covered >= COVERED and np.count_nonzero(stroke) <= THICK * (height + width):
            return True
    return False

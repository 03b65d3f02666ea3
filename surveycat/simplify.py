"""Outlines of pixels as polygons of few corners, for the sky.

Corners are cut off from the middle of one edge of a pixel to that of the next, since a line through the middles follows
a flight of steps where one through corners swings to its side; then Douglas-Peucker. What is too ragged for that gets
the fewest corners that keep the tolerance: a line halfway up teeth of one pixel is within half a pixel of all of them.
"""

import numpy as np

__all__ = ["MAX_VERTICES", "TOLERANCE", "area_of", "simplify"]

MAX_VERTICES = 64  # of a polygon on the sky
TOLERANCE = 0.5  # pixels that a polygon on the sky may lie from the outline
ROUNDED = 0.005  # pixels of that which are left for positions written with 6 decimals
RAGGED = 4 * MAX_VERTICES  # corners; a segment replaces three or four, so that those of more are not worth the search
LONGEST = 60  # places on the outline that one segment may skip
STARTS = 4  # places from which the fewest are sought; each gives one corner too many at most


def area_of(x, y):
    """Area of a polygon, positive if counter-clockwise (shoelace formula).

    Parameters
    ----------
    x, y : ndarray of float, shape (n,)
        Its corners.

    Returns
    -------
    float
    """
    x, y = x - x[0], y - y[0]  # the last term of the sum is then 0
    return 0.5 * float(x[:-1] @ y[1:] - y[:-1] @ x[1:])


def simplify(outlines):
    """Leave out the steps of outlines: at most `MAX_VERTICES` corners, the area as it was to a percent.

    Parameters
    ----------
    outlines : list of (x, y)
        Corners of each polygon, pixels; edges are along rows and columns.

    Returns
    -------
    list of (x, y)
        The same polygons, counter-clockwise with x right and y up, no farther than `TOLERANCE` from the outlines where
        so few corners allow it.
    """
    import shapely

    if not outlines:
        return []
    middles = [_middles(x, y) for x, y in outlines]
    owner = np.repeat(np.arange(len(outlines)), [len(path) for path in middles])
    paths = shapely.polygons(shapely.linearrings(np.concatenate(middles), indices=owner))
    tolerance = TOLERANCE - np.sqrt(0.125)  # a corner lies that far from the line that cuts it off
    simple = shapely.simplify(paths, tolerance)
    ragged = many = shapely.get_num_coordinates(simple) > MAX_VERTICES + 1
    while many.any():
        tolerance *= 1.1
        simple[many] = shapely.simplify(paths[many], tolerance)
        many = shapely.get_num_coordinates(simple) > MAX_VERTICES + 1
    areas = np.array([area_of(x, y) for x, y in outlines])
    simple = _of_area(simple, areas)
    for i in np.flatnonzero(ragged):
        closer = _fewest(*outlines[i]) if len(outlines[i][0]) <= RAGGED else None
        simple[i] = simple[i] if closer is None else closer
    return [_counter_clockwise(shapely.get_coordinates(polygon)[:-1]) for polygon in simple]


def _of_area(polygons, areas):
    """Scale polygons about their centroids to areas: what cutting off corners takes or adds is made good."""
    import shapely

    scale = np.sqrt(areas / shapely.area(polygons))
    centre = shapely.get_coordinates(shapely.centroid(polygons))
    corners, owner = shapely.get_coordinates(polygons, return_index=True)
    return shapely.set_coordinates(polygons, centre[owner] + (corners - centre[owner]) * scale[owner, None])


def _counter_clockwise(corners):
    x, y = corners.T
    return (x, y) if area_of(x, y) > 0 else (x[::-1], y[::-1])


def _middles(x, y):
    """Points half a pixel before and half a pixel after each corner of an outline, in order: shape (2 n, 2)."""
    corners = np.column_stack([x, y]).astype(float)
    after = np.roll(corners, -1, axis=0) - corners
    after *= 0.5 / np.abs(after).sum(axis=1, keepdims=True)
    return np.stack([corners - np.roll(after, 1, axis=0), corners + after], axis=1).reshape(-1, 2)


# The fewest corners ---------------------------------------------------------------------------------------


def _fewest(x, y):
    """Polygon of the fewest corners, out of an outline's own and those of `_middles`, that keeps the tolerance.

    A segment is allowed if all corners that it skips lie near it (Imai and Iri 1988); the fewest in a row are found
    breadth first.

    Parameters
    ----------
    x, y : ndarray of float, shape (n,)
        Corners of the outline.

    Returns
    -------
    `~shapely.Polygon` or None
        None if it has more than `MAX_VERTICES` corners or crosses itself.
    """
    import shapely

    corners = np.column_stack([x, y]).astype(float)
    before, after = _middles(x, y).reshape(-1, 2, 2).swapaxes(0, 1)
    places = np.stack([before, corners, after], axis=1).reshape(-1, 2)
    allowed = [_allowed(np.roll(places, -i, axis=0)[: LONGEST + 1], (1 - i) % 3) for i in range(len(places))]
    rings = [_shortest(allowed, start) for start in np.linspace(0, len(places), STARTS, endpoint=False).astype(int)]
    ring = min(rings, key=len)
    if len(ring) > MAX_VERTICES:
        return None
    polygon = shapely.Polygon(places[ring])
    return polygon if polygon.is_valid else None


def _allowed(places, first):
    """Which places a segment from place 0 may lead to: those for which all corners before them lie near it.

    Parameters
    ----------
    places : ndarray of float, shape (n, 2)
        In order along the outline.
    first : int
        The first of them that is a corner; every third one after it is, too.

    Returns
    -------
    ndarray of int
        Their numbers.
    """
    import shapely

    numbers = np.arange(1, len(places))
    skipped = np.arange(first or 3, len(places), 3)
    ends = np.stack([np.broadcast_to(places[0], (len(numbers), 2)), places[1:]], axis=1)
    away = shapely.distance(shapely.linestrings(ends)[:, None], shapely.points(places[skipped]))
    near = (away <= TOLERANCE - ROUNDED) | (skipped >= numbers[:, None])
    return numbers[near.all(axis=1)]


def _shortest(allowed, start):
    """Places of the shortest ring through a start: breadth first, from each place to those that are allowed."""
    n = len(allowed)
    before = np.full(n + 1, -1)
    layer = np.array([0])
    while before[n] < 0:
        following = []
        for place in layer.tolist():
            reached = allowed[(start + place) % n] + place
            reached = reached[reached <= n]
            new = reached[before[reached] < 0]
            before[new] = place
            following.append(new)
        layer = np.concatenate(following)
    ring = [n]
    while ring[-1]:
        ring.append(int(before[ring[-1]]))
    return (np.array(ring[:0:-1]) + start) % n

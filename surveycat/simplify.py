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
LONGEST = 36  # places on the outline that one segment may skip
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
    many = shapely.get_num_coordinates(simple) > MAX_VERTICES + 1
    closer = {i: _fewest(*outlines[i]) for i in np.flatnonzero(many) if len(outlines[i][0]) <= RAGGED}
    closer = {i: polygon for i, polygon in closer.items() if polygon is not None}
    many[list(closer)] = False
    while many.any():
        tolerance *= 1.2
        simple[many] = shapely.simplify(paths[many], tolerance)
        many = shapely.get_num_coordinates(simple) > MAX_VERTICES + 1
        many[list(closer)] = False
    simple = _of_area(simple, np.array([area_of(x, y) for x, y in outlines]))
    for i, polygon in closer.items():
        simple[i] = polygon
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
    allowed = _allowed(places)
    for start in np.linspace(0, len(places), STARTS, endpoint=False).astype(int):
        ring = _shortest(allowed, start)
        if len(ring) <= MAX_VERTICES:
            polygon = shapely.Polygon(places[ring])
            return polygon if polygon.is_valid else None
    return None


def _allowed(places):
    """Where a segment from each place may lead to: all corners before its end lie near it.

    Parameters
    ----------
    places : ndarray of float, shape (n, 2)
        In order along the outline; every third one, from the second, is a corner.

    Returns
    -------
    ndarray of bool, shape (n, LONGEST)
        For each place, whether the one 1, 2, ... farther on may be the end.
    """
    steps = np.arange(1, LONGEST + 1)
    numbers = np.arange(len(places))[:, None] + steps
    ends = places[numbers % len(places)] - places[:, None]
    near = np.empty(numbers.shape, bool)
    for first in range(3):  # a third of the places have their corners after as many steps
        skipped = steps[numbers[first] % 3 == 1]
        away = _from_segments(ends[first::3, skipped - 1], ends[first::3])
        near[first::3] = ((away <= (TOLERANCE - ROUNDED) ** 2) | (skipped >= steps[:, None])).all(axis=2)
    return near


def _from_segments(points, ends):
    """Squared distances of points, shape (n, p, 2), from segments that begin at the origin, (n, s, 2): (n, s, p)."""
    lengths = np.maximum((ends**2).sum(axis=2), 1e-12)[:, :, None]  # an outline may touch itself
    along = ends @ points.swapaxes(1, 2)
    nearest = np.clip(along / lengths, 0, 1)
    return (points**2).sum(axis=2)[:, None] + nearest * (nearest * lengths - 2 * along)


def _shortest(allowed, start):
    """Places of the shortest ring through a start: breadth first, from each place to those that are allowed."""
    from scipy.sparse import csgraph, csr_array

    n = len(allowed)
    places, farther = np.nonzero(np.roll(allowed, -start, axis=0))
    ends = places + farther + 1
    open_ring = ends <= n  # place n is the start again
    places, ends = places[open_ring], ends[open_ring]
    graph = csr_array((np.ones(len(ends)), (places, ends)), shape=(n + 1, n + 1))
    _, before = csgraph.breadth_first_order(graph, 0)
    ring = [n]
    while ring[-1]:
        ring.append(int(before[ring[-1]]))
    return (np.array(ring[:0:-1]) + start) % n

"""Where the middle of an object is: moments, windowed centroid, half-light radius."""

import numpy as np

__all__ = ["galaxy_centre", "half_light_radius", "moments", "window_sigma", "windowed_centroid"]

INNER = 5.0  # pixels around the centre of a small object that always count for its position
WIDER = 1.08  # half of the light reaches so much farther around a knot than around the middle
RIM, HEART = 0.3, 0.5  # depths in a mask as shares of the greatest: no galaxy is centred in its rim


def moments(weights):
    """Give centroid and central second moments of an image.

    Parameters
    ----------
    weights : ndarray, shape (h, w)
        Not negative, not all 0.

    Returns
    -------
    x, y : float
        Centroid, the first pixel's centre at 0.
    covariance : ndarray, shape (3,)
        (xx, xy, yy). As in SExtractor and photutils, what is thinner than a pixel gets the moment of one,
        1/12.
    """
    total = weights.sum(dtype=float)
    along_x, along_y = weights.sum(axis=0, dtype=float), weights.sum(axis=1, dtype=float)
    columns, rows = np.arange(len(along_x), dtype=float), np.arange(len(along_y), dtype=float)
    x, y = columns @ along_x / total, rows @ along_y / total
    xx, yy = (columns - x) ** 2 @ along_x / total, (rows - y) ** 2 @ along_y / total
    xy = (rows - y) @ weights.astype(float) @ (columns - x) / total
    if xx * yy - xy**2 < 1 / 12**2:
        xx, yy = xx + 1 / 12, yy + 1 / 12
    return x, y, np.array([xx, xy, yy])


def galaxy_centre(weights, mask, x, y):
    """Give the windowed centroid of the light in a mask, and the half-light radius that set the last window.

    Where a brighter neighbour reaches into the mask from outside, that leads to its rim: then only what lies deep in
    the mask counts.

    Parameters
    ----------
    weights : ndarray, shape (h, w)
        Light in each pixel, 0 outside of the mask; not all 0.
    mask : ndarray of bool, shape (h, w)
        Of the galaxy.
    x, y : float
        Where to start, pixels.

    Returns
    -------
    x, y : float
        The centroid.
    radius : float
        Half-light radius, pixels, for `window_sigma`.
    """
    found = _centre_of(weights, mask, x, y)
    depth = _depth(mask)
    if _at(depth, *found[:2]) >= RIM * depth.max():
        return found
    heart = np.where(depth >= HEART * depth.max(), weights, 0)
    return _centre_of(heart, mask, *moments(heart)[:2]) if heart.any() else found


def _depth(mask):
    """Distance of each pixel of a mask from the nearest one outside, the border of the array being none."""
    from scipy.ndimage import distance_transform_edt

    return np.ones(mask.shape) if mask.all() else distance_transform_edt(mask)


def _at(values, x, y):
    """Value of an image at the nearest pixel; 0 outside."""
    row, column = round(y), round(x)
    inside = 0 <= row < values.shape[0] and 0 <= column < values.shape[1]
    return values[row, column] if inside else 0.0


def _centre_of(weights, mask, x, y):
    """Give the windowed centroid, first of all light, then of that within half of the mask's radius.

    The third value is the half-light radius that set the last window. Where a neighbour shares the mask, that of the
    whole spans both, and so would the window. A knot away from the middle is no centre: half of the light is farther
    from it.
    """
    window = half_light_radius(weights, x, y)
    x, y = windowed_centroid(weights, x, y, window)
    whole = x, y, window
    inner = max(0.5 * np.sqrt(mask.sum() / np.pi), INNER)
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    for _ in range(2):
        near = np.where((rows - y) ** 2 + (columns - x) ** 2 < inner**2, weights, 0)
        if not near.any():
            break
        window = half_light_radius(near, x, y)
        x, y = windowed_centroid(weights, x, y, window)
    moved = max(abs(x - whole[0]), abs(y - whole[1])) > 1
    if moved and half_light_radius(weights, x, y) > WIDER * half_light_radius(weights, *whole[:2]):
        return whole
    return x, y, window


def windowed_centroid(weights, x, y, radius, rounds=30):
    """Give the centroid under a round Gaussian window that moves with it.

    In a stretched picture the faint parts of a mask, and the stars and neighbours in them, pull a plain centroid off
    the galaxy; under the window they hardly count. As XWIN_IMAGE of SExtractor (Bertin, manual, "Windowed centroid").

    Parameters
    ----------
    weights : ndarray, shape (h, w)
        Light in each pixel; not negative.
    x, y : float
        Where to start, pixels.
    radius : float
        Half-light radius, pixels: the window holds half of its own weight within it.
    rounds : int, optional
        Steps at most.

    Returns
    -------
    x, y : float
        The centroid; the start where the light has none.
    """
    sigma = window_sigma(radius)
    weights = weights.astype(float)  # else each product below makes a copy
    rows, columns = np.arange(weights.shape[0]), np.arange(weights.shape[1])
    for _ in range(rounds):
        from_x, from_y = columns - x, rows - y
        across, along = np.exp(-0.5 * (from_x / sigma) ** 2), np.exp(-0.5 * (from_y / sigma) ** 2)
        by_column = along @ weights
        total = by_column @ across
        if not total > 0:
            break
        step_x = 2 * (by_column @ (across * from_x)) / total
        step_y = 2 * ((along * from_y) @ (weights @ across)) / total
        x, y = x + step_x, y + step_y
        if abs(step_x) + abs(step_y) < 1e-3:
            break
    return float(x), float(y)


def window_sigma(radius):
    """Give the width of the round Gaussian that holds half of its own weight within a radius of at least a pixel.

    Parameters
    ----------
    radius : float
        Pixels.

    Returns
    -------
    float
        Standard deviation, pixels.
    """
    return max(radius, 1.0) / np.sqrt(2 * np.log(2))


def half_light_radius(weights, x, y):
    """Give the radius of the circle that holds half of the light.

    Parameters
    ----------
    weights : ndarray, shape (h, w)
        Light in each pixel; not negative.
    x, y : float
        Centre of the circle.

    Returns
    -------
    float
        Radius in pixels, NaN without light. Pixels are split into 3 x 3, so that a point source is measured
        well.
    """
    rows, columns = np.nonzero(weights)
    if not len(rows):
        return np.nan
    thirds = np.array([-1, 0, 1]) / 3
    dx = (columns[:, None] + thirds - x)[:, None, :]
    dy = (rows[:, None] + thirds - y)[:, :, None]
    radius = np.sqrt(dx**2 + dy**2).ravel()
    return _weighted_median(radius, np.repeat(weights[rows, columns].astype(float), 9))


def _weighted_median(values, weights, bins_per_unit=16):
    """Give the value below which half of the weight lies, without sorting more than the values next to it.

    Parameters
    ----------
    values, weights : ndarray of float64, shape (N,)
        Not negative, at least one.
    bins_per_unit : int, optional
        Bins in which the weights are summed to find the place.

    Returns
    -------
    float
        Interpolated in the running sum of the sorted weights.
    """
    bins = (values * bins_per_unit).astype(np.int64)
    sums = np.cumsum(np.bincount(bins, weights))
    middle = min(int(np.searchsorted(sums, sums[-1] / 2)), len(sums) - 1)
    below = bins < middle
    last = bins[below].max() if below.any() else 0  # the value before the place may lie in an earlier bin
    near = (bins >= last) & (bins <= middle)
    order = np.argsort(values[near])
    before = sums[last - 1] if last > 0 else 0.0
    return float(np.interp(sums[-1] / 2, before + np.cumsum(weights[near][order]), values[near][order]))

"""Galaxy stamps: the light and the mask of single galaxies, cut out of labelled SDSS pictures.

Each cutout is brought back to linear light, shrunk to the survey's own sampling, freed of sky and neighbours, and
stored once (`build`), so that scenes can add it to any sky.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from training.stretch import FRAME_IRG

NATIVE_SCALE = 0.396127
SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
WEIGHTS = np.asarray(FRAME_IRG.scales, np.float32)
# Segments of a cutout's label map.
SKY, CENTRAL, GALAXY, DOUBTFUL, STAR = range(5)
MARGIN = 14
# Masks reach to this many sigma of the smoothed sum, but never below the light that JPEG leaves of a faint rim.
THRESHOLD = 1.75
MIN_THRESHOLD = 0.05


@dataclass
class StampSet:
    """All stamps of one split, as columns and flat arrays (memory-mapped).

    Attributes
    ----------
    table : dict of numpy.ndarray
        One value per stamp: ``p_spiral``, ``class_weight``, ``side`` (longer side of the mask's box, px), ``scale``
        (arcsec per px of the stamp), ``r50`` (half-light radius, px), ``light_shape``, ``light_start``, ``full_shape``,
        ``full_start``, ``sigma`` (noise of the summed light), ``id``.
    light, mask, full, labels : numpy.ndarray
        Flat storage behind `stamp` and `cutout`.
    """

    table: dict
    light: np.ndarray
    mask: np.ndarray
    full: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.table["id"])

    def stamp(self, index):
        """Return the tapered light (h, w, 3) float32 and the mask (h, w) bool of one galaxy."""
        h, w = self.table["light_shape"][index]
        start = self.table["light_start"][index]
        light = self.light[3 * start : 3 * (start + h * w)].reshape(h, w, 3)
        return light.astype(np.float32), self.mask[start : start + h * w].reshape(h, w)

    def cutout(self, index):
        """Return the whole cutout: light with its sky (h, w, 3) float32 and its label map (h, w) uint8.

        The low bits (value % 8) of a label say what it is (`SKY` .. `STAR`), the rest count the objects of the cutout.
        """
        h, w = self.table["full_shape"][index]
        start = self.table["full_start"][index]
        full = self.full[3 * start : 3 * (start + h * w)].reshape(h, w, 3)
        return full.astype(np.float32), self.labels[start : start + h * w].reshape(h, w)


def read_labels(data=SHARED_DATA):
    """Read both label tables and give every galaxy its target and weight.

    Parameters
    ----------
    data : Path
        The shared data folder.

    Returns
    -------
    pandas.DataFrame
        With columns ``path``, ``split``, ``target`` (p_spiral) and ``class_weight`` besides the files' own.
    """
    frames = []
    for name in ("gz2", "gz1"):
        frame = pd.read_csv(data / "cutouts" / name / "labels.csv", low_memory=False)
        frame["path"] = [str(data / "cutouts" / name / f) for f in frame["file"]]
        frame["set"] = name
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    voted = frame["p_smooth"].notna() & (frame["p_smooth"] + frame["p_features"] > 0.2)
    target = np.where(frame["label"] == "spiral", 0.92, 0.08)
    votes = frame["p_features"] / (frame["p_features"] + frame["p_smooth"])
    frame["target"] = np.where(voted, votes, target).astype(np.float32)
    known = voted | (frame["confident"] == 1)
    frame["class_weight"] = known.astype(np.float32)
    # A few files have no scale: the median galaxy of Galaxy Zoo 2 stands in.
    guess = 0.02 * 8.4 * 424.0 / frame["size_px"]
    frame["pixel_scale_arcsec"] = frame["pixel_scale_arcsec"].fillna(guess)
    keep = ~(frame["p_artifact"] > 0.3)
    return frame[keep].reset_index(drop=True)


def resize(light, shape):
    """Shrink (or enlarge) an (h, w, 3) float32 image to `shape` (rows, columns), averaging over the area."""
    h, w = shape
    if (h, w) == light.shape[:2]:
        return light
    grow = h > light.shape[0]
    method = Image.Resampling.BICUBIC if grow else Image.Resampling.BOX
    planes = [
        Image.fromarray(np.ascontiguousarray(light[..., c])).resize((w, h), method) for c in range(light.shape[2])
    ]
    return np.stack([np.asarray(p) for p in planes], axis=-1)


def half_light_radius(image, y, x, limit):
    """Radius in px that holds half of the light found within `limit` px of (y, x)."""
    yy, xx = np.indices(image.shape, sparse=True)
    r = np.hypot(yy - y, xx - x)
    order = np.argsort(r, axis=None)
    radius = r.ravel()[order]
    inside = radius <= limit
    growth = np.cumsum(np.maximum(image.ravel()[order][inside], 0.0))
    if growth.size == 0 or growth[-1] <= 0:
        return 0.0
    return float(radius[np.searchsorted(growth, 0.5 * growth[-1])])


def sky_level(light):
    """Sky of a cutout: per-channel level, noise of the smoothed sum, and the pixels it was taken from.

    Objects are masked and the level taken again, twice; a galaxy that leaves less than a tenth of the frame free gives
    the level of the darkest twentieth.
    """
    raw = light @ WEIGHTS
    total = ndimage.gaussian_filter(raw, 1.0)
    broad = ndimage.gaussian_filter(raw, 2.5)
    free = np.ones(total.shape, bool)
    edge = max(4, total.shape[0] // 10)
    free[edge:-edge, edge:-edge] = False
    free &= broad <= np.quantile(broad[free], 0.8)
    for _ in range(3):
        middle, high = np.quantile(broad[free], (0.5, 0.84))
        objects = ndimage.binary_dilation(broad > middle + max(3.0 * (high - middle), 0.02), iterations=3)
        free = ~objects
        if free.mean() < 0.08:
            free = broad <= np.quantile(broad, 0.05)
    # Negative noise was clipped when the picture was made: only the upper side tells its width.
    level, high = np.quantile(total[free], (0.5, 0.84))
    sigma = max(high - level, MIN_THRESHOLD / THRESHOLD)
    sky = np.median(light[free], axis=0)
    return sky, level, sigma, total


def segment(total, level, sigma):
    """Detect and deblend on the smoothed sum image.

    Returns
    -------
    tuple
        Structured array of `sep` objects and the segmentation map (0 is sky).
    """
    import sep

    sep.set_sub_object_limit(4096)
    return sep.extract(
        np.ascontiguousarray(total - level, np.float32),
        THRESHOLD * sigma,
        minarea=8,
        filter_kernel=None,
        segmentation_map=True,
        deblend_nthresh=32,
        deblend_cont=0.01,
    )


def central_mask(objects, segmentation, total):
    """Mask of the galaxy at the centre: its segment and those that are pieces of it, filled and smoothed.

    A segment is a piece (knot, arm) if it touches, has less than 0.15 of the light and its centroid lies on the
    galaxy's ellipse (2.8 rms radii).

    Returns
    -------
    tuple
        The mask, or None if nothing is at the centre, and the set of segment numbers that belong to it.
    """
    n = segmentation.shape[0]
    middle = segmentation[n // 2 - 3 : n // 2 + 4, n // 2 - 3 : n // 2 + 4]
    numbers = middle[middle > 0]
    if numbers.size == 0:
        return None, set()
    number = int(np.bincount(numbers).argmax())
    main = objects[number - 1]
    d = np.stack([objects["x"] - main["x"], objects["y"] - main["y"]])
    cos, sin = np.cos(main["theta"]), np.sin(main["theta"])
    along, across = d[0] * cos + d[1] * sin, d[1] * cos - d[0] * sin
    reach = np.hypot(along / (2.8 * main["a"]), across / (2.8 * main["b"]))
    pieces = np.flatnonzero((reach < 1.0) & (objects["flux"] < 0.15 * main["flux"])) + 1
    members = {number, *(int(p) for p in pieces)}
    mask = np.isin(segmentation, list(members))
    mask = ndimage.binary_fill_holes(mask)
    width = np.clip(0.08 * np.sqrt(mask.sum()), 1.0, 5.0)
    pad = int(4 * width)
    mask = ndimage.gaussian_filter(np.pad(mask, pad, mode="edge").astype(np.float32), width)[pad:-pad, pad:-pad] > 0.5
    parts, _ = ndimage.label(mask)
    y, x = int(round(main["y"])), int(round(main["x"]))
    if not mask[y, x]:
        return None, members
    return ndimage.binary_fill_holes(parts == parts[y, x]), members


def sort_neighbours(objects, segmentation, members, total, level, sigma, psf, burnt, mask):
    """Label map of a cutout: the central galaxy's pieces, galaxies, doubtful things and stars.

    Sorted by half-light radius against `psf` (that of a star, px) and by peak signal to noise. What has `burnt` pixels
    or touches the central galaxy's `mask` is never taken for a galaxy.
    """
    kinds = np.full(len(objects) + 1, SKY, np.uint8)
    h, w = total.shape
    unsure = set(np.unique(segmentation[burnt | ndimage.binary_dilation(mask, iterations=2)]).tolist())
    for i, o in enumerate(objects):
        number = i + 1
        if number in members:
            kinds[number] = CENTRAL
            continue
        y0, y1, x0, x1 = max(o["ymin"] - 4, 0), o["ymax"] + 5, max(o["xmin"] - 4, 0), o["xmax"] + 5
        own = np.isin(segmentation[y0:y1, x0:x1], (0, number))
        crop = np.where(own, total[y0:y1, x0:x1] - level, 0.0)
        r50 = half_light_radius(crop, o["y"] - y0, o["x"] - x0, 3.0 * max(o["a"], 1.5))
        snr = (o["peak"]) / sigma
        edge = o["xmin"] <= 0 or o["ymin"] <= 0 or o["xmax"] >= w - 1 or o["ymax"] >= h - 1
        if snr > 20 and r50 > 1.7 * psf and not edge and number not in unsure:
            kinds[number] = GALAXY
        elif r50 < 1.25 * psf and snr > 6:
            kinds[number] = STAR
        elif snr > 4:
            kinds[number] = DOUBTFUL
    return kinds


def continued(own, mask, total, sigma, side):
    """Light of the galaxy alone, fading out beyond its mask, in the mask's box and a margin.

    Beyond the mask the light of the nearest part of the rim is continued with an exponential, so that neither sky nor
    neighbours nor an edge come along. Where the galaxy is faint it is replaced by its smoothed self: added to a sky it
    would bring its own noise.

    Parameters
    ----------
    own : ndarray, shape (h, w, 3)
        Light less the sky.
    mask : ndarray of bool, shape (h, w)
    total : ndarray, shape (h, w)
        Smoothed summed light less the sky.
    sigma : float
        Noise of `total`.
    side : int
        Longer side of the mask, px.

    Returns
    -------
    tuple
        light (h', w', 3) float32 and mask (h', w').
    """
    smooth = ndimage.gaussian_filter(own, (1.6, 1.6, 0))
    trust = np.clip(total / sigma / 8.0 - 0.5, 0.0, 1.0)[..., None]
    inside = trust * own + (1.0 - trust) * smooth
    margin = MARGIN + side // 5
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pad = ((margin, margin), (margin, margin))
    inner, mask = np.pad(inside[box], (*pad, (0, 0))), np.pad(mask[box], pad)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), 2.0)
    level = (
        ndimage.gaussian_filter(np.where(mask[..., None], inner, 0.0), (2.0, 2.0, 0))
        / np.maximum(weight, 1e-3)[..., None]
    )
    distance, (y, x) = ndimage.distance_transform_edt(~mask, return_indices=True)
    # The rim is at the threshold: a knot or a bright neighbour cut off there must not be drawn out into a ray.
    bound = 2.0 * THRESHOLD * sigma / WEIGHTS / 3.0
    rim = np.clip(level[y, x], 0.0, bound)
    fade = rim * np.exp(-distance / (0.09 * side + 1.0))[..., None]
    fade = ndimage.gaussian_filter(np.where(mask[..., None], np.minimum(level, bound), fade), (1.5, 1.5, 0))
    border = np.minimum.reduce(
        np.meshgrid(*(np.minimum(np.arange(n), np.arange(n)[::-1]) for n in mask.shape), indexing="ij")
    )
    fade *= np.minimum(border / 6.0, 1.0)[..., None]
    return np.where(mask[..., None], inner, fade).astype(np.float32), mask


def make_stamp(row):
    """Make one stamp from a row of `read_labels`.

    Returns
    -------
    dict or str
        Arrays and numbers of the stamp; a word that says why where it was dropped.
    """
    picture = np.asarray(Image.open(row["path"]).convert("RGB"))
    light = FRAME_IRG.invert(picture)
    scale = float(row["pixel_scale_arcsec"])
    n = light.shape[0]
    size = int(round(n * scale / NATIVE_SCALE))
    if size < n:
        light = resize(light, (size, size))
        scale = scale * n / size
    if light.shape[0] < 24:
        return "small frame"
    sky, level, sigma, total = sky_level(light)
    objects, segmentation = segment(total, level, sigma)
    if len(objects) == 0:
        return "nothing found"
    mask, members = central_mask(objects, segmentation, total)
    if mask is None or mask.sum() < 40:
        return "no galaxy at the centre"
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
    touching = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
    if touching > 0.1 * (h + w):
        return "cut by the frame"
    psf = 1.5 * NATIVE_SCALE / scale
    burnt = ndimage.maximum_filter((FRAME_IRG.render(light).max(axis=-1) >= 245), 3)
    # The smoothing of `total` widens a star a little.
    kinds = sort_neighbours(objects, segmentation, members, total, level, sigma, np.hypot(psf, 1.0), burnt, mask)
    labels = kinds[segmentation]
    # Only galaxies need a number of their own; more than 31 of them share.
    order = np.where(kinds == GALAXY, np.cumsum(kinds == GALAXY) % 32, 0)
    labels = np.where(mask, CENTRAL, np.where(labels == CENTRAL, SKY, labels + 8 * order[segmentation])).astype(
        np.uint8
    )

    light_in, mask_in = continued(light - sky, mask, total - level, sigma, max(h, w))
    neighbours = ndimage.binary_dilation((labels % 8) > CENTRAL) & mask & (total - level > 5.0 * sigma)
    rim = mask & ~ndimage.binary_erosion(mask)
    y, x = ndimage.center_of_mass(np.maximum(total - level, 0) * mask)
    r50 = half_light_radius((total - level) * mask, y, x, max(h, w))
    return {
        "light": light_in.astype(np.float16),
        "mask": mask_in,
        "full": light.astype(np.float16),
        "labels": labels,
        "p_spiral": row["target"],
        "class_weight": row["class_weight"],
        "side": max(h, w),
        "scale": scale,
        "r50": r50,
        "sigma": sigma,
        "id": str(row["id"]),
        "sky": sky,
        "cut": float((neighbours & rim).sum() / max(rim.sum(), 1)),
    }


def build(split, folder, jobs=1, data=SHARED_DATA, limit=None):
    """Make all stamps of a split and store them; does nothing where they are already stored.

    Parameters
    ----------
    split : {'train', 'val', 'test'}
    folder : Path
        Cache folder; the stamps go to ``folder/split``.
    jobs : int
        Processes.
    data : Path
        The shared data folder.
    limit : int, optional
        Only the first so many rows (for tests).

    Returns
    -------
    Path
        The folder of this split.
    """
    target = Path(folder) / split
    if (target / "table.npz").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    frame = read_labels(data)
    rows = frame[frame["split"] == split].sort_values("id").to_dict("records")[:limit]
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            made = list(pool.map(make_stamp, rows, chunksize=32))
    else:
        made = [make_stamp(row) for row in rows]
    dropped = pd.Series([m for m in made if isinstance(m, str)]).value_counts().to_dict()
    stamps = [m for m in made if not isinstance(m, str)]
    print(f"stamps {split}: {len(stamps)} of {len(rows)}; dropped: {dropped}", flush=True)
    sizes = {"light": [s["light"].shape[:2] for s in stamps], "full": [s["full"].shape[:2] for s in stamps]}
    table = {
        k: np.asarray([s[k] for s in stamps])
        for k in ("p_spiral", "class_weight", "side", "scale", "r50", "sigma", "id", "sky", "cut")
    }
    for name, shapes in sizes.items():
        table[f"{name}_shape"] = np.asarray(shapes, np.int64)
        pixels = table[f"{name}_shape"].prod(axis=1)
        table[f"{name}_start"] = np.concatenate([[0], np.cumsum(pixels)[:-1]])
    for name in ("light", "mask", "full", "labels"):
        np.save(target / f"{name}.npy", np.concatenate([s[name].ravel() for s in stamps]))
    partial_file = target / "table.partial.npz"
    np.savez(partial_file, **table)
    os.replace(partial_file, target / "table.npz")
    return target


def load(split, folder):
    """Open the stamps that `build` stored.

    Returns
    -------
    StampSet
    """
    target = Path(folder) / split
    with np.load(target / "table.npz") as stored:
        table = {k: stored[k] for k in stored.files}
    opened = partial(np.load, mmap_mode="r")
    return StampSet(table, *(opened(target / f"{n}.npy") for n in ("light", "mask", "full", "labels")))

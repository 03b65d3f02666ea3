"""Real sky for training scenes, and what is already in it: stars, galaxies, doubtful things.

Every source picture is brought to linear light and searched once. Compact objects are stars and teach what is not a
galaxy. Clearly extended, bright ones are galaxies of unknown class, with their own mask. What lies between is left out
of the loss.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from training.stamps import SHARED_DATA, WEIGHTS, half_light_radius
from training.stretch import Stretch

GALAXY, DOUBTFUL = 1, 2
# Where the held-out columns of the training fields begin; the validation split lives there.
VALIDATION_X = 1792


@dataclass(frozen=True)
class Source:
    """A picture of the sky: its folder, how to read it, and the rows that may be used for training."""

    name: str
    folder: str
    stretch: Stretch | None
    train_rows: tuple
    test_rows: tuple | None
    # Circle (y, x, radius) in which extended detections are blends of cluster stars, not galaxies.
    cluster: tuple | None = None
    # Seen by eye: galaxies that the rules miss, and stars or doubles that they take for galaxies, as (y, x).
    galaxies: tuple = ()
    stars: tuple = ()
    # Nothing brighter than this magnitude (of `survey`) is a galaxy unless listed: burnt-out stars have dark centres.
    brightest: float = 0.0


# The stretches of the two Lupton pictures were fitted to the pair field.jpg and field_low.jpg, the latter being
# astropy's default (Q = 8, stretch = 5).
SOURCES = (
    Source(
        "m2",
        "sdss_323.34-0.73_m2",
        None,
        (0, 700),
        (744, 1470),
        (924.0, 212.5, 600.0),
        galaxies=(
            (97, 1305),
            (344, 1012),
            (327, 560),
            (605, 1773),
            (169, 1591),
            (7, 592),
            (276, 1208),
            (471, 1888),
            (467, 1999),
            (345, 2033),
        ),
    ),
    Source(
        "ngc6976",
        "sdss_313.17-5.69_ngc6976",
        Stretch("lupton", (1.0, 1.0, 1.0), 10.0, 0.5),
        (0, 700),
        (744, 1489),
        brightest=17.6,
    ),
    Source(
        "run1140",
        "sdss_183.76-3.44_run1140",
        Stretch("lupton", (1.0, 1.0, 1.0), 1.85, 1.17),
        (0, 700),
        (744, 1489),
        galaxies=((288, 590), (606, 364), (602, 828), (542, 296)),
    ),
    Source(
        "run1045",
        "sdss_run1045",
        Stretch("lupton", (1.0, 1.0, 1.0), 1.88, 1.19),
        (0, 1489),
        None,
        galaxies=(
            (877, 1477),
            (236, 967),
            (928, 368),
            (598, 1340),
            (1134, 1069),
            (1151, 1058),
            (488, 1232),
            (845, 1203),
            (915, 1270),
            (289, 1327),
            (1317, 1171),
            (706, 1989),
            (217, 1922),
            (262, 2013),
            (494, 2043),
        ),
    ),
)


@dataclass
class SkyObject:
    """Something extended in the sky: `kind` is GALAXY or DOUBTFUL; the mask fills the box [y0, x0, y1, x1)."""

    kind: int
    box: tuple
    mask: np.ndarray
    magnitude: float = 0.0
    excess: float = 0.0


@dataclass
class Sky:
    """One usable piece of sky.

    Attributes
    ----------
    name : str
        Source name.
    light : ndarray of float32, shape (h, w, 3)
        Linear light less the sky's median.
    sigma : ndarray of float32, shape (3,)
        Noise of a pixel.
    psf : float
        Half-light radius of stars, px.
    objects : list of SkyObject
        The extended things in it.
    stars : ndarray of float32, shape (n, 3)
        Position (y, x) and peak of the stars found.
    """

    name: str
    light: np.ndarray
    sigma: np.ndarray
    psf: float
    objects: list = field(default_factory=list)
    stars: np.ndarray | None = None


def read_light(source, data=SHARED_DATA):
    """Read a source as linear light (H, W, 3), float32, in the pixel grid of its JPEG."""
    folder = data / "fields" / source.folder
    if source.stretch is not None:
        return source.stretch.invert(np.asarray(Image.open(folder / "field.jpg").convert("RGB")))
    from astropy.io import fits
    from astropy.wcs import WCS

    images, frames = {}, {}
    for band in "irg":
        path = next(folder.glob(f"frame-{band}-*.fits.fz"))
        with fits.open(path) as hdus:
            images[band], frames[band] = hdus[1].data.astype(np.float32), WCS(hdus[1].header)
    h, w = images["r"].shape
    corners = np.array([[0.0, 0.0], [w - 1.0, 0.0], [0.0, h - 1.0], [w - 1.0, h - 1.0]])
    sky = frames["r"].pixel_to_world_values(corners)
    planes = []
    for band in "irg":
        if band == "r":
            planes.append(images["r"])
            continue
        there = np.asarray(frames[band].world_to_pixel_values(*np.asarray(sky).reshape(-1, 2).T)).T
        basis = np.column_stack([corners[:, 1], corners[:, 0], np.ones(4)])
        fit, *_ = np.linalg.lstsq(basis, there[:, ::-1], rcond=None)
        planes.append(ndimage.affine_transform(images[band], fit[:2].T, fit[2], order=3, mode="nearest"))
    return np.stack(planes, axis=-1)


def regions(source, split):
    """Boxes (y0, x0, y1, x1) of a source that belong to a split; empty where there are none."""
    if split == "test":
        return [] if source.test_rows is None else [(source.test_rows[0], 0, source.test_rows[1], 2048)]
    columns = (0, VALIDATION_X) if split == "train" else (VALIDATION_X, 2048)
    return [(source.train_rows[0], columns[0], source.train_rows[1], columns[1])]


def noise_of(light):
    """Noise per channel from the upper side of the sky's histogram (the lower one may be clipped).

    The lower quarter of 64 px blocks, so that crowded parts do not count.
    """
    blocks = [
        light[y : y + 64, x : x + 64].reshape(-1, 3)
        for y in range(0, light.shape[0] - 63, 64)
        for x in range(0, light.shape[1] - 63, 64)
    ]
    widths = [np.diff(np.quantile(b, (0.5, 0.75), axis=0), axis=0)[0] / 0.6745 for b in blocks]
    return np.quantile(widths, 0.25, axis=0).astype(np.float32)


def survey(light, source, origin, offset=0.0):
    """Detect everything in a piece of sky and sort the extended from the compact.

    The measure is concentration: magnitude in 2 px radius less that in 6 px, against the locus of the stars of the same
    picture.

    Parameters
    ----------
    light : ndarray, shape (h, w, 3)
        Linear light, sky near 0.
    source : Source
        Where it comes from.
    origin : tuple of int
        (y, x) of its first pixel in the source.
    offset : ndarray or float
        The sky that was subtracted.

    Returns
    -------
    dict
        Columns of all detections and the segmentation map.
    """
    import sep

    sep.set_extract_pixstack(2_000_000)
    sep.set_sub_object_limit(8192)
    raw = np.ascontiguousarray(light @ WEIGHTS, np.float32)
    smooth = np.ascontiguousarray(ndimage.gaussian_filter(raw, 1.0), np.float32)
    background = sep.Background(smooth, bw=96, bh=96)
    flat = smooth - background.back()
    middle, high = np.quantile(flat, (0.5, 0.75))
    sigma = float((high - middle) / 0.6745)
    objects, segmentation = sep.extract(
        flat - middle,
        2.0 * sigma,
        minarea=8,
        filter_kernel=None,
        segmentation_map=True,
        deblend_nthresh=32,
        deblend_cont=0.005,
    )
    numbers = np.arange(1, len(objects) + 1, dtype=np.int32)
    clean = raw - background.back() - np.float32(middle)
    apertures = {}
    for radius in (2.0, 6.0):
        apertures[radius], _, _ = sep.sum_circle(
            clean, objects["x"], objects["y"], radius, segmap=segmentation, seg_id=numbers
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        concentration = 2.5 * np.log10(apertures[6.0] / apertures[2.0])
        magnitude = 22.5 - 2.5 * np.log10(np.maximum(apertures[6.0], 1e-3) / 2.6 / 3.0)
    burnt = ndimage.maximum_filter(burnt_out(light + offset, source), 5)
    saturated = burnt[objects["y"].round().astype(int), objects["x"].round().astype(int)]
    usable = ~saturated & np.isfinite(concentration)
    excess = concentration - stellar_locus(magnitude, concentration, usable)
    return {
        "objects": objects,
        "segmentation": segmentation,
        "magnitude": magnitude,
        "excess": excess,
        "snr": objects["peak"] / sigma,
        "saturated": saturated,
        "sigma": sigma,
        "smooth": flat,
        "y": objects["y"] + origin[0],
        "x": objects["x"] + origin[1],
        "clean": clean,
    }


def burnt_out(light, source):
    """Pixels at the top of the picture's range, where the light is not known."""
    if source.stretch is None:
        return light[..., 1] > 12.0
    return source.stretch.render(light).max(axis=-1) >= 248


def stellar_locus(magnitude, concentration, usable):
    """Concentration of stars as a function of magnitude: the lower quarter of each magnitude, smoothed.

    Parameters
    ----------
    magnitude, concentration : ndarray, shape (n,)
    usable : ndarray of bool, shape (n,)
        Detections that are neither burnt out nor unmeasured.

    Returns
    -------
    ndarray, shape (n,)
    """
    edges = np.arange(13.0, 24.0, 0.75)
    centres, values = [], []
    for low in edges:
        inside = usable & (magnitude >= low - 0.4) & (magnitude < low + 1.15)
        if inside.sum() >= 6:
            centres.append(low + 0.375)
            # A tenth of what is there lies below the middle of the stars even where galaxies are many.
            lowest = np.sort(concentration[inside])[: max(3, int(0.35 * inside.sum()))]
            values.append(np.median(lowest))
    return np.interp(magnitude, centres, values)


def sort_objects(found, source):
    """Kind of each detection: 0 (star, noise, halo), GALAXY or DOUBTFUL."""
    objects, excess, magnitude = found["objects"], found["excess"], found["magnitude"]
    kinds = np.zeros(len(objects), np.uint8)
    extended = np.isfinite(excess) & (excess > 0.15)
    kinds[extended & (found["snr"] > 4)] = DOUBTFUL
    elongation = objects["a"] / np.maximum(objects["b"], 0.3)
    sure = extended & (excess > 0.3) & (found["snr"] > 18) & (magnitude < 20.8) & (objects["flag"] & 8 == 0)
    # A close double star is long, narrow and no more than a little extended.
    sure &= ~((elongation > 1.8) & (excess < 0.45))
    kinds[sure] = GALAXY
    # Around a burnt-out star everything is halo and spikes.
    burnt = found["saturated"] | (magnitude < source.brightest)
    kinds[burnt] = 0
    listed = np.zeros(len(objects), bool)
    for y, x in source.galaxies:
        listed |= np.hypot(found["y"] - y, found["x"] - x) < 6.0
    for star in np.flatnonzero(burnt & ~listed):
        radius = 6.0 + 0.9 * np.sqrt(objects["npix"][star])
        near = np.hypot(objects["y"] - objects["y"][star], objects["x"] - objects["x"][star]) < radius
        kinds[near & (objects["flux"] <= objects["flux"][star])] = 0
    if source.cluster is not None:
        # Cluster stars blend by the hundred: only what was seen to be a galaxy is one.
        y, x, radius = source.cluster
        kinds[kinds == GALAXY] = DOUBTFUL
        kinds[np.hypot(found["y"] - y, found["x"] - x) < radius] = 0
    for kind, places in ((GALAXY, source.galaxies), (0, source.stars)):
        for y, x in places:
            distance = np.hypot(found["y"] - y, found["x"] - x)
            near = np.flatnonzero(distance < 6.0)
            if near.size:
                kinds[near[np.argmax(objects["flux"][near])]] = kind
    return kinds


def object_mask(found, index):
    """Filled, smoothed mask of a detection and its box."""
    o = found["objects"][index]
    h, w = found["segmentation"].shape
    y0, x0 = max(int(o["ymin"]) - 6, 0), max(int(o["xmin"]) - 6, 0)
    y1, x1 = min(int(o["ymax"]) + 7, h), min(int(o["xmax"]) + 7, w)
    mask = ndimage.binary_fill_holes(found["segmentation"][y0:y1, x0:x1] == index + 1)
    mask = ndimage.gaussian_filter(mask.astype(np.float32), 1.0) > 0.45
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return None, None
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return (y0 + rows[0], x0 + columns[0], y0 + rows[-1] + 1, x0 + columns[-1] + 1), mask


def glow(light, mesh=128):
    """Unresolved light of a star cluster and the error of the sky around it, per channel.

    Left in, it puts the sky beside the cluster below zero, where a picture is black: galaxies added there would lose
    their faint half.

    Parameters
    ----------
    light : ndarray, shape (h, w, 3)
        Linear light.
    mesh : int
        Side of the boxes, px.

    Returns
    -------
    ndarray of float32, shape (h, w, 3)
        The glow.
    """
    import sep

    planes = [np.ascontiguousarray(light[..., channel], np.float32) for channel in range(3)]
    return np.stack([sep.Background(plane, bw=mesh, bh=mesh).back() for plane in planes], axis=-1)


def build_one(source, region, data=SHARED_DATA):
    """Read, level and search one region of a source."""
    y0, x0, y1, x1 = region
    light = read_light(source, data)[y0:y1, x0:x1]
    # beside a cluster the median pixel is not sky
    offset = np.median(light, axis=(0, 1)) if source.cluster is None else glow(light)
    light = light - offset
    found = survey(light, source, (y0, x0), offset)
    kinds = sort_objects(found, source)
    sky = Sky(source.name, light.astype(np.float32), noise_of(light), 0.0)
    for index in np.flatnonzero(kinds):
        box, mask = object_mask(found, index)
        if box is not None:
            sky.objects.append(
                SkyObject(int(kinds[index]), box, mask, float(found["magnitude"][index]), float(found["excess"][index]))
            )
    compact = (abs(found["excess"]) < 0.1) & (found["snr"] > 30) & ~found["saturated"]
    radii = [star_radius(found, i) for i in np.flatnonzero(compact)[:80]]
    sky.psf = float(np.median(radii)) if radii else 1.5
    objects = found["objects"]
    sky.stars = np.stack([objects["y"][compact], objects["x"][compact], objects["peak"][compact]], 1).astype(np.float32)
    return sky, found, kinds


def star_radius(found, index):
    """Half-light radius of one detection within 7 px."""
    o = found["objects"][index]
    y, x = int(round(o["y"])), int(round(o["x"]))
    y0, x0 = max(y - 9, 0), max(x - 9, 0)
    crop = found["clean"][y0 : y + 10, x0 : x + 10]
    other = found["segmentation"][y0 : y + 10, x0 : x + 10]
    return half_light_radius(np.where((other == 0) | (other == index + 1), crop, 0), o["y"] - y0, o["x"] - x0, 7.0)


def build(split, folder, data=SHARED_DATA):
    """Survey every region of a split and store it; does nothing where it is stored already.

    Returns
    -------
    list of Path
        One file per region.
    """
    paths = []
    Path(folder).mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        for number, region in enumerate(regions(source, split)):
            path = Path(folder) / f"sky_{split}_{source.name}_{number}.npz"
            paths.append(path)
            if path.exists():
                continue
            sky, _, _ = build_one(source, region, data)
            save(sky, path)
            count = [sum(o.kind == k for o in sky.objects) for k in (GALAXY, DOUBTFUL)]
            print(
                f"sky {path.name}: psf {sky.psf:.2f} px, sigma {sky.sigma}, galaxies {count[0]}, doubtful {count[1]}",
                flush=True,
            )
    return paths


def save(sky, path):
    """Store a piece of sky (npz, atomic)."""
    masks = [o.mask for o in sky.objects]
    partial = path.with_name(f".{path.name}")  # what looks for pieces of sky does not take a hidden file for one
    np.savez(
        partial,
        name=sky.name,
        light=sky.light.astype(np.float16),
        sigma=sky.sigma,
        psf=sky.psf,
        stars=sky.stars,
        kind=np.array([o.kind for o in sky.objects], np.uint8),
        box=np.array([o.box for o in sky.objects], np.int32).reshape(-1, 4),
        magnitude=np.array([o.magnitude for o in sky.objects], np.float32),
        excess=np.array([o.excess for o in sky.objects], np.float32),
        masks=np.concatenate([m.ravel() for m in masks]) if masks else np.zeros(0, bool),
    )
    os.replace(partial, path)


def load(path):
    """Open a piece of sky that `save` stored."""
    with np.load(path) as f:
        sky = Sky(str(f["name"]), f["light"].astype(np.float32), f["sigma"], float(f["psf"]), [], f["stars"])
        start = 0
        masks = f["masks"]
        for kind, box, magnitude, excess in zip(f["kind"], f["box"], f["magnitude"], f["excess"], strict=True):
            h, w = box[2] - box[0], box[3] - box[1]
            mask = masks[start : start + h * w].reshape(h, w)
            start += h * w
            sky.objects.append(SkyObject(int(kind), tuple(int(b) for b in box), mask, float(magnitude), float(excess)))
    return sky

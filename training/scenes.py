"""Training scenes: 256 px tiles of real sky with labelled galaxies added, written as shards.

``python -m training.scenes --out DIR --count N --seed S [--split train|val|test] [--jobs J]`` makes stamps and sky once
(in ``--cache``) and then the scenes. All light is added linearly and rendered in one of several stretches; coarse
levels are averages of rendered pictures, as the detector sees them.

Kinds: 0 native sky with added galaxies, 1 a whole cutout, 2 a coarse level, 3 a deep and sharp picture as space
telescopes make them.
"""

import argparse
import contextlib
import io
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from training import sky as sky_module
from training import stamps as stamps_module
from training.command import exit_code
from training.stamps import CENTRAL, DOUBTFUL, GALAXY, NATIVE_SCALE, WEIGHTS, half_light_radius, resize
from training.stretch import FRAME_IRG, FRAME_SCALES, Stretch, random_stretch

TILE = 256
SHARD = 256
MAX_OBJECTS = 24
NATIVE, CUTOUT, COARSE, DEEP = range(4)
KIND_SHARES = (0.42, 0.17, 0.30, 0.11)
# `source` of a galaxy that was in the sky already.
SKY_GALAXY = -2
# PSF of an average frame, sigma in native px (FWHM 3 px).
PSF_SIGMA = 1.27
# Noise of an average frame in i, r, g, nanomaggies per px.
TYPICAL_NOISE = np.array([0.025, 0.020, 0.013], np.float32)
# A Gaussian of 1 px lowers white noise by this factor.
SMOOTHED = 0.282
# The sky's noise is taken for at least this much of the sum of the three channels: pictures are cut to whole counts.
FAINTEST_COUNTS = 2.2
# Where the sky has less noise than that, masks of bright galaxies end where their sum is this high.
RIM_COUNTS = 18.0
# Averaging leaves little noise; masks still end near the isophote at which they end on the native level, so that the
# same galaxy has the same outline on every level.
COARSE_NOISE = 0.02
# In which the pictures come that the skies were read from; those read from FITS have none.
OWN_STRETCH = {source.name: source.stretch for source in sky_module.SOURCES}
SKY_WEIGHT = {"m2": 0.3, "ngc6976": 0.27, "run1140": 0.18, "run1045": 0.25}
LEVEL_WEIGHT = np.array([0.34, 0.25, 0.15, 0.10, 0.08, 0.08])


@dataclass
class Item:
    """A galaxy in a scene: its whole mask and summed light in a box that may reach outside, and its label."""

    y0: int
    x0: int
    mask: np.ndarray
    total: np.ndarray
    p_spiral: float
    class_weight: float
    positive: bool = True
    source: int = -1


@dataclass
class Canvas:
    """A scene being composed: linear light, what is in it and what to ignore.

    `noise` is that of the sum smoothed by 1 px, `slope` the picture's counts per unit of that sum.
    """

    light: np.ndarray
    noise: float
    slope: float
    items: list = field(default_factory=list)
    ignore: np.ndarray = field(default_factory=lambda: np.zeros((TILE, TILE), bool))
    # Light of added things that are no galaxies, summed: what lies below it is not to be found.
    clutter: np.ndarray | None = None
    image: np.ndarray | None = None
    kind: int = NATIVE
    level: int = 0


def overlap(y0, x0, shape, height=TILE, width=TILE):
    """Slices of a box at (y0, x0) that lies partly on a canvas: (on the canvas, in the box); None if it misses."""
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = min(y0 + shape[0], height), min(x0 + shape[1], width)
    if bottom <= top or right <= left:
        return None
    return np.s_[top:bottom, left:right], np.s_[top - y0 : bottom - y0, left - x0 : right - x0]


def isophote(peak, noise, slope):
    """Light at which a mask ends: near the noise for faint galaxies, where a person would draw it for bright ones.

    Parameters
    ----------
    peak, noise : float
        Largest light of the galaxy and noise of the sky, both of the sum smoothed by 1 px.
    slope : float
        Counts of the picture per unit of that light.

    Returns
    -------
    float
        A twelfth of the peak, at least 1.25 times the noise, and at most 3.5 times it (the unsmoothed noise of a
        pixel) or `RIM_COUNTS`, whichever is more.
    """
    return float(np.clip(peak / 12.0, 1.25 * noise, max(3.5 * noise, RIM_COUNTS / slope)))


def visible_mask(total, canvas, within=True):
    """Visible extent of a galaxy: the part around its peak above its isophote, filled and smoothed.

    Parameters
    ----------
    total : ndarray, shape (h, w)
        Its light, summed.
    canvas : Canvas
        Where it is seen.
    within : ndarray of bool, shape (h, w)
        Its pixels, where others are on the map too.

    Returns
    -------
    mask : ndarray of bool, shape (h, w)
        The mask, empty where nothing is seen.
    peak : float
        The largest smoothed light in it.
    """
    smooth = np.where(within, ndimage.gaussian_filter(total, 1.0), 0.0)
    place = np.unravel_index(np.argmax(smooth), total.shape)
    peak = float(smooth[place])
    parts, _ = ndimage.label(smooth > isophote(peak, canvas.noise, canvas.slope))
    if parts[place] == 0:
        return np.zeros(total.shape, bool), peak
    mask = ndimage.binary_fill_holes(parts == parts[place])
    if mask.sum() >= 60:
        width = float(np.clip(0.05 * np.sqrt(mask.sum()), 0.8, 3.0))
        # beyond the edge of the map it goes on as it is at the edge
        mask = ndimage.gaussian_filter(mask.astype(np.float32), width, mode="nearest") > 0.5
    return mask, peak


def shrink(item, canvas):
    """Cut a real galaxy's mask down to what is above its isophote, in place; too faint means not positive."""
    item.mask, peak = visible_mask(item.total, canvas, item.mask)
    item.positive &= bool(item.mask.any()) and peak > 5.0 * canvas.noise


def transform(light, scale, blur, flux, rng):
    """Shrink a stamp, blur it back to the PSF of the scene, dim it and turn it by a multiple of 90 degrees.

    The stamp gets a margin of dark pixels, so that blur does not end at its border.
    """
    h, w = light.shape[:2]
    shape = (max(3, int(round(h * scale))), max(3, int(round(w * scale))))
    out = resize(light, shape) * np.float32(flux)
    if blur > 0.2:
        pad = int(np.ceil(2.5 * blur))
        out = np.pad(out, ((pad, pad), (pad, pad), (0, 0)))
        out = ndimage.gaussian_filter(out, (blur, blur, 0.0), truncate=3.0)
    out = np.rot90(out, rng.integers(4))
    return out[:, ::-1] if rng.random() < 0.5 else out


def moffat(shape, y, x, flux, fwhm, beta=3.0):
    """Star of the given total flux at (y, x) on a grid, float32."""
    width2 = (fwhm / 2.0) ** 2 / (2.0 ** (1.0 / beta) - 1.0)
    yy, xx = np.ogrid[: shape[0], : shape[1]]
    r2 = (yy - y) ** 2 + (xx - x) ** 2
    return (flux * (beta - 1.0) / (np.pi * width2) * (1.0 + r2 / width2) ** -beta).astype(np.float32)


def star_colour(rng):
    """Relative light of a star in i, r, g; from blue to M dwarfs."""
    g_r = rng.choice([rng.normal(0.45, 0.15), rng.normal(1.35, 0.12)], p=[0.7, 0.3])
    r_i = 0.4 * g_r if g_r < 1.0 else rng.uniform(0.4, 1.6)
    return np.array([10 ** (0.4 * r_i), 1.0, 10 ** (-0.4 * g_r)], np.float32)


def add_star(light, y, x, flux, fwhm, colour, half=14):
    """Add one star, in place."""
    top, left = int(round(y)) - half, int(round(x)) - half
    place = overlap(top, left, (2 * half + 1, 2 * half + 1))
    if place is None:
        return
    star = moffat((2 * half + 1, 2 * half + 1), y - top, x - left, flux, fwhm)
    light[place[0]] += star[place[1]][..., None] * colour


def add_bright_star(light, rng, scale=1.0):
    """Add a burnt-out star with halo, diffraction spikes and at times a bleed trail, in place.

    `scale` is the size of a pixel of the scene in native pixels.
    """
    y, x = rng.uniform(-20, TILE + 20, 2)
    colour = star_colour(rng)
    flux = 10 ** rng.uniform(3.0, 5.2) / scale**2
    yy, xx = np.mgrid[:TILE, :TILE].astype(np.float32)
    dy, dx = (yy - y), (xx - x)
    r2 = (dy**2 + dx**2) * scale**2
    core = moffat((TILE, TILE), y, x, flux, max(3.0 / scale, 1.0), 2.6)
    halo = flux * scale**2 * rng.uniform(2e-4, 8e-4) * (1.0 + r2 / 25.0) ** -rng.uniform(1.0, 1.4)
    angle = rng.uniform(0, np.pi / 2) if rng.random() < 0.5 else np.pi / 4
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = dy * np.cos(angle) - dx * np.sin(angle)
    width = max(1.2 / scale, 0.6)
    length = rng.uniform(15, 60) * np.log10(flux * scale**2) / 4.0 / scale
    spikes = np.exp(-0.5 * (across / width) ** 2 - np.abs(along) / length)
    spikes += np.exp(-0.5 * (along / width) ** 2 - np.abs(across) / length)
    total = core + halo + spikes * flux * scale**2 * rng.uniform(0.5e-4, 3e-4) * (rng.random() < 0.7)
    if rng.random() < 0.2:
        total += 20.0 * np.exp(-0.5 * (dx / max(1.0 / scale, 0.5)) ** 2 - np.abs(dy) / (0.5 * length + 1.0))
    light += np.minimum(total, 40.0)[..., None] * colour


def burn_out(picture, stars, rng):
    """Give the cores of bright stars the odd colour that saturated pixels have in some pictures, in place.

    Parameters
    ----------
    picture : ndarray of uint8, shape (h, w, 3)
        The picture.
    stars : ndarray of float32, shape (h, w)
        Light of added stars, summed.
    rng : numpy.random.Generator
        Source of randomness.
    """
    core = stars > np.exp(rng.uniform(np.log(8.0), np.log(60.0)))
    colour = np.array([[255, rng.integers(0, 120), rng.integers(60, 200)], rng.integers(0, 256, 3)])
    picture[core] = colour[int(rng.random() < 0.3)].astype(np.uint8)


def add_trail(light, rng):
    """Add a satellite trail: a straight line of even light, in one band mostly, in place."""
    angle, y, x = rng.uniform(0, np.pi), *rng.uniform(0, TILE, 2)
    yy, xx = np.mgrid[:TILE, :TILE].astype(np.float32)
    across = (yy - y) * np.cos(angle) - (xx - x) * np.sin(angle)
    colour = rng.dirichlet((0.5, 0.5, 0.5)).astype(np.float32)
    line = 10 ** rng.uniform(-1.2, 1.0) * np.exp(-0.5 * (across / rng.uniform(1.2, 3.0)) ** 2)
    light += line[..., None] * colour


def add_cluster(light, rng, scale):
    """Add a star cluster: thousands of stars in a Plummer profile, in place.

    Fluxes follow a power law that is compressed at coarse levels, where bright stars were burnt out before averaging.
    """
    count = int(10 ** rng.uniform(2.3, 4.0))
    radius = 10 ** rng.uniform(0.6, 1.7)
    y, x = rng.uniform(0, TILE, 2)
    u = rng.random(count)
    r = radius / np.sqrt(np.maximum(u**-1.0 - 1.0, 1e-3))
    phi = rng.uniform(0, 2 * np.pi, count)
    flux = (rng.pareto(1.1, count) + 0.2) * 10 ** rng.uniform(-0.5, 0.8)
    flux = np.minimum(flux, 300.0) / scale
    colour = np.array([1.4, 1.0, 0.7], np.float32) * np.exp(rng.normal(0, 0.15, 3)).astype(np.float32)
    bins = np.arange(TILE + 1) - 0.5
    grid, _, _ = np.histogram2d(y + r * np.sin(phi), x + r * np.cos(phi), bins=(bins, bins), weights=flux)
    grid = ndimage.gaussian_filter(grid.astype(np.float32), max(PSF_SIGMA / scale, 0.45))
    light += grid[..., None] * colour


def jpeg(image, rng, low=80, high=95):
    """Compress and decompress a uint8 picture."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(
        buffer, "JPEG", quality=int(rng.integers(low, high + 1)), subsampling=int(rng.choice([0, 2], p=[0.3, 0.7]))
    )
    return np.asarray(Image.open(buffer))


def block_average(image):
    """Average 2 x 2 blocks of (h, w, ...) float; an odd last row or column is dropped."""
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    image = image[:h, :w]
    return 0.25 * (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2])


def choose(groups, weights, rng):
    """One of the groups that are not empty, at random by their weights."""
    weights = np.array([weight * (len(group) > 0) for group, weight in zip(groups, weights, strict=True)])
    return groups[rng.choice(len(groups), p=weights / weights.sum())]


class Composer:
    """Composes scenes of one split from its stamps and sky.

    Parameters
    ----------
    split : {'train', 'val', 'test'}
        Whose galaxies and sky.
    cache : Path
        Where `stamps.build` and `sky.build` stored theirs.
    """

    def __init__(self, split, cache):
        self.stamps = stamps_module.load(split, Path(cache) / "stamps")
        names = [s.name for s in sky_module.SOURCES]
        paths = [p for n in names for p in sorted((Path(cache) / "sky").glob(f"sky_{split}_{n}_*.npz"))]
        self.skies = [sky_module.load(p) for p in paths]
        weight = np.array([SKY_WEIGHT[s.name] for s in self.skies])
        self.sky_weight = weight / weight.sum()
        table = self.stamps.table
        self.side = table["side"].astype(np.float64)
        # What a bright neighbour cuts into is shown in its own cutout only.
        whole = table["cut"] < 0.08
        sure = table["class_weight"] > 0
        spiral = table["p_spiral"] > 0.5
        # Sampling is by class, then by size: each group sorted by side.
        classes = [sure & spiral, sure & ~spiral, ~sure]
        self.groups = [self._by_side(c & whole) for c in classes]
        self.cutouts = [np.flatnonzero(c) for c in classes]
        self.pools = None

    def _by_side(self, chosen):
        index = np.flatnonzero(chosen)
        return index[np.argsort(self.side[index])]

    def pick(self, target, rng):
        """Index of a stamp that can be shown `target` px long without being enlarged (or hardly so)."""
        group = choose(self.groups, (0.47, 0.47, 0.06), rng)
        sides = self.side[group]
        limit = target / (1.3 if rng.random() < 0.15 else 1.04)
        first = min(np.searchsorted(sides, limit), len(group) - 12)
        first = max(first, 0)
        # Not too much larger either, where there is a choice: a stamp shrunk ten times has lost what it was.
        last = max(np.searchsorted(sides, 7.0 * target), first + 12)
        return int(group[rng.integers(first, min(last, len(group)))])

    # -- galaxies ------------------------------------------------------------------------------------------------

    def galaxy(self, canvas, target, psf_sigma, rng, bright=0.0, tint=0.0):
        """Light and mask of one galaxy about `target` px long, its place still open.

        `bright` is the share of galaxies of many times the surface brightness; `tint` changes colours (rms, natural
        logarithm).

        Returns
        -------
        tuple
            light (h, w, 3), Item at (0, 0); the item is None if nothing of it would be seen.
        """
        index = self.pick(target, rng)
        light, _ = self.stamps.stamp(index)
        scale = min(target / self.side[index], 1.3)
        table = self.stamps.table
        own = PSF_SIGMA * NATIVE_SCALE / table["scale"][index] * scale
        blur = np.sqrt(max((psf_sigma * rng.uniform(0.92, 1.08)) ** 2 - own**2, 0.0))
        if target < 25:
            flux = np.exp(rng.uniform(np.log(0.15), np.log(1.3)))
        else:
            flux = np.exp(rng.normal(-0.05, 0.4))
        if rng.random() < bright:
            # a large galaxy shrunk is not as bright as one that is compact, or near and deep
            flux *= np.exp(rng.uniform(np.log(1.5), np.log(8.0)))
        light = transform(light, scale, blur, flux, rng)
        light = light * np.exp(rng.normal(0.0, tint, 3)).astype(np.float32)
        total = np.ascontiguousarray(light @ WEIGHTS)
        mask, peak = visible_mask(total, canvas)
        area, peak = int(mask.sum()), peak / canvas.noise
        if area < 5 or peak < 1.5:
            return light, None
        y, x = np.unravel_index(np.argmax(total), total.shape)
        r50 = half_light_radius(total, y, x, 0.5 * max(total.shape) + 2)
        sharp = 1.1774 * psf_sigma * 1.12
        positive = peak > 4.0 and area >= 24 and r50 > 1.2 * sharp
        item = Item(
            0, 0, mask, total, float(table["p_spiral"][index]), float(table["class_weight"][index]), positive, index
        )
        return light, item

    def place(self, canvas, item, rng):
        """Choose where a galaxy goes: anywhere inside, now and then across the border or over another."""
        rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
        size = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1])
        middle = np.array([rows[0], columns[0]]) + size / 2.0
        others = [o for o in canvas.items if o.positive]
        draw = rng.random()
        if draw < 0.11:
            centre = rng.uniform(0, TILE, 2)
            axis = rng.integers(2)
            near = rng.uniform(-0.35, 0.45) * size[axis]
            centre[axis] = near if rng.random() < 0.5 else TILE - near
        elif draw < 0.42 and others:
            other = others[rng.integers(len(others))]
            mask = np.array(other.mask.shape)
            reach = 0.25 * (size + np.minimum(mask, TILE)) * np.exp(rng.uniform(-0.7, 0.6))
            angle = rng.uniform(0, 2 * np.pi)
            centre = np.array([other.y0, other.x0]) + mask / 2.0 + reach * np.array([np.sin(angle), np.cos(angle)])
            centre = np.clip(centre, 0.2 * size, TILE - 0.2 * size)
        else:
            slack = np.maximum(TILE - size - 4, 12)
            centre = TILE / 2.0 + (rng.random(2) - 0.5) * slack
        item.y0, item.x0 = (int(round(v)) for v in centre - middle)

    def add_galaxies(self, canvas, targets, psf_sigma, rng, bright=0.1, tint=0.0):
        """Add galaxies of the given lengths (px) to a canvas; `bright` and `tint` as `galaxy` takes them."""
        for target in targets:
            light, item = self.galaxy(canvas, target, psf_sigma, rng, bright, tint)
            if item is None:
                continue
            self.place(canvas, item, rng)
            place = overlap(item.y0, item.x0, item.mask.shape)
            if place is None:
                continue
            canvas.light[place[0]] += light[place[1]]
            canvas.items.append(item)

    # -- kinds of scenes -----------------------------------------------------------------------------------------

    def crop_sky(self, stretch, rng):
        """A random native crop of real sky with its galaxies, its noise brought to that of some exposure.

        Without a `stretch` the picture is as its source is: its own stretch, its own noise.

        Returns
        -------
        tuple
            The canvas, the sky, the stretch.
        """
        sky = self.skies[rng.choice(len(self.skies), p=self.sky_weight)]
        as_is = stretch is None
        if as_is:
            stretch = OWN_STRETCH[sky.name] or FRAME_IRG
        h, w = sky.light.shape[:2]
        y, x = rng.integers(0, h - TILE + 1), rng.integers(0, w - TILE + 1)
        light = sky.light[y : y + TILE, x : x + TILE].copy()
        wanted = TYPICAL_NOISE * np.exp(rng.uniform(np.log(0.75), np.log(2.0))) * np.exp(rng.normal(0, 0.08, 3))
        own = np.maximum(sky.sigma, 1e-4)
        if as_is:
            wanted = own
        if own.mean() > wanted.mean() and rng.random() < 0.7:
            gain = float((wanted / own).mean())
            light *= gain
            own = own * gain
        extra = np.sqrt(np.maximum(wanted**2 - own**2, 0.0)).astype(np.float32)
        if extra.max() > 0.1 * own.max():
            light += rng.standard_normal(light.shape, dtype=np.float32) * extra
        sigma = np.maximum(own, wanted)
        noise = SMOOTHED * float(np.sqrt(((sigma * WEIGHTS) ** 2).sum()))
        # A low stretch shows less: what stays below three counts of the sum is not there.
        canvas = Canvas(light, max(noise, FAINTEST_COUNTS / stretch.slope), stretch.slope)
        for o in sky.objects:
            y0, x0 = o.box[0] - y, o.box[1] - x
            place = overlap(y0, x0, o.mask.shape)
            if place is None:
                continue
            if o.kind == sky_module.DOUBTFUL:
                canvas.ignore[place[0]] |= o.mask[place[1]]
                continue
            total = np.zeros(o.mask.shape, np.float32)
            total[place[1]] = np.maximum(light[place[0]] @ WEIGHTS, 0.0)
            item = Item(y0, x0, o.mask, total * o.mask, 0.5, 0.0, True, SKY_GALAXY)
            if place[1] == np.s_[0 : o.mask.shape[0], 0 : o.mask.shape[1]]:
                shrink(item, canvas)
            canvas.items.append(item)
        return canvas, sky, stretch

    def native(self, rng):
        """Native sky with galaxies and stars added."""
        canvas, sky, stretch = self.crop_sky(None if rng.random() < 0.3 else random_stretch(rng), rng)
        count = rng.choice([0, rng.poisson(2.5), rng.poisson(6.0)], p=[0.08, 0.57, 0.35])
        targets = []
        for _ in range(min(int(count), 12)):
            span = [(10, 90), (8, 20), (60, 250)][rng.choice(3, p=[0.62, 0.24, 0.14])]
            targets.append(np.exp(rng.uniform(*np.log(span))))
        psf_sigma = sky.psf / 1.1774 / 1.12
        self.add_galaxies(canvas, targets, psf_sigma, rng)
        self.add_stars(canvas, 2.355 * psf_sigma, rng)
        before = canvas.light.copy()
        if rng.random() < 0.2:
            for _ in range(rng.integers(1, 4)):
                add_bright_star(canvas.light, rng)
        if rng.random() < 0.02:
            add_trail(canvas.light, rng)
        if rng.random() < 0.03:
            add_cluster(canvas.light, rng, 1.0)
        canvas.clutter = (canvas.light - before) @ WEIGHTS
        picture = self.show(canvas, stretch, rng)
        if rng.random() < 0.5:
            burn_out(picture, canvas.clutter, rng)
        canvas.image = self.spoil(picture, rng)
        return canvas

    def deep(self, rng):
        """A deep and sharp picture: black sky, bright galaxies of all colours with burnt-out cores, few stars."""
        gain = np.exp(rng.uniform(np.log(0.7), np.log(2.5)))
        softening = np.exp(rng.uniform(np.log(0.3), np.log(4.0)))
        scales = tuple(gain * s for s in FRAME_SCALES)
        stretch = Stretch("asinh", scales, float(softening), keeps_hue=rng.random() < 0.3)
        sigma = TYPICAL_NOISE * np.exp(rng.uniform(np.log(0.15), np.log(1.2)))
        noise = rng.standard_normal((TILE, TILE, 3), dtype=np.float32) * sigma.astype(np.float32)
        # drizzled images have correlated noise
        width = rng.uniform(0.0, 1.0)
        light = ndimage.gaussian_filter(noise, (width, width, 0)) if width > 0.3 else noise
        summed = SMOOTHED * float(np.sqrt(((sigma * WEIGHTS) ** 2).sum()))
        canvas = Canvas(light, max(summed, FAINTEST_COUNTS / stretch.slope), stretch.slope, kind=DEEP)
        targets = np.exp(rng.uniform(np.log(9), np.log(rng.choice([30, 60, 130])), rng.integers(2, 18)))
        psf_sigma = rng.uniform(0.8, 1.3)
        self.add_galaxies(canvas, targets, psf_sigma, rng, bright=0.6, tint=rng.choice([0.1, 0.2, 0.4]))
        before = canvas.light.copy()
        for _ in range(rng.integers(0, 5)):
            y, x = rng.uniform(0, TILE, 2)
            flux, fwhm = 10 ** rng.uniform(0.0, 3.0), 2.355 * psf_sigma * rng.uniform(0.95, 1.05)
            add_star(canvas.light, y, x, flux, fwhm, star_colour(rng))
        if rng.random() < 0.25:
            add_bright_star(canvas.light, rng)
        canvas.clutter = (canvas.light - before) @ WEIGHTS
        canvas.image = self.spoil(self.show(canvas, stretch, rng), rng)
        return canvas

    @staticmethod
    def show(canvas, stretch, rng):
        """Picture of a canvas, uint8, on a sky that is a little brighter or darker."""
        noise_per_channel = min(canvas.noise, 0.06) / SMOOTHED / np.sqrt(3.0)
        pedestal = (rng.uniform(-0.1, 0.5) + rng.normal(0, 0.08, 3)) * noise_per_channel / WEIGHTS
        return stretch.render(canvas.light + pedestal.astype(np.float32))

    def add_stars(self, canvas, fwhm, rng):
        """Add some PSF stars: single ones, close pairs, and stars upon galaxies."""
        if rng.random() < 0.35:
            for _ in range(rng.integers(1, 16)):
                y, x = rng.uniform(0, TILE, 2)
                add_star(
                    canvas.light, y, x, 10 ** rng.uniform(0.0, 2.6), fwhm * rng.uniform(0.95, 1.05), star_colour(rng)
                )
        if rng.random() < 0.25:
            for _ in range(rng.integers(1, 4)):
                y, x = rng.uniform(5, TILE - 5, 2)
                angle, apart = rng.uniform(0, np.pi), rng.uniform(1.5, 6.0)
                flux = 10 ** rng.uniform(0.7, 2.6)
                add_star(canvas.light, y, x, flux, fwhm, star_colour(rng))
                add_star(
                    canvas.light,
                    y + apart * np.sin(angle),
                    x + apart * np.cos(angle),
                    flux * rng.uniform(0.2, 1.0),
                    fwhm,
                    star_colour(rng),
                )
        positives = [i for i in canvas.items if i.positive]
        if positives and rng.random() < 0.12:
            item = positives[rng.integers(len(positives))]
            inside = np.argwhere(item.mask)
            y, x = inside[rng.integers(len(inside))] + np.array([item.y0, item.x0]) + rng.uniform(-0.5, 0.5, 2)
            add_star(canvas.light, y, x, 10 ** rng.uniform(0.3, 2.2), fwhm, star_colour(rng))

    def cutout(self, rng):
        """A whole cutout at native scale, padded by its median colour as the tiler pads."""
        group = choose(self.cutouts, (0.45, 0.45, 0.10), rng)
        index = int(group[rng.integers(len(group))])
        light, labels = self.stamps.cutout(index)
        table = self.stamps.table
        if rng.random() < 0.5:
            light, labels = light[:, ::-1], labels[:, ::-1]
        turn = rng.integers(4)
        light, labels = np.ascontiguousarray(np.rot90(light, turn)), np.rot90(labels, turn)
        n = light.shape[0]
        if n > TILE:
            y, x = rng.integers(0, n - TILE + 1, 2)
            light, labels = light[y : y + TILE, x : x + TILE], labels[y : y + TILE, x : x + TILE]
        stretch = FRAME_IRG if rng.random() < 0.6 else random_stretch(rng)
        picture = stretch.render(light)
        if rng.random() < 0.6:
            picture = jpeg(picture, rng)
        h, w = picture.shape[:2]
        y0, x0 = (
            (0, 0)
            if rng.random() < 0.6
            else (rng.integers(-(h // 4), TILE - 3 * h // 4), rng.integers(-(w // 4), TILE - 3 * w // 4))
        )
        image = np.empty((TILE, TILE, 3), np.uint8)
        image[:] = np.median(picture.reshape(-1, 3), axis=0).astype(np.uint8)
        place = overlap(y0, x0, picture.shape)
        image[place[0]] = picture[place[1]]
        noise = max(float(table["sigma"][index]), FAINTEST_COUNTS / stretch.slope)
        canvas = Canvas(np.zeros((1, 1, 3), np.float32), noise, stretch.slope, kind=CUTOUT, image=image)
        total = np.maximum(light @ WEIGHTS - table["sky"][index] @ WEIGHTS, 0.0)
        central = labels == CENTRAL
        canvas.items.append(
            Item(
                y0,
                x0,
                central,
                total * central,
                float(table["p_spiral"][index]),
                float(table["class_weight"][index]),
                True,
                index,
            )
        )
        for label in np.unique(labels[labels > CENTRAL]):
            here = labels == label
            kind = label % 8
            if kind == DOUBTFUL:
                canvas.ignore[place[0]] |= here[place[1]]
            elif kind == GALAXY and here.sum() >= 24:
                smooth = ndimage.gaussian_filter(ndimage.binary_fill_holes(here).astype(np.float32), 0.8) > 0.5
                canvas.items.append(Item(y0, x0, smooth, total * smooth, 0.5, 0.0, True, index))
        for item in canvas.items:
            shrink(item, canvas)
        if rng.random() < 0.03:
            canvas.image = self.spoil(canvas.image, rng)
        return canvas

    def build_pools(self, seed):
        """Render every sky in a few stretches and average it down: the coarse levels of real pictures."""
        rng = np.random.default_rng([seed, 77])
        variants = [
            FRAME_IRG,
            Stretch("asinh", tuple(0.65 * s for s in FRAME_SCALES)),
            Stretch("lupton", (1.0, 1.0, 1.0), 8.0, 5.0),
            Stretch("lupton", (1.0, 1.0, 1.0), 10.0, 0.5),
            Stretch("asinh", tuple(0.85 * s for s in FRAME_SCALES), 3.0),
        ]
        self.pools = []
        for stretch in variants:
            pool = []
            for sky in self.skies:
                wanted = TYPICAL_NOISE * np.exp(rng.uniform(np.log(0.8), np.log(1.6)))
                extra = np.sqrt(np.maximum(wanted**2 - sky.sigma**2, 0.0)).astype(np.float32)
                light = sky.light + rng.standard_normal(sky.light.shape, dtype=np.float32) * extra
                picture = jpeg(stretch.render(light + 0.25 * np.maximum(sky.sigma, extra)), rng, 85, 95)
                pool.append(self._levels(picture.astype(np.float32), sky))
            self.pools.append((stretch, pool))

    def _levels(self, picture, sky):
        """Levels 1..6 of a rendered sky: the picture, the ignore map and the galaxies large enough there."""
        numbers = {}
        for number, o in enumerate(sky.objects):
            y0, x0, y1, x1 = o.box
            if max(y1 - y0, x1 - x0) >= 10:
                numbers[number] = o
        levels = []
        for level in range(1, 7):
            picture = block_average(picture)
            size = 2**level
            galaxies, small = [], np.zeros(picture.shape[:2], np.float32)
            for o in numbers.values():
                y0, x0, y1, x1 = o.box
                top, left = y0 // size * size, x0 // size * size
                padded = np.zeros((-(-(y1 - top) // size) * size, -(-(x1 - left) // size) * size), np.float32)
                padded[y0 - top : y1 - top, x0 - left : x1 - left] = o.mask
                mean = padded.reshape(padded.shape[0] // size, size, -1, size).mean(axis=(1, 3))
                side = max(y1 - y0, x1 - x0) / size
                if o.kind == sky_module.GALAXY and side >= 9:
                    galaxies.append((top // size, left // size, mean > 0.5))
                elif side >= 5:
                    # Smaller ones are dots like stars here, and nobody's business at this level.
                    place = overlap(top // size, left // size, mean.shape, *small.shape)
                    if place is not None:
                        small[place[0]] = np.maximum(small[place[0]], mean[place[1]])
            levels.append((np.rint(picture).astype(np.uint8), small > 0.25, galaxies))
        return levels

    def coarse(self, rng):
        """A tile of a coarse level: a mosaic of averaged sky, with galaxies that are at home there."""
        level = int(rng.choice(6, p=LEVEL_WEIGHT)) + 1
        stretch, pool = self.pools[rng.choice(len(self.pools), p=[0.4, 0.3, 0.08, 0.07, 0.15])]
        weight = self.sky_weight * np.array([0.25 if s.name == "m2" and level > 2 else 1.0 for s in self.skies])
        which = rng.choice(len(self.skies), p=weight / weight.sum())
        picture, ignore, galaxies = pool[which][level - 1]
        image = np.zeros((TILE, TILE, 3), np.uint8)
        canvas = Canvas(np.zeros((1, 1, 3), np.float32), 0.01, stretch.slope, kind=COARSE, level=level)
        h, w = picture.shape[:2]
        # Smaller pieces than there are, so that every piece is another one; rows are shifted against each other.
        height, width = (n if n >= TILE else max(int(0.7 * n), min(n, 5)) for n in (h, w))
        for y in range(-int(rng.integers(height)) * (h < TILE), TILE, height):
            for x in range(-int(rng.integers(width)) * (w < TILE), TILE, width):
                self._patch(canvas, image, picture, ignore, galaxies, y, x, (height, width), rng)
        canvas.light = stretch.invert(image.astype(np.float32) + 0.5)
        total = canvas.light @ WEIGHTS
        middle, high = np.quantile(ndimage.gaussian_filter(total[::2, ::2], 1.0), (0.4, 0.65))
        # The sum's noise, and a count or so of rounding.
        canvas.noise = float(max((high - middle) / 0.64, FAINTEST_COUNTS / stretch.slope, COARSE_NOISE))
        count = rng.choice([0, rng.poisson(1.8), rng.poisson(5.0)], p=[0.18, 0.57, 0.25])
        targets = []
        for _ in range(min(int(count), 10)):
            span = [(20, 64), (9, 25), (60, 220)][rng.choice(3, p=[0.66, 0.2, 0.14])]
            targets.append(np.exp(rng.uniform(*np.log(span))))
        scale = 2.0**level
        self.add_galaxies(canvas, targets, PSF_SIGMA / scale, rng)
        before = canvas.light.copy()
        if rng.random() < 0.3:
            for _ in range(rng.integers(1, 4)):
                add_bright_star(canvas.light, rng, scale)
        if rng.random() < 0.14:
            add_cluster(canvas.light, rng, scale)
        if rng.random() < 0.3:
            for _ in range(rng.integers(3, 60)):
                y, x = rng.uniform(0, TILE, 2)
                add_star(canvas.light, y, x, 10 ** rng.uniform(-0.5, 1.8), max(3.0 / scale, 1.1), star_colour(rng), 8)
        canvas.clutter = (canvas.light - before) @ WEIGHTS
        canvas.image = stretch.render(canvas.light)
        if rng.random() < 0.1:
            canvas.image = self.spoil(canvas.image, rng)
        return canvas

    def _patch(self, canvas, image, picture, ignore, galaxies, y, x, shape, rng):
        """Fill one cell of a mosaic with a random crop (mirrored at random)."""
        h, w = (min(n, TILE) for n in shape)
        top, left = rng.integers(0, picture.shape[0] - h + 1), rng.integers(0, picture.shape[1] - w + 1)
        flip_y, flip_x = rng.random(2) < 0.5
        step = np.s_[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        place = overlap(y, x, (h, w))
        if place is None:
            return
        image[place[0]] = picture[top : top + h, left : left + w][step][place[1]]
        canvas.ignore[place[0]] |= ignore[top : top + h, left : left + w][step][place[1]]
        for gy, gx, mask in galaxies:
            inside = overlap(gy - top, gx - left, mask.shape, h, w)
            if inside is None:
                continue
            cell = np.zeros((h, w), bool)
            cell[inside[0]] = mask[inside[1]]
            part = cell[step][place[1]]
            # A mosaic repeats the few large galaxies of its sky: more than three of them teach nothing new.
            known = sum(item.source == SKY_GALAXY for item in canvas.items)
            if part.sum() < 0.5 * mask.sum() or (canvas.level > 2 and known >= 3):
                canvas.ignore[place[0]] |= part
                continue
            rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
            crop = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            canvas.items.append(
                Item(
                    place[0][0].start + rows[0],
                    place[0][1].start + columns[0],
                    crop,
                    crop.astype(np.float32),
                    0.5,
                    0.0,
                    True,
                    SKY_GALAXY,
                )
            )

    @staticmethod
    def spoil(image, rng):
        """JPEG in most pictures, strong noise in a few."""
        if rng.random() < 0.04:
            noise = rng.normal(0.0, rng.uniform(5.0, 80.0), image.shape)
            image = np.clip(image + noise, 0, 255).astype(np.uint8)
        return jpeg(image, rng) if rng.random() < 0.88 else image

    def compose(self, rng):
        """One scene of a random kind."""
        kind = rng.choice(len(KIND_SHARES), p=KIND_SHARES)
        return (self.native, self.cutout, self.coarse, self.deep)[kind](rng)


def hidden(item, items, clutter):
    """Whether more than 0.7 of a galaxy's mask lies under light at least three times its own."""
    under = np.zeros(item.mask.shape, bool)
    if clutter is not None:
        place = overlap(item.y0, item.x0, item.mask.shape)
        under[place[1]] = clutter[place[0]] > 3.0 * item.total[place[1]]
    for other in items:
        if other is item:
            continue
        place = overlap(other.y0 - item.y0, other.x0 - item.x0, other.total.shape, *item.mask.shape)
        if place is not None:
            under[place[0]] |= other.total[place[1]] > 3.0 * item.total[place[0]]
    return (under & item.mask).sum() > 0.7 * item.mask.sum()


def companions(item):
    """Peaks of an early type's light beside its own: neighbours that came along with it, unlabelled.

    On spirals such peaks are knots and arms, which are no objects.

    Parameters
    ----------
    item : Item
        A galaxy.

    Returns
    -------
    ndarray of bool, shape of its mask
        The pixels within 4 px of such a peak.
    """
    found = np.zeros(item.mask.shape, bool)
    if item.p_spiral >= 0.5:
        return found
    smooth = ndimage.gaussian_filter(item.total, 1.0)
    peaks = (smooth == ndimage.maximum_filter(smooth, 9)) & (smooth < smooth.max()) & item.mask
    for y, x in np.argwhere(peaks):
        yy, xx = np.ogrid[: smooth.shape[0], : smooth.shape[1]]
        distance = np.hypot(yy - y, xx - x)
        if smooth[y, x] > 1.2 * np.median(smooth[(distance > 4) & (distance < 7)]):
            found |= distance < 4
    return found


def visible_items(canvas):
    """What of the galaxies can be seen in a scene.

    Yields
    ------
    item : Item
        A galaxy with a pixel inside.
    place : tuple
        As `overlap` gives it.
    seen : ndarray of bool
        Its mask inside of the scene.
    keep : bool
        Whether it is to be found: the others are too faint, too small, hidden, or almost outside.
    """
    for item in canvas.items:
        place = overlap(item.y0, item.x0, item.mask.shape)
        if place is None:
            continue
        seen = item.mask[place[1]]
        area = int(seen.sum())
        if area:
            enough = item.positive and area >= 25 and area >= 0.15 * int(item.mask.sum())
            yield item, place, seen, enough and not hidden(item, canvas.items, canvas.clutter)


def finish(canvas):
    """Labels of a scene: boxes, masks in their boxes, and the map of what to ignore.

    Returns
    -------
    dict
        ``image``, ``ignore`` (bool), lists of object columns, ``kind``, ``level``.
    """
    rows, ignore, taken, unknown = [], canvas.ignore.copy(), *np.zeros((2, TILE, TILE), bool)
    for item, place, seen, keep in visible_items(canvas):
        area, whole = int(seen.sum()), int(item.mask.sum())
        if not keep or len(rows) >= MAX_OBJECTS:
            ignore[place[0]] |= seen
            continue
        taken[place[0]] |= seen
        unknown[place[0]] |= companions(item)[place[1]]
        ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        crop = seen[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
        top, left = place[0][0].start + ys[0], place[0][1].start + xs[0]
        box = (top, left, top + crop.shape[0], left + crop.shape[1])
        small = Image.fromarray(crop.astype(np.float32) * 255.0)
        # BOX averages where it shrinks; enlarging is bilinear.
        method = Image.Resampling.BOX if min(crop.shape) >= 56 else Image.Resampling.BILINEAR
        mask56 = np.clip(np.rint(np.asarray(small.resize((56, 56), method))), 0, 255).astype(np.uint8)
        # In a dozen pixels there is little left to tell a disk by.
        weight = item.class_weight * float(np.clip(max(crop.shape) / 20.0, 0.3, 1.0))
        rows.append((box, mask56, item.p_spiral, weight, area, area / whole, item.source))
    if ignore.any():
        ignore = ndimage.binary_dilation(ignore, iterations=3)
    ignore = (ignore & ~taken) | unknown
    return {"image": canvas.image, "ignore": ignore, "rows": rows, "kind": canvas.kind, "level": canvas.level}


def write_shard(scenes, path):
    """Write scenes as one uncompressed npz that appears whole or not at all."""
    rows = [r for s in scenes for r in s["rows"]]
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 7
    partial = path.with_name(f".{path.name}")  # no reader takes a hidden file for a shard
    np.savez(
        partial,
        image=np.stack([s["image"] for s in scenes]),
        ignore=np.packbits(np.stack([s["ignore"] for s in scenes]), axis=-1),
        count=np.array([len(s["rows"]) for s in scenes], np.int32),
        kind=np.array([s["kind"] for s in scenes], np.uint8),
        level=np.array([s["level"] for s in scenes], np.uint8),
        box=np.array(columns[0], np.float32).reshape(-1, 4),
        mask56=np.array(columns[1], np.uint8).reshape(-1, 56, 56),
        p_spiral=np.array(columns[2], np.float32),
        class_weight=np.array(columns[3], np.float32),
        area=np.array(columns[4], np.float32),
        visible=np.array(columns[5], np.float32),
        source=np.array(columns[6], np.int32),
    )
    os.replace(partial, path)


_COMPOSER = {}


def make_shard(task):
    """Compose and write one shard; a shard that exists is left alone.

    Parameters
    ----------
    task : tuple
        (split, cache, out, seed, number of the shard, scenes in it).
    """
    split, cache, out, seed, number, size = task
    path = Path(out) / f"scenes_{split}_{seed}_{number:04d}.npz"
    if path.exists():
        return path
    if split not in _COMPOSER:
        _COMPOSER[split] = Composer(split, cache)
        _COMPOSER[split].build_pools(seed)
    composer = _COMPOSER[split]
    scenes = [finish(composer.compose(np.random.default_rng([seed, number, i]))) for i in range(size)]
    write_shard(scenes, path)
    return path


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--count", required=True, type=int, help="scenes; whole shards of 256 are written")
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--split", default="train", choices=("train", "val", "test"))
    parser.add_argument("--cache", type=Path, help="where stamps and sky are kept (default: beside --out)")
    parser.add_argument("--jobs", type=int, default=1)
    given = vars(parser.parse_args(arguments))
    return exit_code(lambda: compose(**given))


def compose(out, count, seed, split, cache, jobs):
    """Make stamps, sky and scenes; see the command line."""
    cache = cache or out.resolve().parent
    out.mkdir(parents=True, exist_ok=True)
    stamps_module.build(split, cache / "stamps", jobs)
    sky_module.build(split, cache / "sky")
    tasks = [
        (split, cache, out, seed, number, min(SHARD, count - first))
        for number, first in enumerate(range(0, count, SHARD))
    ]
    start, done = time.time(), 0
    with ProcessPoolExecutor(jobs) if jobs > 1 else contextlib.nullcontext() as pool:
        shards = pool.map(make_shard, tasks) if pool else map(make_shard, tasks)
        for path, task in zip(shards, tasks, strict=True):
            done += task[-1]
            print(f"{path.name}  {done / (time.time() - start):.1f} scenes/s", flush=True)


if __name__ == "__main__":
    sys.exit(main())

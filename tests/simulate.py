"""Paint a field that looks like an SDSS colour image, with the truth about every galaxy in it.

    image, truth = simulate_field((512, 512), n_spiral=4, n_elliptical=4, n_star=20, seed=1)

Fluxes are nanomaggies (nmgy, zero point 22.5 mag), noise and colours those of SDSS imaging of run 4192, the
rendering SDSS's own recipe: i, r, g to red, green, blue with scales 0.4 * (5, 6.5, 9), an asinh of 2.25 times
their sum (Lupton et al. 2004, PASP 116, 133), hue kept where a channel saturates, and JPEG compression.
"""

import io

import numpy as np
from astropy.table import Table
from PIL import Image
from scipy.ndimage import center_of_mass, find_objects, gaussian_filter

BANDS = ("g", "r", "i")
SCALES = {"i": 0.4 * 5.0, "r": 0.4 * 6.5, "g": 0.4 * 9.0}  # per nmgy
ASINH = 2.25
SKY_NOISE = {"g": 0.019, "r": 0.028, "i": 0.045}  # nmgy per pixel, rms
ELECTRONS = {"g": 1270.0, "r": 930.0, "i": 750.0}  # per nmgy, for the noise of the objects themselves
PIXEL_SCALE = 0.396127  # arcsec
PSF_SIGMA = 3.0 / 2.3548  # pixels; FWHM 3 px
MOFFAT_BETA = 3.5  # of the wings of stars
FOOTPRINT_NOISE = 1.5  # a galaxy's mask is where its r flux is above this many times the sky noise
OVERSAMPLE = 3
MARGIN = 12  # pixels between a galaxy's centre and the image border, at least


def simulate_field(shape, n_spiral, n_elliptical, n_star, seed, n_faint=0, radius=(3.0, 20.0)):
    """Paint spirals, ellipticals and stars on noisy sky.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns.
    n_spiral, n_elliptical, n_star : int
        How many of each.
    seed : int
        Of everything random.
    n_faint : int
        Further galaxies, small ones of r = 20 to 22, as every real image is full of.
    radius : tuple of float
        Smallest and largest half-light radius in pixels; small ones are commoner.

    Returns
    -------
    image : uint8 array, shape (H, W, 3)
        The red, green and blue (i, r, g) picture.
    truth : `~astropy.table.Table`
        A row for each galaxy: x, y (centroid of its r light within the mask, 0-based pixels), class, mag_r,
        flux (nmgy in r), r50 (pixels), area (pixels above the noise), and the mask as a crop (bool array)
        with its origin y0, x0. ``truth.meta["stars"]`` is a table of x, y, mag_r.
    """
    rng = np.random.default_rng(seed)
    planes = {band: np.zeros(shape, np.float64) for band in BANDS}
    rows, taken = [], []
    kinds = [("spiral", radius)] * n_spiral + [("elliptical", radius)] * n_elliptical
    kinds += [(kind, None) for kind in rng.choice(["spiral", "elliptical"], n_faint)]
    for kind, sizes in kinds:
        galaxy = _spiral(rng, sizes) if kind == "spiral" else _elliptical(rng, sizes)
        x, y = _free_place(rng, shape, taken, galaxy["reach"])
        rows.append(_add_galaxy(planes, galaxy, x, y, kind))
    stars = [_add_star(planes, rng, shape, taken) for _ in range(n_star)]
    truth = Table(rows=rows, names=list(rows[0]) if rows else None)
    truth.meta["stars"] = Table(rows=stars, names=("x", "y", "mag_r"), dtype=(float, float, float))
    return _jpeg(render(_observe(planes, rng))), truth


def render(planes):
    """Turn g, r, i in nmgy into an SDSS-like uint8 picture.

    Parameters
    ----------
    planes : dict of 2-D array
        Sky-subtracted nmgy per pixel by band.

    Returns
    -------
    uint8 array, shape (H, W, 3)
        Red, green and blue from i, r and g.
    """
    rgb = np.stack([planes[band] * SCALES[band] for band in ("i", "r", "g")], axis=-1)
    total = np.maximum(rgb.sum(axis=-1), 1e-9)
    rgb *= (np.arcsinh(ASINH * total) / (ASINH * total))[..., None]
    rgb /= np.maximum(rgb.max(axis=-1), 1.0)[..., None]
    return (np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def _observe(planes, rng):
    """Add the noise of the sky and of the objects' own light, and subtract the median as sky."""
    noisy = {}
    for band, flux in planes.items():
        sigma = np.sqrt(SKY_NOISE[band] ** 2 + np.maximum(flux, 0) / ELECTRONS[band])
        noisy[band] = flux + rng.normal(size=flux.shape) * sigma - np.median(flux)
    return noisy


def _jpeg(image):
    """Compress and decode once, as survey pictures come."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return np.asarray(Image.open(buffer))


def _radius_and_magnitude(rng, sizes, brightness):
    """Draw a half-light radius (px) and the r magnitude that goes with a mean surface brightness in it."""
    if sizes is None:
        return rng.uniform(1.0, 2.5), rng.uniform(20.0, 22.0)
    low, high = np.log(sizes)
    r50 = np.exp(low + (high - low) * rng.uniform() ** 1.7)
    area = 2 * np.pi * (r50 * PIXEL_SCALE) ** 2  # arcsec^2; half of the light lies in half of this
    return r50, rng.normal(*brightness) - 2.5 * np.log10(area)


def _elliptical(rng, sizes):
    """Draw an early-type galaxy: Sersic index about 4, red, smooth."""
    r50, mag_r = _radius_and_magnitude(rng, sizes, (20.6, 0.3))
    half = int(np.clip(7 * r50, 16, 160))
    y, x = _stamp_grid(half, rng)
    axis_ratio = rng.uniform(0.55, 1.0)
    radius = _ellipse_radius(y, x, axis_ratio, rng.uniform(0, np.pi))
    profile = _bin(_sersic(radius, r50, rng.normal(4.0, 0.5)) * _fade(radius, half))
    colours = rng.normal(0.88, 0.07), rng.normal(0.40, 0.03)
    return _galaxy(dict.fromkeys(BANDS, profile), mag_r, colours, r50, half)


def _spiral(rng, sizes):
    """Draw a late-type galaxy: exponential disc with logarithmic arms, knots of young stars, red bulge."""
    r50, mag_r = _radius_and_magnitude(rng, sizes, (21.3, 0.4))
    scale = r50 / 1.678  # of the exponential disc
    half = int(np.clip(5 * r50, 16, 160))
    y, x = _stamp_grid(half, rng)
    axis_ratio, angle = rng.uniform(0.3, 1.0), rng.uniform(0, np.pi)
    radius = _ellipse_radius(y, x, axis_ratio, angle)
    disc = np.exp(-radius / scale) * _fade(radius, half)
    arms = disc * _arm_pattern(rng, y, x, radius, axis_ratio, angle, scale)
    bulge = _sersic(_ellipse_radius(y, x, max(axis_ratio, 0.7), angle), 0.25 * r50, 2.0)
    weight = rng.uniform(0.08, 0.3), rng.uniform(0.45, 0.8)  # bulge to total, arms to disc, in r
    parts = [_unit(_bin(part)) for part in (bulge, disc, arms)]
    profiles = {}
    for band, bluer in (("g", 1.3), ("r", 1.0), ("i", 0.8)):
        in_bulge, in_arms = weight[0] / bluer**1.5, min(weight[1] * bluer, 0.95)
        young_and_old = (1 - in_arms) * parts[1] + in_arms * parts[2]
        profiles[band] = in_bulge * parts[0] + (1 - in_bulge) * young_and_old
    return _galaxy(profiles, mag_r, (rng.normal(0.50, 0.09), rng.normal(0.25, 0.04)), r50, half)


def _arm_pattern(rng, y, x, radius, axis_ratio, angle, scale):
    """Brightness of the arms relative to the disc: patchy logarithmic spirals starting outside the bulge."""
    along, across = _rotate(y, x, angle)
    phi = np.arctan2(across / axis_ratio, along)
    n_arms, pitch = rng.choice([2, 2, 2, 3, 4]), np.radians(rng.uniform(12, 28))
    wound = np.log(np.maximum(radius, 0.1) / scale) / np.tan(pitch) * rng.choice([-1, 1])
    ridge = 0.5 + 0.5 * np.cos(n_arms * (phi - wound) + rng.uniform(0, 2 * np.pi))
    patches = gaussian_filter(rng.normal(size=radius.shape), 0.35 * scale * OVERSAMPLE)
    patches = np.exp(0.5 * patches / patches.std())
    return ridge**3 * patches * (1 - np.exp(-((radius / (0.7 * scale)) ** 2))) + 1e-3


def _stamp_grid(half, rng):
    """Oversampled coordinates of a stamp of 2 half + 1 pixels, from a centre within its middle pixel."""
    line = (np.arange((2 * half + 1) * OVERSAMPLE) + 0.5) / OVERSAMPLE - half - 0.5
    dy, dx = rng.uniform(-0.5, 0.5, 2)
    return np.meshgrid(line - dy, line - dx, indexing="ij")


def _rotate(y, x, angle):
    """Coordinates along and across an axis at `angle` from +x."""
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _ellipse_radius(y, x, axis_ratio, angle):
    """Semi-major axis of the ellipse through each point."""
    along, across = _rotate(y, x, angle)
    return np.hypot(along, across / axis_ratio)


def _sersic(radius, r50, index):
    """Sersic profile (b_n after Ciotti & Bertin 1999), softened within half a subpixel of the centre."""
    b = 2 * index - 1 / 3 + 4 / (405 * index)
    return np.exp(-b * (np.hypot(radius, 0.5 / OVERSAMPLE) / r50) ** (1 / index))


def _fade(radius, half):
    """Go smoothly to zero before the border of the stamp."""
    return np.clip(4 * (1 - radius / half), 0, 1)


def _bin(stamp):
    """Average the subpixels of each pixel."""
    n = stamp.shape[0] // OVERSAMPLE
    return stamp.reshape(n, OVERSAMPLE, n, OVERSAMPLE).mean(axis=(1, 3))


def _unit(stamp):
    """Scale to a sum of one."""
    return stamp / stamp.sum()


def _galaxy(profiles, mag_r, colours, r50, half):
    """Scale profiles to fluxes, blur them by the PSF, and see how far the object reaches above the noise."""
    magnitudes = {"g": mag_r + colours[0], "r": mag_r, "i": mag_r - colours[1]}
    stamps = {}
    for band in BANDS:
        blurred = gaussian_filter(_unit(profiles[band]), PSF_SIGMA, mode="constant")
        stamps[band] = blurred * 10 ** (0.4 * (22.5 - magnitudes[band]))
    mask = stamps["r"] > FOOTPRINT_NOISE * SKY_NOISE["r"]
    reach = max(np.sqrt(mask.sum() / np.pi), 3.0)
    return {"stamps": stamps, "mask": mask, "mag_r": mag_r, "r50": r50, "half": half, "reach": reach}


def _free_place(rng, shape, taken, reach):
    """Find an integer place whose object keeps clear of those before it; give up politely in a crowd."""
    for _ in range(200):
        x, y = rng.integers(MARGIN, shape[1] - MARGIN), rng.integers(MARGIN, shape[0] - MARGIN)
        if all(np.hypot(x - u, y - v) > 1.2 * (reach + r) for u, v, r in taken):
            break
    taken.append((x, y, reach))
    return int(x), int(y)


def _paste(plane, stamp, y0, x0):
    """Add a stamp whose first pixel falls on (y0, x0), as far as it lies in the plane."""
    rows = slice(max(y0, 0), min(y0 + stamp.shape[0], plane.shape[0]))
    columns = slice(max(x0, 0), min(x0 + stamp.shape[1], plane.shape[1]))
    plane[rows, columns] += stamp[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
    return rows, columns


def _add_galaxy(planes, galaxy, x, y, kind):
    """Paint a galaxy and return its row of the truth."""
    y0, x0 = y - galaxy["half"], x - galaxy["half"]
    for band in BANDS:
        rows, columns = _paste(planes[band], galaxy["stamps"][band], y0, x0)
    seen = np.zeros_like(galaxy["mask"])
    seen[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0] = True
    seen &= galaxy["mask"]
    light = np.where(seen, galaxy["stamps"]["r"], 0) if seen.any() else galaxy["stamps"]["r"]
    centre = center_of_mass(light)
    (box,) = find_objects(seen.astype(np.uint8)) or [(slice(0, 0), slice(0, 0))]
    return {
        "x": x0 + float(centre[1]),
        "y": y0 + float(centre[0]),
        "class": kind,
        "mag_r": float(galaxy["mag_r"]),
        "flux": float(10 ** (0.4 * (22.5 - galaxy["mag_r"]))),
        "r50": float(galaxy["r50"]),
        "area": int(seen.sum()),
        "y0": y0 + box[0].start,
        "x0": x0 + box[1].start,
        "mask": np.ascontiguousarray(seen[box]),
    }


def _add_star(planes, rng, shape, taken):
    """Paint a star clear of the galaxies; counts rise with magnitude as at high galactic latitude."""
    mag_r = 21.0 + np.log10(rng.uniform(10**-1.5, 1.0)) / 0.23
    half = 40 if mag_r < 17 else 16
    x, y = _free_place(rng, shape, taken, 4.0)
    dx, dy = rng.uniform(-0.5, 0.5, 2)
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    alpha = PSF_SIGMA * 2.3548 / (2 * np.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    stamp = _unit((1 + ((u - dx) ** 2 + (v - dy) ** 2) / alpha**2) ** -MOFFAT_BETA)
    dwarf = rng.uniform() < np.interp(mag_r, [15, 20], [0.05, 0.6])  # an M dwarf: common among faint stars
    g_r = rng.normal(1.35, 0.12) if dwarf else rng.normal(0.45, 0.12)
    r_i = 0.7 + abs(rng.normal(0.0, 0.5)) if dwarf else 0.35 * g_r
    for band, magnitude in (("g", mag_r + g_r), ("r", mag_r), ("i", mag_r - r_i)):
        _paste(planes[band], stamp * 10 ** (0.4 * (22.5 - magnitude)), y - half, x - half)
    return x + dx, y + dy, mag_r

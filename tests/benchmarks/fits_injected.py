"""Stars catalogued and galaxies lost, of artificial ones added to the linear bands of real frames, for three PSFs.

    python tests/benchmarks/fits_injected.py --out injected.json

Each frame is searched as it is and convolved to 1.3 and 1.6 times the width of its PSF. White noise is added after the
convolution, so that each pixel is as noisy as it was. Objects are added to all bands through the PSF that is measured
in each; what lies on an object of the field does not count.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.stats import mad_std
from catalogues import options, rate, report, said
from scipy import ndimage

import surveycat
from surveycat.bands import gather
from surveycat.image import open_image
from surveycat.inject import Field

FRAMES = {
    "run4192": "sdss_351.65+0.10_run4192/fpC-004192-{}4-0300.fit.gz",
    "run6377": "sdss_351.65+0.10_run6377/fpC-006377-{}4-0399.fit.gz",
}
WIDTHS = (1.0, 1.3, 1.6)  # of the PSF, in units of the frame's own
MAGNITUDES = (17.0, 21.0)
SIZES = (1.4, 5.6)  # half-light radius before seeing, px: what galaxies of these magnitudes have
GALAXY_LIMITS, STAR_LIMITS = (19.5, 20.0), (19.0, 20.0)
EDGES = (17.0, 18.0, 19.0, 19.5, 20.0, 20.5, 21.0)


def fwhm_of(paths):
    """Width of the PSF of the reference band of frames, px."""
    (image,), _ = gather(paths)
    with open_image(image) as opened:
        return Field.of(opened).psf.fwhm


def convolved(path, sigma, folder, seed):
    """Write a frame convolved with a Gaussian, its pixels as noisy as they were.

    Parameters
    ----------
    path : Path
    sigma : float
        Of the Gaussian, px.
    folder : Path
        For the new file.
    seed : int
        Of the noise.

    Returns
    -------
    Path
        The new file; its header is that of the frame.
    """
    with fits.open(path) as hdus:
        data, header = hdus[0].data.astype(np.float32), hdus[0].header.copy()
    smooth = ndimage.gaussian_filter(data, sigma)
    # in differences of neighbours but one or two the sky and wide objects cancel
    before, after = (mad_std(image[:, 8:] - image[:, :-8]) / np.sqrt(2) for image in (data, smooth))
    noise = np.random.default_rng(seed).normal(0, np.sqrt(before**2 - after**2), data.shape)
    for keyword in ("BZERO", "BSCALE"):
        header.remove(keyword, ignore_missing=True)
    out = folder / path.name.replace(".fit.gz", ".fits")
    fits.PrimaryHDU((smooth + noise).astype(np.float32), header).writeto(out)
    return out


def one(paths, count, seed, weights):
    """Objects added to one image and what became of them, less those on an object of the field."""
    result = surveycat.inject(
        paths, galaxies=count, stars=count, magnitudes=MAGNITUDES, sizes=SIZES, seed=seed, weights=weights
    )
    objects = result.objects[~np.asarray(result.objects["on_object"])]
    names = ("kind", "magnitude", "half_light_radius", "found", "score")
    table = pd.DataFrame({name: np.asarray(objects[name]) for name in names})
    return table.assign(fwhm=objects.meta["psf_fwhm"])


def rate_between(table, kind, low, high):
    """Rate of artificial objects of a kind and a range of magnitudes that have a row."""
    chosen = table[(table["kind"] == kind) & (table["magnitude"] >= low) & (table["magnitude"] < high)]
    return rate(chosen["found"].sum(), len(chosen))


def to_limits(table):
    """Galaxies found and stars catalogued that are brighter than the limits asked for."""
    asked = [("galaxy", limit) for limit in GALAXY_LIMITS] + [("star", limit) for limit in STAR_LIMITS]
    return {f"{kind} r < {limit:g}": rate_between(table, kind, 0, limit) for kind, limit in asked}


def by_magnitude(table):
    """The same by magnitude."""
    bins = [(kind, *edges) for kind in ("galaxy", "star") for edges in zip(EDGES[:-1], EDGES[1:], strict=True)]
    return {f"{kind} r {low:g} to {high:g}": rate_between(table, kind, low, high) for kind, low, high in bins}


def tell(figures):
    """Print rates, one a line."""
    for name, figure in figures.items():
        print(f"  {name:22s} {said(figure)}", flush=True)


def main():
    """Add, search, print."""
    parser = options(__doc__)
    parser.add_argument("--count", type=int, default=178, help="galaxies, and stars, for each frame and width")
    parser.add_argument("--frames", nargs="+", choices=FRAMES, default=list(FRAMES), help="which to search")
    asked = parser.parse_args()
    tables = []
    for frame, name in enumerate(asked.frames):
        paths = [asked.data / "fields" / FRAMES[name].format(band) for band in "irg"]
        width = fwhm_of(paths)
        for number, factor in enumerate(WIDTHS):
            with tempfile.TemporaryDirectory() as folder:
                sigma, seed = width * np.sqrt((factor**2 - 1) / (8 * np.log(2))), 10 * frame + number
                used = paths if factor == 1 else [convolved(path, sigma, Path(folder), seed) for path in paths]
                found = one(used, asked.count, seed, asked.weights)
            print(f"{name}, PSF {factor:g} times as wide, {found['fwhm'].iloc[0]} px:", flush=True)
            tell(to_limits(found))
            tables.append(found.assign(frame=name, width=factor))
    table = pd.concat(tables)
    figures = {"all": to_limits(table) | by_magnitude(table)}
    for factor, part in table.groupby("width"):
        figures[f"PSF {factor:g} times as wide"] = to_limits(part) | by_magnitude(part)
    for group, values in figures.items():
        print(group)
        tell(values)
    report(figures, asked.out)


if __name__ == "__main__":
    main()

"""Make examples/field.jpg from the SDSS frames of run 4192, camcol 4, field 300.

    python examples/make_field.py FOLDER [OUT]

FOLDER holds ``fpC-004192-{g,r,i}4-0300.fit.gz``, corrected frames of the Sloan Digital Sky Survey
(https://www.sdss.org, Data Release 7). The picture is 1000 x 1000 pixels of 0.396127", north up and east
left, with RA 351.65, Dec +0.10 at 0-based pixel (500, 500), as SkyServer would make it.

Credit: Sloan Digital Sky Survey. Funding for the SDSS and SDSS-II was provided by the Alfred P. Sloan
Foundation, the Participating Institutions, the National Science Foundation, the U.S. Department of Energy,
the National Aeronautics and Space Administration, the Japanese Monbukagakusho, the Max Planck Society, and
the Higher Education Funding Council for England. The SDSS was managed by the Astrophysical Research
Consortium for the Participating Institutions.
"""

import argparse
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.stats import SigmaClip
from photutils.background import Background2D, MedianBackground
from PIL import Image
from reproject import reproject_interp
from scipy import ndimage

from surveycat.wcs import header_wcs, tan_wcs

SHAPE = 1000, 1000
RA, DEC = 351.65, 0.10
FRAME = "fpC-004192-{band}4-0300.fit.gz"
BANDS = "irg"  # shown as red, green, blue
SCALES = 0.4 * np.array([5.0, 6.5, 9.0])  # brightness per nanomaggy in i, r and g, as in SDSS's frame-irg pictures
NONLINEARITY = 2.25
SATURATION = 30.0  # nanomaggies per pixel
BLEEDING = 6  # pixels around saturated ones whose values are not trusted either
SKY_MESH = 256
JPEG_QUALITY = 92


def read_frame(path):
    """Sky-subtracted frame in nanomaggies per pixel, and its WCS; FLUX20 is the counts at 20 mag."""
    with fits.open(path) as hdus:
        header = hdus[0].header
        counts = hdus[0].data.astype(np.float32) - header["SOFTBIAS"]
    clip = SigmaClip(sigma=3.0)
    above = counts > np.median(counts) + 3 * np.std(clip(counts))
    objects = ndimage.binary_dilation(ndimage.binary_opening(above), iterations=5)
    sky = Background2D(counts, SKY_MESH, mask=objects, sigma_clip=clip, bkg_estimator=MedianBackground())
    return (counts - sky.background) / header["FLUX20"] * 10, header_wcs(header)[0]


def give_saturated_a_colour(nmgy):
    """Where a band is saturated, keep the brightness and take the colour of what is around, as SDSS does."""
    saturated = (nmgy > SATURATION).any(axis=0)
    labels, _ = ndimage.label(ndimage.binary_dilation(saturated, iterations=BLEEDING))
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        around = tuple(slice(max(side.start - 3, 0), side.stop + 3) for side in box)
        here = labels[around] == label
        rim = ndimage.binary_dilation(here, iterations=3) & (labels[around] == 0)
        colour = nmgy[(slice(None), *around)][:, rim].sum(axis=1)
        brightness = np.clip(nmgy[(slice(None), *around)][:, here], 0, None).sum(axis=0)
        nmgy[(slice(None), *around)][:, here] = brightness * (colour / colour.sum())[:, None]


def render(nmgy):
    """Picture of i, r, g in nanomaggies: asinh of the summed brightness, hue kept (SDSS's djs_rgb_make)."""
    brightness = np.clip(nmgy * SCALES[:, None, None], 0, None)
    total = NONLINEARITY * brightness.sum(axis=0)
    colour = brightness * np.where(total > 0, np.arcsinh(total) / np.maximum(total, 1e-9), 1)
    colour /= np.maximum(colour.max(axis=0), 1)
    return np.moveaxis(np.minimum(colour * 256, 255).astype(np.uint8), 0, -1)


def make_field(folder, out):
    """Write the picture."""
    grid = tan_wcs(SHAPE, RA, DEC)
    frames = [read_frame(Path(folder) / FRAME.format(band=band)) for band in BANDS]
    nmgy = np.array([reproject_interp(frame, grid, SHAPE, order="bicubic")[0] for frame in frames])
    nmgy[:, np.isnan(nmgy).any(axis=0)] = 0  # outside the frames: black
    give_saturated_a_colour(nmgy)
    Image.fromarray(render(nmgy)).save(out, quality=JPEG_QUALITY)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the example field from SDSS frames.")
    parser.add_argument("folder", help="folder with fpC-004192-{g,r,i}4-0300.fit.gz")
    parser.add_argument("out", nargs="?", default=Path(__file__).with_name("field.jpg"))
    make_field(**vars(parser.parse_args()))

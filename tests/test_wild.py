"""Every file of `wild`, as users have them: searched, or refused in one clear line; never a traceback."""

import csv
import logging

import pytest
from detectors import BlobDetector

import surveycat
from surveycat.catalog import FLAGS
from surveycat.errors import ImageError

REFUSED = {
    "A/HCG7_SDSS_photo_12arcmin.dat": "not an image but text",
    "A/HCG7_SDSS_spectro.dat": "not an image but text",
    "B/decals_example_a.jpeg": "4 channels (RGBA), 3 (RGB) are needed",
    "C/sep_image.cat": "not an image but text",
    "D/html_error_page.jpg": "not an image but HTML",
    "D/symlink_text.jpg": "not an image but text",
    "D/decals_example_incomplete.fits": "is truncated: 1386164 of 2157312 bytes",
    "D/astropy_zerowidth.fits": "has no image with 2 axes or 3 planes",
    "D/astropy_group.fits": "random groups",
    "D/astropy_validate.fits": "has no image with 2 axes or 3 planes",
    "D/astropy_arange.fits": "11 x 10 x 7",
    "D/astropy_logical_null.fits": "[1] table",
    "D/astropy_stddata.fits": "[1] table",
    "D/astropy_wcs_unit.hdr": "a header without an image",
    "D/astropy_wcs_too_many_pv.hdr": "a header without an image",
    "D/astropy_wcs_outside_sky.hdr": "a header without an image",
    "D/astropy_wcs_defunct_keywords.hdr": "a header without an image",
    "D/astropy_wcs_locale.hdr": "not an image but text",
    "D/astropy_wcs_siponly.hdr": "a header without an image",
    "D/astropy_wcs_2wcses.hdr": "a header without an image",
    "D/nasa_random_groups.fits": "random groups",
    "D/pillow_broken.png": "damaged or truncated PNG",
    "D/pillow_truncated_image.png": "damaged or truncated PNG",
    "D/pillow_png_decompression_dos.png": "damaged or truncated PNG",
    "D/pillow_l_trns.png": "1 channel (grey)",
    "D/pillow_p_16.png": "4 channels (RGBA)",
    "D/pillow_pil123rgba.png": "4 channels (RGBA)",
    "D/pillow_uncompressed_la.png": "2 channels (grey and alpha)",
    "D/pillow_xmp_tags_orientation.png": "4 channels (RGBA)",
    "D/pillow_tRNS_null_1x1.png": "1 channel (palette)",
    "D/pillow_10ct_32bit_128.tiff": "32 bits per channel, 8 are needed",
    "D/pillow_tiff_strip_cmyk_jpeg.tif": "4 channels (CMYK)",
    "D/pillow_multipage.tiff": "1 channel (palette)",
    "D/pillow_hopper.webp": "a WebP file",
    "D/pillow_16bit.cropped.jp2": "a JPEG 2000 file",
    "D/pillow_decompression_bomb.gif": "a GIF file",
}
SAID = {
    "A/sdss_0266.51602.001_0.5_INVERTED.jpg": "if this is a negative, invert it first",
    "A/sdss_0266.51602.001_0.1_oversampled.jpg": "of its resolution: its PSF is",
    "A/sdss_0266.51602.001_0.25_GLS.jpg": "searched at 1/2 of its resolution",
    "C/galsim_tnx.fits": "the distortion of TNX is not applied",
    "C/galsim_sipsample.fits": "SIP distortion is applied",
    "C/astropy_dist_lookup_acs.fits.gz": "[1] SCI of 4 images in the file is searched",
    "C/astropy_test0_mef.fits": "[2] SCI of 4 images",
    "C/decals_cube_native0.262.fits": "bands z, r, g are shown as R, G, B",
    "D/hips_Npix132_unpadded.fits": "not padded to whole blocks",
    "D/pillow_hopper_orientation_2.jpg": "EXIF orientation 2 is not applied",
    "D/pillow_hopper_orientation_8.jpg": "EXIF orientation 8 is not applied",
}
NO_POSITION = "no sky position: the catalogue will be in pixels only"
WITH_POSITION = {"B/avm_eso1723a_320.jpg": "avm", "D/afw_small_MI_corrupt.fits": "header"} | dict.fromkeys(
    ("D/astropy_header_newlines.fits", "D/astropy_checksum_false.fits"), "header"
)


LARGE = {"A", "B"}  # of these a corner is searched, but for files of which something is said


def outcome(path, caplog):
    """What `run` makes of a file: the table or the error, and what it says."""
    caplog.clear()
    name = f"{path.parent.name}/{path.name}"
    region = "0,0,300,240" if path.parent.name in LARGE and name not in SAID else None
    try:
        with caplog.at_level(logging.INFO, "surveycat"):
            table = surveycat.run(path, detector=BlobDetector(60, 30, 1.0), region=region)
        return table, "\n".join(caplog.messages)
    except ImageError as error:
        return error, str(error)


@pytest.mark.parametrize("group", "ABCD")
def test_all_files(shared_data, caplog, group):
    """Each gets what its row in the index says: a catalogue with the right kind of position, or its own error."""
    folder = shared_data / "wild"
    with open(folder / "index.csv", newline="") as file:
        names = [row["path"] for row in csv.DictReader(file) if row["group"] == group]
    for name in names:
        found, said = outcome(folder / name, caplog)
        if name in REFUSED:
            assert isinstance(found, ImageError) and REFUSED[name] in said and "\n" not in said, (name, said)
            assert name in said
            continue
        assert not isinstance(found, Exception), (name, said)
        assert SAID.get(name, "") in said, (name, said)
        source = found.meta["inputs"][0]["wcs_source"]
        on_sky = name.startswith("C/") and name not in ("C/sep_image.fits", "C/statmorph_slice.fits")
        assert source == WITH_POSITION.get(name, "header" if on_sky else None), name
        assert (NO_POSITION in said) == (source is None) == ("ra" not in found.colnames), name
        negative = "INVERTED" in name
        assert not negative or (found["flags"] >> FLAGS["outside_domain"] & 1 == 1).all()


def test_the_index_has_all_of_them(shared_data):
    """The lists above name files that exist, and the folder holds the 94 that the table is about."""
    with open(shared_data / "wild" / "index.csv", newline="") as file:
        names = {row["path"] for row in csv.DictReader(file)}
    assert len(names) == 94
    assert set(REFUSED) | set(SAID) | set(WITH_POSITION) <= names

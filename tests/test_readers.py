"""Files of every kind open, or fail in one line that names the file, the fault and the way out."""

import bz2
import csv
import gzip
import shutil

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image as Pillow

from surveycat.errors import ImageError, SurveycatError
from surveycat.image import open_image
from surveycat.readers import split_extension
from surveycat.scratch import Scratch

rng = np.random.default_rng(3)
PICTURE = rng.integers(0, 256, (40, 60, 3), np.uint8)
COUNTS = rng.normal(100, 5, (50, 70)).astype(np.float32)


def whole(path):
    """All pixels of an image file, as shown."""
    with open_image(path) as image:
        return image.read((0, 0, *image.shape))


def linear(path):
    """All values of the only band of an image file."""
    with open_image(path) as image:
        return image.band(image.bands[0], (0, 0, *image.shape))


# --- pictures ---


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff", "a.PNG", "wrong_name.jpg", "no_name"])
def test_lossless_pictures_come_back(tmp_path, name):
    """Pixels and rows are as stored; the kind of a file is in its bytes, not in its name."""
    kind = "TIFF" if "tif" in name else "PNG"
    Pillow.fromarray(PICTURE).save(tmp_path / name, format=kind)
    np.testing.assert_array_equal(whole(tmp_path / name), PICTURE)


def test_jpeg_equals_pillow(tmp_path):
    """A JPEG is decoded as Pillow does it."""
    Pillow.fromarray(PICTURE).save(tmp_path / "a.jpg")
    np.testing.assert_array_equal(whole(tmp_path / "a.jpg"), np.asarray(Pillow.open(tmp_path / "a.jpg")))


def test_array_files(tmp_path):
    """A .npy file with an RGB array opens like a picture."""
    np.save(tmp_path / "a.npy", PICTURE)
    np.testing.assert_array_equal(whole(tmp_path / "a.npy"), PICTURE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "FITS.fz", "FITS.gz"])
def test_large_images_go_to_scratch(tmp_path, monkeypatch, kind):
    """Decoded to a file and mapped, an image has the same pixels as in memory, and scratch is left clean."""
    path = tmp_path / "a"
    if kind in ("PNG", "JPEG"):
        Pillow.fromarray(rng.integers(0, 256, (700, 30, 3), np.uint8)).save(path, format=kind)
    else:
        data = rng.integers(0, 3000, (3, 700, 30)).astype(np.int16)
        hdu = fits.CompImageHDU(data) if kind == "FITS.fz" else fits.PrimaryHDU(data)
        hdu.writeto(path)
        if kind == "FITS.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    in_memory = whole(path)
    monkeypatch.setattr(Scratch, "large", 0)
    with open_image(path) as image:
        folder = image.source.scratch
        np.testing.assert_array_equal(image.read((0, 0, *image.shape)), in_memory)
    with pytest.raises(FileNotFoundError):
        next(iter(shutil.os.scandir(folder)))


@pytest.mark.parametrize(
    ("array", "mode", "words"),
    [
        (PICTURE[..., 0], "L", "1 channel (grey)"),
        (PICTURE[..., :2], "LA", "2 channels (grey and alpha)"),
        (np.dstack([PICTURE, PICTURE[..., :1]]), "RGBA", "4 channels (RGBA)"),
        (PICTURE[..., 0].astype(np.uint16) * 200, "I;16", "16 bits"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_other_channels_and_depths_are_refused(tmp_path, array, mode, words, kind):
    """1, 2 or 4 channels and 16 bits: what was found, what is needed, and how to convert it."""
    Pillow.fromarray(array).save(tmp_path / "a.png", format=kind)
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a.png")
    message = str(caught.value)
    assert words in message and "a.png" in message and "8-bit RGB" in message and "\n" not in message


def test_16_bit_colour_is_not_cut_to_8(tmp_path):
    """Pillow opens 16-bit RGB as 8 bits without a word; here it is refused."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(6 * 5) for _ in range(4))
    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert Pillow.open(tmp_path / "a.png").mode == "RGB"
    with pytest.raises(ImageError, match="16 bits per channel"):
        open_image(tmp_path / "a.png")


def test_grey_and_cmyk_jpegs_are_refused(tmp_path):
    """JPEGs can have 1 or 4 channels too."""
    Pillow.fromarray(PICTURE[..., 0]).save(tmp_path / "grey.jpg")
    Pillow.fromarray(PICTURE).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name, words in (("grey.jpg", "1 channel"), ("cmyk.jpg", r"4 channels \(CMYK\)")):
        with pytest.raises(ImageError, match=words):
            open_image(tmp_path / name)


def test_orientation_is_said_and_not_applied(tmp_path):
    """Rows stay as stored, for a WCS speaks of stored rows; the log says so."""
    exif = Pillow.Exif()
    exif[274] = 2
    Pillow.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    with open_image(tmp_path / "a.png") as image:
        assert any("orientation 2 is not applied" in note for note in image.notes)
        np.testing.assert_array_equal(image.read((0, 0, 40, 60)), PICTURE)


def test_more_pixels_than_pillow_allows(tmp_path):
    """Pillow takes mosaics of 180 million pixels for an attack; here they are our use.

    Its own limit comes back.
    """
    before = Pillow.MAX_IMAGE_PIXELS
    Pillow.MAX_IMAGE_PIXELS = 100
    try:
        Pillow.fromarray(PICTURE).save(tmp_path / "a.png")
        np.testing.assert_array_equal(whole(tmp_path / "a.png"), PICTURE)
        assert Pillow.MAX_IMAGE_PIXELS == 100
    finally:
        Pillow.MAX_IMAGE_PIXELS = before


# --- FITS ---


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">i4", ">i8", ">u2", ">u4", "u1"])
def test_number_types(tmp_path, dtype):
    """Values of every FITS type, big-endian and with the offset of unsigned numbers, are read as they are."""
    data = np.clip(COUNTS, 0, 250).astype(dtype)
    fits.PrimaryHDU(data).writeto(tmp_path / "a.fits")
    np.testing.assert_allclose(linear(tmp_path / "a.fits"), data.astype(np.float32))


@pytest.mark.parametrize("compressed", [False, True])
def test_scale_zero_and_blank(tmp_path, compressed):
    """BSCALE, BZERO and BLANK count, in compressed files too."""
    stored = rng.integers(-300, 300, (50, 70)).astype(np.int16)
    stored[3, 4:8] = -32768
    hdu = fits.CompImageHDU(stored) if compressed else fits.PrimaryHDU(stored)
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 0.5, 10.0, -32768
    hdu.writeto(tmp_path / "a.fits")
    values = linear(tmp_path / "a.fits")
    expected = stored.astype(np.float32) * 0.5 + 10
    expected[3, 4:8] = np.nan
    np.testing.assert_allclose(values, expected)
    with open_image(tmp_path / "a.fits") as image:
        assert image.blank((3, 0, 4, 70)).nonzero()[1].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("compression", ["RICE_1", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1"])
@pytest.mark.parametrize("planes", [1, 3])
def test_tile_compressed(tmp_path, compression, planes):
    """Every lossless tile compression gives back the values, for images and for cubes of three planes."""
    data = rng.integers(0, 1000, (planes, 300, 70)).astype(np.int16)
    tiles = (1, 64, 64) if compression == "HCOMPRESS_1" else None
    data = data if planes == 3 else data[0]
    tiles = tiles if planes == 3 or tiles is None else tiles[1:]
    fits.CompImageHDU(data, compression_type=compression, tile_shape=tiles).writeto(tmp_path / "a.fits.fz")
    with open_image(tmp_path / "a.fits.fz") as image:
        bands = [image.band(name, (0, 0, 300, 70)) for name in image.bands]
    np.testing.assert_array_equal(bands, np.reshape(data, (planes, 300, 70))[::-1])


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_fits(tmp_path, suffix, pack):
    """.gz and .bz2 are unpacked, whatever their name."""
    fits.PrimaryHDU(COUNTS).writeto(tmp_path / "a.fits")
    for name in ("a.fits" + suffix, "b.fits"):
        (tmp_path / name).write_bytes(pack((tmp_path / "a.fits").read_bytes()))
        np.testing.assert_array_equal(linear(tmp_path / name), COUNTS)


def test_three_planes_are_red_green_blue(tmp_path):
    """The planes are shown in order; where the header names the bands, in the order of their wavelengths."""
    data = rng.normal(0, 1, (3, 40, 40)).astype(np.float32)
    data[0, 10:20, 10:20] += 100
    hdu = fits.PrimaryHDU(data)
    hdu.writeto(tmp_path / "rgb.fits")
    red = whole(tmp_path / "rgb.fits")[12:18, 12:18].mean(axis=(0, 1))
    assert red[0] > 200 and red[1] < 30 and red[2] < 30
    hdu.header["BANDS"] = "grz"
    hdu.writeto(tmp_path / "grz.fits")
    blue = whole(tmp_path / "grz.fits")[12:18, 12:18].mean(axis=(0, 1))
    assert blue[2] > 200 and blue[0] < 30 and blue[1] < 30
    with open_image(tmp_path / "grz.fits") as image:
        assert image.bands == ["g", "r", "z"]
        np.testing.assert_array_equal(image.band("g", (0, 0, 40, 40)), data[0])


def test_8_bit_planes_are_a_picture(tmp_path):
    """An RGB picture kept as FITS is shown as it is."""
    fits.PrimaryHDU(np.moveaxis(PICTURE, -1, 0)).writeto(tmp_path / "a.fits")
    np.testing.assert_array_equal(whole(tmp_path / "a.fits"), PICTURE)
    with open_image(tmp_path / "a.fits") as image:
        assert image.picture and image.bands == ["g", "r", "i"]


def extensions(path):
    """A file with a table, an image without and two with a position, and a cube that is none."""
    on_sky = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -1e-4, "CDELT2": 1e-4}
    fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(3))]),
            fits.ImageHDU(np.full((9, 9), 2.0) + np.eye(9), name="PLAIN"),
            fits.ImageHDU(np.full((9, 9), 3.0) + np.eye(9), fits.Header(on_sky), name="SCI"),
            fits.ImageHDU(np.full((9, 9), 4.0) + np.eye(9), fits.Header({**on_sky, "EXTVER": 2}), name="SCI"),
            fits.ImageHDU(np.zeros((5, 9, 9)), name="CUBE"),
        ]
    ).writeto(path)


@pytest.mark.parametrize(
    ("suffix", "value"),
    [("", 3), ("[2]", 2), ("[PLAIN]", 2), ("[3]", 3), ("[SCI]", 3), ("[SCI,2]", 4), ("[4]", 4)],
)
def test_extensions(tmp_path, suffix, value):
    """An extension is taken by number or name.

    Without one, the first image that has a position, with a note.
    """
    extensions(tmp_path / "a.fits")
    assert linear(f"{tmp_path / 'a.fits'}{suffix}")[0, 1] == value
    with open_image(f"{tmp_path / 'a.fits'}{suffix}") as image:
        assert image.name == f"a.fits{suffix}"
        assert any("[3] SCI of 3 images" in note for note in image.notes) == (suffix == "")


@pytest.mark.parametrize("suffix", ["[9]", "[NAME]", "[SCI,7]", "[1]", "[0]", "[CUBE]", "[ ]"])
def test_wrong_extensions_say_what_there_is(tmp_path, suffix):
    """A wrong extension is answered with those in the file."""
    extensions(tmp_path / "a.fits")
    with pytest.raises(ImageError, match=r"a\.fits.*\[3\] SCI 9 x 9, .*\[5\] CUBE 9 x 9 x 5") as caught:
        open_image(f"{tmp_path / 'a.fits'}{suffix}")
    assert "\n" not in str(caught.value)


def test_pictures_have_no_extensions(tmp_path):
    """Brackets after a picture are a mistake; brackets in the name of a file are not."""
    Pillow.fromarray(PICTURE).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="PNG file has no extensions"):
        open_image(f"{tmp_path / 'a.png'}[1]")
    Pillow.fromarray(PICTURE).save(tmp_path / "b.png[1]", format="PNG")
    assert split_extension(tmp_path / "b.png[1]") == (tmp_path / "b.png[1]", None)
    assert whole(tmp_path / "b.png[1]").shape == PICTURE.shape


def test_not_a_number_everywhere(tmp_path):
    """An image without any data is refused; one good pixel is enough to open it."""
    data = np.full((30, 30), np.nan, np.float32)
    fits.PrimaryHDU(data).writeto(tmp_path / "nan.fits")
    with pytest.raises(ImageError, match=r"nan\.fits has no data"):
        open_image(tmp_path / "nan.fits")
    data[7, 8] = 1
    data[9, 9] = np.inf
    fits.PrimaryHDU(data).writeto(tmp_path / "one.fits")
    with open_image(tmp_path / "one.fits") as image:
        assert (~image.blank((0, 0, 30, 30))).nonzero() == (7, 8)


def test_a_plane_without_data_is_not_blank(tmp_path):
    """A pixel is blank where no band has data."""
    data = np.ones((3, 10, 10), np.float32) * rng.normal(1, 0.1, (3, 10, 10)).astype(np.float32)
    data[0, :, :5] = np.nan
    data[:, 0, 0] = np.nan
    fits.PrimaryHDU(data).writeto(tmp_path / "a.fits")
    with open_image(tmp_path / "a.fits") as image:
        assert image.blank((0, 0, 10, 10)).sum() == 1
        assert np.isnan(image.band("i", (0, 0, 10, 10))).sum() == 50


# --- files that are no images ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<!DOCTYPE html><html>Not found", "not an image but HTML"),
        (b"\n<html>", "not an image but HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        (b"1627.53473.303.jpg", "not an image but text ('1627.53473.303.jpg')"),
        (b"GIF89a" + bytes(50), "is a GIF file"),
        (bytes(100), "not an image of a known kind"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "damaged or truncated JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged or truncated PNG"),
        (b"II*\0" + bytes(50), "damaged or truncated TIFF"),
        (b"SIMPLE  =                    T" + bytes(50), "damaged or truncated FITS"),
        (b"\x1f\x8b\x08\x00" + bytes(50), "damaged or truncated gzip"),
        (gzip.compress(b"hello"), "what is in it is not FITS"),
        (gzip.compress(bytes(9999))[:-9], "what is in it is not FITS"),
        (b"BZh9" + bytes(50), "damaged or truncated bzip2"),
        (b"\x93NUMPY\x01\0", "damaged or truncated npy"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, words):
    """What a failed download leaves behind is recognised and said in one line with the name of the file."""
    (tmp_path / "image.jpg").write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "image.jpg")
    assert words in str(caught.value) and "image.jpg" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    """A name without a file, and a folder."""
    with pytest.raises(ImageError, match=r"missing\.jpg does not exist"):
        open_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match=r"missing\.fits does not exist"):
        open_image(f"{tmp_path}/missing.fits[1]")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("kind", ["a.jpg", "a.png", "a.tif", "a.fits", "a.fits.gz", "a.fits.bz2", "a.fits.fz"])
def test_truncated_files(tmp_path, kind, share):
    """Wherever a download stopped, the answer is one line, and never a picture that is partly grey."""
    path = tmp_path / kind
    if "fits" not in kind:
        Pillow.fromarray(PICTURE).save(path)
    elif kind == "a.fits.fz":
        fits.CompImageHDU(rng.integers(0, 3000, (300, 300)).astype(np.int16)).writeto(path)
    else:
        fits.PrimaryHDU(rng.normal(0, 1, (100, 100)).astype(np.float32)).writeto(tmp_path / "whole.fits")
        pack = {"a.fits": bytes, "a.fits.gz": gzip.compress, "a.fits.bz2": bz2.compress}[kind]
        path.write_bytes(pack((tmp_path / "whole.fits").read_bytes()))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert kind in str(caught.value) and "\n" not in str(caught.value)


# --- arrays ---


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3)),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    """Shape and type of a wrong array are named."""
    with pytest.raises(ImageError, match=rf"shape \({', '.join(map(str, array.shape))}\) and type {array.dtype}"):
        open_image(array)


# --- files from the wild ---

OPENS = {
    "D/afw_small_MI_corrupt.fits",
    "D/astropy_checksum_false.fits",
    "D/astropy_double_ext.fits",
    "D/astropy_header_newlines.fits",
    "D/hips_Npix132_unpadded.fits",
    "D/hips_Npix691539_scaled.fits",
    "D/nomtam_test_dup.fits",
    "D/pillow_hopper_bigtiff.tif",
    "D/pillow_hopper_orientation_2.jpg",
    "D/pillow_hopper_orientation_8.jpg",
    "D/pillow_icc_profile_big.jpg",
    "D/pillow_jpeg_ff00_header.jpg",
    "D/pillow_truncated_app14.jpg",
}
REFUSED_ELSEWHERE = {"B/decals_example_a.jpeg"}  # a PNG with 4 channels


def test_wild_files(shared_data):
    """Files from public repositories: those of groups A to C open, broken ones open or give one line.

    No traceback.
    """
    wild = shared_data / "wild"
    with open(wild / "index.csv", newline="") as file:
        names = [row["path"] for row in csv.DictReader(file)]
    names = [name for name in names if not name.endswith((".dat", ".cat", ".hdr"))]
    assert len(names) > 80
    for name in names:
        expected = name in OPENS if name.startswith("D/") else name not in REFUSED_ELSEWHERE
        try:
            picture = whole(wild / name)
            assert picture.ndim == 3 and picture.dtype == np.uint8
        except SurveycatError as error:
            assert not expected, error
            assert "\n" not in str(error) and name in str(error)
        else:
            assert expected, f"{name} opened"


def test_wild_twins(shared_data):
    """The same plate, stored in two ways, has the same values and the same picture."""
    plain, rice = (shared_data / "wild" / "C" / name for name in ("astropy_m13.fits", "astropy_m13_rice.fits"))
    np.testing.assert_array_equal(linear(plain), linear(rice))
    np.testing.assert_array_equal(whole(plain), whole(rice))
    tpv, flip = (shared_data / "wild" / "C" / name for name in ("galsim_tpv.fits.gz", "galsim_tanflip.fits"))
    np.testing.assert_array_equal(linear(tpv), linear(flip))

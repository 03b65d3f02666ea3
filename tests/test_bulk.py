"""Bulk runs: every row of the list is accounted for, whatever happens on the way, and rows are those of `run`."""

import contextlib
import json
import logging
import shutil
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
from bulk_fixtures import (
    FIRST,
    QUICK,
    Spec,
    killed_again_and_again,
    rows_of,
    same_datasets,
    survey,
    write_cutouts,
    write_list,
)
from click.testing import CliRunner
from detectors import BAD, BlobDetector, Choking
from PIL import Image
from skyserver_loopback import Loopback, Sky, jpeg
from test_sampling import starry

import surveycat
from surveycat import cli
from surveycat.bulk import bulk
from surveycat.dispatch import network_of
from surveycat.errors import OptionError, OutputError, RunFailed
from surveycat.mosaic import avm_packet, with_xmp
from surveycat.skyserver import SCALE
from surveycat.tablefile import read_table
from surveycat.wcs import tan_wcs

MODULE = sys.modules["surveycat.bulk"]  # `surveycat.bulk` is the function
BLOBS = {"detector": BlobDetector(threshold=60)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A list of 24 targets with their cutouts and their dataset."""
    folder = tmp_path_factory.mktemp("small")
    targets, sky = survey(24)
    names = [f"class {i}" for i in range(24)]
    listed = write_list(folder / "list.csv", targets, gz2class=names, z=np.arange(24) / 100)
    cutouts = write_cutouts(folder / "cutouts", targets, sky)
    manifest = bulk(listed, cutouts, folder / "out", keep=["gz2class", "z"], **BLOBS)
    return folder, targets, sky, manifest


# What is in the dataset ------------------------------------------------------------------------------------


def test_rows_are_those_of_run(small):
    """Each cutout's rows are what `surveycat.run` gives for that file at that position."""
    folder, targets, _, _ = small
    rows = rows_of(folder / "out")
    assert len(rows) > 24
    for name, ra, dec in targets[:6]:
        table = surveycat.run(folder / "cutouts" / f"{name}.jpg", ra=ra, dec=dec, pixel_scale=SCALE, **BLOBS)
        mine = rows.filter(pyarrow.compute.equal(rows["cutout_id"], name)).sort_by([("x", "ascending")])
        table.sort("x")
        assert len(mine) == len(table)
        for column in table.colnames:
            if column in ("id", "host"):
                continue
            expected, actual = np.asarray(getattr(table[column], "value", table[column])), mine[column].to_pylist()
            if expected.dtype == object:
                assert all((np.float32(a) == e).all() for a, e in zip(actual, expected, strict=True)), column
            elif column == "s_region":
                assert all(len(a.split()) == len(e.split()) for a, e in zip(actual, expected, strict=True))
            elif expected.dtype.kind == "f":
                tolerance = 1e-8 if column in ("ra", "dec") else 1e-4
                assert np.allclose(np.array(actual), expected, rtol=1e-5, atol=tolerance, equal_nan=True), column
            else:
                assert actual == expected.tolist(), column


def test_every_target_is_accounted_for(small):
    """Counts add up; the row on a target carries its id and the columns kept; the others are in unmatched."""
    folder, targets, _, manifest = small
    counts = manifest["counts"]
    assert counts["targets"] == 24 == counts["detected"] + counts["undetected"] + counts["failed"]
    assert json.loads((folder / "out" / "manifest.json").read_text()) == manifest
    rows = rows_of(folder / "out").to_pylist()
    on_target = {row["target_id"]: row for row in rows if row["is_target"]}
    missed = set(pyarrow.parquet.read_table(folder / "out" / "unmatched.parquet")["id"].to_pylist())
    assert missed == {FIRST + i for i in range(2, 24, 7)} and counts["undetected"] == len(missed)
    assert set(on_target) == {name for name, _, _ in targets} - missed
    for name, row in on_target.items():
        i = name - FIRST
        assert row["cutout_id"] == name and row["gz2class"] == f"class {i}" and row["z"] == i / 100
        assert row["target_separation"] < 1
        assert np.hypot((row["ra"] - targets[i][1]) * np.cos(0.1), row["dec"] - targets[i][2]) * 3600 < 1
    assert all(row["target_id"] == 0 and row["gz2class"] == "" for row in rows if not row["is_target"])
    assert sum(part["rows"] for part in manifest["partitions"]) == len(rows) == counts["detections"]


def test_a_galaxy_seen_twice_is_counted_once(small):
    """Neighbouring targets show each other: rows of both views, one of them primary, that on the target."""
    folder, targets, sky, _ = small
    rows = rows_of(folder / "out").to_pylist()
    seen_twice = 0
    for ra, dec, *_ in sky.galaxies:
        views = [r for r in rows if np.hypot((r["ra"] - ra) * np.cos(0.1), r["dec"] - dec) * 3600 < 2]
        seen_twice += len(views) > 1
        assert sum(view["is_primary"] for view in views) == 1
        assert not any(view["is_target"] for view in views) or all(v["is_primary"] == v["is_target"] for v in views)
    assert seen_twice >= 5


def test_the_dataset_opens_elsewhere(small):
    """pyarrow reads it by cells; every row lies in its cell, ids count from 1, units are at the fields."""
    from astropy_healpix import healpy

    folder, _, _, manifest = small
    dataset = pyarrow.dataset.dataset(folder / "out" / "dataset", partitioning="hive")
    table = dataset.to_table()
    for part in manifest["partitions"]:
        rows = pyarrow.parquet.ParquetFile(folder / "out" / part["path"]).read()
        cells = healpy.ang2pix(2**4, rows["ra"].to_numpy(), rows["dec"].to_numpy(), nest=True, lonlat=True)
        assert len(rows) == part["rows"] and set(cells.tolist()) == {part["Npix"]}
        assert (rows["_healpix_29"].to_numpy() >> 50 == part["Npix"]).all()
        assert f"Norder=4/Dir=0/Npix={part['Npix']}.parquet" in part["path"]
    assert sorted(table["id"].to_pylist()) == list(range(1, len(table) + 1))
    assert dataset.schema.field("ra").metadata[b"unit"] == b"deg"
    one = read_table(folder / "out" / manifest["partitions"][0]["path"])
    assert {"ra", "footprint_x", "_healpix_29"} <= set(one.colnames) and one["ra"].unit == "deg"
    properties = dict(line.split("=") for line in (folder / "out" / "hats.properties").read_text().split())
    assert properties["hats_nrows"] == str(len(table)) and properties["obs_collection"] == "out"


# Where pictures come from ----------------------------------------------------------------------------------


def test_a_template_names_files_by_columns(small, tmp_path):
    """Any column of the list may be part of a file's name."""
    folder, targets, sky, _ = small
    listed = write_list(tmp_path / "list.csv", targets[:5], run=[f"r{i}" for i in range(5)])
    for i, (name, ra, dec) in enumerate(targets[:5]):
        (tmp_path / f"r{i}").mkdir()
        Image.fromarray(sky.picture(ra, dec, SCALE, 256, 256)).save(tmp_path / f"r{i}" / f"g{name}.png")
    manifest = bulk(listed, f"{tmp_path}/{{run}}/g{{id}}.png", tmp_path / "out", **BLOBS)
    assert manifest["counts"]["failed"] == 0 and manifest["counts"]["detected"] == 4


def test_the_published_zip_of_galaxy_zoo_2(small, tmp_path):
    """Read in place by its file-name mapping; 424 px at 0.02 petroR90 come to one scale, positions stay."""
    folder, targets, sky, _ = small
    radii = [9.0 + i for i in range(5)]
    listed = write_list(tmp_path / "list.csv", targets[:5], petroR90_r=radii)
    with zipfile.ZipFile(tmp_path / "images_gz2.zip", "w") as archive:
        for i, (_, ra, dec) in enumerate(targets[:4]):
            picture = sky.picture(ra, dec, 0.02 * radii[i], 424, 424)
            archive.writestr(f"images_gz2/images/{1000 + i}.jpg", jpeg(picture))
    mapping = [[FIRST + i, "original", 1000 + i] for i in range(4)] + [[FIRST + 4, "original", 99]]
    text = "\n".join(",".join(map(str, row)) for row in [["objid", "sample", "asset_id"], *mapping])
    (tmp_path / "gz2_filename_mapping.csv").write_text(text)
    out = tmp_path / "out"
    manifest = bulk(listed, tmp_path / "images_gz2.zip", out, image_scale="gz2", **BLOBS)
    assert manifest["counts"]["failed"] == 1 and manifest["counts"]["detected"] == 3
    (failure,) = pyarrow.parquet.read_table(out / "failures.parquet").to_pylist()
    assert failure["id"] == str(FIRST + 4) and "has no image 99.jpg" in failure["reason"]
    (tmp_path / "page.zip").write_text("<html>Too many requests</html>")
    with pytest.raises(OptionError, match="page.zip is no zip that can be read .*; fetch it again"):
        bulk(listed, tmp_path / "page.zip", tmp_path / "other", **BLOBS)
    for row in rows_of(out).to_pylist():
        if row["is_target"]:
            _, ra, dec = targets[row["target_id"] - FIRST]
            assert np.hypot((row["ra"] - ra) * np.cos(0.1), row["dec"] - dec) * 3600 < 0.15


def test_large_cutouts_go_through_the_tiler(small, tmp_path):
    """What is larger than a tile gives the rows that `run` gives."""
    folder, targets, sky, _ = small
    cutouts = write_cutouts(tmp_path / "large", targets[:2], sky, size=400)
    bulk(write_list(tmp_path / "list.csv", targets[:2]), cutouts, tmp_path / "out", **BLOBS)
    rows = rows_of(tmp_path / "out")
    assert sum(rows["is_target"].to_pylist()) == 2
    for name, ra, dec in targets[:2]:
        table = surveycat.run(cutouts / f"{name}.jpg", ra=ra, dec=dec, pixel_scale=SCALE, **BLOBS)
        mine = rows.filter(pyarrow.compute.equal(rows["cutout_id"], name))
        assert len(mine) == len(table)
        assert np.allclose(np.sort(mine["ra"].to_numpy()), np.sort(table["ra"].value), atol=1e-8)


def test_a_list_of_images_that_know_where_they_are(small, tmp_path):
    """Fields with a WCS of their own, in a folder: all that is found, overlaps once, those without a WCS listed."""
    folder, targets, sky, _ = small
    _, ra, dec = targets[0]
    lines = ["image"]
    for i, shift in enumerate((0.0, 0.01)):
        wcs = tan_wcs((300, 300), ra + shift, dec, SCALE)
        data = jpeg(sky.picture(ra + shift, dec, SCALE, 300, 300))
        (tmp_path / f"field{i}.jpg").write_bytes(with_xmp(data, avm_packet(wcs, (300, 300))))
        lines.append(f"field{i}.jpg")
    (tmp_path / "bare.jpg").write_bytes(data)
    (tmp_path / "list.csv").write_text("\n".join([*(line + ",x" for line in lines), f"{tmp_path}/bare.jpg,x"]) + "\n")
    manifest = bulk(tmp_path / "list.csv", tmp_path, tmp_path / "out", **BLOBS)
    assert manifest["counts"]["targets"] == 3 and manifest["counts"]["failed"] == 1
    rows = rows_of(tmp_path / "out").to_pylist()
    at = [r for r in rows if np.hypot((r["ra"] - ra) * np.cos(0.1), r["dec"] - dec) * 3600 < 2]
    assert sorted(view["cutout_id"] for view in at) == ["field0.jpg", "field1.jpg"]
    assert sum(view["is_primary"] for view in at) == 1 and not any(row["is_target"] for row in rows)
    (failure,) = pyarrow.parquet.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert failure["id"] == "bare.jpg" and "no sky position" in failure["reason"]
    with pytest.raises(OptionError, match="is a list of images; --images skyserver is no folder"):
        bulk(tmp_path / "list.csv", "skyserver", tmp_path / "other", **BLOBS)


def test_images_of_a_list_are_searched_at_the_resolution_that_run_chooses(tmp_path, caplog):
    """A picture that is sampled too finely gives the rows that `surveycat.run` gives for it, and it is said."""
    data = jpeg(starry(6.5))
    (tmp_path / "fine.jpg").write_bytes(with_xmp(data, avm_packet(tan_wcs((700, 800), 10, 5, 0.1), (700, 800))))
    (tmp_path / "list.csv").write_text(f"image,x\n{tmp_path}/fine.jpg,x\n")
    table = surveycat.run(tmp_path / "fine.jpg", **BLOBS)
    assert table.meta["inputs"][0]["searched_level"] == 1
    with caplog.at_level(logging.INFO, "surveycat"):
        bulk(tmp_path / "list.csv", out=tmp_path / "out", **BLOBS)
    assert "fine.jpg: searched at 1/2 of its resolution" in caplog.text
    assert sorted(rows_of(tmp_path / "out")["x"].to_pylist()) == pytest.approx(sorted(table["x"].value))


def test_a_scale_finer_than_the_network_knows_is_said(small, tmp_path, caplog):
    """Cutouts are searched at the scale that the user names, but not without a word if that is too fine."""
    folder, *_ = small
    for scale, said in ((0.1, True), (0.25, False)):
        with caplog.at_level(logging.WARNING, "surveycat"):
            caplog.clear()
            bulk(folder / "list.csv", folder / "cutouts", tmp_path / f"{scale}", pixel_scale=scale, **BLOBS)
        assert ("finer than the network knows" in caplog.text) == said


def test_from_skyserver_the_same_as_from_files(small, tmp_path):
    """Downloaded cutouts give the dataset that files give, though one request in ten fails."""
    folder, targets, sky, _ = small

    def manners(kind, number, parameters):
        return ("busy-503", "html-200", "cut", "garbage")[number // 10 % 4] if number % 10 == 3 else None

    with Loopback(sky, manners) as server:
        service = {**QUICK, "base_url": server.url, "cache": str(tmp_path / "cache")}
        bulk(folder / "list.csv", "skyserver", tmp_path / "out", keep=["gz2class", "z"], service=service, **BLOBS)
    assert len(server.requests) > 24
    same_datasets(folder / "out", tmp_path / "out")


# What goes wrong -------------------------------------------------------------------------------------------


def test_bad_rows_and_bad_files_do_not_stop_the_others(small, tmp_path):
    """A bad position, a missing or truncated or black file, a duplicate id, no id: each listed, with its reason."""
    folder, targets, sky, _ = small
    cutouts = write_cutouts(tmp_path / "cutouts", targets[:8], sky)
    (cutouts / f"{FIRST}.jpg").unlink()
    whole = (cutouts / f"{FIRST + 1}.jpg").read_bytes()
    (cutouts / f"{FIRST + 1}.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (256, 256)).save(cutouts / f"{FIRST + 2}.jpg")
    (cutouts / f"{FIRST + 3}.jpg").write_text("<html>not found</html>")
    listed = write_list(tmp_path / "list.csv", targets[:8])
    with open(listed, "a") as file:
        file.write(
            f"{FIRST + 100},12.5,95\n{FIRST + 101},twelve,5\n{FIRST + 5},180.5,5.5\n,180.5,5.5\n{FIRST + 102},,\n"
        )
    manifest = bulk(listed, cutouts, tmp_path / "out", **BLOBS)
    counts = manifest["counts"]
    assert counts["targets"] == 13 and counts["failed"] == 9 and counts["failed_in_list"] == 5
    failures = pyarrow.parquet.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    expected = [
        (0, "image", "No such file"),
        (1, "image", "damaged"),
        (2, "image", "black"),
        (3, "image", "damaged or no picture"),
        (8, "list", "no position: ra 12.5 and dec 95 degrees"),
        (9, "list", "no position: column ra is 'twelve'"),
        (10, "list", "the identifier is that of row 5 already"),
        (11, "list", "no identifier"),
        (12, "list", "no position"),
    ]
    assert [(f["row"], f["stage"]) for f in failures] == [(row, stage) for row, stage, _ in expected]
    for failure, (_, _, said) in zip(failures, expected, strict=True):
        assert said in failure["reason"], failure
    assert failures[0]["id"] == str(FIRST) and failures[0]["attempts"] == 1


def test_an_empty_list_is_an_empty_dataset(tmp_path):
    """No targets: no rows, counts of 0, no error."""
    (tmp_path / "list.csv").write_text("objid,ra,dec\n")
    manifest = bulk(tmp_path / "list.csv", tmp_path, tmp_path / "out", **BLOBS)
    assert manifest["counts"] == dict.fromkeys(manifest["counts"], 0) and manifest["partitions"] == []
    assert pyarrow.parquet.read_table(tmp_path / "out" / "failures.parquet").num_rows == 0


def test_a_picture_that_the_network_cannot_stand(small, tmp_path):
    """A batch that fails is done again one by one: one target fails, its neighbours do not."""
    folder, targets, sky, _ = small
    cutouts = write_cutouts(tmp_path / "cutouts", targets[:6], sky)
    Image.new("RGB", (256, 256), BAD).save(cutouts / f"{FIRST + 3}.png")
    for i in range(6):
        if i != 3:
            Image.open(cutouts / f"{FIRST + i}.jpg").save(cutouts / f"{FIRST + i}.png")
    listed = write_list(tmp_path / "list.csv", targets[:6])
    detector = Choking(threshold=60)
    manifest = bulk(listed, f"{cutouts}/{{id}}.png", tmp_path / "out", detector=detector)
    (failure,) = pyarrow.parquet.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert (failure["id"], failure["stage"]) == (str(FIRST + 3), "network") and "cannot stand" in failure["reason"]
    assert manifest["counts"]["failed"] == 1


def test_crowded_pictures_are_searched_in_windows(tmp_path):
    """Where the network hits a limit, what it did not show is looked for, as in `run`."""
    sky = Sky([[150.0 + i * 0.011, 0.0, 2.0, 200.0] for i in (-1, 0, 1)])
    cutouts = write_cutouts(tmp_path / "cutouts", [(1, 150.0, 0.0)], sky)
    listed = write_list(tmp_path / "list.csv", [(1, 150.0, 0.0)])
    bulk(listed, cutouts, tmp_path / "out", detector=BlobDetector(threshold=60, most=2))
    assert len(rows_of(tmp_path / "out")) == 3


def test_a_service_that_is_gone_ends_the_run(small, tmp_path, monkeypatch):
    """After many failures in a row the run ends with a line that says how to go on; and it does go on."""
    folder, targets, sky, _ = small
    monkeypatch.setattr(MODULE, "SILENT", 6)
    with Loopback(sky, lambda *_: "busy-503") as server:
        service = {**QUICK, "base_url": server.url, "attempts": 1}
        with pytest.raises(RunFailed, match="failed 6 times in a row.*HTTP 503.*--resume --retry-failed"):
            bulk(folder / "list.csv", "skyserver", tmp_path / "out", service=service, **BLOBS)
    assert not (tmp_path / "out").exists()
    with Loopback(sky) as server:
        service = {**QUICK, "base_url": server.url}
        options = {"keep": ["gz2class", "z"], "service": service, "resume": True, "retry_failed": True, **BLOBS}
        bulk(folder / "list.csv", "skyserver", tmp_path / "out", **options)
    same_datasets(folder / "out", tmp_path / "out")


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"images": "nowhere"}, OptionError, "--images nowhere is no folder"),
        ({"images": None}, OptionError, "say by --images"),
        ({"images": "cutouts/{id"}, OptionError, "is no template"),
        ({"size": 10}, OptionError, "size is 10"),
        ({"min_score": 2}, OptionError, "min-score is 2"),
        ({"order": 40}, OptionError, "healpix-order is 40"),
        ({"out": None}, OptionError, "name a folder"),
        ({"out": "missing/out"}, OutputError, "there is no folder"),
        ({"keep": ["petroMag"]}, OptionError, "has no column petroMag; it has dr7objid, ra, dec"),
        ({"id_column": "nr"}, OptionError, "--id-column nr"),
        ({"image_scale": "gz2"}, OptionError, "petroR90_r"),
        ({"image_scale": "wide"}, OptionError, "--image-scale wide"),
        ({"retry_failed": True}, OptionError, "retry-failed goes with resume"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:9"}, OptionError, "give one of the two"),
        ({"targets": "none.csv"}, OptionError, "there is no list none.csv"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, error, said, small, tmp_path, monkeypatch):
    """Before anything is done or written."""
    folder, *_ = small
    monkeypatch.chdir(tmp_path)
    usual = {"targets": folder / "list.csv", "images": folder / "cutouts", "out": "out", **BLOBS} | change
    with pytest.raises(error, match=said):
        bulk(**usual)
    assert list(tmp_path.iterdir()) == []


# Going on --------------------------------------------------------------------------------------------------


def test_rows_added_to_the_list_are_done_alone(small, tmp_path):
    """A finished dataset takes up what is new in the list, asks for nothing else, and is as if made at once."""
    folder, targets, sky, _ = small
    with Loopback(sky) as server:
        options = {"service": {**QUICK, "base_url": server.url}, "keep": ["gz2class", "z"], **BLOBS}
        listed = write_list(
            tmp_path / "list.csv", targets[:15], gz2class=[f"class {i}" for i in range(15)], z=np.arange(15) / 100
        )
        bulk(listed, "skyserver", tmp_path / "out", **options)
        first = len(server.requests)
        with pytest.raises(OutputError, match="exists already; --resume adds"):
            bulk(folder / "list.csv", "skyserver", tmp_path / "out", **options)
        bulk(folder / "list.csv", "skyserver", tmp_path / "out", resume=True, **options)
    assert first == 15 and len(server.requests) == 24
    same_datasets(folder / "out", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.csv", "out"]


def test_going_on_otherwise_is_refused(small, tmp_path):
    """Another score, another list: the difference is named and nothing is touched."""
    folder, targets, sky, _ = small
    listed = write_list(tmp_path / "list.csv", targets[:3])
    bulk(listed, folder / "cutouts", tmp_path / "out", **BLOBS)
    before = rows_of(tmp_path / "out")
    with pytest.raises(OutputError, match="min_score 0.5, not 0.6"):
        bulk(listed, folder / "cutouts", tmp_path / "out", min_score=0.6, resume=True, **BLOBS)
    shorter = write_list(tmp_path / "shorter.csv", targets[1:3])
    with pytest.raises(OptionError, match=f"1 targets of .* are not in the list any more, such as {FIRST}"):
        bulk(shorter, folder / "cutouts", tmp_path / "out", resume=True, **BLOBS)
    moved = write_list(tmp_path / "moved.csv", [(FIRST, 10.0, 10.0), *targets[1:3]])
    with pytest.raises(OptionError, match=f"target {FIRST} had ra"):
        bulk(moved, folder / "cutouts", tmp_path / "out", resume=True, **BLOBS)
    assert rows_of(tmp_path / "out").equals(before)
    manifest = bulk(shorter, folder / "cutouts", tmp_path / "out", overwrite=True, **BLOBS)
    assert manifest["counts"]["targets"] == 2


def test_failures_are_tried_again_when_asked(small, tmp_path):
    """--retry-failed does those that failed, and counts the attempts."""
    folder, targets, sky, _ = small
    cutouts = write_cutouts(tmp_path / "cutouts", targets[:4], sky)
    listed = write_list(tmp_path / "list.csv", targets[:4])
    (cutouts / f"{FIRST}.jpg").rename(tmp_path / "away.jpg")
    (cutouts / f"{FIRST + 1}.jpg").unlink()
    bulk(listed, cutouts, tmp_path / "out", **BLOBS)
    (tmp_path / "away.jpg").rename(cutouts / f"{FIRST}.jpg")
    assert bulk(listed, cutouts, tmp_path / "out", resume=True, **BLOBS)["counts"]["failed"] == 2
    manifest = bulk(listed, cutouts, tmp_path / "out", resume=True, retry_failed=True, **BLOBS)
    assert manifest["counts"]["failed"] == 1
    (failure,) = pyarrow.parquet.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert failure["id"] == str(FIRST + 1) and failure["attempts"] == 2


def test_killed_again_and_again(small, tmp_path):
    """SIGKILL at any number of requests, one request in ten failing: the dataset of an undisturbed run."""
    folder, targets, sky, _ = small
    killed_again_and_again(folder / "list.csv", sky, tmp_path / "out", kills=2, keep=["gz2class", "z"])
    same_datasets(folder / "out", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


class Interrupting(BlobDetector):
    """Is interrupted by the user at its third batch."""

    def __call__(self, pixels, min_score):
        self.batches = getattr(self, "batches", 0) + 1
        if self.batches == 3:
            raise KeyboardInterrupt
        return super().__call__(pixels, min_score)


def test_interrupted_by_the_user(small, tmp_path):
    """What has come by Ctrl-C is kept, and the run goes on from there, on another disk too, to the same dataset."""
    folder, targets, sky, _ = small
    options = {"keep": ["gz2class", "z"]}
    with pytest.raises(KeyboardInterrupt):
        bulk(folder / "list.csv", folder / "cutouts", tmp_path / "out", detector=Interrupting(threshold=60), **options)
    assert json.loads((tmp_path / "out.partial" / "manifest.json").read_text())["counts"]["done"] >= 4
    with pytest.raises(OutputError, match="holds an unfinished run; add --resume"):
        bulk(folder / "list.csv", folder / "cutouts", tmp_path / "out", **options, **BLOBS)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "out.partial").rename(other / "out.partial")
    shutil.copy(folder / "list.csv", other / "the_same_list.csv")
    (other / "pictures").symlink_to(folder / "cutouts")
    detector = Interrupting(threshold=60)
    detector.batches = 100
    bulk(other / "the_same_list.csv", other / "pictures", other / "out", detector=detector, resume=True, **options)
    assert detector.batches < 106  # of six batches in all
    same_datasets(folder / "out", other / "out")


def test_workers_give_the_same_dataset(small, tmp_path):
    """Two processes share the list; parts come in any order."""
    folder, *_ = small
    bulk(folder / "list.csv", folder / "cutouts", tmp_path / "one", keep=["gz2class", "z"], detector=Spec(), workers=2)
    same_datasets(folder / "out", tmp_path / "one")


class Workers:
    """Stands in for a client: answers as one does whose workers a certain target ends."""

    def __init__(self, deadly):
        self.deadly, self.pieces = deadly, []

    def nthreads(self):
        """Say that there are two workers."""
        return {"one": 1, "two": 1}

    def do(self, client, do, pieces, in_flight, timeout):
        """Do pieces here."""
        for piece in pieces:
            self.pieces.append((len(piece.numbers), in_flight))
            died = self.deadly in piece.targets.id.tolist()
            yield piece, RuntimeError("2 workers died") if died else do(piece)


def test_a_target_that_ends_its_workers(small, tmp_path, monkeypatch):
    """It fails alone: its piece is divided, one part at a time, until the others are done and it is by itself."""
    folder, targets, sky, _ = small
    workers = Workers(deadly=FIRST + 7)
    monkeypatch.setattr(MODULE, "cluster", lambda *_: contextlib.nullcontext(workers))
    monkeypatch.setattr(MODULE, "network_of", lambda detector, _: network_of(detector))
    monkeypatch.setattr(MODULE, "on_workers", workers.do)
    manifest = bulk(folder / "list.csv", folder / "cutouts", tmp_path / "out", **BLOBS)
    (failure,) = pyarrow.parquet.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert (failure["id"], failure["stage"]) == (str(FIRST + 7), "worker") and "2 workers died" in failure["reason"]
    assert manifest["counts"]["failed"] == 1 and manifest["counts"]["detected"] == 19
    assert {in_flight for size, in_flight in workers.pieces if size > 1} == {None}
    assert {in_flight for size, in_flight in workers.pieces[-2:]} == {1}
    rows, whole = rows_of(tmp_path / "out"), rows_of(folder / "out")
    others = pyarrow.compute.not_equal(whole["cutout_id"], FIRST + 7)
    assert rows["ra"].equals(whole.filter(others)["ra"])


# From the command line -------------------------------------------------------------------------------------


def test_from_the_command_line(small, tmp_path, monkeypatch):
    """`surveycat bulk` says what it did, exits with 3 when some failed, and with 1 and one line on an error."""
    folder, targets, sky, _ = small
    monkeypatch.setattr(MODULE, "DetectorSpec", lambda weights, preset: BlobDetector(threshold=60))
    words = ["bulk", str(folder / "list.csv"), "--images", str(folder / "cutouts"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0, done.stderr
    assert "24 targets: 20 with a galaxy on them, 4 without, 0 failed" in done.stdout
    assert "24 of 24 targets" in done.stderr
    again = CliRunner().invoke(cli.main, words)
    assert again.exit_code == 1 and again.stderr.count("\n") == 1 and "exists already" in again.stderr
    listed = write_list(tmp_path / "list.csv", [*targets, (5, 10.0, 10.0)])
    more = CliRunner().invoke(cli.main, [words[0], str(listed), *words[2:], "--resume"])
    assert more.exit_code == 3 and "1 targets failed" in more.stderr and "failures.parquet lists them" in more.stderr
    assert "    image: 1, such as row 24, 5: " in more.stderr and "5.jpg: No such file" in more.stderr


def test_progress_counts_from_the_first_target(monkeypatch):
    """The rate is not spoilt by the loading of the network, nor by what an earlier run did; days are hours."""
    now = iter([500.0, 500.0, 510.0, 520.0])
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: next(now)))
    line = cli._BulkLine()
    assert line.say(1001, 0, 244_000) == "1001 of 244000 targets, 0 failed"
    assert line.say(1011, 2, 244_000) == "1011 of 244000 targets, 1.0 per second, 2 failed, 67:29:49 left"
    assert "left" not in line.say(244_000, 2, 244_000)

"""The data set: the right galaxies, their pictures from a server, masks, and annotations that come back as written."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skyserver_loopback import Loopback, Sky

from surveycat import galaxyzoo
from surveycat.errors import SurveycatError
from surveycat.skyserver import SkyServer
from training import dataset
from training.loader import read_shard

SMOOTH, FEATURES = (f"t01_smooth_or_features_{name}_debiased" for name in ("a01_smooth", "a02_features_or_disk"))


def tables(folder, count=60):
    """Files in the published formats: GZ1 and GZ2 of the same galaxies, GZ2 lacking the last tenth."""
    rng = np.random.default_rng(0)
    objid = 587722981741000000 + rng.permutation(count)
    spiral, ra, dec = rng.random(count), rng.uniform(150, 151, count), rng.uniform(0, 1, count)
    gz1 = pd.DataFrame({"OBJID": objid, "P_EL_DEBIASED": 1 - spiral, "P_CS_DEBIASED": spiral})
    gz2 = pd.DataFrame(
        {"dr7objid": objid, "ra": ra, "dec": dec, "gz2_class": "Sb", SMOOTH: 1 - spiral, FEATURES: spiral}
    )
    gz1.to_csv(folder / "gz1.csv", index=False)
    gz2.sample(frac=0.9, random_state=1).to_csv(folder / "gz2.csv.gz", index=False)
    return folder / "gz1.csv", folder / "gz2.csv.gz"


def loaded(folder, count=2000):
    """Both tables as `galaxyzoo` gives them."""
    gz1, gz2 = tables(folder, count)
    return galaxyzoo.load("gz1", gz1), galaxyzoo.load("gz2", gz2)


def test_sample_agrees_is_balanced_and_split(tmp_path):
    """Votes above 0.8 in both, as many of each class in every split, each galaxy once, the same for one seed."""
    gz1, gz2 = loaded(tmp_path)
    sample = dataset.choose(gz1, gz2, {"train": 160, "val": 40, "test": 40}, seed=3)
    assert sample["dr7objid"].is_unique and len(sample) == 240
    assert (sample[["vote_gz1", "vote_gz2"]] > 0.8).all(axis=None)
    counts = sample.groupby(["split", "label"]).size()
    assert counts["train"].tolist() == [80, 80] and counts["val"].tolist() == counts["test"].tolist() == [20, 20]
    assert set(sample["dr7objid"]) <= set(np.asarray(gz2["dr7objid"]).tolist())
    pd.testing.assert_frame_equal(sample, dataset.choose(gz1, gz2, {"train": 160, "val": 40, "test": 40}, seed=3))
    assert not sample.equals(dataset.choose(gz1, gz2, {"train": 160, "val": 40, "test": 40}, seed=4))


def test_too_few_galaxies_make_all_splits_smaller(tmp_path):
    """Fewer than asked for keep the proportions of 4 : 1 : 1 and the balance."""
    sample = dataset.choose(*loaded(tmp_path, 300))
    counts = sample["split"].value_counts()
    assert counts["train"] == pytest.approx(4 * counts["val"], abs=4)
    assert (sample["label"] == "spiral").sum() == (sample["label"] == "elliptical").sum() > 10


def test_flags_of_a_real_excerpt_stand_for_votes(shared_data, tmp_path):
    """The published flags of Galaxy Zoo 1 are joined by identifiers of 18 digits, to the last one."""
    flags = pd.read_csv(shared_data / "catalogs" / "gz1_flags_datamath28.csv.gz", nrows=400)
    flags.to_csv(tmp_path / "gz1.csv", index=False)
    votes = pd.DataFrame({"dr7objid": flags["dr7objid"], "ra": flags["ra"], "dec": flags["dec"]})
    votes[SMOOTH], votes[FEATURES] = np.where(flags["elliptical"] == 1, 0.9, 0.1), flags["spiral"] * 0.95
    votes.to_csv(tmp_path / "gz2.csv", index=False)
    sample = dataset.choose(galaxyzoo.load("gz1", tmp_path / "gz1.csv"), galaxyzoo.load("gz2", tmp_path / "gz2.csv"))
    known = flags.set_index("dr7objid").loc[sample["dr7objid"]]
    assert (known["spiral"].to_numpy() == (sample["label"] == "spiral")).all()
    assert len(sample) == 2 * min(flags["spiral"].sum(), flags["elliptical"].sum())


def test_tables_that_do_not_fit_are_refused(tmp_path):
    """The message says which table lacks what."""
    gz1, gz2 = loaded(tmp_path, 60)
    with pytest.raises(SurveycatError, match="Galaxy Zoo 1 has no column p_cs_debiased"):
        dataset.choose(gz2, gz2)
    gz1["dr7objid"] = np.asarray(gz1["dr7objid"]) + 10**9
    with pytest.raises(SurveycatError, match="of 0 galaxies in both tables none has votes above 0.8"):
        dataset.choose(gz1, gz2)


def test_whole_data_set_from_a_server(tmp_path):
    """Pictures come from SkyServer, one that is refused is listed, and asked for alone by the next call."""
    gz1, gz2 = tables(tmp_path, 60)
    sample = dataset.choose(galaxyzoo.load("gz1", gz1), galaxyzoo.load("gz2", gz2), {"train": 8, "val": 2, "test": 2})
    sky = Sky([(row.ra, row.dec, 4.0, 200.0) for row in sample.itertuples()])
    unlucky = sample["dr7objid"].iloc[5]
    options = {"rate": 500, "attempts": 1}
    with Loopback(sky, lambda kind, number, parameters: "html" if at(parameters, sample, unlucky) else None) as server:
        first = dataset.build(gz1, gz2, tmp_path / "out", 12, "otsu", service=SkyServer(server.url, **options))
        assert len(server.requests) == 12
    pd.testing.assert_frame_equal(first.reset_index(drop=True), sample)
    missing = pd.read_csv(tmp_path / "out" / "missing.csv")
    assert missing["dr7objid"].tolist() == [unlucky] and missing["reason"][0]
    with Loopback(sky) as server:
        dataset.build(gz1, gz2, tmp_path / "out", 12, "otsu", service=SkyServer(server.url, **options))
        assert [kind for kind, _ in server.requests] == ["getjpeg"]
    assert not len(pd.read_csv(tmp_path / "out" / "missing.csv"))
    annotated = [one for split in dataset.SPLITS for one in dataset.read_coco(tmp_path / "out" / f"{split}.json")]
    assert len(annotated) == 12
    labels = dict(zip(sample["dr7objid"].astype(str) + ".jpg", sample["label"], strict=True))
    for one in annotated:
        assert one["labels"] == [labels[one["file"]]]
        (mask,) = one["masks"]
        y, x = ndimage.center_of_mass(mask)
        assert (y, x) == (pytest.approx(128, abs=1.5), pytest.approx(128, abs=1.5)) and mask.sum() > 200


def at(parameters, sample, objid):
    """Whether a request is for a galaxy."""
    row = sample[sample["dr7objid"] == objid].iloc[0]
    return abs(float(parameters["ra"]) - row["ra"]) < 1e-6


def galaxy(sigma=9.0, neighbour=False):
    """A picture with a round galaxy in the middle and perhaps a bright neighbour apart from it."""
    y, x = np.mgrid[:160, :160]
    light = 180 * np.exp(-0.5 * ((y - 80) ** 2 + (x - 80) ** 2) / sigma**2)
    if neighbour:
        light += 220 * np.exp(-0.5 * ((y - 30) ** 2 + (x - 130) ** 2) / 25)
    noise = np.random.default_rng(1).normal(12, 2, (160, 160, 3))
    return np.clip(noise + light[..., None], 0, 255).astype(np.uint8)


def test_otsu_parts_two_levels():
    """Between two levels of grey lies the threshold, however unequal their shares."""
    rng = np.random.default_rng(0)
    for share in (0.03, 0.3, 0.8):
        bright = rng.random(40_000) < share
        values = np.where(bright, rng.normal(180, 10, 40_000), rng.normal(30, 10, 40_000)).astype(np.uint8)
        assert 50 < dataset.otsu_threshold(values) < 160


@pytest.mark.parametrize("kind", ["otsu", "ours"])
def test_masks_hold_the_galaxy_and_no_neighbour(kind):
    """A round galaxy has a round mask in the middle; nothing in the middle is no mask."""
    mask = dataset.MASKS[kind](galaxy(neighbour=True))
    assert mask[80, 80] and not mask[20:40, 120:140].any()
    assert ndimage.center_of_mass(mask) == pytest.approx((80, 80), abs=1)
    radius = np.sqrt(mask.sum() / np.pi)
    assert (10 < radius < 16) if kind == "otsu" else (18 < radius < 40)
    dark = np.random.default_rng(0).normal(12, 2, (160, 160, 3)).astype(np.uint8)
    dark[:20, :20] = 200
    assert dataset.MASKS[kind](dark) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_coco_comes_back_as_written(tmp_path_factory, seed):
    """Masks of several parts are the same to the pixel, and so are classes and names."""
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("coco")
    masks = [ndimage.binary_fill_holes(ndimage.gaussian_filter(rng.random((40, 50)), 2) > 0.52) for _ in range(2)]
    masks = [mask for mask in masks if mask.any()]
    labels = ["spiral", "elliptical"][: len(masks)]
    dataset.write_coco([{"file": "a.jpg", "shape": (40, 50), "masks": masks, "labels": labels}], folder / "a.json")
    (one,) = dataset.read_coco(folder / "a.json")
    assert (one["file"], one["shape"], one["labels"]) == ("a.jpg", (40, 50), labels)
    assert all(np.array_equal(*pair) for pair in zip(one["masks"], masks, strict=True))


def test_coco_is_what_its_own_tools_read(tmp_path):
    """pycocotools finds the same pixels, but for its rounding, and its run lengths are read to the pixel."""
    from pycocotools import mask as run_lengths
    from pycocotools.coco import COCO

    mask = dataset.otsu_mask(galaxy())
    dataset.write_coco(
        [{"file": "a.jpg", "shape": mask.shape, "masks": [mask], "labels": ["spiral"]}], tmp_path / "a.json"
    )
    tools = COCO(tmp_path / "a.json")
    theirs = tools.annToMask(tools.anns[1]).astype(bool)
    assert (theirs ^ mask).sum() <= 0.03 * mask.sum()
    content = json.loads((tmp_path / "a.json").read_text())
    encoded = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (encoded["counts"].decode(), uncompressed(mask)):
        content["annotations"][0]["segmentation"] = {"size": list(mask.shape), "counts": counts}
        (tmp_path / "b.json").write_text(json.dumps(content))
        assert np.array_equal(dataset.read_coco(tmp_path / "b.json")[0]["masks"][0], mask)


def uncompressed(mask):
    """COCO's plain run lengths, column by column, beginning with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def test_via_regions_of_every_shape(tmp_path):
    """Regions of VIA 1 and 2 have the area of their shape, and the class of whichever attribute names one."""
    Image.fromarray(galaxy()).save(tmp_path / "a.jpg")
    shapes = [
        ({"name": "polygon", "all_points_x": [10, 30, 30, 10], "all_points_y": [10, 10, 40, 40]}, 600),
        ({"name": "rect", "x": 5, "y": 6, "width": 20, "height": 10}, 200),
        ({"name": "circle", "cx": 80, "cy": 80, "r": 20}, np.pi * 400),
        ({"name": "ellipse", "cx": 80, "cy": 80, "rx": 30, "ry": 10, "theta": 0.5}, np.pi * 300),
    ]
    attributes = [{"name": "spiral"}, {"type": {"elliptical": True, "spiral": False}}, {"note": "x", "class": "E"}, {}]
    regions = [{"shape_attributes": s, "region_attributes": a} for (s, _), a in zip(shapes, attributes, strict=True)]
    entry = {"filename": "a.jpg", "size": 1, "file_attributes": {}}
    old = {"a.jpg1": entry | {"regions": {str(i): region for i, region in enumerate(regions)}}}
    new = {"_via_settings": {}, "_via_img_metadata": {"a.jpg1": entry | {"regions": regions}}}
    for number, content in enumerate((old, new)):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
        (one,) = dataset.read_via(tmp_path / f"{number}.json", tmp_path)
        assert one["labels"] == ["spiral", "elliptical", "elliptical", None]
        for mask, (_, area) in zip(one["masks"], shapes, strict=True):
            assert mask.sum() == pytest.approx(area, rel=0.03)
    regions[0]["shape_attributes"] = {"name": "point", "cx": 1, "cy": 2}
    (tmp_path / "point.json").write_text(json.dumps(old))
    with pytest.raises(SurveycatError, match="kind 'point', which has no area"):
        dataset.read_via(tmp_path / "point.json", tmp_path)


def test_files_that_are_no_annotations_are_refused(tmp_path):
    """One line that names the file and what it lacks."""
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(SurveycatError, match="a.json is no COCO file: it has no annotations, categories"):
        dataset.read_coco(tmp_path / "a.json")
    with pytest.raises(SurveycatError, match="is no JSON of the VGG Image Annotator"):
        dataset.read_via(tmp_path / "a.json", tmp_path)
    (tmp_path / "b.json").write_text("images")
    with pytest.raises(SurveycatError, match="b.json cannot be read as JSON"):
        dataset.read_coco(tmp_path / "b.json")


def test_annotations_become_scenes(tmp_path):
    """Training reads them: the box is the mask's in the tile's pixels, and no class is taught where none is known."""
    large = np.zeros((300, 320, 3), np.uint8)
    large[100:140, 120:180] = 200
    Image.fromarray(large).save(tmp_path / "large.png")
    Image.fromarray(galaxy()).save(tmp_path / "small.png")
    mask = large[..., 0] > 0
    annotated = [
        {"file": "large.png", "shape": mask.shape, "masks": [mask], "labels": ["spiral"]},
        {"file": "small.png", "shape": (160, 160), "masks": [dataset.otsu_mask(galaxy())], "labels": [None]},
    ]
    (path,) = dataset.write_shards(annotated, tmp_path, tmp_path / "out", "train")
    first, second = read_shard(path)
    assert first["box"].tolist() == [[78.0, 88.0, 118.0, 148.0]]
    assert (first["image"][78:118, 88:148] == 200).all()
    assert (first["p_spiral"][0], first["class_weight"][0]) == (1.0, 1.0)
    assert second["class_weight"][0] == 0.0 and len(second["box"]) == 1


def test_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    """A table without identifiers, annotations of an unknown picture: exit code 1, the file or table named."""
    (tmp_path / "table.csv").write_text("ra,dec\n1,2\n")
    _, gz2 = tables(tmp_path)
    build = ["build", "--gz1", str(tmp_path / "table.csv"), "--gz2", str(gz2), "--out", str(tmp_path / "out")]
    image = {"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}
    lost = {"image_id": 2, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    content = {"images": [image], "annotations": [lost], "categories": [{"id": 1, "name": "spiral"}]}
    (tmp_path / "lost.json").write_text(json.dumps(content))
    shards = ["shards", "--annotations", str(tmp_path / "lost.json"), "--images", str(tmp_path), "--out", str(tmp_path)]
    for arguments, word in ((build, "table"), (shards, "lost.json")):
        assert dataset.main(arguments) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ") and word in message and message.count("\n") == 1

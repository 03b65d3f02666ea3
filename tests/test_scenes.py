"""Training scenes: what is labelled is where it is drawn, and nothing of the test sky gets in."""

import numpy as np
import pytest

from training import scenes, sky, stamps
from training.stretch import FRAME_IRG, Stretch


@pytest.mark.parametrize("stretch", [FRAME_IRG, Stretch("lupton", (1.0, 1.0, 1.0), 8.0, 5.0)])
def test_stretch_comes_back(stretch):
    """Light that is neither clipped nor burnt out survives rendering and inverting: else scenes change colour."""
    rng = np.random.default_rng(1)
    light = rng.uniform(0.5, 0.8, (32, 32, 3)).astype(np.float32) / np.asarray(stretch.scales, np.float32) / 4.0
    picture = stretch.render(light)
    back = stretch.invert(picture)
    step = 1.5 / np.maximum(picture, 1)
    assert np.all(np.abs(back / light - 1.0) < 2.5 * step + 0.02)


def test_lupton_is_astropys():
    """Our Lupton stretch is the one users have, to a count."""
    visualization = pytest.importorskip("astropy.visualization")
    rng = np.random.default_rng(2)
    light = rng.uniform(0.0, 3.0, (16, 16, 3)).astype(np.float32)
    theirs = visualization.make_lupton_rgb(light[..., 0], light[..., 1], light[..., 2], Q=8, stretch=5)
    ours = Stretch("lupton", (1.0, 1.0, 1.0), 8.0, 5.0).render(light)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_faint_slope_is_the_pictures():
    """`slope` says how many counts faint light gives; masks are cut off by it."""
    light = np.full((1, 3), 0.01, np.float32)
    for stretch in (FRAME_IRG, Stretch("lupton", (1.0, 1.0, 1.0), 10.0, 0.5)):
        counts = stretch.render(light).astype(float).sum() + 1.5  # three channels, each cut to whole counts
        assert counts == pytest.approx(stretch.slope * (light @ stamps.WEIGHTS)[0], rel=0.15, abs=3.0)


def galaxy_item(y0, x0, size=30, brightness=1.0, positive=True):
    """A round galaxy as an item of a scene."""
    yy, xx = np.mgrid[:size, :size] - (size - 1) / 2.0
    mask = np.hypot(yy, xx) < size / 2.0
    return scenes.Item(y0, x0, mask, brightness * mask.astype(np.float32), 0.9, 1.0, positive, 7)


def canvas_of(*items):
    """A canvas with these items and a black picture."""
    canvas = scenes.Canvas(np.zeros((1, 1, 3), np.float32), 0.02, 256.0, list(items))
    canvas.image = np.zeros((scenes.TILE, scenes.TILE, 3), np.uint8)
    return canvas


def test_box_and_mask_of_a_cut_galaxy():
    """The box is the visible mask's, half-open, and `visible` the part of the galaxy inside the tile."""
    scene = scenes.finish(canvas_of(galaxy_item(-10, 100)))
    ((box, mask56, p_spiral, _, area, visible, source),) = scene["rows"]
    assert box == (0, 100, 20, 130)
    assert (p_spiral, source) == (0.9, 7)
    whole = galaxy_item(0, 0).mask
    assert area == whole[10:].sum()
    assert visible == pytest.approx(whole[10:].sum() / whole.sum())
    assert mask56.mean() / 255.0 == pytest.approx(whole[10:].mean(), abs=0.02)


def test_sliver_is_ignored_not_taught():
    """A galaxy of which less than 15 % is inside is neither an object nor background."""
    scene = scenes.finish(canvas_of(galaxy_item(-27, 50)))
    assert scene["rows"] == []
    assert scene["ignore"][:3, 60:70].all()


def test_masks_end_where_galaxies_are_seen_to():
    """Masks of bright galaxies stop at the noise of a pixel, those of faint ones go on: both hold the visible light."""
    canvas = canvas_of()
    radius = np.hypot(*(np.mgrid[:201, :201] - 100.0))
    areas = {}
    for peak in (0.2, 40.0):
        total = (peak * np.exp(-radius / 10.0)).astype(np.float32)
        mask, highest = scenes.visible_mask(total, canvas)
        rim = total[mask].min()
        areas[peak] = mask.sum()
        assert highest < peak
        assert rim == pytest.approx(scenes.isophote(highest, canvas.noise, canvas.slope), rel=0.25)
    assert areas[0.2] < areas[40.0]
    assert scenes.isophote(0.2, 0.02, 256.0) == pytest.approx(1.25 * 0.02)
    assert scenes.isophote(40.0, 0.02, 256.0) == pytest.approx(scenes.RIM_COUNTS / 256.0)
    assert scenes.isophote(40.0, 0.05, 256.0) == pytest.approx(3.5 * 0.05)


def test_only_stars_burn_out():
    """Odd colours are given to cores of stars, never to galaxies, whose colours the class is read from."""
    picture = np.full((20, 20, 3), 50, np.uint8)
    stars = np.zeros((20, 20), np.float32)
    stars[5:8, 5:8] = 100.0
    scenes.burn_out(picture, stars, np.random.default_rng(1))
    changed = (picture != 50).any(axis=-1)
    assert changed[5:8, 5:8].all() and changed.sum() == 9


def test_sky_beside_a_cluster_is_level():
    """A cluster's glow does not put the sky around it below zero, where pictures are black."""
    rng = np.random.default_rng(3)
    radius = np.hypot(*(np.mgrid[:768, :768] - np.array([384.0, 100.0])[:, None, None]))
    light = 0.02 * rng.standard_normal((768, 768, 3)).astype(np.float32)
    light += (2.0 * np.exp(-radius / 150.0))[..., None].astype(np.float32)
    level = np.median(light - sky.glow(light), axis=(0, 1))
    beside = np.median((light - sky.glow(light))[:, 512:], axis=(0, 1))
    assert np.abs(level).max() < 0.02 and np.abs(beside).max() < 0.005


def test_hidden_galaxy_is_ignored_and_positives_are_not():
    """A galaxy under a much brighter one is left out; ignored pixels never lie on a positive."""
    scene = scenes.finish(canvas_of(galaxy_item(100, 100, 60, 10.0), galaxy_item(115, 115, 20, 0.1)))
    assert len(scene["rows"]) == 1
    assert not scene["ignore"][110:150, 110:150].any()


def test_companions_of_early_types_are_ignored_knots_of_spirals_are_not():
    """What lies on an elliptical came along with it and may be a galaxy; what lies on a spiral is part of it."""
    radius = np.hypot(*(np.mgrid[:61, :61] - 30.0))
    total = np.exp(-radius / 8.0) + 0.5 * np.exp(-0.5 * np.hypot(*(np.mgrid[:61, :61] - 42.0)) ** 2 / 2.0)
    items = [scenes.Item(100, 100, radius < 25, total.astype(np.float32), p, 1.0) for p in (0.1, 0.9)]
    early, spiral = (scenes.finish(canvas_of(item))["ignore"] for item in items)
    assert early[142, 142] and not early[130, 130]
    assert early.sum() < 80
    assert not spiral.any()


def test_shard_layout(tmp_path):
    """The loader's contract: columns of equal length, ignore packed along x."""
    made = [
        scenes.finish(canvas_of(galaxy_item(10, 10), galaxy_item(100, 60))),
        scenes.finish(canvas_of()),
        scenes.finish(canvas_of(galaxy_item(50, 50, positive=False))),
    ]
    path = tmp_path / "scenes_train_1_0000.npz"
    scenes.write_shard(made, path)
    with np.load(path) as shard:
        assert shard["count"].tolist() == [2, 0, 0]
        assert {
            shard[k].shape[0] for k in ("box", "mask56", "p_spiral", "class_weight", "area", "visible", "source")
        } == {2}
        assert shard["ignore"].shape == (3, 256, 32)
        assert np.unpackbits(shard["ignore"][2], axis=-1).astype(bool)[64, 64]
    assert list(tmp_path.iterdir()) == [path]


def test_test_sky_is_never_read():
    """No source of sky is one of the test fields, and each split keeps to its rows and columns."""
    for source in sky.SOURCES:
        assert "351.65" not in source.folder and "hudf" not in source.folder
        for split in ("train", "val"):
            for _, x0, y1, x1 in sky.regions(source, split):
                assert y1 <= 700 or source.name == "run1045"
                assert (x1 <= sky.VALIDATION_X) if split == "train" else (x0 >= sky.VALIDATION_X)
        assert all(y0 >= 744 for y0, *_ in sky.regions(source, "test"))


def test_splits_share_no_galaxy(shared_data):
    """Labels of each split name different galaxies, and p_spiral follows the votes."""
    frame = stamps.read_labels(shared_data)
    ids = {s: set(frame.loc[frame["split"] == s, "id"]) for s in ("train", "val", "test")}
    assert not ids["train"] & ids["test"] and not ids["train"] & ids["val"]
    voted = frame["p_smooth"].notna() & (frame["p_smooth"] + frame["p_features"] > 0.2)
    assert ((frame["target"] > 0.5) == (frame["p_features"] > frame["p_smooth"]))[voted].all()


def test_stamp_of_a_real_galaxy(shared_data):
    """Stamps are at native scale or coarser, centred, and end in darkness: no box of sky is added to a scene."""
    frame = stamps.read_labels(shared_data)
    rows = frame[(frame["split"] == "val") & frame["pixel_scale_arcsec"].between(0.15, 0.3)].head(12).to_dict("records")
    made = [m for m in map(stamps.make_stamp, rows) if not isinstance(m, str)]
    assert len(made) >= 8
    for stamp in made:
        light = stamp["light"].astype(np.float32) @ stamps.WEIGHTS
        edge = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
        assert np.abs(edge).max() < 0.01
        assert light[stamp["mask"]].sum() > 0.75 * light.sum()
        assert stamp["scale"] > 0.99 * stamps.NATIVE_SCALE


def test_scenes_are_reproducible(shared_data, tmp_path):
    """The same seed gives the same scene, another one another."""
    stamps.build("val", tmp_path / "stamps", data=shared_data, limit=60)
    sky.build("val", tmp_path / "sky", data=shared_data)
    composer = scenes.Composer("val", tmp_path)
    composer.build_pools(1)
    make = [composer.native, composer.cutout, composer.coarse, composer.deep]
    for kind in make:
        one, two, other = (scenes.finish(kind(np.random.default_rng(s))) for s in (3, 3, 4))
        assert np.array_equal(one["image"], two["image"]) and not np.array_equal(one["image"], other["image"])
        assert len(one["rows"]) == len(two["rows"])
        for box, *_ in one["rows"]:
            assert 0 <= box[0] < box[2] <= 256 and 0 <= box[1] < box[3] <= 256

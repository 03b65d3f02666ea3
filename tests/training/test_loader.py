"""Augmentation keeps image, boxes, masks and ignored regions together."""

import numpy as np
import pytest

from surveycat.errors import OptionError
from training.loader import TILE, batches, flip_and_turn, jitter, make_batch, prefetched, read_shard, shift


def one_scene(rng):
    """A scene with one bright lopsided object, and an ignored patch elsewhere."""
    image = np.zeros((TILE, TILE, 3), np.uint8)
    y0, x0, h, w = rng.integers(10, 150), rng.integers(10, 150), rng.integers(10, 60), rng.integers(10, 60)
    image[y0 : y0 + h, x0 : x0 + w] = 200
    mask = np.zeros((1, 56, 56), np.uint8)
    mask[0, :10, :20] = 255  # the mask's own corner tells its orientation
    image[y0 : y0 + round(h * 10 / 56), x0 : x0 + round(w * 20 / 56)] = 255
    ignore = np.zeros((TILE, TILE), bool)
    ignore[200:220, 230:240] = True
    image[200:220, 230:240] = 90
    return {
        "image": image,
        "ignore": ignore,
        "mask": mask,
        "box": np.float32([[y0, x0, y0 + h, x0 + w]]),
        "p_spiral": np.float32([1]),
        "class_weight": np.float32([1]),
        "area": np.float32([1]),
        "kind": 0,
        "level": 0,
    }


def test_box_mask_and_ignore_follow_the_image():
    """In all eight orientations the box frames the object, its mask the bright corner, ignore the patch."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        scene = flip_and_turn(one_scene(rng), rng)
        y0, x0, y1, x1 = np.rint(scene["box"][0]).astype(int)
        inside = scene["image"][y0:y1, x0:x1, 0]
        assert inside.min() >= 200
        assert (scene["image"][..., 0] >= 200).sum() == inside.size
        assert (scene["image"][..., 0][scene["ignore"]] == 90).all() and scene["ignore"].sum() == 200
        corner_y, corner_x = np.array(np.nonzero(inside == 255)).mean(axis=1) / inside.shape
        mask_y, mask_x = np.array(np.nonzero(scene["mask"][0])).mean(axis=1) / 56
        assert abs(corner_y - mask_y) < 0.1 and abs(corner_x - mask_x) < 0.1
        seen.add(
            (corner_y < 0.5, corner_x < 0.5, bool(scene["mask"][0, 0, :15].sum() > scene["mask"][0, :15, 0].sum()))
        )
    assert len(seen) >= 4


def test_shift_moves_everything_together_and_cuts_nothing():
    """Boxes still frame their objects, what moves in is ignored, and objects at the border stay where they are."""
    rng = np.random.default_rng(7)
    moves = set()
    for _ in range(60):
        before = one_scene(rng)
        after = shift(before, rng)
        y0, x0, y1, x1 = after["box"][0].astype(int)
        inside = after["image"][y0:y1, x0:x1, 0]
        assert inside.min() >= 200 and (after["image"][..., 0] >= 200).sum() == inside.size
        assert after["ignore"][after["image"][..., 0] == 90].all()
        dy, dx = (after["box"] - before["box"])[0, :2].astype(int)
        assert after["ignore"].sum() == 200 + TILE**2 - (TILE - abs(dy)) * (TILE - abs(dx))
        moves.add((dy, dx))
    assert len(moves) > 30
    before["box"][0, :2] = 0, 5
    for _ in range(20):
        dy, dx = (shift(before, rng)["box"] - before["box"])[0, :2]
        assert dy == 0 and dx >= -5


def test_batch_pads_what_is_not_there():
    """An empty scene has no valid object and no RoI that counts."""
    rng = np.random.default_rng(1)
    empty = one_scene(rng)
    for name in ("box", "mask", "p_spiral", "class_weight", "area"):
        empty[name] = empty[name][:0]
    batch = make_batch([one_scene(rng), empty], rng)
    assert batch["valid"].sum() == batch["roi_valid"].sum() == 1
    assert batch["image"].dtype == np.uint8 and batch["roi"].shape == (2, 5, 4)


def test_jitter_stays_near_the_box():
    """Jittered boxes still belong to their object: IoU above 0.5 nearly always."""
    rng = np.random.default_rng(2)
    boxes = np.tile(np.float32([[50, 50, 90, 80]]), (500, 1))
    moved = jitter(boxes, rng)
    low, high = np.maximum(boxes[:, :2], moved[:, :2]), np.minimum(boxes[:, 2:], moved[:, 2:])
    inter = np.prod(np.maximum(high - low, 0), axis=1)
    iou = inter / (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(moved[:, 2:] - moved[:, :2], axis=1) - inter)
    assert np.median(iou) < 0.95 and (iou > 0.5).mean() > 0.99


def test_shard_gives_every_scene_its_own_objects(tmp_path):
    """Objects are stored in one run for all scenes: the counts must cut it at the right places."""
    count = np.array([2, 0, 1], np.int32)
    box = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(
        tmp_path / "scenes_train_0_0.npz",
        image=np.zeros((3, 8, 8, 3), np.uint8),
        ignore=np.zeros((3, 8, 1), np.uint8),
        count=count,
        box=box,
        mask56=np.zeros((3, 56, 56), np.uint8),
        p_spiral=box[:, 0],
        class_weight=box[:, 0],
        area=box[:, 0],
        kind=np.array([0, 1, 2], np.uint8),
        level=np.zeros(3, np.uint8),
    )
    scenes = read_shard(tmp_path / "scenes_train_0_0.npz")
    assert [len(scene["box"]) for scene in scenes] == [2, 0, 1]
    np.testing.assert_array_equal(scenes[2]["box"], box[2:])
    assert [scene["kind"] for scene in scenes] == [0, 1, 2]


def test_training_hears_at_once_of_what_its_batches_lack(tmp_path):
    """No shards, or a damaged one, end a run instead of letting it wait; one that is half written is none."""
    (tmp_path / ".scenes_train_0000.npz").write_bytes(b"half")
    with pytest.raises(OptionError, match="has no 4 scenes in files scenes_train"):
        next(batches(tmp_path, "train", 4, seed=0))
    (tmp_path / "scenes_train_0000.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError):
        next(batches(tmp_path, "train", 4, seed=0))


def test_prefetched_items_come_in_order():
    """What a thread prepares is what it was asked for."""
    items = prefetched(iter(range(10**9)), 2)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]

"""Running a detector over tiles: the same answer everywhere, faults recorded, waits bounded."""

import os
import threading
import time

import numpy as np
import pytest
from detectors import BAD, BlobDetector, Choking, Dying, Hanging, Spec

from surveycat import dispatch
from surveycat.detections import Detections
from surveycat.dispatch import cluster, detect
from surveycat.errors import OptionError, RunFailed
from surveycat.image import open_image
from surveycat.tiles import TileGrid

SHAPE = (500, 700)
DISCS = [
    (40, 60, 9),
    (250, 250, 12),
    (250, 290, 8),
    (100, 600, 15),
    (400, 130, 7),
    (470, 660, 10),
    (300, 450, 14),
]
BAD_AT = (490, 10)  # in one tile only


def paint(discs=DISCS, bad=False):
    """A dark image with bright discs (y, x, radius), every second one blue."""
    image = np.full((*SHAPE, 3), 4, np.uint8)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for number, (v, u, radius) in enumerate(discs):
        image[np.hypot(y - v, x - u) <= radius] = (200, 180, 120) if number % 2 else (120, 180, 200)
    if bad:
        image[BAD_AT] = BAD
    return image


@pytest.fixture
def image(tmp_path):
    """The image, open, from a file, as workers need it."""
    with open_image(saved(paint(), tmp_path)) as opened:
        yield opened


@pytest.fixture
def bad_image(tmp_path):
    """The same with a pixel that some detectors cannot stand."""
    with open_image(saved(paint(bad=True), tmp_path)) as opened:
        yield opened


@pytest.fixture(scope="module")
def two_workers():
    """A client with two real processes, started once."""
    with cluster(2) as client:
        yield client


def saved(pixels, folder):
    """Write pixels to a file."""
    np.save(folder / "image.npy", pixels)
    return folder / "image.npy"


def finest(image):
    """The tiles of level 0."""
    return [tile for tile in TileGrid(image.shape).tiles() if tile.level == 0]


def same(one, other):
    """Say whether two sets of detections are equal in every column."""
    names = (
        "tile",
        "level",
        "box",
        "score",
        "p_spiral",
        "cut",
        "centre_distance",
        "bits",
        "offsets",
        "capped",
    )
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_objects_are_where_they_are(image):
    """Detections leave in pixels of the image: each disc is found whole, mask and box in place."""
    found = detect(image, finest(image), BlobDetector())
    whole = found.select(~found.cut)
    for number, (y, x, radius) in enumerate(DISCS):
        here = np.flatnonzero((abs(whole.box - [y - radius, x - radius, y + radius + 1, x + radius + 1]) < 0.1).all(1))
        assert len(here) >= 1, f"disc at {(y, x)} is whole nowhere"
        for i in here:
            v, u = np.nonzero(whole.mask(i))
            assert (v.mean() + whole.mask_origin[i, 0], u.mean() + whole.mask_origin[i, 1]) == pytest.approx((y, x))
        assert np.all((whole.p_spiral[here] > 0.5) == (number % 2 == 0))


def test_levels_keep_their_pixels(image):
    """On level k everything is in pixels of that level."""
    tiles = [tile for tile in TileGrid(image.shape).tiles() if tile.level == 1]
    found = detect(image, tiles, BlobDetector())
    assert set(found.level.tolist()) == {1}
    biggest = found.select(found.area == found.area.max())
    assert biggest.box[0] == pytest.approx(np.array([85, 585, 116, 616]) / 2, abs=1)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_batch_size_changes_nothing(image, batch_size):
    """How tiles are grouped is a matter of speed only."""
    detector = BlobDetector()
    reference = detect(image, finest(image), detector)
    detector.batch_size = batch_size
    assert same(reference, detect(image, finest(image), detector))


def test_workers_change_nothing(image, two_workers):
    """The plain loop is the reference: processes must give the same, shuffled tiles too."""
    reference = detect(image, finest(image), BlobDetector())
    assert len(reference) > len(DISCS)
    assert same(reference, detect(image, finest(image), BlobDetector(), two_workers))
    shuffled = np.random.default_rng(1).permutation(len(finest(image)))
    assert same(reference, detect(image, [finest(image)[i] for i in shuffled], BlobDetector(), two_workers))


def test_spec_is_loaded(image, two_workers):
    """What says how to load a detector is loaded where the work is done."""
    reference = detect(image, finest(image), BlobDetector())
    assert same(reference, detect(image, finest(image), Spec()))
    assert same(reference, detect(image, finest(image), Spec(), two_workers))


def test_no_tiles_are_no_detections(image):
    """Second looks may be none."""
    assert len(detect(image, [], BlobDetector())) == 0


def test_progress_ends_at_the_total(image):
    """Progress is in tiles, rises, and ends with all of them."""
    heard = []
    detect(image, finest(image), BlobDetector(), progress=lambda done, total: heard.append((done, total)))
    total = len(finest(image))
    assert heard == sorted(heard) and heard[-1] == (total, total)


@pytest.mark.parametrize("remote", [False, True])
def test_bad_tile_is_recorded_and_the_others_go_on(bad_image, two_workers, remote):
    """One tile that raises must cost that tile alone, not its batch, and its reason must be kept."""
    failed = []
    workers = two_workers if remote else 0
    found = detect(bad_image, finest(bad_image), Choking(), workers, failed=failed)
    assert [reason for _, reason in failed] == ["ValueError: cannot stand this colour"]
    ((bad, _),) = failed
    assert bad.y0 <= BAD_AT[0] < bad.y0 + bad.size and bad.x0 <= BAD_AT[1] < bad.x0 + bad.size
    good = [tile for tile in finest(bad_image) if tile != bad]
    assert same(found, detect(bad_image, good, BlobDetector()))


def test_bad_tile_is_an_error_where_nobody_asks_for_failures(bad_image):
    """A caller that does not look at failures must not get an incomplete answer in silence."""
    with pytest.raises(RunFailed, match="tile .* of level 0 failed: ValueError: cannot stand this colour"):
        detect(bad_image, finest(bad_image), Choking())


def test_dead_worker_costs_its_tile_alone(bad_image):
    """A process that dies on a tile is replaced; the tile is recorded after a bounded number of tries."""
    failed = []
    with cluster(2) as client:
        found = detect(bad_image, finest(bad_image), Dying(), client, failed=failed)
    assert len(failed) == 1 and "KilledWorker" in failed[0][1]
    good = [tile for tile in finest(bad_image) if tile != failed[0][0]]
    assert same(found, detect(bad_image, good, BlobDetector()))


def test_hanging_worker_is_given_up(bad_image):
    """A process that never answers is ended after the timeout, and the run goes on."""
    failed = []
    with cluster(1) as client:
        found = detect(bad_image, finest(bad_image), Hanging(), client, timeout=6, failed=failed)
    assert len(failed) == 1 and "no answer from any worker for 6 s" in failed[0][1]
    good = [tile for tile in finest(bad_image) if tile != failed[0][0]]
    assert same(found, detect(bad_image, good, BlobDetector()))


def test_capped_tile_is_searched_in_windows(image):
    """What a cap made the detector drop must come back from the windows, and the cap must be gone."""
    crowd = [(y, x, 4) for y in range(12, 250, 20) for x in range(12, 250, 20)]
    with open_image(paint(crowd)) as crowded:
        tiles = finest(crowded)[:1]
        all_of_them = detect(crowded, tiles, BlobDetector())
        capped = BlobDetector(most=130)
        assert len(capped(np.stack([crowded.read(tiles[0].box)]), 0.5)) == 130 < len(crowd) == len(all_of_them)
        found = detect(crowded, tiles, capped)
    seen = {(round(float(y)), round(float(x))) for y, x in (found.box[:, :2] + found.box[:, 2:] - 1) / 2}
    assert seen >= {(y, x) for y, x, _ in crowd}


def test_lasting_cap_is_told(image):
    """Where even the windows hit the cap it must be known: never a silent cap."""
    with open_image(paint([(y, x, 3) for y in range(8, 500, 24) for x in range(8, 700, 24)])) as crowded:
        found = detect(crowded, finest(crowded)[:1], BlobDetector(most=20))
    assert len(found.capped) > 0


class ResourceExhaustedError(RuntimeError):
    """Named as TensorFlow's."""


class XlaRuntimeError(RuntimeError):
    """Named as JAX's."""


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


SHORT_OF_MEMORY = [
    MemoryError(),
    ResourceExhaustedError("OOM when allocating tensor with shape[8,64,256,256]"),
    OutOfMemoryError("CUDA: tried to allocate 2.00 GiB"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    XlaRuntimeError("RESOURCE_EXHAUSTED: Failed to allocate request for 2.0GiB"),
]


class Greedy(BlobDetector):
    """Fills each batch up to its size, as the network does, and has memory for `room` tiles."""

    batch_size = 8

    def __init__(self, error, room=2):
        super().__init__()
        self.error, self.room, self.asked = error, room, []

    def __call__(self, pixels, min_score):
        self.asked.append(self.batch_size)
        if self.batch_size > self.room:
            raise self.error
        return super().__call__(pixels, min_score)


@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_short_of_memory_means_smaller_batches(image, error, caplog):
    """A batch that does not fit into memory is done in halves, later ones too, and that is said once."""
    detector, tiles = Greedy(error), finest(image)[:-1]
    found = detect(image, tiles, detector)
    assert len(tiles) > 8 and same(found, detect(image, tiles, BlobDetector()))
    assert detector.asked[:2] == [8, 4] and set(detector.asked[2:]) == {2}
    assert [record.message.split("; ")[-1] for record in caplog.records] == ["going on with 4", "going on with 2"]


def test_one_tile_that_does_not_fit_fails(image):
    """Where not even one tile fits there is nothing to halve: the tile fails, with the reason."""
    failed = []
    detect(image, finest(image), Greedy(MemoryError("no more"), room=0), failed=failed)
    assert [reason for _, reason in failed] == ["MemoryError: no more"] * len(finest(image))


def test_other_errors_do_not_halve(image):
    """Only a lack of memory makes batches smaller."""
    detector, failed = Greedy(RuntimeError("shapes do not match")), []
    detect(image, finest(image), detector, failed=failed)
    assert set(detector.asked) == {8} and len(failed) == len(finest(image))


class Slow:
    """An image without a file that notes when it is read."""

    name = "slow"

    def __init__(self, shape):
        self.shape, self.reads, self.block = shape, [], None

    def level_shape(self, level):
        """As an image has it."""
        return tuple(-(-n // 2**level) for n in self.shape)

    def read(self, box, level=0):
        """Give black; wait where the test wants it."""
        if self.block:
            self.block.wait()
        self.reads.append(box)
        return np.zeros((box[2] - box[0], box[3] - box[1], 3), np.uint8)


def test_reading_overlaps_with_the_network_and_is_bounded():
    """While the network works the next batches are read, but few: memory must not grow with the image."""
    image, ahead = Slow((256, 192 * 40)), []

    def detector(pixels, min_score):
        mine = 4 * (len(ahead) + 1)
        time.sleep(0.02)
        ahead.append(len(image.reads) - mine)
        return Detections.empty()

    detector.batch_size = 4
    detect(image, finest(image), detector)
    assert max(ahead) >= 4, "nothing was read while the network worked"
    assert max(ahead) <= 4 * (dispatch.IN_FLIGHT - 1)


def test_hanging_read_ends_the_run():
    """A disk that is gone must end the run with a word, not hang it."""
    image = Slow((256, 1000))
    image.block = threading.Event()
    with pytest.raises(RunFailed, match="reading did not end in 0.2 s"):
        detect(image, finest(image), BlobDetector(), timeout=0.2, failed=[])
    image.block.set()


def test_negative_workers_are_refused():
    """The value and the way out."""
    with pytest.raises(OptionError, match="workers is -1; give 0"), cluster(-1):
        pass


def test_workers_share_the_cores(two_workers):
    """Two processes that each take all cores are slower than one."""
    cores = len(os.sched_getaffinity(0))
    for threads in two_workers.run(lambda: os.environ["TF_NUM_INTRAOP_THREADS"]).values():
        assert int(threads) == max(1, cores // 2)

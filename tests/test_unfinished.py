"""Going on after an interruption: nothing lost, nothing done twice, nothing mixed up."""

import numpy as np
import pytest
from detectors import BlobDetector
from test_pipeline import same_rows

import surveycat
from surveycat import catalog
from surveycat.errors import OutputError
from surveycat.unfinished import partial_folder

SHAPE = (700, 900)


class Counting(BlobDetector):
    """Counts its batches, and may be told to stop at one of them as Ctrl-C does."""

    batch_size = 2

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at, self.calls = stop_at, 0

    def __call__(self, pixels, min_score):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return super().__call__(pixels, min_score)


@pytest.fixture
def image(tmp_path):
    """A dark image file with bright discs."""
    pixels = np.full((*SHAPE, 3), 4, np.uint8)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for v, u in np.random.default_rng(3).uniform(20, 680, (25, 2)):
        pixels[np.hypot(y - v, x - u) < 8] = (120, 170, 200)
    np.save(tmp_path / "image.npy", pixels)
    return tmp_path / "image.npy"


def interrupted(image, out, stop_at=4, **options):
    """Run until some batches are done, and then as if Ctrl-C was pressed."""
    with pytest.raises(KeyboardInterrupt):
        surveycat.run(image, out, detector=Counting(stop_at), **options)
    assert partial_folder(out).is_dir() and not out.exists()


def test_resume_does_only_the_rest(image, tmp_path):
    """What is finished is not searched again, and the rows are those of an undisturbed run."""
    out, undisturbed, rest = tmp_path / "cat.parquet", Counting(), Counting()
    whole = surveycat.run(image, detector=undisturbed)
    interrupted(image, out)
    table = surveycat.run(image, out, detector=rest, resume=True)
    assert rest.calls == undisturbed.calls - 4
    same_rows(whole, table, tolerance=0)
    assert not partial_folder(out).exists() and len(catalog.read(out)) == len(table)


def test_unfinished_run_is_not_passed_over(image, tmp_path):
    """Hours of work must not be lost by forgetting an option: the line names both ways out."""
    out = tmp_path / "cat.parquet"
    interrupted(image, out)
    with pytest.raises(OutputError, match="cat.parquet.partial holds an unfinished run; add --resume .* --overwrite"):
        surveycat.run(image, out, detector=Counting())
    afresh = Counting()
    surveycat.run(image, out, detector=afresh, overwrite=True)
    assert afresh.calls > 4 and out.exists() and not partial_folder(out).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_score": 0.7}, "options.min_score 0.5, not 0.7"),
        ({"region": "0,0,600,600"}, "input.shape|options.region"),
    ],
)
def test_other_run_is_refused(image, tmp_path, change, words):
    """Answers under two options, weights or inputs must never be mixed; the difference is named."""
    out, detector = tmp_path / "cat.parquet", Counting()
    interrupted(image, out)
    detector.batch_size = change.pop("batch", 2)
    detector.sha256 = change.pop("weights", "")
    if change.pop("input", False):
        np.save(image, np.load(image)[::-1])
    with pytest.raises(OutputError, match=words):
        surveycat.run(image, out, detector=detector, resume=True, **change)
    assert partial_folder(out).is_dir() and detector.calls == 0

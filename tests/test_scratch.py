"""What is made once is found again, and is never seen half-made."""

import os

import numpy as np
import pytest

from surveycat.errors import ImageError
from surveycat.scratch import Scratch


@pytest.fixture
def all_large(monkeypatch):
    """Every array goes to the folder."""
    monkeypatch.setattr(Scratch, "large", 0)


def strips():
    """Two strips of an array of shape (3, 4)."""
    yield np.arange(8, dtype=np.int64)
    yield np.arange(8, 12)


def test_small_and_large_arrays_are_equal(tmp_path, monkeypatch):
    """Where an array is kept does not change what is in it, nor its type."""
    small = Scratch(tmp_path).array("a", (3, 4), np.uint16, strips)
    monkeypatch.setattr(Scratch, "large", 0)
    large = Scratch(tmp_path).array("a", (3, 4), np.uint16, strips)
    assert small.dtype == large.dtype == np.uint16
    np.testing.assert_array_equal(small, np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(large, small)
    assert isinstance(large, np.memmap) and not large.flags.writeable


def test_another_process_finds_what_was_made(tmp_path, all_large):
    """With the same folder, an array is made once."""
    Scratch(tmp_path).array("a", (3, 4), np.uint16, strips)
    found = Scratch(tmp_path).array("a", (3, 4), np.uint16, lambda: pytest.fail("made twice"))
    np.testing.assert_array_equal(found, np.arange(12).reshape(3, 4))


def test_what_processes_share_is_made_once(tmp_path):
    """Middling arrays, too, go to a folder that was given: each of several processes would hold its own."""
    shape = (2**20, 2)
    shared = Scratch(tmp_path).array("a", shape, np.int64, lambda: [np.ones(shape, np.int64)])
    own = Scratch().array("a", shape, np.int64, lambda: [np.ones(shape, np.int64)])
    assert isinstance(shared, np.memmap) and not isinstance(own, np.memmap)


def test_a_half_made_array_is_not_found(tmp_path, all_large):
    """An error on the way leaves nothing under the final name, and no other file."""

    def breaks():
        yield np.arange(8)
        raise ValueError("broken in the middle")

    with pytest.raises(ValueError, match="broken in the middle"):
        Scratch(tmp_path).array("a", (3, 4), np.uint16, breaks)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_is_removed(all_large):
    """Without a folder of the caller's, nothing is left behind; no folder is made before it is needed."""
    scratch = Scratch()
    assert scratch.shared is None
    scratch.array("a", (3, 4), np.uint16, strips)
    assert os.listdir(scratch.shared) == ["a.npy"]
    folder = scratch.shared
    scratch.close()
    assert not os.path.exists(folder)


def test_a_given_folder_stays(tmp_path, all_large):
    """A folder of the caller's is theirs to remove, for other processes may read from it."""
    scratch = Scratch(tmp_path / "deep" / "er")
    scratch.array("a", (3, 4), np.uint16, strips)
    scratch.close()
    assert (tmp_path / "deep" / "er" / "a.npy").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, all_large):
    """A full disk or a wrong folder is said in a sentence with the folder in it."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ImageError, match=r"cannot write scratch data to .*file") as caught:
        Scratch(tmp_path / "file").array("a", (3, 4), np.uint16, strips)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line(tmp_path, all_large):
    """The same while writing; the part that was written goes."""

    def full():
        yield np.arange(8)
        raise OSError(28, "No space left on device")

    with pytest.raises(ImageError, match="No space left on device.*TMPDIR"):
        Scratch(tmp_path).array("a", (3, 4), np.uint16, full)
    assert list(tmp_path.iterdir()) == []

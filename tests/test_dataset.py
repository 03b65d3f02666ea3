"""Parts and the dataset made of them: whole or not there, whatever happens in between."""

import errno
import logging
import os

import numpy as np
import pytest
from bulk_fixtures import rows_of, same_datasets

from surveycat.dataset import Store, rows_table
from surveycat.errors import OutputError, RunFailed
from surveycat.targets import Targets

MADE_WITH = {"min_score": 0.5}


def targets(n):
    """Give n targets, each with a host and a companion on it to be found."""
    ra = 150.0 + np.arange(n) * 0.1
    kept = {"votes": np.arange(n) + 2**60}
    return Targets(np.arange(100, 100 + n), ra, np.zeros(n), np.arange(n), kept)


def add(store, these, numbers):
    """Add a part in which each target shows two galaxies, the second on the first."""
    columns = [
        {
            "id": np.array([1, 2]),
            "ra": these.ra[i] + np.array([0.0, 0.002]),
            "dec": np.array([0.0, 0.001]),
            "host": np.array([0, 1]),
            "score": np.array([0.9, 0.8]),
            "flags": np.array([0, 4]),
            "area": np.array([300.0, 20.0]),
            "is_target": np.array([True, False]),
            "target_separation": np.array([0.0, 8.0]),
        }
        for i in numbers
    ]
    n = len(numbers)
    outcomes = {"ids": these.id[numbers], "ra": these.ra[numbers], "dec": these.dec[numbers], "n_detections": [2] * n}
    outcomes |= {"outcomes": ["detected"] * n, "attempts": [1] * n, "stages": [""] * n, "reasons": [""] * n}
    store.add(rows_table(columns, these.id[numbers]), outcomes)


def finish(out, these, parts, **options):
    """Make a dataset of some parts."""
    store = Store(out, MADE_WITH, **options)
    try:
        for numbers in parts:
            add(store, these, numbers)
        return store.publish(these, ["votes"], [], 4, {})
    finally:
        store.close()


def hosts(out):
    """Give, for each companion, how far it is from the row that its host names."""
    rows = {row["id"]: row for row in rows_of(out).to_pylist()}
    return [row["ra"] - rows[row["host"]]["ra"] for row in rows.values() if row["host"]]


def test_any_parts_give_the_same_dataset(tmp_path):
    """However targets are grouped in parts, and also when half of them are added later; hosts stay with their rows."""
    these = targets(12)
    finish(tmp_path / "one", these, [list(range(12))])
    finish(tmp_path / "two", these, [[11, 3], [0, 1, 2, 10], [9, 8, 7, 6, 5, 4]])
    finish(tmp_path / "three", these.select(np.arange(5)), [[4, 3], [2, 1, 0]])
    finish(tmp_path / "three", these, [list(range(11, 4, -1))], resume=True)
    same_datasets(tmp_path / "one", tmp_path / "two")
    same_datasets(tmp_path / "one", tmp_path / "three")
    assert len(hosts(tmp_path / "three")) == 12 and np.allclose(hosts(tmp_path / "three"), 0.002)
    votes = {row["target_id"]: row["votes"] for row in rows_of(tmp_path / "three").to_pylist() if row["is_target"]}
    assert votes == {100 + i: 2**60 + i for i in range(12)}


@pytest.mark.parametrize("dies_at", [1, 2])
def test_killed_while_it_is_put_into_place(dies_at, tmp_path, monkeypatch):
    """Between any two steps the dataset is the old or the new one, or is put into place at the next start."""
    these = targets(6)
    finish(tmp_path / "whole", these, [list(range(6))])
    finish(tmp_path / "out", these.select(np.arange(3)), [[0, 1, 2]])
    rename, calls = os.rename, []

    def dying(*names):
        calls.append(names)
        if "READY" in os.listdir(tmp_path / "out.partial") and sum("parts" not in str(n[0]) for n in calls) == dies_at:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(os, "rename", dying)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "out", these, [[3, 4, 5]], resume=True)
    monkeypatch.setattr(os, "rename", rename)
    store = Store(tmp_path / "out", MADE_WITH, resume=True)
    assert len(store.done()) == 6
    store.close()
    same_datasets(tmp_path / "whole", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_a_damaged_part_is_done_again(tmp_path, caplog):
    """A part that cannot be read, or lacks rows, does not count as done."""
    these = targets(4)
    store = Store(tmp_path / "out", MADE_WITH)
    add(store, these, [0, 1])
    add(store, these, [2, 3])
    part = sorted((tmp_path / "out.partial" / "parts").iterdir())[0]
    whole = (part / "rows.parquet").read_bytes()
    (part / "rows.parquet").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        assert store.done()["id"].to_pylist() == [102, 103]
    assert "is damaged" in caplog.text and not part.exists()
    store.close()


def test_a_full_disk_leaves_whole_parts(tmp_path, monkeypatch):
    """The error says what to do, and no half-written part is left."""
    these = targets(2)
    store = Store(tmp_path / "out", MADE_WITH)
    add(store, these, [0])

    def full(table, path):
        path.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("surveycat.dataset._write", full)
    with pytest.raises(OutputError, match="No space left on device; make room, then go on with --resume"):
        add(store, these, [1])
    assert len(list((tmp_path / "out.partial" / "parts").iterdir())) == 1
    with pytest.raises(OutputError, match="make room"):
        store.publish(these, [], [], 4, {})
    assert not (tmp_path / "out").exists() and len(store.done()) == 1
    store.close()


def test_counts_that_do_not_add_up_are_not_published(tmp_path):
    """A list with a target of which nothing is known: no dataset rather than a wrong one."""
    store = Store(tmp_path / "out", MADE_WITH)
    add(store, targets(3), [0, 1])
    with pytest.raises(RunFailed, match=r"targets do not add up \(3 and 2\)"):
        store.publish(targets(3), [], [], 4, {})
    assert not (tmp_path / "out").exists()
    store.close()


def test_an_output_has_one_user(tmp_path):
    """A second process is told, and harms nothing; a folder that is no dataset is never replaced."""
    first = Store(tmp_path / "out", MADE_WITH)
    with pytest.raises(OutputError, match="in use by another process"):
        Store(tmp_path / "out", MADE_WITH, resume=True)
    first.close()
    Store(tmp_path / "out", MADE_WITH).close()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(OutputError, match="is no dataset of a bulk run"):
        Store(tmp_path / "thesis", MADE_WITH, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").exists()

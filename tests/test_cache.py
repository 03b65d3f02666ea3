"""The folder of downloads: whole, checked, bounded, shared by processes."""

import multiprocessing
import os

import pytest

from surveycat.cache import Cache, default_cache


def test_what_is_put_is_got(tmp_path):
    """A request gives its content, another one nothing; equal contents are kept once."""
    cache = Cache(tmp_path, 10**6)
    cache.put("a", b"content")
    cache.put("b", b"content")
    assert cache.get("a") == cache.get("b") == b"content" and cache.get("c") is None
    assert len(list(tmp_path.glob("contents/*/*"))) == 1


def test_damaged_content_is_not_given(tmp_path):
    """A file that is not what it was counts as missing."""
    cache = Cache(tmp_path, 10**6)
    cache.put("a", b"content")
    next(tmp_path.glob("contents/*/*")).write_bytes(b"contenx")
    assert cache.get("a") is None


def test_size_is_bounded_and_the_oldest_go(tmp_path):
    """Beyond the bound, what was used longest ago goes; what was just used stays."""
    cache = Cache(tmp_path, 10_000)
    for i in range(30):
        cache.put(str(i), bytes([i]) * 1000)
        for age, path in enumerate(sorted(tmp_path.glob("contents/*/*"), key=lambda path: -path.stat().st_mtime_ns)):
            os.utime(path, (1e9 - age, 1e9 - age))
        assert cache.get("0") is not None  # used in each round
    assert sum(path.stat().st_size for path in tmp_path.glob("contents/*/*")) <= 10_000
    assert cache.get("29") is not None and cache.get("1") is None
    assert len(list(tmp_path.glob("requests/*/*"))) <= 11


def _use(folder, seed):
    cache = Cache(folder, 20_000)
    for i in range(150):
        name = str((i * 7 + seed) % 60)
        kept = cache.get(name)
        assert kept in (None, name.encode() * 500)
        cache.put(name, name.encode() * 500)


def test_processes_share_a_cache(tmp_path):
    """Several processes put, get and make room at once: none fails, none is given another's content."""
    context = multiprocessing.get_context("spawn")
    users = [context.Process(target=_use, args=(tmp_path, seed)) for seed in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    assert [user.exitcode for user in users] == [0, 0, 0]
    assert not [path for path in tmp_path.glob("contents/*/*") if path.name.startswith(".")]


def test_a_folder_that_cannot_be_written_does_not_stop_the_work(tmp_path, caplog):
    """One warning, and nothing is kept."""
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file", 10**6)
    cache.put("a", b"content")
    cache.put("b", b"content")
    assert cache.get("a") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("variable", ["SURVEYCAT_CACHE", "XDG_CACHE_HOME"])
def test_place_of_the_cache(variable, monkeypatch, tmp_path):
    """The environment says where downloads are kept."""
    monkeypatch.delenv("SURVEYCAT_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert default_cache() in (tmp_path, tmp_path / "surveycat")

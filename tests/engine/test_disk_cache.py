"""What lies on disk: found by its key, refused where somebody else may have written it, bounded, and never in the way."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.engine.disk_cache import DiskCache, Entries

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entry_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.entry"))


def test_what_is_written_is_read_by_its_key_alone(folder: Path) -> None:
    cache = DiskCache(folder)
    assert cache.read("a") is None
    cache.write("a", b"first")
    cache.write("b", b"")
    assert (cache.read("a"), cache.read("b"), cache.read("c")) == (b"first", b"", None)
    cache.write("a", b"second")
    assert DiskCache(folder).read("a") == b"second"


def test_only_the_owner_may_read_or_write(folder: Path) -> None:
    before = os.umask(0)
    try:
        DiskCache(folder).write("a", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {"secret": 0o600, "a.entry": 0o600}


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "another name", "another folder", "another secret"])
def test_a_file_that_was_not_written_here_like_this_is_ignored_and_replaced(folder: Path, damage: str) -> None:
    cache, other = DiskCache(folder), DiskCache(folder.with_name("other"))
    cache.write("a", b"content")
    path = folder / "a.entry"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "one bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "another name":
        cache.write("b", b"foreign")
        (folder / "b.entry").replace(path)
    elif damage == "another folder":
        other.write("a", b"foreign")
        shutil.copyfile(folder.with_name("other") / "a.entry", path)
    else:
        (folder / "secret").unlink()
    with capture_logs() as logs:
        assert cache.read("a") is None
    assert [log["event"] for log in logs] == ["disk_cache_not_read"]
    cache.write("a", b"new")
    assert cache.read("a") == b"new"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(folder: Path, mode: int) -> None:
    cache = DiskCache(folder)
    cache.write("a", b"content")
    folder.chmod(mode)
    with capture_logs() as logs:
        assert cache.read("a") is None
        cache.write("b", b"content")
    assert [log["event"] for log in logs] == ["disk_cache_not_read", "disk_cache_not_written"]
    assert all("other users may write to it" in log["reason"] for log in logs)
    assert [path.name for path in entry_files(folder)] == ["a.entry"]


def test_a_file_that_others_may_write_to_is_refused(folder: Path) -> None:
    cache = DiskCache(folder)
    cache.write("a", b"content")
    (folder / "a.entry").chmod(0o666)
    assert cache.read("a") is None


def test_a_link_is_followed_neither_as_folder_nor_as_file(folder: Path) -> None:
    cache = DiskCache(folder)
    cache.write("a", b"content")
    (folder / "a.entry").rename(folder / "moved")
    (folder / "a.entry").symlink_to(folder / "moved")
    assert cache.read("a") is None
    link = folder.with_name("link")
    link.symlink_to(folder)
    DiskCache(link).write("b", b"content")
    assert not (folder / "b.entry").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    cache = DiskCache(folder)
    cache.write("a", b"content")
    os.chown(folder, 12345, -1)
    with capture_logs() as logs:
        assert cache.read("a") is None
    assert "it belongs to user 12345" in logs[0]["reason"]


def test_the_least_recently_used_are_deleted(folder: Path) -> None:
    cache = DiskCache(folder, max_bytes=350)
    for number, key in enumerate("abc"):
        cache.write(key, bytes(68))  # and 32 bytes of its HMAC
        os.utime(folder / f"{key}.entry", (number, number))
    assert cache.read("a") is not None
    cache.write("d", bytes(68))
    assert [path.stem for path in entry_files(folder)] == ["a", "c", "d"]
    cache.write("e", bytes(351))
    assert [path.stem for path in entry_files(folder)] == ["a", "c", "d"]


def test_temporary_files_that_a_process_has_left_behind_are_deleted(folder: Path) -> None:
    cache = DiskCache(folder)
    cache.write("a", b"content")
    stale, recent = folder / "stale.tmp", folder / "recent.tmp"
    for path in (stale, recent):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    cache.write("b", b"content")
    assert (stale.exists(), recent.exists()) == (False, True)


def test_the_folder_may_be_deleted_at_any_time(folder: Path) -> None:
    cache = DiskCache(folder)
    cache.write("a", b"content")
    shutil.rmtree(folder)
    assert cache.read("a") is None
    cache.write("a", b"again")
    assert cache.read("a") == b"again"


def test_a_folder_that_cannot_be_made_costs_a_line_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = DiskCache(tmp_path / "file" / "cache")
    with capture_logs() as logs:
        cache.write("a", b"content")
        assert cache.read("a") is None
    assert "disk_cache_not_written" in {log["event"] for log in logs}


def test_a_cache_that_is_off_keeps_nothing() -> None:
    cache = DiskCache(None)
    cache.write("a", b"content")
    assert cache.read("a") is None


def test_two_processes_share_the_folder(folder: Path) -> None:
    """Both write the same keys again and again; whoever reads finds one of the contents that were written, whole."""
    script = """
import sys
from pathlib import Path
from service.engine.disk_cache import DiskCache
cache, own = DiskCache(Path(sys.argv[1])), sys.argv[2].encode() * 10_000
found = set()
for _ in range(200):
    cache.write("a", own)
    found.add(cache.read("a"))
sys.exit(0 if found <= {b"1" * 10_000, b"2" * 10_000} else 1)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(folder), name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in "12"
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted(path.name for path in folder.iterdir()) == ["a.entry", "secret"]


def test_entries_differ_by_kind_and_by_every_field(folder: Path) -> None:
    entries = Entries(DiskCache(folder), {"weights": "sha256:1"})
    entries.write("graph", b"1")
    assert entries.read("graph") == b"1"
    assert entries.read("choice") is None
    assert Entries(DiskCache(folder), {"weights": "sha256:2"}).read("graph") is None
    wide = entries.extended(size=(32, 64))
    assert wide.read("graph") is None
    wide.write("graph", b"2")
    assert (entries.read("graph"), wide.read("graph"), entries.extended(size=(64, 32)).read("graph")) == (b"1", b"2", None)

"""What loading a network has taught, kept on disk: exported graphs, compiled trunks, choices of a runtime.

An entry is found by a key, the digest of all that it depends on, so it is never out of date; the folder may be deleted at any
time. Two processes may share it: a file is written under another name and then renamed.

Graphs and compiled trunks decide what a network computes, so a file of somebody else must not be read:

- Another user of the machine writes into the folder, or puts another one in its place: the folder has mode 0700 and its files
  0600; a folder or file that belongs to another user, is a link, or is writable by others is refused at each use.
- A file comes from elsewhere, in an archive or an image: each file begins with an HMAC (RFC 2104) under a random secret of this
  folder, over its name and its content. It is checked before the content is parsed, and the content is no pickle.
- A file is truncated or damaged: its HMAC differs.

Whoever can read the secret runs as the same user, and could change the service itself.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import os
import secrets
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

MAX_BYTES: Final = 2 * 1024**3  # of all entries; the least recently used are deleted
STALE_S: Final = 3600.0  # age of a temporary file that a process which has ended has left behind
SECRET_BYTES: Final = 32
DIGEST: Final = "sha256"
SUFFIX: Final = ".entry"
ENGINE: Final = Path(__file__).parent

log = structlog.get_logger(__name__)


class DiskCache:
    """Files by key, in a folder that only this user can write to.

    Args:
        folder: created at the first write; None turns the cache off.
        max_bytes: bound of the sum of the sizes of all entries.
    """

    def __init__(self, folder: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    @property
    def folder(self) -> Path | None:
        """The folder; None where the cache is off."""
        return self._folder

    def read(self, key: str) -> bytes | None:
        """The content of an entry; None where there is none that may be trusted."""
        if self._folder is None:
            return None
        path = self._folder / f"{key}{SUFFIX}"
        try:
            _check_owner(self._folder.lstat(), is_folder=True)
            file = _read_own(path)
            secret = self._secret()
            content = file[SECRET_BYTES:]
            if not hmac.compare_digest(file[:SECRET_BYTES], hmac.digest(secret, key.encode() + content, DIGEST)):
                raise PermissionError(f"{path} is damaged, or was not written by this service")
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("disk_cache_not_read", entry=path.name, reason=str(error))
            return None
        return content

    def write(self, key: str, content: bytes) -> None:
        """Writes an entry, and deletes those used longest ago where all together are too large. Never raises `OSError`."""
        if self._folder is None or len(content) > self._max_bytes:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self._folder.lstat(), is_folder=True)
            signature = hmac.digest(self._secret(), key.encode() + content, DIGEST)
            temporary = self._write_temporary(signature, content)
            temporary.replace(self._folder / f"{key}{SUFFIX}")
            self._evict()
        except OSError as error:
            log.warning("disk_cache_not_written", folder=str(self._folder), reason=str(error))

    def _secret(self) -> bytes:
        """The secret of the folder, which the first process that asks creates."""
        assert self._folder is not None
        path = self._folder / "secret"
        try:
            secret = _read_own(path)
        except FileNotFoundError:
            temporary = self._write_temporary(secrets.token_bytes(SECRET_BYTES))
            try:
                os.link(temporary, path)  # fails where another process was first
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
            secret = _read_own(path)
        if len(secret) != SECRET_BYTES:
            path.unlink()
            raise PermissionError(f"{path} is damaged")
        return secret

    def _write_temporary(self, *parts: bytes) -> Path:
        assert self._folder is not None
        path = self._folder / f"{secrets.token_hex(8)}.tmp"
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                for part in parts:
                    file.write(part)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def _evict(self) -> None:
        """Deletes the least recently used entries until the sum of their sizes is within the bound."""
        assert self._folder is not None
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # another process was faster
            if path.suffix == SUFFIX:
                entries.append((status.st_mtime, status.st_size, path))
            elif path.suffix == ".tmp" and time.time() - status.st_mtime > STALE_S:
                path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of one network.

    Attributes:
        cache: the files.
        fields: what every entry of the network depends on; values that `json` can write.
    """

    cache: DiskCache = field(default_factory=lambda: DiskCache(None))
    fields: Mapping[str, object] = field(default_factory=dict)

    def extended(self, **fields: object) -> Entries:
        """Entries that depend on more."""
        return Entries(self.cache, {**self.fields, **fields})

    def read(self, kind: str) -> bytes | None:
        """The content of the entry of this kind; None where there is none."""
        return self.cache.read(self._key(kind)) if self.cache.folder is not None else None

    def write(self, kind: str, content: bytes) -> None:
        """Writes the entry of this kind."""
        if self.cache.folder is not None:
            self.cache.write(self._key(kind), content)

    def _key(self, kind: str) -> str:
        fields = {"kind": kind, "engine_code": _code_digest(), **self.fields}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


NO_ENTRIES: Final = Entries()  # of a cache that is off


def _check_owner(status: os.stat_result, *, is_folder: bool) -> None:
    """Raises PermissionError where somebody else could have written to a file or folder."""
    is_kind = stat.S_ISDIR(status.st_mode) if is_folder else stat.S_ISREG(status.st_mode)
    if not is_kind:
        raise PermissionError("it is a link, or no folder" if is_folder else "it is no file")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"it belongs to user {status.st_uid}, and the service runs as user {os.geteuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"other users may write to it: mode {stat.S_IMODE(status.st_mode):o}")


def _read_own(path: Path) -> bytes:
    """The bytes of a file that only this user can write to; a link is not followed."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        _check_owner(os.fstat(file.fileno()), is_folder=False)
        return file.read()


@functools.cache
def _code_digest() -> str:
    """Digest of the engine's own code and calibration photographs: an entry is of the code that has written it."""
    digest = hashlib.sha256()
    for path in sorted(path for path in ENGINE.rglob("*") if path.suffix in {".py", ".jpg"}):
        digest.update(f"{path.relative_to(ENGINE)} ".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()

"""The folder in which downloaded archives are kept.

::

    blobs/SHA256       archives, under the sha256 of their content
    index/KEY          JSON: the blob that a URL gave, and the validator to ask for changes with
    parts/KEY          an interrupted download; KEY.json holds the validator to resume it with
    locks/KEY          held by whoever downloads this URL, in whatever process

KEY is `Location.key`, so that no URL, and no secret in one, lies on disk. Whatever is read here
is checked: a blob is hashed before it is used, and an invalid entry counts as none. So the folder,
or anything in it, may be deleted at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mms.archive.reader import hash_file
from mms.fetch.source import CHUNK_BYTES, Validator
from mms.files import write_atomically

_LOCK_POLL_S = 0.05
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a URL gave last.

    Attributes:
        digest: sha256 of the archive in hex.
        validator: What the server said of it.
    """

    digest: str
    validator: Validator


class Cache:
    """The folder.

    Any method may raise OSError: the folder cannot be read or written, or its disk is full.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def blob(self, digest: str) -> Path | None:
        """Return an archive by its sha256, if it is here and what it should be."""
        path = self._root / "blobs" / digest
        try:
            actual = hash_file(path)
        except FileNotFoundError:
            return None
        if actual == digest:
            return path
        # Damaged on disk. Nobody can use it, so it goes, and is fetched again.
        path.unlink(missing_ok=True)
        return None

    def entry(self, key: str) -> Entry | None:
        """Return what a URL gave last, if it is known."""
        document = _read_json(self._root / "index" / key)
        validator = _validator(document)
        digest = document.get("digest") if isinstance(document, dict) else None
        if validator is None or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            return None
        return Entry(digest, validator)

    def store(self, key: str, part: Part, entry: Entry) -> Path:
        """Make a finished download an archive of the cache, in one step."""
        path = self._folder("blobs") / entry.digest
        part.move(path)
        document = {"digest": entry.digest, **asdict(entry.validator)}
        write_atomically(self._folder("index") / key, json.dumps(document).encode())
        return path

    def forget(self, key: str) -> None:
        """Remove what a URL gave: it turned out to be of no use."""
        entry = self.entry(key)
        (self._root / "index" / key).unlink(missing_ok=True)
        if entry:
            (self._root / "blobs" / entry.digest).unlink(missing_ok=True)

    def part(self, key: str) -> Part:
        """Return the download of a URL, begun or not; for the holder of its lock."""
        return Part(self._folder("parts") / key)

    @contextlib.asynccontextmanager
    async def lock(self, key: str) -> AsyncIterator[None]:
        """Keep all others, threads and processes, from downloading the same URL."""
        # The file stays: one that is removed while another waits for it would be two locks.
        descriptor = os.open(self._folder("locks") / key, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _try_lock(descriptor):  # noqa: ASYNC110 - other processes hold it, too
                await asyncio.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def _folder(self, name: str) -> Path:
        folder = self._root / name
        # Archives hold code: nobody else is to put any there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder


class Part:
    """A file that is being downloaded, or whose download was interrupted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._note = path.with_name(f"{path.name}.json")
        self._hash = hashlib.sha256()
        self._file: Any = None
        self.size = 0

    def begun(self) -> tuple[int, Validator]:
        """Return the bytes that are here and their validator, or (0, ...) if not resumable."""
        validator = _validator(_read_json(self._note))
        if validator is None or not validator.strong or not self._path.exists():
            return 0, Validator()
        return self._path.stat().st_size, validator

    @contextlib.contextmanager
    def writing(self, start: int, validator: Validator) -> Iterator[None]:
        """Have `write` append at `start`, which is the size so far, or 0 to start over.

        A part that cannot be written does not stay: its bytes are what the disk has no room for.
        """
        self._hash, self.size = hashlib.sha256(), start
        try:
            if not start:
                self.discard()
                write_atomically(self._note, json.dumps(asdict(validator)).encode())
            # Unbuffered: what was received is in the file, whatever happens next.
            with _open_private(self._path) as self._file:
                self._hash_first(start)
                yield
        except OSError:
            self.discard()
            raise

    def _hash_first(self, count: int) -> None:
        """Hash what is there, and go to its end."""
        while count > 0 and (data := self._file.read(min(CHUNK_BYTES, count))):
            self._hash.update(data)
            count -= len(data)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._hash.update(data)
        self.size += len(data)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    @property
    def digest(self) -> str:
        """The sha256 of all of it, in hex; known once it has been written."""
        return self._hash.hexdigest()

    def move(self, target: Path) -> None:
        """Move the finished file to its place."""
        os.replace(self._path, target)
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what is here."""
        self._path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def discard_useless(self) -> None:
        """Remove what is here unless it can be resumed."""
        if not self.begun()[0]:
            self.discard()


def _open_private(path: Path) -> Any:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    return os.fdopen(descriptor, "r+b", buffering=0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _validator(document: Any) -> Validator | None:
    if not isinstance(document, dict):
        return None
    etag, last_modified = document.get("etag"), document.get("last_modified")
    if not isinstance(etag, str) or not isinstance(last_modified, str):
        return None
    return Validator(etag, last_modified)

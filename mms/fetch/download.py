"""Resolve a model location to a local file, downloading and caching it as needed.

An unchanged archive is not downloaded twice, an interrupted download resumes, and cached archives
work offline: at once if ``#sha256=`` pins them, and otherwise with a warning once the peer did not
answer. Many threads and processes may share a cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from mms.archive.reader import hash_file
from mms.errors import ArchiveError, DownloadFailed, StorageFull
from mms.fetch.admission import Policy
from mms.fetch.cache import Cache, Entry, Part
from mms.fetch.http import open_http
from mms.fetch.location import Location, Scheme, parse_location
from mms.fetch.s3 import open_s3
from mms.fetch.source import Answer, Ask, Interrupted, Source, Timeouts, Validator

logger = logging.getLogger("mms.fetch")

#: A peer that is slower than this for as long as `Timeouts.read_s` is stalled: a byte now and then
#: must not hold a model up for ever.
_SLOWEST_BYTES_PER_S = 1024
_SOURCES: Mapping[Scheme, Source] = {"http": open_http, "https": open_http, "s3": open_s3}


class Progress(Protocol):
    """Receives the progress of downloads, from several threads at once."""

    def update(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """Record how much of a download is here, and how long it is if that is known."""

    def finish(self, name: str) -> None:
        """Record the end of a download, successful or not."""


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How to fetch.

    Attributes:
        cache: Folder to keep archives in; made if missing.
        max_bytes: Longest archive.
        timeouts: How long to wait for the peer.
        attempts: How often to try in all when failures are transient.
        backoff_s: How long to wait before the second attempt, in seconds; doubled each time.
        progress: Receives the progress.
    """

    cache: Path
    max_bytes: int = 64 << 30
    timeouts: Timeouts = field(default_factory=Timeouts)
    attempts: int = 4
    backoff_s: float = 0.5
    progress: Progress | None = None


def fetch(text: str, options: FetchOptions, policy: Policy | None = None) -> Path:
    """Return the file or folder at a location; blocks.

    Args:
        text: Path, ``file://``, ``http://``, ``https://`` or ``s3://`` location, each with
            ``#sha256=`` and the archive's digest if it must be that one and no other.
        options: How to fetch.
        policy: What may be fetched from remote locations; None permits everything. Callers must
            check local paths themselves.

    Returns:
        The path on this machine; one in the cache is not the caller's to change.

    Raises:
        ArchiveError: The location is not valid, or the archive differs from its pin.
        DownloadFailed: It cannot be fetched or kept; says why.
        Forbidden: The policy does not permit it.
    """
    return asyncio.run(_fetch(text, options, policy))


async def fetch_in_thread(text: str, options: FetchOptions, policy: Policy | None = None) -> Path:
    """Return what `fetch` returns, without blocking the caller's event loop.

    If the caller is cancelled, so is the download. Nothing waits for its thread then, not even the
    end of the process: a name server, a service or a disk that hangs must not keep the server from
    stopping. What has been received stays for the next download to resume.

    The thread runs a standard event loop. uvloop discards what has come over TLS if the connection
    is closed while reading is paused.
    """
    caller = asyncio.get_running_loop()
    done: asyncio.Future[Path] = caller.create_future()
    loop = asyncio.SelectorEventLoop()
    task = loop.create_task(_fetch(text, options, policy))

    def run() -> None:
        settle: Callable[[], None]
        try:
            settle = partial(done.set_result, loop.run_until_complete(task))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
            settle = partial(done.set_exception, error)
        # Closes what connections have left.
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        # A closed loop raises: nobody waits any more.
        with contextlib.suppress(RuntimeError):
            caller.call_soon_threadsafe(lambda: None if done.done() else settle())

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="fetch", daemon=True).start()
    try:
        return await done
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)


async def _fetch(text: str, options: FetchOptions, policy: Policy | None) -> Path:
    """Return what `fetch` returns; blocks its loop for the disk, the name server and boto3."""
    location = parse_location(text)
    if not location.is_remote:
        return local_file(location)
    if policy:
        policy.check_url(location.url)
    with _disk_errors(location, options):
        return await _Download(location, options, policy).run()


def cached(text: str, options: FetchOptions) -> Path | None:
    """Return what a location gave last, or the path on this machine, without any request.

    Raises:
        ArchiveError: The location is not valid, or the cache cannot be read.
    """
    location = parse_location(text)
    if location.path is not None:
        return location.path
    cache = Cache(options.cache)
    with _disk_errors(location, options):
        entry = cache.entry(location.key)
        digest = location.pin or (entry.digest if entry else "")
        return cache.blob(digest) if digest else None


@contextlib.contextmanager
def opening(text: str, path: Path, options: FetchOptions) -> Iterator[None]:
    """Read what `fetch` returned: errors name the location, and an invalid archive is not kept.

    Args:
        text: The location.
        path: What `fetch` returned for it.
        options: As for `fetch`.
    """
    try:
        yield
    except ArchiveError as error:
        location = parse_location(text)
        if location.is_remote:
            error.args = (str(error).replace(str(path), location.shown),)
            # A full disk says nothing about the archive.
            if not isinstance(error, StorageFull) and not isinstance(error.__cause__, OSError):
                with contextlib.suppress(OSError):
                    Cache(options.cache).forget(location.key)
        raise


def local_file(location: Location) -> Path:
    """Return the path of a location on this machine.

    Raises:
        ArchiveError: The file differs from its pin.
    """
    path = Path(location.path or "")
    if not location.pin:
        return path
    try:
        digest = hash_file(path)
    except IsADirectoryError:
        raise ArchiveError(f"{location.text}: a folder has no sha256; pin a file") from None
    except OSError as error:
        raise ArchiveError(f"{location.text}: cannot be read: {error.strerror}") from None
    _check_pin(location, digest)
    return path


def _check_pin(location: Location, digest: str) -> None:
    if location.pin and digest != location.pin:
        raise ArchiveError(
            f"{location.shown}: is pinned to the sha256 {location.pin}, but has {digest}"
        )


@contextlib.contextmanager
def _disk_errors(location: Location, options: FetchOptions) -> Iterator[None]:
    # What goes wrong on the network has become one of our errors already.
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else DownloadFailed
        raise kind(
            f"{location.shown}: cannot be kept in {options.cache}: {error.strerror or error}; "
            "make room there, or set cache_dir to another folder"
        ) from error


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the cache holds for a URL, and its validator."""

    path: Path
    validator: Validator


class _Download:
    """One call of `fetch` for a remote location."""

    def __init__(self, location: Location, options: FetchOptions, policy: Policy | None) -> None:
        self._location = location
        self._options = options
        self._policy = policy
        self._cache = Cache(options.cache)
        self._source = _SOURCES[location.scheme]

    async def run(self) -> Path:
        """Return the archive from the cache, or download it."""
        pinned = self._pinned()
        if pinned:
            return pinned
        key = self._location.key
        before = self._cache.entry(key)
        async with self._cache.lock(key):
            pinned = self._pinned()
            if pinned:
                return pinned
            entry = self._cache.entry(key)
            # Of a pinned one, the cache holds another archive at most: all of it is requested.
            path = self._cache.blob(entry.digest) if entry and not self._location.pin else None
            if entry is None or path is None:
                return await self._download(None)
            if entry != before:
                # Another has fetched it while this waited for the lock.
                return path
            return await self._download(_Kept(path, entry.validator))

    def _pinned(self) -> Path | None:
        return self._cache.blob(self._location.pin) if self._location.pin else None

    async def _download(self, kept: _Kept | None) -> Path:
        """Return the newest archive there is: downloaded, or kept if it has not changed."""
        shown = self._location.shown
        part = self._cache.part(self._location.key)
        try:
            return await self._try_often(part, kept)
        except Interrupted as error:
            if kept is None:
                raise DownloadFailed(
                    f"{shown}: {error} (attempts: {self._options.attempts})"
                ) from None
            logger.warning("%s: %s; serving the cached copy", shown, str(error))
            return kept.path
        finally:
            part.discard_useless()

    async def _try_often(self, part: Part, kept: _Kept | None) -> Path:
        """Return what `_try_once` returns in the end.

        Raises:
            Interrupted: The last attempt was; only the part stays.
        """
        attempt = 1
        while True:
            try:
                return await self._try_once(part, kept)
            except Interrupted as error:
                if error.starts_over:
                    part.discard()
                if attempt >= self._options.attempts:
                    raise
                logger.info("%s: %s; retrying", self._location.shown, str(error))
            await asyncio.sleep(self._options.backoff_s * 2 ** (attempt - 1))
            attempt += 1

    async def _try_once(self, part: Part, kept: _Kept | None) -> Path:
        offset, validator = part.begun()
        if kept and not offset:
            validator = kept.validator
        ask = Ask(self._location, offset, validator, self._policy, self._options.timeouts)
        async with self._source(ask) as answer:
            if answer is None:
                if kept is None or offset:
                    raise Interrupted("unexpected status (304)", starts_over=True)
                logger.info("%s has not changed since it was fetched", self._location.shown)
                return kept.path
            started = time.monotonic()
            await self._receive(answer, part)
        digest, size = part.digest, part.size
        try:
            _check_pin(self._location, digest)
        except ArchiveError:
            part.discard()
            raise
        path = self._cache.store(self._location.key, part, Entry(digest, answer.validator))
        logger.info(
            "downloaded %s: %s in %.1f s, sha256 %s",
            self._location.shown,
            in_megabytes(size),
            time.monotonic() - started,
            digest,
        )
        return path

    async def _receive(self, answer: Answer, part: Part) -> None:
        """Write the body to the part, within the limits."""
        shown, progress = self._location.shown, self._options.progress
        self._check_size(answer.total or 0, part)
        logger.info(
            "downloading %s (%s)%s",
            shown,
            "of unknown size" if answer.total is None else in_megabytes(answer.total),
            f", resuming at {in_megabytes(answer.start)}" if answer.start else "",
        )
        pace = _Pace(self._options.timeouts.read_s)
        try:
            with part.writing(answer.start, answer.validator):
                while data := await answer.read():
                    self._check_size(part.size + len(data), part)
                    part.write(data)
                    pace.check(part.size)
                    if progress:
                        progress.update(shown, part.size, answer.total)
        finally:
            if progress:
                progress.finish(shown)
        if not part.size:
            # No archive is empty; what sent it may have been cut off before it began.
            raise Interrupted("the response is empty", starts_over=True)
        if answer.total is not None and part.size != answer.total:
            raise Interrupted(
                f"interrupted after {part.size} of {answer.total} bytes",
                starts_over=part.size > answer.total,
            )

    def _check_size(self, size: int, part: Part) -> None:
        if size > self._options.max_bytes:
            part.discard()
            raise DownloadFailed(
                f"{self._location.shown}: longer than the {self._options.max_bytes} bytes that "
                "max_archive_bytes allows"
            )


class _Pace:
    """Detects a stalled peer: one that sends something, but next to nothing."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._since = time.monotonic()
        self._size: int | None = None

    def check(self, size: int) -> None:
        """Record the bytes received so far.

        Raises:
            Interrupted: They come too slowly.
        """
        now = time.monotonic()
        if self._size is None:
            self._size = size
        if now - self._since < self._window_s:
            return
        if size - self._size < _SLOWEST_BYTES_PER_S * self._window_s:
            raise Interrupted(
                f"the peer stalled: less than {_SLOWEST_BYTES_PER_S} bytes/s "
                f"for {self._window_s:g} s"
            )
        self._since, self._size = now, size


def in_megabytes(size: int) -> str:
    """Return a size in readable form."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size} bytes"

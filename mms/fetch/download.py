"""Return the file of a model, wherever it is: fetch it if need be, and keep it.

An unchanged archive is not downloaded twice, a cut download is gone on with, and what a URL gave
once can be had without the network: at once if ``#sha256=`` pins it, and else with a warning once
the other end did not answer. Blocks; for threads, and for processes that share a cache.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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

#: Slower than this for as long as `Timeouts.read_s`, and the other end counts as dead: a byte now
#: and then must not hold a model up for ever.
_SLOWEST_BYTES_PER_S = 1024
_SOURCES: Mapping[Scheme, Source] = {"http": open_http, "https": open_http, "s3": open_s3}


class Progress(Protocol):
    """Who is told how downloads go on; from several threads at once."""

    def update(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """Record how much of a download is here, and how much there is if that is known."""

    def finish(self, name: str) -> None:
        """Record its end, good or bad."""


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How to fetch.

    Attributes:
        cache: Folder to keep archives in; made if missing.
        max_bytes: Longest archive.
        timeouts: How long to wait for the other end.
        attempts: How often to try in all, where another attempt may help.
        backoff_s: How long to wait before the second attempt, in seconds; doubled each time.
        progress: Who is told how it goes on.
    """

    cache: Path
    max_bytes: int = 64 << 30
    timeouts: Timeouts = field(default_factory=Timeouts)
    attempts: int = 4
    backoff_s: float = 0.5
    progress: Progress | None = None


def fetch(
    text: str,
    options: FetchOptions,
    policy: Policy | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Return the file or folder at a location.

    Args:
        text: Path, ``file://``, ``http://``, ``https://`` or ``s3://`` location, each with
            ``#sha256=`` and the archive's digest if it is to be that one and no other.
        options: How to fetch.
        policy: What may be fetched, of remote locations; None is anything. Who lets others name
            files on this machine checks these himself.
        stop: Set by another thread to have this end soon.

    Returns:
        The path on this machine; one in the cache is not the caller's to change.

    Raises:
        ArchiveError: The location is not valid, or the archive differs from its pin.
        DownloadFailed: It cannot be fetched or kept; says why.
        Forbidden: The policy does not permit it.
    """
    location = parse_location(text)
    path = local_file(location)
    if path is not None:
        return path
    if policy:
        policy.check_url(location.url)
    with _disk_errors(location, options):
        return _Download(location, options, policy, stop or threading.Event()).run()


def cached(text: str, options: FetchOptions) -> Path | None:
    """Return what a location gave last, or the path on this machine, without asking anybody.

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
    """Read what `fetch` gave: errors name the location, and what is no archive is not kept.

    Args:
        text: The location.
        path: What `fetch` gave for it.
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


def local_file(location: Location) -> Path | None:
    """Return the path of a location that is on this machine; None for any other.

    Raises:
        ArchiveError: The file differs from its pin.
    """
    if location.path is None or not location.pin:
        return location.path
    try:
        digest = hash_file(location.path)
    except IsADirectoryError:
        raise ArchiveError(f"{location.text}: a folder has no sha256; pin a file") from None
    except OSError as error:
        raise ArchiveError(f"{location.text}: cannot be read: {error.strerror}") from None
    _check_pin(location, digest)
    return location.path


def _check_pin(location: Location, digest: str) -> None:
    if location.pin and digest != location.pin:
        raise ArchiveError(
            f"{location.shown}: has the sha256 {digest}, not {location.pin} to which it is pinned"
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
            "make room there, or name another folder with cache_dir"
        ) from error


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the cache holds of a URL, and what the server said of it."""

    path: Path
    validator: Validator


class _Download:
    """One call of `fetch`."""

    def __init__(
        self,
        location: Location,
        options: FetchOptions,
        policy: Policy | None,
        stop: threading.Event,
    ) -> None:
        self._location = location
        self._options = options
        self._policy = policy
        self._stop = stop
        self._cache = Cache(options.cache)
        self._source = _SOURCES[location.scheme]

    def run(self) -> Path:
        """Return the archive from the cache, or from where it is."""
        pinned = self._pinned()
        if pinned:
            return pinned
        key = self._location.key
        before = self._cache.entry(key)
        with self._cache.lock(key, self._stop):
            pinned = self._pinned()
            if pinned:
                return pinned
            entry = self._cache.entry(key)
            # Of a pinned one, the cache holds another archive at most: all of it is asked for.
            path = self._cache.blob(entry.digest) if entry and not self._location.pin else None
            if entry is None or path is None:
                return self._ask(None)
            if entry != before:
                # Another has fetched it while this waited for the lock.
                return path
            return self._ask(_Kept(path, entry.validator))

    def _pinned(self) -> Path | None:
        return self._cache.blob(self._location.pin) if self._location.pin else None

    def _ask(self, kept: _Kept | None) -> Path:
        """Ask whether there is a newer one than is kept, and return the newest there is."""
        shown = self._location.shown
        part = self._cache.part(self._location.key)
        try:
            return self._try_often(part, kept)
        except Interrupted as error:
            if kept is None:
                raise DownloadFailed(
                    f"{shown}: {error} (attempts: {self._options.attempts})"
                ) from None
            logger.warning("%s: %s; serving the copy fetched before", shown, str(error))
            return kept.path
        finally:
            part.discard_useless()

    def _try_often(self, part: Part, kept: _Kept | None) -> Path:
        """Return the downloaded archive, or the one that is kept if it has not changed.

        Raises:
            Interrupted: The last attempt was; only the part stays.
        """
        attempt = 1
        while True:
            try:
                return self._try_once(part, kept)
            except Interrupted as error:
                if error.starts_over:
                    part.discard()
                if attempt >= self._options.attempts:
                    raise
                logger.info("%s: %s; trying again", self._location.shown, str(error))
            if self._stop.wait(self._options.backoff_s * 2 ** (attempt - 1)):
                raise self._stopped()
            attempt += 1

    def _try_once(self, part: Part, kept: _Kept | None) -> Path:
        offset, validator = part.begun()
        if kept and not offset:
            validator = kept.validator
        ask = Ask(self._location, offset, validator, self._policy, self._options.timeouts)
        with self._source(ask) as answer:
            if answer is None:
                if kept is None or offset:
                    raise Interrupted("says that nothing has changed, unasked", starts_over=True)
                logger.info("%s has not changed since it was fetched", self._location.shown)
                return kept.path
            started = time.monotonic()
            self._receive(answer, part)
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

    def _receive(self, answer: Answer, part: Part) -> None:
        """Put what comes into the part, within the limits."""
        shown, progress = self._location.shown, self._options.progress
        self._check_size(answer.total or 0, part)
        logger.info(
            "downloading %s (%s)%s",
            shown,
            "of unknown size" if answer.total is None else in_megabytes(answer.total),
            f", from {in_megabytes(answer.start)} on" if answer.start else "",
        )
        pace = _Pace(self._options.timeouts.read_s)
        try:
            with part.writing(answer.start, answer.validator):
                while data := answer.read():
                    if self._stop.is_set():
                        raise self._stopped()
                    self._check_size(part.size + len(data), part)
                    part.write(data)
                    pace.check(part.size)
                    if progress:
                        progress.update(shown, part.size, answer.total)
        finally:
            if progress:
                progress.finish(shown)
        if not part.size:
            # http.client takes a head that was cut for a whole one.
            raise Interrupted("nothing was sent", starts_over=True)
        if answer.total is not None and part.size != answer.total:
            raise Interrupted(
                f"cut after {part.size} of {answer.total} bytes",
                starts_over=part.size > answer.total,
            )

    def _check_size(self, size: int, part: Part) -> None:
        if size > self._options.max_bytes:
            part.discard()
            raise DownloadFailed(
                f"{self._location.shown}: longer than the {self._options.max_bytes} bytes that "
                "max_archive_bytes allows"
            )

    def _stopped(self) -> DownloadFailed:
        return DownloadFailed(f"{self._location.shown}: the download was stopped")


class _Pace:
    """Notices an other end that sends something, but next to nothing."""

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
            raise Interrupted(f"less than {_SLOWEST_BYTES_PER_S} bytes/s for {self._window_s:g} s")
        self._since, self._size = now, size


def in_megabytes(size: int) -> str:
    """Return a size for people."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size} bytes"

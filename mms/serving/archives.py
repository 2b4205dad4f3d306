"""Fetch and open a model's archive according to the server's settings, off the event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mms.archive.manifest import Manifest
from mms.archive.members import UnpackLimits
from mms.archive.reader import Archive, open_archive, read_manifest
from mms.config.settings import ServerSettings
from mms.errors import ConfigError, DownloadFailed
from mms.fetch.admission import parse_policy
from mms.fetch.download import FetchOptions, Progress, fetch_in_thread, local_file, opening
from mms.fetch.location import file_name, is_remote, parse_location, shown
from mms.serving.stamp import file_stamp

#: Downloads at once; more would only share the bandwidth.
_MOST_DOWNLOADS = 8
#: Of these from one host: a slow one must not hold up downloads from all others.
_MOST_PER_HOST = 2
#: Time limit of a download that the API requested, in seconds. Data received by then is kept, and
#: the next attempt resumes there.
_DEADLINE_S = 3600.0
_FOLDER = "mxnet-model-server"

T = TypeVar("T")


def fetch_options(
    settings: ServerSettings,
    progress: Progress | None = None,
    environment: Mapping[str, str] = os.environ,
) -> FetchOptions:
    """Return the fetch options of the server's settings.

    Raises:
        ConfigError: No folder for the cache is set, and the user has no home.
    """
    return FetchOptions(
        cache=_cache_folder(settings.cache_dir, environment),
        max_bytes=settings.max_archive_bytes,
        progress=progress,
    )


def _cache_folder(cache_dir: str, environment: Mapping[str, str]) -> Path:
    if cache_dir:
        return Path(cache_dir).expanduser()
    base = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / _FOLDER
    try:
        return Path.home() / ".cache" / _FOLDER
    except RuntimeError:
        # The user has no entry in the system's database, as in some containers.
        raise ConfigError(
            "the user has no home folder for downloaded archives; set cache_dir"
        ) from None


def stamp(location: str) -> Any:
    """Return a value that changes when a local file or folder changes; None if it is not local."""
    path = parse_location(location).path
    return file_stamp(str(path)) if path else None


class Fetching:
    """Fetches and opens archives for the model manager.

    Args:
        settings: The server's.
        progress: Receives the progress of downloads.
        deadline_s: Time limit, in seconds, of downloads that the operator did not request.
    """

    def __init__(
        self,
        settings: ServerSettings,
        progress: Progress | None = None,
        deadline_s: float = _DEADLINE_S,
    ) -> None:
        self.policy = parse_policy(settings.allowed_urls, settings.allow_private_urls)
        self._settings = settings
        self._limits = UnpackLimits(total_bytes=settings.max_unpacked_bytes)
        self._progress = progress
        self._deadline_s = deadline_s
        self._slots = asyncio.Semaphore(_MOST_DOWNLOADS)
        # A host's semaphore exists as long as a download uses it or waits for it.
        self._hosts: weakref.WeakValueDictionary[str, asyncio.Semaphore] = (
            weakref.WeakValueDictionary()
        )

    async def fetch(self, location: str, *, is_trusted: bool) -> Path:
        """Return the file or folder at a location.

        Args:
            location: Path or URL.
            is_trusted: Whether the operator named it. Otherwise, a remote location must be
                permitted by the policy; a local one has been checked by the caller.

        Raises:
            ArchiveError: It is not valid, or cannot be fetched.
            Forbidden: It is not permitted.
        """
        parsed = parse_location(location)
        if not parsed.is_remote:
            return await asyncio.to_thread(local_file, parsed)
        options = fetch_options(self._settings, self._progress)
        policy = None if is_trusted else self.policy
        # The host's slot first, so that no shared slot is held while waiting for a host.
        async with self._host_slots(parsed.url), self._slots:
            fetching = fetch_in_thread(location, options, policy)
            try:
                return await asyncio.wait_for(fetching, None if is_trusted else self._deadline_s)
            except asyncio.TimeoutError:
                raise DownloadFailed(
                    f"{parsed.shown}: the download did not finish within {self._deadline_s:g} s; "
                    "repeat the request to resume it"
                ) from None

    def _host_slots(self, url: str) -> asyncio.Semaphore:
        host = urlsplit(url).netloc.rpartition("@")[2]
        slots = self._hosts.get(host)
        if slots is None:
            slots = self._hosts[host] = asyncio.Semaphore(_MOST_PER_HOST)
        return slots

    async def open(
        self, location: str, path: Path, workspace: Path, handler: str = "", version: str = ""
    ) -> Archive:
        """Check and unpack what `fetch` returned.

        Raises:
            ArchiveError: As `open_archive`; names the location.
        """
        name = file_name(location)
        archive = await self._read(
            location,
            path,
            lambda: open_archive(path, workspace, self._limits, handler, name, version),
        )
        return dataclasses.replace(archive, source=shown(location))

    async def read_manifest(self, location: str, path: Path, handler: str = "") -> Manifest:
        """Read the manifest of what `fetch` returned.

        Raises:
            ArchiveError: As `read_manifest`; names the location.
        """
        name = file_name(location)
        parent = Path(self._settings.work_dir) if self._settings.work_dir else None
        return await self._read(
            location, path, lambda: read_manifest(path, handler, name, self._limits, parent)
        )

    async def _read(self, location: str, path: Path, read: Callable[[], T]) -> T:
        if not is_remote(location):
            return await asyncio.to_thread(read)
        options = fetch_options(self._settings)

        def read_fetched() -> T:
            with opening(location, path, options):
                return read()

        return await asyncio.to_thread(read_fetched)

"""Build a servable from a registration: fetch, open and load it, and unload it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from mms.archive.artefacts.recognise import newest_version
from mms.archive.reader import remove_unpacked
from mms.config.layers import with_archive_defaults
from mms.config.settings import ServerSettings, request_limits
from mms.errors import MMSError
from mms.fetch.location import parse_location
from mms.serving.archives import Fetching, stamp
from mms.serving.pool.placement import Placement
from mms.serving.registration import Registration, Trust
from mms.serving.servable import Servable
from mms.telemetry.counters import ServableMetrics

logger = logging.getLogger("mms.controlplane")


class Builder:
    """Opens archives, and loads and unloads their models.

    Args:
        fetching: Fetches and opens archives.
        make_environment: Returns the environment of a worker for a number of compute threads.
        workspace: Folder to unpack archives in.
    """

    def __init__(
        self,
        fetching: Fetching,
        make_environment: Callable[[int], Mapping[str, str]],
        workspace: Path,
    ) -> None:
        self._fetching = fetching
        self._make_environment = make_environment
        self._workspace = workspace
        self._placement = Placement()
        self._hurry = asyncio.Event()

    async def fetch(self, registration: Registration) -> Path:
        """Return the file or folder of a registration's archive.

        Raises:
            ArchiveError: It is not valid, or cannot be fetched.
            Forbidden: It was named by a caller and is not permitted.
        """
        is_trusted = registration.trust is Trust.OPERATOR
        return await self._fetching.fetch(registration.path, is_trusted=is_trusted)

    async def version_of(self, registration: Registration) -> str | None:
        """Return the version that a registration asks for, or that its model has by itself.

        Returns:
            None if it is any: a model has one if it lies in folders that number its versions.
        """
        if registration.version is not None:
            return registration.version
        path = parse_location(registration.path).path
        return await asyncio.to_thread(newest_version, path) if path else None

    async def open(
        self,
        registration: Registration,
        version: str,
        settings: ServerSettings,
        fetched: Path | None = None,
        metrics: ServableMetrics | None = None,
    ) -> Servable:
        """Return a servable that is not loaded yet.

        Args:
            registration: The registration.
            version: Its version.
            settings: The server's.
            fetched: The fetched file or folder, if it has just been fetched.
            metrics: Counters of the servable that it replaces, to continue them.

        Raises:
            MMSError: There is no valid archive. Nothing is left on disk then.
        """
        # Before it is read, so that a change meanwhile is detected.
        seen = await asyncio.to_thread(stamp, registration.path)
        if fetched is None:
            fetched = await self.fetch(registration)
        archive = await self._fetching.open(
            registration.path, fetched, self._workspace, registration.settings.handler, version
        )
        extra = {"model": registration.name}
        if archive.family:
            logger.info("%s: served as %s", archive.source, archive.family, extra=extra)
        for note in archive.notes:
            logger.info("%s: %s", archive.source, note, extra=extra)
        try:
            servable = Servable(
                registration.name,
                version,
                archive,
                with_archive_defaults(
                    registration.settings, archive.manifest.serving, registration.origins
                ),
                settings.max_response_bytes,
                self._make_environment,
                registration.size,
                self._placement,
                request_limits(settings),
                metrics=metrics,
            )
        except BaseException:
            remove_unpacked(archive, self._workspace)
            raise
        servable.stamp = seen
        return servable

    async def load(self, servable: Servable) -> None:
        """Start a servable's workers, and wait until they are ready.

        Raises:
            MMSError: The model does not load; the message names it and its archive.
        """
        extra = {"model": servable.name}
        logger.info("loading %s", servable.archive.source, extra=extra)
        try:
            await servable.load()
        except MMSError as error:
            error.args = (f"model {servable.name!r} ({servable.archive.source}): {error}",)
            raise
        seconds = servable.metrics.load_seconds
        logger.info(
            "ready with %d workers after %.2f s", len(servable.pool.workers), seconds, extra=extra
        )

    async def unload(self, servable: Servable, timeout_s: float) -> None:
        """Let a servable finish its accepted requests, stop its workers and remove its files.

        Args:
            servable: The servable, loaded or not.
            timeout_s: Time that accepted requests have to finish.
        """
        await servable.unload(timeout_s, self._hurry)
        remove_unpacked(servable.archive, self._workspace)

    def hurry(self) -> None:
        """Stop waiting for the requests of servables that are being unloaded."""
        self._hurry.set()

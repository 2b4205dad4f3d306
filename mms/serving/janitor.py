"""Periodic work: upkeep of servables, the memory budget, changed files.

The memory of processes is read in a thread: the kernel walks all their pages for it, and holds
their locks meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time

from mms.errors import MMSError
from mms.serving.archives import stamp
from mms.serving.controlplane import ControlPlane
from mms.serving.lifecycle import ServableState
from mms.serving.memory import read_memory, shared_bytes
from mms.serving.pool.child import reap_orphans
from mms.serving.registry import Registry
from mms.serving.tasks import Tasks

logger = logging.getLogger("mms.janitor")

HOUSEKEEPING_S = 0.5


class Janitor:
    """Performs the periodic work on servables while the server runs.

    Args:
        controlplane: Reloads changed models.
        registry: The current models.
    """

    def __init__(self, controlplane: ControlPlane, registry: Registry) -> None:
        self._controlplane = controlplane
        self._registry = registry
        self._reloads = Tasks()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the periodic work; `stop` ends it."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End all work, including reloads of changed files."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._reloads.cancel()

    async def _run(self) -> None:
        watches, watched_at = self._controlplane.settings.watch, time.monotonic()
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            now = time.monotonic()
            try:
                reap_orphans()
                await self._keep_up(now)
                if self._controlplane.settings.memory_budget:
                    await self._keep_within_budget()
                is_due = now - watched_at >= self._controlplane.settings.watch_interval
                if watches and is_due and not self._reloads:
                    watched_at = now
                    # In the background: a load may take long, or hang.
                    self._reloads.start(self._reload_changed())
            except Exception:
                # A failure must not end the periodic work.
                logger.exception("housekeeping failed")

    async def _keep_up(self, now: float) -> None:
        servables = self._registry.servables()
        limited = [s for s in servables if s.limits_memory]
        pids = [worker.child.pid for s in limited for worker in s.pool.workers]
        memory = await asyncio.to_thread(read_memory, pids) if pids else {}
        for servable in servables:
            servable.housekeep(now, memory)

    async def _keep_within_budget(self) -> None:
        """Unload idle models, least recently used first, until the rest fit."""
        servables = [s for s in self._registry.servables() if s.state is ServableState.READY]
        pids = [servable.pids for servable in servables]
        sizes = await asyncio.to_thread(lambda: list(map(shared_bytes, pids)))
        used = dict(zip(servables, sizes, strict=True))
        excess = sum(sizes) - self._controlplane.settings.memory_budget
        for servable in sorted(servables, key=lambda s: s.last_used_at):
            if excess <= 0:
                return
            if servable.settings.pinned or not servable.lane.is_empty:
                continue
            logger.info("unloaded to stay within memory_budget", extra={"model": servable.name})
            excess -= used[servable]
            await servable.sleep()

    async def _reload_changed(self) -> None:
        for servable in self._registry.servables():
            path = self._controlplane.path_of(servable)
            if path is None:
                continue
            current = await asyncio.to_thread(stamp, path)
            # None: the archive is remote, or has been deleted.
            if current == servable.stamp or current is None:
                continue
            extra = {"model": servable.name}
            logger.info("%s has changed; reloading", path, extra=extra)
            # If it does not load, it is not retried until it changes again.
            servable.stamp = current
            try:
                await self._controlplane.replace(servable)
            except MMSError as error:
                detail = error.detail.traceback if error.detail else ""
                logger.error(
                    "the change cannot be loaded; the old version continues to serve: %s%s",
                    error,
                    f"; {detail}" if detail else "",
                    extra=extra,
                )

"""Periodic decisions for a servable: scale up or down, recycle workers, recover. Pure."""

from __future__ import annotations

import math

from mms.config.settings import ModelSettings

#: Delay before a FAILED model is loaded again automatically, seconds: initial and maximum.
RECOVER_FIRST_S = 30.0
RECOVER_MAX_S = 600.0


class Autoscaler:
    """Decides the number of workers, one step at a time.

    Scales up while requests wait longer than `scale_up_wait`, and down after a period in which some
    worker was idle throughout.
    """

    def __init__(self) -> None:
        self._all_busy_at = -math.inf

    def target(
        self,
        settings: ModelSettings,
        now: float,
        *,
        size: int,
        floor: int,
        oldest_wait_s: float,
        idle: int,
        starting: int,
    ) -> int:
        """Return the target number of workers.

        Args:
            settings: The model's.
            now: Monotonic time.
            size: Current number of workers.
            floor: Minimum number of workers.
            oldest_wait_s: Age of the oldest queued request, in seconds.
            idle: Number of idle workers.
            starting: Number of workers being started; no scaling up meanwhile.
        """
        if idle == 0:
            self._all_busy_at = now
        if oldest_wait_s * 1000 > settings.scale_up_wait:
            return size if starting else min(size + 1, settings.max_workers)
        if size > floor and now - self._all_busy_at > settings.scale_down_after:
            # One at a time: the next is stopped only after another quiet period.
            self._all_busy_at = now
            return size - 1
        return size


def recycling_reason(
    settings: ModelSettings,
    *,
    age_s: float,
    resident_bytes: int,
    private_bytes: int,
    requests: int,
    spread: int,
) -> str:
    """Return why a worker should be replaced, as a label of a metric; "" if it should not.

    Args:
        settings: The model's.
        age_s: Time since it became ready, in seconds.
        resident_bytes: Its resident memory.
        private_bytes: The part of it that is not backed by a file.
        requests: Requests it has served.
        spread: A number that differs between workers, so that they are not all replaced at once.
    """
    limit = settings.max_requests
    if limit and requests >= limit + spread % max(limit // 10, 1):
        return "max_requests"
    if settings.max_worker_age and age_s > settings.max_worker_age:
        return "max_age"
    if settings.max_worker_memory and resident_bytes > settings.max_worker_memory:
        return "max_memory"
    if settings.worker_memory_limit and private_bytes > settings.worker_memory_limit:
        # It leaks: soon there would be memory for small requests only.
        return "max_memory"
    return ""


class Recovery:
    """Decides when to retry loading a FAILED model, with exponential back-off."""

    def __init__(self) -> None:
        self._wait_s = RECOVER_FIRST_S
        self._due_at = math.inf

    def failed(self, now: float) -> None:
        """Record a failure."""
        self._due_at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, RECOVER_MAX_S)

    def recovered(self) -> None:
        """Record that the model is loaded."""
        self._wait_s, self._due_at = RECOVER_FIRST_S, math.inf

    def is_due(self, now: float) -> bool:
        """Return whether to retry now; true once per failure."""
        if now < self._due_at:
            return False
        self._due_at = math.inf
        return True

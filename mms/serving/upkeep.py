"""What is due now and then for a servable: grow, shrink, replace workers, try again. Pure."""

from __future__ import annotations

import math

from mms.config.settings import ModelSettings

#: When a FAILED model is loaded again by itself, seconds: at first, and at most.
RECOVER_FIRST_S = 30.0
RECOVER_MAX_S = 600.0


class Autoscaler:
    """Decides how many workers there should be, one step at a time.

    Grows while requests wait longer than they should, and shrinks again after a time in which
    some worker was idle all along.
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
        """Return the number of workers there should be.

        Args:
            settings: The model's.
            now: Monotonic time.
            size: Workers there are.
            floor: Workers there must be at least.
            oldest_wait_s: How long the longest waiting request has waited.
            idle: Workers that wait for a batch.
            starting: Workers on their way; nothing grows meanwhile.
        """
        if idle == 0:
            self._all_busy_at = now
        if oldest_wait_s * 1000 > settings.scale_up_wait:
            return size if starting else min(size + 1, settings.max_workers)
        if size > floor and now - self._all_busy_at > settings.scale_down_after:
            # One at a time: the next one goes only after another quiet time.
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
        age_s: Time since it was ready.
        resident_bytes: Its memory.
        private_bytes: The part of it that belongs to no file.
        requests: Requests it has served.
        spread: A number that differs between workers, so that they do not all go at once.
    """
    limit = settings.max_requests
    if limit and requests >= limit + spread % max(limit // 10, 1):
        return "max_requests"
    if settings.max_worker_age and age_s > settings.max_worker_age:
        return "max_age"
    if settings.max_worker_memory and resident_bytes > settings.max_worker_memory:
        return "max_memory"
    if settings.worker_memory_limit and private_bytes > settings.worker_memory_limit:
        # It leaks: soon nothing but small requests would find memory.
        return "max_memory"
    return ""


class Recovery:
    """Decides when a FAILED model is tried again: less often each time it fails again."""

    def __init__(self) -> None:
        self._wait_s = RECOVER_FIRST_S
        self._due_at = math.inf

    def failed(self, now: float) -> None:
        """Record a failure."""
        self._due_at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, RECOVER_MAX_S)

    def recovered(self) -> None:
        """Record that the model serves."""
        self._wait_s, self._due_at = RECOVER_FIRST_S, math.inf

    def is_due(self, now: float) -> bool:
        """Whether to try again now; true once for each failure."""
        if now < self._due_at:
            return False
        self._due_at = math.inf
        return True

"""Failed attempts at the token: one line each in the audit log, and slower from try to try."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

audit = logging.getLogger("mms.audit")

#: Addresses remembered at once; the one whose last failure is the oldest is forgotten first.
MOST_ADDRESSES = 1024
LONGEST_DELAY_S = 1.0
_FIRST_DELAY_S = 0.05
#: Enough for any delay, and no huge number after a million failures.
_MOST_DOUBLINGS = 20
#: A typing mistake is forgiven after so many seconds without another.
_FORGIVEN_AFTER_S = 60.0
#: Least seconds between two lines about one address; a guesser must not fill the disk.
_LINE_INTERVAL_S = 1.0
#: Whoever has one IPv6 address usually has its whole /64 to send from.
_IPV6_PREFIX = 64


@dataclass(slots=True)
class _Record:
    count: int = 0
    failed_at: float = 0.0
    logged_at: float | None = None
    unlogged: int = 0


class Failures:
    """Remembers who failed how often.

    Args:
        longest_delay_s: The most that an answer is held back, in seconds; 0 turns that off.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        longest_delay_s: float = LONGEST_DELAY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._longest_delay_s = longest_delay_s
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    async def record(self, address: str, what: str) -> None:
        """Count and log a failure, and wait before it may be answered."""
        delay_s = self.note(address, what)
        if delay_s:
            await asyncio.sleep(delay_s)

    def note(self, address: str, what: str) -> float:
        """Count and log a failure.

        Args:
            address: Where it came from.
            what: What was tried, for the log.

        Returns:
            Seconds to hold the answer back.
        """
        now, key = self._clock(), _network(address)
        record = self._records.pop(key, None)
        if record is None or now - record.failed_at >= _FORGIVEN_AFTER_S:
            record = _Record()
        self._records[key] = record
        if len(self._records) > MOST_ADDRESSES:
            self._records.popitem(last=False)
        record.count += 1
        record.failed_at = now
        self._log(record, address, what, now)
        doubled = _FIRST_DELAY_S * (1 << min(record.count - 1, _MOST_DOUBLINGS))
        return min(doubled, self._longest_delay_s)

    def _log(self, record: _Record, address: str, what: str, now: float) -> None:
        if record.logged_at is not None and now - record.logged_at < _LINE_INTERVAL_S:
            record.unlogged += 1
            return
        more = f" ({record.unlogged} more since the last line)" if record.unlogged else ""
        audit.warning("%s from %s%s", what, address or "unknown address", more)
        record.logged_at, record.unlogged = now, 0


def _network(address: str) -> str:
    """Return what one sender controls: an IPv4 address, or an IPv6 network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed), _IPV6_PREFIX), strict=False))

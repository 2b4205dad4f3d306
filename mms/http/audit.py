"""Failed authentication: a line each in the audit log, and a growing delay for guessers."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

audit = logging.getLogger("mms.audit")

#: Addresses tracked at once; the one with the oldest last failure is evicted first.
MOST_ADDRESSES = 1024
LONGEST_DELAY_S = 1.0
_FIRST_DELAY_S = 0.05
#: Enough for any delay, and no overflow after a million failures.
_MOST_DOUBLINGS = 20
#: Seconds without a failure after which earlier ones (typing mistakes, say) are forgotten.
_FORGIVEN_AFTER_S = 60.0
#: Minimum seconds between two log lines about one address; a guesser must not fill the disk.
_LINE_INTERVAL_S = 1.0
#: A host with one IPv6 address can usually send from its whole /64.
_IPV6_PREFIX = 64


@dataclass(slots=True)
class _Record:
    count: int = 0
    failed_at: float = 0.0
    logged_at: float | None = None
    unlogged: int = 0


class Failures:
    """Counts authentication failures by address.

    Args:
        longest_delay_s: Maximum delay of a response, in seconds; 0 disables delays.
        clock: Monotonic time in seconds.
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
        """Count and log a failure, and wait for as long as its response is to be delayed."""
        delay_s = self.note(address, what)
        if delay_s:
            await asyncio.sleep(delay_s)

    def note(self, address: str, what: str) -> float:
        """Count and log a failure.

        Args:
            address: The client's address.
            what: The kind of failure, for the log.

        Returns:
            Seconds by which to delay the response.
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
    """Return the network that a single sender controls: an IPv4 address or an IPv6 /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed), _IPV6_PREFIX), strict=False))

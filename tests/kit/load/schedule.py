"""When requests of an open loop come, and what their latencies come to."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator, Sequence

#: Shares of the requests whose latencies are reported, by the name of the figure.
PERCENTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "p99_9_ms": 0.999}


def arrivals(rate: float, draw: random.Random, burst: int = 1) -> Iterator[float]:
    """Return the times, in seconds from now, at which independent clients ask, without an end.

    Gaps between them are exponentially distributed.

    Args:
        rate: Requests per second.
        draw: Source of the gaps.
        burst: How many requests come at each of the times; the rate stays what it is.
    """
    at = 0.0
    while True:
        at += draw.expovariate(rate / burst)
        yield from [at] * burst


def poisson(
    rate: float, warm_up_s: float, seconds: float, seed: int, burst: int = 1
) -> array[float]:
    """Return the times, in seconds from now, at which clients ask during a measurement.

    The same seed gives the same times, so that a server and its reference are asked alike.

    Args:
        rate: Requests per second.
        warm_up_s: Seconds that do not count.
        seconds: Seconds after them that do. However low the rate, there is one request to count,
            if need be a late one.
        seed: Of the random numbers.
        burst: As of `arrivals`.
    """
    times = array("d")
    for at in arrivals(rate, random.Random(seed), burst):
        if at >= warm_up_s + seconds and times and times[-1] >= warm_up_s:
            break
        times.append(at)
    return times


def percentiles(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return milliseconds by name, as nearest ranks; empty without any latency.

    With fewer than a thousand latencies, p99.9 is simply the longest of them.
    """
    ordered = sorted(latencies_s)
    if not ordered:
        return {}
    return {
        name: ordered[max(math.ceil(share * len(ordered)) - 1, 0)] * 1000
        for name, share in PERCENTILES.items()
    }

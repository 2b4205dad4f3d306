"""The pure parts of the edge, and what it relies on."""

from __future__ import annotations

from aiohttp import web

from mms.http.connection import Connection
from mms.http.limiter import LineLimiter


def test_v18_lines_are_admitted_a_few_at_a_time_and_the_others_summed_up() -> None:
    limiter = LineLimiter(2, 10.0)
    assert [limiter.admit(now) for now in (0.0, 1.0, 2.0, 3.0)] == [True, True, False, False]
    assert limiter.take_suppressed(9.0) == 0
    assert limiter.take_suppressed(10.0) == 2
    assert limiter.take_suppressed(11.0) == 0
    assert limiter.admit(12.0)


def test_what_aiohttp_is_relied_on_for_is_there() -> None:
    """Private names of aiohttp that `mms.http.connection` uses, in the version installed."""
    attributes = {"_waiter", "_request_count", "_keepalive_timeout", "_force_close"}
    assert attributes <= set(web.RequestHandler.__slots__)
    for name in ("_handle_request", "handle_error", "log_exception", "start", "force_close"):
        assert getattr(Connection, name) is not None
        assert hasattr(web.RequestHandler, name)
    assert hasattr(web.AppRunner, "_make_server")

"""Serve the management API on the port of the inference API, as MMS 1.x does on equal addresses."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mms.config.settings import ServerSettings
from mms.http.context import Context
from mms.http.guard import Guard, Route, make_guard_middleware
from mms.http.management import make_management_app


def has_one_port(settings: ServerSettings) -> bool:
    """Return whether both APIs have the same address."""
    inference = (settings.host, settings.port)
    # Port 0 is a free one for each.
    return settings.port > 0 and inference == (settings.management_host, settings.management_port)


def add_management(app: web.Application, context: Context, guard: Guard) -> None:
    """Add the management API's routes to the inference application, each behind its guard.

    Routes that both APIs have stay the inference application's.

    Args:
        app: The inference application, complete.
        context: The objects that both share.
        guard: Checks the requests.
    """
    management = make_management_app(context, guard)
    for key in management:
        app.setdefault(key, management[key])
    app.on_shutdown.extend(management.on_shutdown)
    check = make_guard_middleware(guard, lambda: context.dataplane.is_draining)
    taken = {(route.method, _path(route)) for route in app.router.routes()}
    for route in management.router.routes():
        if (route.method, _path(route)) not in taken:
            app.router.add_route(route.method, _path(route), _guarded(check, route.handler))


def _path(route: web.AbstractRoute) -> str:
    return route.resource.canonical if route.resource else ""


def _guarded(check: Any, handler: Any) -> Route:
    async def guarded(request: web.Request) -> web.StreamResponse:
        answer: web.StreamResponse = await check(request, handler)
        return answer

    guarded.__doc__ = handler.__doc__
    return guarded

"""Build the inference application: all routes and the middleware."""

from __future__ import annotations

from aiohttp import web

from mms.config.address import is_loopback
from mms.config.settings import ServerSettings
from mms.http import describe, docs, inference, paths, sagemaker, status, v1
from mms.http import oip as v2
from mms.http.context import CONTEXT, Context
from mms.http.cors import Cors
from mms.http.guard import Guard
from mms.http.middleware import make_middleware


def make_app(context: Context, guard: Guard) -> web.Application:
    """Return the inference application.

    Args:
        context: The objects shared by handlers.
        guard: Refuses web pages where only this machine is served, and callers without the token
            on the routes that manage models.
    """
    settings = context.settings
    # A page in a browser on this machine could otherwise run models and read their responses. Where
    # other machines are served, anyone may send requests, and proxies use other host names.
    # A page that `cors_allowed_origin` permits may do that.
    cors = Cors(settings)
    check = guard.check_host if cors.takes_any else guard.check_page
    app = web.Application(
        middlewares=[
            make_middleware(
                context.dataplane,
                shows_errors(settings),
                check if is_loopback(settings.host) else None,
            )
        ],
        # Handlers read bodies with their own limit; this one only covers aiohttp's own readers.
        client_max_size=settings.max_request_bytes,
    )
    cors.install(app)
    app[CONTEXT] = context
    status.add_routes(app)
    describe.add_routes(app)
    sagemaker.add_routes(
        app,
        guard if settings.multi_model else None,
        shows_paths=guard.asks_for_token or is_loopback(settings.host),
    )
    docs.add_routes(app)
    v2.add_routes(app)
    v1.add_routes(app)
    # Last, because `/{model}/predict` begins with a variable.
    inference.add_routes(app)
    paths.add_route(app)
    return app


def shows_errors(settings: ServerSettings) -> bool:
    """Return whether errors may show a service's exception: by default only on loopback."""
    if settings.debug_errors != "auto":
        return settings.debug_errors == "on"
    return is_loopback(settings.host)

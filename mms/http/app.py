"""Put the application together: every route, one middleware."""

from __future__ import annotations

import ipaddress

from aiohttp import web

from mms.config import ServerSettings
from mms.http import describe, docs, inference, sagemaker, status, v2
from mms.http.context import CONTEXT, Context
from mms.http.middleware import make_middleware


def make_app(context: Context) -> web.Application:
    """Give the inference application."""
    settings = context.settings
    app = web.Application(
        middlewares=[make_middleware(context.metrics, shows_errors(settings), settings.access_log)],
        # Bodies are read by us, with our own limit; this one only guards what reads otherwise.
        client_max_size=settings.max_request_bytes,
    )
    app[CONTEXT] = context
    status.add_routes(app)
    describe.add_routes(app)
    sagemaker.add_routes(app, settings.multi_model)
    docs.add_routes(app)
    v2.add_routes(app)
    # Last, because `/{model}/predict` begins with a variable.
    inference.add_routes(app)
    return app


def shows_errors(settings: ServerSettings) -> bool:
    """Whether answers may show what a service raised: only to this machine, unless told so."""
    if settings.debug_errors != "auto":
        return settings.debug_errors == "on"
    return is_loopback(settings.host)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

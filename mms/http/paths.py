"""Paths as 0.4 and 1.x read them: a slash too many, inside or at the end, says nothing."""

from __future__ import annotations

import re

from aiohttp import web
from yarl import URL

from mms.http.middleware import CALL

_SLASHES = re.compile("//+")


def add_route(app: web.Application) -> None:
    """Add the route of paths that have a slash too many; the last one, so that others are first."""
    app.router.add_route("*", "/{path:/.*|.*//.*|.+/}", tidied, name="tidied")


async def tidied(request: web.Request) -> web.StreamResponse:
    """Answer as the route of the path without these slashes does."""
    url = request.rel_url
    path = _SLASHES.sub("/", url.raw_path).rstrip("/") or "/"
    tidy = URL.build(path=path, query_string=url.raw_query_string, encoded=True)
    asked = request.clone(rel_url=tidy)
    found = await request.app.router.resolve(asked)
    found.add_app(request.app)
    asked._match_info = found
    # Counted under the route that answers.
    request[CALL].route = found.route.name or "unknown"
    return await found.handler(asked)

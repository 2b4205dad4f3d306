"""Routes that describe the API: OpenAPI documents, and a page to browse them and try the models."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from functools import cache
from importlib import resources

import orjson
from aiohttp import web

from mms.http.context import CONTEXT
from mms.http.openapi.description import Document, models_of
from mms.http.openapi.document import api_document, model_document, routes_document, routes_of
from mms.http.response import json_response

_PAGE = "static/docs.html"


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    _page()  # read at start-up, not while a client waits
    app.router.add_get("/openapi.json", openapi, name="openapi")
    app.router.add_get("/docs", docs, name="docs")
    app.router.add_options("/", options, name="options")
    app.router.add_options("/predictions/{model}", model_api, name="model_api")
    app.router.add_options("/{model}/predict", model_api, name="model_api_v04")


async def openapi(request: web.Request) -> web.Response:
    """Describe the current API in OpenAPI 3, each model with the inputs of its signature."""
    routes, models = routes_of(request.app), models_of(request.app[CONTEXT].registry)
    # In a thread: it reads the models' sample requests from disk.
    return _json(await asyncio.to_thread(api_document, routes, models))


async def options(request: web.Request) -> web.Response:
    """Describe the API's routes in OpenAPI 3, as MMS 1.x did."""
    return _json(routes_document(routes_of(request.app)))


async def model_api(request: web.Request) -> web.Response:
    """Describe one model in OpenAPI 3.

    Raises:
        ModelNotFound: No model has this name.
    """
    name = request.app[CONTEXT].registry.model(request.match_info["model"]).name
    models = [model for model in models_of(request.app[CONTEXT].registry) if model.name == name]
    return _json(await asyncio.to_thread(model_document, routes_of(request.app), models))


async def docs(_: web.Request) -> web.Response:
    """Return a page that shows the API and tries the models; it works offline."""
    page, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return web.Response(body=page, content_type="text/html", charset="utf-8", headers=headers)


@cache
def _page() -> tuple[bytes, str]:
    """Return the page, and a content security policy that permits its own script and style only."""
    page = resources.files(__package__).joinpath(_PAGE).read_bytes()
    sources = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
            for text in re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        )
        for tag in (b"script", b"style")
    }
    policy = (
        f"default-src 'none'; script-src {sources[b'script']}; style-src {sources[b'style']}; "
        "connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page, policy


def _json(document: Document) -> web.Response:
    return json_response(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")

"""Read and check the parameters of the model management routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson
from aiohttp import web

from mms.errors import InvalidRequest
from mms.http.body import read_body
from mms.http.context import CONTEXT
from mms.serving.registry import Model

MAX_BODY_BYTES = 1 << 20
_BODY_TIMEOUT_S = 30.0
_PAGE = 100
#: Maximum of numbers without a limit of their own: weights and positions in a list.
_MOST = 999_999_999
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


async def read_parameters(request: web.Request) -> dict[str, Any]:
    """Return the parameters of a request, from its query, form or JSON object."""
    parameters: dict[str, Any] = dict(request.query)
    chunks, size = await read_body(request, MAX_BODY_BYTES, _BODY_TIMEOUT_S)
    if not size:
        return parameters
    body = b"".join(chunks)
    if request.content_type == "application/x-www-form-urlencoded" and not body.startswith(b"{"):
        return parameters | dict(parse_qsl(body.decode(errors="replace")))
    return parameters | _to_object(body)


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the JSON object in the body; an empty object if there is no body."""
    chunks, size = await read_body(request, MAX_BODY_BYTES, _BODY_TIMEOUT_S)
    return _to_object(b"".join(chunks)) if size else {}


def _to_object(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object")
    return document


def refuse_unknown(parameters: Mapping[str, Any]) -> None:
    """Refuse the parameters left after all known ones have been removed.

    Raises:
        InvalidRequest: A parameter is left.
    """
    for key in parameters:
        raise InvalidRequest(f"unknown parameter {str(key)[:100]!r}")


def to_integer(value: Any, name: str, maximum: int = _MOST) -> int:
    """Return a parameter that is an integer >= 0.

    Raises:
        InvalidRequest: It is not one, or exceeds its maximum.
    """
    text = str(value)
    is_number = not isinstance(value, bool) and text.isascii() and text.isdecimal()
    # The length first: Python raises for very long numbers.
    if not is_number or len(text) > len(str(_MOST)) or int(text) > maximum:
        raise InvalidRequest(
            f"Parameter {name} must be an integer from 0 to {maximum}, got {text[:50]!r}"
        )
    return int(text)


def to_bool(value: Any, name: str) -> bool:
    """Return a parameter that is true or false.

    Raises:
        InvalidRequest: It is neither.
    """
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise InvalidRequest(f"Parameter {name} must be true or false, got {text[:50]!r}")
    return text in _TRUE


def page_of_models(request: web.Request, describe: Callable[[Model], Any]) -> dict[str, Any]:
    """Return the requested page of the list of models.

    Args:
        request: Has the page size (`limit`) and the start (`next_page_token`).
        describe: Returns a model's entry in the list.

    Raises:
        InvalidRequest: `limit` or `next_page_token` is not an integer.
    """
    limit = to_integer(request.query.get("limit", _PAGE), "limit")
    start = to_integer(request.query.get("next_page_token", 0), "next_page_token")
    end = start + min(max(limit, 1), _PAGE)
    models = list(request.app[CONTEXT].registry.models())
    document: dict[str, Any] = {"models": [describe(model) for model in models[start:end]]}
    if end < len(models):
        document["nextPageToken"] = str(end)
    return document

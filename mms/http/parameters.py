"""Read and check the parameters of the model management routes.

As in 1.x, what a call does not know is not heeded, and neither is a number that is none; here the
log and the answer's Warning header say so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container, Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson
import yaml
from aiohttp import hdrs, web

from mms.errors import InvalidRequest
from mms.http.body import read_body
from mms.http.context import CONTEXT
from mms.serving.registry import Model

logger = logging.getLogger("mms.management")

MAX_BODY_BYTES = 1 << 20
#: Longer bodies have to be JSON by the letter: the other parser takes 20 microseconds per byte.
_MAX_LENIENT_BYTES = 4 << 10
_BODY_TIMEOUT_S = 30.0
_PAGE = 100
#: Maximum of numbers without a limit of their own: weights and positions in a list.
_MOST = 999_999_999
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
#: What 1.x reads as a number. Longer ones are out of any range, and Python does not read them.
_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_MAX_DIGITS = 18
_MAX_QUOTED_CHARS, _MAX_NOTES_CHARS = 50, 500


class Parameters:
    """The parameters of a call, each taken once; what is left at the end is not heeded.

    Args:
        values: The parameters.

    Attributes:
        notes: What is not heeded, and why.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self.notes: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str) -> Any:
        """Return a parameter and leave it, None if it is not given."""
        return self._values.get(name)

    def take(self, name: str, default: Any = None) -> Any:
        """Return a parameter."""
        return self._values.pop(name, default)

    def take_all(self, names: Container[str]) -> dict[str, Any]:
        """Return the parameters with these names."""
        return {name: self._values.pop(name) for name in list(self._values) if name in names}

    def integer(self, name: str, default: int, maximum: int | None = None) -> int:
        """Return a parameter that is an integer; the default if it is none, as in 1.x.

        Args:
            name: The parameter.
            default: What counts if it is not given, or is no integer.
            maximum: The highest value, where there is one; the lowest is then 0.

        Raises:
            InvalidRequest: It is an integer, and out of range.
        """
        value = self._values.pop(name, None)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not _INTEGER.fullmatch(text := _text(value)):
            self.notes.append(f"{name} {_quoted(value)} is no number: {default} is taken")
            return default
        if len(text) <= _MAX_DIGITS:
            number = int(text)
        else:
            number = -1 if text.startswith("-") else max(_MOST, maximum or 0) + 1
        if maximum is not None and not 0 <= number <= maximum:
            raise InvalidRequest(
                f"Parameter {name} must be an integer from 0 to {maximum}, got {_quoted(value)}"
            )
        return number

    def drop_words(self, names: Container[str]) -> None:
        """Drop those of these parameters that do not begin like a number, as 1.x did."""
        for name, value in list(self._values.items()):
            if name in names and isinstance(value, str) and not re.match(r"\s*[+-]?\.?\d", value):
                del self._values[name]
                self.notes.append(f"{name} {_quoted(value)} is no number: it is not set")

    def flag(self, name: str, default: bool) -> bool:
        """Return whether a parameter is "true", in any case; 1.x takes all else for false."""
        value = self._values.pop(name, None)
        return default if value is None else _text(value).lower() == "true"

    def refuse_rest(self) -> None:
        """Refuse the parameters that are left.

        Raises:
            InvalidRequest: There are some.
        """
        refuse_unknown(self._values)

    def drop_rest(self) -> None:
        """Note the parameters that are left."""
        self.notes += [f"the parameter {_quoted(name)} is unknown" for name in self._values]
        self._values.clear()

    def warning(self, call: str) -> dict[str, str]:
        """Return the header that says what is not heeded, and log it; empty if all is.

        Args:
            call: The call's name, for the log.
        """
        if not self.notes:
            return {}
        text = "; ".join(self.notes)[:_MAX_NOTES_CHARS]
        logger.warning("%s: %s", call, text)
        printable = text.encode("ascii", "backslashreplace").decode().replace('"', "'")
        return {hdrs.WARNING: f'299 - "{printable}"'}


async def read_parameters(request: web.Request) -> Parameters:
    """Return the parameters of a request, from its query, form or JSON object.

    Raises:
        InvalidRequest: The body is neither.
    """
    parameters: dict[str, Any] = dict(request.query)
    chunks, size = await read_body(request, MAX_BODY_BYTES, _BODY_TIMEOUT_S)
    if not size:
        return Parameters(parameters)
    body = b"".join(chunks)
    if request.content_type == "application/x-www-form-urlencoded" and not body.startswith(b"{"):
        return Parameters(parameters | dict(parse_qsl(body.decode(errors="replace"))))
    try:
        return Parameters(parameters | _to_object(body))
    except InvalidRequest:
        document = _read_leniently(body)
        if document is None:
            raise
        return Parameters(parameters | document)


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


class _LenientLoader(yaml.BaseLoader):
    """Reads an object in the manner of 1.x's parser: single quotes, names without any.

    All values are text. References are refused, since each may stand for many values.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """PyYAML: refuse references."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references are not supported")
        return super().compose_node(parent, index)


def _read_leniently(body: bytes) -> dict[str, Any] | None:
    """Return an object that is JSON in 1.x's eyes, None if it is none."""
    if len(body) > _MAX_LENIENT_BYTES or not body.lstrip().startswith(b"{"):
        return None
    try:
        document = _LenientLoader(body.decode()).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def refuse_unknown(parameters: Mapping[str, Any]) -> None:
    """Refuse the parameters left after all known ones have been removed.

    Raises:
        InvalidRequest: A parameter is left.
    """
    for key in parameters:
        raise InvalidRequest(f"unknown parameter {str(key)[:100]!r}")


def to_integer(value: Any, name: str) -> int:
    """Return a number that must be an integer >= 0.

    Raises:
        InvalidRequest: It is not one, or is out of range.
    """
    text = _text(value)
    if isinstance(value, bool) or not _INTEGER.fullmatch(text) or not 0 <= int(text) <= _MOST:
        raise InvalidRequest(
            f"Parameter {name} must be an integer from 0 to {_MOST}, got {_quoted(value)}"
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

    As in 1.x, a page has 100 models unless `limit` is less, and a limit of 0 gives an empty page.

    Args:
        request: Has the page size (`limit`) and the start (`next_page_token`).
        describe: Returns a model's entry in the list.
    """
    query = Parameters(request.query)
    limit = query.integer("limit", _PAGE)
    start = max(query.integer("next_page_token", 0), 0)
    end = start + (limit if 0 <= limit <= _PAGE else _PAGE)
    models = list(request.app[CONTEXT].registry.models())
    document: dict[str, Any] = {"models": [describe(model) for model in models[start:end]]}
    if end < len(models):
        document["nextPageToken"] = str(end)
    return document


def _text(value: Any) -> str:
    """Return a parameter's text; of what is neither text nor a number, its quoted beginning."""
    return str(value) if isinstance(value, (str, bool, int, float)) else _quoted(value)


def _quoted(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"of type {type(value).__name__}"
    text = repr(value if not isinstance(value, str) else value[: 2 * _MAX_QUOTED_CHARS])
    return text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}..."

"""The base of every generated Python client, copied verbatim.

``--gen-api python`` copies this module in front of the methods that it generates for the models,
so it is self-contained: standard library only, no imports from this package.
"""

from __future__ import annotations

import email.message
import json
import os
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

#: An encoded image (JPEG, PNG, ...), or the name of a file that holds one.
Image = Union[bytes, str, "os.PathLike[str]"]

#: Extra time to wait for a response beyond the server's time limit, seconds.
_GRACE_S = 5.0


class ServerError(Exception):
    """The server returned an error.

    Attributes:
        status: HTTP status.
        code: The error's stable name, such as ``invalid_request``.
        message: Description of the error.
        request_id: The request's id in the server's log.
        retry_after_s: Time after which to retry, in seconds; None if that would not help.
    """

    def __init__(
        self, status: int, code: str, message: str, request_id: str, retry_after_s: float | None
    ) -> None:
        super().__init__(f"{status} {code}: {message} (request {request_id})")
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class BaseClient:
    """Base class of clients.

    Args:
        url: URL of the server.
        timeout_s: Default time limit of a call, in seconds.
        headers: Sent with every request, such as ``Authorization``.
    """

    def __init__(
        self, url: str, timeout_s: float = 120.0, headers: Mapping[str, str] | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.headers = dict(headers or {})

    def is_ready(self) -> bool:
        """Return whether every model that the server was started with can serve now."""
        try:
            self._send("GET", "/ping", None, {}, None)
        except ServerError as error:
            if error.status == 503:
                return False
            raise
        return True

    def _ask_json(
        self,
        model: str,
        inputs: Mapping[str, Sequence[Any]],
        version: str | None,
        timeout_s: float | None,
    ) -> Any:
        body = json.dumps(inputs, default=_plain).encode()
        return self._ask_body(model, body, "application/json", version, timeout_s)

    def _ask_images(
        self,
        model: str,
        images: Mapping[str, Image],
        version: str | None,
        timeout_s: float | None,
    ) -> Any:
        boundary = secrets.token_hex(16)
        body = b"".join(_parts(images, boundary))
        content_type = f"multipart/form-data; boundary={boundary}"
        return self._ask_body(model, body, content_type, version, timeout_s)

    def _ask_body(
        self,
        model: str,
        body: bytes,
        content_type: str,
        version: str | None,
        timeout_s: float | None,
    ) -> Any:
        path = f"/predictions/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            path += f"/{urllib.parse.quote(version, safe='')}"
        headers = {"Content-Type": content_type}
        if timeout_s is not None:
            headers["X-Request-Timeout-Ms"] = str(max(1, round(timeout_s * 1000)))
        type_, answer = self._send("POST", path, body, headers, timeout_s)
        return json.loads(answer) if type_ == "application/json" else answer

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float | None,
    ) -> tuple[str, bytes]:
        """Send a request and return the response's content type and body.

        Raises:
            ServerError: The server returned an error.
            OSError: There was no response.
        """
        request = urllib.request.Request(
            self.url + path, body, {**self.headers, **headers}, method=method
        )
        wait_s = self.timeout_s if timeout_s is None else timeout_s + _GRACE_S
        try:
            with urllib.request.urlopen(request, timeout=wait_s) as response:
                return response.headers.get_content_type(), response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise _server_error(error.code, error.headers, error.read()) from None


def _server_error(status: int, headers: email.message.Message, body: bytes) -> ServerError:
    details: Mapping[str, Any] = {}
    try:
        document = json.loads(body)
        if isinstance(document, dict) and isinstance(document.get("error"), dict):
            details = document["error"]
    except ValueError:
        # Not the server's own response, but that of a proxy in front of it.
        pass
    retry_after = headers.get("Retry-After", "")
    return ServerError(
        status,
        str(details.get("code", "http_error")),
        str(details.get("message", body[:200].decode(errors="replace"))),
        str(details.get("request_id", headers.get("X-Request-Id", ""))),
        float(retry_after) if retry_after.isdecimal() else None,
    )


def _plain(value: Any) -> Any:
    """Convert NumPy arrays and scalars, and similar objects, to lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def _parts(images: Mapping[str, Image], boundary: str) -> Iterator[bytes]:
    """Return the pieces of a multipart form with one file per input."""
    for name, image in images.items():
        # As browsers quote it (WHATWG): these three must be escaped in a header.
        shown = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        yield (
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="{shown}"; filename="{shown}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        yield image if isinstance(image, bytes) else Path(image).read_bytes()
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()

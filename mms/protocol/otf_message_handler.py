"""PUBLIC: 1.x's answers from worker to server, for tests of handlers.

Integers have four bytes and precede what they measure. This server has messages of its own, in
``mms.wire``.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Mapping
from typing import Any

from mms.context import Context
from mms.lazy import retired

_END_OF_LIST = struct.pack("!i", -1)

retrieve_msg = retired(
    f"{__name__}.retrieve_msg", "mxnet-model-server and its workers have messages of their own"
)


def encode_response_headers(resp_hdr_map: Mapping[str, str]) -> bytearray:
    """Return the number of headers, then each name and value."""
    pairs = [_sized(text.encode()) for pair in resp_hdr_map.items() for text in pair]
    return bytearray(struct.pack("!i", len(resp_hdr_map)) + b"".join(pairs))


def create_predict_response(
    ret: list[Any] | None,
    req_id_map: Mapping[int, str],
    message: str,
    code: int,
    context: Context | None = None,
) -> bytearray:
    """Return the answers to a batch, or an error for all of its requests.

    Args:
        ret: An answer per request: bytes, str, or anything that JSON can express; None for an
            error.
        req_id_map: Id of each request by its index.
        message: What happened.
        code: Status of the batch.
        context: Has status and headers of each answer.
    """
    encoded = bytearray(struct.pack("!i", code) + _sized(message.encode()))
    for index, request_id in req_id_map.items():
        content_type, status, phrase, headers = "", code, "", {}
        if context is not None:
            content_type = context.get_response_content_type(index) or ""
            status, reason = context.get_response_status(index)
            phrase, headers = reason or "", context.get_response_headers(index)
        try:
            body = b"error" if ret is None else _encoded(ret[index])
        except TypeError:
            logging.getLogger(__name__).warning("Unable to serialize model output.", exc_info=True)
            return create_predict_response(
                None, req_id_map, "Unsupported model output data type.", 503
            )
        encoded += _sized(request_id.encode()) + _sized(content_type.encode())
        encoded += struct.pack("!i", status) + _sized(phrase.encode())
        encoded += encode_response_headers(headers) + _sized(body)
    return encoded + _END_OF_LIST


def create_load_model_response(code: int, message: str) -> bytearray:
    """Return the answer to a request to load a model."""
    return bytearray(struct.pack("!i", code) + _sized(message.encode()) + _END_OF_LIST)


def _sized(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


def _encoded(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    return json.dumps(value, indent=2).encode()

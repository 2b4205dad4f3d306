"""Encode and decode what frames carry: batches, results, control documents, errors.

Pure: bytes in, messages out. Imports nothing of ours but errors and its own package.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from mms.errors import ErrorDetail, MMSError, ProtocolError, RejectedByService, from_wire
from mms.wire.documents import dump, load
from mms.wire.frames import (
    HEADER,
    MAX_COUNT,
    MAX_MS_LEFT,
    MAX_PAYLOAD_BYTES,
    Buffer,
    Frame,
    FrameType,
)
from mms.wire.messages import Answer, LoadSpec, Ready, Request, RequestLimits, RequestMeta, Result

REQUEST_ITEM = struct.Struct("<III")
ANSWER_ITEM = struct.Struct("<BBHII")
STAGE_TIMES = struct.Struct("<5d")


class AnswerKind(enum.IntEnum):
    """How to read an answer."""

    JSON = 0  # 200, application/json, no meta
    CUSTOM = 1  # the meta holds content type and headers
    ERROR = 2  # the meta holds the error


def encode_control(type_: FrameType, document: Any = None) -> bytes:
    """Build a frame whose payload is one JSON document; dataclasses become objects."""
    payload = dump(document)
    return HEADER.pack(len(payload), type_, 0, 0, 0) + payload


def decode_control(frame: Frame) -> Any:
    """Return the JSON document of a control frame.

    Raises:
        ProtocolError: The payload is no JSON.
    """
    return load(frame.payload)


def decode_load(frame: Frame) -> LoadSpec:
    """Return the LoadSpec of a LOAD frame.

    Raises:
        ProtocolError: It holds something else.
    """
    document = _fields(frame, LoadSpec)
    try:
        return LoadSpec(**{**document, "limits": RequestLimits(**document["limits"])})
    except TypeError:
        raise ProtocolError("a frame that should hold limits holds something else") from None


def decode_ready(frame: Frame) -> Ready:
    """Return the Ready of a READY frame.

    Raises:
        ProtocolError: It holds something else.
    """
    return Ready(**_fields(frame, Ready))


def _fields(frame: Frame, cls: type[Any]) -> dict[str, Any]:
    document = decode_control(frame)
    names = {f.name for f in fields(cls)}
    if not isinstance(document, dict) or set(document) != names:
        raise ProtocolError(f"a frame that should hold a {cls.__name__} holds something else")
    return document


def encode_batch(
    batch_id: int, items: Sequence[tuple[bytes, Sequence[Buffer], int, int]]
) -> list[Buffer]:
    """Build a BATCH frame as a list of buffers for one gathering write.

    Args:
        batch_id: Comes back in the RESULT.
        items: (encoded meta, body chunks, body length, milliseconds left) of each request.
            Chunks are passed on uncopied.
    """
    head = bytearray(HEADER.size)
    metas = []
    chunks: list[Buffer] = []
    length = 0
    for meta, body, body_length, ms_left in items:
        head += REQUEST_ITEM.pack(len(meta), body_length, min(max(ms_left, 0), MAX_MS_LEFT))
        metas.append(meta)
        chunks.extend(body)
        length += len(meta) + body_length
    payload_length = len(head) - HEADER.size + length
    if payload_length > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a batch of {payload_length} bytes does not fit a frame")
    if len(items) > MAX_COUNT:
        raise ProtocolError(f"a batch of {len(items)} requests does not fit a frame")
    HEADER.pack_into(head, 0, payload_length, FrameType.BATCH, 0, len(items), batch_id)
    return [b"".join((head, *metas)), *chunks]


def decode_batch(frame: Frame) -> list[Request]:
    """Return the requests of a BATCH frame; bodies are views of the frame.

    Raises:
        ProtocolError: The lengths do not add up.
    """
    payload = frame.payload
    table_end = frame.count * REQUEST_ITEM.size
    if table_end > len(payload):
        raise ProtocolError("a batch is shorter than its table")
    table = list(REQUEST_ITEM.iter_unpack(payload[:table_end]))
    meta_at = table_end
    body_at = meta_at + sum(meta_length for meta_length, _, _ in table)
    requests = []
    for meta_length, body_length, ms_left in table:
        meta = RequestMeta.decode(payload[meta_at : meta_at + meta_length])
        requests.append(Request(meta, payload[body_at : body_at + body_length], ms_left))
        meta_at += meta_length
        body_at += body_length
    if body_at != len(payload):
        raise ProtocolError("the lengths in a batch do not add up to its payload")
    return requests


def encode_result(batch_id: int, result: Result) -> list[Buffer]:
    """Build a RESULT frame as a list of buffers for one gathering write."""
    head = bytearray(HEADER.size) + STAGE_TIMES.pack(*result.stage_seconds)
    metas = []
    bodies: list[Buffer] = []
    length = 0
    for answer in result.answers:
        kind, status, meta, body = _encode_answer(answer)
        head += ANSWER_ITEM.pack(kind, 0, status, len(meta), len(body))
        metas.append(meta)
        bodies.append(body)
        length += len(meta) + len(body)
    payload_length = len(head) - HEADER.size + length
    if payload_length > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"answers of {payload_length} bytes do not fit a frame")
    HEADER.pack_into(head, 0, payload_length, FrameType.RESULT, 0, len(metas), batch_id)
    return [b"".join((head, *metas)), *bodies]


def decode_result(frame: Frame) -> Result:
    """Return the answers of a RESULT frame; bodies are views of the frame.

    Raises:
        ProtocolError: The lengths do not add up or a field has a value it cannot have.
    """
    payload = frame.payload
    table_end = STAGE_TIMES.size + frame.count * ANSWER_ITEM.size
    if table_end > len(payload):
        raise ProtocolError("a result is shorter than its table")
    stage_seconds = STAGE_TIMES.unpack_from(payload)
    # A NaN would spread through every mean that it enters.
    if not all(0.0 <= seconds < math.inf for seconds in stage_seconds):
        raise ProtocolError(f"a result has impossible stage times: {stage_seconds}")
    table = list(ANSWER_ITEM.iter_unpack(payload[STAGE_TIMES.size : table_end]))
    meta_at = table_end
    body_at = meta_at + sum(item[3] for item in table)
    answers: list[Answer | MMSError] = []
    for kind, _, status, meta_length, body_length in table:
        body = payload[body_at : body_at + body_length]
        if kind == AnswerKind.JSON:
            answers.append(Answer(body))
        else:
            meta = payload[meta_at : meta_at + meta_length]
            answers.append(_decode_answer(kind, status, meta, body))
        meta_at += meta_length
        body_at += body_length
    if body_at != len(payload):
        raise ProtocolError("the lengths in a result do not add up to its payload")
    return Result(answers, stage_seconds)


def error_document(error: MMSError) -> dict[str, Any]:
    """Return an error as code, message and detail, for an answer's meta or a FAILED frame."""
    detail = error.detail or ErrorDetail()
    return {
        "code": error.code,
        "message": str(error),
        "stage": detail.stage,
        "type": detail.type,
        "where": detail.where,
        "traceback": detail.traceback,
    }


def error_from_document(document: Any, status: int = 0) -> MMSError:
    """Rebuild what `error_document` described.

    Raises:
        ProtocolError: It describes no error.
    """
    if not isinstance(document, dict) or not all(
        isinstance(document.get(key), str)
        for key in ("code", "message", "stage", "type", "where", "traceback")
    ):
        raise ProtocolError("an error from a worker lacks its fields")
    detail = ErrorDetail(
        document["stage"], document["type"], document["where"], document["traceback"]
    )
    return from_wire(document["code"], document["message"], detail, status)


def _encode_answer(answer: Answer | MMSError) -> tuple[int, int, bytes, Buffer]:
    if isinstance(answer, MMSError):
        status = answer.status if isinstance(answer, RejectedByService) else 0
        return AnswerKind.ERROR, status, dump(error_document(answer)), b""
    if answer.is_plain:
        return AnswerKind.JSON, 200, b"", answer.body
    meta = dump((answer.content_type, answer.headers, answer.reason))
    return AnswerKind.CUSTOM, answer.status, meta, answer.body


def _decode_answer(kind: int, status: int, meta: Buffer, body: Buffer) -> Answer | MMSError:
    document = load(meta)
    if kind == AnswerKind.ERROR:
        return error_from_document(document, status)
    if kind != AnswerKind.CUSTOM:
        raise ProtocolError(f"an answer has the unknown kind {kind}")
    if not isinstance(document, list) or len(document) != 3:
        raise ProtocolError("an answer's meta is not content type, headers and reason")
    content_type, headers, reason = document
    if (
        not isinstance(content_type, str)
        or not isinstance(reason, str)
        or not isinstance(headers, dict)
        or not all(isinstance(value, str) for value in headers.values())
    ):
        raise ProtocolError("an answer's meta is not content type, headers and reason")
    return Answer(body, content_type, status, headers, reason)

"""Encode and decode the content of frames: batches, results, control documents, errors.

Pure: bytes in, messages out. Imports nothing of ours but errors and its own package.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from mms.errors import ErrorDetail, MMSError, ProtocolError, RejectedByService, from_wire
from mms.wire.documents import Document
from mms.wire.frames import (
    HEADER,
    MAX_COUNT,
    MAX_MS_LEFT,
    MAX_PAYLOAD_BYTES,
    Buffer,
    Frame,
    FrameType,
)
from mms.wire.messages import Answer, LoadSpec, Ready, Request, RequestMeta, Result

REQUEST_ITEM = struct.Struct("<III")
ANSWER_ITEM = struct.Struct("<BBHII")
STAGE_TIMES = struct.Struct("<5d")


class AnswerKind(enum.IntEnum):
    """The kinds of answer, which decide how one is decoded."""

    JSON = 0  # 200, application/json, no meta
    CUSTOM = 1  # the meta holds content type and headers
    ERROR = 2  # the meta holds the error


class _Error(msgspec.Struct):
    code: str
    message: str
    stage: str
    type: str
    where: str
    traceback: str
    reason: str


_ERRORS: Document[_Error] = Document(_Error, "an error from a worker lacks its fields")
_CUSTOM: Document[tuple[str, dict[str, str], str]] = Document(
    tuple[str, dict[str, str], str], "an answer's meta is not content type, headers and reason"
)
#: The document of each type of frame that holds exactly one.
_CONTROLS: dict[FrameType, Document[Any]] = {
    type_: Document(content, f"a {type_.name} frame holds no {name}")
    for type_, content, name in (
        (FrameType.LOAD, LoadSpec, "LoadSpec"),
        (FrameType.FORK, None, "null"),
        (FrameType.STOP, None, "null"),
        (FrameType.CONFIGURE, int, "batch size"),
        (FrameType.READY, Ready, "Ready"),
        (FrameType.FORKED, int, "process id"),
        (FrameType.METRICS, Any, "metrics"),
        (FrameType.ALONE, str, "reason"),
    )
} | {FrameType.FAILED: _ERRORS}


def encode_control(type_: FrameType, document: Any = None) -> bytes:
    """Build a frame whose payload is one JSON document; dataclasses become objects."""
    payload = _CONTROLS[type_].encode(document)
    return HEADER.pack(len(payload), type_, 0, 0, 0) + payload


def decode_control(frame: Frame) -> Any:
    """Return the document of a control frame, typed by the frame's type.

    Raises:
        ProtocolError: It holds something else, or is not a control frame.
    """
    document = _CONTROLS.get(frame.type)
    if document is None:
        raise ProtocolError(f"a {frame.type.name} frame holds no document")
    return document.decode(frame.payload)


def decode_load(frame: Frame) -> LoadSpec:
    """Return the LoadSpec of a LOAD frame.

    Raises:
        ProtocolError: It holds something else.
    """
    spec: LoadSpec = _CONTROLS[FrameType.LOAD].decode(frame.payload)
    return spec


def decode_ready(frame: Frame) -> Ready:
    """Return the Ready of a READY frame.

    Raises:
        ProtocolError: It holds something else.
    """
    ready: Ready = _CONTROLS[FrameType.READY].decode(frame.payload)
    return ready


def encode_batch(
    batch_id: int, items: Sequence[tuple[bytes, Sequence[Buffer], int, int]]
) -> list[Buffer]:
    """Build a BATCH frame as a list of buffers for one gathering write.

    Args:
        batch_id: Returned in the RESULT.
        items: (encoded meta, body chunks, body length, milliseconds left) of each request.
            Chunks are not copied.
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
        ProtocolError: The lengths do not add up, or a field has an invalid value.
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


def error_document(error: MMSError) -> dict[str, str]:
    """Return an error as code, message and detail."""
    detail = error.detail or ErrorDetail()
    return {
        "code": error.code,
        "message": str(error),
        "stage": detail.stage,
        "type": detail.type,
        "where": detail.where,
        "traceback": detail.traceback,
        "reason": detail.reason,
    }


def encode_error(error: MMSError) -> bytes:
    """Serialise an error for `decode_error`."""
    return _ERRORS.encode(error_document(error))


def decode_error(data: Buffer, status: int = 0) -> MMSError:
    """Rebuild an error from an answer's meta or the payload of a FAILED frame.

    Args:
        data: Output of `encode_error`.
        status: HTTP status the service chose, if it rejected the request.

    Raises:
        ProtocolError: The bytes are not a serialised error.
    """
    document = _ERRORS.decode(data)
    detail = ErrorDetail(
        document.stage, document.type, document.where, document.traceback, document.reason
    )
    return from_wire(document.code, document.message, detail, status)


def _encode_answer(answer: Answer | MMSError) -> tuple[int, int, bytes, Buffer]:
    if isinstance(answer, MMSError):
        status = answer.status if isinstance(answer, RejectedByService) else 0
        return AnswerKind.ERROR, status, encode_error(answer), b""
    if answer.is_plain:
        return AnswerKind.JSON, 200, b"", answer.body
    meta = _CUSTOM.encode((answer.content_type, answer.headers, answer.reason))
    return AnswerKind.CUSTOM, answer.status, meta, answer.body


def _decode_answer(kind: int, status: int, meta: Buffer, body: Buffer) -> Answer | MMSError:
    if kind == AnswerKind.ERROR:
        return decode_error(meta, status)
    if kind != AnswerKind.CUSTOM:
        raise ProtocolError(f"an answer has the unknown kind {kind}")
    content_type, headers, reason = _CUSTOM.decode(meta)
    return Answer(body, content_type, status, headers, reason)

"""Frames: what is encoded comes back, however it is cut; anything else is a ProtocolError."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import struct

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.errors import (
    ErrorDetail,
    InferenceFailed,
    InvalidRequest,
    MMSError,
    ProtocolError,
    RejectedByService,
)
from mms.wire.codec import (
    ANSWER_ITEM,
    REQUEST_ITEM,
    STAGE_TIMES,
    AnswerKind,
    decode_batch,
    decode_control,
    decode_error,
    decode_load,
    decode_ready,
    decode_result,
    encode_batch,
    encode_control,
    encode_result,
    error_document,
)
from mms.wire.frames import (
    HEADER,
    MAX_COUNT,
    MAX_MS_LEFT,
    MAX_PAYLOAD_BYTES,
    Buffer,
    Frame,
    FrameDecoder,
    FrameType,
    read_header,
)
from mms.wire.messages import Answer, Dialect, LoadSpec, Ready, RequestMeta, Result

BOUNDED = settings(max_examples=100, deadline=None)
SPEC = LoadSpec("crepe", "1", "/tmp/x", "", "service:handle", True, None, 4, 1000, 20, 42, True)
READY = Ready(True, "mxnet 1.9.1", "Crepe", "", True, False)
NO_TIME = (0.0, 0.0, 0.0, 0.0, 0.0)

texts = st.text(max_size=30)
bodies = st.binary(max_size=200)
metas = st.builds(
    RequestMeta,
    texts,
    st.sampled_from(Dialect),
    texts,
    texts,
    headers=st.dictionaries(texts, texts, max_size=3),
    query=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
)
seconds = st.floats(0, 1e6)
details = st.builds(ErrorDetail, texts, texts, texts, texts)
answers = st.one_of(
    st.builds(Answer, bodies),
    st.builds(
        Answer,
        bodies,
        content_type=texts,
        status=st.integers(200, 599),
        headers=st.dictionaries(texts, texts, max_size=3),
        reason=texts,
    ),
    st.builds(InvalidRequest, texts, details),
    st.builds(RejectedByService, texts, st.integers(400, 599), details),
)


def joined(buffers: list[Buffer]) -> bytes:
    return b"".join(buffers)


def frame_of(data: bytes) -> Frame:
    [frame] = FrameDecoder().feed(data)
    return frame


def chunks_of(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


cut_points = st.lists(st.integers(0, 2000), max_size=20)


@given(st.lists(st.tuples(metas, st.lists(bodies, max_size=3), st.integers(-5, 2**40))), cut_points)
@BOUNDED
def test_a_batch_comes_back_however_the_stream_is_cut(
    requests: list[tuple[RequestMeta, list[bytes], int]], cuts: list[int]
) -> None:
    items = [
        (meta.encode(), chunks, sum(map(len, chunks)), ms_left)
        for meta, chunks, ms_left in requests
    ]
    data = joined(encode_batch(7, items))
    decoder = FrameDecoder()
    frames = [frame for chunk in chunks_of(data, cuts) for frame in decoder.feed(chunk)]
    assert decoder.is_at_boundary
    [frame] = frames
    assert (frame.type, frame.batch_id, frame.count) == (FrameType.BATCH, 7, len(requests))
    decoded = decode_batch(frame)
    assert [(r.meta, bytes(r.body)) for r in decoded] == [
        (meta, b"".join(chunks)) for meta, chunks, _ in requests
    ]
    assert [r.ms_left for r in decoded] == [
        min(max(ms_left, 0), MAX_MS_LEFT) for _, _, ms_left in requests
    ]


def plain(answer: Answer | MMSError) -> object:
    if isinstance(answer, Answer):
        return dataclasses.replace(answer, body=bytes(answer.body))
    status = answer.status if isinstance(answer, RejectedByService) else None
    return type(answer), str(answer), answer.detail, status


@given(
    st.lists(st.lists(answers, max_size=4), max_size=3),
    st.tuples(seconds, seconds, seconds, seconds, seconds),
    cut_points,
)
@BOUNDED
def test_results_come_back_in_order_however_the_stream_is_cut(
    batches: list[list[Answer | MMSError]],
    stage_seconds: tuple[float, float, float, float, float],
    cuts: list[int],
) -> None:
    results = [Result(batch, stage_seconds) for batch in batches]
    data = b"".join(joined(encode_result(i, result)) for i, result in enumerate(results))
    decoder = FrameDecoder()
    frames = [frame for chunk in chunks_of(data, cuts) for frame in decoder.feed(chunk)]
    assert [frame.batch_id for frame in frames] == list(range(len(results)))
    for frame, result in zip(frames, results, strict=True):
        decoded = decode_result(frame)
        assert decoded.stage_seconds == result.stage_seconds
        assert [plain(a) for a in decoded.answers] == [plain(a) for a in result.answers]


@given(st.binary(max_size=300), cut_points)
@BOUNDED
def test_random_bytes_raise_only_protocol_errors(data: bytes, cuts: list[int]) -> None:
    decoder = FrameDecoder()
    with contextlib.suppress(ProtocolError):
        for chunk in chunks_of(data, cuts):
            for frame in decoder.feed(chunk):
                decode_anything(frame)


@given(
    st.sampled_from(FrameType),
    st.integers(0, 5),
    st.one_of(
        st.binary(max_size=200),
        st.recursive(st.none() | st.integers(-9, 9) | texts, st.lists).map(orjson.dumps),
    ),
)
@BOUNDED
def test_a_random_payload_raises_only_protocol_errors(
    type_: FrameType, count: int, payload: bytes
) -> None:
    frame = frame_of(HEADER.pack(len(payload), type_, 0, count, 1) + payload)
    for decode in (decode_control, decode_batch, decode_result, decode_load, decode_ready):
        with contextlib.suppress(ProtocolError):
            decode(frame)


@given(st.lists(answers, min_size=1, max_size=3), st.data())
@BOUNDED
def test_a_damaged_result_raises_only_protocol_errors(
    batch: list[Answer | MMSError], data: st.DataObject
) -> None:
    good = bytearray(joined(encode_result(1, Result(batch, NO_TIME))))
    for _ in range(3):
        good[data.draw(st.integers(HEADER.size, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        decode_result(frame_of(bytes(good)))


def decode_anything(frame: Frame) -> None:
    if frame.type is FrameType.BATCH:
        decode_batch(frame)
    elif frame.type is FrameType.RESULT:
        decode_result(frame)
    else:
        decode_control(frame)


def test_control_frames_come_back() -> None:
    assert decode_load(frame_of(encode_control(FrameType.LOAD, SPEC))) == SPEC
    assert decode_ready(frame_of(encode_control(FrameType.READY, READY))) == READY
    assert decode_control(frame_of(encode_control(FrameType.STOP))) is None


def test_a_frame_with_other_fields_than_its_class_names_the_class() -> None:
    frame = frame_of(encode_control(FrameType.LOAD, {"model_name": "x"}))
    with pytest.raises(ProtocolError, match="LoadSpec"):
        decode_load(frame)


@pytest.mark.parametrize(
    ("type_", "payload", "message"),
    [
        (FrameType.READY, b"[]", "READY frame holds no Ready"),
        (FrameType.READY, encode_control(FrameType.READY, READY)[HEADER.size :] + b"x", "broken"),
        (FrameType.CONFIGURE, b'"4"', "CONFIGURE frame holds no batch size"),
        (FrameType.FORKED, b"1.5", "FORKED frame holds no process id"),
        (FrameType.ALONE, b"null", "ALONE frame holds no reason"),
        (FrameType.FAILED, b'{"code": 1}', "lacks its fields"),
        (FrameType.STOP, b"0", "STOP frame holds no null"),
        (FrameType.METRICS, b"[" * 100_000, "JSON is broken"),
        (FrameType.METRICS, b"NaN", "JSON is broken"),
        (FrameType.METRICS, b'"\xff"', "JSON is broken"),
        (FrameType.METRICS, b'"\\ud800"', "JSON is broken"),
        (FrameType.RESULT, b"", "RESULT frame holds no document"),
    ],
)
def test_a_control_frame_of_something_else_says_what(
    type_: FrameType, payload: bytes, message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        decode_control(frame_of(HEADER.pack(len(payload), type_, 0, 0, 0) + payload))


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "other"


class Count(int):
    pass


def test_values_of_subclasses_cross_as_their_bases() -> None:
    """A service reports what NumPy gives it, and headers are of a class of their own."""
    report = [[Text("name"), np.float64(0.5), Count(3), {Text("key"): Text("\ud800")}]]
    for values in (report, [report[0][:3]]):
        frame = frame_of(encode_control(FrameType.METRICS, values))
        assert decode_control(frame)[0][:3] == ["name", 0.5, 3]
    meta = RequestMeta("id", Dialect.V1, "", "", headers={Text("a"): Text("b")})
    assert RequestMeta.decode(meta.encode()).headers == {"a": "b"}


def test_chunks_of_a_body_are_passed_on_uncopied() -> None:
    chunk = bytearray(b"body")
    assert encode_batch(1, [(b"[]", [chunk], 4, 0)])[1] is chunk


def test_a_whole_frame_is_not_copied_by_the_decoder() -> None:
    data = encode_control(FrameType.STOP)
    assert frame_of(data).payload.obj is data


def test_a_stream_that_ends_in_mid_frame_is_seen() -> None:
    decoder = FrameDecoder()
    assert decoder.is_at_boundary
    assert decoder.feed(encode_control(FrameType.STOP)[:-1]) == []
    assert not decoder.is_at_boundary


def test_a_frame_beyond_the_limit_is_refused_from_its_header() -> None:
    header = HEADER.pack(MAX_PAYLOAD_BYTES + 1, FrameType.RESULT, 0, 0, 0)
    with pytest.raises(ProtocolError, match=str(MAX_PAYLOAD_BYTES + 1)):
        FrameDecoder().feed(header)
    with pytest.raises(ProtocolError, match=str(MAX_PAYLOAD_BYTES + 1)):
        read_header(header)


def test_an_unknown_frame_type_is_named() -> None:
    header = HEADER.pack(0, 99, 0, 0, 0)
    with pytest.raises(ProtocolError, match="unknown type 99"):
        FrameDecoder().feed(header)
    with pytest.raises(ProtocolError, match="unknown type 99"):
        read_header(header)


def test_a_header_reads_alone() -> None:
    assert read_header(HEADER.pack(5, FrameType.BATCH, 0, 2, 9)) == (FrameType.BATCH, 2, 9, 5)


def test_a_batch_too_long_for_a_frame_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ProtocolError, match="does not fit"):
        encode_batch(1, [(b"", [], MAX_PAYLOAD_BYTES, 0)])
    with pytest.raises(ProtocolError, match=f"{MAX_COUNT + 1} requests"):
        encode_batch(1, [(b"", [], 0, 0)] * (MAX_COUNT + 1))


def result_frame(count: int, payload: bytes) -> Frame:
    return frame_of(HEADER.pack(len(payload), FrameType.RESULT, 0, count, 1) + payload)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_impossible_stage_times_are_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match="stage times"):
        decode_result(result_frame(0, STAGE_TIMES.pack(0, 0, value, 0, 0)))


def test_lengths_that_do_not_add_up_are_refused() -> None:
    item = ANSWER_ITEM.pack(AnswerKind.JSON, 0, 200, 0, 10)
    with pytest.raises(ProtocolError, match="do not add up"):
        decode_result(result_frame(1, STAGE_TIMES.pack(*NO_TIME) + item + b"short"))
    payload = REQUEST_ITEM.pack(2, 9, 0) + b"[]"
    batch = HEADER.pack(len(payload), FrameType.BATCH, 0, 1, 1) + payload
    with pytest.raises(ProtocolError):
        decode_batch(frame_of(batch))
    with pytest.raises(ProtocolError, match="shorter than its table"):
        decode_result(result_frame(3, STAGE_TIMES.pack(*NO_TIME)))
    short = HEADER.pack(4, FrameType.BATCH, 0, 3, 1) + bytes(4)
    with pytest.raises(ProtocolError, match="shorter than its table"):
        decode_batch(frame_of(short))


@pytest.mark.parametrize(
    ("kind", "meta", "message"),
    [
        (9, b"[]", "unknown kind 9"),
        (AnswerKind.CUSTOM, b"[1, {}]", "content type, headers"),
        (AnswerKind.CUSTOM, b'["a", {"b": 1}, ""]', "content type, headers"),
        (AnswerKind.CUSTOM, b'["a", {}, 1]', "content type, headers"),
        (AnswerKind.CUSTOM, b'{"a": 1}', "content type, headers"),
        (AnswerKind.ERROR, b'{"code": "x"}', "lacks its fields"),
        (AnswerKind.ERROR, b"{", "JSON is broken"),
    ],
)
def test_an_answer_that_is_none_says_why(kind: int, meta: bytes, message: str) -> None:
    item = ANSWER_ITEM.pack(kind, 0, 200, len(meta), 0)
    with pytest.raises(ProtocolError, match=message):
        decode_result(result_frame(1, STAGE_TIMES.pack(*NO_TIME) + item + meta))


def test_an_error_of_an_unknown_kind_arrives_as_a_failed_inference() -> None:
    document = error_document(MMSError("x")) | {"code": "made_up"}
    error = decode_error(orjson.dumps(document))
    assert type(error) is InferenceFailed
    assert str(error) == "x"


def test_half_a_surrogate_pair_in_a_message_does_not_stop_the_answers() -> None:
    """A client's form field can hold one, and a decoder's message quotes it."""
    error = InvalidRequest("got '\ud800'", ErrorDetail(traceback="ValueError: \ud800"))
    answer = Answer(b"x", headers={"X-Name": "\udc80"})
    result = Result([error, answer], NO_TIME)
    first, second = decode_result(frame_of(joined(encode_result(1, result)))).answers
    assert isinstance(first, InvalidRequest)
    assert str(first) == r"got '\ud800'"
    assert isinstance(second, Answer)
    assert second.headers == {"X-Name": r"\udc80"}


def test_metas_that_are_none_are_refused() -> None:
    for data in (
        b"[]",
        b'["id", 9, "", "", ""]',
        b'["id", 0, "", 1, ""]',
        b'{"a": "b"}',
        b"[",
        b"1",
    ):
        with pytest.raises(ProtocolError):
            RequestMeta.decode(data)


def test_header_bytes_that_are_no_text_reach_the_worker_escaped() -> None:
    meta = RequestMeta("id", Dialect.PLAIN, "text/\udcff", "")
    assert RequestMeta.decode(meta.encode()).content_type == r"text/\udcff"


def test_the_header_is_sixteen_bytes_little_endian() -> None:
    assert HEADER.size == 16
    assert HEADER.pack(1, 2, 0, 3, 4) == struct.pack("<I", 1) + b"\2\0\3\0" + struct.pack("<Q", 4)

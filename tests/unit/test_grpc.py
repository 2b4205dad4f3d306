"""gRPC's messages and its codes, without a server."""

from __future__ import annotations

import math
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms import errors
from mms.archive.signature import DATA_TYPES
from mms.errors import ErrorDetail, InvalidRequest, MMSError, PayloadTooLarge, subclasses
from mms.grpc import inference_pb2 as pb
from mms.grpc.codec import decode_answer, encode_request
from mms.grpc.errors import CODES, HTTP_STATUSES, code_of, metadata_of, status_of, text_of
from mms.wire.messages import V2_HEADER_LENGTH, Answer
from mms.worker.v2 import InferRequest, decode_request, encode_response
from mms.worker.v2_tensors import Tensor

BOUNDED = settings(max_examples=100, deadline=None)
Code = grpc.StatusCode
DOCUMENTED = {
    errors.MMSError: Code.INTERNAL,
    errors.StartupError: Code.INTERNAL,
    errors.ConfigError: Code.INVALID_ARGUMENT,
    errors.EngineMissing: Code.INTERNAL,
    errors.ArchiveError: Code.INVALID_ARGUMENT,
    errors.ManifestError: Code.INVALID_ARGUMENT,
    errors.SignatureError: Code.INVALID_ARGUMENT,
    errors.ExportError: Code.INVALID_ARGUMENT,
    errors.ConversionFailed: Code.INVALID_ARGUMENT,
    errors.DownloadFailed: Code.INVALID_ARGUMENT,
    errors.StorageFull: Code.RESOURCE_EXHAUSTED,
    errors.ModelLoadFailed: Code.INTERNAL,
    errors.AddressInUse: Code.INTERNAL,
    errors.InvalidRequest: Code.INVALID_ARGUMENT,
    errors.InvalidInputShape: Code.INVALID_ARGUMENT,
    errors.UndecodableImage: Code.INVALID_ARGUMENT,
    errors.SlowClient: Code.DEADLINE_EXCEEDED,
    errors.PayloadTooLarge: Code.RESOURCE_EXHAUSTED,
    errors.UnsupportedMedia: Code.INVALID_ARGUMENT,
    errors.ModelNotFound: Code.NOT_FOUND,
    errors.VersionNotFound: Code.NOT_FOUND,
    errors.Conflict: Code.FAILED_PRECONDITION,
    errors.Forbidden: Code.PERMISSION_DENIED,
    errors.Unauthorized: Code.UNAUTHENTICATED,
    errors.InferenceFailed: Code.INTERNAL,
    errors.InvalidServiceOutput: Code.INTERNAL,
    errors.WorkerDied: Code.INTERNAL,
    errors.Unavailable: Code.UNAVAILABLE,
    errors.ModelNotReady: Code.UNAVAILABLE,
    errors.Draining: Code.UNAVAILABLE,
    errors.QueueFull: Code.UNAVAILABLE,
    errors.BufferFull: Code.UNAVAILABLE,
    errors.TooManyConnections: Code.UNAVAILABLE,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.OutOfMemory: Code.RESOURCE_EXHAUSTED,
    errors.ProtocolError: Code.INTERNAL,
}
PLAIN = [
    cls
    for cls in subclasses()
    if cls.__module__ == errors.__name__ and cls is not errors.RejectedByService
]
NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


class TestCodes:
    def test_every_error_has_its_code(self) -> None:
        assert {cls: code_of(cls("x")) for cls in PLAIN} == DOCUMENTED

    def test_every_code_has_a_status_to_be_counted_as(self) -> None:
        assert set(CODES.values()) <= set(HTTP_STATUSES)
        assert status_of(errors.QueueFull("x")) == 503
        assert status_of(errors.RejectedByService("x", 418)) == 418

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (400, Code.INVALID_ARGUMENT),
            (404, Code.NOT_FOUND),
            (418, Code.INVALID_ARGUMENT),
            (429, Code.RESOURCE_EXHAUSTED),
            (500, Code.INTERNAL),
            (503, Code.UNAVAILABLE),
            (599, Code.INTERNAL),
        ],
    )
    def test_a_service_chooses_a_status_of_http(self, status: int, code: grpc.StatusCode) -> None:
        assert code_of(errors.RejectedByService("x", status)) is code

    def test_what_a_service_raised_is_only_told_with_debug_errors(self) -> None:
        detail = ErrorDetail("inference", "ValueError", "service.py:3", reason="ValueError: no")
        error = errors.InferenceFailed("it raised", detail)
        assert text_of(error, False) == "it raised"
        assert text_of(error, True) == "it raised: ValueError: no (service.py:3)"

    def test_a_text_fits_what_clients_take_as_metadata(self) -> None:
        assert len(text_of(MMSError("\u00fc" * 10_000), False)) < 8192 / 9

    def test_only_what_may_pass_by_itself_says_when(self) -> None:
        assert metadata_of(InvalidRequest("x")) == []
        assert metadata_of(errors.QueueFull("x", 2.1)) == [
            ("retry-after", "3"),
            ("grpc-retry-pushback-ms", "2100"),
        ]


def body_of(request: Any, max_bytes: int = 1 << 20) -> InferRequest:
    """Return what a worker reads of a message."""
    chunks, size = encode_request(request, max_bytes)
    body = b"".join(chunks)
    assert len(body) == size <= max_bytes
    return decode_request(memoryview(body), str(len(chunks[0])), None)


@st.composite
def tensors(draw: st.DrawFn, name: str, has_half: bool) -> Tensor:
    datatype = draw(st.sampled_from([d for d in DATA_TYPES if has_half or d != "FP16"]))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = math.prod(shape)
    if datatype == "BYTES":
        elements = draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        return Tensor(name, datatype, shape, elements)
    dtype = np.dtype(NUMPY[datatype])
    size = count * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if datatype == "BOOL":
        data = bytes(byte & 1 for byte in data)
    array = np.frombuffer(data, dtype).reshape(shape)
    # Python's floats keep no payload of a NaN.
    return Tensor(name, datatype, shape, np.nan_to_num(array) if dtype.kind == "f" else array)


def raw_of(tensor: Tensor) -> bytes:
    if isinstance(tensor.data, list):
        return b"".join(len(e).to_bytes(4, "little") + e for e in tensor.data)
    return tensor.data.tobytes()


def assert_same(left: Tensor, right: Tensor) -> None:
    about = (left.name, left.datatype, left.shape, raw_of(left))
    assert about == (right.name, right.datatype, right.shape, raw_of(right))


@BOUNDED
@given(st.booleans(), st.text(min_size=1, max_size=5), st.data())
def test_a_message_reaches_the_worker_as_it_was_sent(
    raw: bool, id_: str, data: st.DataObject
) -> None:
    sent = [data.draw(tensors(name, raw)) for name in ("a", "b")]
    request = pb.ModelInferRequest(model_name="m", id=id_)
    for tensor in sent:
        entry = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            request.raw_input_contents.append(raw_of(tensor))
        else:
            elements = (
                tensor.data if isinstance(tensor.data, list) else tensor.data.ravel().tolist()
            )
            getattr(entry.contents, FIELDS[tensor.datatype]).extend(elements)
    asked = body_of(request)
    assert (asked.id, asked.outputs, asked.is_binary) == (id_, None, True)
    for pair in zip(asked.inputs, sent, strict=True):
        assert_same(*pair)


@BOUNDED
@given(st.lists(tensors("y", True), max_size=3), st.text(min_size=1, max_size=5) | st.none())
def test_an_answer_reaches_the_client_as_it_was_given(outputs: list[Tensor], id_: str) -> None:
    answer = encode_response("m", "2", InferRequest(id_, (), None, True), outputs)
    response = decode_answer(answer)
    assert (response.model_name, response.model_version) == ("m", "2")
    assert response.id == (id_ or "")
    for tensor, output, raw in zip(
        outputs, response.outputs, response.raw_output_contents, strict=True
    ):
        assert_same(tensor, Tensor(output.name, output.datatype, tuple(output.shape), tensor.data))
        assert raw == raw_of(tensor)


def test_outputs_and_parameters_go_along_but_for_the_form() -> None:
    request = pb.ModelInferRequest(id="")
    request.inputs.add(name="x", datatype="UINT8", shape=[1])
    request.raw_input_contents.append(b"\x05")
    request.inputs[0].parameters["content_type"].string_param = "text/plain"
    request.inputs[0].parameters["unset"].Clear()
    output = request.outputs.add(name="y")
    output.parameters["binary_data"].bool_param = False
    (header, data), _ = encode_request(request, 1000)
    assert orjson.loads(header) == {
        "inputs": [
            {
                "name": "x",
                "datatype": "UINT8",
                "shape": [1],
                "parameters": {"content_type": "text/plain", "binary_data_size": 1},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"binary_data_output": True},
    }
    assert data == b"\x05"


@pytest.mark.parametrize("datatype", ["INT64", "BYTES", "FP16"])
def test_a_body_over_the_limit_is_refused(datatype: str) -> None:
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[40])
    if datatype == "FP16":
        request.raw_input_contents.append(bytes(400))
    else:
        getattr(tensor.contents, FIELDS[datatype]).extend(
            [b"1234567890"] * 40 if datatype == "BYTES" else range(40)
        )
    with pytest.raises(PayloadTooLarge, match="max_request_bytes"):
        encode_request(request, 300)
    assert encode_request(request, 1000)[1] <= 1000


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"{}"),
        Answer(b"no JSON"),
        Answer(b'{"model_name":"m","model_version":"1","outputs":[{"name":"y","data":[1]}]}'),
        Answer(b"{}", headers={V2_HEADER_LENGTH: "x"}),
    ],
)
def test_an_answer_in_another_form_is_an_error_of_ours(answer: Answer) -> None:
    with pytest.raises(errors.ProtocolError, match="cannot be sent over gRPC"):
        decode_answer(answer)

"""Tensors from strangers, in V2's JSON, its binary form and gRPC."""

from __future__ import annotations

import gc
import json
import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest

from mms.archive.signature import MAX_TENSORS
from mms.errors import InvalidRequest, MMSError, PayloadTooLarge
from mms.grpc import codec
from mms.grpc import inference_pb2 as pb
from mms.wire.messages import RequestLimits
from mms.worker.failure import from_exception, release
from mms.worker.v2 import decode_request
from tests.security.work import calls_of, run_limited


def body(*inputs: dict[str, Any], **others: Any) -> memoryview:
    return memoryview(json.dumps({"inputs": list(inputs), **others}).encode())


def tensor(data: Any, shape: list[int], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def refuse(message: str, text: memoryview, length: str | None = None) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        decode_request(text, length, None)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "UINT8"])
def test_v04_one_text_among_numbers_costs_no_more_than_itself(datatype: str) -> None:
    code = f"""
    import json
    from mms.errors import InvalidRequest
    from mms.worker.v2 import decode_request
    value = True if {datatype!r} == "BOOL" else 1
    data = [value] * 1000 + ["x" * 1_000_000]
    entry = {{"name": "a", "shape": [1001], "datatype": {datatype!r}, "data": data}}
    text = memoryview(json.dumps({{"inputs": [entry]}}).encode())
    limit()
    try:
        decode_request(text, None, None)
    except InvalidRequest as error:
        print(error)
    """
    assert f"must contain {datatype}, got 'xxx" in run_limited(code, 100 << 20)


@pytest.mark.parametrize(
    ("data", "datatype"),
    [
        ([[1, "x"]], "FP32"),
        ([1, None], "FP32"),
        ([1, {"a": 1}], "INT8"),
        ([1, True], "INT64"),
        ([1.5, True], "FP64"),
        ([True, 1], "BOOL"),
        (["a", 1], "BYTES"),
        (["a", None], "BYTES"),
    ],
)
def test_v04_an_element_of_another_type_is_named(data: list[Any], datatype: str) -> None:
    refuse(
        f"must contain .*{datatype}.*, got ", body(tensor(data, [2], datatype) | {"shape": [1, 2]})
    )


def test_v04_what_failed_is_let_go_of() -> None:
    class Held(np.ndarray[Any, Any]):
        pass

    def fail() -> None:
        array = np.zeros(10).view(Held)
        held.append(weakref.ref(array))
        try:
            raise ValueError(array)
        except ValueError:
            raise InvalidRequest("no") from None

    held: list[weakref.ref[Any]] = []
    answers: list[MMSError] = []
    gc.disable()
    try:
        try:
            fail()
        except InvalidRequest as error:
            answers.append(from_exception(error, "decode", "/nowhere"))
        assert held[0]() is None
        assert answers[0].__traceback__ is None
        assert answers[0].__context__ is None
        assert answers[0].detail is not None
    finally:
        gc.enable()


def test_v04_chains_that_are_rings_are_let_go_of() -> None:
    first, second = ValueError(), ValueError()
    first.__context__, second.__cause__ = second, first
    release(first)
    assert first.__context__ is second.__cause__ is None


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_v05_names_are_counted_before_any_is_read(kind: str) -> None:
    def entries(count: int) -> list[dict[str, Any]]:
        return [tensor([1], [1], name=f"n{n}") for n in range(count)]

    def ask(count: int) -> memoryview:
        if kind == "inputs":
            return body(*entries(count))
        return body(tensor([1], [1]), outputs=[{"name": f"n{n}"} for n in range(count)])

    many, few = ask(20_000), ask(MAX_TENSORS)
    refuse(f"has 20000 {kind}, at most 1000", many)
    assert len(decode_request(few, None, None).inputs) in (1, MAX_TENSORS)
    assert calls_of(lambda: decode_request(many, None, None)) < 500
    half = ask(MAX_TENSORS // 2)
    assert calls_of(lambda: decode_request(few, None, None)) < 2.2 * calls_of(
        lambda: decode_request(half, None, None)
    )


def test_v05_a_name_twice_is_found() -> None:
    refuse("input 'x' appears more than once", body(tensor([1], [1]), tensor([1], [1])))
    refuse("output 'y' appears", body(tensor([1], [1]), outputs=[{"name": "y"}] * 2))


def test_v05_whole_numbers_then_one_that_is_not_cost_no_loop() -> None:
    def cost(count: int) -> int:
        text = body(tensor([1] * count + [1.5], [count + 1], "INT32"))
        return calls_of(lambda: decode_request(text, None, None))

    refuse("must contain INT32, got 1.5", body(tensor([1, 1.5], [2], "INT32")))
    assert cost(20_000) < 200


def test_v05_nested_numbers_cost_no_loop_either() -> None:
    text = body(tensor([[[1.0] * 50] * 50] * 50, [50, 50, 50]))
    assert calls_of(lambda: decode_request(text, None, None)) < 500


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1] * 1_000_000},
        {"shape": "x" * 1_000_000},
        {"shape": [10**300]},
        {"datatype": ["y" * 1_000_000] * 10},
        {"name": "z" * 1_000_000, "data": [None]},
        {"parameters": {str(n): n for n in range(100_000)}},
        {"parameters": {"a": ["x" * 1_000_000]}},
        {"data": {"a" * 1_000_000: 1}},
        {"data": [["x" * 1_000_000]]},
    ],
    ids=lambda changes: str(changes)[:16],
)
def test_v05_parts_of_any_size_are_refused_in_few_words(changes: dict[str, Any]) -> None:
    refuse("input|inputs", body(tensor([1], [1]) | changes))


def test_v05_elements_of_binary_bytes_are_limited() -> None:
    entry = {"name": "x", "shape": [100], "datatype": "BYTES"}
    head = bytes(body(entry | {"parameters": {"binary_data_size": 400}}))
    sent = memoryview(head + bytes(400))
    assert len(decode_request(sent, str(len(head)), None).inputs[0].data) == 100
    with pytest.raises(PayloadTooLarge, match="--max-json-elements"):
        decode_request(sent, str(len(head)), None, RequestLimits(max_json_elements=99))


def test_v05_grpc_has_the_same_limits() -> None:
    def ask(inputs: int = 1, outputs: int = 0, **changes: Any) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest()
        for n in range(inputs):
            request.inputs.add(**{"name": f"n{n}", "datatype": "INT8", "shape": [0], **changes})
        for n in range(outputs):
            request.outputs.add(name=f"n{n}")
        return request

    contents = pb.InferTensorContents(bytes_contents=[b""] * 100_001)
    parameters = {str(n): pb.InferParameter(bool_param=True) for n in range(1001)}
    for request, message in (
        (ask(20_000), "has 20000 inputs; the limit is 1000"),
        (ask(1, 20_000), "has 20000 outputs; the limit is 1000"),
        (ask(shape=[1] * 100_000), "100000 dimensions"),
        (ask(datatype="BYTES", contents=contents), "100001 elements of BYTES"),
        (ask(parameters=parameters), "1001 parameters"),
        (ask(name="x" * 1_000_000, datatype="y" * 1_000_000), "contents has no field for"),
    ):
        with pytest.raises(InvalidRequest, match=message) as caught:
            codec.encode_request(request, 1 << 30)
        assert len(str(caught.value)) < 400
        assert calls_of(partial(codec.encode_request, request, 1 << 30)) < 200
    chunks, _ = codec.encode_request(ask(1000), 1 << 30)
    assert len(chunks) == 1001

"""The V2 codec: what one side writes the other reads, and an answer to every mistake."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.signature import DATA_TYPES, Signature, TensorSpec
from mms.errors import InvalidRequest, InvalidServiceOutput
from mms.model_service.model_service import SingleNodeService
from mms.wire.messages import V2_HEADER_LENGTH, Answer, Dialect, RequestMeta
from mms.worker.v2 import InferRequest, decode_request, encode_response, header_length
from mms.worker.v2_model import (
    HANDLER_INPUT,
    gives_tensors,
    handler_inputs,
    network_outputs,
    outputs_of,
    raw_input,
    service_inputs,
    takes_tensors,
)
from mms.worker.v2_tensors import Tensor, tensor_of

BOUNDED = settings(max_examples=150, deadline=None)
JSON = "application/json"
NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1",
    "INT16": "i2", "INT32": "i4", "INT64": "i8", "FP16": "f2", "FP32": "f4", "FP64": "f8",
}  # fmt: skip
ALL = InferRequest(None, (), None, False)


def request(*inputs: dict[str, Any], **others: Any) -> bytes:
    return orjson.dumps({"inputs": inputs, **others})


def tensor(**changes: Any) -> dict[str, Any]:
    """Return an input that is valid but for the changes; None removes a key."""
    entry = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **changes}
    return {key: value for key, value in entry.items() if value is not None}


def binary(size: Any, **changes: Any) -> dict[str, Any]:
    return tensor(data=None, parameters={"binary_data_size": size}, **changes)


def decode(
    text: bytes, elements: bytes | None = None, raw: TensorSpec | None = None
) -> InferRequest:
    """Decode a JSON part and, if there is one, the binary part behind it."""
    length = None if elements is None else str(len(text))
    return decode_request(memoryview(text + (elements or b"")), length, raw)


def sole(text: bytes, elements: bytes | None = None) -> Any:
    return decode(text, elements).inputs[0].data


def refuse(message: str, text: bytes, elements: bytes | None = None) -> None:
    with pytest.raises(InvalidRequest, match=message):
        decode(text, elements)


def parts(answer: Answer) -> tuple[dict[str, Any], bytes]:
    """Cut an answer into its JSON and its binary part."""
    body = bytes(answer.body)
    at = int(answer.headers.get(V2_HEADER_LENGTH, len(body)))
    return orjson.loads(body[:at]), body[at:]


class TestNumbers:
    @pytest.mark.parametrize(
        ("data", "shape", "expected"),
        [
            ([1, 2.5], [2], [1, 2.5]),
            ([[1, 2], [3, 4]], [2, 2], [[1, 2], [3, 4]]),
            ([1, 2, 3, 4], [2, 2], [[1, 2], [3, 4]]),
            ([[1, 2, 3, 4]], [1, 4], [[1, 2, 3, 4]]),
            ([7], [], 7),
            ([], [0, 3], []),
            ([[], []], [2, 0], [[], []]),
        ],
    )
    def test_json_data_is_nested_or_flat(
        self, data: list[Any], shape: list[int], expected: Any
    ) -> None:
        array = sole(request(tensor(data=data, shape=shape)))
        assert array.dtype == np.float32
        assert array.shape == tuple(shape)
        assert array.tolist() == expected

    @pytest.mark.parametrize("datatype", [name for name in NUMPY if name != "FP16"])
    def test_json_gives_each_type_its_limits(self, datatype: str) -> None:
        dtype = np.dtype(NUMPY[datatype])
        values: list[Any] = [False, True]
        if dtype.kind in "iu":
            values = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
        elif dtype.kind == "f":
            values = [float(np.finfo(dtype).min), float(np.finfo(dtype).max)]
        array = sole(request(tensor(datatype=datatype, data=values)))
        assert array.dtype == dtype
        assert array.tolist() == values

    @pytest.mark.parametrize("datatype", NUMPY)
    def test_binary_gives_each_type_whatever_stands_before_it(self, datatype: str) -> None:
        values = np.array([1, 0, 1], NUMPY[datatype])
        first = binary(3, name="odd", datatype="UINT8", shape=[3])
        second = binary(values.nbytes, datatype=datatype, shape=[3, 1])
        decoded = decode(request(first, second), b"\x01\x02\x03" + values.tobytes())
        array = decoded.inputs[1].data
        assert isinstance(array, np.ndarray)
        assert (array.dtype, array.shape) == (values.dtype, (3, 1))
        assert array.ravel().tolist() == values.tolist()
        array[0] = 0  # the model's own to write to

    def test_integers_beyond_63_bits_beside_small_ones(self) -> None:
        array = sole(request(tensor(datatype="UINT64", data=[2**64 - 1, 1])))
        assert array.tolist() == [2**64 - 1, 1]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"data": [1, 2, 3]}, r"'x': data has 3 elements, but shape \[2\] has 2"),
            ({"data": [[1, 2]], "shape": [2, 1]}, r"nested to the shape \[1, 2\].*\[2, 1\]"),
            ({"data": [[1], [2, 3]]}, "nested evenly"),
            ({"data": ["1", 2]}, "must contain FP32, got '1'"),
            ({"data": [None, 2]}, "must contain FP32, got None"),
            ({"data": [True, False]}, "must contain FP32, got True"),
            ({"data": [{"a": 1}, 2]}, "must contain FP32, got {'a': 1}"),
            ({"data": [1.5, 2], "datatype": "INT32"}, "must contain INT32, got 1.5"),
            ({"data": [1, 300], "datatype": "INT8"}, "300 does not fit INT8"),
            ({"data": [-1, 0], "datatype": "UINT64"}, "-1 does not fit UINT64"),
            ({"data": [2**63, 1], "datatype": "INT64"}, "9223372036854775808 does not fit INT64"),
            ({"data": [1, 0], "datatype": "BOOL"}, "must contain BOOL, got 1"),
            ({"data": [1e39, 0]}, "does not fit FP32"),
            ({"data": [1, 2], "datatype": "FP16"}, "FP16 has no JSON form.*binary_data_size"),
            ({"data": "12"}, "data must be a list, got a string"),
            ({"data": []}, "data has 0 elements"),
        ],
    )
    def test_json_that_is_not_what_the_tensor_says(
        self, changes: dict[str, Any], message: str
    ) -> None:
        refuse(message, request(tensor(**changes)))


class TestTensors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": None}, r"inputs\[0\] needs a name"),
            ({"name": ""}, r"inputs\[0\] needs a name"),
            ({"name": 5}, r"inputs\[0\] needs a name, a string; got a number"),
            ({"shape": None}, "'x': shape must be a list of integers"),
            ({"shape": [-1]}, r"got \[-1\]"),
            ({"shape": [2.0]}, r"got \[2.0\]"),
            ({"shape": [True]}, r"got \[True\]"),
            ({"shape": [2**31]}, r"got \[2147483648\]"),
            ({"shape": "2"}, "got '2'"),
            ({"shape": [1] * 33}, "33 dimensions"),
            ({"shape": [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], "data": []}, "no array has the shape"),
            ({"datatype": None}, "datatype must be one of BOOL, .*got None"),
            ({"datatype": "BF16"}, "got 'BF16'"),
            ({"datatype": ["FP32"]}, r"got \['FP32'\]"),
            ({"data": None}, "'x' has neither data nor binary_data_size"),
            ({"parameters": {"binary_data_size": 8}}, "'x' has both data and binary_data_size"),
            ({"parameters": [1]}, "'x': parameters must be an object"),
            ({"parameters": {"a": [1]}}, "'x': parameters must be an object"),
            (
                {"data": None, "parameters": {"shared_memory_region": "r"}},
                "does not support the shared memory extension",
            ),
        ],
    )
    def test_an_input_that_is_malformed(self, changes: dict[str, Any], message: str) -> None:
        refuse(message, request(tensor(**changes)))

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"", "not valid JSON"),
            (b"{", "not valid JSON"),
            (b'{"inputs": [NaN]}', "not valid JSON"),
            (b"\xff{}", "not valid JSON"),
            (b"[" * 2000, "not valid JSON"),
            (b"[]", "must be a JSON object, got a list"),
            (b"{}", 'needs "inputs"'),
            (b'{"inputs": []}', 'needs "inputs"'),
            (b'{"inputs": {}}', 'needs "inputs"'),
            (b'{"inputs": [3]}', r"inputs\[0\] must be an object, got a number"),
            (request(tensor(), tensor()), "input 'x' appears more than once"),
            (request(tensor(), id=5), "id must be a string, got a number"),
            (request(tensor(), outputs={}), '"outputs" must be a list, got an object'),
            (request(tensor(), outputs=["y"]), r"outputs\[0\] must be an object, got a string"),
            (request(tensor(), outputs=[{}]), r"outputs\[0\] needs a name"),
            (request(tensor(), outputs=[{"name": "y"}] * 2), "output 'y' appears more than once"),
            (
                request(tensor(), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]),
                "output 'y': binary_data must be true or false, got 1",
            ),
            (
                request(tensor(), outputs=[{"name": "y", "parameters": {"classification": 3}}]),
                "output 'y': this server does not support the classification extension",
            ),
            (
                request(tensor(), parameters={"binary_data_output": "yes"}),
                "binary_data_output must be true or false, got 'yes'",
            ),
            (request(tensor(), parameters=3), "the request: parameters must be an object"),
        ],
    )
    def test_a_request_that_is_malformed(self, body: bytes, message: str) -> None:
        refuse(message, body)

    def test_what_the_protocol_allows_and_nobody_needs_is_let_pass(self) -> None:
        parameters = {"priority": 3, "flag": True, "text": "x", "number": 1.5}
        body = request(
            tensor(parameters=parameters), id="", outputs=[], parameters=parameters, other=[1]
        )
        assert decode(body).outputs is None
        assert decode(body).id == ""


class TestBytes:
    @pytest.mark.parametrize(
        ("data", "shape"),
        [
            (["a", "ü"], [2]),
            (["a", "ü"], [2, 1]),
            ([["a"], ["ü"]], [2, 1]),
            ([[["a", "ü"]]], [1, 1, 2]),
        ],
    )
    def test_json_texts_are_nested_or_flat(self, data: list[Any], shape: list[int]) -> None:
        body = request(tensor(datatype="BYTES", data=data, shape=shape))
        assert sole(body) == [b"a", "ü".encode()]

    @pytest.mark.parametrize(
        ("data", "shape", "message"),
        [
            (["a"], [2], r"data has 1 elements, but shape \[2\] has 2"),
            ([1], [1], r"must contain strings \(BYTES\), got 1"),
            ([["a"], "b"], [2], r"not nested to its shape \[2\]"),
            ([["a", "b"]], [2, 1], r"not nested to its shape \[2, 1\] \(axis 0 of 2\)"),
            ([["a"], ["b", "c"]], [2, 1], r"not nested to its shape \[2, 1\] \(axis 1 of 1\)"),
            ([[["a"]]], [1, 1], r"not nested to its shape"),
            ([["a"]], [], r"must contain strings"),
        ],
    )
    def test_json_that_is_no_texts(self, data: list[Any], shape: list[int], message: str) -> None:
        refuse(message, request(tensor(datatype="BYTES", data=data, shape=shape)))

    @pytest.mark.parametrize(
        ("elements", "message"),
        [
            (b"\x01\x00\x00", "element 0 of BYTES"),
            (b"\x02\x00\x00\x00a", "element 0 of BYTES.*beyond the 5 bytes"),
            (b"\xff\xff\xff\xffa", "element 0 of BYTES"),
            (b"\x00\x00\x00\x00" + b"\x01\x00\x00\x00", "element 1 of BYTES"),
            (b"\x00\x00\x00\x00", r"has 1 elements, but its shape \[2\] has 2"),
            (b"\x00\x00\x00\x00" * 3, r"has 3 elements, but its shape \[2\] has 2"),
        ],
    )
    def test_lengths_that_do_not_fit(self, elements: bytes, message: str) -> None:
        body = request(binary(len(elements), datatype="BYTES"))
        refuse(message, body, elements)


class TestBinary:
    @pytest.mark.parametrize(
        ("size", "elements", "message"),
        [
            (7, bytes(7), r"'x' has 7 bytes, but FP32 of shape \[2\] takes 8"),
            (8, bytes(7), "binary_data_size is 8, but only 7 bytes of the body are left"),
            (8, bytes(9), "the body has 1 bytes after its last tensor"),
            (0, b"", "has 0 bytes, but FP32"),
            (-8, bytes(8), "integer >= 0 \\(bytes\\), got -8"),
            (2**62, bytes(8), "but only 8 bytes"),
            (8.0, bytes(8), "got 8.0"),
            (True, bytes(8), "got True"),
            ("8", bytes(8), "got '8'"),
            (8, None, f"the header {V2_HEADER_LENGTH}.* is missing"),
        ],
    )
    def test_sizes_that_do_not_add_up(
        self, size: Any, elements: bytes | None, message: str
    ) -> None:
        refuse(message, request(binary(size)), elements)

    def test_bytes_that_are_no_booleans(self) -> None:
        refuse("0 or 1", request(binary(2, datatype="BOOL")), b"\x01\x02")

    @pytest.mark.parametrize("length", ["-1", "+5", "0x5", "5.0", " 5", "٥", "", "9" * 13])
    def test_a_header_that_is_no_number(self, length: str) -> None:
        with pytest.raises(InvalidRequest, match="must be the number of bytes of the JSON"):
            decode_request(memoryview(request(tensor())), length, None)

    def test_a_header_beyond_the_body(self) -> None:
        body = request(tensor())
        with pytest.raises(InvalidRequest, match=f"the whole body has {len(body)} bytes"):
            decode_request(memoryview(body), str(len(body) + 1), None)

    def test_a_header_that_cuts_the_json(self) -> None:
        body = request(tensor())
        with pytest.raises(InvalidRequest, match="not valid JSON"):
            decode_request(memoryview(body), str(len(body) - 1), None)

    def test_a_header_over_json_alone(self) -> None:
        assert sole(request(tensor()), b"").tolist() == [1, 2]

    def test_the_header_is_found_however_it_is_written(self) -> None:
        headers = {"accept": "x", V2_HEADER_LENGTH.upper(): "17"}
        assert header_length(RequestMeta("", Dialect.OIP, "", "", headers=headers)) == "17"
        assert header_length(RequestMeta("", Dialect.OIP, "", "")) is None


class TestRaw:
    @pytest.mark.parametrize(
        ("shape", "values", "expected"),
        [
            ((2, 2), 4, (2, 2)),
            ((0, 3), 6, (2, 3)),
            ((0,), 5, (5,)),
            ((0, 0, 2), 6, (1, 3, 2)),
            ((0, 3), 0, (0, 3)),
        ],
    )
    def test_the_shape_follows_from_the_size(
        self, shape: tuple[int, ...], values: int, expected: tuple[int, ...]
    ) -> None:
        body = np.arange(values, dtype=np.float32).tobytes()
        decoded = decode_request(memoryview(body), "0", TensorSpec("x", shape, "FP32"))
        assert decoded.inputs[0].shape == expected
        assert np.ravel(decoded.inputs[0].data).tolist() == list(range(values))
        assert decoded.is_binary

    def test_bytes_are_one_element_without_a_length(self) -> None:
        decoded = decode_request(memoryview(b"\xff\xd8 image"), "0", TensorSpec("x", (1,), "BYTES"))
        assert decoded.inputs[0].data == [b"\xff\xd8 image"]

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (None, "only models with one input"),
            (TensorSpec("x", (0, 0, 0), "FP32"), "several free axes"),
            (TensorSpec("x", (0, 3), "FP32"), r"has 8 bytes, but FP32 of shape \[0, 3\] takes 0"),
            (TensorSpec("x", (3,), "FP32"), "has 8 bytes, but FP32"),
        ],
    )
    def test_a_size_that_fits_no_shape(self, spec: TensorSpec | None, message: str) -> None:
        with pytest.raises(InvalidRequest, match=message):
            decode_request(memoryview(bytes(8)), "0", spec)


class TestAnswers:
    def test_json_by_default(self) -> None:
        outputs = [
            Tensor("y", "FP32", (1, 2), np.array([[1.5, math.nan]], np.float32)),
            Tensor("z", "BYTES", (2,), ["ü".encode(), b"\xff"]),
        ]
        answer = encode_response("m", "2", InferRequest("abc", (), None, False), outputs)
        assert answer.is_plain
        assert orjson.loads(answer.body) == {
            "model_name": "m",
            "model_version": "2",
            "id": "abc",
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, None]},
                # What is no text comes in base64.
                {"name": "z", "datatype": "BYTES", "shape": [2], "data": ["ü", "/w=="]},
            ],
        }

    def test_outputs_are_chosen_ordered_and_each_in_its_form(self) -> None:
        asked = decode(
            request(
                tensor(),
                parameters={"binary_data_output": True},
                outputs=[
                    {"name": "c"},
                    {"name": "a", "parameters": {"binary_data": False}},
                ],
            )
        )
        outputs = [
            Tensor(name, "INT8", (1,), np.array([i], np.int8)) for i, name in enumerate("abc")
        ]
        answer = encode_response("m", "1", asked, outputs)
        document, elements = parts(answer)
        assert answer.content_type == "application/octet-stream"
        assert "id" not in document
        assert document["outputs"] == [
            {"name": "c", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}},
            {"name": "a", "datatype": "INT8", "shape": [1], "data": [0]},
        ]
        assert elements == b"\x02"

    def test_an_output_that_there_is_not(self) -> None:
        asked = decode(request(tensor(), outputs=[{"name": "w"}]))
        with pytest.raises(InvalidRequest, match="no output 'w'; its outputs: 'y'"):
            encode_response("m", "1", asked, [Tensor("y", "BYTES", (1,), [b""])])

    def test_half_precision_in_json_is_refused_with_the_way_out(self) -> None:
        output = Tensor("y", "FP16", (1,), np.ones(1, np.float16))
        with pytest.raises(InvalidRequest, match=r"FP16, which has no JSON form.*binary_data"):
            encode_response("m", "1", ALL, [output])
        _, elements = parts(encode_response("m", "1", InferRequest(None, (), None, True), [output]))
        assert elements == b"\x00\x3c"

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_any_layout_of_an_array_comes_row_major_and_little_endian(self, order: str) -> None:
        array = np.arange(6, dtype=np.int32).reshape(2, 3).astype(f"{order}i4").T
        found = tensor_of("y", array)
        assert found is not None
        assert found.datatype == "INT32"
        _, elements = parts(encode_response("m", "1", InferRequest(None, (), None, True), [found]))
        assert np.frombuffer(elements, "<i4").tolist() == [0, 3, 1, 4, 2, 5]
        document, _ = parts(encode_response("m", "1", ALL, [found]))
        assert document["outputs"][0]["data"] == [0, 3, 1, 4, 2, 5]

    @pytest.mark.parametrize("array", [np.array(["a", "ü"]), np.array([b"a", "ü"], object)])
    def test_arrays_of_texts_are_bytes(self, array: Any) -> None:
        assert tensor_of("y", array) == Tensor("y", "BYTES", (2,), [b"a", "ü".encode()])

    @pytest.mark.parametrize("array", [np.array([1j]), np.array([None]), np.array(["2020"], "M8")])
    def test_other_arrays_are_no_tensors(self, array: Any) -> None:
        assert tensor_of("y", array) is None


names = st.text(min_size=1, max_size=10)
shapes = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def tensors(draw: st.DrawFn, name: str) -> Tensor:
    datatype = draw(st.sampled_from(DATA_TYPES))
    shape = tuple(draw(shapes))
    count = math.prod(shape)
    if datatype == "BYTES":
        elements = draw(st.lists(st.binary(max_size=6), min_size=count, max_size=count))
        return Tensor(name, datatype, shape, elements)
    dtype = np.dtype(NUMPY[datatype])
    if datatype == "BOOL":
        data = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:
        size = count * dtype.itemsize
        data = draw(st.binary(min_size=size, max_size=size))
    return Tensor(name, datatype, shape, np.frombuffer(data, dtype).reshape(shape))


several = st.lists(names, min_size=1, max_size=3, unique=True).flatmap(
    lambda found: st.tuples(*[tensors(name) for name in found])
)


def as_binary(sent: tuple[Tensor, ...]) -> tuple[bytes, bytes]:
    """Return an answer of tensors as the request that its client might send on."""
    asked = InferRequest("id", (), None, True)
    document, elements = parts(encode_response("m", "1", asked, sent))
    return orjson.dumps({"id": "id", "inputs": document["outputs"]}), elements


def same(left: Tensor, right: Tensor) -> bool:
    if isinstance(left.data, list) or isinstance(right.data, list):
        return left == right
    about = (left.name, left.datatype, left.shape, left.data.dtype, left.data.tobytes())
    return about == (
        right.name,
        right.datatype,
        right.shape,
        right.data.dtype,
        right.data.tobytes(),
    )


@BOUNDED
@given(several)
def test_binary_tensors_come_back_as_they_went(sent: tuple[Tensor, ...]) -> None:
    decoded = decode(*as_binary(sent))
    assert decoded.id == "id"
    assert all(same(*pair) for pair in zip(sent, decoded.inputs, strict=True))


@BOUNDED
@given(several)
def test_json_tensors_come_back_as_they_went(sent: tuple[Tensor, ...]) -> None:
    sent = tuple(
        t
        for t in sent
        if t.datatype != "FP16"
        and (isinstance(t.data, list) or bool(np.isfinite(t.data).all()))
        and not (isinstance(t.data, list) and any(map(_is_no_text, t.data)))
    )
    document, _ = parts(encode_response("m", "1", ALL, sent))
    if sent:
        decoded = decode(orjson.dumps({"inputs": document["outputs"]}))
        assert all(same(*pair) for pair in zip(sent, decoded.inputs, strict=True))


def _is_no_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return False


@BOUNDED
@given(several, st.data())
def test_a_body_cut_or_stretched_is_refused(sent: tuple[Tensor, ...], data: st.DataObject) -> None:
    text, elements = as_binary(sent)
    change = data.draw(st.integers(-len(elements), 8).filter(bool))
    changed = elements[:change] if change < 0 else elements + bytes(change)
    with pytest.raises(InvalidRequest):
        decode(text, changed)


keys = st.sampled_from(
    ["name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id",
     "binary_data_size", "binary_data", "binary_data_output"]
)  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(width=16, allow_nan=False)
    | st.text(max_size=3) | st.sampled_from(DATA_TYPES)
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(keys, anything, max_size=4)


@BOUNDED
@given(objects, st.lists(objects, max_size=2))
def test_any_document_is_read_or_refused(
    document: dict[str, Any], inputs: list[dict[str, Any]]
) -> None:
    inputs = [{"name": "x", "shape": [1], "datatype": "FP32", **entry} for entry in inputs]
    text = json.dumps({**document, "inputs": inputs}).encode()
    for elements in (None, b"", bytes(8)):
        try:
            decoded = decode(text, elements)
        except InvalidRequest:
            continue
        for found in decoded.inputs:
            assert len(np.ravel(np.array(found.data, object))) == math.prod(found.shape)


@BOUNDED
@given(st.binary(max_size=60), st.text(max_size=3) | st.none())
def test_any_bytes_are_read_or_refused(body: bytes, length: str | None) -> None:
    # Any other exception fails the test.
    with contextlib.suppress(InvalidRequest):
        decode_request(memoryview(body), length, TensorSpec("x", (0,), "INT16"))


def signature(*inputs: TensorSpec, images: bool = False, outputs: int = 1) -> Signature:
    return Signature(
        inputs or (TensorSpec("data", (0, 3)),),
        "image/jpeg" if images else JSON,
        tuple(TensorSpec(f"out{index}", (0,)) for index in range(outputs)),
        JSON,
    )


def body_input(*elements: bytes, name: str = "data") -> Tensor:
    return Tensor(name, "BYTES", (len(elements),), list(elements))


def ask(*inputs: Tensor) -> InferRequest:
    return InferRequest(None, inputs, None, False)


class TestServices:
    def test_a_number_is_an_array_and_bytes_are_a_body(self) -> None:
        array = np.ones((1, 3))
        two = signature(TensorSpec("a", (0,)), TensorSpec("b", (0,)))
        values = service_inputs(
            ask(body_input(b"{'x': 1}", name="b"), Tensor("a", "FP64", (1, 3), array)), two
        )
        assert values[0] is array
        assert values[1] == [{"x": 1}]

    def test_an_image_comes_as_it_is_or_in_base64(self) -> None:
        image = b"\x89PNG\r\n\x1a\n" + bytes(30)
        for sent in (image, b"iVBORw0KGgo" + b"A" * 40 + b"="):
            assert service_inputs(ask(body_input(sent)), signature(images=True)) == [image]

    @pytest.mark.parametrize(
        ("inputs", "images", "message"),
        [
            ((body_input(b"[1]", name="other"),), False, "no input 'other'; its inputs: 'data'"),
            ((body_input(b"[1]", b"[2]"),), False, "exactly one element of BYTES, got 2"),
            ((body_input(),), False, "exactly one element of BYTES, got 0"),
            ((body_input(b"nonsense"),), False, "'data' is neither JSON nor a Python literal"),
            ((body_input(b"5"),), False, "'data' must be a list or an object, got a number"),
            ((body_input(b"no base64!"),), True, "neither an image file nor base64"),
            ((body_input(b""),), True, "is empty"),
            (
                (Tensor("data", "FP32", (1,), np.ones(1)),),
                True,
                r"takes an encoded image, as BYTES of shape \[1\], not FP32 of shape \[1\]",
            ),
        ],
    )
    def test_inputs_that_do_not_fit(
        self, inputs: tuple[Tensor, ...], images: bool, message: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=message):
            service_inputs(ask(*inputs), signature(images=images))

    def test_a_missing_input(self) -> None:
        two = signature(TensorSpec("a", (0,)), TensorSpec("b", (0,)))
        with pytest.raises(InvalidRequest, match="'b' is missing; the request has 'a'"):
            service_inputs(ask(body_input(b"[]", name="a")), two)

    def test_an_unknown_output_is_refused_before_the_model_runs(self) -> None:
        asked = InferRequest(None, (body_input(b"[]"),), {"nope": False}, False)
        with pytest.raises(InvalidRequest, match="no output 'nope'; its outputs: 'out0'"):
            service_inputs(asked, signature())
        with pytest.raises(InvalidRequest, match="no output 'nope'; its outputs: 'output'"):
            handler_inputs(asked, lambda *_: None)

    def test_a_handler_gets_arrays_and_fields(self) -> None:
        array = np.ones(2)
        asked = ask(
            Tensor("n", "FP64", (2,), array),
            Tensor("body", "BYTES", (1,), [b"{}"], "application/json"),
        )
        found = handler_inputs(asked, lambda *field: field)
        assert found == {"n": array, "body": ("body", "application/json", b"{}")}

    def test_raw_bodies_are_what_the_model_takes(self) -> None:
        typed = signature(TensorSpec("data", (0, 3), "INT64"))
        assert raw_input(signature(), True) == TensorSpec("data", (0, 3), "FP32")
        assert raw_input(typed, True) == TensorSpec("data", (0, 3), "INT64")
        assert raw_input(signature(), False) == TensorSpec("data", (1,), "BYTES")
        assert raw_input(signature(TensorSpec("a", (0,)), TensorSpec("b", (0,))), True) is None
        assert HANDLER_INPUT.data_type == "BYTES"


class TestOutputs:
    def test_arrays_one_per_output_are_tensors(self) -> None:
        array = np.ones((2, 2), np.float32)
        assert [t.name for t in outputs_of([array, array], ["a", "b"], _no_body)] == ["a", "b"]
        assert [t.name for t in outputs_of(array, ["a", "b"], _no_body)] == ["a"]

    @pytest.mark.parametrize("value", [{"a": 1}, "text", [np.ones(1), np.ones(1)], np.ones(1) * 1j])
    def test_anything_else_is_the_body_that_it_would_be(self, value: Any) -> None:
        assert outputs_of(value, ["a"], lambda: b"body") == [Tensor("a", "BYTES", (1,), [b"body"])]

    def test_a_network_has_at_least_the_outputs_that_it_is_said_to_have(self) -> None:
        array = np.ones(1)
        found = network_outputs([array, array], ["a"])
        assert found is not None
        assert [t.name for t in found] == ["a"]
        assert network_outputs(None, ["a"]) is None
        with pytest.raises(
            InvalidServiceOutput, match="returned 1 outputs, but the signature names 2"
        ):
            network_outputs([array], ["a", "b"])


def _no_body() -> bytes:
    raise AssertionError("these are tensors")


def test_a_service_without_a_network_of_ours_takes_and_gives_bodies() -> None:
    # Of those with one, which need MXNet, the server's own tests tell.
    class MXNetBaseService:
        def _preprocess(self, data: Any) -> Any:
            return data

    assert not takes_tensors(MXNetBaseService(), signature())
    assert not gives_tensors(MXNetBaseService(), signature())


class Network(SingleNodeService):
    array_stages = ("_preprocess",)

    def _preprocess(self, data: Any) -> Any:
        return data


class OwnStages(Network):
    def _preprocess(self, data: Any) -> Any:
        return data[0]

    def _postprocess(self, data: Any) -> Any:
        return data[0]


class SaysSo(OwnStages):
    array_stages = ("_preprocess",)

    def _preprocess(self, data: Any) -> Any:
        return data


@pytest.mark.parametrize(
    ("cls", "takes", "gives"),
    [
        (SingleNodeService, False, False),
        (Network, True, True),
        (OwnStages, False, False),
        (SaysSo, True, False),
    ],
)
def test_what_a_class_says_of_its_stages_is_not_said_of_a_subclass_that_overrides_them(
    cls: type[SingleNodeService], takes: bool, gives: bool
) -> None:
    service = cls("m", "", {})
    assert takes_tensors(service, signature()) is takes
    assert gives_tensors(service, signature()) is gives
    service._preprocess = lambda data: data  # type: ignore[method-assign]
    assert not takes_tensors(service, signature())

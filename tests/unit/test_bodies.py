"""Bodies as other clients send them: arrays, envelopes, encodings; and what contradicts a model."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mms.archive.signature import Signature, TensorSpec
from mms.errors import InvalidRequest, MMSError, PayloadTooLarge, UnsupportedMedia
from mms.wire.messages import Dialect, Request, RequestLimits, RequestMeta
from mms.worker.array_body import ArrayType, accepted_type, encode_array
from mms.worker.base64_text import decode_base64
from mms.worker.json_text import read_json
from mms.worker.mismatch import Kind, find_mismatch
from mms.worker.npy import read_npy, write_npy
from mms.worker.request import DEFAULT_LIMITS, decode_inputs
from mms.worker.text_rows import read_csv, read_json_lines
from mms.worker.v1 import decode_v1

BOUNDED = settings(max_examples=100, deadline=None)
JSON, NPY, CSV, LINES = (
    "application/json",
    "application/x-npy",
    "text/csv",
    "application/jsonlines",
)
FEW = RequestLimits(max_json_elements=8)


def signature(**shapes: tuple[int, ...]) -> Signature:
    specs = tuple(TensorSpec(name, shape) for name, shape in shapes.items())
    return Signature(specs, JSON, (TensorSpec("out", (0,)),), JSON)


VECTOR = signature(data=(0, 3))
PAIR = signature(a=(0, 2), b=(0, 1))
IMAGE = Signature((TensorSpec("data", (0, 3, 8, 8)),), "image/jpeg", VECTOR.outputs, JSON)


def decode(
    body: bytes,
    content_type: str,
    model: Signature = VECTOR,
    limits: RequestLimits = DEFAULT_LIMITS,
    takes_arrays: bool = True,
) -> list[Any]:
    request = Request(RequestMeta("id", Dialect.PLAIN, content_type, ""), memoryview(body))
    values = decode_inputs(request, model, limits, takes_arrays)
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def same(one: Any, other: Any) -> bool:
    """NaN included. Not `numpy.testing`, whose import starts a process."""
    return bool(one.shape == other.shape) and bool(np.array_equal(one, other, equal_nan=True))


def saved(array: Any) -> bytes:
    output = io.BytesIO()
    np.save(output, array, allow_pickle=False)
    return output.getvalue()


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    """Return a file with any header."""
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode("latin-1") + data


class TestNpy:
    @given(
        npst.arrays(
            npst.boolean_dtypes()
            | npst.integer_dtypes()
            | npst.floating_dtypes(sizes=(16, 32, 64)),
            npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
        )
    )
    @BOUNDED
    def test_what_numpy_saves_is_read_in_any_byte_order(self, array: Any) -> None:
        read = read_npy(saved(array), "the body")
        assert read.dtype == array.dtype.newbyteorder("=")
        assert read.dtype.isnative
        assert read.flags.writeable
        assert same(read, array)

    def test_the_order_of_fortran_is_read(self) -> None:
        array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
        assert same(read_npy(saved(array), "the body"), array)
        assert same(read_npy(write_npy(array), "the body"), array)

    def test_other_writers_and_python_2_are_read(self) -> None:
        data = np.arange(3, dtype="<f4").tobytes()
        for header in (
            '{"descr": "<f4", "fortran_order": False, "shape": (1, 3)}',
            "{'shape': (1L, 3L), 'fortran_order': False, 'descr': '<f4'}\n",
        ):
            for version in (1, 2, 3):
                read = read_npy(npy(header, data, version), "the body")
                assert read.tolist() == [[0, 1, 2]]

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"[[1,2,3]]", "not an npy file, which begins with"),
            (b"", "not an npy file"),
            (b"\x93NUMPY", "unknown version 0"),
            (b"\x93NUMPY\x09\0\0\0", "unknown version 9"),
            (b"\x93NUMPY\x01\0\x76\0{", "cut short: it ends within its npy header"),
            (b"\x93NUMPY\x02\0\xff\xff\xff\xff", "header of 4294967295 bytes, at most 4096"),
            (npy("x" * 4097), "header of 4097 bytes"),
            (npy("{}"), "not an npy file: its header is '{}'"),
            (npy("{'descr': '<f4', 'shape': (3,)}"), "not an npy file: its header"),
            (saved(np.zeros((1, 3)))[:-1], "23 bytes after its npy header, but float64"),
            (saved(np.zeros((1, 3))) + b"x", "25 bytes after its npy header"),
            (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), r"of type \|O"),
            (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}"), "structure"),
            (npy("{'descr': '<U5', 'fortran_order': False, 'shape': (1,)}"), "of type <U5"),
            (npy("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}"), "of type <c8"),
            (npy("{'descr': '<f16', 'fortran_order': False, 'shape': (1,)}"), "of type <f16"),
            (npy("{'descr': '<V2', 'fortran_order': False, 'shape': (1,)}"), "of type <V2"),
            (npy("{'descr': '|b1', 'fortran_order': False, 'shape': (1,)}", b"\2"), "0 or 1"),
            (
                npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 9}, 999999999)}}"),
                "0 bytes after its npy header",
            ),
            (
                npy(
                    f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, {'2' * 9}, {'2' * 9}, "
                    f"{'2' * 9})}}"
                ),
                "no array has the shape",
            ),
            (
                npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 99},)}}"),
                "whose sizes are no integers",
            ),
            (
                npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1,' * 33})}}"),
                "33 axes, at most 32",
            ),
        ],
    )
    def test_anything_else_is_refused_before_it_costs_memory(
        self, body: bytes, message: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=message) as caught:
            read_npy(body, "the body")
        assert len(str(caught.value)) < 400

    def test_pickles_are_not_opened(self) -> None:
        header = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        with pytest.raises(InvalidRequest, match="send integers, booleans or floats"):
            read_npy(npy(header, b"cos\nsystem\n(S'true'\ntR."), "the body")

    @given(st.binary(max_size=200), st.integers(1, 3))
    @BOUNDED
    def test_any_bytes_are_an_array_or_our_error(self, data: bytes, version: int) -> None:
        for body in (data, b"\x93NUMPY" + data, npy(data.decode("latin-1"), data, version)):
            with contextlib.suppress(InvalidRequest):
                read_npy(body, "the body")


class TestCsv:
    @pytest.mark.parametrize(
        ("text", "rows"),
        [
            ("1,2,3\n", [[1, 2, 3]]),
            ("1,2,3\n4,5,6", [[1, 2, 3], [4, 5, 6]]),
            ("1.5, 2 ,-3e2\r\n\r\n4,5,6\r\n", [[1.5, 2.0, -300.0], [4.0, 5.0, 6.0]]),
            ("1,2\r3,4\r", [[1, 2], [3, 4]]),
            ('"1","2"\n', [[1, 2]]),
            ("\ufeff1,2\n", [[1, 2]]),
            ("inf,-inf\n", [[float("inf"), float("-inf")]]),
            ("9007199254740993\n", [[9007199254740993]]),
            ("9223372036854775808\n", [[9223372036854775808.0]]),
        ],
    )
    def test_rows_of_numbers_are_read(self, text: str, rows: list[Any]) -> None:
        for encoding in ("utf-8", "utf-16"):
            assert read_csv(text.encode(encoding), "the body", 99, False).tolist() == rows

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "has no rows"),
            ("\n \n", "has no rows"),
            ("1,2\n3\n", "line 2 has 1 values instead of 2"),
            ("a,b\n1,2\n", "line 1, column 1 is not a number but 'a'; .*header=present"),
            ("1,2\n1,x\n", "line 2, column 2 is not a number but 'x'$"),
            ("1,,2\n", "line 1, column 2 is not a number but ''$"),
            ("1;2\n", "line 1, column 1 is not a number but '1;2'"),
            ("1_0,2\n", "could not convert"),
            ("x" * 9999, "is not a number but 'x{39}"),
        ],
    )
    def test_a_mistake_is_placed(self, text: str, message: str) -> None:
        with pytest.raises(InvalidRequest, match=message) as caught:
            read_csv(text.encode(), "the body", 99999, False)
        assert len(str(caught.value)) < 400

    def test_a_header_that_is_announced_is_skipped(self) -> None:
        assert decode(b"x,y,z\n1,2,3\n", "text/csv; header=present") == [[[1, 2, 3]]]

    @pytest.mark.parametrize("text", [b"1,2,3,4,5,6,7,8,9\n", b"1\n" * 9, b"\n" * 9])
    def test_values_are_counted_before_they_are_made(self, text: bytes) -> None:
        for content_type in (CSV, LINES):
            with pytest.raises(PayloadTooLarge, match="max_json_elements"):
                decode(text, content_type, limits=FEW)

    @pytest.mark.parametrize(
        ("shape", "body", "value"),
        [
            ((0, 3), b"1,2,3\n", [[1, 2, 3]]),
            # As SageMaker's toolkit reshapes the flat rows of CSV.
            ((0, 1, 2, 2), b"1,2,3,4\n5,6,7,8\n", [[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]]),
            ((0, 2, 0), b"1,2,3,4\n", [[[1, 2], [3, 4]]]),
            ((0, 0, 0), b"1,2,3,4\n", [[1, 2, 3, 4]]),
            ((0,), b"1\n2\n", [1, 2]),
            ((0,), b"1,2\n", [1, 2]),
            ((0, 2, 2), b"1,2,3\n", [[1, 2, 3]]),
        ],
    )
    def test_rows_take_the_shape_of_the_signature(
        self, shape: tuple[int, ...], body: bytes, value: Any
    ) -> None:
        for takes_arrays in (True, False):
            decoded = decode(body, CSV, signature(data=shape), takes_arrays=takes_arrays)
            assert decoded == [value]

    @given(st.text(alphabet="0123456789,.-+eEnaif\"' \t\r\n;x\ufeff", max_size=60))
    @BOUNDED
    def test_any_text_is_a_table_or_our_error(self, text: str) -> None:
        for content_type in (CSV, LINES):
            for body in (text.encode(), text.encode("utf-16"), text.encode("utf-16")[:-1]):
                with contextlib.suppress(MMSError):
                    decode(body, content_type)


class TestJsonLines:
    @pytest.mark.parametrize(
        "content_type",
        [LINES, "application/x-ndjson", "application/jsonl", "application/ndjson; charset=utf-8"],
    )
    def test_each_line_is_a_row(self, content_type: str) -> None:
        body = b"\xef\xbb\xbf[1,2,3]\r\n\n[4, 5, 6]"
        assert decode(body, content_type) == [[[1, 2, 3], [4, 5, 6]]]
        assert decode(b'{"data": [1,2,3]}\n', content_type) == [[[1, 2, 3]]]

    def test_lines_with_all_inputs_are_their_columns(self) -> None:
        body = b'{"a": [1,2], "b": [3]}\n{"b": [6], "a": [4,5]}\n'
        for takes_arrays in (True, False):
            decoded = decode(body, LINES, PAIR, takes_arrays=takes_arrays)
            assert decoded == [[[1, 2], [4, 5]], [[3], [6]]]

    def test_a_service_that_may_take_objects_gets_them(self) -> None:
        body = b'{"text": "a"}\n{"data": "b"}\n'
        assert decode(body, LINES, takes_arrays=False) == [[{"text": "a"}, {"data": "b"}]]

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"", "has no lines"),
            (b"[1]\n[2", "line 2 is not valid JSON"),
            (b'{"Data": [1]}', r"input 'data' is missing; lines\[0\] has 'Data'; .*not 'Data'"),
            (b'[1]\n{"data": [1]}', r"lines\[0\] must be an object"),
        ],
    )
    def test_a_mistake_is_placed(self, body: bytes, message: str) -> None:
        with pytest.raises(InvalidRequest, match=message):
            decode(body, LINES)

    def test_elements_are_counted_over_all_lines(self) -> None:
        with pytest.raises(PayloadTooLarge):
            read_json_lines(b"[1,2]\n[3,4]\n[5,6]\n", "the body", 5)


class TestArrays:
    def test_hooks_of_a_users_own_get_lists(self) -> None:
        array = np.array([[1, 2, 3]], "float32")
        request = Request(RequestMeta("", Dialect.PLAIN, NPY, ""), memoryview(saved(array)))
        (kept,) = decode_inputs(request, VECTOR, takes_arrays=True)
        (listed,) = decode_inputs(request, VECTOR)
        assert isinstance(kept, np.ndarray)
        assert listed == [[1.0, 2.0, 3.0]]
        with pytest.raises(PayloadTooLarge):
            decode(saved(np.zeros(9)), NPY, limits=FEW, takes_arrays=False)
        assert decode(saved(np.zeros(9)), NPY, limits=FEW) == [[0.0] * 9]

    def test_npy_is_known_by_its_first_bytes_where_the_type_says_nothing(self) -> None:
        body = saved(np.ones((1, 3), "int32"))
        for content_type in (
            "",
            "application/octet-stream",
            "application/x-www-form-urlencoded",
            "application/npy",
        ):
            assert decode(body, content_type) == [[[1, 1, 1]]]

    def test_a_form_may_hold_a_file_for_each_input(self) -> None:
        parts = [
            (b'name="a"; filename="a.npy"\r\nContent-Type: application/x-npy', saved(np.ones(2))),
            (b'name="b"; filename="b.csv"\r\nContent-Type: text/csv', b"7\n"),
        ]
        body = b"".join(
            b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n"
            for head, data in parts
        )
        decoded = decode(body + b"--x--\r\n", "multipart/form-data; boundary=x", PAIR)
        assert decoded == [[1.0, 1.0], [[7]]]

    def test_one_array_is_not_enough_for_several_inputs(self) -> None:
        for body, content_type in ((saved(np.ones(2)), NPY), (b"1,2\n", CSV)):
            with pytest.raises(InvalidRequest, match=r"2 inputs, and .* holds one array; .*'a'"):
                decode(body, content_type, PAIR)

    def test_a_number_without_axes_is_no_batch(self) -> None:
        with pytest.raises(InvalidRequest, match="without axes"):
            decode(saved(np.float64(1)), NPY)

    def test_inputs_that_are_strings_are_sent_as_json(self) -> None:
        texts = Signature((TensorSpec("t", (0,), "BYTES"),), JSON, VECTOR.outputs, JSON)
        for body, content_type in ((saved(np.ones(2)), NPY), (b"1,2\n", CSV)):
            with pytest.raises(UnsupportedMedia, match="input 't' takes strings"):
                decode(body, content_type, texts)

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            ("", None),
            ("*/*", None),
            ("application/json", None),
            ("application/json, text/csv", None),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", None),
            ("application/x-npy", ArrayType.NPY),
            ("Text/CSV; q=1, application/json", ArrayType.CSV),
            ("application/x-ndjson", ArrayType.JSON_LINES),
            ("text/html, application/x-npy, */*", ArrayType.NPY),
            (",;,", None),
        ],
    )
    def test_the_first_known_type_of_accept_counts(
        self, accept: str, kind: ArrayType | None
    ) -> None:
        assert accepted_type(accept) is kind

    def test_an_answer_of_numbers_is_written_in_each_format(self) -> None:
        # The encoder of SageMaker's toolkit writes "6.0,15.0\n" and a line per value, too.
        for value in ([[6.0, 15.0]], np.array([[6.0, 15.0]]), [np.array([[6.0, 15.0]])]):
            answers = {kind: encode_array(kind, value) for kind in ArrayType}
            bodies = {kind: bytes(answer.body) for kind, answer in answers.items() if answer}
            assert bodies[ArrayType.CSV] == b"6.0,15.0\n"
            assert bodies[ArrayType.JSON_LINES] == b"[6.0,15.0]\n"
            assert np.load(io.BytesIO(bodies[ArrayType.NPY])).tolist() == [[6.0, 15.0]]
        assert bytes(encode_array(ArrayType.CSV, [1, 2]).body) == b"1\n2\n"  # type: ignore[union-attr]
        assert bytes(encode_array(ArrayType.CSV, np.ones((2, 1, 2), int)).body) == b"1,1\n1,1\n"  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "value",
        [{"a": 1}, ["a"], [[1], [2, 3]], "text", None, [np.ones(1), np.ones(1)], [{}], [None]],
    )
    def test_any_other_answer_stays_json(self, value: Any) -> None:
        assert all(encode_array(kind, value) is None for kind in ArrayType)


class TestEnvelopes:
    @pytest.mark.parametrize(
        "document",
        [
            {"instances": [[1, 2, 3]]},
            {"instances": [{"data": [1, 2, 3]}]},
            {"instances": [[1, 2, 3]], "signature_name": "serving_default"},
            {"inputs": [[1, 2, 3]]},
            {"inputs": {"data": [[1, 2, 3]]}},
            [{"data": [1, 2, 3]}],
            {"data": [[1, 2, 3]]},
            {"data": [[1, 2, 3]], "instances": []},
        ],
    )
    def test_an_array_is_taken_out_of_them(self, document: Any) -> None:
        assert decode(dumped(document), JSON) == [[[1, 2, 3]]]

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ({"Data": [[1, 2, 3]]}, "the body has 'Data'; the input is called 'data', not 'Data'"),
            ({"dta": [[1]]}, "'dta'; the input is called 'data', not 'dta': send a list, or"),
            ({" DATA": 1, "x": 2}, "' DATA', 'x'; the input is called 'data', not ' DATA'"),
            ({"x": [[1]]}, "the body has 'x'; the input is called 'data': send a list, or an obj"),
            ({}, "the body is an empty object; the input is called 'data'"),
            ({"data": {"data": [[1]]}}, "'data' must be a list of numbers, but it is an object"),
            ({"data": {"x": 1}}, "it is an object with 'x'; send {\"data\": \\[...\\]}"),
            ({"instances": 5}, "instances must be a list with one entry per row, got a number"),
            ({"instances": [{"Data": [1]}]}, r"instances\[0\] has 'Data'; the input is called"),
            ({"instances": [[1], {"data": [1]}]}, r"instances\[0\] must be an object"),
            ({"inputs": {"Data": [1]}}, "'data' is missing; 'inputs' has 'Data'"),
            ({"inputs": [{"name": "data", "datatype": "FP32"}]}, "/v2/models/MODEL/infer"),
            ([{"Data": [1]}], r"the body\[0\] has 'Data'; the input is called 'data', not"),
        ],
    )
    def test_a_wrong_key_names_the_right_one(self, document: Any, message: str) -> None:
        with pytest.raises(InvalidRequest, match=message) as caught:
            decode(dumped(document), JSON)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize(
        "document",
        [
            {"instances": [[1]]},
            {"inputs": [1]},
            {"Data": [1]},
            {"text": "a"},
            [{"data": [1]}],
        ],
    )
    def test_a_service_of_0_4_gets_objects_as_they_are(self, document: Any) -> None:
        """0.4 passes a bare object on as a list of one; which keys it has is the service's own."""
        value = document if isinstance(document, list) else [document]
        assert decode(dumped(document), JSON, takes_arrays=False) == [value]
        assert decode(dumped({"data": {"a": 1}}), JSON, takes_arrays=False) == [[{"a": 1}]]

    @pytest.mark.parametrize("name", ["instances", "inputs", "Data"])
    def test_an_input_of_that_name_is_the_input(self, name: str) -> None:
        model = signature(**{name: (0, 3)})
        assert decode(dumped({name: [[1, 2, 3]]}), JSON, model) == [[[1, 2, 3]]]

    @pytest.mark.parametrize("takes_arrays", [True, False])
    def test_several_inputs_come_out_of_them_for_any_service(self, takes_arrays: bool) -> None:
        rows = [{"a": [1, 2], "b": [3]}, {"a": [4, 5], "b": [6]}]
        want = [[[1, 2], [4, 5]], [[3], [6]]]
        columns = {"a": want[0], "b": want[1]}
        for document in ({"instances": rows}, rows, {"inputs": columns}, columns):
            assert decode(dumped(document), JSON, PAIR, takes_arrays=takes_arrays) == want
        with pytest.raises(InvalidRequest, match=r"'b' is missing; .* 'a', 'B'.*not 'B'"):
            decode(dumped({"a": [1], "B": [2]}), JSON, PAIR, takes_arrays=takes_arrays)

    def test_a_form_field_of_nearly_the_right_name_is_told(self) -> None:
        with pytest.raises(InvalidRequest, match="the form has 'Data'; the input is called 'data'"):
            decode(b"Data=[1]", "application/x-www-form-urlencoded")

    def test_names_are_compared_at_a_bounded_cost(self) -> None:
        document = {f"{'x' * 200}{index}": 1 for index in range(10_000)}
        with pytest.raises(InvalidRequest) as caught:
            decode(dumped(document), JSON)
        assert len(str(caught.value)) < 1000


class TestV1:
    def read(self, document: Any, model: Signature = VECTOR, takes_arrays: bool = True) -> Any:
        body = document if isinstance(document, bytes) else dumped(document)
        # TensorFlow Serving's own documentation posts with curl -d, which says it is a form.
        meta = RequestMeta("", Dialect.INSTANCES, "application/x-www-form-urlencoded", "")
        return decode_v1(Request(meta, memoryview(body)), model, DEFAULT_LIMITS, takes_arrays)

    def test_rows_of_an_array_model_are_a_batch(self) -> None:
        read = self.read({"instances": [[1, 2, 3], [4, 5, 6]]})
        assert (read.inputs, read.instances, read.rows) == ([[[1, 2, 3], [4, 5, 6]]], [], 2)
        read = self.read({"instances": [{"a": [1], "b": [2]}]}, PAIR)
        assert (read.inputs, read.rows) == ([[[1]], [[2]]], 1)

    def test_instances_of_other_services_are_requests_of_one_row(self) -> None:
        read = self.read({"instances": [{"text": "a"}, "b", {"data": 3}]}, takes_arrays=False)
        assert read.instances == [[[{"text": "a"}]], [["b"]], [[3]]]
        read = self.read({"instances": [{"a": 1, "b": 2, "c": 3}]}, PAIR, takes_arrays=False)
        assert read.instances == [[[1], [2]]]

    def test_inputs_are_the_whole_value(self) -> None:
        for document in ({"inputs": [[1, 2, 3]]}, {"inputs": {"data": [[1, 2, 3]]}}):
            for takes_arrays in (True, False):
                read = self.read(document, takes_arrays=takes_arrays)
                assert (read.inputs, read.rows) == ([[[1, 2, 3]]], None)
        assert self.read({"inputs": {"x": 1}}, takes_arrays=False).inputs == [[{"x": 1}]]

    def test_images_come_in_each_form_of_base64(self) -> None:
        text = base64.b64encode(b"\x89PNG").decode()
        instances = [
            text,
            {"b64": text},
            {"data": text},
            {"data": {"b64": text}},
            {"image_bytes": {"b64": text}},
        ]
        read = self.read({"instances": instances}, IMAGE, takes_arrays=False)
        assert read.instances == [[b"\x89PNG"]] * len(instances)
        assert self.read({"inputs": {"b64": text}}, IMAGE).inputs == [b"\x89PNG"]

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ({"Instances": [[1]]}, "needs \"instances\".* it has 'Instances'; .*not 'Instances'"),
            ({"data": [[1]]}, "needs \"instances\", a list .* it has 'data'"),
            ([[1]], "it is a list"),
            ({"instances": [[1]], "inputs": [1]}, "has both"),
            ({"instances": []}, "got an empty list"),
            ({"instances": {"data": 1}}, "got an object"),
            (b"{", "not valid JSON"),
        ],
    )
    def test_a_mistake_is_named(self, document: Any, message: str) -> None:
        with pytest.raises(InvalidRequest, match=message):
            self.read(document)


class TestMarksAndBase64:
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
    @pytest.mark.parametrize("is_strict", [True, False])
    def test_json_is_read_with_a_mark_and_in_other_encodings(
        self, encoding: str, is_strict: bool
    ) -> None:
        body = '{"é": [1, 12345678901234567890]}'.encode(encoding)
        read = read_json(body, "the body", 9, is_strict=is_strict)
        assert read == {"é": [1, 12345678901234567890]}

    def test_what_is_in_no_unicode_encoding_is_told_to_be_utf_8(self) -> None:
        with pytest.raises(InvalidRequest, match=r"it is not UTF-8 text \(byte 2\); send UTF-8"):
            read_json('["é"]'.encode("latin-1"), "the body", 9)

    def test_literals_and_csv_have_marks_too(self) -> None:
        form = "multipart/form-data; boundary=x"
        for text in ("[[1, 2, 3]]", "((1, 2, 3),)"):
            for encoding in ("utf-8-sig", "utf-16", "utf-32"):
                part = b'--x\r\nContent-Disposition: form-data; name="data"\r\n\r\n'
                body = part + text.encode(encoding) + b"\r\n--x--\r\n"
                assert np.array(decode(body, form, takes_arrays=False)).tolist() == [[[1, 2, 3]]]

    @given(st.binary(min_size=1, max_size=60), st.randoms(use_true_random=False))
    @BOUNDED
    def test_base64_is_read_as_it_is_really_sent(self, data: bytes, choice: random.Random) -> None:
        text = choice.choice([base64.b64encode, base64.urlsafe_b64encode])(data)
        if choice.random() < 0.5:
            text = text.rstrip(b"=")
        wrapped = b"\r\n".join(text[at : at + 8] for at in range(0, len(text), 8))
        for sent in (
            text,
            wrapped,
            b"data:image/png;base64," + text,
            b'"' + text + b'"',
            b" " + text + b"\n",
            b"data:image/svg+xml;charset=utf-8;base64," + text,
            b"\xef\xbb\xbf" + text,
            b"data:;base64," + wrapped,
        ):
            assert decode_base64(sent) == data
        padded = base64.b64encode(data)
        assert decode_base64(padded.replace(b"+", b" "), may_lack_plus=True) == data

    @pytest.mark.parametrize("text", [b"%%", b"aGk=aGk=", b"a", b"\xff\xd8", b"data:image/png,aGk"])
    def test_what_is_not_base64_is_refused(self, text: bytes) -> None:
        with pytest.raises(ValueError, match=r"."):
            decode_base64(text)


class TestMismatch:
    @pytest.mark.parametrize(
        ("value", "kind", "message"),
        [
            ([[1, 2]], Kind.SHAPE, r"input 'data' has shape \(1, 2\), expected \(\?, 3\)"),
            ([1, 2, 3], Kind.SHAPE, r"has shape \(3\), expected"),
            ([], Kind.SHAPE, r"has shape \(0\), expected"),
            ([[[1, 2, 3]]], Kind.SHAPE, r"has shape \(1, 1, 3\)"),
            ([[1, 2, 3], [1, 2]], Kind.NESTING, "ragged, with lists of 2 and of 3 on axis 1"),
            ([1, [2]], Kind.NESTING, "lists beside other values on axis 1"),
            (
                [["a"]],
                Kind.ELEMENTS,
                "array of numbers of shape .*: it contains other values: a string, 'a'",
            ),
            ([[1, None, 2]], Kind.ELEMENTS, "it contains other values: null$"),
            (
                [{"dta": 1}],
                Kind.ELEMENTS,
                "it contains other values: an object, .*'data', not 'dta'",
            ),
            (np.zeros((1, 2)), Kind.SHAPE, r"has shape \(1, 2\)"),
            (np.array(["a"]), Kind.ELEMENTS, r"it contains other values \(<U1\)"),
            ([[1.0, True, 2]], None, ""),
            (((1, 2, 3), [4, 5, 6]), None, ""),
            (np.zeros((5, 3)), None, ""),
            ("text", None, ""),
        ],
    )
    def test_a_contradiction_is_found_and_named(
        self, value: Any, kind: Kind | None, message: str
    ) -> None:
        found = find_mismatch([value], VECTOR)
        assert (found.kind if found else None) is kind
        if found:
            assert InvalidRequest(found.message).args
            with pytest.raises(InvalidRequest, match=message):
                raise InvalidRequest(found.message)

    def test_free_axes_and_strings_fit(self) -> None:
        assert find_mismatch([[[1, 2], [3, 4]]], signature(x=(0, 0))) is None
        texts = Signature((TensorSpec("t", (0,), "BYTES"),), JSON, VECTOR.outputs, JSON)
        assert find_mismatch([["a", "b"]], texts) is None
        found = find_mismatch([[1]], texts)
        assert found
        assert "array of strings" in found.message

    def test_one_long_string_among_numbers_costs_nothing(self) -> None:
        value = [["x" * 1_000_000, *range(100_000)]]
        found = find_mismatch([value], VECTOR)
        assert found
        assert len(found.message) < 400

    def test_deep_and_wide_nesting_is_linear(self) -> None:
        deep: Any = 1
        for _ in range(200):
            deep = [deep]
        found = find_mismatch([deep], VECTOR)
        assert found
        assert "more than 32 levels" in found.message

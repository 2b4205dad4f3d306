"""ONNX graphs and signatures, compared without a model; and where a file says its weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mms.archive.onnx_external import external_files, external_members
from mms.archive.onnx_graph import (
    Graph,
    GraphValue,
    can_batch,
    check_images,
    check_inputs,
    check_labels,
    check_outputs,
    graph_document,
    make_signature,
    parse_graph,
    request_shape,
)
from mms.archive.pictures import ImageLayout, image_layout
from mms.archive.signature import Signature, TensorSpec
from mms.errors import ExportError, SignatureError
from tests.kit.onnx_models import linear, write_external

FLOATS = "tensor(float)"
JSON = "application/json"
IMAGE = GraphValue("image", FLOATS, ("N", 3, 8, 6))
SCORES = GraphValue("scores", FLOATS, ("N", 10))


def graph(*inputs: GraphValue, outputs: tuple[GraphValue, ...] = (SCORES,)) -> Graph:
    return Graph(inputs, outputs, "1.17")


def signature(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> Signature:
    return Signature(inputs, JSON, outputs or (TensorSpec("scores", (0, 10)),), JSON)


def test_a_graph_comes_back_from_its_document() -> None:
    described = graph(IMAGE, GraphValue("ids", "tensor(int64)", (None, "L")))
    assert parse_graph(graph_document(described)) == described


def test_a_signature_made_from_a_graph_has_zeros_for_free_axes_and_types_of_what_is_no_float() -> (
    None
):
    made = make_signature(
        graph(
            GraphValue("ids", "tensor(int64)", ("N", None, 5)),
            GraphValue("words", "tensor(string)", ("N",)),
            GraphValue("scale", "tensor(double)", (1, -1)),
            outputs=(SCORES, GraphValue("maps", "seq(map(string,tensor(float)))", ())),
        ),
        False,
        "net.onnx",
    )
    assert made.inputs == (
        TensorSpec("ids", (0, 0, 5), "INT64"),
        TensorSpec("words", (0,), "BYTES"),
        TensorSpec("scale", (1, 0)),
    )
    assert made.outputs == (TensorSpec("scores", (0, 10)), TensorSpec("maps", (0,)))
    assert (made.input_type, made.output_type) == (JSON, JSON)


@pytest.mark.parametrize(
    ("inputs", "has_labels", "input_type"),
    [
        ((IMAGE,), True, "image/jpeg"),
        ((IMAGE,), False, JSON),
        ((GraphValue("image", "tensor(uint8)", (None, None, None, 1)),), True, "image/jpeg"),
        ((GraphValue("image", "tensor(int64)", ("N", 3, 8, 6)),), True, JSON),
        ((GraphValue("rows", FLOATS, ("N", 3)),), True, JSON),
        ((IMAGE, GraphValue("other", FLOATS, ("N", 3, 8, 6))), True, JSON),
    ],
)
def test_a_sole_input_that_can_be_an_image_is_one_where_there_are_labels(
    inputs: tuple[GraphValue, ...], has_labels: bool, input_type: str
) -> None:
    assert make_signature(graph(*inputs), has_labels, "net.onnx").input_type == input_type


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (graph(), "the graph has no inputs"),
        (graph(GraphValue("x", FLOATS, ())), r"the shape of its input 'x'; write .*\[0,10\]"),
        (
            graph(GraphValue("x", "seq(tensor(float))", ())),
            r"input 'x' is a seq\(tensor\(float\)\), which no request can carry; write a service",
        ),
        (graph(GraphValue("x", "tensor(bfloat16)", ("N",))), r"'x' is a tensor\(bfloat16\)"),
        (
            graph(IMAGE, outputs=(GraphValue("y", "sparse_tensor(float)", ("N",)),)),
            r"output 'y' is a sparse_tensor\(float\), which no answer can carry",
        ),
    ],
)
def test_a_graph_that_nobody_can_ask_is_explained(described: Graph, message: str) -> None:
    with pytest.raises(SignatureError, match=f"^net.onnx: .*{message}"):
        make_signature(described, False, "net.onnx")


IDS = GraphValue("ids", "tensor(int64)", ("N", 5))
INPUTS = (TensorSpec("image", (0, 3, 8, 6)), TensorSpec("ids", (0, 5)))


@pytest.mark.parametrize(
    "specs",
    [
        INPUTS,
        INPUTS[::-1],
        (TensorSpec("image", (7, 3, 0, 0)), TensorSpec("ids", (1, 5), "INT64")),
    ],
)
def test_inputs_fit_in_any_order_and_where_either_side_leaves_a_size_free(
    specs: tuple[TensorSpec, ...],
) -> None:
    check_inputs(signature(*specs), graph(IMAGE, IDS), "s.json")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            (TensorSpec("data", (0, 5)), INPUTS[0]),
            "the graph has no input 'data'; its inputs are 'image', 'ids'",
        ),
        (
            INPUTS[:1],
            r"the graph's input 'ids' is missing; add "
            r'{"data_name":"ids","data_shape":\[0,5\],"data_type":"INT64"}',
        ),
        (
            (INPUTS[0], TensorSpec("ids", (0, 6))),
            r"the input 'ids' has the shape \(\?, 6\), but the graph has \(\?, 5\)",
        ),
        (
            (INPUTS[1], TensorSpec("image", (0, 8, 6))),
            r"the input 'image' has the shape \(\?, 8, 6\), but the graph has \(\?, 3, 8, 6\)",
        ),
        (
            (INPUTS[0], TensorSpec("ids", (0, 5), "INT32")),
            "the input 'ids' has the data_type INT32, but the graph has INT64",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_named_with_what_both_sides_say(
    specs: tuple[TensorSpec, ...], message: str
) -> None:
    with pytest.raises(SignatureError, match=f"^s.json: {message}"):
        check_inputs(signature(*specs), graph(IMAGE, IDS), "s.json")


def test_outputs_may_leave_some_of_the_graphs_out_but_not_add_any() -> None:
    described = graph(IMAGE, outputs=(SCORES, GraphValue("features", FLOATS, ())))
    check_outputs(signature(INPUTS[0]), described, "s.json")
    check_outputs(
        signature(INPUTS[0], outputs=(TensorSpec("features", (0, 3)),)), described, "s.json"
    )
    with pytest.raises(SignatureError, match=r"no output 'y'; .* 'scores', 'features'"):
        check_outputs(signature(INPUTS[0], outputs=(TensorSpec("y", (0,)),)), described, "s.json")
    with pytest.raises(SignatureError, match=r"'scores' has the shape \(\?, 9\), but .* 10\)"):
        check_outputs(
            signature(INPUTS[0], outputs=(TensorSpec("scores", (0, 9)),)), described, "s.json"
        )


@pytest.mark.parametrize(
    ("dims", "spec", "shape"),
    [
        (("N", 3, None), (0, 0, 0), (0, 3, 0)),
        (("N", 3, None), (5, 3, 7), (0, 3, 7)),
        ((1, 3, None), (0, 3, 7), (1, 3, 7)),
        ((), (4, 3), (0, 3)),
    ],
)
def test_a_request_needs_the_sizes_that_either_side_fixes_and_the_graphs_batch(
    dims: tuple[Any, ...], spec: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    assert request_shape(TensorSpec("x", spec), GraphValue("x", FLOATS, dims)) == shape


ROWS = GraphValue("rows", FLOATS, ("N", 3))


@pytest.mark.parametrize(
    ("inputs", "outputs", "joins"),
    [
        ((ROWS,), (SCORES,), True),
        ((ROWS, GraphValue("other", FLOATS, (None, 3))), (SCORES,), True),
        ((ROWS,), (GraphValue("y", "seq(map(int64,tensor(float)))", ()),), True),
        ((ROWS,), (GraphValue("y", FLOATS, ()),), True),
        ((GraphValue("x", FLOATS, ()),), (SCORES,), True),
        ((GraphValue("x", FLOATS, (1, 3)),), (SCORES,), False),
        ((GraphValue("x", FLOATS, ("L", "N", 3)), ROWS), (SCORES,), False),
        ((ROWS,), (GraphValue("y", FLOATS, (1, 3)),), False),
        ((ROWS,), (SCORES, GraphValue("y", "seq(tensor(float))", ())), False),
    ],
)
def test_requests_are_joined_only_along_a_free_axis_that_all_inputs_and_outputs_share(
    inputs: tuple[GraphValue, ...], outputs: tuple[GraphValue, ...], joins: bool
) -> None:
    assert can_batch(inputs, outputs) is joins


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((0, 3, 8, 6), ImageLayout(True, 3, 8, 6)),
        ((0, 1, 0, 0), ImageLayout(True, 1, 0, 0)),
        ((0, 8, 6, 3), ImageLayout(False, 3, 8, 6)),
        ((0, 0, 0, 1), ImageLayout(False, 1, 0, 0)),
        ((0, 4, 8, 6), None),
        ((0, 0, 0, 0), None),
        ((3, 8, 6), None),
    ],
)
def test_the_axis_of_one_or_three_is_that_of_the_channels(
    shape: tuple[int, ...], layout: ImageLayout | None
) -> None:
    assert image_layout(shape) == layout


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            GraphValue("image", FLOATS, ("N", 8, 6)),
            r"'image' has the data_shape \[0, 8, 6\], .* write \[0, 1, 8, 6\]: a batch axis",
        ),
        (
            GraphValue("image", FLOATS, (8, 3, 8, 6)),
            r"'image' of shape \(8, 3, 8, 6\) .* cannot be an image: that has a batch axis of any",
        ),
        (
            GraphValue("image", "tensor(int64)", ("N", 3, 8, 6)),
            r"'image' .* type tensor\(int64\) cannot be an image: .* consists of floats or uint8",
        ),
    ],
)
def test_an_input_that_cannot_be_an_image_is_explained(value: GraphValue, message: str) -> None:
    spec = TensorSpec("image", value.shape)
    with pytest.raises(SignatureError, match=message):
        check_images(signature(spec), graph(value), "s.json")


def test_a_signature_may_fix_the_size_that_a_graph_leaves_free() -> None:
    value = GraphValue("image", FLOATS, (None, None, None, None))
    check_images(signature(TensorSpec("image", (0, 3, 8, 6))), graph(value), "s.json")


def test_each_class_needs_a_label() -> None:
    check_labels(signature(INPUTS[0]), graph(IMAGE), 10, "s.json")
    with pytest.raises(SignatureError, match=r"'scores' has 10 classes, but synset.txt names only"):
        check_labels(signature(INPUTS[0]), graph(IMAGE), 9, "s.json")


# --- Weights in files of their own ---------------------------------------------------------------


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_are_found_wherever_in_a_model_they_are(tmp_path: Path) -> None:
    inner = helper.make_graph([], "inner", [], [], [external("a", "of-a-branch")])
    sparse = onnx.SparseTensorProto(values=external("v", "values"), indices=external("i", "index"))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=external("c", "of-a-constant")),
        helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [], [], [external("w", "weights"), external("x", "weights")])
    )
    node = helper.make_node("Constant", [], ["f"], value=external("f", "of-a-function"))
    function = helper.make_function("mine", "F", [], ["f"], [node], [helper.make_opsetid("", 17)])
    model.functions.append(function)
    assert external_files(write(tmp_path / "net.onnx", model)) == [
        *("index", "of-a-branch", "of-a-constant", "of-a-function", "values", "weights")
    ]


def test_a_model_in_one_piece_names_no_files(tmp_path: Path) -> None:
    assert external_files(write(tmp_path / "net.onnx", linear())) == []


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60)
    | st.builds(
        lambda size, at, byte: (
            (data := linear().SerializeToString())[:size] + bytes([byte]) + data[at:]
        ),
        st.integers(0, 300),
        st.integers(0, 300),
        st.integers(0, 255),
    )
)
def test_what_is_no_onnx_file_names_no_files(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "rubbish.onnx"
    path.write_bytes(data)
    assert external_files(path) == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"net.onnx: cannot be read: No such file"):
        external_files(tmp_path / "net.onnx")


def test_weights_are_members_by_their_own_names(tmp_path: Path) -> None:
    folder = write_external(tmp_path / "model", "weights/all.bin")
    path = folder / "weights" / "all.bin"
    assert external_members(folder, "net.onnx") == {"weights/all.bin": path}
    path.unlink()
    with pytest.raises(ExportError, match=r"weights lie in 'weights/all.bin', which is missing"):
        external_members(folder, "net.onnx")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b", ".", "a\\b"])
def test_weights_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    model = helper.make_model(
        helper.make_graph([], "g", [], [], [external("w", location)]),
    )
    write(tmp_path / "net.onnx", model)
    with pytest.raises(ExportError, match=r"outside its folder; .*location='net.onnx.data'"):
        external_members(tmp_path, "net.onnx")

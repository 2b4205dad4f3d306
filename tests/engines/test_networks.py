"""What both engines give for the same networks, and what they refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from mms.archive.candidates import EngineName, Precision
from mms.engines.network import NetworkFile
from mms.engines.openvino_engine import OpenVINONetwork, read_model
from mms.engines.registry import engine, installed
from mms.errors import InferenceFailed, InvalidInputShape, ModelLoadFailed
from tests.engines.networks import (
    ENGINES,
    linear_file,
    open_network,
    port,
    quantized,
    write,
)
from tests.kit.onnx_models import (
    FLOAT,
    INT64,
    STRING,
    classifier,
    identity,
    linear,
    make_model,
    unsupported,
    value,
    write_external,
)

both = pytest.mark.parametrize("name", ENGINES)
X = np.array([[1, 2, 3], [0.5, 0, -1]], dtype=np.float32)
Y = [[1, 15], [0.5, 9]]


@both
def test_outputs_come_in_the_order_that_was_asked_for(name: EngineName, tmp_path: Path) -> None:
    for outputs in (("rows", "y"), ("y", "rows"), ("y",)):
        ports = [port(output, 0, 2 if output == "y" else 3) for output in outputs]
        network = open_network(name, tmp_path, linear(), [port("x", 0, 3)], ports)
        answers = dict(zip(outputs, network.run([X]), strict=True))
        assert answers["y"].tolist() == Y
        if "rows" in answers:
            assert answers["rows"].tolist() == [[1, 1, 1]] * 2
        assert network.engine == name
        assert network.outputs == tuple(ports)


@both
def test_inputs_go_in_the_order_that_was_asked_for(name: EngineName, tmp_path: Path) -> None:
    node = helper.make_node("Sub", ["a", "b"], ["y"])
    values = [value(letter, FLOAT, ["N"]) for letter in "ab"]
    model = make_model([node], values, [value("y", FLOAT, ["N"])])
    arrays = [np.array([1], np.float32), np.array([5], np.float32)]
    for order, answer in (("ab", -4), ("ba", 4)):
        ports = [port(letter, 0) for letter in order]
        network = open_network(name, tmp_path, model, ports, [port("y", 0)])
        assert network.run(arrays)[0].tolist() == [answer]


@both
def test_one_tensor_under_several_names_is_returned_for_each(
    name: EngineName, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["inner"]),
        helper.make_node("Identity", ["inner"], ["same"]),
        helper.make_node("Neg", ["inner"], ["other"]),
        helper.make_node("Identity", ["same"], ["again"]),
    ]
    names = ("again", "other", "inner", "same")
    model = make_model(
        nodes, [value("x", FLOAT, ["N"])], [value(name, FLOAT, ["N"]) for name in sorted(names)]
    )
    network = open_network(name, tmp_path, model, [port("x", 0)], [port(n, 0) for n in names])
    answers = network.run([np.array([2, -1], np.float32)])
    assert [answer.tolist() for answer in answers] == [[2, 0], [-2, 0], [2, 0], [2, 0]]
    answers[0][:] = 7
    assert answers[2].tolist() == [2, 0]


@both
def test_answers_and_arrays_belong_to_the_caller(name: EngineName, tmp_path: Path) -> None:
    network = open_network(name, tmp_path, identity(FLOAT, ["N"]), [port("x", 0)], [port("y", 0)])
    given = np.array([1, 2], np.float32)
    first = network.run([given])[0]
    network.run([np.array([3, 4], np.float32)])
    assert first.tolist() == [1, 2]
    first[:] = 9
    assert given.tolist() == [1, 2]
    given[:] = 5
    assert first.tolist() == [9, 9]


@both
@pytest.mark.parametrize("size", [0, 1, 5, 2])
def test_batches_may_have_any_size(name: EngineName, size: int, tmp_path: Path) -> None:
    network = engine(name).open(linear_file(tmp_path))
    for count in (3, size):
        answer, rows = network.run([np.ones((count, 3), np.float32)])
        assert answer.shape == (count, 2)
        assert rows.shape == (count, 3)


@both
@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(X),
        np.repeat(X, 2, axis=0)[::2],
        X.astype(np.float64),
        X.astype(">f4"),
        np.frombuffer(X.tobytes(), np.float32).reshape(2, 3),
    ],
    ids=["Fortran order", "strided", "float64", "big-endian", "read-only"],
)
def test_arrays_may_lie_in_memory_as_they_like(
    name: EngineName, array: Any, tmp_path: Path
) -> None:
    assert engine(name).open(linear_file(tmp_path)).run([array])[0].tolist() == Y


@both
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([], "the network takes 1 inputs ('x'), got 0"),
        ([X, X], "the network takes 1 inputs ('x'), got 2"),
        ([X[:, :2]], "input 'x' has shape (2, 2), expected (?, 3) (axis 0 is the batch; ? is any"),
        ([X[0]], "input 'x' has shape (3), expected (?, 3)"),
        ([X[:, :, None]], "input 'x' has shape (2, 3, 1), expected (?, 3)"),
        ([X.astype(str)], "input 'x' has type <U32, expected FP32"),
        ([X.astype(complex)], "input 'x' has type complex128, expected FP32"),
        ([X.tolist()], "input 'x' must be a NumPy array, got list"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_engine_sees_it(
    name: EngineName, arrays: list[Any], message: str, tmp_path: Path
) -> None:
    network = engine(name).open(linear_file(tmp_path))
    with pytest.raises(InvalidInputShape) as refused:
        network.run(arrays)
    assert message in str(refused.value)
    assert network.run([X])[0].tolist() == Y


@both
def test_a_size_that_only_the_file_fixes_is_checked_too(name: EngineName, tmp_path: Path) -> None:
    network = open_network(name, tmp_path, linear(batch=1), [port("x", 0, 0)], [port("y", 0, 2)])
    assert network.inputs == (port("x", 1, 3),)
    with pytest.raises(InvalidInputShape, match=r"shape \(2, 3\), expected \(1, 3\)"):
        network.run([X])


@both
@pytest.mark.parametrize(
    ("type_", "wire", "values"),
    [
        (TensorProto.BOOL, "BOOL", [True, False]),
        (TensorProto.UINT8, "UINT8", [255, 0]),
        (TensorProto.INT8, "INT8", [-128, 127]),
        (TensorProto.INT32, "INT32", [2**31 - 1, -(2**31)]),
        (INT64, "INT64", [2**31 - 1, -(2**31)]),
        (TensorProto.FLOAT16, "FP16", [0.5, -2]),
        (TensorProto.DOUBLE, "FP64", [0.1, 3]),
    ],
)
def test_types_are_the_networks(
    name: EngineName, type_: int, wire: str, values: list[Any], tmp_path: Path
) -> None:
    ports = [port("x", 0, type_=wire)], [port("y", 0, type_=wire)]
    network = open_network(name, tmp_path, identity(type_, ["N"]), *ports)
    given = np.array(values, helper.tensor_dtype_to_np_dtype(type_))
    answer = network.run([given])[0]
    assert answer.dtype == given.dtype
    assert np.array_equal(answer, given)


@both
def test_whole_numbers_in_floats_become_integers_and_others_are_refused(
    name: EngineName, tmp_path: Path
) -> None:
    ports = [port("x", 0, type_="INT64")], [port("y", 0, type_="INT64")]
    network = open_network(name, tmp_path, identity(INT64, ["N"]), *ports)
    assert network.run([np.array([257, -3], np.float32)])[0].tolist() == [257, -3]
    for wrong in (1.5, float("nan"), 1e30):
        with pytest.raises(InvalidInputShape, match="'x' is INT64, which cannot hold the values"):
            network.run([np.array([wrong], np.float32)])


def test_openvino_refuses_integers_that_it_would_cut(tmp_path: Path) -> None:
    ports = [port("x", 0, type_="INT64")], [port("y", 0, type_="INT64")]
    network = open_network("openvino", tmp_path, identity(INT64, ["N"]), *ports)
    with pytest.raises(InvalidInputShape, match="'x' has values beyond 32 bits"):
        network.run([np.array([2**62])])
    assert network.run([np.zeros(0, np.int64)])[0].tolist() == []


@both
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"", "damaged, or not an ONNX model"),
        (b"this is no model " * 20, "damaged, or not an ONNX model"),
        (linear().SerializeToString()[:-40], "damaged, or not an ONNX model"),
        (unsupported(), "Frobnicate"),
    ],
    ids=["empty", "foreign", "cut short", "unsupported operator"],
)
def test_a_file_that_cannot_be_run_is_one_clear_line(
    name: EngineName, model: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadFailed) as failed:
        engine(name).open(linear_file(write(tmp_path, model)))
    assert message in str(failed.value)
    assert "net.onnx" in str(failed.value)
    assert "\n" not in str(failed.value)


@both
def test_weights_outside_the_folder_are_refused(name: EngineName, tmp_path: Path) -> None:
    folder = write_external(tmp_path / "model")
    file = linear_file(folder / "net.onnx")
    assert engine(name).open(file).run([X])[0].tolist() == Y
    (folder / "net.onnx.data").rename(tmp_path / "elsewhere")
    (folder / "net.onnx.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelLoadFailed, match="outside its folder"):
        engine(name).open(file)


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"outputs": (port("z", 0),)},
            "the network has no output 'z'; its outputs are 'y', 'rows'",
        ),
        ({"inputs": (port("z", 0),)}, "the network has no input 'z'; its inputs are 'x'"),
        ({"inputs": (port("x", 0, 4),)}, "the input 'x' has shape (?, 3), not (?, 4)"),
        ({"inputs": (port("x", 0),)}, "the input 'x' has shape (?, 3), not (?)"),
        ({"inputs": (port("x", 0, 3, type_="INT64"),)}, "the input 'x' is FP32, not INT64"),
        ({"inputs": ()}, "the network takes further inputs: 'x'"),
    ],
)
def test_a_description_that_does_not_fit_the_file_is_refused(
    name: EngineName, change: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadFailed) as failed:
        engine(name).open(linear_file(tmp_path, **change))
    assert message in str(failed.value)


def test_openvino_refuses_texts_sequences_and_maps(tmp_path: Path) -> None:
    for model in (identity(STRING, ["N"]), classifier()):
        with pytest.raises(ModelLoadFailed, match="run it on onnxruntime"):
            read_model(write(tmp_path, model))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_onnxruntime_offers_only_the_precision_of_the_file(
    precision: Precision, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadFailed, match=f"of the file, f32; {precision} was asked for"):
        engine("onnxruntime").open(linear_file(tmp_path, precision=precision))


@both
def test_quantized_files_run_on_both(name: EngineName, tmp_path: Path) -> None:
    path = write(tmp_path, quantized())
    file = NetworkFile(path, "int8", (port("x", 0, 4),), (port("y", 0, 4),))
    x = np.random.default_rng(1).normal(0, 2, (3, 4)).astype(np.float32)
    network = engine(name).open(file)
    assert network.precision == "int8"
    weights = np.random.default_rng(3).integers(-100, 100, (4, 4)) / 64
    rounded = np.clip(np.rint(x * 8), -128, 127) / 8
    assert np.allclose(network.run([x])[0], rounded @ weights, atol=0.05)


def test_bf16_is_computed_only_where_it_is_asked_for(tmp_path: Path) -> None:
    x = np.array([[1 + 2**-12, 1, 1]], np.float32)
    answers = {
        precision: engine("openvino").open(linear_file(tmp_path, precision=precision)).run([x])[0]
        for precision in ("f32", "bf16")
    }
    assert answers["f32"][0, 0] == x[0, 0]
    if _has_bf16():
        assert answers["bf16"][0, 0] == 1


def _has_bf16() -> bool:
    from mms.engines.cpu import this_cpu

    return not {"avx512f", "amx_bf16"}.isdisjoint(this_cpu().flags)


class TestIntermediateRepresentation:
    """OpenVINO's own format: an ``.xml`` with a ``.bin`` beside it."""

    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        import openvino

        path = tmp_path / "net.xml"
        openvino.save_model(read_model(write(tmp_path, linear())), path, compress_to_fp16=False)
        return path

    def test_it_runs_as_the_file_it_was_made_of(self, saved: Path) -> None:
        assert engine("openvino").open(linear_file(saved)).run([X])[0].tolist() == Y

    @pytest.mark.parametrize("how", ["missing", "a link", "cut short"])
    def test_its_weights_must_lie_beside_it(self, saved: Path, how: str, tmp_path: Path) -> None:
        weights = saved.with_suffix(".bin")
        if how == "cut short":
            weights.write_bytes(weights.read_bytes()[:8])
        else:
            elsewhere = tmp_path / "elsewhere"
            elsewhere.mkdir()
            weights.rename(elsewhere / "net.bin")
            if how == "a link":
                weights.symlink_to(elsewhere / "net.bin")
        with pytest.raises(ModelLoadFailed, match="weights") as failed:
            engine("openvino").open(linear_file(saved))
        assert "\n" not in str(failed.value)

    @pytest.mark.parametrize("text", ["", "<html></html>", "<?xml version='1.0'?><net name='x'"])
    def test_a_foreign_file_is_refused(self, saved: Path, text: str) -> None:
        saved.write_text(text)
        with pytest.raises(ModelLoadFailed, match=r"net\.xml") as failed:
            engine("openvino").open(linear_file(saved))
        assert "\n" not in str(failed.value)


class TestShapesThatCannotBeOpen:
    """A graph that OpenVINO compiles only for a fixed shape: here one of an open number of axes."""

    @pytest.fixture
    def network(self, tmp_path: Path) -> OpenVINONetwork:
        nodes = [helper.make_node("Relu", ["x"], ["y"])]
        model = make_model(nodes, [value("x", FLOAT, None)], [value("y", FLOAT, None)])
        opened = open_network("openvino", tmp_path, model, [port("x")], [port("y")])
        assert isinstance(opened, OpenVINONetwork)
        return opened

    def test_it_is_compiled_for_each_shape(self, network: OpenVINONetwork) -> None:
        for shape in ((2,), (3,), (2, 2), (2,)):
            answer = network.run([np.full(shape, -1, np.float32)])[0]
            assert answer.shape == shape
            assert not answer.any()

    def test_only_the_last_sixteen_are_kept(self, network: OpenVINONetwork) -> None:
        for size in (*range(1, 17), 1, 17):
            network.run([np.ones(size, np.float32)])
        kept = [shape for ((shape,),) in network._by_shape]
        assert kept == [*range(3, 17), 1, 17]


@both
@pytest.mark.parametrize("operator", ["Add", "MatMul", "Concat"])
def test_inputs_that_do_not_fit_each_other_fail_in_one_line(
    name: EngineName, operator: str, tmp_path: Path
) -> None:
    # OpenVINO itself returned an empty array for the first two, and crashed for the third.
    node = helper.make_node(operator, ["a", "b"], ["y"])
    if operator == "Concat":
        node.attribute.append(helper.make_attribute("axis", 0))
    values = [value(letter, FLOAT, ["N", None]) for letter in "ab"]
    model = make_model([node], values, [value("y", FLOAT, ["N", None])])
    inputs = [port("a", 0, 0), port("b", 0, 0)]
    network = open_network(name, tmp_path, model, inputs, [port("y", 0, 0)])
    error = InferenceFailed if name == "onnxruntime" else InvalidInputShape
    with pytest.raises(error, match=r"net\.onnx") as failed:
        network.run([np.ones((1, 3), np.float32), np.ones((1, 2), np.float32)])
    assert "\n" not in str(failed.value)
    assert network.run([np.ones((2, 2), np.float32)] * 2)[0].shape[1] == 2


def test_versions_are_those_of_the_installed_packages() -> None:
    versions = installed()
    assert set(versions) == {"mxnet", *ENGINES}
    for name in ENGINES:
        __import__(name)
        assert sys.modules[name].__version__.startswith(versions[name])
        assert engine(name).version() == versions[name]

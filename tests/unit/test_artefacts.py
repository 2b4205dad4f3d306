"""Parsers of what other tools wrote: symbols, parameter files, ONNX graphs, and what they tell."""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.artefacts.families import parts_of
from mms.archive.artefacts.parts import model_name_of
from mms.archive.artefacts.recognise import files_of, may_be_model, recognise
from mms.archive.onnx_file import read_graph
from mms.archive.parameters import read_shapes
from mms.archive.symbol import Symbol, parse_symbol, read_symbol
from mms.errors import ArchiveError
from tests.kit import onnx_models

Shapes = Mapping[str, tuple[int, ...]]


def variable(name: str, **attrs: str) -> dict[str, Any]:
    return {"op": "null", "name": name, "attrs": attrs, "inputs": []}


def operator(op: str, name: str, *inputs: int, **attrs: str) -> dict[str, Any]:
    return {"op": op, "name": name, "attrs": attrs, "inputs": [[i, 0, 0] for i in inputs]}


def symbol_of(*nodes: dict[str, Any], heads: tuple[int, ...] = ()) -> Symbol:
    links = [[i, 0, 0] for i in heads or (len(nodes) - 1,)]
    return parse_symbol({"nodes": list(nodes), "arg_nodes": [], "heads": links})


def write_parameters(path: Path, shapes: Shapes, magic: int = 0xF993FAC9) -> Path:
    """Write float32 arrays as MXNet does: the layout of 2.0 down to that of 0.x."""
    data = struct.pack("<QQQ", 0x112, 0, len(shapes))
    for shape in shapes.values():
        size = 4
        for axis in shape:
            size *= axis
        if magic in (0xF993FAC9, 0xF993FACA):
            data += struct.pack(f"<Iii{len(shape)}q", magic, 0, len(shape), *shape)
        elif magic == 0xF993FAC8:
            data += struct.pack(f"<Ii{len(shape)}q", magic, len(shape), *shape)
        else:
            data += struct.pack(f"<I{len(shape)}I", len(shape), *shape)
        data += struct.pack("<iii", 1, 0, 0) + bytes(size)
    data += struct.pack("<Q", len(shapes))
    for name in shapes:
        data += struct.pack("<Q", len(name)) + name.encode()
    path.write_bytes(data)
    return path


SHAPES = {"arg:fc_weight": (2, 3), "arg:fc_bias": (2,), "aux:mean": (4,)}


@pytest.mark.parametrize("magic", [0xF993FACA, 0xF993FAC9, 0xF993FAC8, 0])
def test_shapes_of_parameters_of_all_versions(tmp_path: Path, magic: int) -> None:
    path = write_parameters(tmp_path / "a.params", SHAPES, magic)
    assert read_shapes(path) == {"fc_weight": (2, 3), "fc_bias": (2,), "mean": (4,)}


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_parameters_are_an_archive_error(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_parameters(Path(folder, "a.params"), SHAPES)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        with contextlib.suppress(ArchiveError):
            read_shapes(path)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_onnx_file_is_an_archive_error(data: st.DataObject) -> None:
    content = bytearray(onnx_models.types().SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.onnx")
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        with contextlib.suppress(ArchiveError):
            read_graph(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["nodes", "heads", "op", "name", "inputs", "attrs"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(json_values)
@settings(max_examples=200, deadline=None)
def test_any_other_json_is_no_symbol(document: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a-symbol.json")
        path.write_text(json.dumps(document))
        with contextlib.suppress(ArchiveError):
            read_symbol(path)


@pytest.mark.parametrize("key", ["attrs", "attr", "param"])
def test_attributes_of_all_versions_are_read(key: str) -> None:
    node = {"op": "FullyConnected", "name": "fc", key: {"num_hidden": "7"}, "inputs": [[0, 0]]}
    symbol = symbol_of(variable("data"), node)
    assert symbol.nodes[1].attrs == {"num_hidden": "7"}
    assert symbol.outputs() == ["fc_output"]


SHAPED: dict[str, tuple[list[dict[str, Any]], Shapes, tuple[int, ...] | None]] = {
    "dense": ([operator("FullyConnected", "f", 0, 1)], {"w": (4, 9)}, (0, 9)),
    "dense over the last axis": (
        [operator("FullyConnected", "f", 0, 1, flatten="False")],
        {"w": (4, 9)},
        None,
    ),
    "flattened": (
        [operator("Flatten", "x", 0), operator("FullyConnected", "f", 2, 1)],
        {"w": (4, 9)},
        (0, 9),
    ),
    "convolution": ([operator("Convolution", "c", 0, 1)], {"w": (8, 3, 5, 5)}, (0, 3, 0, 0)),
    "grouped": (
        [operator("Convolution", "c", 0, 1, num_group="4")],
        {"w": (8, 3, 5, 5)},
        (0, 12, 0, 0),
    ),
    "over time": ([operator("Convolution", "c", 0, 1)], {"w": (8, 70, 7)}, (0, 70, 0)),
    "channels last": (
        [operator("Convolution", "c", 0, 1, layout="NHWC")],
        {"w": (8, 5, 5, 3)},
        (0, 0, 0, 3),
    ),
    "scaled first": (
        [operator("_mul_scalar", "s", 0, scalar="2"), operator("FullyConnected", "f", 2, 1)],
        {"w": (4, 9)},
        (0, 9),
    ),
    "words": ([operator("Embedding", "e", 0, 1)], {"w": (100, 8)}, (0, 0)),
    "no weights": ([operator("sum", "s", 0)], {"w": (1,)}, None),
    "reshaped": (
        [operator("Reshape", "r", 0), operator("FullyConnected", "f", 2, 1)],
        {"w": (4, 9)},
        None,
    ),
}


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_that_weights_tell(name: str) -> None:
    nodes, shapes, expected = SHAPED[name]
    symbol = symbol_of(variable("data"), variable("w"), *nodes)
    assert symbol.inputs(shapes) == ["data"]
    assert symbol.known_shape("data", shapes) == expected


def test_labels_and_states_are_no_inputs() -> None:
    symbol = symbol_of(
        variable("data"),
        variable("target"),
        variable("moving_mean"),
        variable("moving_var"),
        variable("gamma"),
        variable("beta"),
        operator("BatchNorm", "bn", 0, 4, 5, 2, 3),
        operator("LinearRegressionOutput", "out", 6, 1),
    )
    assert symbol.inputs({"gamma": (1,), "beta": (1,)}) == ["data"]


def test_a_declared_shape_is_taken(tmp_path: Path) -> None:
    symbol = symbol_of(variable("data", __shape__="(8, 3, 32, 32)"), operator("sum", "s", 0))
    path = tmp_path / "a-symbol.json"
    parts = parts_of({path.name: path}, path.name, "a-0000.params", symbol, {})
    assert parts.signature is not None
    assert parts.signature.inputs[0].shape == (0, 3, 32, 32)
    assert symbol_of(variable("x", __shape__="(" * 300)).stated_shape("x") is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("my-iris.v2.onnx", "my_iris_v2"),
        ("net-0012.params", "net"),
        ("net-symbol.json", "net"),
        ("net@3", "net"),
        ("model.tar.gz", "model"),
        ("crepe.model", "crepe"),
        ("_x y", "x_y"),
        ("é", "model"),
        ("a" * 300, "a" * 128),
    ],
)
def test_a_name_from_a_file(text: str, name: str) -> None:
    assert model_name_of(text) == name


def test_a_checkpoint_is_all_its_files(tmp_path: Path) -> None:
    for name in ("a-symbol.json", "a-0001.params", "b-symbol.json", "synset.txt", "notes.md"):
        (tmp_path / name).write_text("{}")
    files = [path.name for path in files_of(tmp_path / "a-0001.params")]
    assert files == ["a-0001.params", "a-symbol.json", "synset.txt"]
    assert files_of(tmp_path / "a@1") == files_of(tmp_path / "a")
    assert files_of(tmp_path / "none") == [tmp_path / "none"]
    assert may_be_model(tmp_path)
    assert recognise(tmp_path / "notes.md") is None

"""Networks are traced as they are called, and cut before what cannot be converted."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mms.archive.candidates import Port, Tail
from mms.convert.agreement import compare
from mms.convert.batches import variants
from mms.convert.convert import convert
from mms.convert.cut import cut
from mms.convert.trace import trace_block
from mms.engines.cut_network import CutNetwork
from mms.engines.imports import import_mxnet
from mms.errors import ConversionFailed, InferenceFailed, ModelLoadFailed
from tests.convert.case import flat
from tests.convert.engines import ENGINES, Plain, open_network

mx = import_mxnet()
nn = mx.gluon.nn
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = np.random.default_rng(0).normal(0, 1, (2, 6)).astype(np.float32)


class Late(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc] # mxnet has no types
    """Layers, then boxes that no engine is trusted with; the end reads an input and a weight."""

    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.body, self.end = nn.Dense(6, activation="relu"), nn.Dense(3)

    def hybrid_forward(self, F: Any, x: Any, size: Any) -> Any:
        body = self.body(x)
        kept = F.topk(body, k=2, ret_typ="value")
        return self.end(F.concat(kept, size, F.ones((1, 1)).broadcast_like(size), dim=1)), body


class First(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc] # mxnet has no types
    """What cannot be converted comes first."""

    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.end = nn.Dense(3)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.end(F.topk(F.abs(x), k=2, ret_typ="value"))


def made(net: Any, *arrays: Any) -> Any:
    net.initialize(mx.init.Normal(1))
    net(*[mx.nd.array(array) for array in arrays])
    return net


def test_what_comes_before_runs_on_the_engine_and_the_rest_on_mxnet(tmp_path: Path) -> None:
    net = made(Late(), ROWS, ROWS[:, :1])
    batches = variants([ROWS, ROWS[:, :1]])
    converted = convert(trace_block(net, batches), tmp_path, "late")
    assert converted.tail is not None
    assert converted.tail.operators == ("topk",)
    assert converted.tail.inputs[-1:] == ("data1",)
    assert [port.name for port in converted.inputs] == ["data0", "data1"]
    expected = [flat(net(*map(mx.nd.array, batch))) for batch in batches]
    for engine in ENGINES:
        network = open_network(engine, converted)
        got = [network.run(batch) for batch in batches]
        assert compare(expected, got, "classes", "f32").score == 1.0
        assert network.can_fork
        assert len(network.outputs) == 2
    # What was lent to MXNet belongs to the caller still.
    assert all(array.flags.writeable for batch in batches for array in batch)


def test_what_is_first_cannot_be_cut_and_is_named() -> None:
    traced = trace_block(made(First(), ROWS), [[ROWS]])
    with pytest.raises(ConversionFailed, match=r"the operator topk \(first\d+_topk0\)"):
        cut(traced)


def test_a_network_without_such_operators_is_whole() -> None:
    traced = trace_block(made(nn.Dense(3), ROWS), [[ROWS]])
    assert cut(traced) == (traced, None)


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        ({"inputs": ("cut_0", "cut_1", "data7")}, "does not fit the converted part"),
        ({"symbol": "gone.json"}, "gone.json cannot be loaded"),
        ({"symbol": "torn.json"}, "torn.json cannot be loaded"),
        ({"parameters": "torn.json"}, "torn.json is not a parameter file"),
    ],
)
def test_a_rest_that_is_damaged_is_one_clear_line(
    tmp_path: Path, tail: dict[str, Any], said: str
) -> None:
    net = made(Late(), ROWS, ROWS[:, :1])
    converted = convert(trace_block(net, [[ROWS, ROWS[:, :1]]]), tmp_path, "late")
    assert converted.tail is not None
    (tmp_path / "torn.json").write_text('{"nodes": [', encoding="utf-8")
    whole = converted.tail
    parts = {name: getattr(whole, name) for name in ("symbol", "parameters", "inputs")}
    head = Plain("onnxruntime", converted.model.read_bytes(), converted)
    with pytest.raises(ModelLoadFailed, match=said) as error:
        CutNetwork(head, tmp_path, Tail(**{**parts, **tail}))
    assert "\n" not in str(error.value)


def test_what_mxnet_cannot_run_is_said_in_one_line(tmp_path: Path) -> None:
    net = made(Late(), ROWS, ROWS[:, :1])
    calls = [[ROWS, ROWS[:, :width]] for width in (1, 2)]
    converted = convert(trace_block(net, calls), tmp_path, "late")
    network = open_network("onnxruntime", converted)
    with pytest.raises(InferenceFailed, match="MXNet cannot run the rest") as error:
        network.run([ROWS, ROWS[:, :3]])
    assert "\n" not in str(error.value)


def test_axes_that_differ_and_the_batch_are_free() -> None:
    net = made(nn.Dense(3, flatten=False), np.zeros((1, 4, 6), np.float32))
    short, long = np.zeros((2, 4, 6), np.float32), np.zeros((2, 9, 6), np.float32)
    assert trace_block(net, [[short]]).inputs == (Port("data", "FP32", (0, 4, 6)),)
    assert trace_block(net, [[short], [long]]).inputs == (Port("data", "FP32", (0, 0, 6)),)


def test_labels_that_only_select_rows_are_whole_numbers() -> None:
    labels = np.array([[1.0, 2.0]], np.float32)
    net = nn.HybridSequential()
    net.add(nn.Embedding(5, 4), nn.Flatten(), nn.Dense(2))
    assert trace_block(made(net, labels), [[labels]]).inputs[0].data_type == "INT32"
    dense = made(nn.Dense(2), labels)
    assert trace_block(dense, [[labels]]).inputs[0].data_type == "FP32"
    assert trace_block(dense, [[labels.astype(np.uint8)]]).inputs[0].data_type == "UINT8"


def test_a_layer_that_is_called_twice_has_two_names() -> None:
    class Twice(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc] # mxnet has no types
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.layer = nn.Dense(6)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            return self.layer(self.layer(x))

    traced = trace_block(made(Twice(), ROWS), [[ROWS]])
    names = [node["name"] for node in traced.symbol["nodes"]]
    assert len(set(names)) == len(names)
    assert len(traced.parameters) == 2


def test_code_that_looks_at_values_is_not_traced() -> None:
    class Looks(mx.gluon.Block):  # type: ignore[name-defined,misc] # mxnet has no types
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Dense(2)

        def forward(self, x: Any) -> Any:
            return self.layer(x) if x.asnumpy().sum() > 0 else x

    with pytest.raises(ConversionFailed, match="the code of Looks runs on arrays only") as error:
        trace_block(made(Looks(), np.abs(ROWS)), [[ROWS]])
    assert "\n" not in str(error.value)


def test_calls_that_do_not_fit_each_other_are_refused() -> None:
    net = made(nn.Dense(3), ROWS)
    with pytest.raises(ConversionFailed, match="different numbers of inputs"):
        trace_block(net, [[ROWS], [ROWS, ROWS]])
    with pytest.raises(ConversionFailed, match="differs in its number of axes"):
        trace_block(net, [[ROWS], [ROWS[0]]])
    with pytest.raises(ConversionFailed, match="of a type that no engine takes, or of two"):
        trace_block(net, [[ROWS], [ROWS.astype(np.int32)]])


def test_parameters_of_more_than_two_gigabytes_are_refused(tmp_path: Path) -> None:
    traced = trace_block(made(nn.Dense(3), ROWS), [[ROWS]])
    name = next(iter(traced.parameters))
    # Not in memory: a view of one number.
    traced.parameters[name] = np.broadcast_to(np.float32(0), (1 << 20, 1 << 10))  # type: ignore[index]
    with pytest.raises(ConversionFailed, match=r"4\.3 GB, and an ONNX file holds 2 GB"):
        convert(traced, tmp_path, "large")


def test_the_rest_on_disk_is_a_symbol_that_mxnet_reads(tmp_path: Path) -> None:
    net = made(Late(), ROWS, ROWS[:, :1])
    convert(trace_block(net, [[ROWS, ROWS[:, :1]]]), tmp_path, "late")
    document = json.loads((tmp_path / "late-tail-symbol.json").read_text(encoding="utf-8"))
    assert {node["op"] for node in document["nodes"]} >= {"topk", "null"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = mx.nd.load(str(tmp_path / "late-tail-0000.params"))
    assert len(arrays) == 2

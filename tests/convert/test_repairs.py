"""Each repair is needed: without it a small network is refused or answers something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mms.convert import exporter, onnx_repairs, symbol_repairs
from mms.convert.agreement import compare, reason_against, task_of
from mms.convert.convert import convert
from mms.convert.rnn import unroll_layers
from mms.errors import MMSError
from tests.convert.case import Made, block_case
from tests.convert.engines import ENGINES, open_network
from tests.convert.networks import layers, mx, nn, pictures, rows, symbol_case

sym = mx.sym
#: MXNet's own use of scipy.
pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")


def _norm() -> Made:
    data = sym.var("data")
    # No fix_gamma: MXNet takes it for set.
    net = sym.BatchNorm(data, name="norm")
    return symbol_case(sym.Flatten(net), pictures(8), data=(0, 3, 8, 8))


def _dense() -> Made:
    net = sym.FullyConnected(sym.var("data"), num_hidden=4, name="dense")
    return symbol_case(net, pictures(8), data=(0, 3, 8, 8))


def _local_norm() -> Made:
    net = sym.LRN(sym.var("data"), nsize=3, name="norm")
    net = sym.FullyConnected(net, num_hidden=4, flatten=True, name="dense")
    return symbol_case(net, pictures(8) * 30, data=(0, 3, 8, 8))


def _slopes() -> Made:
    return block_case(layers(nn.Conv2D(5, 3), nn.PReLU(in_channels=5)), pictures(9))


def _signals() -> Made:
    return block_case(layers(nn.Conv1D(4, 3), nn.MaxPool1D(2), nn.Dense(3)), rows(2, 3, 17))


def _pool() -> Made:
    return block_case(layers(nn.AvgPool2D(3, 2, 1, ceil_mode=True), nn.Flatten()), pictures(8))


def _two_layers() -> Made:
    return block_case(mx.gluon.rnn.LSTM(5, num_layers=2, layout="NTC"), rows(2, 4, 7))


class _Both(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc] # mxnet has no types
    """Gives an output that another one is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Dense(4)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        hidden = self.dense(x)
        return [F.relu(hidden), hidden, hidden * 2]


def _outputs() -> Made:
    return block_case(_Both(), rows(2, 6))


def _agrees(made: Made, folder: Path) -> str:
    """Return why an engine's answers are not MXNet's; "" if they are on all engines."""
    expected = [made.run(batch) for batch in made.batches]
    task = task_of(expected[0])
    try:
        converted = convert(made.traced, folder, "net")
        for engine in ENGINES:
            network = open_network(engine, converted)
            got = [network.run(batch) for batch in made.batches]
            if reason := reason_against(compare(expected, got, task, "f32"), "f32", 1.0):
                return f"{engine}: {reason}"
    except (MMSError, RuntimeError, ValueError, IndexError, KeyError) as error:
        return str(error)
    except Exception as error:
        # onnxruntime's exceptions have no common base.
        if "onnxruntime" not in type(error).__module__:
            raise
        return str(error)
    return ""


CASES: Sequence[tuple[Callable[[Any], None], Callable[[], Made]]] = [
    (symbol_repairs.fix_gammas, _norm),
    (symbol_repairs.shape_slopes, _slopes),
    (symbol_repairs.drop_layouts, _signals),
    (symbol_repairs.pad_before_pooling, _pool),
    (symbol_repairs.name_outputs, _outputs),
    (unroll_layers, _two_layers),
]


@pytest.mark.parametrize(("repair", "make"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_network_agrees_only_with_its_repair(
    repair: Callable[[Any], None],
    make: Callable[[], Made],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make()
    assert _agrees(made, tmp_path) == ""
    others = tuple(one for one in symbol_repairs.REPAIRS if one is not repair)
    assert len(others) == len(symbol_repairs.REPAIRS) - 1
    monkeypatch.setattr(exporter, "REPAIRS", others)
    assert _agrees(made, tmp_path) != ""


@pytest.mark.parametrize(
    ("op", "make"), [("FullyConnected", _dense), ("LRN", _local_norm)], ids=["flatten", "knorm"]
)
def test_what_a_symbol_leaves_out_is_filled(
    op: str, make: Callable[[], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    assert _agrees(made, tmp_path) == ""
    monkeypatch.delitem(symbol_repairs.DEFAULTS, op)
    assert _agrees(made, tmp_path) != ""


def test_parameters_are_constants_and_not_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _slopes()
    assert [value.name for value in exporter.to_onnx(made.traced).graph.input] == ["data"]
    monkeypatch.setattr(onnx_repairs, "drop_parameters_from_inputs", lambda _: None)
    assert len(exporter.to_onnx(made.traced).graph.input) > 1


def test_halves_are_widened() -> None:
    made = _dense()
    halves = {name: array.astype(np.float16) for name, array in made.traced.parameters.items()}
    traced = replace(made.traced, parameters=halves)
    types = {value.data_type for value in exporter.to_onnx(traced).graph.initializer}
    assert types <= {1, 7}  # FLOAT, and INT64 of shapes


def test_the_exporters_environment_is_left_as_it_was() -> None:
    import onnx

    before = onnx.defs.onnx_opset_version()
    exporter.to_onnx(_dense().traced)
    assert onnx.defs.onnx_opset_version() == before
    assert not hasattr(onnx, "mapping")


def test_an_operator_that_fails_in_the_exporter_is_cut_off(tmp_path: Path) -> None:
    data = sym.var("data")
    hidden = sym.FullyConnected(data, num_hidden=8, name="dense")
    # Known by name, but not with these attributes.
    net = sym.Pad(
        sym.reshape(hidden, shape=(0, 1, 2, 4)), mode="reflect",
        pad_width=(0, 0, 0, 0, 1, 1, 1, 1), name="pad",
    )  # fmt: skip
    made = symbol_case(sym.broadcast_hypot(net, net), rows(2, 6), data=(0, 6))
    converted = convert(made.traced, tmp_path, "net")
    assert converted.tail is not None
    assert "broadcast_hypot" in converted.tail.operators

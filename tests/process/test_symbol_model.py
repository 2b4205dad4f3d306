"""`mx_model` of MXNetBaseService: a Module as in 0.4, whatever runs it. Values are 0.4's own."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mms.engines.imports import import_mxnet
from mms.errors import ModelLoadFailed
from mms.model_service.mxnet_model_service import MXNetBaseService, check_input_shape

mx = import_mxnet()

# MXNet asks SciPy for names that it moved, and warns of much else.
pytestmark = pytest.mark.filterwarnings("ignore")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    WEIGHT = mx.nd.array([[1, 2, 3], [4, 5, 6]])
    BIAS = mx.nd.array([0, 1])
FC = {"fc_weight": WEIGHT, "fc_bias": BIAS}
INPUT = (("data", (0, 3)),)


def fc(data: Any, **options: Any) -> Any:
    return mx.sym.FullyConnected(data, num_hidden=2, name="fc", **options)


def data(**options: Any) -> Any:
    return mx.sym.Variable("data", **options)


def make_service(
    folder: Path,
    symbol: Any,
    parameters: Mapping[str, Any] = FC,
    inputs: Sequence[tuple[str, Sequence[int]]] = INPUT,
    cls: type[Any] = MXNetBaseService,
) -> Any:
    symbol.save(str(folder / "m-symbol.json"))
    mx.nd.save(str(folder / "m-0000.params"), {f"arg:{k}": v for k, v in parameters.items()})
    document = {
        "inputs": [{"data_name": name, "data_shape": list(shape)} for name, shape in inputs],
        "input_type": "application/json",
        "outputs": [{"data_name": "out", "data_shape": [0, 2]}],
        "output_type": "application/json",
    }
    (folder / "signature.json").write_text(json.dumps(document))
    model = {
        "Signature": "signature.json",
        "Symbol": "m-symbol.json",
        "Parameters": "m-0000.params",
    }
    return cls("m", str(folder), {"Model": model})


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return make_service(tmp_path, fc(data())).mx_model


def batch(value: Any) -> Any:
    return mx.io.DataBatch([mx.nd.array(value)])


def rows() -> Any:
    values, labels = np.array([[1, 2, 3], [0, 0, 0.0]]), np.array([[14, 33], [0, 1.0]])
    return mx.io.NDArrayIter(values, labels, batch_size=1)


class TestModule:
    def test_it_is_one_and_runs_as_none_until_something_needs_one(self, model: Any) -> None:
        assert isinstance(model, mx.mod.Module)
        model.forward(batch([[1, 2, 3]]))
        assert model.get_outputs()[0].asnumpy().tolist() == [[14, 33]]
        assert (model.data_names, model.output_names) == (["data"], ["fc_output"])
        assert model.symbol.list_arguments() == ["data", "fc_weight", "fc_bias"]
        assert not model.is_bound

    def test_it_is_bound_as_0_4_bound_it(self, model: Any) -> None:
        assert model.binded
        assert model.params_initialized
        assert (model.for_training, model.inputs_need_grad) == (False, False)
        assert (model.data_shapes[0].name, model.data_shapes[0].shape) == ("data", (1, 3))
        assert model.label_shapes is None
        assert (model.label_names, model.output_shapes) == ([], [("fc_output", (1, 2))])

    def test_predict(self, model: Any) -> None:
        assert model.predict(rows()).asnumpy().tolist() == [[14, 33], [0, 1]]
        found = [outputs[0].asnumpy().tolist() for outputs, _, _ in model.iter_predict(rows())]
        assert found == [[[14, 33]], [[0, 1]]]

    def test_another_shape(self, model: Any) -> None:
        # 0.4's, too, loses its parameters unless somebody asked for them before.
        model.get_params()
        model.bind([("data", (2, 3))], for_training=False, force_rebind=True)
        model.forward(batch([[1, 1, 1]] * 2))
        assert model.get_outputs()[0].asnumpy().tolist() == [[6, 16]] * 2
        model.reshape([("data", (3, 3))])
        assert model(mx.nd.ones((3, 3)))[0].shape == (3, 2)

    def test_parameters_are_set_and_saved(self, model: Any, tmp_path: Path) -> None:
        model.set_params({"fc_weight": WEIGHT * 2, "no": BIAS}, {}, True, allow_extra=True)
        assert model(mx.nd.ones((1, 3)))[0].asnumpy().tolist() == [[12, 31]]
        model.save_checkpoint(str(tmp_path / "saved"), 3)
        saved = mx.nd.load(str(tmp_path / "saved-0003.params"))
        assert saved["arg:fc_weight"].asnumpy().tolist() == [[2, 4, 6], [8, 10, 12]]

    def test_parameters_are_made_anew(self, model: Any) -> None:
        model.init_params(mx.init.One(), force_init=True)
        assert model(mx.nd.ones((1, 3)))[0].asnumpy().tolist() == [[3, 3]]

    def test_others_take_it(self, model: Any) -> None:
        other = mx.mod.Module(model.symbol, label_names=None)
        other.bind([("data", (1, 3))], for_training=False, shared_module=model)
        other.forward(batch([[1, 1, 1]]))
        assert other.get_outputs()[0].asnumpy().tolist() == [[6, 16]]

    def test_the_rest_that_services_call(self, model: Any) -> None:
        monitor = mx.mon.Monitor(1, pattern="fc_.*")
        model.install_monitor(monitor)
        monitor.tic()
        model.prepare(batch([[1, 1, 1]]))
        model.forward(batch([[1, 1, 1]]), is_train=True)
        assert [name for _, name, _ in monitor.toc()] == ["fc_weight", "fc_bias"]
        assert model.get_states(merge_multi_context=False) == []
        with pytest.raises(AssertionError):
            model.update()
        with pytest.raises(AttributeError, match=r"SymbolModel.*nothing"):
            _ = model.nothing

    def test_what_it_keeps_of_the_last_forward_pass_is_there(self, tmp_path: Path) -> None:
        class Keeps(MXNetBaseService):
            def _inference(self, data: Any) -> Any:
                super()._inference(data)
                return self.mx_model

            def _postprocess(self, data: Any) -> Any:
                per_device = data.get_outputs(merge_multi_context=False)
                return per_device, data.get_outputs(), data._exec_group.execs[0].outputs

        per_device, merged, bound = make_service(tmp_path, fc(data()), cls=Keeps).inference(
            [[[1, 2, 3]]]
        )
        assert [len(per_device), len(per_device[0])] == [1, 1]
        for array in (per_device[0][0], merged[0], bound[0]):
            assert array.asnumpy().tolist() == [[14, 33]]


class TestFreeArguments:
    """0.4's Module left zero whatever argument the file lacked."""

    @pytest.mark.parametrize("name", ["score", "y", "softmax_label"])
    def test_labels_of_any_name_are_zeros(self, tmp_path: Path, name: str) -> None:
        symbol = mx.sym.LinearRegressionOutput(fc(data()), label=mx.sym.Variable(name))
        service = make_service(tmp_path, symbol)
        assert service.inference([[[1, 2, 3]]]) == ["[[14.0, 33.0]]"]
        assert service.inference([[[1, 2, 3], [0, 0, 0]]]) == ["[[14.0, 33.0], [0.0, 1.0]]"]
        assert service.mx_model.get_params()[0][name].asnumpy().tolist() == [[0, 0]]

    def test_states_are_zeros(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        states = dict(
            zip(("state", "state_cell"), map(mx.sym.Variable, ("4.S", "4.C")), strict=True)
        )
        symbol = mx.sym.RNN(
            data(), mx.sym.Variable("p"), **states, state_size=2, num_layers=1, mode="lstm"
        )
        with caplog.at_level(logging.INFO):
            service = make_service(
                tmp_path, symbol, {"p": mx.nd.array(np.linspace(-1, 1, 56))}, [("data", (4, 1, 3))]
            )
        assert "zeros for 4.S, 4.C" in caplog.text
        (text,) = service.inference([np.ones((4, 1, 3)).tolist()])
        expected = [
            -0.009457,
            0.048528,
            -0.011397,
            0.068803,
            -0.011577,
            0.077338,
            -0.011455,
            0.080954,
        ]
        assert np.allclose(np.ravel(json.loads(text)), expected, atol=1e-6)

    def test_states_of_unrolled_cells_are_zeros(self, tmp_path: Path) -> None:
        cell = mx.rnn.LSTMCell(2, prefix="l_")
        begin = cell.begin_state(func=mx.sym.Variable)
        symbol, _ = cell.unroll(2, data(), begin_state=begin, merge_outputs=True)
        shapes = {"l_i2h_weight": (8, 3), "l_h2h_weight": (8, 2), "l_i2h_bias": 8, "l_h2h_bias": 8}
        parameters = {name: mx.nd.ones(shape) for name, shape in shapes.items()}
        service = make_service(tmp_path, symbol, parameters, [("data", (0, 2, 3))])
        (text,) = service.inference([np.ones((1, 2, 3)).tolist()])
        expected = [0.7536526, 0.7536526, 0.9618960, 0.9618960]
        assert np.allclose(np.ravel(json.loads(text)), expected, atol=1e-6)

    def test_an_input_that_the_signature_lacks_is_told_as_one(self, tmp_path: Path) -> None:
        with pytest.raises(
            ModelLoadFailed, match="'data1' is neither in the parameter file m-0000"
        ):
            make_service(tmp_path, fc(data() + mx.sym.Variable("data1")))

    def test_a_weight_is_never_zero(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadFailed, match=r"'fc_weight' is neither.*a parameter of 'fc'"):
            make_service(tmp_path, fc(data()), {"fc_bias": BIAS})


class TestParameters:
    def test_an_input_wins_over_an_array_of_its_name(self, tmp_path: Path) -> None:
        service = make_service(tmp_path, fc(data()), {**FC, "data": mx.nd.ones((1, 3))})
        assert service.inference([[[1, 2, 3]]]) == ["[[14.0, 33.0]]"]

    @pytest.mark.parametrize("storage", ["row_sparse", "csr"])
    def test_sparse_ones_load(self, tmp_path: Path, storage: str) -> None:
        service = make_service(tmp_path, fc(data()), {**FC, "fc_weight": WEIGHT.tostype(storage)})
        assert service.inference([[[1, 2, 3]]]) == ["[[14.0, 33.0]]"]

    def test_a_symbol_that_wants_sparse_ones_runs_as_a_module(self, tmp_path: Path) -> None:
        weight = mx.sym.Variable("w", stype="row_sparse")
        symbol = mx.sym.Embedding(data(), weight, input_dim=3, output_dim=2, sparse_grad=True)
        table = {"w": WEIGHT.T.tostype("row_sparse")}
        service = make_service(tmp_path, symbol, table, [("data", (0, 1))])
        assert service.inference([[[2]]]) == ["[[[3.0, 6.0]]]"]
        assert service.mx_model.is_bound

    @pytest.mark.parametrize("type_", ["float16", "float64"])
    def test_other_precisions_run_in_single(self, tmp_path: Path, type_: str) -> None:
        parameters = {name: array.astype(type_) for name, array in FC.items()}
        service = make_service(tmp_path, fc(data()), parameters)
        assert service.inference([[[1, 2, 3]]]) == ["[[14.0, 33.0]]"]

    def test_a_symbol_that_casts_its_input_runs_in_double(self, tmp_path: Path) -> None:
        parameters = {name: array.astype("float64") for name, array in FC.items()}
        service = make_service(tmp_path, fc(mx.sym.Cast(data(), dtype="float64")), parameters)
        assert service.inference([[[1, 2, 3]]]) == ["[[14.0, 33.0]]"]

    def test_inputs_that_no_engine_takes_change_nothing(self, tmp_path: Path) -> None:
        service = make_service(tmp_path, fc(data()), inputs=[("data", (0, 0))])
        with pytest.raises(mx.base.MXNetError):
            service.inference([[[1, 2]]])
        assert service.inference([[[1, 2, 3]]]) == ["[[14.0, 33.0]]"]
        assert not service.mx_model.is_bound

    def test_what_is_no_parameter_file_is_told_by_its_name(self, tmp_path: Path) -> None:
        make_service(tmp_path, fc(data()))
        (tmp_path / "m-0000.params").write_bytes(b"nothing")
        model = {"Signature": "signature.json", "Symbol": "m-symbol.json"}
        with pytest.raises(ModelLoadFailed, match=r"^m-0000\.params is not a parameter file"):
            MXNetBaseService(
                "m", str(tmp_path), {"Model": {**model, "Parameters": "m-0000.params"}}
            )


def test_the_signature_is_as_0_4_gave_it_and_checks_know_better(tmp_path: Path) -> None:
    service = make_service(
        tmp_path,
        mx.sym.broadcast_add(data(), mx.sym.Variable("b")),
        {"b": BIAS},
        [("data", (4, 0))],
    )
    signature = service.signature
    assert json.loads(json.dumps(signature["inputs"])) == [
        {"data_name": "data", "data_shape": [1, 1]}
    ]
    assert signature["outputs"] == [{"data_name": "out", "data_shape": [0, 2]}]
    assert np.zeros(signature["inputs"][0]["data_shape"]).shape == (1, 1)
    check_input_shape([mx.nd.ones((2, 7))], signature)
    with pytest.raises(AssertionError, match=r"\(2, 7, 1\), expected \(\?, \?\)"):
        check_input_shape([mx.nd.ones((2, 7, 1))], signature)
    # What a service writes there itself counts.
    signature["inputs"][0]["data_shape"] = [1, 2]
    with pytest.raises(AssertionError):
        check_input_shape([mx.nd.ones((2, 7))], signature)


def test_attributes_of_a_service_win(tmp_path: Path) -> None:
    class Own(MXNetBaseService):
        def _model_dir(self) -> str:
            return "mine"

        def _quantized_net(self) -> str:
            return "mine"

        def _symbol_filename(self) -> str:
            return "mine"

    service = make_service(tmp_path, fc(data()), cls=Own)
    assert (service._model_dir(), service._quantized_net(), service._symbol_filename()) == (
        "mine",
        "mine",
        "mine",
    )
    # 0.4's own, and none besides.
    assert set(vars(service)) == {"ctx", "model_name", "param_filename", "_signature", "mx_model"}

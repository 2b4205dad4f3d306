"""Services for Gluon networks, against the values of 0.4."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mms.engines.imports import import_mxnet
from mms.errors import ModelLoadFailed
from mms.model_service.gluon_vision_service import GluonVisionService
from mms.model_service.mxnet_model_service import GluonImperativeBaseService

mx = import_mxnet()
nn = mx.gluon.nn

# MXNet asks SciPy for names that it moved, and warns of much else.
pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHT, BIAS = [[1, 2, 3], [4, 5, 6]], [0, 1]
MODEL = {"Signature": "signature.json", "Parameters": "m-0000.params"}


def write_signature(folder: Path, shape: list[int], input_type: str = "application/json") -> None:
    document = {
        "inputs": [{"data_name": "data", "data_shape": shape}],
        "input_type": input_type,
        "outputs": [{"data_name": "out", "data_shape": [0, 2]}],
        "output_type": "application/json",
    }
    (folder / "signature.json").write_text(json.dumps(document))


def dense(prefix: str | None = None, filled: bool = False) -> Any:
    net = nn.HybridSequential(prefix=prefix)
    with net.name_scope():
        net.add(nn.Dense(2, in_units=3))
    if filled:
        net.initialize()
        net[0].weight.set_data(mx.nd.array(WEIGHT))
        net[0].bias.set_data(mx.nd.array(BIAS))
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_signature(tmp_path, [0, 3])
    dense(filled=True).save_parameters(str(tmp_path / "m-0000.params"))
    return tmp_path


def make(cls: type[Any], folder: Path, net: Any, **model: Any) -> Any:
    return cls("m", str(folder), {"Model": {**MODEL, **model}}, net)


class TestBase:
    def test_it_runs_the_network_of_a_service_that_overrides_nothing(self, folder: Path) -> None:
        service = make(GluonImperativeBaseService, folder, dense())
        assert service.inference([[[1, 2, 3]]]).asnumpy().tolist() == [[14, 33]]

    def test_it_only_checks_for_a_service_that_runs_it_itself(self, folder: Path) -> None:
        """In 0.4 `_inference` of the base never ran a network, and returned None."""

        class Net(mx.gluon.Block):  # type: ignore[name-defined,misc]
            calls = 0

            def forward(self, request: dict[str, Any]) -> Any:
                Net.calls += 1
                return request["rows"] * request["factor"]

        class Own(GluonImperativeBaseService):
            def _inference(self, data: Any) -> Any:
                assert super()._inference(data) is None
                return self.net({"rows": data[0], "factor": 2})

        service = make(Own, folder, Net(), Parameters="")
        assert service.inference([[[1, 2, 3]]]).asnumpy().tolist() == [[2, 4, 6]]
        assert Net.calls == 1
        with pytest.raises(AssertionError, match="has shape"):
            service.inference([[[1, 2]]])

    def test_so_does_one_that_is_set_on_the_service(self, folder: Path) -> None:
        service = make(GluonImperativeBaseService, folder, dense())
        base = service._inference
        service._inference = lambda data: (base(data), service.net(*data))[1]
        assert service.inference([[[1, 2, 3]]]).asnumpy().tolist() == [[14, 33]]

    def test_without_a_network_the_parameter_file_does_not_matter(self, folder: Path) -> None:
        (folder / "m-0000.params").write_bytes(b"nothing")
        service = make(GluonImperativeBaseService, folder, None)
        assert (service.net, service.param_filename) == (None, "m-0000.params")

    def test_the_signature_keeps_the_values_of_the_file(self, folder: Path) -> None:
        service = make(GluonImperativeBaseService, folder, dense())
        assert service.signature["inputs"][0]["data_shape"] == [0, 3]

    def test_it_has_the_attributes_of_0_4_and_no_more(self, folder: Path) -> None:
        service = make(GluonImperativeBaseService, folder, dense())
        assert set(vars(service)) == {"ctx", "model_name", "param_filename", "_signature", "net"}


class TestVision:
    """Every number is what 0.4 returned for this picture and network."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_signature(tmp_path, [0, 3, 5, 4], "image/jpeg")
        (tmp_path / "synset.txt").write_text("a\nb\nc\n")
        net = self.net()
        net.initialize()
        net[1].weight.set_data(mx.nd.array([[1, 2, 3], [-1, 0, 1], [0, 0.5, -1]]))
        net[1].bias.set_data(mx.nd.array([0, 0.25, 0.5]))
        net.save_parameters(str(tmp_path / "m-0000.params"))
        return tmp_path

    @staticmethod
    def net() -> Any:
        net = nn.HybridSequential()
        net.add(nn.GlobalAvgPool2D(), nn.Dense(3, in_units=3))
        return net

    @pytest.fixture
    def picture(self) -> bytes:
        row, column, channel = np.ogrid[:12, :16, :3]
        pixels = (row * 37 + column * 23 + channel * 91 + row * column) % 256
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    @pytest.mark.parametrize("wrap", [list, tuple, None])
    def test_probabilities(self, folder: Path, picture: bytes, wrap: Any) -> None:
        class Own(GluonVisionService):
            def _postprocess(self, data: Any) -> Any:
                return super()._postprocess(data if wrap is None else wrap([data]))

        answer = make(Own, folder, self.net()).inference([picture])
        assert answer == [
            [
                {"probability": 0.6931940913200378, "class": "a"},
                {"probability": 0.1879464089870453, "class": "b"},
                {"probability": 0.11885944753885269, "class": "c"},
            ]
        ]

    def test_pixels(self, folder: Path, picture: bytes) -> None:
        (array,) = make(GluonVisionService, folder, self.net())._preprocess([picture])
        assert (type(array), array.dtype, array.shape) == (mx.nd.NDArray, np.float32, (1, 3, 5, 4))
        assert array.asnumpy().ravel()[:3].tolist() == [
            -1.0732940435409546,
            0.5535576939582825,
            0.6391814351081848,
        ]


class TestParameterFiles:
    """The three kinds, written under other names than the network has when it is served."""

    def answer(self, folder: Path, net: Any) -> Any:
        service = make(GluonImperativeBaseService, folder, net)
        return service.inference([[[1, 2, 3]]]).asnumpy().tolist()

    @pytest.mark.parametrize("prefix", ["net_", "", None, "other_"])
    @pytest.mark.parametrize("kind", ["export", "collect", "save"])
    def test_they_load(self, tmp_path: Path, kind: str, prefix: str | None) -> None:
        write_signature(tmp_path, [0, 3])
        net = dense("net_", filled=True)
        path = str(tmp_path / "m-0000.params")
        if kind == "save":
            net.save_parameters(path)
        elif kind == "collect":
            net.collect_params().save(path)
        else:
            net.hybridize()
            net(mx.nd.ones((1, 3)))
            net.export(str(tmp_path / "m"))
        assert self.answer(tmp_path, dense(prefix)) == [[14, 33]]

    def test_layers_that_were_numbered_in_another_process_load(self, tmp_path: Path) -> None:
        write_signature(tmp_path, [0, 3])
        arrays = {"arg:net3_dense7_weight": mx.nd.array(WEIGHT), "arg:net3_dense7_bias": [0, 1]}
        arrays["arg:net3_dense7_bias"] = mx.nd.array(BIAS)
        mx.nd.save(str(tmp_path / "m-0000.params"), arrays)
        assert self.answer(tmp_path, dense()) == [[14, 33]]

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (
                ("arg:net_conv0_weight", "arg:net_conv0_bias"),
                r"the file 'arg:net_conv0_weight', 'arg:net_conv0_bias'; net.export\(\) or "
                r"Module.save_checkpoint\(\) wrote it: save this very network with "
                r"net.save_parameters\(\)",
            ),
            (("net_w", "net_b"), r"'net_w', 'net_b'; net.collect_params\(\).save\(\) wrote it"),
            (("0.weight", "1.bias"), "parameter '0.bias' is missing in it; it has '0.weight'"),
        ],
    )
    def test_others_are_told_by_the_names_in_the_file(
        self, tmp_path: Path, names: tuple[str, str], said: str
    ) -> None:
        write_signature(tmp_path, [0, 3])
        values = (mx.nd.array(WEIGHT), mx.nd.array(BIAS))
        mx.nd.save(str(tmp_path / "m-0000.params"), dict(zip(names, values, strict=True)))
        with pytest.raises(ModelLoadFailed, match=said) as raised:
            self.answer(tmp_path, dense("net_"))
        assert str(raised.value).startswith("parameter file m-0000.params does not fit Hybrid")
        assert str(tmp_path) not in str(raised.value)

    def test_a_shape_is_told(self, folder: Path) -> None:
        net = nn.HybridSequential()
        net.add(nn.Dense(4, in_units=3))
        said = r"'0.weight' has the shape \(2, 3\) in it, \(4, 3\) in the network"
        with pytest.raises(ModelLoadFailed, match=said):
            make(GluonImperativeBaseService, folder, net)

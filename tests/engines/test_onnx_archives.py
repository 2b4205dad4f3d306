"""ONNX archives behind HTTP, on either engine: the same answers, or one line that says why not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import pytest_asyncio
from onnx import helper

from mms.engines.onnx_model import open_model
from mms.errors import EngineMissing, MMSError, ModelLoadFailed
from mms.export.package import export_model
from mms.wire.messages import EngineWish
from tests.engines.networks import ENGINES, quantized, write
from tests.engines.test_processes import run
from tests.examples.readme import EXAMPLES
from tests.http.test_onnx import archive, plain
from tests.kit.onnx_models import (
    FLOAT,
    arithmetic,
    brightness,
    classifier,
    colours,
    identity,
    linear,
    make_model,
    types,
    value,
)
from tests.kit.server import RunningServer, StartServer

shared_loop = pytest.mark.asyncio(loop_scope="module")
MODELS: dict[str, tuple[onnx.ModelProto, tuple[str, ...]]] = {
    "linear": (linear(), ()),
    "fixed": (linear(batch=1), ()),
    "arithmetic": (arithmetic(), ()),
    "quantized": (quantized(), ()),
    "colours": (colours(), ("red", "green", "blue")),
    "brightness": (brightness(), ("white", "black")),
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the example trains."""
    folder = tmp_path_factory.mktemp("digits")
    script = EXAMPLES / "onnx" / "train.py"
    subprocess.run([sys.executable, str(script), "--output", str(folder)], check=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, digits: Path, start_shared: StartServer) -> RunningServer:
    models = {}
    for name, (model, labels) in MODELS.items():
        path, settings = archive(folder, name, model, *labels)
        for engine in ENGINES:
            options = {"engine": engine, "batch_size": 4, "max_batch_delay": 500.0}
            models[f"{name}-{engine}"] = path, {**settings, **options}
    path = export_model("digits_image", digits / "digits_image", None, folder).path
    for engine in ENGINES:
        models[f"digits_image-{engine}"] = path, {"engine": engine, "threads": 1}
    models["half"] = (
        archive(folder, "half", linear())[0],
        {"engine": "auto", "precision": "bf16", "threads": 1},
    )
    return await start_shared({"management_port": 0}, **models)


async def on_both(server: RunningServer, model: str, request: Any) -> list[tuple[int, Any]]:
    return [await server.ask(f"{model}-{engine}", request) for engine in ENGINES]


async def show_both(server: RunningServer, model: str, picture: bytes) -> list[Any]:
    answers = []
    for engine in ENGINES:
        url = f"{server.url}/predictions/{model}-{engine}"
        async with server.session.post(url, data=picture) as reply:
            answers.append((reply.status, await reply.json()))
    return answers


@shared_loop
class TestServed:
    @pytest.mark.parametrize(
        ("model", "request_"),
        [
            ("linear", [[1, 2, 3], [0.5, 0, -1]]),
            ("fixed", [[1, 2, 3]]),
            ("arithmetic", {"left": [[1, 2]], "right": [[3, -4]]}),
        ],
    )
    async def test_numbers_are_answered_alike(
        self, server: RunningServer, model: str, request_: Any
    ) -> None:
        (status, one), other = await on_both(server, model, request_)
        assert status == 200, one
        assert (status, one) == other

    @pytest.mark.parametrize(
        ("model", "request_"),
        [
            ("linear", [[1, 2]]),
            ("fixed", [[1, 2, 3], [4, 5, 6]]),
            ("arithmetic", {"left": [[1, 2]], "right": [[0.5, 1]]}),
        ],
    )
    async def test_requests_are_refused_alike(
        self, server: RunningServer, model: str, request_: Any
    ) -> None:
        (status, one), (other_status, other) = await on_both(server, model, request_)
        assert status == other_status == 400
        assert one["message"] == other["message"]

    async def test_a_quantized_file_is_answered_alike_but_for_rounding(
        self, server: RunningServer
    ) -> None:
        (_, one), (_, other) = await on_both(server, "quantized", [[0.3, -1, 2, 0]])
        assert np.allclose(one, other, atol=0.05)

    @pytest.mark.parametrize(("model", "mode"), [("colours", "RGB"), ("brightness", "L")])
    async def test_pictures_are_answered_alike(
        self, server: RunningServer, model: str, mode: str
    ) -> None:
        colour = (200, 20, 60) if mode == "RGB" else 200
        (status, one), (_, other) = await show_both(server, model, plain(colour, mode))
        assert status == 200, one
        assert [row["class"] for row in one[0]] == [row["class"] for row in other[0]]
        assert np.allclose(
            [row["probability"] for row in one[0]], [row["probability"] for row in other[0]]
        )

    async def test_the_example_is_answered_alike(self, server: RunningServer, digits: Path) -> None:
        picture = (digits / "digits_image" / "sample.png").read_bytes()
        (status, one), (_, other) = await show_both(server, "digits_image", picture)
        assert status == 200, one
        assert one[0][0]["class"] == other[0][0]["class"] == "three"
        assert one[0][0]["probability"] == pytest.approx(other[0][0]["probability"], abs=1e-6)

    async def test_requests_are_joined_on_openvino_too(self, server: RunningServer) -> None:
        servable = server.servable("linear-openvino")
        before = sum(servable.batches.values())
        asked = (server.ask("linear-openvino", [[n, 0, 0]]) for n in range(4))
        answers = await asyncio.gather(*asked)
        assert [answer[0][0][0] for _, answer in answers] == [0, 1, 2, 3]
        assert sum(servable.batches.values()) == before + 1

    @pytest.mark.parametrize(
        ("model", "engine"),
        [
            ("linear-onnxruntime", "onnxruntime"),
            ("linear-openvino", "openvino"),
            ("half", "openvino"),
        ],
    )
    async def test_workers_are_forked_on_the_engine_that_was_asked_for(
        self, server: RunningServer, model: str, engine: str
    ) -> None:
        servable = server.servable(model)
        assert {report.engine.split()[0] for report in servable.reports.values()} == {engine}
        assert servable.loader_pid is not None
        assert (await server.ask(model, [[1, 2, 3]]))[1][0] == [[1, 15]]


@pytest.mark.parametrize("engine", ENGINES)
async def test_workers_of_several_threads_load_the_model_themselves(
    engine: str, tmp_path: Path, start_server: StartServer
) -> None:
    path, _ = archive(tmp_path, "two", linear())
    server = await start_server(two=(path, {"engine": engine, "threads": 2}))
    assert server.servable("two").loader_pid is None
    assert (await server.ask("two", [[1, 2, 3]]))[1][0] == [[1, 15]]


REFUSED = [
    ("types", types(), {"engine": "openvino"}, "string, which is not supported on OpenVINO"),
    ("maps", classifier(), {"engine": "openvino"}, "run it on onnxruntime, which has sequences"),
    ("old", linear(), {"engine": "mxnet"}, "an ONNX model does not run on mxnet"),
    ("whole", linear(), {"precision": "int8"}, "int8 was asked for, but the file computes in f32"),
    (
        "short",
        linear(),
        {"engine": "onnxruntime", "precision": "bf16"},
        "bf16 was asked for, but the file computes in f32; bf16 needs OpenVINO",
    ),
]


@pytest.mark.parametrize(("name", "model", "settings", "message"), REFUSED)
async def test_what_an_engine_lacks_is_one_clear_line(
    name: str,
    model: onnx.ModelProto,
    settings: dict[str, str],
    message: str,
    tmp_path: Path,
    start_server: StartServer,
) -> None:
    path, options = archive(tmp_path, name, model)
    with pytest.raises(MMSError) as failed:
        await start_server(**{name: (path, {**options, **settings})})
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)


async def test_a_failed_change_of_engine_leaves_the_model_serving(
    tmp_path: Path, start_server: StartServer
) -> None:
    path, options = archive(tmp_path, "classifier", classifier())
    server = await start_server(classifier=(path, options))
    with pytest.raises(MMSError, match="run it on onnxruntime"):
        await server.register("classifier", path, "2", engine="openvino", **options)
    assert (await server.ask("classifier", [[0.5, 1]]))[1] == [[{"7": 0.5, "8": 1}]]


def test_classical_operators_stay_on_onnxruntime(digits: Path) -> None:
    path = digits / "digits" / "digits.onnx"
    assert open_model(path, EngineWish()).engine == "onnxruntime"
    with pytest.raises(ModelLoadFailed, match=r"ArrayFeatureExtractor; .* run it on onnxruntime"):
        open_model(path, EngineWish(engine="openvino"))


@pytest.mark.parametrize(
    ("wish", "missing", "engine"),
    [
        (EngineWish(), "", "onnxruntime"),
        (EngineWish(precision="f32"), "", "onnxruntime"),
        (EngineWish(precision="bf16"), "", "openvino"),
        (EngineWish(engine="openvino"), "", "openvino"),
        (EngineWish(), "openvino", "onnxruntime"),
        (EngineWish(), "onnxruntime", "openvino"),
    ],
)
def test_auto_is_onnxruntime_where_it_is_installed(
    wish: EngineWish, missing: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    assert open_model(write(tmp_path, linear()), wish, 1).engine == engine


def test_without_either_engine_both_extras_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENGINES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineMissing) as failed:
        open_model(write(tmp_path, linear()), EngineWish())
    assert "mxnet-model-server[onnx]" in str(failed.value)
    assert "mxnet-model-server[openvino]" in str(failed.value)


@pytest.mark.parametrize("missing", ENGINES)
def test_the_exporter_reads_graphs_with_either_engine(missing: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    # The shape of the output is inferred, the names of axes are the file's.
    model = make_model(nodes, [value("x", FLOAT, ["N", 3])], [value("y", FLOAT, None)])
    lines = [
        f"import sys; sys.modules[{missing!r}] = None",
        "from mms.engines.onnx_model import main",
        f"main({str(write(tmp_path, model))!r})",
    ]
    document = json.loads(run("-c", "\n".join(lines)))
    (other,) = set(ENGINES) - {missing}
    assert document["engine"] == other
    assert document["inputs"] == [["x", "tensor(float)", ["N", 3]]]
    ((name, type_, dims),) = document["outputs"]
    assert (name, type_, dims[1]) == ("y", "tensor(float)", 3)


def test_an_identity_of_texts_runs_on_onnxruntime(tmp_path: Path) -> None:
    model = open_model(write(tmp_path, identity(onnx.TensorProto.STRING, ["N"])), EngineWish())
    assert model.session.run(None, {"x": np.array(["a"], dtype=object)})[0].tolist() == ["a"]

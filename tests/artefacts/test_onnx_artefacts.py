"""ONNX models as they lie about: files, folders, numbered versions, files under other names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import pytest_asyncio
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from mms.archive.onnx_file import read_graph
from mms.archive.reader import open_archive
from mms.errors import ArchiveError
from mms.export.onnx_file import read_graph as ask_onnxruntime
from tests.kit import onnx_models
from tests.kit.fileserver import file_server
from tests.kit.server import RunningServer, StartServer

shared_loop = pytest.mark.asyncio(loop_scope="module")

ROWS = np.random.RandomState(0).rand(40, 3).astype(np.float32)
FITTED = LogisticRegression().fit(ROWS, ROWS.sum(axis=1) > 1.5)


def sklearn_model(folder: Path, name: str = "model.onnx") -> Path:
    """Write what skl2onnx makes of a fitted classifier, as its examples do."""
    folder.mkdir(parents=True, exist_ok=True)
    model = to_onnx(FITTED, ROWS[:1], options={"zipmap": False}, target_opset=15)
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def linear_model(folder: Path) -> Path:
    return next(onnx_models.write_model(folder, onnx_models.linear()).glob("*.onnx"))


def opened(source: Path, tmp_path: Path, **options: Any) -> Any:
    workspace = tmp_path / "work"
    workspace.mkdir(exist_ok=True)
    return open_archive(source, workspace, **options)


@pytest.mark.parametrize("make", ["brightness", "classifier", "colours", "linear", "types"])
def test_the_file_states_what_onnxruntime_says(tmp_path: Path, make: str) -> None:
    folder = onnx_models.write_model(tmp_path / make, getattr(onnx_models, make)())
    path = next(folder.glob("*.onnx"))
    stated, told = read_graph(path), ask_onnxruntime(path)
    assert (stated.inputs, stated.outputs) == (told.inputs, told.outputs)


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x08\x07junk", b"<html>", bytes(100)])
def test_what_is_no_model_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"a\.onnx: not an ONNX model, or cut short"):
        opened(path, tmp_path)
    assert list((tmp_path / "work").iterdir()) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    store = folder / "store"
    sklearn_model(store / "numbered" / "1")
    linear_model(store / "numbered" / "3")
    (store / "numbered" / "config.pbtxt").write_text('platform: "onnxruntime_onnx"')
    unstated = next(onnx_models.write_model(folder / "a", onnx_models.arithmetic()).glob("*.onnx"))
    onnx_models.write_external(store / "external")
    # onnxruntime's threads do not survive a fork.
    alone: dict[str, Any] = {"preload": False}
    return await start_shared(
        {"model_store": str(store), "management_port": 0},
        file=(sklearn_model(folder / "files", "iris.v1.onnx"), alone),
        folder=(linear_model(folder / "folder").parent, alone),
        numbered=(store / "numbered", alone),
        external=(store / "external", alone),
        unstated=(unstated, alone),
    )


@shared_loop
class TestServed:
    async def test_a_file_of_skl2onnx(self, server: RunningServer) -> None:
        status, (labels, probabilities) = await server.ask("file", ROWS[:4].tolist())
        assert status == 200
        assert labels == FITTED.predict(ROWS[:4]).astype(int).tolist()
        np.testing.assert_allclose(probabilities, FITTED.predict_proba(ROWS[:4]), atol=1e-5)

    async def test_a_folder_with_a_file(self, server: RunningServer) -> None:
        assert (await server.ask("folder", [[1, 2, 3]]))[0] == 200

    async def test_the_highest_number_is_served_as_that_version(
        self, server: RunningServer
    ) -> None:
        assert list(server.versions("numbered")) == ["3"]
        assert server.default("numbered") == "3"
        assert (await server.ask("numbered", [[1, 2, 3]]))[0] == 200

    async def test_a_number_that_is_asked_for_is_another_version(
        self, server: RunningServer
    ) -> None:
        query = "/models?url=numbered&model_name=numbered&version=1&initial_workers=1&preload=false"
        status, answer = await server.manage("POST", query)
        assert status == 200, answer
        url = f"{server.url}/v2/models/numbered/versions/1/infer"
        tensor = {"name": "X", "shape": [1, 3], "datatype": "FP32", "data": ROWS[0].tolist()}
        async with server.session.post(url, json={"inputs": [tensor]}) as response:
            assert response.status == 200, await response.text()
        server.set_default("numbered", "3")
        await server.unregister("numbered", "1")

    async def test_weights_beside_the_file(self, server: RunningServer) -> None:
        status, answer = await server.ask("external", [[1, 2, 3]])
        assert status == 200, answer

    async def test_an_output_whose_shape_the_file_does_not_state(
        self, server: RunningServer
    ) -> None:
        assert server.servable("unstated").is_ready


async def test_a_file_is_served_from_a_url(tmp_path: Path, start_server: StartServer) -> None:
    content = sklearn_model(tmp_path).read_bytes()
    with file_server() as files:
        url = files.add("/models/my-iris.onnx", content)
        server = await start_server({"cache_dir": str(tmp_path / "cache")}, iris=url)
        assert (await server.ask("iris", ROWS[:1].tolist()))[0] == 200


def test_names_come_from_files(tmp_path: Path) -> None:
    path = sklearn_model(tmp_path / "x", "my-model.v2.onnx")
    assert opened(path, tmp_path).manifest.model_name == "my_model_v2"
    cached = Path(shutil.copy(path, tmp_path / ("0" * 64)))
    assert opened(cached, tmp_path, name="other.onnx").manifest.model_name == "other"


def test_several_models_in_a_folder_are_listed(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        sklearn_model(tmp_path / "two", name)
    with pytest.raises(ArchiveError, match=r"2 ONNX models are in it; name one: .*/a\.onnx, .*/b"):
        opened(tmp_path / "two", tmp_path)


def test_the_other_versions_are_noted(tmp_path: Path) -> None:
    for number in ("1", "2", "10"):
        sklearn_model(tmp_path / "m" / number)
    (tmp_path / "m" / "config.pbtxt").write_text("")
    archive = opened(tmp_path / "m", tmp_path)
    assert archive.notes == (
        "config.pbtxt is not read; batching and devices are settings here",
        "version 10 is served; versions 1, 2 are there as well",
    )
    onnx.checker.check_model(onnx.load(archive.folder / "model.onnx"))

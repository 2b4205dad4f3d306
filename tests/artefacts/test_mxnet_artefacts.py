"""Pairs of symbol and parameters, as MXNet, SageMaker, GluonCV and InsightFace leave them.

0.4 and 1.x served none of these without an archive and, for most, a service written for it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from mms.archive.reader import open_archive
from mms.errors import ArchiveError
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until

shared_loop = pytest.mark.asyncio(loop_scope="module")

INPUT: list[list[float]] = [[1, 2, 3], [0.5, -1, 4]]


def agree(answer: Any, expected: Path) -> None:
    """Check an answer against the bare engine's."""
    np.testing.assert_allclose(np.array(answer), np.load(expected), rtol=1e-5, atol=1e-5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(made: Path, folder: Path, start_shared: StartServer) -> RunningServer:
    packed = folder / "model.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        for file in (made / "classification").iterdir():
            tar.add(file, file.name)
    return await start_shared(
        checkpoint=made / "checkpoint",
        older=made / "checkpoint" / "net@1",
        classification=packed,
        detection=made / "detection",
        targets=made / "targets",
        face=made / "face",
        zoo=made / "zoo",
        raw=made / "zoo-raw",
        boxes=made / "zoo-ssd",
        mask=made / "segmentation",
    )


async def ask_image(server: RunningServer, model: str, picture: Path) -> Any:
    url = f"{server.url}/predictions/{model}"
    headers = {"content-type": "image/png"}
    async with server.session.post(url, data=picture.read_bytes(), headers=headers) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return answer


@shared_loop
class TestServed:
    async def test_the_newest_epoch_of_a_checkpoint(
        self, server: RunningServer, made: Path
    ) -> None:
        status, answer = await server.ask("checkpoint", INPUT)
        assert status == 200
        agree(answer[0], made / "checkpoint-12.npy")

    async def test_the_epoch_that_is_named(self, server: RunningServer, made: Path) -> None:
        status, answer = await server.ask("older", INPUT)
        assert status == 200
        agree(answer[0], made / "checkpoint-1.npy")

    async def test_a_checkpoint_by_the_open_inference_protocol(
        self, server: RunningServer, made: Path
    ) -> None:
        values = [value for row in INPUT for value in row]
        tensor = {"name": "data", "shape": [2, 3], "datatype": "FP32", "data": values}
        url = f"{server.url}/v2/models/checkpoint/infer"
        async with server.session.post(url, json={"inputs": [tensor]}) as response:
            output = (await response.json())["outputs"][0]
        assert (output["name"], output["shape"]) == ("softmax_output", [2, 2])
        agree(np.reshape(output["data"], (2, 2)), made / "checkpoint-12.npy")

    async def test_sagemakers_image_classification_from_its_tar_file(
        self, server: RunningServer, made: Path
    ) -> None:
        answer = await ask_image(server, "classification", made / "classification.png")
        agree([answer], made / "classification.npy")

    @pytest.mark.parametrize("model", ["detection", "targets"])
    async def test_sagemakers_object_detection_cut_from_its_training_symbol(
        self, server: RunningServer, made: Path, model: str
    ) -> None:
        answer = await ask_image(server, model, made / "detection.png")
        assert list(answer) == ["prediction"]
        agree(answer["prediction"], made / "detection.npy")
        assert len(answer["prediction"][0]) == 6

    async def test_an_embedding_of_insightface(self, server: RunningServer, made: Path) -> None:
        agree([await ask_image(server, "face", made / "face.png")], made / "face.npy")

    @pytest.mark.parametrize("model", ["zoo", "raw"])
    async def test_a_classifier_of_gluoncv_with_its_preset(
        self, server: RunningServer, made: Path, model: str
    ) -> None:
        answer = await ask_image(server, model, made / "zoo.png")
        expected = np.load(made / "zoo.npy")[0]
        best = np.argsort(-expected)[:5]
        assert [int(entry["class"]) for entry in answer] == list(best)
        found = [entry["probability"] for entry in answer]
        np.testing.assert_allclose(found, expected[best], rtol=1e-5, atol=1e-5)

    async def test_a_detector_of_gluoncv(self, server: RunningServer, made: Path) -> None:
        answer = await ask_image(server, "boxes", made / "zoo-ssd.png")
        expected = np.load(made / "zoo-ssd.npy")
        found = np.array(answer["prediction"])
        assert found.shape == expected.shape
        # In any order: objects of equal scores have none.
        distances = np.abs(found[:, None] - expected[None]).max(axis=2)
        assert distances.min(axis=0).max() < 1e-4
        assert distances.min(axis=1).max() < 1e-4

    async def test_sagemakers_semantic_segmentation(
        self, server: RunningServer, made: Path
    ) -> None:
        url = f"{server.url}/predictions/mask"
        headers = {"content-type": "image/png", "accept": "image/png"}
        body = (made / "segmentation.png").read_bytes()
        async with server.session.post(url, data=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "image/png"
            mask = np.asarray(Image.open(io.BytesIO(await response.read())))
        expected = np.load(made / "segmentation.npy")
        assert mask.shape == expected.shape
        # Where two classes are nearly equal, either may be seen.
        assert (mask == expected).mean() > 0.99


async def test_an_edited_checkpoint_is_loaded_again(
    made: Path, tmp_path: Path, start_server: StartServer
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in ("net-symbol.json", "net-0001.params"):
        shutil.copy(made / "checkpoint" / file, model)
    server = await start_server({"watch": True, "watch_interval": 0.2}, net=model)
    agree((await server.ask("net", INPUT))[1][0], made / "checkpoint-1.npy")
    before = sorted(p.name for p in model.iterdir())
    assert before == ["net-0001.params", "net-symbol.json"]
    shutil.copy(made / "checkpoint" / "net-0012.params", model)
    wanted = np.load(made / "checkpoint-12.npy")

    async def is_newer() -> bool:
        answer = (await server.ask("net", INPUT))[1][0]
        return bool(np.allclose(answer, wanted, atol=1e-5))

    await until(is_newer)


def test_a_folder_that_cannot_be_written_stays_as_it_is(made: Path, tmp_path: Path) -> None:
    model = shutil.copytree(made / "checkpoint", tmp_path / "model")
    os.chmod(model, 0o555)
    workspace = tmp_path / "work"
    workspace.mkdir()
    archive = open_archive(model, workspace)
    assert archive.folder.parent == workspace
    assert (archive.folder / "net-symbol.json").resolve() == model / "net-symbol.json"
    assert archive.family == "MXNet checkpoint"
    os.chmod(model, 0o755)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: [p.unlink() for p in m.glob("*.params")], "has no parameter file; add net-0000"),
        (lambda m: (m / "net-0012.params").write_bytes(b"junk"), "not a parameter file of MXNet"),
        (lambda m: (m / "net-symbol.json").write_text("[]"), "not a symbol of MXNet"),
        (lambda m: (m / "net-symbol.json").unlink(), "only a parameter file .* add its symbol"),
        (
            lambda m: [shutil.copy(p, m / p.name.replace("net", "other")) for p in m.glob("net*")],
            "2 models are in it \\(net, other\\); name one of them: .*/net, .*/other",
        ),
    ],
)
def test_what_is_incomplete_says_what_to_add(
    made: Path, tmp_path: Path, spoil: Any, message: str
) -> None:
    model = shutil.copytree(made / "checkpoint", tmp_path / "model")
    spoil(model)
    workspace = tmp_path / "work"
    workspace.mkdir()
    with pytest.raises(ArchiveError, match=message) as caught:
        open_archive(model, workspace)
    assert "\n" not in str(caught.value)
    assert list(workspace.iterdir()) == []


def test_a_shape_that_no_weight_tells_is_asked_for(made: Path, tmp_path: Path) -> None:
    model = shutil.copytree(made / "checkpoint", tmp_path / "model")
    symbol = json.loads((model / "net-symbol.json").read_text())
    # As if the input were reshaped first: weights then say nothing of its axes.
    node = next(n for n in symbol["nodes"] if n["name"] == "fc1")
    node["attrs"]["flatten"] = "False"
    (model / "net-symbol.json").write_text(json.dumps(symbol))
    (tmp_path / "work").mkdir()
    with pytest.raises(ArchiveError, match="the shape of its input 'data'") as caught:
        open_archive(model, tmp_path / "work")
    example = str(caught.value).partition("beside it: ")[2]
    document = json.loads(example)
    document["inputs"][0]["data_shape"] = [0, 3]
    (model / "signature.json").write_text(json.dumps(document))
    assert open_archive(model, tmp_path / "work").family == "model folder"

"""ONNX models behind HTTP: tensors, images, batches, forks, and requests that do not fit."""

from __future__ import annotations

import asyncio
import io
import json
import zlib
from pathlib import Path
from typing import Any

import onnx
import pytest
import pytest_asyncio
from PIL import Image

from mms.archive.manifest import MANIFEST_NAME, Manifest, ModelFormat
from mms.errors import MMSError, ModelLoadFailed, SignatureError
from mms.export.package import export_model
from tests.kit.archives import signature
from tests.kit.onnx_models import (
    FLOAT,
    arithmetic,
    brightness,
    classifier,
    colours,
    identity,
    linear,
    types,
    unsupported,
    write_external,
    write_model,
)
from tests.kit.server import RunningServer, StartServer

shared_loop = pytest.mark.asyncio(loop_scope="module")

#: Inputs of `types` that fit.
TYPES = {"whole": [[1]], "half": [0.5], "flags": [True], "texts": ["a"]}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    output = io.BytesIO()
    image.save(output, kind, **options)
    return output.getvalue()


def plain(colour: Any, mode: str = "RGB", size: tuple[int, int] = (30, 20)) -> bytes:
    return encoded(Image.new(mode, size, colour))


def bomb() -> bytes:
    """Return a small PNG whose header promises 10^10 pixels."""
    image = plain(0, "1", (1, 1))
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + image[24:29]
    return image[:12] + header + zlib.crc32(header).to_bytes(4, "big") + image[33:]


def archive(
    folder: Path, name: str, model: onnx.ModelProto, *labels: str, **options: Any
) -> tuple[Path, dict[str, Any]]:
    """Export a model; return what `start_server` takes, one thread included: it can be forked."""
    source = write_model(folder / name, model, labels=labels, **options)
    return export_model(name, source, None, folder).path, {"threads": 1}


def joined(model: tuple[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Have a model's requests meet in one batch, however slow this machine is."""
    return model[0], {**model[1], "batch_size": 4, "max_batch_delay": 500.0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    text = {**signature([0], names=("text",)), "outputs": signature([0], names=("z",))["inputs"]}
    models = {
        "linear": joined(archive(folder, "linear", linear())),
        "fixed": joined(archive(folder, "fixed", linear(batch=1))),
        "telling": joined(archive(folder, "telling", linear(tells_rows=True))),
        "types": archive(folder, "types", types()),
        "arithmetic": archive(folder, "arithmetic", arithmetic()),
        "classifier": joined(archive(folder, "classifier", classifier())),
        "reviews": archive(
            folder, "reviews", linear(), "a", "b", signature=text, service="reviews"
        ),
        "colours": joined(archive(folder, "colours", colours(), "red", "green", "blue")),
        "brightness": archive(folder, "brightness", brightness(), "white", "black"),
        "shapes": archive(
            folder,
            "shapes",
            brightness(),
            signature={
                **signature([0, 5, 0, 1], "image/png", names=("image",)),
                "outputs": [{"data_name": "shares", "data_shape": [0, 2]}],
            },
            service="shapes",
        ),
        "external": (
            export_model("external", write_external(folder / "external"), None, folder).path,
            {"threads": 1},
        ),
    }
    return await start_shared({"management_port": 0}, **models)


async def ask_all(server: RunningServer, model: str, values: list[Any]) -> list[tuple[int, Any]]:
    return list(await asyncio.gather(*(server.ask(model, value) for value in values)))


async def show(server: RunningServer, model: str, image: bytes) -> tuple[int, Any]:
    """Post an image as it is."""
    url = f"{server.url}/predictions/{model}"
    async with server.session.post(url, data=image, headers={"Content-Type": "image/png"}) as reply:
        return reply.status, await reply.json()


def message(answer: tuple[int, Any]) -> str:
    assert answer[0] == 400, answer
    return str(answer[1]["message"])


@shared_loop
class TestTensors:
    @pytest.mark.parametrize(
        ("model", "asked", "answer"),
        [
            ("linear", [[1, 2, 3]], [[[1, 15]], [[1, 1, 1]]]),
            ("linear", [[1, 2, 3], [0.5, 0, -1]], [[[1, 15], [0.5, 9]], [[1, 1, 1]] * 2]),
            ("linear", {"x": [[True, 0, 0]]}, [[[1, 10]], [[1, 1, 1]]]),
            ("external", [[1, 2, 3]], [[[1, 15]], [[1, 1, 1]]]),
            (
                "types",
                {
                    "whole": [[1, 2**62], [3.0, -4]],
                    "half": [0.5, 65504],
                    "flags": [True, 0],
                    "texts": ["a", "größer"],
                },
                [[[1, 2**62], [3, -4]], [0.5, 65504], [True, False], ["a", "größer"]],
            ),
            (
                "types",
                {"whole": [[]], "half": [], "flags": [], "texts": []},
                [[[]], [], [], []],
            ),
            ("arithmetic", {"left": [[1, 2]], "right": [[3, 4]]}, [[[4, 6]], [[3, 8]]]),
            ("classifier", [[0.5, 2]], [[{"7": 0.5, "8": 2}]]),
        ],
    )
    async def test_an_answer_holds_each_output_as_numbers_texts_or_maps(
        self, server: RunningServer, model: str, asked: Any, answer: Any
    ) -> None:
        assert await server.ask(model, asked) == (200, answer)

    async def test_clients_of_04_are_answered_too(self, server: RunningServer) -> None:
        async with server.session.post(
            f"{server.url}/linear/predict", data={"x": "[[1, 2, 3]]"}
        ) as reply:
            assert await reply.json() == {"prediction": [[[1, 15]], [[1, 1, 1]]]}

    @pytest.mark.parametrize(
        ("model", "asked", "said"),
        [
            ("linear", [[1, 2]], "input 'x' has shape (1, 2), expected (?, 3) (axis 0 is the"),
            ("linear", [1, 2, 3], "input 'x' has shape (3), expected (?, 3)"),
            ("linear", [[1, 2], [3]], "input 'x' is not an array of numbers of shape (?, 3): "),
            ("linear", [["1", "2", "3"]], "array of numbers of shape (?, 3): it contains other"),
            ("linear", [[1, 2, None]], "of numbers of shape (?, 3): it contains other values"),
            ("linear", [[1e300, 0, 0]], "is not an array of numbers of shape (?, 3): overflow"),
            ("fixed", [[1, 2, 3]] * 2, "input 'x' has shape (2, 3), expected (1, 3)"),
            (
                "types",
                {"whole": [[1.5]]},
                "array of integers of shape (?, ?): it contains numbers with a",
            ),
            (
                "types",
                {"whole": [[2**63]]},
                "it contains numbers outside -9223372036854775808 to 922337",
            ),
            (
                "types",
                {"whole": [[2.0**63]]},
                "it contains numbers outside -9223372036854775808 to 922337",
            ),
            ("types", {"whole": [[2**70]]}, "is not an array of integers"),
            (
                "types",
                {"whole": [["1"]]},
                "array of integers of shape (?, ?): it contains other values",
            ),
            (
                "types",
                {"texts": ["a", 1]},
                "is not an array of strings of shape (?): it contains other values",
            ),
            ("types", {"texts": [["a", "b"], ["c"]]}, "it is ragged, with lists of 1 and of 2"),
            ("types", {"texts": [["a"]]}, "input 'texts' has shape (1, 1), expected (?)"),
            ("types", {"half": [1e5]}, "is not an array of numbers of shape (?): overflow"),
            (
                "types",
                {"flags": [2]},
                "is not an array of booleans of shape (?): it contains numbers outside",
            ),
            ("arithmetic", [[1, 2]], "the model has 2 inputs; send a JSON object with the keys"),
            ("arithmetic", {"left": [[1, 2]]}, "input 'right' is missing"),
        ],
    )
    async def test_an_input_that_does_not_fit_is_named(
        self, server: RunningServer, model: str, asked: Any, said: str
    ) -> None:
        if model == "types":
            asked = TYPES | asked
        assert said in message(await server.ask(model, asked))

    async def test_a_service_of_its_own_makes_inputs_and_answers(
        self, server: RunningServer
    ) -> None:
        status, answer = await server.ask("reviews", ["good", "terrible"])
        assert status == 200, answer
        assert (answer["lengths"], answer["count"]) == ([4, 8], 2)
        assert answer["labels"] == ["a", "b"]

    async def test_a_worker_loads_neither_mxnet_nor_threads(self, server: RunningServer) -> None:
        _, answer = await server.ask("reviews", ["good"])
        assert answer["modules"] == ["onnxruntime"]
        assert answer["threads"] == 1
        _, described = await server.manage("GET", "/models/reviews")
        assert described["engine"] == f"onnxruntime {answer['ping']}"
        assert described["service"] == "Reviews"

    async def test_a_model_is_described_as_an_onnx_one(self, server: RunningServer) -> None:
        _, described = await server.manage("GET", "/models/types")
        assert described["archive"]["format"] == "ONNX"
        assert described["archive"]["signature"]["inputs"] == [
            {"data_name": "whole", "data_shape": [0, 0], "data_type": "INT64"},
            {"data_name": "half", "data_shape": [0]},
            {"data_name": "flags", "data_shape": [0], "data_type": "BOOL"},
            {"data_name": "texts", "data_shape": [0], "data_type": "BYTES"},
        ]


@shared_loop
class TestBatches:
    async def test_requests_run_as_one_and_each_gets_its_own_rows(
        self, server: RunningServer
    ) -> None:
        answers = await ask_all(server, "linear", [[[n, 0, n]] for n in range(4)])
        assert answers == [(200, [[[n, 10 + n]], [[1, 1, 1]]]) for n in range(4)]
        _, described = await server.manage("GET", "/models/linear")
        assert described["batching"] == {"joined": True, "reason": ""}

    async def test_a_graph_whose_answers_depend_on_the_batch_runs_one_by_one(
        self, server: RunningServer
    ) -> None:
        answers = await ask_all(server, "telling", [[[n, 0, n]] for n in range(4)])
        assert answers == [(200, [[[n, 10 + n]], [[1, 1, 1]]]) for n in range(4)]
        _, described = await server.manage("GET", "/models/telling")
        assert "returns other outputs" in described["batching"]["reason"]

    async def test_a_map_per_row_is_split_among_the_requests(self, server: RunningServer) -> None:
        rows = [[[n, 1]] * (1 + n % 2) for n in range(4)]
        answers = await ask_all(server, "classifier", rows)
        assert answers == [(200, [[{"7": n, "8": 1}] * (1 + n % 2)]) for n in range(4)]

    async def test_a_graph_with_a_fixed_batch_runs_one_by_one(self, server: RunningServer) -> None:
        answers = await ask_all(server, "fixed", [[[n, 0, n]] for n in range(4)])
        assert answers == [(200, [[[n, 10 + n]], [[1, 1, 1]]]) for n in range(4)]
        servable = server.servable("fixed")
        assert servable.reports[servable.pid].alone_reason

    async def test_images_are_joined(self, server: RunningServer) -> None:
        red, blue = plain((255, 0, 0)), plain((0, 0, 255))
        batches = await server.metric("mms_batch_size_count", model="colours")
        answers = await asyncio.gather(
            *(show(server, "colours", image) for image in (red, blue, red, blue))
        )
        best = [answer[0][0]["class"] for _, answer in answers]
        assert best == ["red", "blue", "red", "blue"]
        assert await server.metric("mms_batch_size_count", model="colours") == batches + 1

    async def test_a_request_that_does_not_fit_fails_alone(self, server: RunningServer) -> None:
        bad, *answers = await ask_all(
            server, "linear", [[[1, 2]], *([[n, 0, n]] for n in range(3))]
        )
        assert "expected (?, 3)" in message(bad)
        assert answers == [(200, [[[n, 10 + n]], [[1, 1, 1]]]) for n in range(3)]


@shared_loop
class TestImages:
    async def test_labels_come_with_their_probabilities_best_first(
        self, server: RunningServer
    ) -> None:
        # ImageNet's mean and deviation, then a softmax, as the documentation says.
        pixels = [255, 102, 0]
        means = zip(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
        powers = [2.718281828459045 ** ((p / 255 - mean) / std) for p, mean, std in means]
        expected = [power / sum(powers) for power in powers]
        status, (answer,) = await show(server, "colours", plain(tuple(pixels)))
        assert status == 200
        assert [row["class"] for row in answer] == ["red", "green", "blue"]
        assert [row["probability"] for row in answer] == pytest.approx(expected, rel=1e-4)

    async def test_probabilities_stay_as_they_are_and_bytes_go_in_as_bytes(
        self, server: RunningServer
    ) -> None:
        status, (answer,) = await show(server, "brightness", plain(51, "L"))
        assert status == 200
        assert [row["class"] for row in answer] == ["black", "white"]
        assert [row["probability"] for row in answer] == pytest.approx([0.8, 0.2], rel=1e-5)

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
    async def test_an_image_of_any_mode_is_read(self, server: RunningServer, mode: str) -> None:
        kind = "TIFF" if mode == "CMYK" else "PNG"
        image = encoded(Image.new("RGB", (9, 9), "white").convert(mode), kind)
        status, (answer,) = await show(server, "brightness", image)
        assert (status, answer[0]["class"]) == (200, "white")

    async def test_an_image_is_resized_where_the_signature_says_and_turned_upright(
        self, server: RunningServer
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        image = encoded(Image.new("L", (40, 20)), "JPEG", exif=exif)
        assert await show(server, "shapes", image) == (200, [1, 5, 20, 1])

    @pytest.mark.parametrize("damage", ["rubbish", "cut short", "bomb"])
    async def test_what_is_no_image_is_refused(self, server: RunningServer, damage: str) -> None:
        if damage == "rubbish":
            image = b"\x00\x01 no image"
        elif damage == "cut short":
            noise = Image.effect_noise((64, 64), 90)
            image = encoded(noise)[:900]
        else:
            image = bomb()
        status, answer = await show(server, "brightness", image)
        assert (status, answer["error"]["code"]) == (400, "undecodable_image")
        said = "max_image_pixels" if damage == "bomb" else "bytes sent are not an image"
        assert said in answer["message"]


# --- Loading -------------------------------------------------------------------------------------


async def test_workers_with_one_thread_are_forked_and_answer(
    start_server: StartServer, tmp_path: Path
) -> None:
    path, settings = archive(tmp_path, "reviews", linear(), "a", service="reviews", signature=TEXT)
    server = await start_server(reviews=(path, {**settings, "workers": 2}))
    servable = server.servable("reviews")
    assert len(servable.processes) == 3
    answers = await ask_all(server, "reviews", [["good"]] * 8)
    assert {status for status, _ in answers} == {200}
    assert {answer["loaded_by"] for _, answer in answers} == {servable.loader_pid}
    assert {answer["threads"] for _, answer in answers} == {1}


async def test_workers_with_more_threads_load_by_themselves_and_answer(
    start_server: StartServer, tmp_path: Path
) -> None:
    path, _ = archive(tmp_path, "reviews", linear(), "a", service="reviews", signature=TEXT)
    server = await start_server(reviews=(path, {"workers": 2, "threads": 2}))
    servable = server.servable("reviews")
    assert servable.loader_pid is None
    assert len(servable.pids) == 2
    answers = await ask_all(server, "reviews", [["good"]] * 8)
    assert {status for status, _ in answers} == {200}
    pids = set(servable.pids)
    assert {answer["loaded_by"] for _, answer in answers} <= pids
    assert all(answer["threads"] > 1 for _, answer in answers)


TEXT = {**signature([0], names=("text",)), "outputs": signature([0], names=("z",))["inputs"]}


def unpacked(folder: Path, signature_document: dict[str, Any] | None = None) -> Path:
    """Add a manifest and a service to a model's folder, as nobody's exporter would."""
    manifest = Manifest("net", ModelFormat.ONNX, "service.py", "signature.json", symbol="net.onnx")
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest.to_document()))
    document = signature_document or {
        **signature([0, 3], names=("x",)),
        "outputs": [{"data_name": "y", "data_shape": [0, 2]}],
    }
    (folder / "signature.json").write_text(json.dumps(document))
    (folder / "service.py").write_text(
        "from mms.model_service.onnx_service import OnnxBaseService\n"
    )
    return folder


async def load_error(start: StartServer, model: Path, **settings: Any) -> MMSError:
    with pytest.raises(MMSError) as caught:
        await start(broken=(model, {"threads": 1, **settings}))
    assert str(caught.value).startswith(f"model 'broken' ({model}): ")
    return caught.value


async def test_a_folder_is_served_and_outputs_that_its_signature_leaves_out_are_not_answered(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(net=unpacked(write_model(tmp_path / "net", linear())))
    assert await server.ask("net", [[1, 2, 3]]) == (200, [[[1, 15]]])


async def test_an_unsupported_operator_is_a_model_that_does_not_load(
    start_server: StartServer, tmp_path: Path
) -> None:
    error = await load_error(start_server, unpacked(write_model(tmp_path / "net", unsupported())))
    assert isinstance(error, ModelLoadFailed)
    assert "No Op registered for Frobnicate" in str(error)
    assert str(error).endswith("export it with standard operators, or upgrade onnxruntime")


async def test_missing_weights_are_a_model_that_does_not_load(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = unpacked(write_external(tmp_path / "net"))
    (folder / "net.onnx.data").unlink()
    error = await load_error(start_server, folder)
    assert isinstance(error, ModelLoadFailed)
    assert "net.onnx.data" in str(error)
    assert "put the files with its weights beside it" in str(error)


async def test_a_signature_that_does_not_fit_the_graph_is_a_model_that_does_not_load(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = unpacked(write_model(tmp_path / "net", linear()), signature([0, 4], names=("x",)))
    error = await load_error(start_server, folder)
    assert isinstance(error, SignatureError)
    assert "the input 'x' has the shape (?, 4), but the graph has (?, 3)" in str(error)


async def test_a_gpu_is_refused_where_onnxruntime_has_none(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = unpacked(write_model(tmp_path / "net", identity(FLOAT, ["N", 3])))
    error = await load_error(start_server, folder, gpu="0")
    assert isinstance(error, ModelLoadFailed)
    assert "is built for the CPU; replace it: " in str(error)

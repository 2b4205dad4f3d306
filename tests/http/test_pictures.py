"""Pictures by declaration: one network as Gluon parameters, as symbol and as ONNX, and mistakes."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from onnx import helper
from PIL import Image

from mms.errors import MMSError
from mms.export.package import export_model
from tests.kit.onnx_models import FLOAT, constant, make_model, value, write_model
from tests.kit.server import RunningServer, StartServer

shared_loop = pytest.mark.asyncio(loop_scope="module")

#: Writes the same weights as Gluon's parameters, as symbol and as arrays, and other symbols.
_WRITE = """
import numpy as np
from mms.engines.imports import import_mxnet
mx = import_mxnet()
from service import make_net
mx.random.seed(7)
net = make_net()
net.initialize(mx.init.Normal(0.2))
net(mx.nd.zeros((1, 3, 32, 32)))
net.hybridize()
net(mx.nd.zeros((1, 3, 32, 32)))
net.save_parameters("gluon.params")
net.export("cnn")
arrays = [p.data().asnumpy() for p in net.collect_params().values()]
np.savez("weights.npz", *arrays)
data = mx.sym.var("data")
last = mx.sym.load("cnn-symbol.json")
whole = last(data=mx.sym.transpose(data, axes=(0, 3, 1, 2)))
whole.save("last-symbol.json")
rows = mx.sym.broadcast_add(
    mx.sym.var("rows"), mx.sym.reshape(mx.sym.mean(data, axis=(1, 2, 3)) / 1000, (-1, 1, 1)) * 0
)
rows.save("rows-symbol.json")
detected = [[[2, 0.6, 4, 0, 8, 2], [0, 0.9, 0, 0, 16, 8], [1, 0.2, 0, 0, 1, 1], [-1] * 6]]
mx.nd.save("rows-0000.params", {"arg:rows": mx.nd.array(detected)})
eye = {"arg:fc_weight": mx.nd.array(np.eye(3))}
for name, axes in (("means", (2, 3)), ("means-last", (1, 2))):
    mean = mx.sym.mean(data, axis=axes)
    mx.sym.FullyConnected(mean, num_hidden=3, no_bias=True, name="fc").save(f"{name}-symbol.json")
    mx.nd.save(f"{name}-0000.params", eye)
"""
_SERVICE = """
from mms.model_service.gluon_vision_service import GluonVisionService
from mxnet.gluon import nn


def make_net():
    net = nn.HybridSequential(prefix="")
    net.add(
        nn.Conv2D(8, 3, padding=1, activation="relu", in_channels=3),
        nn.MaxPool2D(2),
        nn.Conv2D(6, 3, in_channels=8),
        nn.GlobalAvgPool2D(),
        nn.Flatten(),
        nn.Dense(5, in_units=6),
    )
    return net


class CNN(GluonVisionService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        super().__init__(model_name, model_dir, manifest, make_net(), gpu)
"""
LABELS = ["ant", "bee", "cat", "dog", "eel"]
IMAGENET = {
    "resize": 40,
    "crop": 32,
    "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
#: What is declared, and the shape of the input.
DECLARED: dict[str, tuple[list[int], dict[str, Any]]] = {
    "classes": (
        [0, 3, 32, 32],
        {"preprocess": IMAGENET, "postprocess": {"softmax": True, "top_k": 3}},
    ),
    "scores": (
        [1, 3, 32, 32],
        {
            "preprocess": {"color": "BGR", "interpolation": "area", "scale": 0.01},
            "postprocess": {"softmax": False},
        },
    ),
    "embedding": (
        [0, 3, 0, 0],
        {
            "preprocess": {"crop": [24, 40], "mean": 127.5, "std": 128},
            "postprocess": {"normalize": True},
        },
    ),
}
ENGINES = ("gluon", "symbol", "onnx")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


def document(shape: list[int], **declared: Any) -> dict[str, Any]:
    """Return signature.json of a network for pictures."""
    return {
        "inputs": [{"data_name": "data", "data_shape": shape}],
        "input_type": "image/jpeg",
        "outputs": [{"data_name": "scores", "data_shape": [0, 5]}],
        "output_type": "application/json",
        **declared,
    }


def picture(height: int = 50, width: int = 70, kind: str = "PNG", seed: int = 1) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    output = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(output, kind)
    return output.getvalue()


def plain(kind: str = "PNG", size: tuple[int, int] = (20, 12)) -> bytes:
    output = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(output, kind, lossless=True)
    return output.getvalue()


#: What a network of the means answers about `plain`, whose pixels it gets as they are.
MEANS = [
    {"probability": 200.0, "class": "red"},
    {"probability": 100.0, "class": "green"},
    {"probability": 50.0, "class": "blue"},
]


def onnx_of(weights: Path) -> Any:
    """Return the network as an ONNX model of the same weights."""
    names = ("w1", "b1", "w2", "b2", "w3", "b3")
    arrays = dict(zip(names, np.load(weights).values(), strict=True))
    nodes = [
        helper.make_node("Conv", ["data", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["scores"], transB=1),
    ]
    return make_model(
        nodes,
        [value("data", FLOAT, ["N", 3, None, None])],
        [value("scores", FLOAT, ["N", 5])],
        [constant(name, array) for name, array in arrays.items()],
    )


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A folder with the files that MXNet writes; MXNet stays out of this process."""
    trained = folder / "trained"
    trained.mkdir()
    (trained / "service.py").write_text(_SERVICE)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WRITE], cwd=trained, check=True, timeout=300
    )
    return trained


def write(
    target: Path, trained: Path, engine: str, signature: dict[str, Any], labels: list[str]
) -> Path:
    """Write a model's folder; `engine` is one of `ENGINES`, or the name of a symbol."""
    if engine == "onnx":
        return write_model(target, onnx_of(trained / "weights.npz"), signature, labels)
    target.mkdir(parents=True)
    (target / "signature.json").write_text(json.dumps(signature))
    (target / "synset.txt").write_text("\n".join(labels))
    symbol = "cnn" if engine == "symbol" else engine
    parameters = "cnn" if engine == "last" else symbol
    if engine == "gluon":
        shutil.copy(trained / "gluon.params", target / "cnn-0000.params")
        shutil.copy(trained / "service.py", target / "service.py")
        return target
    shutil.copy(trained / f"{symbol}-symbol.json", target / "net-symbol.json")
    shutil.copy(trained / f"{parameters}-0000.params", target / "net-0000.params")
    return target


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, trained: Path, start_shared: StartServer) -> RunningServer:
    models: dict[str, Any] = {}
    for name, (shape, declared) in DECLARED.items():
        for engine in ENGINES:
            key = f"{name}-{engine}"
            signature = document(shape, **declared)
            source = write(folder / key, trained, engine, signature, LABELS)
            path = export_model(key, source, None, folder).path
            settings = {"batch_size": 4, "max_batch_delay": 200.0} if name == "classes" else {}
            models[key] = (path, {"threads": 1, **settings})
    for name, shape in (("gluon", [0, 3, 32, 32]), ("gluon-any", [0, 3, 0, 0])):
        source = write(folder / name, trained, "gluon", document(shape), LABELS)
        models[name] = (export_model(name, source, None, folder).path, {"threads": 1})
    colours = ["red", "green", "blue"]
    for name, symbol, shape, declared in (
        ("any", "means", [0, 3, 0, 0], {}),
        ("last", "means-last", [1, 8, 8, 3], {}),
        ("fixed", "means", [0, 3, 8, 8], {}),
        ("asis", "means", [0, 3, 0, 0], {"postprocess": {}}),
        ("found", "rows", [0, 3, 8, 16], {"postprocess": {"boxes": {"coordinates": "pixels"}}}),
        ("boxed", "means-last", [1, 8, 8, 0], {"preprocess": {"layout": "NHWC"}}),
    ):
        signature = document(shape, **declared)
        source = write(folder / name, trained, symbol, signature, colours)
        models[name] = (export_model(name, source, None, folder).path, {})
    return await start_shared({}, **models)


async def show(server: RunningServer, model: str, image: bytes) -> Any:
    url = f"{server.url}/predictions/{model}"
    async with server.session.post(url, data=image, headers={"Content-Type": "image/png"}) as reply:
        answer = await reply.json()
        assert reply.status == 200, answer
        return answer


def numbers(answer: Any) -> list[float]:
    """Return the numbers of an answer, in order."""
    if isinstance(answer, list):
        return [number for item in answer for number in numbers(item)]
    return (
        [answer]
        if isinstance(answer, float)
        else numbers([*answer.values()])
        if isinstance(answer, dict)
        else []
    )


@shared_loop
class TestEngines:
    @pytest.mark.parametrize("name", DECLARED)
    async def test_one_network_answers_alike_on_every_engine(
        self, server: RunningServer, name: str
    ) -> None:
        pictures = [
            picture(),
            picture(90, 33, "JPEG", seed=2),
            picture(32, 32, "WEBP", seed=3),
        ]
        answers = {
            engine: await asyncio.gather(
                *(show(server, f"{name}-{engine}", image) for image in pictures)
            )
            for engine in ENGINES
        }
        expected = answers["onnx"]
        assert len({str(answer) for answer in expected}) == len(pictures)
        for answer in answers.values():
            assert numbers(answer) == pytest.approx(numbers(expected), abs=1e-5)
            if name != "embedding":
                assert [[item["class"] for item in best] for [best] in answer] == [
                    [item["class"] for item in best] for [best] in expected
                ]

    @pytest.mark.parametrize("engine", ENGINES)
    async def test_only_a_declared_softmax_makes_probabilities(
        self, server: RunningServer, engine: str
    ) -> None:
        [best] = await show(server, f"classes-{engine}", picture())
        assert [set(item) for item in best] == [{"probability", "class"}] * 3
        [best] = await show(server, f"scores-{engine}", picture())
        assert [set(item) for item in best] == [{"score", "class"}] * 5
        [[row]] = await show(server, f"embedding-{engine}", picture())
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("size", [(20, 12), (8, 8), (300, 5)])
    async def test_a_picture_keeps_its_size_where_the_signature_leaves_it_free(
        self, server: RunningServer, size: tuple[int, int]
    ) -> None:
        # 0.4 takes 0 for 1 and shrinks every picture to one pixel.
        assert await show(server, "any", plain(size=size)) == [MEANS]

    async def test_a_gluon_network_s_pictures_may_keep_their_size_too(
        self, server: RunningServer
    ) -> None:
        small = picture(32, 32)
        fixed = await show(server, "gluon", small)
        assert await show(server, "gluon-any", small) == fixed
        assert await show(server, "gluon-any", picture(64, 40)) != fixed
        # Without a declaration a Gluon service has a softmax of its own, as in 0.4.
        assert sum(item["probability"] for item in fixed[0]) == pytest.approx(1, abs=1e-5)

    async def test_channels_may_come_last(self, server: RunningServer) -> None:
        # 0.4 takes the axes for channels first, and fails.
        assert await show(server, "last", plain()) == [MEANS]
        assert await show(server, "boxed", plain()) == [MEANS]

    async def test_an_empty_postprocess_leaves_the_outputs(self, server: RunningServer) -> None:
        assert await show(server, "asis", plain()) == [[[200.0, 100.0, 50.0]]]

    async def test_rows_of_a_detector_become_objects(self, server: RunningServer) -> None:
        objects = [
            {"class": "red", "score": 0.9, "box": [0.0, 0.0, 1.0, 1.0]},
            {"class": "blue", "score": 0.6, "box": [0.25, 0.0, 0.5, 0.25]},
        ]
        [found] = await show(server, "found", plain())
        assert [{**item, "score": pytest.approx(item["score"])} for item in found] == objects

    @pytest.mark.parametrize("kind", FORMATS)
    async def test_every_promised_format_is_decoded(self, server: RunningServer, kind: str) -> None:
        [best] = await show(server, "fixed", plain(kind))
        exact = [item["probability"] for item in MEANS]
        # JPEG loses a little.
        assert [item["probability"] for item in best] == pytest.approx(exact, abs=2)

    async def test_the_message_on_what_is_no_picture_names_those_formats(
        self, server: RunningServer
    ) -> None:
        url = f"{server.url}/predictions/fixed"
        headers = {"Content-Type": "image/png"}
        async with server.session.post(url, data=b"nonsense", headers=headers) as reply:
            assert reply.status == 400
            message = (await reply.json())["message"]
        listed = message.split("(")[-1].split(")")[0].replace("or ", "").split(", ")
        assert {kind.upper() for kind in listed if kind.isalpha()} <= {*FORMATS}, message


@pytest.mark.parametrize(
    ("engine", "signature", "labels", "message"),
    [
        (
            "gluon",
            document([3, 32, 32]),
            LABELS,
            "the data_shape [3, 32, 32], which cannot hold a picture; write [0, 3, 32, 32]",
        ),
        (
            "symbol",
            document([0, 32, 32]),
            LABELS,
            "the data_shape [0, 32, 32], which cannot hold a picture; write [0, 1, 32, 32]",
        ),
        (
            "symbol",
            document([0, 3, 32, 32], postprocess={"softmax": True}),
            LABELS[:4],
            "has 5 classes, but synset.txt names only 4",
        ),
        (
            "onnx",
            document([0, 3, 32, 32], postprocess={"softmax": True}),
            LABELS[:4],
            "has 5 classes, but synset.txt names only 4",
        ),
        (
            "symbol",
            document([0, 3, 32, 32], preprocess={"resize": 40}),
            LABELS,
            'add "crop": [32, 32]',
        ),
        (
            "symbol",
            document([0, 3, 32, 32], postprocess={"boxes": True}),
            LABELS,
            "postprocess declares boxes, but the outputs have the shapes (1, 5)",
        ),
    ],
)
async def test_what_cannot_be_done_ends_the_start_with_its_remedy(
    tmp_path: Path,
    trained: Path,
    start_server: StartServer,
    engine: str,
    signature: dict[str, Any],
    labels: list[str],
    message: str,
) -> None:
    """Unpacked, as no exporter would have written it."""
    good = {**signature, "inputs": document([0, 3, 32, 32])["inputs"]}
    good.pop("preprocess", None)
    good.pop("postprocess", None)
    source = write(tmp_path / "model", trained, engine, good, LABELS)
    path = export_model("wrong", source, None, tmp_path).path
    folder = tmp_path / "unpacked"
    shutil.unpack_archive(path, folder, "zip")
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest.pop("Files", None)
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "signature.json").write_text(json.dumps(signature))
    (folder / "synset.txt").write_text("\n".join(labels))
    with pytest.raises(MMSError) as refused:
        await start_server(None, wrong=folder)
    assert message in str(refused.value)


def check(folder: Path, source: Path) -> tuple[int, str]:
    """Export with --check; return the exit status, and what is written to both streams."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mms.cli.export",
            "--model-name",
            "m",
            "--check",
            "--force",
            f"--model-path={source}",
            f"--export-path={folder}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


NO_PROBABILITIES = 'the numbers that the answer calls "probability" are none (the first is 200): '


@pytest.mark.parametrize(
    ("declared", "is_warned"),
    [({}, True), ({"postprocess": {"softmax": True}}, False), ({"postprocess": {}}, False)],
)
def test_check_warns_once_of_scores_that_are_called_probabilities(
    tmp_path: Path, trained: Path, declared: dict[str, Any], is_warned: bool
) -> None:
    signature = document([0, 3, 8, 8], **declared)
    source = write(tmp_path / "source", trained, "means", signature, ["red", "green", "blue"])
    (source / "sample.png").write_bytes(plain())
    status, text = check(tmp_path, source)
    assert status == 0, text
    assert text.count(NO_PROBABILITIES) == is_warned
    assert not is_warned or 'declare "postprocess": {"softmax": true}' in text


def test_check_names_the_sample_of_a_picture_model(tmp_path: Path, trained: Path) -> None:
    signature = document([0, 3, 32, 32], postprocess={"softmax": True})
    source = write(tmp_path / "source", trained, "symbol", signature, LABELS)
    status, text = check(tmp_path, source)
    assert status == 0, text
    assert "it has no sample request (sample.jpg) to run" in text
    assert "probability" not in text


def test_check_warns_of_a_declaration_that_the_service_does_not_follow(
    tmp_path: Path, trained: Path
) -> None:
    signature = document([0, 3, 32, 32], preprocess=IMAGENET, postprocess={"softmax": True})
    source = write(tmp_path / "source", trained, "gluon", signature, LABELS)
    (source / "service.py").write_text(
        _SERVICE
        + """
    def _preprocess(self, data):
        import mxnet as mx
        return [mx.nd.zeros((1, 3, 32, 32))]

    def _postprocess(self, data):
        return super()._postprocess(data)
"""
    )
    status, text = check(tmp_path, source)
    assert status == 0, text
    assert "signature.json declares preprocess, but the service does not follow it" in text
    assert "signature.json declares postprocess" not in text


def test_a_failed_check_leaves_no_archive(tmp_path: Path, trained: Path) -> None:
    source = write(tmp_path / "source", trained, "symbol", document([0, 3, 32, 32]), LABELS)
    (source / "sample.png").write_bytes(b"no picture")
    status, text = check(tmp_path, source)
    assert status != 0
    assert "sample request 'sample.png' failed" in text
    assert [path.name for path in tmp_path.iterdir()] == ["source"]

"""Pictures that lie, sent to a server: nobody sees another client's, and nobody is made to wait."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from mms.engines.image_header import FORMATS
from mms.export.package import export_model
from tests.kit.archives import make_folder, make_mar, signature
from tests.kit.onnx_models import colours, write_model
from tests.kit.server import RunningServer, StartServer
from tests.security.pictures import (
    every_format,
    gif_claiming,
    jpeg_claiming,
    noise,
    plain,
    png,
    save,
    webp_claiming,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICES = Path(__file__).parent / "services"
_COLOUR = (200, 100, 50)
#: What no picture of an attacker holds.
_CANARY = (11, 222, 33)
_LABELS = "red\ngreen\nblue\n"

#: Means of the channels, as a Symbol that both kinds of default services run.
_MEANS = """
import sys
from mms.engines.imports import import_mxnet
mx = import_mxnet()
means = mx.sym.mean(mx.sym.var("data"), axis=(2, 3))
mx.sym.FullyConnected(means, num_hidden=3, no_bias=True, name="fc").save("net-symbol.json")
mx.nd.save("net-0000.params", {"arg:fc_weight": mx.nd.one_hot(mx.nd.arange(3), 3)})
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    image = signature([0, 3, 8, 8], "image/jpeg", names=("picture",))
    image["outputs"] = [{"data_name": "fc_output", "data_shape": [0, 3]}]
    models = {
        "shown": make_folder(folder / "shown", (SERVICES / "shown.py").read_text(), image),
        "decoding": make_folder(folder / "decoding", (SERVICES / "decoding.py").read_text()),
        "handled": make_mar(folder, "imdecode"),
        "symbol": symbol_archive(folder, image),
        "gluon": gluon_archive(folder, image),
        "onnx": (onnx_archive(folder), {"threads": 1}),
    }
    return await start_shared({"max_image_pixels": 1_000_000}, **models)


def onnx_archive(folder: Path) -> Path:
    source = write_model(folder / "onnx", colours(), labels=_LABELS.split())
    return export_model("onnx", source, None, folder).path


def symbol_archive(folder: Path, document: dict[str, Any]) -> Path:
    source = folder / "symbol"
    source.mkdir()
    subprocess.run([sys.executable, "-c", _MEANS], cwd=source, check=True)
    (source / "signature.json").write_text(
        json.dumps({**document, "inputs": [{"data_name": "data", "data_shape": [0, 3, 8, 8]}]})
    )
    (source / "synset.txt").write_text(_LABELS)
    return export_model("symbol", source, None, folder).path


def gluon_archive(folder: Path, document: dict[str, Any]) -> Path:
    made = make_folder(folder / "gluon", (SERVICES / "means.py").read_text(), document)
    (made / "synset.txt").write_text(_LABELS)
    return made


async def show(server: RunningServer, model: str, data: bytes) -> tuple[int, Any]:
    url = f"{server.url}/predictions/{model}"
    headers = {"Content-Type": "image/jpeg"}
    async with server.session.post(url, data=data, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def shown(server: RunningServer, data: bytes) -> Any:
    """Return the pixels that a service saw, or the message of the 400."""
    status, answer = await show(server, "shown", data)
    if status == 200:
        (shape, encoded) = answer
        return np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(shape)
    assert (status, answer["error"]["code"]) == (400, "undecodable_image"), answer
    return answer["error"]["message"]


class TestV01Damage:
    @pytest.mark.parametrize("name", FORMATS)
    async def test_v01_no_truncation_or_damage_shows_another_clients_picture(
        self, server: RunningServer, name: str
    ) -> None:
        victim = save(plain(_CANARY), "PNG")
        whole = every_format(plain(_COLOUR))[name]
        own = await shown(server, whole)
        cut = [whole[:length] for length in range(1, min(len(whole), 200))]
        hurt = [data[:3] + b"\xee" + data[4:] for data in cut[20:40]]
        for number, data in enumerate([*cut, *hurt]):
            if number % 20 == 0:
                assert (await shown(server, victim) == _CANARY).all()
            seen = await shown(server, data)
            if isinstance(seen, str):
                assert "input 'picture': " in seen
            else:
                # What is missing is a checksum or the end mark.
                assert np.array_equal(seen, own)

    async def test_v01_the_37_bytes_after_a_picture_of_their_size_are_a_400(
        self, server: RunningServer
    ) -> None:
        for _ in range(20):
            assert (await shown(server, save(plain(_CANARY), "PNG")) == _CANARY).all()
            data = bytearray(png(64, 64, pixels=b"")[:37])
            data[4:8] = b"XXXX"
            seen = await shown(server, bytes(data))
            assert "the 37 bytes sent are not an image" in seen

    @pytest.mark.parametrize(
        "way",
        ["read", "imdecode", "img", "taken early", "operator", "numpy", "file", "iterator", "out"],
    )
    async def test_v01_a_service_gets_our_decoder_however_it_calls_mxnets(
        self, server: RunningServer, way: str
    ) -> None:
        async def ask(data: bytes) -> tuple[int, Any]:
            return await server.ask("decoding", [way, base64.b64encode(data).decode()])

        victim = noise(64)
        status, answer = await ask(save(victim, "PNG"))
        assert (status, answer[0]) == (200, [64, 64, 3]), answer
        assert base64.b64decode(answer[1]) == victim.tobytes()
        # Which MXNet has not: so it is ours that decoded.
        status, answer = await ask(save(victim, "WEBP", lossless=True))
        assert (status, answer[0]) == (200, [64, 64, 3]), answer
        data = bytearray(png(64, 64, pixels=b"")[:37])
        data[4:8] = b"XXXX"
        for bad in (bytes(data), jpeg_claiming(64, 64)[:160], jpeg_claiming(5000, 5000)):
            status, answer = await ask(bad)
            if way == "iterator":
                # Whose own code makes a RuntimeError of any.
                assert status == 500
            else:
                assert (status, answer["error"]["code"]) == (400, "undecodable_image")

    async def test_v01_a_service_that_catches_mxnets_error_catches_ours(
        self, server: RunningServer
    ) -> None:
        bad = base64.b64encode(b"no picture").decode()
        status, answer = await server.ask("decoding", ["caught", bad])
        assert (status, answer[0]) == (200, [1, 1, 3])

    async def test_v01_a_handler_that_imports_mxnet_itself_gets_our_decoder(
        self, server: RunningServer
    ) -> None:
        url = f"{server.url}/predictions/handled"
        picture = noise(16)
        async with server.session.post(url, data=save(picture, "WEBP", lossless=True)) as response:
            assert base64.b64decode(await response.read()) == picture.tobytes()


class TestV03Bombs:
    @pytest.mark.parametrize(
        ("data", "size"),
        [
            (jpeg_claiming(32000, 32000), "32000 x 32000"),
            (jpeg_claiming(32000, 32000, progressive=True), "32000 x 32000"),
            (png(30000, 30000, pixels=b""), "30000 x 30000"),
            (gif_claiming(65535, 65535), "65535 x 65535"),
            (webp_claiming(16384, 16384, b"VP8L"), "16384 x 16384"),
        ],
        ids=["jpeg", "progressive", "png", "gif", "webp"],
    )
    @pytest.mark.parametrize("model", ["shown", "symbol", "gluon", "onnx"])
    async def test_v03_a_bomb_is_a_400_that_names_the_input_the_size_and_the_option(
        self, server: RunningServer, model: str, data: bytes, size: str
    ) -> None:
        before = pids(server, model)
        status, answer = await show(server, model, data)
        assert (status, answer["error"]["code"]) == (400, "undecodable_image")
        message = answer["error"]["message"]
        assert message.startswith("input '")
        assert size in message
        assert "max_image_pixels (1000000)" in message
        assert "--max-image-pixels" in message
        status, _ = await show(server, model, save(plain(), "JPEG"))
        assert status == 200
        assert pids(server, model) == before
        assert await server.metric("mms_worker_restarts_total", model=model) == 0

    async def test_v03_good_pictures_beside_bombs_are_answered(self, server: RunningServer) -> None:
        good = save(plain(_COLOUR), "PNG")
        bomb = jpeg_claiming(32000, 32000)
        seen = await asyncio.gather(*(shown(server, data) for data in [good, bomb] * 20))
        assert all((pixels == _COLOUR).all() for pixels in seen[::2])
        assert all(isinstance(message, str) for message in seen[1::2])


def pids(server: RunningServer, model: str) -> list[int]:
    return sorted(server.servable(model).pids)


class TestFormats:
    @pytest.mark.parametrize("model", ["symbol", "gluon", "onnx"])
    @pytest.mark.parametrize("name", FORMATS)
    async def test_each_format_of_the_messages_is_read_by_each_default_service(
        self, server: RunningServer, name: str, model: str
    ) -> None:
        status, (answer,) = await show(server, model, every_format(plain(_COLOUR))[name])
        assert status == 200
        assert [row["class"] for row in answer] == ["red", "green", "blue"]

    async def test_the_message_lists_these_formats(self, server: RunningServer) -> None:
        message = await shown(server, b"no picture")
        assert f"({', '.join(FORMATS[:-1])} or {FORMATS[-1]})" in message

"""SageMaker's default functions, on checkpoints that the container saved, without a script."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from mms.archive.artefacts.sagemaker import recognise
from mms.archive.members import UnpackLimits
from mms.archive.tar import unpack_tar
from mms.errors import ModelLoadFailed
from tests.artefacts.sagemaker import (
    bare_predictions,
    lay_out,
    pack,
    write_checkpoint,
    write_script,
)
from tests.kit.server import RunningServer, StartServer, running_servers

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
ROWS = np.random.default_rng(3).normal(size=(5, 2, 3)).astype(np.float32)
_BLOCK = """
import mxnet as mx

def model_fn(model_dir):
    net = mx.gluon.nn.Dense(2, use_bias=False)
    net.initialize(mx.init.One())
    return net
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    saved = write_checkpoint(folder / "saved")
    # As its container unpacks it: out of a model.tar.gz.
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    unpack_tar(pack(saved, folder / "model.tar.gz"), unpacked, UnpackLimits())
    plain = write_checkpoint(folder / "plain", head="none")
    block = write_script(folder / "block", _BLOCK)
    return await start_shared(
        {"debug_errors": "on"},
        module=lay_out(recognise, unpacked, folder / "module"),
        plain=lay_out(recognise, plain, folder / "laid_plain"),
        block=lay_out(recognise, block, folder / "laid_block"),
    )


@pytest.fixture(scope="module")
def expected(folder: Path, shared: RunningServer) -> NDArray[Any]:
    return bare_predictions(folder / "saved", ROWS, folder / "bare")


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def csv(array: NDArray[Any]) -> bytes:
    return "".join(",".join(map(repr, row)) + "\n" for row in array.tolist()).encode()


def read(body: bytes, type_: str) -> NDArray[Any]:
    if type_ == NPY:
        return np.asarray(np.load(io.BytesIO(body)))
    if type_ == CSV:
        return np.loadtxt(io.StringIO(body.decode()), delimiter=",", ndmin=2)
    return np.array(json.loads(body))


async def ask(
    server: RunningServer, model: str, body: bytes, type_: str | None = JSON, accept: str = ""
) -> tuple[int, str, bytes]:
    headers = {
        **({"Content-Type": type_} if type_ else {}),
        **({"Accept": accept} if accept else {}),
    }
    url = f"{server.url}/invocations?model_name={model}"
    # aiohttp accepts */* and sends octet-stream unless told otherwise.
    skip = None if type_ else ["Content-Type"]
    async with server.session.post(
        url, data=body, headers=headers, skip_auto_headers=skip
    ) as response:
        return response.status, response.headers.get("Content-Type", ""), await response.read()


async def refusal(server: RunningServer, *arguments: Any, **named: Any) -> tuple[int, str]:
    status, _, body = await ask(server, *arguments, **named)
    return status, json.loads(body)["message"]


class TestModules:
    @pytest.mark.parametrize("accept", [JSON, CSV, NPY])
    @pytest.mark.parametrize("type_", [JSON, CSV, NPY])
    async def test_each_format_goes_in_and_out_as_the_bare_engine_answers(
        self, server: RunningServer, expected: NDArray[Any], type_: str, accept: str
    ) -> None:
        bodies = {
            JSON: json.dumps(ROWS.tolist()).encode(),
            # A CSV is flat; the model's shape says how a row is arranged.
            CSV: csv(ROWS.reshape(5, 6)),
            NPY: npy(ROWS),
        }
        status, got, body = await ask(server, "module", bodies[type_], type_, accept)
        assert (status, got) == (200, accept)
        np.testing.assert_allclose(read(body, accept), expected, atol=1e-5)

    async def test_single_precision_is_written_in_all_its_digits(
        self, server: RunningServer
    ) -> None:
        # The container writes Python's floats: [[4.9999918937683105]] in its own test.
        _, _, body = await ask(server, "plain", json.dumps(ROWS[:1].tolist()).encode())
        values = json.loads(body)[0]
        assert [float(np.float32(value)) for value in values] == values
        _, _, body = await ask(server, "plain", npy(ROWS[:1]), NPY, NPY)
        assert read(body, NPY).dtype == np.float64

    @pytest.mark.parametrize(
        ("accept", "type_"),
        [
            ("", JSON),
            ("*/*", JSON),
            ("text/html, text/csv, application/json", CSV),
            ("application/json;q=0.5, application/x-npy", NPY),
            ("text/*", CSV),
            ("text/html, */*;q=0.1", JSON),
            ("TEXT/CSV", CSV),
        ],
    )
    async def test_the_first_type_that_client_and_model_share_is_answered(
        self, server: RunningServer, accept: str, type_: str
    ) -> None:
        status, got, body = await ask(server, "plain", npy(ROWS), NPY, accept)
        assert (status, got) == (200, type_)
        assert read(body, type_).shape == (5, 3)

    @pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*"])
    async def test_a_type_that_is_not_there_is_a_406(
        self, server: RunningServer, accept: str
    ) -> None:
        # The container answers 500, with its traceback.
        status, message = await refusal(server, "plain", npy(ROWS), NPY, accept)
        assert status == 406
        assert "the answer can be application/json, text/csv, application/x-npy" in message

    @pytest.mark.parametrize("type_", ["text/html", "image/jpeg", "application/x-npz"])
    async def test_a_body_of_another_type_is_a_415(self, server: RunningServer, type_: str) -> None:
        # The container answers 500, with its traceback.
        status, message = await refusal(server, "plain", b"x", type_)
        assert status == 415
        assert f"reads {JSON}, {CSV}, {NPY}, not '{type_}'" in message

    async def test_types_may_have_parameters_and_a_body_without_one_is_json(
        self, server: RunningServer
    ) -> None:
        body = json.dumps(ROWS.tolist()).encode()
        for type_ in ("application/json; charset=utf-8", None):
            assert (await ask(server, "plain", body, type_))[0] == 200

    @pytest.mark.parametrize(
        ("body", "type_", "message"),
        [
            (b"[[1, 2], [3]]", JSON, "its lists differ in length"),
            (b'[["a"]]', JSON, "must be an array of numbers"),
            (b'{"instances": [1]}', JSON, "must be an array of numbers"),
            (b"5", JSON, "must be an array of numbers"),
            (b"[[1", JSON, "JSON"),
            (b"[]", JSON, "the body has no rows"),
            (b"[1, 2, 3, 4, 5, 6]", JSON, "has the shape (), the model takes (2, 3)"),
            (b"[[[1, 2, 3, 4]]]", JSON, "has the shape (1, 4), the model takes (2, 3)"),
            (b"1,2,3,4,5", CSV, "the CSV has 5 numbers, a row of 'data' takes 6"),
            (b"1,2,3,4,5,x", CSV, "line 1 of the CSV is not a row of numbers"),
            (b"1,2\n1,2,3,4", CSV, "line 2 of the CSV has 4 columns, the first one 2"),
            (b"# only this\n\n", CSV, "the CSV has no rows"),
            (b"\xff,1", CSV, "UTF-8"),
            (b"", NPY, "not a .npy file"),
            (b"\x93NUMPY\x01\x00\xff\xff{", NPY, "not a .npy file"),
            (npy(ROWS)[:-1], NPY, "has 119 bytes of data, its header claims 120"),
            (npy(ROWS) + b"1", NPY, "has 121 bytes of data"),
            (npy(ROWS).replace(b"(5,", b"(" + b"9" * 17 + b","), NPY, "header"),
            (npy(np.array([None])), NPY, "holds object, not numbers"),
            (npy(np.array(["a"])), NPY, "holds <U1, not numbers"),
        ],
    )
    async def test_what_is_wrong_with_a_body_is_said_with_400(
        self, server: RunningServer, body: bytes, type_: str, message: str
    ) -> None:
        for _ in range(2):
            status, got = await refusal(server, "module", body, type_)
            assert status == 400
            assert message in got
        # The Module is the same afterwards; in the container, no CSV is answered from then on.
        for good, good_type in ((csv(ROWS.reshape(5, 6)), CSV), (npy(ROWS), NPY)):
            assert (await ask(server, "module", good, good_type))[0] == 200

    async def test_rows_of_another_shape_are_the_networks_matter(
        self, server: RunningServer
    ) -> None:
        # MXNet binds a Module anew; this one flattens each row. The toolkit's own test of a
        # digit recogniser sends rows of one axis less than model-shapes.json has.
        _, _, flat = await ask(server, "module", npy(ROWS.reshape(5, 6)), NPY)
        _, _, shaped = await ask(server, "module", npy(ROWS), NPY)
        np.testing.assert_allclose(read(flat, JSON), read(shaped, JSON), atol=1e-5)

    async def test_one_row_and_an_empty_field_of_csv(self, server: RunningServer) -> None:
        # NumPy's genfromtxt, which the container uses, reads an empty field as NaN.
        _, _, body = await ask(server, "plain", b"1,2,3,4,5,6 # comment\n", CSV)
        assert read(body, JSON).shape == (1, 3)
        _, _, body = await ask(server, "plain", b"1,,3,4,5,6", CSV)
        assert json.loads(body) == [[None] * 3]

    async def test_a_form_is_refused(self, server: RunningServer) -> None:
        url = f"{server.url}/invocations?model_name=plain"
        async with server.session.post(url, data={"data": "[1]"}) as response:
            assert response.status == 400
            assert "not as a form" in (await response.json())["message"]

    async def test_tensors_of_the_open_inference_protocol(
        self, server: RunningServer, expected: NDArray[Any]
    ) -> None:
        tensor = {"name": "data", "shape": [5, 2, 3], "datatype": "FP32", "data": ROWS.tolist()}
        url = f"{server.url}/v2/models/module/infer"
        async with server.session.post(url, json={"inputs": [tensor]}) as response:
            (output,) = (await response.json())["outputs"]
        assert (output["datatype"], output["shape"]) == ("FP32", [5, 3])
        np.testing.assert_allclose(np.reshape(output["data"], (5, 3)), expected, atol=1e-5)


class TestBlocks:
    async def test_json_and_npy_but_no_csv(self, server: RunningServer) -> None:
        # The container's functions for Blocks read no CSV, either.
        status, _, body = await ask(server, "block", b"[[1, 2], [3, 4]]")
        assert (status, json.loads(body)) == (200, [[3, 3], [7, 7]])
        _, _, body = await ask(server, "block", npy(np.array([[1, 2]])), NPY, NPY)
        assert read(body, NPY).tolist() == [[3, 3]]
        assert (await refusal(server, "block", b"1,2", CSV))[0] == 415
        assert (await refusal(server, "block", b"[[1, 2]]", JSON, CSV))[0] == 406


class TestVariables:
    async def test_rows_of_a_forward_pass_and_the_default_type(
        self,
        folder: Path,
        tmp_path: Path,
        expected: NDArray[Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("SAGEMAKER_DEFAULT_MODEL_FIRST_DIMENSION_SIZE", "4")
        monkeypatch.setenv("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv")
        padded = lay_out(recognise, folder / "saved", tmp_path / "padded")
        async with running_servers(tmp_path) as start:
            server = await start(padded=padded)
            # Fewer rows than the four, as many, and more: no row is lost, none is added.
            for count in (1, 4, 5):
                status, type_, body = await ask(server, "padded", npy(ROWS[:count]), NPY, "*/*")
                assert (status, type_) == (200, CSV)
                np.testing.assert_allclose(read(body, CSV), expected[:count], atol=1e-5)
            assert (await ask(server, "padded", npy(ROWS), NPY, "text/html, */*"))[1] == CSV

    async def test_a_size_that_is_none(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SAGEMAKER_DEFAULT_MODEL_FIRST_DIMENSION_SIZE", "many")
        many = lay_out(recognise, folder / "saved", tmp_path / "many")
        async with running_servers(tmp_path) as start:
            with pytest.raises(ModelLoadFailed, match=r"FIRST_DIMENSION_SIZE must be .*'many'"):
                await start(many=many)


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model-shapes.json": b"{"}, r"model-shapes\.json must be a list such as"),
            ({"model-shapes.json": b"[]"}, "names no input"),
            ({"model-shapes.json": b'[{"name": "x", "shape": [1]}]'}, "has 'data', which is nei"),
            ({"model-shapes.json": b'[{"name": "data"}]'}, "must be a list such as"),
        ],
    )
    async def test_files_that_do_not_fit_are_named(
        self,
        folder: Path,
        tmp_path: Path,
        change: dict[str, bytes],
        message: str,
    ) -> None:
        source = tmp_path / "source"
        source.mkdir()
        for file in (folder / "saved").iterdir():
            (source / file.name).write_bytes(change.get(file.name, file.read_bytes()))
        broken = lay_out(recognise, source, tmp_path / "laid")
        async with running_servers(tmp_path) as start:
            with pytest.raises(ModelLoadFailed, match=message):
                await start(broken=broken)

    async def test_parameters_of_another_network_are_refused(
        self, folder: Path, tmp_path: Path
    ) -> None:
        # The container runs what is missing with whatever is in memory.
        source = tmp_path / "source"
        source.mkdir()
        for file in (folder / "saved").iterdir():
            text = file.read_bytes()
            if file.name == "model-symbol.json":
                text = text.replace(b"hidden_weight", b"other_weight")
            (source / file.name).write_bytes(text)
        other = lay_out(recognise, source, tmp_path / "laid")
        async with running_servers(tmp_path) as start:
            with pytest.raises(ModelLoadFailed, match=r"has 'other_weight', which is neither"):
                await start(other=other)

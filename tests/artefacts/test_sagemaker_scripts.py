"""Scripts of SageMaker's MXNet container: how their functions are called, what is answered."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from mms.archive.artefacts.sagemaker import recognise
from mms.errors import ModelLoadFailed
from tests.artefacts.sagemaker import lay_out, write_checkpoint, write_script
from tests.kit.server import RunningServer, StartServer, running_servers

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: transform_fn beside a model that is no network, as in the toolkit's own tests.
ECHO = """
class Dummy:
    pass

def model_fn(model_dir):
    return Dummy()

def transform_fn(model, data, content_type, accept):
    kind = type(data).__name__
    text = data if isinstance(data, str) else data.decode("latin-1")
    return repr([type(model).__name__, kind, text, content_type, accept]), "text/x-echo"
"""
#: All four, on a model of the user's own.
FOUR = """
import json

def model_fn(model_dir):
    return {"factor": 3}

def input_fn(data, content_type):
    return json.loads(data)

def predict_fn(data, model):
    return [model["factor"] * value for value in data]

def output_fn(prediction, accept):
    return json.dumps({"of": prediction, "accept": accept})
"""
#: Each function with the context that later toolkits hand on, under any name.
CONTEXT = """
import json

def pre_model_fn(model_dir, context):
    context.told = ["pre_model"]

def model_fn(model_dir, context):
    context.told.append("model")
    return context.told

def model_warmup_fn(model_dir, model, context):
    model.append("warm-up")

def input_fn(data, content_type, anything):
    return json.loads(data)

def predict_fn(data, model, context=None, device="cpu"):
    context.set_response_content_type(0, "text/x-own")
    return [data, model, device, context.get_request_header(0, "X-Mark")]

def output_fn(prediction, accept, context):
    context.set_response_header(0, "X-Id", context.get_request_id(0))
    return json.dumps(prediction)
"""
#: The default predict_fn of a Module, between functions of the user's.
AROUND = """
import json
import mxnet as mx

def input_fn(data, content_type, model):
    (name, shape), = [entry[:2] for entry in model.data_shapes]
    rows = mx.nd.array(json.loads(data)["rows"]).reshape((-1, *shape[1:]))
    return mx.io.NDArrayIter(rows, batch_size=1)

def output_fn(prediction, accept):
    return json.dumps([prediction.argmax(axis=1).asnumpy().tolist(), prediction.shape]), accept
"""
#: Files of its own, by the model's folder and beside the script, whose folder comes first.
FILES = """
import os
import json
import helper
import requests_

def model_fn(model_dir):
    with open(os.path.join(model_dir, "code", "words.txt")) as file:
        return file.read().split()

def predict_fn(data, model):
    return [model[int(index)] for index in data]

def output_fn(prediction, accept):
    return helper.joined(prediction)
"""
#: Counts its loads in a file, and names its process.
COUNTS = """
import json, os

def model_fn(model_dir):
    with open(os.environ["LOADS"], "a") as file:
        file.write("loaded\\n")
    return 1

def transform_fn(model, data, content_type, accept):
    return json.dumps(os.getpid())
"""
#: Raises what the toolkits raise, by their classes' names.
RAISES = """
class BaseInferenceToolkitError(Exception):
    def __init__(self, status_code, message, phrase):
        self.status_code, self.message, self.phrase = status_code, message, phrase

class Own(BaseInferenceToolkitError):
    pass

class UnsupportedFormatError(Exception):
    pass

def model_fn(model_dir):
    return 1

def input_fn(data, content_type):
    if content_type == "text/html":
        raise UnsupportedFormatError("Content type text/html is not supported")
    return data

def predict_fn(data, model):
    if data == b"teapot":
        raise Own(418, "I am a teapot", "teapot")
    if data == b"fine":
        raise Own(200, "no failure at all", "fine")
    if data == b"boom":
        raise KeyError("secret")
    return data

def output_fn(prediction, accept):
    if accept != "application/json":
        raise UnsupportedFormatError("Accept is not supported")
    return (prediction, accept, "more") if prediction == b"three" else prediction
"""
#: Answers the rows of a batch, one request at a time.
BATCHED = """
import json

def model_fn(model_dir):
    return 1

def transform_fn(model, data, content_type, accept, context):
    if data == "bad":
        raise ValueError(data)
    context.set_response_header(0, "X-Saw", context.get_request_header(0, "X-Mark"))
    return json.dumps([data, len(context.request_processor)])
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    folder: Path, start_shared: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> RunningServer:
    models: dict[str, Any] = {}
    for name, source in {
        "echo": ECHO,
        "four": FOUR,
        "context": CONTEXT,
        "around": AROUND,
        "files": FILES,
        "raises": RAISES,
        "batched": BATCHED,
    }.items():
        model = write_script(folder / name, source)
        models[name] = lay_out(recognise, model, folder / f"{name}-laid")
    write_script(
        folder / "files",
        FILES,
        words_txt="no yes",
        helper_py="def joined(words):\n    return '-'.join(words)\n",
        requests__py="",
    )
    write_checkpoint(folder / "around", row=(4,))
    for name in ("files", "around"):
        models[name] = lay_out(recognise, folder / name, folder / f"{name}-again")
    models["batched"] = (models["batched"], {"batch_size": 4, "max_batch_delay": 2000})
    return await start_shared({"debug_errors": "on"}, **models)


async def ask(
    server: RunningServer, model: str, body: bytes, type_: str = "application/json", **headers: str
) -> tuple[int, str, str]:
    all_headers = {"Content-Type": type_, **{k.replace("_", "-"): v for k, v in headers.items()}}
    url = f"{server.url}/models/{model}/invoke"
    async with server.session.post(url, data=body, headers=all_headers) as response:
        return response.status, response.headers["Content-Type"], await response.text()


class TestFunctions:
    @pytest.mark.parametrize(
        ("body", "type_", "kind"),
        [
            (b"[1, NaN]", "application/json", "str"),
            (b"1,2", "text/csv", "str"),
            (b"{}", "application/json; charset=utf-8", "str"),
            (b"\x93NUMPY", "application/x-npy", "bytearray"),
            (b"\xff\xd8", "image/jpeg", "bytearray"),
            (b"text", "text/plain", "bytearray"),
        ],
    )
    async def test_a_body_arrives_as_it_came_and_as_text_if_it_is_json_or_csv(
        self, server: RunningServer, body: bytes, type_: str, kind: str
    ) -> None:
        status, got, text = await ask(server, "echo", body, type_, Accept="a/b, c/d")
        assert (status, got) == (200, "text/x-echo")
        assert text == repr(["Dummy", kind, body.decode("latin-1"), type_, "a/b, c/d"])

    @pytest.mark.parametrize("accept", ["*/*", ""])
    async def test_whoever_accepts_anything_asks_for_json(
        self, server: RunningServer, accept: str
    ) -> None:
        _, _, text = await ask(server, "echo", b"1", Accept=accept)
        assert text.endswith("'application/json']")

    async def test_a_list_of_types_is_answered_with_the_default_one_if_it_is_among_them(
        self, server: RunningServer
    ) -> None:
        # The container's Content-Type is the whole list.
        for accept, type_ in [("a/b, application/json", "application/json"), ("a/b, c/d", "a/b")]:
            assert (await ask(server, "four", b"[1]", Accept=accept))[1] == type_

    async def test_text_that_is_none_is_refused_before_the_script_sees_it(
        self, server: RunningServer
    ) -> None:
        assert (await ask(server, "echo", b"\xff"))[0] == 400

    async def test_four_functions_and_the_type_that_was_asked_for(
        self, server: RunningServer
    ) -> None:
        status, type_, text = await ask(server, "four", b"[1, 2]", Accept="text/x-mine;q=1, */*")
        assert (status, type_) == (200, "text/x-mine")
        assert json.loads(text) == {"of": [3, 6], "accept": "text/x-mine;q=1, */*"}

    async def test_the_context_is_handed_to_functions_that_take_it(
        self, server: RunningServer
    ) -> None:
        status, type_, text = await ask(server, "context", b"5", X_Mark="here")
        assert (status, type_) == (200, "text/x-own")
        assert json.loads(text) == [5, ["pre_model", "model", "warm-up"], "cpu", "here"]

    async def test_a_module_is_handed_to_an_input_fn_that_takes_a_model(
        self, server: RunningServer
    ) -> None:
        rows = np.eye(4).tolist()
        status, type_, text = await ask(server, "around", json.dumps({"rows": rows}).encode())
        assert (status, type_) == (200, "application/json")
        classes, shape = json.loads(text)
        assert (len(classes), shape) == (4, [4, 3])

    async def test_a_script_finds_its_files_and_the_modules_beside_it(
        self, server: RunningServer
    ) -> None:
        assert (await ask(server, "files", b"[1, 0]"))[2] == "yes-no"

    async def test_tensors_reach_a_script_as_npy(self, server: RunningServer) -> None:
        tensor = {"name": "x", "shape": [2], "datatype": "INT64", "data": [1, 2]}
        url = f"{server.url}/v2/models/echo/infer"
        async with server.session.post(url, json={"inputs": [tensor]}) as response:
            (output,) = (await response.json())["outputs"]
        assert "NUMPY" in output["data"][0]
        assert "application/x-npy" in output["data"][0]

    async def test_nothing_is_written_into_the_folder_of_the_user(
        self, server: RunningServer, folder: Path
    ) -> None:
        names = {path.name for path in (folder / "files").rglob("*")}
        assert names == {"code", "inference.py", "words.txt", "helper.py", "requests_.py"}


class TestFailures:
    async def test_errors_of_the_toolkit_keep_their_status(self, server: RunningServer) -> None:
        plain = "application/octet-stream"
        status, _, text = await ask(server, "raises", b"teapot", plain)
        assert (status, json.loads(text)["message"]) == (418, "I am a teapot")
        assert (await ask(server, "raises", b"fine", plain))[0] == 500

    async def test_formats_that_a_script_refuses_are_the_clients_fault(
        self, server: RunningServer
    ) -> None:
        # The container answers 500 to both.
        assert (await ask(server, "raises", b"x", "text/html"))[0] == 415
        assert (await ask(server, "raises", b"x", "text/plain", Accept="a/b"))[0] == 406
        assert (await ask(server, "raises", b"x", "text/plain"))[0] == 200

    async def test_other_exceptions_are_a_500_without_their_traceback(
        self, server: RunningServer
    ) -> None:
        # The container answers with the traceback as text.
        status, type_, text = await ask(server, "raises", b"boom", "text/plain")
        assert (status, type_) == (500, "application/json")
        assert json.loads(text)["message"].startswith("Prediction failed")
        assert "Traceback" not in json.loads(text)["message"]

    async def test_a_tuple_of_three_is_no_answer(self, server: RunningServer) -> None:
        status, _, text = await ask(server, "raises", b"three", "text/plain")
        assert status == 500
        assert "a tuple of 3; it must be (answer, type)" in json.loads(text)["message"]


class TestBatches:
    async def test_each_request_of_a_batch_has_a_context_of_its_own(
        self, server: RunningServer
    ) -> None:
        url = f"{server.url}/models/batched/invoke"

        async def one(number: int) -> tuple[str, Any]:
            headers = {"X-Mark": str(number), "Content-Type": "text/csv"}
            body = str(number).encode()
            async with server.session.post(url, data=body, headers=headers) as response:
                return response.headers["X-Saw"], await response.json()

        answers = await asyncio.gather(*map(one, range(4)))
        assert answers == [(str(number), [str(number), 1]) for number in range(4)]

    async def test_a_bad_request_fails_alone(self, server: RunningServer) -> None:
        bodies = [b"1", b"bad", b"2", b"3"]
        asked = [ask(server, "batched", body, "text/csv", X_Mark="x") for body in bodies]
        statuses = [status for status, _, _ in await asyncio.gather(*asked)]
        assert statuses == [200, 500, 200, 200]


class TestLoading:
    async def load(self, folder: Path, source: str, **files: str) -> None:
        model = write_script(folder / "model", source, **files)
        laid = lay_out(recognise, model, folder / "laid")
        async with running_servers(folder) as start:
            await start(m=laid)

    async def test_the_model_is_loaded_once_and_workers_are_forked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The container calls model_fn twice in each of its workers.
        loads = tmp_path / "loads"
        monkeypatch.setenv("LOADS", str(loads))
        model = write_script(tmp_path / "model", COUNTS)
        laid = lay_out(recognise, model, tmp_path / "laid")
        async with running_servers(tmp_path) as start:
            server = await start(m=(laid, {"workers": 2}))
            assert loads.read_text() == "loaded\n"
            assert server.servable("m").loader_pid is not None
            _, _, pid = await ask(server, "m", b"")
            assert int(pid) in server.servable("m").pids

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (
                "def transform_fn(model, data, type_, accept): pass\ndef predict_fn(d, m): pass\n",
                "code/inference.py defines transform_fn and also predict_fn; transform_fn does",
            ),
            ("def model_fn(): pass\n", "model_fn takes 0 arguments; it is called with 1, or"),
            ("def model_fn(a, b, c): pass\n", "model_fn takes 3 arguments; it is called with 1"),
            (
                "def model_fn(model_dir): return {}\n",
                "model_fn returned a dict, which is neither a Module nor a Block of MXNet; define",
            ),
            (
                "",
                r"code/inference.py defines no model_fn, and the default one needs "
                r"model-symbol.json, model-0000.params, model-shapes.json",
            ),
            ("def model_fn(model_dir): raise ValueError('mine')\n", "ValueError: mine"),
            ("raise SyntaxError('worse')", "worse"),
        ],
    )
    async def test_what_is_wrong_with_a_script_is_said_in_one_line(
        self, tmp_path: Path, source: str, message: str
    ) -> None:
        with pytest.raises(ModelLoadFailed, match=message):
            await self.load(tmp_path, source)

    @pytest.mark.parametrize(
        ("requirements", "advice"),
        [
            (
                "numpy\nNo_Such.Package>=1  # for us\n",
                r"code/requirements.txt lists it: install it in the image \(pip install -r",
            ),
            ("opencv-python\n", "requirements.txt may list it under another name"),
            (None, "install it in the image, or add it to code/"),
        ],
    )
    @pytest.mark.parametrize("place", ["import", "model_fn"])
    async def test_a_module_that_is_not_installed_is_named_with_what_to_do(
        self, tmp_path: Path, requirements: str | None, advice: str, place: str
    ) -> None:
        source = (
            "import no_such_package.inner\n"
            if place == "import"
            else "def model_fn(model_dir):\n    import no_such_package.inner\n"
        )
        files = {} if requirements is None else {"requirements_txt": requirements}
        message = rf"code/inference.py: module 'no_such_package' is not installed; .*{advice}"
        with pytest.raises(ModelLoadFailed, match=message):
            await self.load(tmp_path, source, **files)

    async def test_a_script_with_the_name_of_another_module_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SAGEMAKER_PROGRAM", "json.py")
        write_script(tmp_path / "model", ECHO, name="json.py")
        with pytest.raises(ModelLoadFailed, match=r"code/json.py has the name of another module"):
            await self.load(tmp_path, ECHO)

    async def test_the_variable_names_the_script(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SAGEMAKER_PROGRAM", "entry.py")
        model = write_script(tmp_path / "model", ECHO, name="entry.py")
        write_script(model, "raise SystemExit('the wrong one')")
        async with running_servers(tmp_path) as start:
            server = await start(m=lay_out(recognise, model, tmp_path / "laid"))
            assert (await ask(server, "m", b"1"))[0] == 200

"""Bodies that other servers' clients send, KServe's V1, and whose fault a failure is."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from mms.export.package import export_model
from tests.kit.archives import make_archive, make_folder, make_mar, signature, write_linear
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: The service of the README: all hooks are its own, and none checks a shape.
OWN_HOOKS = """
    import numpy as np

    from mms.model_service.model_service import SingleNodeService


    class Own(SingleNodeService):
        def _preprocess(self, data):
            return np.array(data[0], dtype=np.float32)

        def _inference(self, data):
            if data.max() > 1000:
                raise ValueError("a bug of the service")
            return data @ np.ones((4, 2), np.float32)

        def _postprocess(self, data):
            return data.argmax(axis=1)
"""
#: Takes objects although its signature says numbers, as 0.4's own example does.
TEXTS = """
    from mms.model_service.model_service import SingleNodeService


    class Texts(SingleNodeService):
        def _preprocess(self, data):
            return [len(row["text"]) for row in data[0]]

        def _postprocess(self, lengths):
            if 3 in lengths:
                raise KeyError("a bug of the service")
            return lengths
"""
#: Makes arrays that the check of the base class refuses, whatever a client sends.
WRONG_ARRAYS = """
    from mxnet import nd

    from mms.model_service.mxnet_model_service import GluonImperativeBaseService


    class Wrong(GluonImperativeBaseService):
        def _preprocess(self, data):
            return [nd.zeros((1, 1, 8, 8))]

        def _inference(self, data):
            super()._inference(data)
            return data
"""
HANDLER = """
    def handle(data, context):
        if data is None:
            return None
        return [{"got": entry["body"]} for entry in data]
"""
JSON, NPY, CSV, LINES = "application/json", "application/x-npy", "text/csv", "application/jsonlines"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    image = signature([0, 3, 6, 8], "image/jpeg")
    texts = signature([1, 1014])
    sample = json.dumps([{"text": "a sample"}]).encode()
    linear = export_model("linear", write_linear(folder / "linear"), None, folder).path
    own = make_folder(folder / "own", OWN_HOOKS, signature([0, 4]))
    batched = {"batch_size": 8, "preload": False}
    # Workers drop what is below the level that the server logs at when it starts them.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    server = await start_shared(
        linear=linear,
        joined=(linear, batched),
        own=own,
        batched=(own, batched),
        texts=make_folder(folder / "texts", TEXTS, texts, sample=sample),
        wrong=make_folder(folder / "wrong", WRONG_ARRAYS, signature([0, 3, 8, 8], "image/jpeg")),
        wrongly=make_folder(folder / "wrongly", WRONG_ARRAYS, signature([0, 4])),
        vision=make_archive(folder, "vision", image),
        pair=make_archive(folder, "pair", signature(names=("left", "right"))),
        echo=make_archive(folder, "echo"),
        handled=make_mar(folder, HANDLER),
    )
    root.setLevel(level)
    return server


async def ask(
    server: RunningServer, path: str, body: Any, content_type: str = JSON, accept: str = "*/*"
) -> tuple[int, Any, str]:
    """Return the status, the body (parsed if it is JSON) and its type."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": content_type, "Accept": accept}
    async with server.session.post(server.url + path, data=data, headers=headers) as response:
        content = await response.read()
        is_json = response.content_type == JSON
        return response.status, json.loads(content) if is_json else content, response.content_type


async def say(server: RunningServer, path: str, body: Any, content_type: str = JSON) -> Any:
    """Return the message of a refusal, with its status."""
    status, answer, _ = await ask(server, path, body, content_type)
    return status, answer["message"]


def saved(array: Any) -> bytes:
    output = io.BytesIO()
    np.save(output, array)
    return output.getvalue()


def picture(colour: tuple[int, int, int] = (200, 100, 50), kind: str = "PNG", **more: Any) -> bytes:
    output = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(output, kind, **more)
    return output.getvalue()


class TestArrays:
    BODIES = (
        (NPY, saved(np.array([[1, 2, 3]], "float32"))),
        (CSV, b"1,2,3\n"),
        (LINES, b"[1,2,3]\n"),
        ("application/x-ndjson", b'{"data": [1, 2, 3]}\n'),
    )

    @pytest.mark.parametrize(("content_type", "body"), BODIES)
    async def test_they_are_inputs_on_every_route(
        self, server: RunningServer, content_type: str, body: bytes
    ) -> None:
        for path in ("/predictions/linear", "/invocations?model_name=linear"):
            assert await ask(server, path, body, content_type) == (200, ["[[1.0, 15.0]]"], JSON)
        wrapped = {"prediction": ["[[1.0, 15.0]]"]}
        assert (await ask(server, "/linear/predict", body, content_type))[1] == wrapped

    async def test_hooks_of_a_users_own_get_lists(self, server: RunningServer) -> None:
        for content_type, body in self.BODIES[:3]:
            got = await ask(server, "/predictions/echo", body, content_type)
            value = [1, 2, 3] if content_type == CSV else [[1, 2, 3]]
            assert got[:2] == (200, value)

    async def test_they_are_answers_where_accept_asks_for_them(self, server: RunningServer) -> None:
        body = [[1, 2, 3], [0, 0, 0]]
        path = "/invocations?model_name=linear"
        status, content, kind = await ask(server, path, body, accept=NPY)
        assert (status, kind) == (200, NPY)
        assert np.load(io.BytesIO(content)).tolist() == [[1, 15], [0, 10]]
        assert await ask(server, path, body, accept=CSV) == (200, b"1.0,15.0\n0.0,10.0\n", CSV)
        lines = (200, b"[1.0,15.0]\n[0.0,10.0]\n", LINES)
        assert await ask(server, path, body, accept=f"{LINES}, */*") == lines

    async def test_an_answer_that_is_no_array_stays_json(self, server: RunningServer) -> None:
        for accept in (NPY, CSV, LINES):
            got = await ask(server, "/predictions/echo", [{"a": 1}], accept=accept)
            assert got == (200, [{"a": 1}], JSON)
        assert await ask(server, "/predictions/own", [[1, 1, 1, 1]], accept=CSV) == (
            200, b"0\n", CSV,
        )  # fmt: skip

    async def test_a_mistake_in_one_is_the_clients(self, server: RunningServer) -> None:
        path = "/predictions/linear"
        assert await say(server, path, b"1,x,3\n", CSV) == (
            400,
            "the body: line 1, column 2 is not a number but 'x'; a first line with the columns' "
            "names needs Content-Type: text/csv; header=present",
        )
        status, message = await say(server, path, saved(np.zeros((1, 4))), NPY)
        assert (status, "has shape (1, 4), expected" in message) == (400, True)
        status, message = await say(server, path, b"\x80\x04.", "application/x-npy")
        assert (status, "not an npy file" in message) == (400, True)

    async def test_the_api_s_description_lists_them(self, server: RunningServer) -> None:
        async with server.session.get(server.url + "/openapi.json") as response:
            bodies = (await response.json())["components"]["requestBodies"]
        (linear,) = [body for name, body in bodies.items() if name.startswith("linear.")]
        (vision,) = [body for name, body in bodies.items() if name.startswith("vision.")]
        assert all(f"`{kind}`" in linear["description"] for kind in (NPY, CSV, LINES))
        assert not any(f"`{kind}`" in vision["description"] for kind in (NPY, CSV, LINES))


class TestEnvelopes:
    async def test_an_array_model_reads_them(self, server: RunningServer) -> None:
        for body in (
            {"instances": [[1, 2, 3]]}, {"inputs": [[1, 2, 3]]}, [{"data": [1, 2, 3]}],
            {"inputs": {"data": [[1, 2, 3]]}}, {"instances": [{"data": [1, 2, 3]}]},
        ):  # fmt: skip
            got = await ask(server, "/predictions/linear", body)
            assert got[:2] == (200, ["[[1.0, 15.0]]"])

    async def test_a_wrong_key_names_the_right_one(self, server: RunningServer) -> None:
        path = "/predictions/linear"
        assert await say(server, path, {"Data": [[1, 2, 3]]}) == (
            400,
            "the body has 'Data'; the input is called 'data', not 'Data': send a list, or an "
            "object with the key 'data'",
        )
        status, message = await say(server, path, {"data": {"data": [[1, 2, 3]]}})
        assert (status, "'data' must be a list of numbers" in message) == (400, True)

    async def test_a_service_that_takes_objects_gets_them(self, server: RunningServer) -> None:
        for body in ({"instances": [1]}, {"inputs": [1]}, {"Data": [1]}):
            assert (await ask(server, "/predictions/echo", body))[:2] == (200, [body])
        assert (await ask(server, "/predictions/texts", {"text": "four"}))[:2] == (200, [4])

    async def test_pictures_come_in_each_envelope_of_base64(self, server: RunningServer) -> None:
        text = base64.b64encode(picture()).decode()
        url_safe = base64.urlsafe_b64encode(picture()).decode().rstrip("=")
        for body in (
            {"instances": [{"b64": text}]}, {"data": {"b64": text}}, {"image_bytes": {"b64": text}},
            {"data": f"data:image/png;charset=utf-8;base64,{text}"}, {"data": url_safe},
            {"data": "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76))},
            {"data": f'"{text}"'}, text,
        ):  # fmt: skip
            status, answer, _ = await ask(server, "/predictions/vision", body)
            assert (status, answer["mean"]) == (200, [200, 100, 50])
        status, message = await say(server, "/predictions/vision", {"instances": [text, text]})
        assert (status, "/v1/models/MODEL:predict" in message) == (400, True)

    async def test_a_value_that_is_no_number_is_named(self, server: RunningServer) -> None:
        for body, reason in (
            ([[1, None, 3]], "it contains other values: null"),
            ([[1, "a", 3]], "it contains other values: a string, 'a'"),
            ([[1, 2, 3], [4]], "it is ragged, with lists of 1 and of 3 on axis 1"),
            ([[1, 2, 3], {"data": [1]}], "it has lists beside other values on axis 1"),
        ):
            status, message = await say(server, "/predictions/linear", body)
            assert status == 400
            assert message.startswith("input 'data' is not an array of numbers of shape (")
            assert message.endswith(f": {reason}")


class TestEncodings:
    BODIES = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32")

    @pytest.mark.parametrize("encoding", BODIES)
    async def test_json_is_read_in_each(self, server: RunningServer, encoding: str) -> None:
        body = "[[1, 2, 3]]".encode(encoding)
        form = b'--x\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + body + b"\r\n--x--"
        for data, content_type in ((body, JSON), (form, "multipart/form-data; boundary=x")):
            got = await ask(server, "/predictions/linear", data, content_type)
            assert got[:2] == (200, ["[[1.0, 15.0]]"])
        tensor = {"name": "data", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
        v2 = json.dumps({"inputs": [tensor]}).encode(encoding)
        status, answer, _ = await ask(server, "/v2/models/linear/infer", v2)
        assert (status, answer["outputs"][0]["data"]) == (200, [1, 15])

    async def test_any_other_is_told_to_be_utf_8(self, server: RunningServer) -> None:
        status, message = await say(server, "/predictions/echo", '["é"]'.encode("latin-1"))
        assert (status, "send UTF-8" in message) == (400, True)

    @pytest.mark.parametrize(
        ("kind", "more"),
        [("JPEG", {}), ("PNG", {}), ("BMP", {}), ("GIF", {}), ("WEBP", {"lossless": True}),
         ("TIFF", {})],
    )  # fmt: skip
    async def test_each_promised_picture_is_decoded(
        self, server: RunningServer, kind: str, more: Any
    ) -> None:
        body = picture(kind=kind, **more)
        status, answer, _ = await ask(server, "/predictions/vision", body, f"image/{kind.lower()}")
        assert status == 200
        assert np.abs(np.subtract(answer["mean"], (200, 100, 50))).max() <= 2


class TestV1:
    async def predict(self, server: RunningServer, model: str, body: Any) -> tuple[int, Any]:
        return (await ask(server, f"/v1/models/{model}:predict", body))[:2]

    async def test_an_array_model_answers_a_row_for_each_instance(
        self, server: RunningServer
    ) -> None:
        rows = {"predictions": [[1.0, 15.0], [0.0, 10.0]]}
        for instances in ([[1, 2, 3], [0, 0, 0]], [{"data": [1, 2, 3]}, {"data": [0, 0, 0]}]):
            assert await self.predict(server, "linear", {"instances": instances}) == (200, rows)
        got = await self.predict(server, "linear", {"inputs": [[1, 2, 3]]})
        assert got == (200, {"outputs": [[1.0, 15.0]]})
        got = await self.predict(server, "linear/versions/1", {"instances": [[1, 2, 3]]})
        assert got == (200, {"predictions": [[1.0, 15.0]]})

    async def test_hooks_of_a_users_own_are_asked_for_each_instance(
        self, server: RunningServer
    ) -> None:
        """`predictions[i]` is what /predictions answers for the instance alone."""
        got = await self.predict(server, "own", {"instances": [[1, 1, 1, 1], [2, 2, 2, 2]]})
        assert got == (200, {"predictions": [[0], [0]]})
        got = await self.predict(server, "texts", {"instances": [{"text": "a"}, {"text": "bcde"}]})
        assert got == (200, {"predictions": [[1], [4]]})
        got = await self.predict(server, "pair", {"instances": [{"left": 1, "right": "x"}]})
        assert got == (200, {"predictions": [[[1], ["x"]]]})
        got = await self.predict(server, "texts", {"inputs": [{"text": "a"}, {"text": "bc"}]})
        assert got == (200, {"outputs": [1, 2]})

    async def test_pictures_are_instances(self, server: RunningServer) -> None:
        texts = [base64.b64encode(picture((red, 0, 0))).decode() for red in (10, 20)]
        body = {"instances": [{"b64": texts[0]}, {"image_bytes": {"b64": texts[1]}}]}
        status, answer = await self.predict(server, "vision", body)
        assert status == 200
        assert [one["mean"][0] for one in answer["predictions"]] == [10, 20]

    async def test_a_handler_of_1_x_reads_the_body_itself(self, server: RunningServer) -> None:
        body = {"instances": [1]}
        assert await self.predict(server, "handled", body) == (200, {"got": body})

    async def test_one_bad_instance_is_named_and_refuses_the_request(
        self, server: RunningServer
    ) -> None:
        body = {"instances": [[1, 1, 1, 1], [1, 2, 3]]}
        status, answer = await self.predict(server, "own", body)
        assert (status, answer.keys()) == (400, {"error"})
        assert answer["error"].startswith("instances[1]: input 'data' has shape (1, 3), expected")
        status, answer = await self.predict(server, "linear", body)
        assert (status, "ragged" in answer["error"] or "array" in answer["error"]) == (400, True)

    async def test_errors_have_its_format(self, server: RunningServer) -> None:
        for model, body, status in (
            ("missing", {"instances": [1]}, 404),
            ("linear", {"Instances": [1]}, 400),
            ("linear", [[1, 2, 3]], 400),
        ):
            got, answer = await self.predict(server, model, body)
            assert (got, answer.keys()) == (status, {"error"})
        async with server.session.get(server.url + "/v1/nothing") as response:
            assert (response.status, (await response.json()).keys()) == (404, {"error"})

    async def test_models_are_listed_and_tell_their_state(self, server: RunningServer) -> None:
        async with server.session.get(server.url + "/v1/models") as response:
            assert "linear" in (await response.json())["models"]
        for path in ("/v1/models/linear", "/v1/models/linear/versions/1"):
            async with server.session.get(server.url + path) as response:
                document = await response.json()
                assert (response.status, document["name"], document["ready"]) == (
                    200, "linear", True,
                )  # fmt: skip
                (state,) = document["model_version_status"]
                assert (state["version"], state["state"]) == ("1", "AVAILABLE")
        async with server.session.get(server.url + "/v1/models/missing") as response:
            assert (response.status, (await response.json()).keys()) == (404, {"error"})

    async def test_instances_of_several_requests_share_a_forward_pass(
        self, server: RunningServer
    ) -> None:
        assert [ready.alone_reason for ready in server.servable("joined").reports.values()] == [""]
        bodies = [{"instances": [[index, 2, 3]] * (1 + index % 3)} for index in range(12)]
        answers = await asyncio.gather(*(self.predict(server, "joined", body) for body in bodies))
        for index, answer in enumerate(answers):
            rows = [[float(index), 15.0]] * (1 + index % 3)
            assert answer == (200, {"predictions": rows})

    async def test_instances_that_run_alone_are_run_so_in_a_batch_too(
        self, server: RunningServer
    ) -> None:
        body = {"instances": [[1, 1, 1, 1], [2, 2, 2, 2]]}
        got = await asyncio.gather(*(self.predict(server, "batched", body) for _ in range(4)))
        assert list(got) == [(200, {"predictions": [[0], [0]]})] * 4


class TestWhoseFault:
    """0.4 answers all of these 500: it never blames a client for what a hook raises."""

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ([[1, 2, 3]], "input 'data' has shape (1, 3), expected (?, 4)"),
            ([1, 2, 3, 4], "input 'data' has shape (4), expected (?, 4)"),
            ([[1, 2, 3, 4], [1]], "input 'data' is not an array of numbers of shape (?, 4): it is"),
            ([["a", "b", "c", "d"]], "of shape (?, 4): it contains other values: a string, 'a'"),
            ({"dta": [[1, 2, 3, 4]]}, "the input is called 'data', not 'dta'"),
        ],
    )
    async def test_inputs_that_contradict_the_signature_are_the_clients(
        self, server: RunningServer, body: Any, message: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        status, said = await say(server, "/predictions/own", body)
        assert status == 400
        assert message in said
        await until(lambda: "the service raised" in caplog.text)
        assert "service.py:" in caplog.text
        assert not [one for one in caplog.records if one.levelno >= logging.WARNING]

    async def test_a_failure_on_inputs_that_fit_is_the_services(
        self, server: RunningServer
    ) -> None:
        status, said = await say(server, "/predictions/own", [[1, 2, 3, 4000]])
        assert (status, "a bug of the service" in said) == (500, True)

    async def test_nothing_that_a_service_answers_is_refused(self, server: RunningServer) -> None:
        """Its sample shows that it takes objects, so its failures on objects are its own."""
        assert (await ask(server, "/predictions/texts", [{"text": "four"}]))[:2] == (200, [4])
        status, said = await say(server, "/predictions/texts", [{"text": "abc"}])
        assert (status, "a bug of the service" in said) == (500, True)
        status, said = await say(server, "/predictions/texts", [{"txt": "abc"}])
        assert (status, "KeyError" in said) == (500, True)
        status, said = await say(server, "/predictions/texts", [[1, 2]])
        assert (status, "has shape (1, 2), expected (?, 1014)" in said) == (400, True)

    @pytest.mark.parametrize("model", ["wrong", "wrongly"])
    async def test_what_preprocess_made_is_the_services(
        self, server: RunningServer, model: str
    ) -> None:
        body, kind = (picture(), "image/png") if model == "wrong" else ([[1, 2, 3, 4]], JSON)
        status, said = await say(server, f"/predictions/{model}", body, kind)
        assert status == 500
        assert said.startswith("`_preprocess` gave arrays that do not fit the signature: ")
        assert "has shape (1, 1, 8, 8)" in said
        assert said.endswith(": in _preprocess")

    async def test_a_client_who_contradicts_is_told_first(self, server: RunningServer) -> None:
        status, said = await say(server, "/predictions/wrongly", [[1, 2, 3]])
        assert (status, "has shape (1, 3), expected (?, 4)" in said) == (400, True)
        status, said = await say(server, "/predictions/wrong", b"no picture", "image/png")
        assert (status, "input 'data'" in said) == (400, True)

    async def test_no_fault_of_a_client_is_logged_as_an_error(
        self, server: RunningServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        for body, content_type, status in (
            (b"x", "text/plain", 415),
            (b"[[1]]", "application/json; charset=klingon", 415),
            (b"[", JSON, 400),
            (b"[[1]]", JSON, 400),
            (b"\x93NUMPY", NPY, 400),
        ):
            assert (await ask(server, "/predictions/linear", body, content_type))[0] == status
        await until(lambda: caplog.text.count("unsupported_media") >= 2)
        assert not [one for one in caplog.records if one.levelno >= logging.WARNING]

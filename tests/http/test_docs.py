"""Descriptions of the API: what they say is what the server does."""

from __future__ import annotations

import asyncio
import base64
import copy
import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate
from PIL import Image

from mms.export.package import export_model
from tests.kit.archives import make_archive, signature, write_linear
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

COLOUR = (200, 100, 50)
REVIEW = [{"review_title": 'it\'s "good"', "review": "sound & <b>picture</b>"}]


def encoded_image() -> bytes:
    output = io.BytesIO()
    Image.new("RGB", (8, 6), COLOUR).save(output, "PNG")
    return output.getvalue()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    picture = signature([0, 3, 6, 8], "image/jpeg", "image/png")
    pair = signature(names=("left", "right"))
    review_sample = {"sample.json": json.dumps(REVIEW).encode()}
    two_sample = {"sample.json": b'{"left": [1], "right": ["a"]}'}
    return await start_shared(
        {"gen_api": "python", "gen_api_dir": str(folder / "build")},
        review=make_archive(folder, "echo", signature([1, 1014]), "review", review_sample),
        two=make_archive(folder, "pair", pair, "two", two_sample),
        linear=export_model("linear", write_linear(folder / "linear"), None, folder).path,
        paint=make_archive(folder, "vision", picture, name="paint"),
    )


async def options(server: RunningServer, path: str) -> tuple[int, Any]:
    async with server.session.options(server.url + path) as response:
        return response.status, await response.json()


def resolved(document: Any, node: Any) -> Any:
    while "$ref" in node:
        target = document
        for key in node["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        node = target
    return node


def bodies(document: Any) -> Iterator[tuple[str, str, Any]]:
    """Return (path, content type, media) of every request body that asks a model."""
    for path, methods in document["paths"].items():
        # That one wants a name where there are several models.
        if "post" in methods and "{" not in path and path != "/invocations":
            body = resolved(document, methods["post"]["requestBody"])
            for type_, media in body["content"].items():
                yield path, type_, media


def json_body(document: Any, path: str) -> Any:
    body = resolved(document, document["paths"][path]["post"]["requestBody"])
    return body["content"]["application/json"]


def items(document: Any, path: str) -> Any:
    """Return the schema of an entry of a sole input."""
    return json_body(document, path)["schema"]["anyOf"][0]["items"]


class TestOpenApi:
    async def test_it_is_valid_and_has_every_route(self, server: RunningServer) -> None:
        status, document = await server.get("/openapi.json")
        assert status == 200
        validate(copy.deepcopy(document))
        described = {
            (method.upper(), path)
            for path, methods in document["paths"].items()
            for method in methods
        }
        for route in server.routes():
            path = route.path
            if route.asks_a_model:
                path = path.replace("{model}", "two").replace("{version}", "1")
            assert (route.method, path) in described
        operations = [o for methods in document["paths"].values() for o in methods.values()]
        ids = [operation["operationId"] for operation in operations]
        assert len(set(ids)) == len(ids)
        assert all(operation["summary"] for operation in operations)

    async def test_every_body_that_it_describes_is_answered(self, server: RunningServer) -> None:
        _, document = await server.get("/openapi.json")
        asked = set()
        for path, type_, media in bodies(document):
            asked.add((path, type_))
            async with server.session.post(server.url + path, **request(type_, media)) as response:
                answer = await response.json()
                assert response.status == 200, (path, type_, answer)
            schema = resolved(document, document["paths"][path]["post"])["responses"]["200"]
            OAS30Validator(schema["content"]["application/json"]["schema"]).validate(answer)
            assert ("prediction" in answer) == path.endswith("/predict"), path
        assert len(asked) == 4 * (3 * 3 + 2)

    async def test_an_example_is_what_its_schema_describes(self, server: RunningServer) -> None:
        _, document = await server.get("/openapi.json")
        examples = {}
        for path, type_, media in bodies(document):
            if "example" in media:
                OAS30Validator(media["schema"]).validate(media["example"])
                examples[path, type_] = media["example"]
        json_type = "application/json"
        assert examples["/predictions/review", json_type] == REVIEW
        assert examples["/two/predict", json_type] == {"left": [1], "right": ["a"]}

    async def test_the_schema_refuses_what_the_server_refuses(self, server: RunningServer) -> None:
        _, document = await server.get("/openapi.json")
        validator = OAS30Validator(json_body(document, "/predictions/linear")["schema"])
        values: list[Any] = [
            [[1, 2, 3]], [[1, 2, 3], [4, 5, 6]], {"data": [[1, 2, 3]]},
            [[1, 2]], [1, 2, 3], [["a", 2, 3]], [[[1, 2, 3]]], {"data": [[1]]}, 3, "text",
        ]  # fmt: skip
        for value in values:
            status, answer = await server.ask("linear", value)
            assert (status == 200) == validator.is_valid(value), (value, answer)

    async def test_where_the_sample_does_not_fit_the_shape_it_shapes_the_schema(
        self, server: RunningServer
    ) -> None:
        _, document = await server.get("/openapi.json")
        value, keyed = json_body(document, "/predictions/review")["schema"]["anyOf"]
        assert value["type"] == "array"
        assert value["items"] == {
            "type": "object",
            "properties": {"review_title": {"type": "string"}, "review": {"type": "string"}},
        }
        assert keyed["properties"]["data"] == value
        assert "(1, 1014)" in value["description"]

    async def test_an_error_is_as_described(self, server: RunningServer) -> None:
        _, document = await server.get("/openapi.json")
        responses = document["paths"]["/predictions/linear"]["post"]["responses"]
        url = f"{server.url}/predictions/linear"
        for content_type, status in (("application/json", "400"), ("text/plain", "415")):
            headers = {"Content-Type": content_type}
            async with server.session.post(url, data=b"{", headers=headers) as response:
                assert str(response.status) == status
                answer = await response.json()
                described = resolved(document, responses[status])
                assert all(name in response.headers for name in described["headers"])
                schema = resolved(document, described["content"]["application/json"]["schema"])
                OAS30Validator(schema).validate(answer)
        assert {"400", "404", "413", "415", "500", "503", "504", "default"} <= set(responses)
        assert "Retry-After" in resolved(document, responses["503"])["headers"]

    async def test_an_image_may_come_back_as_one(self, server: RunningServer) -> None:
        _, document = await server.get("/openapi.json")
        answer = document["paths"]["/predictions/paint"]["post"]["responses"]["200"]
        assert set(answer["content"]) == {"application/json", "image/png"}

    async def test_a_version_is_described_as_long_as_it_is_there(
        self, server: RunningServer, folder: Path
    ) -> None:
        archive = make_archive(folder / "second", "echo", signature([0, 2]))
        await server.register("review", archive, "2.0-b")
        second = server.servable("review", "2.0-b")
        try:
            pair = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
            for _, document in (
                await server.get("/openapi.json"),
                await options(server, "/predictions/review"),
            ):
                validate(copy.deepcopy(document))
                assert items(document, "/predictions/review")["type"] == "object"
                assert items(document, "/predictions/review/1")["type"] == "object"
                assert items(document, "/predictions/review/2.0-b") == pair
            server.set_default("review", "2.0-b")
            _, document = await server.get("/openapi.json")
            assert items(document, "/predictions/review") == pair
        finally:
            server.set_default("review", "1")
            await server.unregister("review", "2.0-b")
            await until(lambda: second.state == "unloaded")
        _, document = await server.get("/openapi.json")
        assert "/predictions/review/2.0-b" not in document["paths"]


def request(type_: str, media: Any) -> dict[str, Any]:
    """Make up a request from nothing but its description."""
    if type_ == "application/json":
        value = media["example"] if "example" in media else made_up(media["schema"])
        return {"json": value}
    if type_.startswith("image/"):
        return {"data": encoded_image(), "headers": {"Content-Type": type_}}
    form = aiohttp.FormData(default_to_multipart=type_ == "multipart/form-data")
    for name, schema in media["schema"]["properties"].items():
        if schema.get("format") == "binary":
            form.add_field(name, encoded_image(), filename="image.png")
        else:
            form.add_field(name, schema.get("example", "[[1, 2, 3]]"))
    return {"data": form}


def made_up(schema: Any) -> Any:
    if "anyOf" in schema:
        return made_up(schema["anyOf"][0])
    if schema.get("type") == "array":
        return [made_up(schema["items"]) for _ in range(schema.get("minItems", 1))]
    if schema.get("type") == "object":
        return {name: made_up(inner) for name, inner in schema["properties"].items()}
    return 1


class TestDescriptionsOfMms1:
    async def test_the_api_is_described_by_its_routes(self, server: RunningServer) -> None:
        status, document = await options(server, "/")
        assert status == 200
        validate(copy.deepcopy(document))
        ids = {
            (method, path): operation["operationId"]
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }
        # What clients generated from it call their methods.
        for key, id_ in {
            ("post", "/predictions/{model_name}"): "predictions",
            ("options", "/predictions/{model_name}"): "predictionsApi",
            ("post", "/{model_name}/predict"): "predict",
            ("get", "/ping"): "ping",
            ("get", "/api-description"): "apiDescription",
        }.items():
            assert ids[key] == id_

    async def test_one_model_is_described_alone(self, server: RunningServer) -> None:
        status, document = await options(server, "/predictions/linear")
        assert status == 200
        validate(copy.deepcopy(document))
        assert set(document["paths"]) == {
            "/predictions/linear",
            "/predictions/linear/1",
            "/linear/predict",
            "/models/linear/invoke",
        }
        _, whole = await server.get("/openapi.json")
        path = "/predictions/linear"
        assert json_body(document, path) == json_body(whole, path)

    async def test_an_unknown_model_is_a_404(self, server: RunningServer) -> None:
        status, answer = await options(server, "/predictions/nobody")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def page(server: RunningServer) -> tuple[str, str]:
    """Return the page's text and the policy it comes with."""
    async with server.session.get(f"{server.url}/docs") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        return await response.text(), response.headers["Content-Security-Policy"]


class TestPage:
    async def test_it_needs_nothing_from_elsewhere(self, server: RunningServer) -> None:
        text, policy = await page(server)
        assert re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", text) == ["openapi.json"] * 2
        assert not re.search(r"https?://|@import|:\s*url\(", text)
        assert len(text.splitlines()) < 300
        assert policy.startswith("default-src 'none';")

    async def test_its_policy_allows_its_own_script_and_style_only(
        self, server: RunningServer
    ) -> None:
        text, policy = await page(server)
        for tag in ("script", "style"):
            (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}';" in policy
        # Neither inline handlers nor inline styles, nor markup made of texts.
        assert not re.search(r"""<\w[^>]*\s(?:on\w+|style)=""", text)
        assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", text)

    async def test_the_elements_that_its_script_asks_for_are_there(
        self, server: RunningServer
    ) -> None:
        text, _ = await page(server)
        asked = set(re.findall(r"""getElementById\("(\w+)"\)""", text))
        assert asked
        assert asked <= set(re.findall(r'id="(\w+)"', text))
        assert '<html lang="en">' in text
        assert "prefers-color-scheme: dark" in text

    @pytest.mark.skipif(
        not (shutil.which("node") and shutil.which("curl")), reason="needs node and curl"
    )
    async def test_the_curl_lines_that_it_shows_work(
        self, server: RunningServer, tmp_path: Path
    ) -> None:
        text, _ = await page(server)
        (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        _, document = await server.get("/openapi.json")
        (tmp_path / "a cat.png").write_bytes(encoded_image())
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        (tmp_path / "page.js").write_text(
            f"globalThis.addEventListener = () => {{}};\n{script}\n{CURL_LINES}"
        )
        command = ["node", "page.js", server.url]
        lines = await asyncio.to_thread(run, command, tmp_path)
        answers = [
            await asyncio.to_thread(run, ["bash", "-c", f"{line} --silent --fail"], tmp_path)
            for line in lines.splitlines()
        ]
        assert len(answers) == len(list(bodies(document)))
        assert answers.count(json.dumps(REVIEW, separators=(",", ":"))) == 9
        pictures = [answer for answer in answers if answer.startswith('["iVBOR')]
        assert len(pictures) == 6


#: Prints the page's curl line for every body of every model.
CURL_LINES = """
const doc = JSON.parse(require("fs").readFileSync("openapi.json"));
for (const [path, {post}] of Object.entries(doc.paths)) {
  if (!post || path.includes("{") || path === "/invocations") continue;
  for (const [type, media] of Object.entries(resolve(doc, post.requestBody).content)) {
    const schema = media.schema;
    const body = {type};
    if (type.includes("form")) {
      body.fields = Object.entries(schema.properties).map(([name, inner]) =>
        inner.format === "binary" ? [name, undefined, "a cat.png"]
          : [name, inner.example ?? "[[1, 2, 3]]"]);
    } else if (schema.format === "binary") {
      body.file = "a cat.png";
    } else {
      body.text = pretty(media.example ?? invent(schema));
    }
    console.log(curlLine("POST", process.argv[2] + path, {}, body).replaceAll("\\n", " "));
  }
}
"""


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def load_client(folder: Path) -> ModuleType:
    """Import the generated client."""
    path = folder / "build" / "mms_client.py"
    spec = importlib.util.spec_from_file_location("mms_client", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestPythonClient:
    async def test_the_document_is_written_beside_it(
        self, server: RunningServer, folder: Path
    ) -> None:
        document = json.loads((folder / "build" / "openapi.json").read_text())
        _, served = await server.get("/openapi.json")
        assert document["servers"] == [{"url": server.url}]
        assert {**document, "servers": served["servers"]} == served
        names = sorted(path.name for path in (folder / "build").iterdir())
        assert names == ["mms_client.py", "openapi.json"]

    async def test_each_model_is_a_method(
        self, server: RunningServer, folder: Path, tmp_path: Path
    ) -> None:
        client = load_client(folder).Client()
        assert client.url == server.url

        def calls() -> list[Any]:
            return [
                client.is_ready(),
                client.review([1, {"a": None}]),
                client.review([2], version="1", timeout_s=30),
                client.two(left=[1], right=[2]),
                client.two([1], right=Array()),
                client.linear([[1, 2, 3]]),
            ]

        expected = [True, [1, {"a": None}], [2], [[1], [2]], [[1], [[5]]], ["[[1.0, 15.0]]"]]
        assert await asyncio.to_thread(calls) == expected
        file = tmp_path / "image.png"
        file.write_bytes(encoded_image())
        for image in (encoded_image(), file, str(file)):
            (picture,) = await asyncio.to_thread(client.paint, image)
            assert Image.open(io.BytesIO(base64.b64decode(picture))).getpixel((0, 0)) == COLOUR

    async def test_an_error_of_the_server_is_an_exception_that_says_which(
        self, server: RunningServer, folder: Path
    ) -> None:
        module = load_client(folder)
        client = module.Client(server.url + "/")
        with pytest.raises(module.ServerError, match=r"expected .*3") as refused:
            await asyncio.to_thread(client.linear, [[1, 2]])
        error = refused.value
        assert (error.status, error.code) == (400, "invalid_input_shape")
        assert error.request_id
        assert error.retry_after_s is None
        with pytest.raises(module.ServerError) as unknown:
            await asyncio.to_thread(lambda: client.review([1], version="9"))
        assert (unknown.value.status, unknown.value.code) == (404, "version_not_found")

    async def test_its_methods_are_typed_by_signature_and_sample(
        self, server: RunningServer, folder: Path
    ) -> None:
        client = load_client(folder).Client

        def types(name: str) -> dict[str, str]:
            annotations = getattr(client, name).__annotations__
            common = ("version", "timeout_s", "return")
            return {key: text for key, text in annotations.items() if key not in common}

        assert types("linear") == {"data": "Sequence[Sequence[float]]"}
        assert types("review") == {"data": "Sequence[Mapping[str, Any]]"}
        assert types("two") == {"left": "Sequence[Any]", "right": "Sequence[Any]"}
        assert types("paint") == {"data": "Image"}


class Array:
    """What NumPy's arrays have in common with this."""

    def tolist(self) -> list[list[int]]:
        return [[5]]

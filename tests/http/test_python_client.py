"""What generated Python clients send, and what they make of unusual answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mms.archive.signature import Signature, TensorSpec
from mms.http.openapi.python_client import BaseClient, Image, ServerError
from mms.wire.messages import Dialect, Request, RequestMeta
from mms.worker.request import decode_inputs


@dataclass
class Recorder:
    """A server that keeps the last request and answers what it is told to.

    Attributes:
        url: Where it listens.
        status: What it answers.
        headers: What it answers.
        body: What it answers.
        path: Of the last request.
        sent: Headers of the last request.
        received: Body of the last request.
    """

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    path: str = ""
    sent: Message = field(default_factory=Message)
    received: bytes = b""


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            recorder.path, recorder.sent = self.path, self.headers
            recorder.received = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(recorder.status)
            for name, value in recorder.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(recorder.body)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        recorder.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield recorder
        server.shutdown()
        thread.join()


@pytest.fixture
def client(recorder: Recorder) -> BaseClient:
    recorder.status, recorder.body = 200, b"[1]"
    recorder.headers = {"Content-Type": "application/json"}
    return BaseClient(recorder.url + "/", headers={"Authorization": "Bearer secret"})


def test_model_version_time_limit_and_headers_are_sent(
    client: BaseClient, recorder: Recorder
) -> None:
    assert client._ask_json("crepe", {"data": [1.5]}, "2", 0.25) == [1]
    assert recorder.path == "/predictions/crepe/2"
    assert recorder.sent["X-Request-Timeout-Ms"] == "250"
    assert recorder.sent["Authorization"] == "Bearer secret"
    assert recorder.sent["Content-Type"] == "application/json"
    assert recorder.received == b'{"data": [1.5]}'
    client._ask_json("crepe", {"data": []}, None, None)
    assert recorder.path == "/predictions/crepe"
    assert recorder.sent["X-Request-Timeout-Ms"] is None


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="%"), min_size=1),
        st.binary(min_size=1).map(lambda data: b"\x89" + data),
        min_size=1,
        max_size=4,
    )
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_server_reads_back_the_images_that_are_sent(
    client: BaseClient, recorder: Recorder, images: dict[str, Image]
) -> None:
    client._ask_images("m", images, None, None)
    specs = tuple(TensorSpec(name, (0, 3, 2, 2)) for name in images)
    meta = RequestMeta("id", Dialect.PLAIN, str(recorder.sent["Content-Type"]), "")
    signature = Signature(specs, "image/png", specs, "application/json")
    received = decode_inputs(Request(meta, memoryview(recorder.received)), signature)
    assert received == list(images.values())


def test_a_text_or_a_path_names_an_image_file(
    client: BaseClient, recorder: Recorder, tmp_path: Path
) -> None:
    file = tmp_path / "image"
    file.write_bytes(b"\x89PNG")
    for image in (file, str(file)):
        client._ask_images("m", {"data": image}, None, None)
        assert b"\r\n\r\n\x89PNG\r\n" in recorder.received
    with pytest.raises(FileNotFoundError):
        client._ask_images("m", {"data": tmp_path / "none"}, None, None)


def test_what_is_no_json_is_given_as_it_came(client: BaseClient, recorder: Recorder) -> None:
    recorder.headers, recorder.body = {"Content-Type": "image/png"}, b"\x89PNG"
    assert client._ask_body("m", b"x", "text/csv", None, None) == b"\x89PNG"
    assert recorder.sent["Content-Type"] == "text/csv"


def test_an_overloaded_server_says_when_to_try_again(
    client: BaseClient, recorder: Recorder
) -> None:
    recorder.status, recorder.headers = 503, {"Retry-After": "7"}
    recorder.body = b'{"error": {"code": "queue_full", "message": "full", "request_id": "r1"}}'
    with pytest.raises(ServerError, match=r"^503 queue_full: full \(request r1\)$") as caught:
        client._ask_json("m", {"data": []}, None, None)
    assert caught.value.retry_after_s == 7.0
    assert client.is_ready() is False


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"[]", b'{"error": "x"}', b"\xff"])
def test_the_error_of_a_proxy_is_shown_as_it_is(
    client: BaseClient, recorder: Recorder, body: bytes
) -> None:
    recorder.status, recorder.body, recorder.headers = 502, body, {"X-Request-Id": "r2"}
    with pytest.raises(ServerError) as caught:
        client.is_ready()
    error = caught.value
    assert (error.status, error.code, error.request_id) == (502, "http_error", "r2")
    assert error.message == body.decode(errors="replace")


def test_what_cannot_be_sent_is_refused_before_it_is(client: BaseClient) -> None:
    with pytest.raises(TypeError, match="set cannot be sent as JSON"):
        client._ask_json("m", {"data": [{1}]}, None, None)

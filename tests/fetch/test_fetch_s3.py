"""Downloads from S3: a real service of moto's, and our own where a service is unwell."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from mms.errors import ArchiveError, DownloadFailed, Forbidden
from mms.fetch.admission import parse_policy
from mms.fetch.download import FetchOptions, fetch, fetch_in_thread
from mms.fetch.source import Timeouts
from tests.kit.fileserver import FileServer, Handler, closed_port, digest_of, file_server, silence
from tests.kit.waiting import until

# The same in every process of a parallel run: names of tests hold digests.
CONTENT = random.Random(1).randbytes(1 << 20)
OTHER = random.Random(2).randbytes(1 << 20)
URL = "s3://models/crepe/1/crepe.model"
_KEY = "crepe/1/crepe.model"


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing but what a test sets, and never an account of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    values = {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key-SECRET",
        "AWS_SESSION_TOKEN": "token-SECRET",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(service: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client for a service that is empty but for the bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", service)
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="models")
    yield client
    for found in client.list_objects_v2(Bucket="models").get("Contents", []):
        client.delete_object(Bucket="models", Key=found["Key"])
    client.delete_bucket(Bucket="models")
    client.close()


@pytest.fixture
def unwell(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A service that does what it is told."""
    with file_server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def options(tmp_path: Path) -> FetchOptions:
    return FetchOptions(tmp_path / "cache", timeouts=Timeouts(60, 60), backoff_s=0.0)


def put(s3: Any, content: bytes) -> None:
    s3.put_object(Bucket="models", Key=_KEY, Body=content)


def test_an_object_is_downloaded_once_and_again_when_it_has_changed(
    s3: Any, options: FetchOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    put(s3, CONTENT)
    path = fetch(URL, options)
    assert path.read_bytes() == CONTENT
    assert fetch(URL, options) == path
    assert caplog.messages[-1] == f"{URL} has not changed since it was fetched"
    put(s3, OTHER)
    assert fetch(URL, options).read_bytes() == OTHER
    assert len([m for m in caplog.messages if m.startswith(f"downloaded {URL}: 1.0 MB")]) == 2


def test_a_pin_holds(s3: Any, options: FetchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, CONTENT)
    with pytest.raises(ArchiveError, match=digest_of(CONTENT)):
        fetch(f"{URL}#sha256={digest_of(OTHER)}", options)
    path = fetch(f"{URL}#sha256={digest_of(CONTENT)}", options)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed_port()}")
    assert fetch(f"{URL}#sha256={digest_of(CONTENT)}", options) == path


@pytest.mark.parametrize("changes", [False, True])
async def test_a_cancelled_download_is_resumed_unless_the_object_has_changed(
    s3: Any, options: FetchOptions, changes: bool
) -> None:
    put(s3, CONTENT)
    told: list[int] = []

    class Stops:
        def update(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
            assert total_bytes == len(CONTENT)
            told.append(done_bytes)
            loop.call_soon_threadsafe(task.cancel)
            cancelled.wait()

        def finish(self, name: str) -> None:
            pass

    watched = replace(options, progress=Stops())
    loop, cancelled = asyncio.get_running_loop(), threading.Event()
    task = asyncio.create_task(fetch_in_thread(URL, watched))
    try:
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        cancelled.set()
    await until(lambda: not any(thread.name == "fetch" for thread in threading.enumerate()))
    part = max(path.stat().st_size for path in options.cache.glob("parts/*"))
    assert part == told.pop()
    expected = OTHER if changes else CONTENT
    put(s3, expected)
    assert (await fetch_in_thread(URL, watched)).read_bytes() == expected
    assert (min(told) > part) != changes


def test_a_cut_is_gone_on_with(unwell: FileServer, options: FetchOptions) -> None:
    unwell.add(f"/models/{_KEY}", CONTENT, cuts=[300_000, 300_000])
    assert fetch(URL, options).read_bytes() == CONTENT
    assert [seen.headers.get("Range") for seen in unwell.seen] == [
        None,
        "bytes=300000-",
        "bytes=600000-",
    ]
    assert unwell.seen[-1].headers["If-Match"] == '"v1"'


def test_a_service_without_ranges_sends_it_all_again(
    unwell: FileServer, options: FetchOptions
) -> None:
    unwell.add(f"/models/{_KEY}", CONTENT, cuts=[300_000], knows_ranges=False)
    assert fetch(URL, options).read_bytes() == CONTENT


def test_a_part_that_was_not_asked_for_is_not_used(
    unwell: FileServer, options: FetchOptions
) -> None:
    path = f"/models/{_KEY}"
    unwell.add(path, CONTENT, cuts=[300_000])
    with pytest.raises(DownloadFailed):
        fetch(URL, replace(options, attempts=1))

    def wrong(handler: Handler) -> None:
        del unwell.odd[path]
        handler.answer(206, b"x" * 100, Content_Range="bytes 5-104/1048576", ETag='"v1"')

    unwell.odd[path] = wrong
    assert fetch(URL, options).read_bytes() == CONTENT
    assert "Range" not in unwell.seen[-1].headers


def test_a_service_that_is_unwell_is_asked_again_and_else_the_copy_is_served(
    unwell: FileServer, options: FetchOptions, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"/models/{_KEY}"
    unwell.add(path, CONTENT)
    unwell.odd[path] = lambda handler: handler.answer(503)
    with pytest.raises(DownloadFailed, match=r"responded with status 503.*\(attempts: 4\)"):
        fetch(URL, options)
    assert len(unwell.seen) == 4
    del unwell.odd[path]
    fetched = fetch(URL, options)
    unwell.odd[path] = lambda handler: handler.answer(500)
    assert fetch(URL, options) == fetched
    assert "serving the cached copy" in caplog.messages[-1]


def test_a_service_that_is_not_there_is_an_error(
    options: FetchOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(DownloadFailed, match="the service cannot be reached"):
        fetch(URL, options)
    assert not [path for path in options.cache.glob("*/*") if path.parent.name != "locks"]


def test_silence_is_an_error(unwell: FileServer, options: FetchOptions) -> None:
    unwell.odd[f"/models/{_KEY}"] = silence
    with pytest.raises(DownloadFailed, match="ReadTimeoutError"):
        fetch(URL, replace(options, timeouts=Timeouts(0.3, 0.3), attempts=1))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://models/none", "no such object or bucket .404 NoSuchKey"),
        ("s3://no-such-bucket/x", "no such object or bucket .404 NoSuchBucket"),
    ],
)
def test_what_is_not_there_is_said(s3: Any, options: FetchOptions, url: str, said: str) -> None:
    with pytest.raises(DownloadFailed, match=said):
        fetch(url, options)


def test_what_is_denied_is_said(unwell: FileServer, options: FetchOptions) -> None:
    unwell.odd[f"/models/{_KEY}"] = lambda handler: handler.answer(403)
    with pytest.raises(DownloadFailed, match="access is denied to these credentials"):
        fetch(URL, options)


def test_without_credentials_it_says_what_to_set(
    s3: Any, options: FetchOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DownloadFailed, match="AWS_ACCESS_KEY_ID"):
        fetch(URL, options)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_PROFILE", "none-such", "none-such"),
        ("AWS_ENDPOINT_URL", "no url", "Invalid endpoint"),
        ("AWS_SECRET_ACCESS_KEY", "", "missing: AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_an_environment_that_makes_no_sense_is_said(
    options: FetchOptions, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(DownloadFailed, match=f"S3 is not configured: .*{said}"):
        fetch(URL, options)


def test_the_policy_is_asked_and_the_endpoint_is_the_operators(
    s3: Any, options: FetchOptions
) -> None:
    put(s3, CONTENT)
    with pytest.raises(Forbidden):
        fetch(URL, options, parse_policy(["s3://other/.*", "https://.*"], False))
    # On this machine, but no client named it.
    assert fetch(URL, options, parse_policy(["s3://models/.*"], False)).read_bytes() == CONTENT


def test_no_secret_is_logged_however_much_is(
    s3: Any, options: FetchOptions, caplog: pytest.LogCaptureFixture
) -> None:
    put(s3, CONTENT)
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    fetch(URL, options)
    assert caplog.records
    assert not [message for message in caplog.messages if "SECRET" in message]


def test_without_boto3_it_says_what_to_install(options: FetchOptions) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from mms.fetch.download import FetchOptions, fetch\n"
        "assert 'boto3' not in sys.modules\n"
        "sys.modules['boto3'] = None\n"
        "try:\n    fetch(sys.argv[1], FetchOptions(Path(sys.argv[2])))\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, URL, str(options.cache)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("DownloadFailed ")
    assert "pip install 'mxnet-model-server[s3]'" in done.stdout

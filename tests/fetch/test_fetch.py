"""Downloads over HTTP, from a real server that cuts, lies, redirects and stalls when told to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import uvloop

from mms.archive.reader import read_manifest
from mms.errors import ArchiveError, DownloadFailed, Forbidden
from mms.fetch.admission import Policy, parse_policy
from mms.fetch.cache import Cache
from mms.fetch.download import FetchOptions, cached, fetch, fetch_in_thread, opening
from mms.fetch.location import parse_location
from mms.fetch.source import Timeouts
from tests.kit.fileserver import (
    FileServer,
    Handler,
    closed_port,
    digest_of,
    file_server,
    redirect,
    says,
    silence,
    write_certificate,
)
from tests.kit.waiting import until

# Python 3.10 warns of every TLS connection that the peer closes first. Sockets that stay open are
# found by the number of their descriptors.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function _SSLProtocolTransport:"
    "pytest.PytestUnraisableExceptionWarning"
)

#: Longer than what fits into the buffers of a connection, so that a cut is noticed where it is.
# The same in every process of a parallel run: names of tests hold digests.
CONTENT = random.Random(1).randbytes(1 << 20)
OTHER = random.Random(2).randbytes(1 << 20)
DIGEST = digest_of(CONTENT)
DATE = "Sat, 21 Nov 2026 10:00:00 GMT"
#: Nothing below is this slow; a test that waits this long fails by pytest's own limit.
PATIENT = Timeouts(connect_s=60, read_s=60)
IMPATIENT = Timeouts(connect_s=60, read_s=1)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture
def other() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture
def options(tmp_path: Path) -> FetchOptions:
    return FetchOptions(tmp_path / "cache", timeouts=PATIENT, backoff_s=0.0)


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def kept(options: FetchOptions) -> set[str]:
    """Return the files in the cache, locks left out."""
    return {
        str(path.relative_to(options.cache))
        for path in options.cache.rglob("*")
        if path.is_file() and path.parent.name != "locks"
    }


def parts(options: FetchOptions) -> list[Path]:
    return [path for path in (options.cache / "parts").iterdir() if not path.suffix]


def fails(url: str, options: FetchOptions, said: str, policy: Policy | None = None) -> str:
    """Check that a fetch fails for a reason and leaves nothing, and return the error's text."""
    with pytest.raises(DownloadFailed, match=said) as caught:
        fetch(url, options, policy)
    assert kept(options) == set()
    return str(caught.value)


class TestLocal:
    @pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
    def test_what_is_here_is_given_as_it_is(
        self, tmp_path: Path, options: FetchOptions, form: str
    ) -> None:
        path = tmp_path / "x.model"
        path.write_bytes(CONTENT)
        assert fetch(form.format(path), options) == path
        assert fetch(form.format(path) + f"#sha256={DIGEST}", options) == path
        assert fetch(form.format(tmp_path), options) == tmp_path
        assert not options.cache.exists()

    def test_a_file_that_differs_from_its_pin_is_refused(
        self, tmp_path: Path, options: FetchOptions
    ) -> None:
        path = tmp_path / "x.model"
        path.write_bytes(OTHER)
        with pytest.raises(ArchiveError) as caught:
            fetch(f"{path}#sha256={DIGEST}", options)
        assert DIGEST in str(caught.value)
        assert digest_of(OTHER) in str(caught.value)

    def test_only_files_can_be_pinned(self, tmp_path: Path, options: FetchOptions) -> None:
        with pytest.raises(ArchiveError, match="a folder has no sha256"):
            fetch(f"{tmp_path}#sha256={DIGEST}", options)
        with pytest.raises(ArchiveError, match="No such file"):
            fetch(f"{tmp_path}/none#sha256={DIGEST}", options)


class TestCache:
    def test_a_download_is_kept_under_its_sha256_and_nothing_else_is_left(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        path = fetch(server.add("/x.model", CONTENT), options)
        assert path == options.cache / "blobs" / DIGEST
        assert path.read_bytes() == CONTENT
        assert len(kept(options)) == 2
        assert {name.partition("/")[0] for name in kept(options)} == {"blobs", "index"}
        assert server.seen[0].headers["User-Agent"].startswith("mxnet-model-server/")

    @pytest.mark.parametrize(
        "how", [{"etag": 'W/"weak"'}, {"etag": "", "last_modified": DATE}, {"last_modified": DATE}]
    )
    def test_an_unchanged_file_is_not_downloaded_again(
        self, server: FileServer, options: FetchOptions, how: dict[str, str]
    ) -> None:
        url = server.add("/x.model", CONTENT, **how)
        first = fetch(url, options)
        assert fetch(url, options) == first
        assert server.bodies("/x.model") == 1
        assert len(server.seen) == 2

    def test_a_changed_file_is_downloaded(self, server: FileServer, options: FetchOptions) -> None:
        url = server.add("/x.model", CONTENT)
        fetch(url, options)
        server.add("/x.model", OTHER, etag='"v2"')
        assert fetch(url, options).read_bytes() == OTHER
        assert fetch(url, options).read_bytes() == OTHER
        assert [seen.headers.get("If-None-Match") for seen in server.seen] == [
            None,
            '"v1"',
            '"v2"',
        ]

    def test_without_a_validator_it_is_downloaded_each_time(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT, etag="")
        fetch(url, options)
        server.add("/x.model", OTHER, etag="")
        assert fetch(url, options).read_bytes() == OTHER

    def test_urls_that_differ_in_their_query_are_kept_apart(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        fetch(f"{url}?version=1", options)
        server.add("/x.model", OTHER)
        # The same validator, but nobody asks with it.
        assert fetch(f"{url}?version=2", options).read_bytes() == OTHER

    def test_a_blob_that_was_damaged_on_disk_is_fetched_again(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        fetch(url, options).write_bytes(b"damaged")
        assert fetch(url, options).read_bytes() == CONTENT
        fetch(url, options).unlink()
        assert fetch(url, options).read_bytes() == CONTENT
        assert server.bodies("/x.model") == 3

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"\xff",
            b'{"digest": 5}',
            b'{"digest": "../../x", "etag": "", "last_modified": ""}',
            b"[" * 100_000,
        ],
        ids=range(7),
    )
    def test_an_index_that_makes_no_sense_counts_as_none(
        self, server: FileServer, options: FetchOptions, content: bytes
    ) -> None:
        url = server.add("/x.model", CONTENT)
        fetch(url, options)
        (entry,) = (options.cache / "index").iterdir()
        entry.write_bytes(content)
        assert cached(url, options) is None
        assert fetch(url, options).read_bytes() == CONTENT
        assert server.bodies("/x.model") == 2

    def test_nobody_else_may_write_to_it_or_read_it(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        path = fetch(server.add("/x.model", CONTENT), options)
        assert path.stat().st_mode & 0o777 == 0o600
        for folder in options.cache.iterdir():
            assert folder.stat().st_mode & 0o777 == 0o700

    def test_a_folder_that_cannot_be_made_is_named(
        self, server: FileServer, options: FetchOptions, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        blocked = replace(options, cache=tmp_path / "file" / "cache")
        url = server.add("/x.model", CONTENT)
        with pytest.raises(DownloadFailed, match=f"{tmp_path}/file/cache: Not a dir.*cache_dir"):
            fetch(url, blocked)

    def test_what_is_cached_can_be_asked_for_without_asking_the_server(
        self, server: FileServer, options: FetchOptions, tmp_path: Path
    ) -> None:
        url = server.add("/x.model", CONTENT)
        assert cached(url, options) is None
        path = fetch(url, options)
        assert cached(url, options) == path
        assert cached(f"{url}/other#sha256={DIGEST}", options) == path
        assert cached(str(tmp_path), options) == tmp_path
        assert len(server.seen) == 1


class TestPins:
    def test_what_has_the_right_digest_is_given(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        path = fetch(f"{url}#sha256={DIGEST.upper()}", options)
        assert path.read_bytes() == CONTENT
        assert server.seen[0].path == "/x.model"

    def test_a_mismatch_names_both_digests_and_keeps_nothing(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", OTHER)
        with pytest.raises(ArchiveError) as caught:
            fetch(f"{url}#sha256={DIGEST}", options)
        assert DIGEST in str(caught.value)
        assert digest_of(OTHER) in str(caught.value)
        assert kept(options) == set()
        assert len(server.seen) == 1

    def test_a_mismatch_leaves_what_was_kept_of_the_url_before(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        fetch(url, options)
        before = kept(options)
        with pytest.raises(ArchiveError, match="is pinned to"):
            fetch(f"{url}#sha256={digest_of(OTHER)}", options)
        assert kept(options) == before

    def test_what_is_kept_is_given_without_asking(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = f"{server.add('/x.model', CONTENT)}#sha256={DIGEST}"
        path = fetch(url, options)
        connections = server.connections
        assert fetch(url, options) == path
        # From wherever it came.
        assert fetch(f"http://127.0.0.1:{closed_port()}/y#sha256={DIGEST}", options) == path
        assert server.connections == connections

    def test_a_damaged_copy_is_not_given(self, server: FileServer, options: FetchOptions) -> None:
        url = f"{server.add('/x.model', CONTENT)}#sha256={DIGEST}"
        fetch(url, options).write_bytes(b"damaged")
        assert fetch(url, options).read_bytes() == CONTENT


class TestNetworkDown:
    def test_what_is_kept_is_served_with_a_warning(
        self, options: FetchOptions, caplog: pytest.LogCaptureFixture
    ) -> None:
        with file_server() as server:
            url = server.add("/x.model", CONTENT)
            path = fetch(url, options)
        assert fetch(url, options) == path
        (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert "Connection refused; serving the cached copy" in record.getMessage()

    @pytest.mark.parametrize("status", [500, 502, 503, 429])
    def test_so_it_is_when_the_server_is_unwell(
        self, server: FileServer, options: FetchOptions, status: int
    ) -> None:
        url = server.add("/x.model", CONTENT)
        path = fetch(url, options)
        server.odd["/x.model"] = lambda handler: handler.answer(status)
        assert fetch(url, options) == path

    @pytest.mark.parametrize("status", [401, 403, 404, 410])
    def test_a_server_that_says_no_is_believed(
        self, server: FileServer, options: FetchOptions, status: int
    ) -> None:
        url = server.add("/x.model", CONTENT)
        fetch(url, options)
        server.odd["/x.model"] = lambda handler: handler.answer(status)
        with pytest.raises(DownloadFailed, match=str(status)):
            fetch(url, options)

    def test_what_is_not_kept_is_an_error_that_says_why(self, options: FetchOptions) -> None:
        port = closed_port()
        fails(f"http://127.0.0.1:{port}/x.model", options, r"Connection refused \(attempts: 4\)")

    def test_a_name_that_nobody_knows_is_an_error(self, options: FetchOptions) -> None:
        once = replace(options, attempts=1)
        fails("http://no-such-host.invalid/x.model", once, "cannot be resolved")


class TestCuts:
    def test_a_cut_download_is_gone_on_with_at_once(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT, cuts=[300_000, 200_000])
        assert fetch(url, options).read_bytes() == CONTENT
        assert [seen.headers.get("Range") for seen in server.seen] == [
            None,
            "bytes=300000-",
            "bytes=500000-",
        ]
        assert {seen.headers["If-Range"] for seen in server.seen[1:]} == {'"v1"'}

    @pytest.mark.parametrize("how", [{}, {"etag": "", "last_modified": DATE}])
    def test_one_that_is_cut_too_often_is_gone_on_with_the_next_time(
        self, server: FileServer, options: FetchOptions, how: dict[str, str]
    ) -> None:
        url = server.add("/x.model", CONTENT, cuts=[100_000] * 4, **how)
        with pytest.raises(DownloadFailed, match="interrupted after 400000 of 1048576 bytes"):
            fetch(url, options)
        (part,) = parts(options)
        assert part.read_bytes() == CONTENT[:400_000]
        assert {name.partition("/")[0] for name in kept(options)} == {"parts"}
        assert fetch(url, options).read_bytes() == CONTENT
        assert server.seen[-1].headers["Range"] == "bytes=400000-"
        assert parts(options) == []

    def test_without_a_strong_validator_it_begins_anew_and_leaves_nothing(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT, etag='W/"weak"', cuts=[100_000] * 4)
        fails(url, options, "interrupted after 100000 of 1048576 bytes")
        assert fetch(url, options).read_bytes() == CONTENT
        assert not any("Range" in seen.headers for seen in server.seen)

    def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT, cuts=[100_000] * 4)
        with pytest.raises(DownloadFailed):
            fetch(url, options)
        server.add("/x.model", OTHER, etag='"v2"')
        assert fetch(url, options).read_bytes() == OTHER
        assert server.seen[-1].headers["Range"] == "bytes=400000-"

    def test_a_file_that_became_shorter_is_asked_for_from_the_start(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT, cuts=[100_000] * 4)
        with pytest.raises(DownloadFailed):
            fetch(url, options)
        server.add("/x.model", OTHER[:1000])
        assert fetch(url, options).read_bytes() == OTHER[:1000]

    def test_a_server_without_ranges_sends_it_all_again(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT, cuts=[100_000], knows_ranges=False)
        assert fetch(url, options).read_bytes() == CONTENT

    @pytest.mark.parametrize(
        "content_range", ["", "bytes", "bytes 5-1048575/1048576", "bytes */1048576"]
    )
    def test_a_part_that_was_not_asked_for_is_not_used(
        self, server: FileServer, options: FetchOptions, content_range: str
    ) -> None:
        url = server.add("/x.model", CONTENT, cuts=[100_000] * 4)
        with pytest.raises(DownloadFailed):
            fetch(url, options)

        def wrong(handler: Handler) -> None:
            del server.odd["/x.model"]
            handler.answer(206, b"x" * 100, Content_Range=content_range)

        server.odd["/x.model"] = wrong
        assert fetch(url, options).read_bytes() == CONTENT
        assert "Range" not in server.seen[-1].headers

    def test_a_cut_before_and_within_the_head_is_tried_again(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        heads = [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n"]

        def cut(handler: Handler) -> None:
            head = heads.pop()
            # Before the client hears of it: its next attempt may be quicker than this thread.
            if not heads:
                del server.odd["/x.model"]
            handler.wfile.write(head)

        server.odd["/x.model"] = cut
        assert fetch(url, options).read_bytes() == CONTENT
        assert len(server.seen) == 4

    def test_each_attempt_is_one_request(self, server: FileServer, options: FetchOptions) -> None:
        server.odd["/x.model"] = says(b"")
        twice = replace(options, attempts=2)
        fails(f"{server.url}/x.model", twice, r"closed the connection .* \(attempts: 2\)")
        assert len(server.seen) == server.connections == 2

    def test_a_cut_in_chunks_is_noticed(self, server: FileServer, options: FetchOptions) -> None:
        url = server.url + "/x.model"
        server.odd["/x.model"] = chunked([b"1" * 70_000], ends=False)
        fails(url, options, "cut")
        server.odd["/x.model"] = chunked([b"1" * 70_000, b"2" * 70_000])
        assert fetch(url, options).read_bytes() == b"1" * 70_000 + b"2" * 70_000

    def test_a_passing_error_is_tried_again(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        statuses = [503, 429, 500]

        def unwell(handler: Handler) -> None:
            status = statuses.pop()
            # As above: the next attempt may come before this function goes on.
            if not statuses:
                del server.odd["/x.model"]
            handler.answer(status)

        server.odd["/x.model"] = unwell
        assert fetch(url, options).read_bytes() == CONTENT

    def test_a_process_that_is_killed_leaves_what_the_next_one_goes_on_with(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT, cuts=[400_000])
        program = (
            "import sys\nfrom pathlib import Path\n"
            "from mms.fetch.download import FetchOptions, fetch\n"
            "fetch(sys.argv[1], FetchOptions(Path(sys.argv[2]), backoff_s=60))"
        )
        process = subprocess.Popen([sys.executable, "-c", program, url, str(options.cache)])
        pause = threading.Event()
        # It waits for its second attempt.
        while not options.cache.exists() or not any(
            part.stat().st_size == 400_000 for part in options.cache.glob("parts/*")
        ):
            assert process.poll() is None
            pause.wait(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert fetch(url, options).read_bytes() == CONTENT
        assert server.seen[-1].headers["Range"] == "bytes=400000-"


def chunked(chunks: list[bytes], ends: bool = True) -> Callable[[Handler], None]:
    """Send a body without a length."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for chunk in chunks:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if ends:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "said"),
        [
            (400, r"unexpected status \(400\)"),
            (401, "requires credentials"),
            (403, "denies access; a signed URL may have expired"),
            (404, "there is no such file"),
            (204, "204"),
            (302, "302"),
        ],
    )
    def test_no_is_said_at_once_and_with_the_reason(
        self, server: FileServer, options: FetchOptions, status: int, said: str
    ) -> None:
        server.odd["/x.model"] = lambda handler: handler.answer(status)
        fails(f"{server.url}/x.model", options, said)
        assert len(server.seen) == 1

    def test_not_changed_is_no_answer_to_who_has_nothing(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        server.odd["/x.model"] = lambda handler: handler.answer(304)
        fails(f"{server.url}/x.model", options, r"unexpected status \(304\)")

    def test_a_packed_answer_is_refused(self, server: FileServer, options: FetchOptions) -> None:
        server.odd["/x.model"] = lambda handler: handler.answer(200, b"x", Content_Encoding="gzip")
        fails(f"{server.url}/x.model", options, "unexpected Content-Encoding 'gzip'")

    @pytest.mark.parametrize(
        "line",
        [b"SSH-2.0-OpenSSH SECRET\r\n", b"\0" * 100, b"HTTP/1.1 SECRET\r\n\r\n", b"x" * 1000],
    )
    def test_what_is_no_http_server_is_not_quoted(
        self, server: FileServer, options: FetchOptions, line: bytes
    ) -> None:
        server.odd["/x.model"] = says(line)
        text = fails(f"{server.url}/x.model", options, "not valid HTTP|closed the connection|cut")
        assert "SECRET" not in text

    def test_headers_without_end_are_refused(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        def flood(handler: Handler) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-Header: x\r\n" * 10_000)

        server.odd["/x.model"] = flood
        fails(f"{server.url}/x.model", options, "not valid HTTP")


class TestDeadPeers:
    def test_silence_is_an_error(self, server: FileServer, options: FetchOptions) -> None:
        server.odd["/x.model"] = silence
        impatient = replace(options, timeouts=IMPATIENT, attempts=2)
        fails(f"{server.url}/x.model", impatient, r"no answer within .* \(attempts: 2\)")

    def test_silence_in_the_middle_is_an_error_and_what_came_is_kept(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        def stall(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.send_header("ETag", '"v1"')
            handler.end_headers()
            handler.wfile.write(CONTENT[:100])
            server.closing.wait()

        server.odd["/x.model"] = stall
        with pytest.raises(DownloadFailed, match="no answer within"):
            fetch(f"{server.url}/x.model", replace(options, timeouts=IMPATIENT, attempts=1))
        (part,) = parts(options)
        assert part.read_bytes() == CONTENT[:100]

    def test_a_byte_now_and_then_is_an_error(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        def drip(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(1 << 30))
            handler.end_headers()
            while not server.closing.wait(0.02):
                handler.wfile.write(b"x")

        server.odd["/x.model"] = drip
        impatient = replace(options, timeouts=IMPATIENT, attempts=1)
        fails(f"{server.url}/x.model", impatient, "peer stalled: less than 1024 bytes/s")

    @pytest.mark.parametrize(
        "drip", [b"x", b"X: x\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["byte", "header", "100"]
    )
    def test_headers_that_take_for_ever_are_an_error(
        self, server: FileServer, options: FetchOptions, drip: bytes
    ) -> None:
        def dripping(handler: Handler) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n" if drip[:1] != b"H" else drip)
            while not server.closing.wait(0.1):
                handler.wfile.write(drip)

        server.odd["/x.model"] = dripping
        hasty = replace(options, timeouts=Timeouts(0.5, 0.5), attempts=1)
        fails(f"{server.url}/x.model", hasty, "no answer within")

    def test_a_slow_one_is_not_dead(self, server: FileServer, options: FetchOptions) -> None:
        def slowly(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
            # Longer in all than it may be silent.
            for _ in range(20):
                server.closing.wait(0.1)
                handler.wfile.write(b"x" * 5_000)

        server.odd["/x.model"] = slowly
        impatient = replace(options, timeouts=IMPATIENT)
        assert fetch(f"{server.url}/x.model", impatient).read_bytes() == b"x" * 100_000

    def test_a_port_that_does_not_answer_is_an_error(self, options: FetchOptions) -> None:
        hasty = replace(options, timeouts=Timeouts(0.3, 60), attempts=1)
        with deaf_port() as port:
            fails(f"http://127.0.0.1:{port}/x", hasty, "no answer within")

    async def test_a_download_that_waits_for_a_connection_can_be_cancelled(
        self, options: FetchOptions
    ) -> None:
        def connecting() -> int:
            return [c.status for c in psutil.Process().net_connections()].count("SYN_SENT")

        with deaf_port() as port:
            before = connecting()
            task = asyncio.create_task(fetch_in_thread(f"http://127.0.0.1:{port}/x", options))
            await until(lambda: connecting() > before)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await downloads_end()

    async def test_a_cancelled_download_ends_at_once_and_can_be_resumed(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        class Stops:
            """Has the download cancelled with its first bytes."""

            def update(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
                loop.call_soon_threadsafe(task.cancel)
                cancelled.wait()

            def finish(self, name: str) -> None:
                pass

        loop, cancelled = asyncio.get_running_loop(), threading.Event()
        url = server.add("/x.model", CONTENT * 8)
        task = asyncio.create_task(fetch_in_thread(url, replace(options, progress=Stops())))
        try:
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            cancelled.set()
        await downloads_end()
        # What came stays, to resume from; the lock does not.
        assert (await fetch_in_thread(url, options)).read_bytes() == CONTENT * 8
        assert "Range" in server.seen[-1].headers

    @pytest.mark.parametrize("waits_for", ["lock", "head", "next attempt"])
    async def test_whatever_a_download_waits_for_it_can_be_cancelled(
        self,
        server: FileServer,
        options: FetchOptions,
        caplog: pytest.LogCaptureFixture,
        waits_for: str,
    ) -> None:
        caplog.set_level(logging.INFO)
        server.odd["/x.model"] = silence
        url = f"{server.url}/x.model"
        if waits_for == "next attempt":
            server.odd["/x.model"] = lambda handler: handler.answer(503)
        async with contextlib.AsyncExitStack() as stack:
            if waits_for == "lock":
                lock = Cache(options.cache).lock(parse_location(url).key)
                await stack.enter_async_context(lock)
            task = asyncio.create_task(fetch_in_thread(url, replace(options, backoff_s=600)))
            await until(lambda: waits_for == "lock" or bool(server.seen))
            if waits_for == "next attempt":
                await until(lambda: "retrying" in caplog.text)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await downloads_end()
        assert len(server.seen) == (waits_for != "lock")
        del server.odd["/x.model"]
        server.add("/x.model", CONTENT)
        assert (await fetch_in_thread(url, options)).read_bytes() == CONTENT


async def downloads_end() -> None:
    await until(lambda: not any(thread.name == "fetch" for thread in threading.enumerate()))


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose line of connections, which nobody accepts, is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


class TestLimits:
    def test_a_file_that_says_it_is_too_long_is_not_begun(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        fails(url, replace(options, max_bytes=len(CONTENT) - 1), "max_archive_bytes")
        assert fetch(url, replace(options, max_bytes=len(CONTENT))).read_bytes() == CONTENT

    def test_one_without_end_is_ended(self, server: FileServer, options: FetchOptions) -> None:
        def endless(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            while True:
                handler.wfile.write(b"10000\r\n%s\r\n" % (b"x" * 0x10000))

        server.odd["/x.model"] = endless
        fails(f"{server.url}/x.model", replace(options, max_bytes=1 << 20), "max_archive_bytes")

    def test_parts_count_towards_the_limit(self, server: FileServer, options: FetchOptions) -> None:
        url = server.add("/x.model", CONTENT, cuts=[400_000] * 4)
        with pytest.raises(DownloadFailed):
            fetch(url, replace(options, attempts=1))
        fails(url, replace(options, max_bytes=500_000), "max_archive_bytes")

    @pytest.mark.parametrize("room", [500_000, 10])
    def test_a_disk_that_takes_no_more_is_named_and_nothing_stays(
        self, server: FileServer, options: FetchOptions, room: int
    ) -> None:
        url = server.add("/x.model", CONTENT)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            fails(url, options, f"cannot be kept in {options.cache}: .*make room there")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert fetch(url, options).read_bytes() == CONTENT
        assert "Range" not in server.seen[-1].headers


class TestSeveralAtOnce:
    @pytest.mark.parametrize("etag", ['"v1"', ""])
    @pytest.mark.parametrize("pin", ["", f"#sha256={DIGEST}"])
    def test_threads_share_one_download(
        self, server: FileServer, options: FetchOptions, etag: str, pin: str
    ) -> None:
        url = server.add("/x.model", CONTENT, etag=etag) + pin
        found: list[Path] = []

        def once_all_wait(handler: Handler) -> None:
            del server.odd["/x.model"]
            while holders() < 8:
                server.closing.wait(0.01)
            handler.do_GET()

        def holders() -> int:
            """How many have the lock's file open: one holds it, the others wait for it."""
            count = 0
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    count += "/locks/" in os.readlink(f"/proc/self/fd/{name}")
            return count

        server.odd["/x.model"] = once_all_wait
        threads = [
            threading.Thread(target=lambda: found.append(fetch(url, options))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {path.read_bytes() for path in found} == {CONTENT}
        assert len(found) == 8
        # One request, noted twice: when it came, and when it was answered.
        assert len(server.seen) == 2

    def test_processes_do_not_disturb_each_other(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT, cuts=[100_000, 100_000, 100_000])
        program = (
            "import sys\nfrom pathlib import Path\n"
            "from mms.fetch.download import FetchOptions, fetch\n"
            "for _ in range(20):\n"
            "    options = FetchOptions(Path(sys.argv[2]), backoff_s=0)\n"
            "    path = fetch(sys.argv[1], options)\n"
            "print(path)"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, url, str(options.cache)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for process in processes:
            output, errors = process.communicate()
            assert (process.returncode, errors) == (0, "")
            assert Path(output.strip()) == options.cache / "blobs" / DIGEST
        assert parts(options) == []
        assert server.bodies("/x.model") == 4


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_they_are_followed(
        self, server: FileServer, other: FileServer, options: FetchOptions, status: int
    ) -> None:
        server.odd["/a"] = redirect("b?x=1#fragment", status)
        server.odd["/b"] = redirect(f"{other.url}/größe".encode().decode("latin-1"), status)
        other.add("/gr%C3%B6%C3%9Fe", CONTENT)
        assert fetch(f"{server.url}/a", options).read_bytes() == CONTENT
        assert [seen.path for seen in server.seen] == ["/a", "/b?x=1"]
        # The validator is that of what was found at the end, and asked for there.
        fetch(f"{server.url}/a", options)
        assert other.bodies("/gr%C3%B6%C3%9Fe") == 1

    def test_a_cut_is_gone_on_with_behind_them(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        server.odd["/a"] = redirect("/x.model")
        server.add("/x.model", CONTENT, cuts=[100_000])
        assert fetch(f"{server.url}/a", options).read_bytes() == CONTENT
        assert server.seen[-1].headers["Range"] == "bytes=100000-"

    def test_a_circle_is_left(self, server: FileServer, options: FetchOptions) -> None:
        server.odd["/a"] = redirect("/a")
        fails(f"{server.url}/a", options, "more than 10 redirects")
        assert len(server.seen) == 11

    @pytest.mark.parametrize(
        "target",
        [
            "file:///etc/passwd",
            "ftp://host/x",
            "s3://bucket/key",
            "gopher://host/",
            "http://[",
            "http://host:x/",
            "data:,x",
            "",
        ],
    )
    def test_only_http_is_followed(
        self, server: FileServer, options: FetchOptions, target: str
    ) -> None:
        server.odd["/a"] = redirect(target)
        if not target:
            # Which is the same URL again.
            fails(f"{server.url}/a", options, "more than 10 redirects")
        else:
            fails(f"{server.url}/a", options, "which is not an http:// or https:// URL")


class TestCredentials:
    def test_they_are_sent_to_their_server_and_to_no_other(
        self, server: FileServer, other: FileServer, options: FetchOptions
    ) -> None:
        url = server.url.replace("http://", "http://user:p%40ss@") + "/a"
        server.odd["/a"] = redirect("/b")
        server.odd["/b"] = redirect(f"{server.url}/c")
        server.odd["/c"] = redirect(f"{other.url}/x.model")
        other.add("/x.model", CONTENT)
        fetch(url, options)
        expected = "Basic " + base64.b64encode(b"user:p@ss").decode()
        assert [seen.headers["Authorization"] for seen in server.seen] == [expected] * 3
        assert [seen.headers["Authorization"] for seen in other.seen] == [None]
        assert server.seen[0].headers["Host"] == f"127.0.0.1:{server.port}"

    def test_no_secret_of_a_url_is_logged_told_or_kept(
        self,
        server: FileServer,
        options: FetchOptions,
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
    ) -> None:
        caplog.set_level(logging.DEBUG)

        def secret(path: str) -> str:
            return f"{server.url}{path}?sig=SECRET".replace("http://", "http://user:SECRET@")

        server.add("/cut", CONTENT, cuts=[1000])
        server.odd["/to"] = redirect("/cut?sig=SECRET")
        server.odd["/to-nowhere"] = redirect("ftp://user:SECRET@host/?sig=SECRET")
        server.odd["/404"] = lambda handler: handler.answer(404)
        server.odd["/500"] = lambda handler: handler.answer(500)
        server.odd["/circle"] = redirect("/circle?sig=SECRET")
        server.odd["/garbage"] = says(b"SECRET\r\n\r\n")
        texts = []
        for path in ("/cut", "/to", "/to-nowhere", "/404", "/500", "/circle", "/garbage"):
            for pin in ("", f"#sha256={digest_of(OTHER)}"):
                try:
                    fetched = fetch(secret(path) + pin, options)
                    with opening(secret(path), fetched, options):
                        read_manifest(fetched)
                except ArchiveError as error:
                    texts.append(str(error))
        for url in (secret("/x"), f"{server.url}/SECRET"):
            with pytest.raises(Forbidden) as caught:
                fetch(url.replace("/SECRET", "/?SECRET"), options, Policy())
            texts.append(str(caught.value))
        assert len(texts) == 16
        assert len(caplog.messages) > 10
        for text in [*texts, *caplog.messages]:
            assert "SECRET" not in text
        for file in kept(options):
            assert b"SECRET" not in (options.cache / file).read_bytes()
            assert "SECRET" not in file


class SomeOfThisMachineIsOutside(Policy):
    def is_public(self, address: str) -> bool:
        return address == "127.0.0.1"


class TestPolicy:
    def test_a_url_that_is_not_permitted_is_not_asked(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        for policy in (Policy(), parse_policy(["https://models.example/.*"], True)):
            with pytest.raises(Forbidden):
                fetch(url, options, policy)
            with pytest.raises(Forbidden):
                fetch(f"{url}#sha256={DIGEST}", options, policy)
        assert server.connections == 0
        assert not options.cache.exists()

    def test_a_permitted_url_is_fetched(self, server: FileServer, options: FetchOptions) -> None:
        url = server.add("/x.model", CONTENT)
        policy = parse_policy([f"{re.escape(server.url)}/.*"], True)
        assert fetch(url, options, policy).read_bytes() == CONTENT

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433", "0x7f.1"])
    def test_an_address_inside_is_not_connected_to_whatever_it_is_called(
        self, server: FileServer, options: FetchOptions, host: str
    ) -> None:
        server.add("/x.model", CONTENT)
        url = f"http://{host}:{server.port}/x.model"
        with pytest.raises(Forbidden, match="allow_private_urls"):
            fetch(url, options, parse_policy(["http://.*"], False))
        assert server.connections == 0
        assert kept(options) == set()
        assert fetch(url, options, parse_policy(["http://.*"], True)).read_bytes() == CONTENT

    @pytest.mark.parametrize(
        "host",
        [
            *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]"),
            *("[2002:7f00:1::]", "[fe80::1]", "[fc00::1]", "10.0.0.1", "169.254.169.254"),
        ],
    )
    def test_no_literal_address_inside_is_connected_to(
        self, server: FileServer, options: FetchOptions, host: str
    ) -> None:
        with pytest.raises(Forbidden, match="allow_private_urls"):
            fetch(f"http://{host}:{server.port}/x", options, parse_policy(["http://.*"], False))
        assert server.connections == 0

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433"])
    def test_what_is_checked_is_the_very_address_that_is_connected_to(
        self, server: FileServer, options: FetchOptions, host: str
    ) -> None:
        server.add("/x.model", CONTENT, cuts=[1000])
        server.odd["/a"] = redirect("/x.model")
        checked: list[str] = []

        class Records(Policy):
            def is_public(self, address: str) -> bool:
                if address == "127.0.0.1":
                    checked.append(address)
                    # Nothing else has looked an address up in between, nor connected.
                    assert server.connections == len(checked) - 1
                return True

        url = f"http://{host}:{server.port}/a"
        assert fetch(url, options, Records((re.compile("http://.*"),))).read_bytes() == CONTENT
        # Two attempts, with two requests each.
        assert len(checked) == server.connections == 4

    def test_a_redirect_to_what_is_not_permitted_is_not_followed(
        self, server: FileServer, other: FileServer, options: FetchOptions
    ) -> None:
        server.odd["/x.model"] = redirect(other.add("/x.model", CONTENT))
        policy = parse_policy([f"{re.escape(server.url)}/models/.*"], True)
        server.odd["/models/a"] = redirect(f"{other.url}/models/x")
        with pytest.raises(Forbidden, match=f"127.0.0.1:{other.port}/models/x"):
            fetch(f"{server.url}/models/a", options, policy)
        assert other.connections == 0
        assert kept(options) == set()
        for target in ("../x", "/models/../x", "/models/%2e%2e/x", "/models/..;/x"):
            server.odd["/models/a"] = redirect(target)
            with pytest.raises(Forbidden):
                fetch(f"{server.url}/models/a", options, policy)
        assert {seen.path for seen in server.seen} == {"/models/a"}

    def test_a_redirect_to_an_address_inside_is_not_connected_to(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        policy = SomeOfThisMachineIsOutside(parse_policy(["http://.*"], False).patterns)
        with file_server("127.0.0.2") as inside:
            server.odd["/x.model"] = redirect(inside.add("/x.model", CONTENT))
            with pytest.raises(Forbidden, match=r"127\.0\.0\.2 is inside"):
                fetch(f"{server.url}/x.model", options, policy)
            assert inside.connections == 0
        assert len(server.seen) == 1
        assert fetch(server.add("/y.model", CONTENT), options, policy).read_bytes() == CONTENT

    def test_what_is_refused_is_not_served_from_the_cache_either(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        fetch(url, options)
        with pytest.raises(Forbidden):
            fetch(url, options, parse_policy(["http://.*"], False))


class TestProxies:
    @pytest.fixture
    def proxy(self, other: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
        other.odd["CONNECT"] = tunnel
        address = other.url.replace("http://", "http://user:word@")
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("https_proxy", address)
        return other

    def test_the_proxy_of_the_environment_is_asked(
        self, proxy: FileServer, options: FetchOptions
    ) -> None:
        url = "http://u:p@models.example:81/x.model?a=b"
        proxy.odd["http://models.example:81/x.model"] = lambda handler: handler.answer(200, b"body")
        assert fetch(url, options).read_bytes() == b"body"
        (seen,) = proxy.seen
        assert seen.path == "http://models.example:81/x.model?a=b"
        assert seen.headers["Host"] == "models.example:81"
        assert seen.headers["Authorization"] == "Basic " + base64.b64encode(b"u:p").decode()
        expected = "Basic " + base64.b64encode(b"user:word").decode()
        assert seen.headers["Proxy-Authorization"] == expected

    def test_encrypted_ones_go_through_a_tunnel(
        self,
        proxy: FileServer,
        options: FetchOptions,
        certificate: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with file_server(certificate=certificate) as server:
            url = server.add("/x.model", CONTENT)
            assert fetch(url, options).read_bytes() == CONTENT
            (seen,) = server.seen
            assert seen.headers["Host"] == f"127.0.0.1:{server.port}"
            assert seen.headers["Proxy-Authorization"] is None
        (seen,) = proxy.seen
        assert (seen.method, seen.path) == ("CONNECT", f"127.0.0.1:{server.port}")
        assert seen.headers["Proxy-Authorization"] is not None

    def test_a_tunnel_that_is_refused_is_an_error(
        self, proxy: FileServer, options: FetchOptions
    ) -> None:
        proxy.odd["CONNECT"] = lambda handler: handler.answer(403)
        fails("https://models.example/x", options, "the proxy refused the tunnel with status 403")

    def test_no_proxy_is_heeded(
        self,
        proxy: FileServer,
        server: FileServer,
        options: FetchOptions,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert fetch(server.add("/x.model", CONTENT), options).read_bytes() == CONTENT
        assert proxy.connections == 0

    def test_no_proxy_is_used_where_addresses_are_checked(
        self, proxy: FileServer, options: FetchOptions
    ) -> None:
        proxy.odd["http://127.0.0.1:1/x"] = lambda handler: handler.answer(200, b"inside")
        url = "http://127.0.0.1:1/x"
        with pytest.raises(Forbidden):
            fetch(url, options, parse_policy(["http://.*"], False))
        # Nor is one at an address that is permitted itself.
        policy = SomeOfThisMachineIsOutside(parse_policy(["http://.*"], False).patterns)
        with pytest.raises(Forbidden, match=r"127\.0\.0\.2 is inside"):
            fetch("http://127.0.0.2:1/x", options, policy)
        assert proxy.connections == 0
        assert fetch(url, options, parse_policy(["http://.*"], True)).read_bytes() == b"inside"

    @pytest.mark.parametrize(
        "address", ["socks5://user:SECRET@h:1", "http://", "http://u:SECRET@h:x", "https://h:1"]
    )
    def test_a_proxy_of_another_kind_is_refused(
        self, options: FetchOptions, monkeypatch: pytest.MonkeyPatch, address: str
    ) -> None:
        monkeypatch.setenv("http_proxy", address)
        text = fails("http://models.example/x", options, "http_proxy must be an http:// URL")
        assert "SECRET" not in text


def tunnel(handler: Handler) -> None:
    """Pass on what comes, both ways, until one end has enough."""
    host, _, port = handler.path.rpartition(":")
    with socket.create_connection((host, int(port))) as upstream:
        handler.send_response(200)
        handler.end_headers()
        ends = {handler.connection: upstream, upstream: handler.connection}
        while True:
            for ready in select.select(list(ends), [], [])[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                ends[ready].sendall(data)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("certificate"))


class TestEncryption:
    def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
        self, options: FetchOptions, certificate: Path
    ) -> None:
        with file_server(certificate=certificate) as server:
            fails(server.add("/x", CONTENT), options, "certificate is not trusted.*SSL_CERT_FILE")
            assert server.connections == 1

    def test_the_environment_can_name_authorities(
        self, options: FetchOptions, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with file_server(certificate=certificate) as server:
            url = server.add("/x", CONTENT, cuts=[100_000])
            assert fetch(url, options).read_bytes() == CONTENT
            # Names count: this one is not in the certificate.
            with pytest.raises(DownloadFailed, match="certificate is not trusted"):
                fetch(f"https://localhost:{server.port}/x", options)

    def test_what_came_before_the_server_closed_the_connection_is_not_lost(
        self, options: FetchOptions, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """uvloop, on which the server runs, discards what comes faster than it is read."""
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        sent = threading.Event()

        class Waits:
            """A disk that is slow at first."""

            def update(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
                assert sent.wait(60)

            def finish(self, name: str) -> None:
                pass

        def send(handler: Handler) -> None:
            handler.answer(200, CONTENT)
            handler.connection.shutdown(socket.SHUT_WR)
            sent.set()

        with file_server(certificate=certificate) as server:
            server.odd["/x"] = send
            once = replace(options, attempts=1, progress=Waits())
            found = uvloop.run(fetch_in_thread(f"{server.url}/x", once))
            assert found.read_bytes() == CONTENT

    def test_no_redirect_leads_from_https_to_http(
        self,
        server: FileServer,
        options: FetchOptions,
        certificate: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with file_server(certificate=certificate) as secure:
            secure.odd["/x"] = redirect(server.add("/x", CONTENT))
            fails(f"{secure.url}/x", options, "redirected from https://")
        assert server.connections == 0

    def test_a_server_that_does_not_encrypt_is_an_error(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        fails(f"https://127.0.0.1:{server.port}/x", options, "attempts")


class TestOpening:
    def test_what_is_no_archive_is_named_by_its_location_and_not_kept(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        path = fetch(f"{url}?sig=SECRET", options)
        with (
            pytest.raises(ArchiveError) as caught,
            opening(f"{url}?sig=SECRET", path, options),
        ):
            read_manifest(path)
        assert str(caught.value).startswith(f"{url}: not a model archive")
        assert kept(options) == set()

    def test_a_full_disk_says_nothing_against_the_archive(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        url = server.add("/x.model", CONTENT)
        path = fetch(url, options)
        with pytest.raises(ArchiveError), opening(url, path, options):
            raise ArchiveError("disk full") from OSError()
        assert cached(url, options) == path

    def test_a_file_on_this_machine_stays(self, tmp_path: Path, options: FetchOptions) -> None:
        path = tmp_path / "x.model"
        path.write_bytes(CONTENT)
        with (
            pytest.raises(ArchiveError, match=f"^{path}: not a model"),
            opening(str(path), path, options),
        ):
            read_manifest(path)
        assert path.exists()


class TestReports:
    def test_the_log_says_what_begins_and_what_has_ended(
        self, server: FileServer, options: FetchOptions, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        url = server.add("/x.model", CONTENT)
        fetch(url, options)
        begin, end = caplog.messages
        assert begin == f"downloading {url} (1.0 MB)"
        assert re.fullmatch(
            rf"downloaded {re.escape(url)}: 1\.0 MB in \d+\.\d s, sha256 {DIGEST}", end
        )
        caplog.clear()
        fetch(url, options)
        assert caplog.messages == [f"{url} has not changed since it was fetched"]

    def test_progress_is_told_to_whoever_asks(
        self, server: FileServer, options: FetchOptions
    ) -> None:
        told: list[tuple[str, int, int | None]] = []

        class Note:
            def update(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
                told.append((name, done_bytes, total_bytes))

            def finish(self, name: str) -> None:
                told.append((name, -1, -1))

        url = server.add("/x.model", CONTENT, cuts=[100_000])
        fetch(f"{url}?sig=x", replace(options, progress=Note()))
        assert {name for name, _, _ in told} == {url}
        assert told.count((url, -1, -1)) == 2
        assert told[-2:] == [(url, len(CONTENT), len(CONTENT)), (url, -1, -1)]
        first = [done for _, done, _ in told[: told.index((url, -1, -1))]]
        assert first == sorted(first)
        assert first[-1] == 100_000


def test_the_cache_may_be_deleted_at_any_time(server: FileServer, options: FetchOptions) -> None:
    url = server.add("/x.model", CONTENT)
    fetch(url, options)
    shutil.rmtree(options.cache)
    assert fetch(url, options).read_bytes() == CONTENT
    (entry,) = (options.cache / "index").iterdir()
    assert json.loads(entry.read_bytes())["digest"] == DIGEST

"""Loading, failing to load, and unloading of real models in real processes."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mms.errors import MMSError, ModelLoadFailed
from mms.export.package import export_model
from tests.kit.archives import make_archive, make_folder, write_linear
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until

BASE = """
    from mms.model_service.model_service import SingleNodeService
    class Service(SingleNodeService):
"""


async def load_error(start: StartServer, archive: Path, **settings: Any) -> MMSError:
    """Start a server with a model that does not load, and return the error."""
    with pytest.raises(MMSError) as caught:
        await start(broken=(archive, settings))
    assert str(caught.value).startswith(f"model 'broken' ({archive}): ")
    return caught.value


@pytest.mark.parametrize(
    ("source", "message", "where"),
    [
        ("import os\nx = = 1\n", "SyntaxError", "service.py:2"),
        ("import no_such_module\n", "No module named 'no_such_module'", "service.py:1"),
        (
            f"{BASE}        def __init__(self, *args):\n            raise KeyError('weights')\n",
            "KeyError: 'weights'",
            "service.py:5",
        ),
        (
            f"{BASE}        def __init__(self): pass\n",
            "define __init__(self, model_name, model_dir, manifest, gpu=None)",
            "",
        ),
        (
            f"{BASE}        def __init__(self, *args):\n"
            "            import mxnet as mx\n"
            "            mx.nd.Custom(mx.nd.ones((1,)), op_type='twice')\n",
            "Cannot find custom operator twice (service.py:6)",
            "service.py:6",
        ),
        (f"{BASE}        pass\n    class Other(SingleNodeService): pass\n", "Other, Service", ""),
        ("x = 1\n", "defines no service class", ""),
        (f"{BASE}        import sys; sys.exit(3)\n", "SystemExit: 3", "service.py:4"),
    ],
    ids=[
        "syntax error",
        "import error",
        "in __init__",
        "no parameters",
        "engine",
        "two services",
        "no service",
        "exit",
    ],
)
async def test_a_service_that_does_not_load_is_reported_with_the_users_frames(
    start_server: StartServer, tmp_path: Path, source: str, message: str, where: str
) -> None:
    error = await load_error(start_server, make_folder(tmp_path / "model", source))
    assert isinstance(error, ModelLoadFailed)
    assert message in str(error)
    assert error.detail is not None
    assert error.detail.where == where
    assert "mms/worker" not in error.detail.traceback
    assert "importlib" not in error.detail.traceback


async def test_a_process_that_dies_while_it_loads_is_reported_with_its_end(
    start_server: StartServer, tmp_path: Path
) -> None:
    source = f"{BASE}        import os; os._exit(9)\n"
    error = await load_error(start_server, make_folder(tmp_path / "model", source))
    assert isinstance(error, ModelLoadFailed)
    assert "exited with code 9" in str(error)


async def test_a_load_that_hangs_ends_at_load_timeout(
    start_server: StartServer, tmp_path: Path
) -> None:
    source = f"{BASE}        while True: pass\n"
    error = await load_error(
        start_server, make_folder(tmp_path / "model", source), load_timeout=4.0
    )
    assert isinstance(error, ModelLoadFailed)
    assert "did not load the model within 4 seconds" in str(error)


async def test_a_sample_request_that_fails_fails_the_load(
    start_server: StartServer, tmp_path: Path
) -> None:
    source = f"{BASE}        def _inference(self, data):\n            return data[0][5]\n"
    error = await load_error(start_server, make_folder(tmp_path / "model", source, sample=b"[1]"))
    assert isinstance(error, ModelLoadFailed)
    assert "sample request 'sample.json' failed" in str(error)
    assert error.detail is not None
    assert error.detail.traceback.endswith("IndexError: list index out of range")


async def test_a_missing_parameter_file_is_no_error_if_the_service_does_without(
    start_server: StartServer, tmp_path: Path
) -> None:
    # 0.4 warned, and left it to the service.
    source = f"{BASE}        pass\n"
    folder = make_folder(tmp_path / "model", source, parameters="net-0000.params")
    server = await start_server(bare=folder)
    assert server.servable("bare").is_ready


async def test_parameters_that_do_not_fit_a_gluon_network_are_an_error_that_names_one(
    start_server: StartServer, tmp_path: Path
) -> None:
    source = """
    import mxnet as mx
    from mms.model_service.mxnet_model_service import GluonImperativeBaseService
    class Service(GluonImperativeBaseService):
        def __init__(self, model_name, model_dir, manifest, gpu=None):
            super().__init__(model_name, model_dir, manifest, mx.gluon.nn.Dense(4, in_units=3), gpu)
    """
    folder = write_linear(tmp_path / "model")
    make_folder(folder, source, parameters="net-0000.params")
    error = await load_error(start_server, folder)
    assert isinstance(error, ModelLoadFailed)
    assert "net-0000.params does not fit Dense: " in str(error)
    assert "'fc_weight' has the shape (2, 3) in it, (4, 3) in the network" in str(error)
    assert "net.save_parameters()" in str(error)


async def test_a_symbols_parameter_that_the_file_lacks_is_named(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = write_linear(tmp_path / "linear")
    symbol = folder / "net-symbol.json"
    symbol.write_text(symbol.read_text().replace("fc_bias", "fc_offset"))
    archive = export_model("linear", folder, None, tmp_path).path
    error = await load_error(start_server, archive)
    assert (
        "'fc_offset' is neither in the parameter file net-0000.params nor an input in "
        "signature.json; it is a parameter of 'fc'"
    ) in str(error)


async def test_one_model_that_does_not_load_stops_the_others(
    start_server: StartServer, tmp_path: Path
) -> None:
    good = make_archive(tmp_path, "echo")
    bad = make_folder(tmp_path / "bad", "import no_such_module\n")
    with pytest.raises(ModelLoadFailed, match="no_such_module"):
        await start_server(good=good, bad=bad)


async def test_what_was_accepted_before_a_stop_is_answered_and_what_comes_later_refused(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(faulty=make_archive(tmp_path, "faulty"))
    notes = tmp_path / "notes"
    notes.mkdir()
    body = b'["echo", 1]'
    late = b"POST /predictions/faulty HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    late += b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    running = asyncio.create_task(server.ask("faulty", ["wait", str(notes)]))
    await until(lambda: list(notes.iterdir()))
    queued = asyncio.create_task(server.ask("faulty", ["echo", 2]))
    servable = server.servable("faulty")
    await until(lambda: servable.queue_depth == 1)
    server.request_stop()
    stopping = asyncio.create_task(server.stop())
    await until(lambda: servable.state == "draining")
    writer.write(late)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"Retry-After" in answer
    assert b'"code":"draining"' in answer
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection("127.0.0.1", server.port)
    (notes / "go").touch()
    assert await running == (200, "went")
    assert await queued == (200, 2)
    await stopping
    assert servable.state == "unloaded"


async def test_a_stop_while_a_model_loads_leaves_nothing_behind(
    start_server: StartServer, tmp_path: Path
) -> None:
    loading = tmp_path / "loading"
    source = f"{BASE}        open({str(loading)!r}, 'w').close()\n        while True: pass\n"
    folder = make_folder(tmp_path / "model", source)
    start = asyncio.ensure_future(start_server(slow=folder))
    await until(loading.exists)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start


class TestProcesses:
    async def both(self, server: RunningServer) -> list[dict[str, Any]]:
        """Ask, two at a time, until both workers have answered."""
        answers: dict[int, dict[str, Any]] = {}
        for _ in range(1000):
            pair = await asyncio.gather(*(server.ask("inspecting", [1]) for _ in range(2)))
            answers |= {answer["pid"]: answer for _, answer in pair}
            if len(answers) == 2:
                break
        return list(answers.values())

    async def test_forked_workers_differ_in_their_random_numbers_and_share_their_memory(
        self, start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_KEY", "hidden")
        monkeypatch.setenv("OPEN_KEY", "shown")
        server = await start_server(
            {"blacklist_env_vars": "SECRET_.*"},
            inspecting=(make_archive(tmp_path, "inspecting"), {"workers": 2, "threads": 3}),
        )
        first, second = await self.both(server)
        for one, other in zip(first["drawn"], second["drawn"], strict=True):
            assert one != other
        for answer in (first, second):
            assert private_bytes(answer["pid"]) < 40 << 20
            assert answer["environment"]["OPEN_KEY"] == "shown"
            assert "SECRET_KEY" not in answer["environment"]
            assert answer["environment"]["OMP_NUM_THREADS"] == "3"
        assert server.servable("inspecting").loader_pid is not None

    async def test_without_preload_each_worker_loads_the_model_itself(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        settings = {"workers": 2, "preload": False}
        server = await start_server(inspecting=(make_archive(tmp_path, "inspecting"), settings))
        first, _ = await self.both(server)
        assert server.servable("inspecting").loader_pid is None
        assert private_bytes(first["pid"]) > 64 << 20

    async def test_a_service_with_threads_of_its_own_gets_fresh_processes(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        folder = make_folder(tmp_path / "model", "threaded")
        server = await start_server(inspecting=(folder, {"workers": 2}))
        answers = await self.both(server)
        servable = server.servable("inspecting")
        assert servable.loader_pid is None
        assert {a["pid"] for a in answers} == set(servable.pids)
        killed = servable.pids[0]
        os.kill(killed, 9)
        await until(lambda: killed not in servable.pids and len(servable.pids) == 2)
        assert len(await self.both(server)) == 2


def private_bytes(pid: int) -> int:
    """Return the memory that a process shares with no other."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(kilobytes) for kilobytes in re.findall(r"Private_\w+:\s+(\d+)", text))

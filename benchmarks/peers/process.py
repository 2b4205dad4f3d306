"""Start a server with all its processes, wait for a right answer, and end every one of them."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.peers.peer import Call, Launch, PeerUnavailable, Site

START_LIMIT_S = 60.0
#: Some take longer or never end; what is left is killed.
STOP_LIMIT_S = 10.0
#: By this a server's processes are known, wherever they hang in the process tree. Not MMS_*:
#: our own server takes those for settings.
_MARK = "PEERS_RUN"
#: One thread per worker, whichever library computes.
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_INHERITED = ("JAVA_HOME", "LANG", "LC_ALL")


class Running:
    """A started server.

    Attributes:
        launch: How it was started.
        start_s: Seconds from the command to the first right answer.
    """

    def __init__(self, launch: Launch, site: Site, log: Path) -> None:
        self.launch = launch
        self.start_s = 0.0
        self._mark = uuid.uuid4().hex
        self._log = log
        self._started = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                launch.command,
                cwd=site.folder,
                env=self._environment(launch, site),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Wait for the first right answer.

        Raises:
            PeerUnavailable: It ended or gave none; the message says what it logged last.
        """
        if self.launch.configure is not None:
            self._until(self.launch.configure)
        self._until(lambda: ask(self.launch.call))
        self.start_s = time.perf_counter() - self._started

    def memory_bytes(self) -> int:
        """Return the memory of all its processes, each shared page counted once between sharers."""
        total = 0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    def cpu_s(self) -> float:
        """Return the CPU time that its living processes have used so far."""
        total = 0.0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stop(self) -> None:
        """Ask it to end, then end what is left of it."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT_S)
        # Several leave workers behind. Whoever is killed may just have started another.
        while left := self._processes():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
        self._process.wait()

    def _environment(self, launch: Launch, site: Site) -> dict[str, str]:
        folder = str(site.folder)
        return {
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            **dict.fromkeys(_ONE_THREAD, "1"),
            "PATH": f"{site.bin}:{os.environ.get('PATH', os.defpath)}",
            # Nothing is written outside of the folder, nothing of the user's is read.
            **dict.fromkeys(("HOME", "TMPDIR", "TEMP"), folder),
            **launch.environment,
            _MARK: self._mark,
        }

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ours = process.environ().get(_MARK) == self._mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _until(self, succeed: Callable[[], None]) -> None:
        """Call until there is no OSError."""
        error: OSError | None = None
        while time.perf_counter() - self._started < START_LIMIT_S:
            if self._process.poll() is not None:
                status = self._process.returncode
                raise PeerUnavailable(f"ended with status {status}: {self._last_words()}")
            try:
                return succeed()
            except OSError as caught:
                error = caught
            time.sleep(0.02)
        raise PeerUnavailable(
            f"gave no right answer within {START_LIMIT_S:g} s ({error}); it logged last: "
            f"{self._last_words()}"
        )

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        # A traceback's last line says more than what follows it.
        errors = [line for line in said if "Error: " in line]
        return f"{(errors or said or ['nothing'])[-1]} (all of it: {self._log})"


class WrongAnswer(OSError):
    """The server answers, but not yet what it should; an OSError, as one that refuses is."""


def ask(call: Call) -> None:
    """Ask once.

    Raises:
        OSError: There is no server, or its answer is none or not the right one.
    """
    parts, request = urlsplit(call.url), call.request
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("POST", parts.path, request.body, {"Content-Type": request.content_type})
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise WrongAnswer(f"no HTTP: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200 or request.answer.encode() not in body:
        raise WrongAnswer(f"status {response.status}: {body[:200]!r}")


@contextlib.contextmanager
def running(
    launch: Callable[[Site], Launch], bin_: Path, assets: Path, workers: int, log: Path
) -> Iterator[Running]:
    """Run a server, ready to answer; see Site for the arguments.

    Raises:
        PeerUnavailable: It did not start.
    """
    with tempfile.TemporaryDirectory(prefix="", ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), bin_, assets, workers)
        server = Running(launch(site), site, log)
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()

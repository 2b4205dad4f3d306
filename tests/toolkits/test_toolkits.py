"""SageMaker's three toolkits, as they are in the package index, start this server.

They run in an environment of their own, which `make toolkits-test` builds: each toolkit's own start
function in a process of its own, which runs ``multi-model-server``, looks for the server's process,
and waits for its end. As in a container it is process 1, in namespaces of its own, since it writes
/etc/sagemaker-mms.properties and searches all processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

TOOLKITS = os.environ.get("TOOLKITS_BIN", "")
SCRIPTS = Path(__file__).parent / "scripts"
LIMIT_S = 120.0
UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
#: With a copy of /etc that the toolkit may write to.
START = (
    'cp -a /etc "$WORK/etc" && mount --bind "$WORK/etc" /etc && exec python -W ignore -c "$CODE"'
)

pytestmark = [
    pytest.mark.skipif(not TOOLKITS, reason="needs the environment of make toolkits-test"),
    pytest.mark.skipif(
        shutil.which("unshare") is None
        or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0,
        reason="needs the right to make namespaces (root)",
    ),
]

CASES = [
    (
        "from sagemaker_inference import model_server; model_server.start_model_server()",
        "generic.py",
        [1, 2],
        [3, 6],
    ),
    (
        "from sagemaker_huggingface_inference_toolkit import serving; serving.main()",
        "huggingface.py",
        {"inputs": [1, 2]},
        {"scores": [3, 6]},
    ),
    (
        "from sagemaker_mxnet_serving_container import serving; serving.main()",
        "gluon.py",
        [[1, 2, 3]],
        [[6.0, 6.0]],
    ),
]


@pytest.mark.parametrize(("code", "script", "value", "answer"), CASES)
def test_a_toolkit_starts_the_server_and_passes_a_request(
    tmp_path: Path, code: str, script: str, value: Any, answer: Any
) -> None:
    model = tmp_path / "ml" / "model" / "code"
    model.mkdir(parents=True)
    shutil.copy(SCRIPTS / script, model / "inference.py")
    with toolkit(tmp_path, code) as (url, process):
        wait_for_health(url, process, tmp_path / "log")
        assert ask(url, value) == answer
        # SageMaker stops a container so; the toolkit passes it on, and ends with the server.
        psutil.Process(process.pid).children()[0].send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()


@contextlib.contextmanager
def toolkit(folder: Path, code: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a toolkit; all its processes end with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "tmp").mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MMS_")}
    environment = {
        **clean,
        "PATH": f"{TOOLKITS}:{os.environ['PATH']}",
        "SAGEMAKER_BASE_DIR": str(folder / "ml"),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
        "TMPDIR": str(folder / "tmp"),
        "WORK": str(folder),
        "CODE": code,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*UNSHARE, "sh", "-c", START], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def wait_for_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    pause = threading.Event()
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ping", timeout=LIMIT_S):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        pause.wait(0.1)


def ask(url: str, value: Any) -> Any:
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(value).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        return json.load(response)

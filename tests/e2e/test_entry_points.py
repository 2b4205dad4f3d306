"""0.4's entry points: scripts that parse its options and start the server themselves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from tests.kit.archives import make_archive

LIMIT_S = 60.0
#: As the script of a container of that time does; 0.4 gave the models to `MMS`, too.
SCRIPT = """
from mms.arg_parser import ArgParser
from mms.model_loader import ModelLoader
from mms.mxnet_model_server import MMS

args = ArgParser.extract_args()
MMS("mms", args=args, models=ModelLoader.load(args.models)).start_model_serving()
"""


def test_a_script_starts_the_server_with_what_it_has_parsed(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, "echo")
    log = tmp_path / "log"
    options = ["--models", f"a={archive}", f"b={archive}", "--port", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *options, "--metrics-write-to", "csv"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "MMS_MANAGEMENT_PORT": "0", "MMS_WORKERS": "1"},
            start_new_session=True,
        )
    try:
        pause = threading.Event()
        while not (found := re.search(r"listening on (http://\S+)\n", log.read_text())):
            assert process.poll() is None, log.read_text()
            pause.wait(0.05)
        for name in "ab":
            request = urllib.request.Request(
                f"{found[1]}/predictions/{name}", b"[1]", {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
                assert json.load(response) == [1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    # The same file that 0.4 writes to.
    (path,) = tmp_path.rglob("mms_PredictionTotal.csv")
    assert set(re.findall(r",([ab])$", path.read_text(), re.MULTILINE)) == {"a", "b"}

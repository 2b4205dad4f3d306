"""Read the inputs and outputs of a ``.onnx`` file's graph in a separate process.

An engine opens the model there (`mms.engines.onnx_model`): a damaged file may crash it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

from mms.archive.onnx_graph import Graph, parse_graph
from mms.errors import EngineMissing, ExportError


def read_graph(path: Path) -> Graph:
    """Open a model with onnxruntime, else OpenVINO, and return the inputs and outputs of its graph.

    Raises:
        ExportError: The engine cannot run it; the message is one line with reason and advice.
        EngineMissing: Neither is installed.
    """
    # The current folder must not shadow modules: it may well hold an onnx.py. Python 3.10 does not
    # know the variable, and searches the root folder instead.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mms.engines.onnx_model", os.path.abspath(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment,
        cwd=os.sep,
        check=False,
    )
    try:
        document = orjson.loads(done.stdout)
    except orjson.JSONDecodeError:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["(no message)"]
        raise ExportError(
            f"{path}: onnxruntime died while it opened the model (status {done.returncode}): "
            f"{lines[-1]}; export the model again, or upgrade onnxruntime"
        ) from None
    if "missing" in document:
        raise EngineMissing(document["missing"])
    if "error" in document:
        raise ExportError(f"{path}: {document['error']}")
    return parse_graph(document)

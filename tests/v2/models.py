"""Models and requests for the Open Inference Protocol V2."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import orjson

from mms.archive.export import export_model
from mms.protocol import V2_HEADER_LENGTH
from tests.kit.archives import make_archive, make_folder, signature

#: Two networks. The first: y = x W' + b on (N, 3) -> (N, 2), the first entry, and ten plus the
#: rest. The second takes two (N, 3) and gives their sum, and where the first is larger.
_NETWORKS = """
from mms.worker.engine import import_mxnet
mx = import_mxnet()
mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=2, name="fc").save("linear/net-symbol.json")
weight, bias = mx.nd.array([[1, 0, 0], [0, 1, 1]]), mx.nd.array([0, 10])
mx.nd.save("linear/net-0000.params", {"arg:fc_weight": weight, "arg:fc_bias": bias})
left, right = mx.sym.var("left"), mx.sym.var("right")
scale = mx.sym.var("scale", shape=(1,))
total = mx.sym.broadcast_mul(left + right, scale)
mx.sym.Group([total, mx.sym.cast(left > right, "int32")]).save("two/net-symbol.json")
mx.nd.save("two/net-0000.params", {"arg:scale": mx.nd.ones((1,))})
"""
#: Twice the input, and how many rows the forward pass had.
_COUNTING = """
import os
import mxnet as mx
from mms.model_service.mxnet_model_service import GluonImperativeBaseService

class Counting(GluonImperativeBaseService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        super().__init__(model_name, model_dir, manifest, None, gpu)
        self.notes = os.path.join(model_dir, "forwards")

    def _inference(self, data):
        if float(data[0].min().asscalar()) <= -5:
            raise ValueError("a value is too small")
        with open(self.notes, "a") as notes:
            notes.write(f"{len(data[0])}\\n")
        return [data[0] * 2, mx.nd.ones((data[0].shape[0], 1))]
"""
#: Gives tensors back as they came; lists say what else to answer.
_TYPES = """
import os
import time
import numpy as np
from mms.model_service.model_service import SingleNodeService

class Types(SingleNodeService):
    def _postprocess(self, data):
        value = data[0]
        if isinstance(value, np.ndarray):
            value[...] = value  # ours to write to
            return value
        if value == ["half"]:
            return np.array([[1.5, -2]], np.float16)
        if value == ["big-endian"]:
            return np.array([1, 2], ">i4")
        if value == ["texts"]:
            return np.array(["a", "\\u00fc"])
        if value == ["raise"]:
            raise KeyError("on purpose")
        if value[0] == "wait":
            # Note that it runs, and go on once there is a file called go.
            open(os.path.join(value[1], str(os.getpid())), "w").close()
            while not os.path.exists(os.path.join(value[1], "go")):
                time.sleep(0.005)
        return value
"""
#: Tells what it got; a field called "status" chooses the answer's.
_HANDLER = """
import os
import time
import numpy as np

def handle(data, context):
    if data is None:
        return None
    return [answer(index, request, context) for index, request in enumerate(data)]

def answer(index, request, context):
    if "status" in request:
        context.set_http_response_status(int(bytes(request["status"])), "Chosen", index)
        context.set_response_header(index, "X-Chosen", "yes")
    if "wait" in request:
        # Note that it runs, and go on once there is a file called go.
        folder = bytes(request["wait"]).decode()
        open(os.path.join(folder, str(os.getpid())), "w").close()
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.005)
    if "double" in request:
        return request["double"] * 2
    if "header" in request:
        return context.get_request_header(index, bytes(request["header"]).decode()) or "none"
    return {key: [type(value).__name__, str(value)] for key, value in sorted(request.items())}
"""


def write_networks(folder: Path) -> None:
    """Write the symbolic models ``linear`` and ``two``, ready to export."""
    two = {
        "inputs": [{"data_name": name, "data_shape": [0, 3]} for name in ("left", "right")],
        "input_type": "application/json",
        "outputs": [
            {"data_name": "total", "data_shape": [0, 3]},
            {"data_name": "larger", "data_shape": [0, 3], "data_type": "INT32"},
        ],
        "output_type": "application/json",
    }
    for name, document in (("linear", signature([0, 3])), ("two", two)):
        (folder / name).mkdir(parents=True)
        (folder / name / "signature.json").write_text(json.dumps(document))
    subprocess.run([sys.executable, "-c", _NETWORKS], cwd=folder, check=True)


def write_handler(folder: Path) -> Path:
    """Write a folder with the 1.x handler ``service:handle``, which needs no MXNet."""
    folder.mkdir(parents=True)
    (folder / "service.py").write_text(_HANDLER)
    return folder


def write_mar(path: Path, source: str) -> Path:
    """Write an archive of MMS 1.x whose handler is ``service:handle`` of this source."""
    manifest = {"model": {"modelName": "any", "handler": "service:handle"}, "runtime": "python"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("service.py", source)
    return path


def write_store(folder: Path) -> Path:
    """Write a model store with the archive ``packed.mar``."""
    folder.mkdir(parents=True)
    write_mar(folder / "packed.mar", _HANDLER)
    return folder


def make_models(folder: Path) -> dict[str, Any]:
    """Return one model of each kind, by name, with their settings."""
    write_networks(folder)
    image = signature([0, 3, 6, 8], "image/jpeg")
    picture = signature([0, 3, 6, 8], "image/jpeg", "image/png")
    counting = signature([0, 3])
    counting["outputs"].append({"data_name": "rows", "data_shape": [0, 1]})
    handler = write_handler(folder / "handler")
    # NumPy starts threads on some machines; without them or with, each worker loads by itself.
    alone = {"handler": "service:handle", "preload": False}
    # The delay makes requests sent together meet in one batch however slow this machine is.
    together = {"batch_size": 8, "max_batch_delay": 500.0}
    return {
        "linear": export_model("linear", folder / "linear", None, folder).path,
        "two": export_model("two", folder / "two", None, folder).path,
        "counting": (make_folder(folder / "counting", _COUNTING, counting), together),
        "types": (make_folder(folder / "types", _TYPES), {"queue_size": 2}),
        "vision": make_archive(folder, "vision", image),
        "paint": make_archive(folder, "vision", picture, name="paint"),
        "handler": (handler, alone),
        "joined": (handler, {**alone, **together}),
    }


def tensor(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    """Return an input with its elements in JSON."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def body_of(*inputs: dict[str, Any], **others: Any) -> bytes:
    return orjson.dumps({"inputs": inputs, **others})


def with_binary(document: dict[str, Any], *elements: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a body with binary tensors, one per input, and the headers to send it with."""
    inputs = [
        {**entry, "parameters": {"binary_data_size": len(data)}}
        for entry, data in zip(document["inputs"], elements, strict=True)
    ]
    text = orjson.dumps({**document, "inputs": inputs})
    return b"".join((text, *elements)), {V2_HEADER_LENGTH: str(len(text))}

"""Models and requests for the Open Inference Protocol V2."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import orjson

from mms.export.package import export_model
from mms.wire.messages import V2_HEADER_LENGTH
from tests.kit.archives import HANDLERS, make_archive, make_folder, signature, source_of

#: Two networks. The first: y = x W' + b on (N, 3) -> (N, 2), the first entry, and ten plus the
#: rest. The second takes two (N, 3) and gives their sum, and where the first is larger.
_NETWORKS = """
from mms.engines.imports import import_mxnet
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
    (folder / "service.py").write_text(source_of("fields", HANDLERS))
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
    write_mar(folder / "packed.mar", source_of("fields", HANDLERS))
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
        "counting": (make_folder(folder / "counting", "counting", counting), together),
        "types": (make_folder(folder / "types", "tensors"), {"queue_size": 2}),
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

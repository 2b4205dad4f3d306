"""Ask a server with the protocol's own clients: ``python -m tests.v2.triton http|grpc ADDRESS``.

A process of its own: the HTTP client runs on gevent, and the gRPC client registers messages of the
same names as the server's. Prints what it got as one JSON document.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any

import numpy as np

from tests.kit.waiting import LIMIT_S


async def ask(kind: str, address: str, image: bytes) -> dict[str, Any]:
    """Run `main` in a process and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.v2.triton",
        kind,
        address,
        image.hex(),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0
    document = json.loads(output)
    assert isinstance(document, dict)
    return document


def main(kind: str, address: str, image: bytes) -> dict[str, Any]:
    """Use every call that a client has for what the server offers."""
    triton = importlib.import_module(f"tritonclient.{kind}")
    client = triton.InferenceServerClient(address)
    has_json = kind == "http"

    def infer(model: str, *inputs: tuple[str, Any, str], **options: Any) -> Any:
        tensors = []
        for name, values, datatype in inputs:
            tensors.append(triton.InferInput(name, values.shape, datatype))
            binary = {"binary_data": options.pop("binary")} if "binary" in options else {}
            tensors[-1].set_data_from_numpy(values, **binary)
        return client.infer(model, tensors, **options)

    def arrays(result: Any, *names: str) -> list[Any]:
        found = [result.as_numpy(name) for name in names]
        return [[a.dtype.str, list(a.shape), a.tolist()] for a in found]

    rows = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    texts = np.array([b'[1, "two"]'], np.object_)
    results: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("linear"),
        "version_ready": client.is_model_ready("linear", "1"),
        "server": _plain(client.get_server_metadata()),
        "model": _plain(client.get_model_metadata("two")),
        "linear": arrays(infer("linear", ("data", rows, "FP32")), "output"),
        "version": arrays(infer("linear", ("data", rows, "FP32"), model_version="1"), "output"),
        "id": _plain(infer("linear", ("data", rows, "FP32"), request_id="mine").get_response())[
            "id"
        ],
        "two": arrays(
            infer("two", ("left", rows, "FP32"), ("right", rows[::-1].copy(), "FP32")),
            "total",
            "larger",
        ),
        "chosen": arrays(
            infer(
                "two",
                ("right", rows, "FP32"),
                ("left", rows, "FP32"),
                outputs=[triton.InferRequestedOutput("larger")],
            ),
            "larger",
        ),
        "half": arrays(infer("types", ("data", np.array([1.5], np.float16), "FP16")), "output"),
        "flags": arrays(infer("types", ("data", np.array([True, False]), "BOOL")), "output"),
        "wide": arrays(
            infer("types", ("data", np.array([[2**63]], np.uint64), "UINT64")), "output"
        ),
        "json": [
            json.loads(element)
            for element in infer("types", ("data", texts, "BYTES")).as_numpy("output").tolist()
        ],
        "image": [
            json.loads(element)
            for element in infer("vision", ("data", np.array([image], np.object_), "BYTES"))
            .as_numpy("output")
            .tolist()
        ],
        "picture": infer("paint", ("data", np.array([image], np.object_), "BYTES"))
        .as_numpy("output")[0][:4]
        .hex(),
    }
    for name, model, values, datatype in (
        ("unknown", "nobody", rows, "FP32"),
        ("misshapen", "linear", rows[:, :2].copy(), "FP32"),
        ("raises", "types", np.array([b'["raise"]'], np.object_), "BYTES"),
    ):
        try:
            infer(model, ("data", values, datatype))
        except triton.InferenceServerException as error:
            results[name] = [error.status(), error.message()]
    if has_json:
        results["in_json"] = arrays(
            infer(
                "linear",
                ("data", rows, "FP32"),
                binary=False,
                outputs=[triton.InferRequestedOutput("output", binary_data=False)],
                request_compression_algorithm="gzip",
            ),
            "output",
        )
        results["compressed"] = arrays(
            infer("linear", ("data", rows, "FP32"), request_compression_algorithm="gzip"),
            "output",
        )
    client.close()
    return results


def _plain(message: Any) -> dict[str, Any]:
    if isinstance(message, dict):
        return message
    from google.protobuf.json_format import MessageToDict

    document: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return document


if __name__ == "__main__":
    json.dump(main(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])), sys.stdout)

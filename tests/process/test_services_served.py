"""Services of 0.4 on a real server: whose answer is whose, and which inputs are asked for."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mms.export.package import export_model
from tests.kit.archives import make_folder, signature, write_linear
from tests.kit.server import RunningServer, StartServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOGETHER: dict[str, Any] = {"batch_size": 4, "max_batch_delay": 500.0}

#: 0.4 answered from what the Module kept, which is the request's own: one at a time.
KEPT = """
from mms.model_service.mxnet_model_service import MXNetBaseService

class Kept(MXNetBaseService):
    def _postprocess(self, data):
        # Not in the trial, whose requests are positive.
        if data[0].asnumpy()[0, 0] < 0:
            return self.mx_model.get_outputs()[0].asnumpy().tolist()
        return data[0].asnumpy().tolist()
"""
MODULE = """
from mms.model_service.mxnet_model_service import MXNetBaseService

class Whole(MXNetBaseService):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mx_model.reshape([("data", (1, 3))])
"""
#: What 0.4 asked at each request: names, and their order.
OWN = """
from mms.model_service.model_service import SingleNodeService

class Own(SingleNodeService):
    names = ["left", "right"]

    def __init__(self, model_name, model_dir, manifest, gpu=None):
        pass

    @property
    def signature(self):
        inputs = [{"data_name": name, "data_shape": [0]} for name in self.names]
        return {
            "input_type": "application/json",
            "inputs": inputs,
            "output_type": "application/json",
            "outputs": [{"data_name": "out", "data_shape": [0]}],
        }

    def _postprocess(self, data):
        if data[0] == ["swap"]:
            type(self).names = ["right", "left"]
        if data[0] == ["spoil"]:
            type(self).names = [""]
        return [data, __name__]
"""
NUMPY = """
from mms.engines.imports import import_mxnet
mx = import_mxnet()
mx.npx.set_np()
net = mx.gluon.nn.HybridSequential()
net.add(mx.gluon.nn.Dense(2, in_units=3))
net.initialize(mx.init.Constant(0.5))
net.hybridize()
net(mx.np.ones((1, 3)))
net.export("net")
net.save_parameters("gluon.params")
"""
NUMPY_SERVICE = """
import mxnet as mx
from mms.model_service.mxnet_model_service import GluonImperativeBaseService

mx.npx.set_np()

class Service(GluonImperativeBaseService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        net = mx.gluon.nn.HybridSequential()
        net.add(mx.gluon.nn.Dense(2, in_units=3))
        super().__init__(model_name, model_dir, manifest, net, gpu)

    def _preprocess(self, data):
        return [mx.np.array(data[0])]

    def _postprocess(self, data):
        # Only arrays of MXNet's NumPy interface have it.
        return data.std(axis=1) * 0 + data[:, 0]
"""


def pack(folder: Path, source: Path, service: str = "") -> Path:
    if service:
        (source / "service.py").write_text(service)
    return export_model(source.name, source, None, folder).path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    numpy = folder / "numpy"
    numpy.mkdir()
    subprocess.run([sys.executable, "-W", "ignore", "-c", NUMPY], cwd=numpy, check=True)
    gluon = folder / "numpy_gluon"
    make_folder(gluon, NUMPY_SERVICE, signature([0, 3]), parameters="gluon.params")
    (numpy / "gluon.params").rename(gluon / "gluon.params")
    (numpy / "signature.json").write_text(json.dumps(signature([0, 3])))
    make_folder(folder / "own", OWN, signature(names=("file",)))
    (folder / "own" / "service.py").rename(folder / "own" / "random.py")
    manifest = folder / "own" / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace("service.py", "random.py"))
    models: dict[str, Any] = {
        "kept": (pack(folder, write_linear(folder / "kept"), KEPT), TOGETHER),
        "module": (pack(folder, write_linear(folder / "module"), MODULE), TOGETHER),
        "numpy": (pack(folder, numpy), TOGETHER),
        "numpy_gluon": (gluon, TOGETHER),
        "own": folder / "own",
    }
    return await start_shared(**models)


async def ask_all(server: RunningServer, model: str, values: list[Any]) -> list[Any]:
    """Return the answers to values sent at the same time."""
    answers = await asyncio.gather(*(server.ask(model, value) for value in values))
    assert [status for status, _ in answers] == [200] * len(values), answers
    return [answer for _, answer in answers]


async def test_what_the_network_keeps_in_a_batch_is_no_other_requests(
    server: RunningServer,
) -> None:
    values = [[[sign * n, 0, 0]] for n in range(1, 5) for sign in (1, -1)]
    answers = await ask_all(server, "kept", values)
    assert answers == [[[value[0][0], 10]] for value in values]


async def test_a_service_that_uses_its_module_is_asked_one_at_a_time(
    server: RunningServer,
) -> None:
    answers = await ask_all(server, "module", [[[n, 0, 0]] for n in range(8)])
    assert answers == [[f"[[{n}.0, 10.0]]"] for n in range(8)]


@pytest.mark.parametrize("model", ["numpy", "numpy_gluon"])
async def test_a_network_made_with_numpy_semantics_answers_in_batches(
    server: RunningServer, model: str
) -> None:
    answers = await ask_all(server, model, [[[n, 2, 3]] for n in range(8)])
    half = [(n + 5) / 2 for n in range(8)]
    assert answers == (
        [[n] for n in half] if model == "numpy_gluon" else [[f"[[{n}, {n}]]"] for n in half]
    )


async def test_the_signature_that_counts_is_the_services_own(server: RunningServer) -> None:
    """In 0.4 the module had the bare name of its file, too, whatever else is called so."""
    status, answer = await server.ask("own", {"left": [1], "right": [2]})
    assert (status, answer) == (200, [[[1], [2]], "random"])
    status, answer = await server.ask("own", {"file": [1]})
    assert (status, answer["code"]) == (400, 400)
    await server.ask("own", {"left": ["swap"], "right": []})
    _, answer = await server.ask("own", {"left": [1], "right": ["spoil"]})
    assert answer[0] == [["spoil"], [1]]
    status, answer = await server.ask("own", {"left": [1]})
    assert status == 500
    assert "Own.signature: inputs[0].data_name must be a non-empty string" in answer["message"]

"""int8 archives: made by the real exporter, served by the real server, refused when they differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mms.archive.reader import read_manifest
from tests.kit.archives import signature
from tests.kit.server import StartServer

#: A text classifier in small, with an output for training: (N, 4, 16) -> (N, 3).
_NET = """
from mms.engines.imports import import_mxnet
mx = import_mxnet()
mx.random.seed(3)
data = mx.sym.var("data")
net = mx.sym.Convolution(data, kernel=(3,), num_filter=8, name="conv")
net = mx.sym.Activation(net, act_type="relu")
net = mx.sym.Pooling(net, kernel=(2,), stride=(2,), pool_type="max")
net = mx.sym.FullyConnected(mx.sym.Flatten(net), num_hidden=3, name="fc")
net = mx.sym.SoftmaxOutput(net, name="softmax")
net.save("net-symbol.json")
shapes, _, _ = net.infer_shape(data=(1, 4, 16))
mx.nd.save("net-0000.params", {
    f"arg:{name}": mx.nd.random.normal(shape=shape)
    for name, shape in zip(net.list_arguments(), shapes) if name not in ("data", "softmax_label")
})
"""
_SERVICE = """
from mms.model_service.mxnet_model_service import MXNetBaseService

class Probabilities(MXNetBaseService):
    def _postprocess(self, data):
        return data[0].asnumpy()[0]
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    subprocess.run([sys.executable, "-c", _NET], cwd=folder, check=True)
    (folder / "signature.json").write_text(json.dumps(signature([0, 4, 16])))
    (folder / "service.py").write_text(_SERVICE)
    return folder


@pytest.fixture(scope="module")
def data() -> Any:
    return np.random.default_rng(5).normal(size=(64, 4, 16)).astype(np.float32)


def export(source: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mms.cli.export", "--model-name", "net", "--model-path"]
    return subprocess.run(
        [*command, str(source), "--export-path", str(target), *options],
        capture_output=True,
        text=True,
    )


def int8(calibration: Path, *options: str) -> list[str]:
    return ["--quantize", "int8", "--calibration-data", str(calibration), *options]


async def test_an_int8_archive_answers_like_the_original_and_says_how_well(
    start_server: StartServer, tmp_path: Path, source: Path, data: Any
) -> None:
    rows = tmp_path / "rows.npz"
    np.savez(rows, data=data)
    assert export(source, tmp_path / "fp32").returncode == 0
    done = export(source, tmp_path / "int8", *int8(rows, "--min-agreement", "0.8"))
    assert done.returncode == 0, done.stderr
    assert "int8 agrees with fp32 on" in done.stderr
    archive = tmp_path / "int8" / "net.model"
    quantization = read_manifest(archive).serving.quantization
    assert quantization is not None
    assert quantization.samples == 64
    assert 0.8 <= quantization.agreement <= 1
    assert 0 < quantization.max_relative_error < 0.2
    server = await start_server(
        {"management_port": 0},
        small=(archive, {"batch_size": 4}),
        full=tmp_path / "fp32" / "net.model",
    )
    agreeing = 0
    for row in data:
        _, expected = await server.ask("full", [row.tolist()])
        status, answer = await server.ask("small", [row.tolist()])
        assert status == 200
        assert np.sum(answer) == pytest.approx(1, abs=1e-3)
        agreeing += int(np.argmax(answer) == np.argmax(expected))
    assert agreeing / len(data) == pytest.approx(quantization.agreement, abs=0.05)
    _, several = await server.ask("small", data[:3].tolist())
    assert np.argmax(several) == np.argmax((await server.ask("small", [data[0].tolist()]))[1])
    _, described = await server.manage("GET", "/models/small")
    assert described["archive"]["quantization"] == {
        "dtype": "int8",
        "samples": 64,
        "agreement": quantization.agreement,
        "max_relative_error": quantization.max_relative_error,
    }


def test_requests_in_a_file_calibrate_too(tmp_path: Path, source: Path, data: Any) -> None:
    lines = tmp_path / "requests.jsonl"
    lines.write_text("".join(json.dumps([row.tolist()]) + "\n" for row in data[:8]))
    done = export(source, tmp_path / "out", *int8(lines, "--min-agreement", "0"))
    assert done.returncode == 0, done.stderr
    assert "of 8 rows" in done.stderr


def test_a_network_that_agrees_too_little_is_refused_with_the_figure(
    tmp_path: Path, source: Path, data: Any
) -> None:
    rows = tmp_path / "rows.npy"
    # Calibrated by values a thousandth of those that come with them, one row of which is huge.
    odd = data[:16] * 1e-4
    odd[0] *= 1e9
    np.save(rows, odd)
    done = export(source, tmp_path / "out", *int8(rows, "--min-agreement", "1"))
    assert done.returncode == 3
    assert "less than --min-agreement 100.00%; nothing was written" in done.stderr
    assert not (tmp_path / "out" / "net.model").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no such file or folder with calibration data"),
        ("a.txt", b"x", "calibration data must be a .jsonl file"),
        ("a.jsonl", b"{", "not valid JSON"),
        ("a.json", b"{}", "expected a list of request bodies"),
        ("a.jsonl", b"[[1, 2]]\n", "input 'data' has shape"),
        ("a.npz", b"", "No data left in file"),
    ],
)
def test_calibration_data_that_does_not_fit_says_so(
    tmp_path: Path, source: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = export(source, tmp_path / "out", *int8(tmp_path / name))
    assert done.returncode == 3
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "net.model").exists()


def test_the_two_options_go_together(tmp_path: Path, source: Path) -> None:
    done = export(source, tmp_path, "--quantize", "int8")
    assert (done.returncode, "go together" in done.stderr) == (2, True)

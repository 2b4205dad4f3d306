"""A model that is ready answers its first request; one that cannot is refused when it is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mms.errors import ModelLoadFailed
from mms.export.package import export_model
from tests.kit.archives import make_folder, signature, write_linear
from tests.kit.server import StartServer

_GLUON = """
import mxnet as mx
from mms.model_service.mxnet_model_service import GluonImperativeBaseService

class Service(GluonImperativeBaseService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        net = mx.gluon.nn.Dense(2, in_units={units})
        net.initialize(mx.init.One())
        super().__init__(model_name, model_dir, manifest, net, gpu)
"""
_HALF = """
import mms.engines.imports
mx = mms.engines.imports.import_mxnet()
mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=2, name="fc").save("net-symbol.json")
weight = mx.nd.array([[1, 1, 1], [1, 2, 3]], dtype="{dtype}")
mx.nd.save("net-0000.params", {{"arg:fc_weight": weight,
                                "arg:fc_bias": mx.nd.array([0, 1], dtype="{dtype}")}})
"""


async def load_error(start_server: StartServer, path: Path) -> str:
    with pytest.raises(ModelLoadFailed) as raised:
        await start_server(m=path)
    return str(raised.value)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
async def test_parameters_of_another_precision_run_in_single(
    start_server: StartServer, tmp_path: Path, dtype: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", _HALF.format(dtype=dtype)], cwd=folder, check=True)
    (folder / "signature.json").write_text(json.dumps(signature([0, 3])))
    server = await start_server(m=export_model("m", folder, None, tmp_path).path)
    assert await server.ask("m", [[1, 2, 3]]) == (200, ["[[6.0, 15.0]]"])


async def test_a_signature_that_the_symbol_cannot_take_is_refused_with_both_shapes(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = write_linear(tmp_path / "linear")
    (folder / "signature.json").write_text(json.dumps(signature([0, 5])))
    error = await load_error(start_server, export_model("m", folder, None, tmp_path).path)
    assert "with the signature's data (?, 5) the network needs" in error
    assert "'fc_weight' of (2, 5), but the file holds one of (2, 3)" in error


async def test_the_symbol_is_asked_whatever_the_service_does_with_requests(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = write_linear(tmp_path / "linear")
    (folder / "signature.json").write_text(json.dumps(signature([0, 5])))
    (folder / "service.py").write_text(
        "from mms.model_service.mxnet_model_service import MXNetBaseService\n"
        "class Service(MXNetBaseService):\n"
        "    def _preprocess(self, data):\n"
        "        return [len(data)]\n"
    )
    error = await load_error(start_server, export_model("m", folder, None, tmp_path).path)
    assert "(2, 5), but the file holds one of (2, 3)" in error


@pytest.mark.parametrize(
    "own", ["", "    def _inference(self, data):\n        return [self.net(*data)]\n"]
)
async def test_a_network_that_cannot_take_its_signature_is_refused(
    start_server: StartServer, tmp_path: Path, own: str
) -> None:
    source = _GLUON.format(units=7) + own
    folder = make_folder(tmp_path / "model", source, signature([0, 3]))
    error = await load_error(start_server, folder)
    assert "cannot answer a request that fits its signature (data [0, 3])" in error
    assert "7" in error
    assert "3" in error


async def test_a_free_axis_may_have_a_size_that_fits(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "model", _GLUON.format(units=3), signature([0, 0]))
    server = await start_server(m=folder)
    assert (await server.ask("m", [[1, 2, 3]]))[0] == 200


async def test_user_code_that_takes_no_zeros_is_served(
    start_server: StartServer, tmp_path: Path
) -> None:
    source = _GLUON.format(units=3) + (
        "    def _preprocess(self, data):\n"
        "        return super()._preprocess([[data[0][0]['numbers']]])\n"
    )
    server = await start_server(m=make_folder(tmp_path / "model", source, signature([0, 3])))
    status, answer = await server.ask("m", [{"numbers": [1, 2, 3]}])
    assert status == 200, answer


async def test_a_made_up_request_leaves_no_traces_in_user_code(
    start_server: StartServer, tmp_path: Path
) -> None:
    source = """
    import os
    from mms.model_service.model_service import SingleNodeService

    class Service(SingleNodeService):
        calls = 0
        def _inference(self, data):
            Service.calls += 1
            return data
        def _postprocess(self, data):
            return [os.getpid(), Service.calls]
    """
    folder = make_folder(tmp_path / "model", source, signature([0, 3]))
    server = await start_server(m=(folder, {"batch_size": 8}))
    _, (_, calls) = await server.ask("m", [[1, 2, 3]])
    assert calls == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("        os.kill(os.getpid(), 9)\n", "its process failed: it killed its process"),
        ("        raise KeyError('review')\n", "KeyError: 'review'"),
    ],
    ids=["kills", "raises"],
)
async def test_user_code_that_fails_a_made_up_request_is_served_and_says_so(
    start_server: StartServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    body: str,
    said: str,
) -> None:
    source = (
        "import os\n"
        "from mms.model_service.model_service import SingleNodeService\n"
        "class Service(SingleNodeService):\n"
        "    def _inference(self, data):\n"
        "        if data[0] == [[1]]:\n"
        "            return 'fine'\n" + body
    )
    folder = make_folder(tmp_path / "model", source, signature([0, 3]))
    with caplog.at_level("INFO"):
        server = await start_server(m=(folder, {"batch_size": 4}))
    assert await server.ask("m", [[1]]) == (200, "fine")
    assert f"failed: {said}" in caplog.text or said in caplog.text


class TestCheck:
    """`mxnet-model-export --check`."""

    def run(self, tmp_path: Path, source: str, sample: str = "[[1, 2, 3]]", *more: str) -> Any:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "service.py").write_text(source)
        (folder / "signature.json").write_text(json.dumps(signature([0, 3])))
        if sample:
            (folder / "sample.json").write_text(sample)
        command = [str(Path(sys.executable).parent / "mxnet-model-export")]
        options = ["--model-name", "m", "--model-path", str(folder), "--export-path", str(tmp_path)]
        return subprocess.run(
            [*command, *options, "--check", *more], capture_output=True, text=True, check=False
        )

    def source(self, *methods: str) -> str:
        head = (
            "import numpy as np\n"
            "from mms.model_service.model_service import SingleNodeService\n"
            "class Service(SingleNodeService):\n"
        )
        return head + "".join(f"    {line}\n" for line in methods)

    @pytest.mark.parametrize(
        ("methods", "sample", "said"),
        [
            (
                ["def _postprocess(self, data):", "    data[0]"],
                "[[1]]",
                "the service returns null; does its last stage (_postprocess) return a value?",
            ),
            (
                ["def _postprocess(self, data):", "    return {'p': [1.0, float('nan')]}"],
                "[[1]]",
                "the answer['p'][1] contains NaN or an infinity",
            ),
            (
                ["def _inference(self, data):", "    return np.array([[1.0, np.inf]])"],
                "[[1]]",
                "the answer contains NaN or an infinity",
            ),
            (
                ["def _postprocess(self, data):", "    return ['[[nan, 1.0]]']"],
                "[[1]]",
                "the answer[0] contains NaN or an infinity",
            ),
            (
                ["def preprocess(self, data):", "    return data"],
                "[[1]]",
                "Service.preprocess was never called while a request was answered; is it meant as "
                "_preprocess?",
            ),
            (
                ["def _post_process(self, data):", "    return data"],
                "",
                "Service._post_process was never called while a request was answered; is it meant "
                "as _postprocess?",
            ),
            (
                [
                    "def inference(self, data):",
                    "    return data",
                    "def _preprocess(self, data):",
                    "    return data",
                ],
                "[[1]]",
                "Service._preprocess was never called",
            ),
            (
                ["def _inference(self, data):", "    raise KeyError('review')"],
                "[[1]]",
                "KeyError: 'review'",
            ),
        ],
        ids=["null", "nan", "inf", "nan in text", "slip", "slip without sample", "whole", "raises"],
    )
    def test_a_slip_is_an_error_and_leaves_no_archive(
        self, tmp_path: Path, methods: list[str], sample: str, said: str
    ) -> None:
        done = self.run(tmp_path, self.source(*methods), sample)
        assert done.returncode != 0
        assert said in done.stderr.splitlines()[-1]
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_a_failed_check_keeps_what_was_to_be_replaced_under_another_name(
        self, tmp_path: Path
    ) -> None:
        good = self.source("def _postprocess(self, data):", "    return data")
        assert self.run(tmp_path, good).returncode == 0
        before = (tmp_path / "m.model").read_bytes()
        bad = self.source("def _postprocess(self, data):", "    pass")
        done = self.run(tmp_path, bad, "[[1]]", "--force")
        assert done.returncode != 0
        # Nobody takes the old one for the new one, and nothing is lost.
        assert not (tmp_path / "m.model").exists()
        assert (tmp_path / "m.model.previous").read_bytes() == before
        assert "m.model.previous" in done.stderr

    def test_an_existing_archive_is_refused_before_anything_runs(self, tmp_path: Path) -> None:
        (tmp_path / "m.model").write_bytes(b"mine")
        done = self.run(tmp_path, self.source("def _postprocess(self, data):", "    return data"))
        assert "already exists; use --force" in done.stderr
        assert (tmp_path / "m.model").read_bytes() == b"mine"

    def test_what_the_service_prints_is_shown(self, tmp_path: Path) -> None:
        source = self.source(
            "def _preprocess(self, data):",
            "    print('the rows are', data)",
            "    return data",
            "def clean_preprocess(self):",
            "    return 'a helper, never called'",
        )
        done = self.run(tmp_path, source)
        assert done.returncode == 0, done.stderr
        assert "the rows are [[[1, 2, 3]]]" in done.stdout + done.stderr
        assert "check: the archive loads and answers its sample: [[[1,2,3]]]" in done.stdout

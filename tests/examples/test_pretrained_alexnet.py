"""AlexNet from the model zoo: the download, the check of its hash, and weights that lie ready.

The zoo's own weights cannot be had here. Its repository is a server of this test's, and where
weights have to pass the check of their SHA-1, the zoo is told of the SHA-1 of weights made here.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mms.export.package import export_model
from tests.e2e.test_cli import Command
from tests.examples.readme import EXAMPLES, run

#: Training and loading MXNet several times; a busy machine takes its time.
pytestmark = pytest.mark.timeout(300)

FOLDER = EXAMPLES / "gluon_alexnet" / "pretrained"
#: Name of the zoo's file: the first eight digits of its SHA-1 are part of it.
ZOO_FILE = "alexnet-44335d1f"

#: Writes weights of AlexNet's real size that give class 7 the probability 1/2, class 3 1/4 and
#: the other 998 the rest, whatever the picture.
_WEIGHTS = """
import math, sys
from mms.engines.imports import import_mxnet
mx = import_mxnet()
from mxnet.gluon.model_zoo.vision import alexnet
net = alexnet()
net.initialize(mx.init.Zero())
net(mx.nd.zeros((1, 3, 224, 224)))
bias = mx.nd.zeros(1000)
bias[7], bias[3] = math.log(2 * 998), math.log(998)
net.output.bias.set_data(bias)
net.save_parameters(sys.argv[1])
"""

#: A service that tells the zoo of those weights, and is the example's in everything else.
_LOCAL_SERVICE = """
from gluon_pretrained_alexnet import PretrainedAlexNetService
from mxnet.gluon.model_zoo import model_store

model_store._model_sha1["alexnet"] = {sha1!r}


class LocalWeightsService(PretrainedAlexNetService):
    pass
"""


class Repository:
    """A model zoo's repository on this machine, all of whose archives hold the wrong weights."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(f"{ZOO_FILE}.params", b"not these")
        asked, body = self.asked, buffer.getvalue()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: `asked` is the log."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def repository() -> Iterator[Repository]:
    repository = Repository()
    yield repository
    repository.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder to export, as the README makes it."""
    folder = tmp_path / "alexnet_pretrained"
    folder.mkdir()
    for name in ("gluon_pretrained_alexnet.py", "signature.json"):
        shutil.copy(FOLDER / name, folder)
    labels = [f"n{number:08} label {number}" for number in range(1000)]
    (folder / "synset.txt").write_text("\n".join(labels) + "\n")
    return folder


def serve(archive: Path, repository: Repository) -> Command:
    folder = archive.parent
    environment = {"MXNET_GLUON_REPO": repository.url, "MXNET_HOME": str(folder / "home")}
    models = ("--models", f"alexnet={archive}", "--management-port", "-1")
    return Command(folder, *models, environment=environment)


def test_weights_are_downloaded_and_refused_if_they_are_others(
    source: Path, repository: Repository
) -> None:
    archive = export_model("alexnet_pretrained", source, export_path=source.parent).path
    command = serve(archive, repository)
    assert command.end() != 0
    assert "different hash" in command.output
    assert set(repository.asked) == {f"/gluon/models/{ZOO_FILE}.zip"}
    assert (source.parent / "home" / "models").is_dir()


def test_weights_in_the_archive_come_before_those_of_the_machine(
    source: Path, repository: Repository
) -> None:
    (source / "weights").mkdir()
    (source / "weights" / f"{ZOO_FILE}.params").write_bytes(b"spoilt")
    archive = export_model("alexnet_pretrained", source, export_path=source.parent).path
    command = serve(archive, repository)
    assert command.end() != 0
    # They are found there, do not pass the check, and are fetched anew, which gives others still.
    assert "Mismatch in the content of model file detected" in command.output
    assert "different hash" in command.output
    assert not (source.parent / "home").exists()


def test_weights_that_lie_ready_are_served_without_a_download(
    source: Path, repository: Repository
) -> None:
    models = source.parent / "home" / "models"
    models.mkdir(parents=True)
    weights = models / "weights.params"
    run(sys.executable, "-c", _WEIGHTS, str(weights))
    sha1 = hashlib.sha1(weights.read_bytes()).hexdigest()
    weights.rename(models / f"alexnet-{sha1[:8]}.params")
    service = source / "local_service.py"
    service.write_text(_LOCAL_SERVICE.format(sha1=sha1))
    archive = export_model("alexnet_pretrained", source, service, source.parent).path
    command = serve(archive, repository)
    try:
        picture = str(EXAMPLES / "gluon_alexnet" / "blobs.jpg")
        url = f"{command.url()}/predictions/alexnet"
        asked = ["curl", "--silent", "--show-error", "-X", "POST", "-T", picture, url]
        answer = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
        command.process.terminate()
        assert command.end() == 0, command.output
    finally:
        command.process.kill()
        command.process.wait()
        # A quarter of a gigabyte, which pytest would keep for three runs.
        shutil.rmtree(models)
    assert [entry["class"] for entry in answer[:2]] == ["n00000007 label 7", "n00000003 label 3"]
    assert len(answer) == 5
    assert math.isclose(answer[0]["probability"], 0.5, rel_tol=1e-3)
    assert math.isclose(answer[1]["probability"], 0.25, rel_tol=1e-3)
    assert repository.asked == []

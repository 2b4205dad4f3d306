"""Mistakes in a model's folder: the last line that `mxnet-model-export` prints says what is wrong.

It says where, too, and what to do, in the words and file names of the person who made the mistake.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mms.engines.imports import import_mxnet

_LIMIT_S = 120.0

#: A complete service on a network that is saved beside it.
SERVICE = """
from mxnet import gluon
from mms.model_service.mxnet_model_service import GluonImperativeBaseService


class Flowers(GluonImperativeBaseService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        net = gluon.nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(gluon.nn.Dense(4, in_units=3), gluon.nn.Dense(2, in_units=4))
        super().__init__(model_name, model_dir, manifest, net, gpu)

    def _postprocess(self, data):
        return data
"""


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return parameter files for, and not for, the network of the service above."""
    folder = tmp_path_factory.mktemp("parameters")
    mx = import_mxnet()
    nn = mx.gluon.nn

    def network(prefix: str, *widths: int) -> Any:
        net = nn.HybridSequential(prefix=prefix)
        with net.name_scope():
            for width_in, width in zip((3, *widths), widths, strict=False):
                net.add(nn.Dense(width, in_units=width_in))
        net.initialize()
        net.hybridize()
        net(mx.nd.ones((1, 3)))
        return net

    network("net_", 4, 2).save_parameters(f"{folder}/right")
    network("net_", 4, 3).save_parameters(f"{folder}/wider")
    network("net_", 4, 2, 2).save_parameters(f"{folder}/other")
    (folder / "rubbish").write_bytes(b"these are no parameters, but some other file")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Folder:
    """A model's folder that is right, until one thing in it is changed."""

    def __init__(self, path: Path, parameters: dict[str, bytes]) -> None:
        self.path = path
        self._parameters = parameters
        self.write("service.py", SERVICE)
        self.parameters("right")
        self.signature([0, 3])
        self.write("sample.json", "[[1, 2, 3]]")

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def parameters(self, kind: str) -> None:
        (self.path / "net-0000.params").write_bytes(self._parameters[kind])

    def signature(self, shape: list[int], input_type: str = "application/json") -> None:
        document = {
            "inputs": [{"data_name": "data", "data_shape": shape}],
            "input_type": input_type,
            "outputs": [{"data_name": "softmax", "data_shape": [0, 2]}],
            "output_type": "application/json",
        }
        self.write("signature.json", json.dumps(document))

    def service(self, old: str, new: str) -> None:
        """Replace a part of the service."""
        assert old in SERVICE
        self.write("service.py", SERVICE.replace(old, new))

    def check(self) -> subprocess.CompletedProcess[str]:
        """Pack and check it, as its author would."""
        command = [sys.executable, "-m", "mms.cli.export", "--model-name", "flowers", "--check"]
        return subprocess.run(
            [*command, "--model-path", str(self.path), "--export-path", str(self.path.parent)],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )


@pytest.fixture
def folder(tmp_path: Path, parameters: dict[str, bytes]) -> Folder:
    path = tmp_path / "flowers"
    path.mkdir()
    return Folder(path, parameters)


def raising(line: str) -> Callable[[Folder], None]:
    """Return a change after which `_preprocess` runs this line."""
    hook = f"    def _preprocess(self, data):\n        {line}\n\n    def _postprocess"
    return lambda folder: folder.service("    def _postprocess", hook)


def answering(line: str) -> Callable[[Folder], None]:
    """Return a change after which `_postprocess` runs this line instead of returning."""
    return lambda folder: folder.service("        return data\n", f"        {line}\n")


def open_by_its_bare_name(folder: Folder) -> None:
    folder.write("names.txt", "a\n")
    folder.service("        net = gl", "        open('names.txt')\n        net = gl")


#: The change, and what the last line then says.
MISTAKES: dict[str, tuple[Callable[[Folder], object], list[str]]] = {
    "no signature": (
        lambda folder: folder.remove("signature.json"),
        ["no signature.json; write one, such as", '"data_shape"'],
    ),
    "broken signature": (
        lambda folder: folder.write("signature.json", '{"inputs": ['),
        ["signature.json", "not valid JSON", "line 1 column"],
    ),
    "other width": (
        lambda folder: folder.parameters("wider"),
        ["net-0000.params", "does not fit HybridSequential", "1.weight", "(2, 4)", "(3, 4)"],
    ),
    "other network": (
        lambda folder: folder.parameters("other"),
        ["net-0000.params", "does not fit HybridSequential", "2."],
    ),
    "rubbish for parameters": (
        lambda folder: folder.parameters("rubbish"),
        ["net-0000.params", "not"],
    ),
    "no parameters": (
        lambda folder: folder.remove("net-0000.params"),
        ["'net_dense0_weight' has not been initialized", "is the parameter file", "-0000.params"],
    ),
    "two parameter files": (
        lambda folder: folder.write("net-0001.params", ""),
        ["net-0000.params, net-0001.params", "keep the one to export"],
    ),
    "no epoch": (
        lambda folder: (folder.path / "net-0000.params").rename(folder.path / "net.params"),
        ["net.params", "no epoch number", "net-0000.params"],
    ),
    "module missing": (
        lambda folder: folder.write("service.py", "import cv3\n" + SERVICE),
        ["No module named 'cv3'", "(service.py:1)", "install 'cv3'"],
    ),
    "syntax error": (
        lambda folder: folder.write("service.py", SERVICE.replace("None):", "None)")),
        ["service.py:7", "expected ':'"],
    ),
    "two services": (
        lambda folder: folder.write(
            "service.py",
            SERVICE
            + "\n\nclass Other(Flowers2): pass\n".replace("Flowers2", "GluonImperativeBaseService"),
        ),
        ["defines several service classes", "Flowers", "Other", "keep one"],
    ),
    "wrong base class": (
        lambda folder: folder.service("(GluonImperativeBaseService)", ""),
        ["service.py", "defines no service class", "GluonImperativeBaseService"],
    ),
    "wrong __init__": (
        lambda folder: folder.service(
            "(self, model_name, model_dir, manifest, gpu=None)", "(self)"
        ),
        ["define __init__(self, model_name, model_dir, manifest, gpu=None)"],
    ),
    "exception in a hook": (
        raising("return [data[0]['x']]"),
        ["preprocess", "TypeError: list indices must be integers", "(service.py:14)"],
    ),
    "labels missing": (
        answering("return self.labels[0]"),
        ["labels", "synset.txt"],
    ),
    "file by its bare name": (
        open_by_its_bare_name,
        ["(service.py:8)", "os.path.join(model_dir, 'names.txt')"],
    ),
    "no JSON": (
        answering("return {'answer': {'at': object()}}"),
        ["['answer']['at']", "object"],
    ),
    "forgotten return": (
        answering("data"),
        ["returns null", "_postprocess"],
    ),
    "not a number": (
        answering("return [float('nan')]"),
        ["NaN"],
    ),
    "misspelt hook": (
        lambda folder: folder.service("_postprocess", "_postproces"),
        ["_postproces", "_postprocess"],
    ),
    "image type for a JSON model": (
        lambda folder: folder.signature([0, 3], "image/jpg2"),
        ["sample"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_last_line_says_what_where_and_what_to_do(name: str, folder: Folder) -> None:
    change, said = MISTAKES[name]
    change(folder)
    done = folder.check()
    assert done.returncode in (1, 2, 3), done.stdout + done.stderr
    last = done.stderr.rstrip().rsplit("\n", 1)[-1]
    assert last.startswith("Error: ")
    for part in said:
        assert part in last, done.stderr
    # Once, without our own frames, places in C++ code or the folder that it was unpacked to.
    assert done.stderr.count("Traceback (most recent call last)") <= 1, done.stderr
    for foreign in ("mms/worker", "mms/export", ".cc:", "/tmp/mxnet-model-server"):
        assert foreign not in done.stderr
    assert not list(folder.path.parent.glob("*.model"))


def test_a_folder_without_a_mistake_passes(folder: Folder) -> None:
    done = folder.check()
    assert done.returncode == 0, done.stderr
    assert "answers its sample: [[" in done.stdout

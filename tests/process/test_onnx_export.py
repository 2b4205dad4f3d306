"""Exporting ONNX models, which onnxruntime itself has to open for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from mms.archive.manifest import ModelFormat
from mms.archive.reader import open_archive
from mms.errors import ExportError, SignatureError
from mms.export.package import Export, export_model
from tests.kit.archives import signature, write_linear
from tests.kit.onnx_models import (
    FLOAT,
    colours,
    identity,
    linear,
    make_model,
    unsupported,
    value,
    write_external,
    write_model,
)
from tests.kit.zips import GLUON_SERVICE, listing

SERVICE = """
from mms.model_service.onnx_service import OnnxBaseService


class Service(OnnxBaseService):
    def {method}(self, data):
        return data
"""


def export(folder: Path, **options: Any) -> Export:
    return export_model("net", folder, export_path=folder.parent / "out", **options)


def members(made: Export) -> dict[str, bytes]:
    with zipfile.ZipFile(made.path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_an_onnx_file_alone_makes_an_archive(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", linear())
    before = listing(folder)
    made = export(folder)
    manifest = made.manifest
    assert manifest.model_format is ModelFormat.ONNX
    assert (manifest.symbol, manifest.parameters) == ("net.onnx", "")
    assert manifest.engine == {"onnxruntime": onnxruntime.__version__}
    files = members(made)
    assert set(files) == {"MANIFEST.json", "net.onnx", "signature.json", "default_service.py"}
    assert b"class DefaultService(OnnxBaseService)" in files["default_service.py"]
    assert json.loads(files["signature.json"])["inputs"] == [
        {"data_name": "x", "data_shape": [0, 3]}
    ]
    archive = open_archive(made.path, tmp_path)
    assert archive.manifest == manifest
    assert listing(folder) == before
    assert export(folder, force=True).path.read_bytes() == made.path.read_bytes()


def test_an_image_model_with_labels_gets_the_service_for_images(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", colours(), labels=["red", "green", "blue"])
    files = members(export(folder))
    assert b"class DefaultService(OnnxVisionService)" in files["default_service.py"]
    assert json.loads(files["signature.json"])["input_type"] == "image/jpeg"


def test_a_signature_in_the_folder_stays_as_it_is(tmp_path: Path) -> None:
    document = {**signature([0, 3], names=("x",)), "author": "me"}
    document["outputs"] = [{"data_name": "y", "data_shape": [0, 2]}]
    folder = write_model(tmp_path / "model", linear(), document)
    assert members(export(folder))["signature.json"] == json.dumps(document).encode()


@pytest.mark.parametrize("location", ["net.onnx.data", "weights/all.bin", ".hidden"])
def test_weights_in_a_file_of_their_own_come_along(tmp_path: Path, location: str) -> None:
    files = members(export(write_external(tmp_path / "model", location)))
    assert len(files[location]) >= 24


def test_a_service_that_makes_the_inputs_itself_may_name_them_as_it_likes(tmp_path: Path) -> None:
    document = signature([0], names=("text",))
    document["outputs"] = [{"data_name": "y", "data_shape": [0, 2]}]
    service = SERVICE.format(method="_preprocess")
    made = export(write_model(tmp_path / "own", linear(), document, service=service))
    assert made.manifest.service == "service.py"
    other = SERVICE.format(method="_postprocess")
    with pytest.raises(SignatureError, match="the graph has no input 'text'; its inputs are 'x'"):
        export(write_model(tmp_path / "other", linear(), document, service=other))


def test_a_service_that_makes_the_answer_itself_may_name_it_as_it_likes(tmp_path: Path) -> None:
    document = signature([0, 3], names=("x",))
    service = SERVICE.format(method="_postprocess")
    export(write_model(tmp_path / "own", linear(), document, service=service))
    with pytest.raises(SignatureError, match=r"no output 'output'; .* 'y', 'rows'; name"):
        export(write_model(tmp_path / "default", linear(), document))


@pytest.mark.parametrize("base", ["Mixin, OnnxBaseService", "SingleNodeService"])
def test_a_service_that_may_do_anything_with_its_inputs_may_name_them_as_it_likes(
    tmp_path: Path, base: str
) -> None:
    service = f"""
        from elsewhere import Mixin
        from mms.model_service.model_service import SingleNodeService
        from mms.model_service.onnx_service import OnnxBaseService

        class Service({base}):
            pass
    """
    document = signature([0], names=("text",))
    folder = write_model(tmp_path / "m", linear(), document, service=textwrap.dedent(service))
    assert export(folder).manifest.service == "service.py"


def test_a_model_beside_an_mxnet_one_is_refused(tmp_path: Path) -> None:
    folder = write_linear(tmp_path / "model")
    (folder / "net.onnx").write_bytes(linear().SerializeToString())
    with pytest.raises(ExportError, match=r"ONNX model \(net.onnx\) and an MXNet model .*symbol"):
        export(folder)


def test_a_service_for_mxnet_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", linear(), service=GLUON_SERVICE)
    with pytest.raises(ExportError, match=r"Service serves an MXNet model, but .* \(net.onnx\)"):
        export(folder)


def test_an_image_model_without_labels_is_refused(tmp_path: Path) -> None:
    document = signature([0, 3, 4, 6], "image/jpeg", names=("image",))
    document["outputs"] = [{"data_name": "scores", "data_shape": [0, 3]}]
    folder = write_model(tmp_path / "model", colours(), document)
    with pytest.raises(SignatureError, match=r"there is no synset.txt; add one"):
        export(folder)
    (folder / "synset.txt").write_text("red\ngreen\n")
    with pytest.raises(SignatureError, match=r"'scores' has 3 classes, but .* only 2"):
        export(folder)


def missing_weights(folder: Path) -> None:
    (write_external(folder) / "net.onnx.data").unlink()


def cut_weights(folder: Path) -> None:
    (write_external(folder) / "net.onnx.data").write_bytes(b"short")


def written(model: Callable[[], onnx.ModelProto | bytes]) -> Callable[[Path], Any]:
    return lambda folder: write_model(folder, model())


def of_opset(opset: int) -> onnx.ModelProto:
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    return make_model([node], [value("x", FLOAT, ["N"])], [value("y", FLOAT, ["N"])], opset=opset)


def loose_end() -> onnx.ModelProto:
    node = onnx.helper.make_node("Identity", ["z"], ["y"])
    return make_model([node], [value("x", FLOAT, ["N"])], [value("y", FLOAT, ["N"])])


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unsupported operator": (
        written(unsupported),
        r"onnxruntime \S+ cannot run net.onnx: .*No Op registered for Frobnicate .*; "
        "export it with standard operators",
    ),
    "opset of the future": (written(lambda: of_opset(999)), "Opset 999 .*; export it for an older"),
    "dangling input": (written(loose_end), "'z' is not a graph input.*; export it again"),
    "empty": (written(lambda: b""), "No graph was found.*; it is damaged, or not an ONNX model"),
    "cut short": (
        written(lambda: linear().SerializeToString()[:-20]),
        "Protobuf parsing failed; it is damaged, or not an ONNX model: fetch or export it again",
    ),
    "something else": (written(lambda: b"<html>" * 9), "Protobuf parsing failed; it is damaged"),
    "weights missing": (missing_weights, "its weights lie in 'net.onnx.data', which is missing"),
    "weights cut short": (cut_weights, "External initializer: .*; fetch or export the files with"),
    "no shape": (
        written(lambda: identity(FLOAT, None)),
        "does not state the shape of its input 'x'; write a signature.json",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_served_is_explained_in_one_line(tmp_path: Path, name: str) -> None:
    make, message = BROKEN[name]
    make(tmp_path / "model")
    with pytest.raises((ExportError, SignatureError), match=f"model/net.onnx: .*{message}") as said:
        export(tmp_path / "model")
    assert "\n" not in str(said.value)
    assert "ONNXRuntimeError" not in str(said.value)
    assert "onnxruntime_src" not in str(said.value)
    assert not (tmp_path / "out").exists()


def command(folder: Path, *args: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the exporter in the folder above the model's, as its installed command does."""
    script = folder.parent / "bin" / "export.py"
    script.parent.mkdir()
    script.write_text("from mms.cli.export import main\nmain()\n")
    paths = [*([str(path)] if path else []), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, script, "--model-name", "net", "--model-path", folder, *args],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_check_loads_the_archive_and_runs_its_sample(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", linear())
    (folder / "sample.json").write_text("[[1, 2, 3]]")
    done = command(folder, "--check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"net.model: ONNX model 'net', 5 files, {(tmp_path / 'net.model').stat().st_size / 1e6:.1f}"
        " MB, service default_service.py",
        "check: the archive loads and answers its sample: [[[1.0,15.0]],[[1.0,1.0,1.0]]]",
    ]


def test_check_tells_why_a_sample_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", linear())
    (folder / "sample.json").write_text("[[1, 2]]")
    done = command(folder, "--check")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].endswith(
        "the archive's sample request 'sample.json' failed: input 'x' has shape (1, 2), expected "
        "(?, 3) (axis 0 is the batch; ? is any size)"
    )


def test_a_mistake_is_one_line_and_exit_status_3(tmp_path: Path) -> None:
    done = command(write_model(tmp_path / "model", unsupported()))
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "No Op registered for Frobnicate" in done.stderr


def test_without_onnxruntime_the_command_that_installs_it_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", linear())
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "onnxruntime.py").write_text("raise ImportError('no such thing')")
    done = command(folder, path=broken)
    assert done.returncode == 3
    assert done.stderr == "Error: onnxruntime cannot be loaded: no such thing\n"
    assert not (tmp_path / "net.model").exists()


def test_modules_beside_the_model_do_not_get_in_the_way(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", linear())
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('not this one')")
    done = command(folder)
    assert done.returncode == 0, done.stderr

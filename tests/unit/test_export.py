"""Exporting: what makes an archive, and every mistake with its way out."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mms.archive.manifest import ModelFormat
from mms.archive.reader import open_archive
from mms.archive.service_file import service_classes
from mms.errors import ExportError, ManifestError, SignatureError
from mms.export.package import Export, export_model
from tests.kit.zips import (
    GLUON_SERVICE,
    SIGNATURE,
    SYMBOL_SERVICE,
    listing,
    write_folder,
)

SIGNATURE_JSON = json.dumps(SIGNATURE)
ONNX_SERVICE = (
    "from mms.model_service.onnx_service import OnnxBaseService\n\n\n"
    "class Service(OnnxBaseService):\n    pass\n"
)
SYMBOL_JSON = json.dumps({"nodes": [], "attrs": {"mxnet_version": ["int", 10100]}})
GLUON: dict[str, bytes | str] = {
    "signature.json": SIGNATURE_JSON,
    "service.py": GLUON_SERVICE,
    "net-0000.params": bytes(10),
}
SYMBOLIC: dict[str, bytes | str] = {
    "signature.json": SIGNATURE_JSON,
    "net-symbol.json": SYMBOL_JSON,
    "net-0012.params": bytes(10),
}


def export(
    tmp_path: Path, files: Mapping[str, bytes | str], service: str | Path | None = None
) -> Export:
    folder = write_folder(tmp_path / "model", files)
    return export_model("test", folder, Path(service) if service else None, tmp_path / "out")


def names_in(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_a_gluon_model_is_packed_and_opens(tmp_path: Path) -> None:
    made = export(tmp_path, GLUON, "service.py")
    assert made.path == tmp_path / "out" / "test.model"
    assert names_in(made.path) == {*GLUON, "MANIFEST.json"}
    assert made.members == 4
    archive = open_archive(made.path, tmp_path)
    assert archive.manifest == made.manifest
    assert archive.manifest.model_format is ModelFormat.GLUON
    assert archive.manifest.parameters == "net-0000.params"


def test_a_symbolic_model_is_packed_with_the_version_that_made_it(tmp_path: Path) -> None:
    made = export(tmp_path, {**SYMBOLIC, "service.py": SYMBOL_SERVICE})
    assert made.manifest.model_format is ModelFormat.SYMBOLIC
    assert (made.manifest.symbol, made.manifest.service) == ("net-symbol.json", "service.py")
    assert made.manifest.engine == {"MXNet": "1.1.0"}


@pytest.mark.parametrize(
    ("input_type", "base"),
    [("image/jpeg", "MXNetVisionService"), ("application/json", "MXNetBaseService")],
)
def test_a_symbol_without_a_service_gets_the_default_one(
    tmp_path: Path, input_type: str, base: str
) -> None:
    inputs = [{"data_name": "data", "data_shape": [0, 3, 8, 8]}]
    signature = json.dumps({**SIGNATURE, "inputs": inputs, "input_type": input_type})
    made = export(tmp_path, {**SYMBOLIC, "signature.json": signature})
    folder = open_archive(made.path, tmp_path).folder
    assert f"({base})" in (folder / made.manifest.service).read_text()
    assert service_classes(folder / made.manifest.service) == [
        ("DefaultService", ModelFormat.SYMBOLIC)
    ]


@pytest.mark.parametrize(
    ("service", "is_refused"),
    [
        ("", True),
        (
            "class Mine(MXNetVisionService):\n    def _postprocess(self, data):\n        pass\n",
            True,
        ),
        (
            "class Mine(MXNetVisionService):\n    def _preprocess(self, data):\n        pass\n",
            False,
        ),
        ("class Mine(MXNetBaseService):\n    pass\n", False),
    ],
)
def test_a_shape_that_no_picture_fits_is_refused_if_the_default_service_is_to_feed_it(
    tmp_path: Path, service: str, is_refused: bool
) -> None:
    inputs = [{"data_name": "data", "data_shape": [3, 8, 8]}]
    signature = json.dumps({**SIGNATURE, "inputs": inputs, "input_type": "image/jpeg"})
    files = {**SYMBOLIC, "signature.json": signature} | ({"service.py": service} if service else {})
    if is_refused:
        with pytest.raises(SignatureError, match=r"\[3, 8, 8\].* write \[0, 3, 8, 8\]"):
            export(tmp_path, files)
    else:
        export(tmp_path, files)


def test_the_only_service_of_the_folder_is_found(tmp_path: Path) -> None:
    made = export(tmp_path, {**GLUON, "helper.py": "X = 1\n"})
    assert made.manifest.service == "service.py"


def test_a_service_may_lie_outside_the_folder(tmp_path: Path) -> None:
    service = tmp_path / "elsewhere.py"
    service.write_text(GLUON_SERVICE)
    files = {name: content for name, content in GLUON.items() if name != "service.py"}
    made = export(tmp_path, files, service)
    assert made.manifest.service == "elsewhere.py"
    assert open_archive(made.path, tmp_path).digest


def test_a_service_may_be_named_by_its_folder(tmp_path: Path) -> None:
    """As the announcement's own command does."""
    folder = write_folder(tmp_path / "services", {"svc.py": GLUON_SERVICE, "helper.py": ""})
    made = export(tmp_path, GLUON, folder)
    assert made.manifest.service == "svc.py"


def test_a_service_named_in_a_hidden_file_is_packed(tmp_path: Path) -> None:
    made = export(tmp_path, {**GLUON, ".private/svc.py": GLUON_SERVICE}, ".private/svc.py")
    assert open_archive(made.path, tmp_path).manifest.service == ".private/svc.py"


def test_folders_are_kept_and_rubbish_is_not_packed(tmp_path: Path) -> None:
    kept = {"lib/deep/table.txt": "x", "synset.txt": "a", "lib/net-0000.params": "nested"}
    ignored = [
        "__pycache__/service.pyc",
        "lib/old.pyc",
        ".git/config",
        ".hidden",
        "notes.txt~",
        "old.model",
        "old.mar",
        "MANIFEST.json",
    ]
    made = export(tmp_path, {**GLUON, **kept, **dict.fromkeys(ignored, "rubbish")})
    assert names_in(made.path) == {*GLUON, *kept, "MANIFEST.json"}


def test_the_source_folder_is_never_changed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", {**SYMBOLIC, "lib/x.txt": "x"})
    before = listing(folder)
    export_model("test", folder, None, tmp_path / "out")
    with pytest.raises(ExportError):
        export_model("test", folder, Path("no.py"), tmp_path / "out")
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("name", "content_type"), [("sample.json", "application/json"), ("sample.jpg", "image/jpeg")]
)
def test_a_sample_request_is_picked_up(tmp_path: Path, name: str, content_type: str) -> None:
    sample = export(tmp_path, {**GLUON, name: "[1]"}).manifest.serving.sample
    assert sample is not None
    assert (sample.file, sample.content_type) == (name, content_type)


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", GLUON)
    first = export_model("test", folder, None, tmp_path / "a").path
    second = export_model("test", folder, None, tmp_path / "b").path
    assert first.read_bytes() == second.read_bytes()


def test_an_existing_archive_is_replaced_only_by_force(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", GLUON)
    (tmp_path / "test.model").write_text("precious")
    with pytest.raises(ExportError, match=r"test\.model already exists; use --force"):
        export_model("test", folder, None, tmp_path)
    assert (tmp_path / "test.model").read_text() == "precious"
    assert export_model("test", folder, None, tmp_path, force=True).members == 4


def test_defaults_for_serving_are_checked_and_kept(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", GLUON)
    made = export_model("a", folder, None, tmp_path, serving={"batch_size": 8})
    assert open_archive(made.path, tmp_path).manifest.serving.batch_size == 8
    with pytest.raises(ManifestError, match="batch_size must be an integer >= 1, got 0"):
        export_model("b", folder, None, tmp_path, serving={"batch_size": 0})


def without(files: Mapping[str, bytes | str], *names: str) -> dict[str, bytes | str]:
    return {name: content for name, content in files.items() if name not in names}


TWO_SERVICES = GLUON_SERVICE + GLUON_SERVICE.replace("class Service", "class Other")
MISTAKES: dict[str, tuple[dict[str, bytes | str], str | None, str]] = {
    "nothing": (
        {"signature.json": SIGNATURE_JSON},
        None,
        "no model found. A symbolic model is .*; a Gluon model is .*; an ONNX model is a NAME.onnx",
    ),
    "several parameter files": (
        {**GLUON, "net-0001.params": b""},
        None,
        r"several parameter files \(net-0000.params, net-0001.params\); keep the one",
    ),
    "several symbols": (
        {**SYMBOLIC, "other-symbol.json": "{}"},
        None,
        r"several symbol files \(net-symbol.json, other-symbol.json\); keep the one",
    ),
    "prefixes differ": (
        without(SYMBOLIC, "net-symbol.json") | {"res-symbol.json": "{}"},
        None,
        "res-symbol.json and net-0012.params have different prefixes; name them net-symbol.json",
    ),
    "no epoch": (
        without(GLUON, "net-0000.params") | {"net.params": b""},
        None,
        "net.params has no epoch number; rename it to net-0000.params",
    ),
    "symbol alone": (
        without(SYMBOLIC, "net-0012.params"),
        None,
        "net-symbol.json has no parameter file; add net-0000.params",
    ),
    "parameters alone": (
        without(GLUON, "service.py"),
        None,
        "only a parameter file .*--service-file-path.*net-symbol.json",
    ),
    "a blank line between labels": (
        {**GLUON, "synset.txt": "red\n\ngreen\n"},
        None,
        "synset.txt: line 2 is blank, and would be the name of a class; name the class",
    ),
    "labels in another encoding": (
        {**GLUON, "synset.txt": "\u7ea2\n".encode("gbk")},
        None,
        r"synset.txt is not in UTF-8 but in another encoding \(line 1\); save it as",
    ),
    "onnx and mxnet": (
        {**GLUON, "net.onnx": b""},
        None,
        r"an ONNX model \(net.onnx\) and an MXNet model .*one model per folder",
    ),
    "several onnx models": (
        {"a.onnx": b"", "b.onnx": b""},
        None,
        r"several ONNX files \(a.onnx, b.onnx\); keep the one",
    ),
    "onnx service without an onnx model": (
        {**GLUON, "service.py": ONNX_SERVICE},
        "service.py",
        "Service serves an ONNX model, but the folder holds none; add NAME.onnx",
    ),
    "no service class": (
        {**GLUON, "service.py": "class Service: pass\n"},
        "service.py",
        "service.py: defines no service class; derive one from GluonImperativeBaseService",
    ),
    "several service classes": (
        {**GLUON, "service.py": TWO_SERVICES},
        "service.py",
        r"several service classes \(Service, Other\); keep one per file",
    ),
    "several service files": (
        {**GLUON, "second.py": GLUON_SERVICE},
        None,
        r"several files define services \(second.py, service.py\); choose one with",
    ),
    "syntax error": (
        {**GLUON, "service.py": "x = 1\nclass Service(\n"},
        "service.py",
        r"service.py:2: not valid Python: '\(' was never closed",
    ),
    "nul in the service": (
        {**GLUON, "service.py": "x = '\0'\n"},
        "service.py",
        "service.py.*: not valid Python: .*null",
    ),
    "gluon service for a symbol": (
        {**SYMBOLIC, "service.py": GLUON_SERVICE},
        "service.py",
        r"Service serves a Gluon network, but the folder holds a symbol \(net-symbol.json\)",
    ),
    "symbol service without a symbol": (
        {**GLUON, "service.py": SYMBOL_SERVICE},
        "service.py",
        "Service serves a symbol, but the folder holds none; add NAME-symbol.json",
    ),
    "no such service": (GLUON, "nowhere.py", "nowhere.py: no such service file, neither here nor"),
    "backslash in a name": ({**GLUON, "a\\b.txt": ""}, None, r"'a\\\\b.txt' is not allowed in"),
    "names differ by case": (
        {**GLUON, "Words.txt": "", "words.txt": ""},
        None,
        "'Words.txt' and 'words.txt' are the same file on systems that ignore case; rename one",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    files, service, message = MISTAKES[name]
    with pytest.raises(ExportError, match=message):
        export(tmp_path, files, service)
    assert not (tmp_path / "out" / "test.model").exists()


SIGNATURE_MISTAKES: dict[str, tuple[str | bytes | None, str]] = {
    "missing": (None, "model: no signature.json; write one, such as {"),
    "not json": ("{,}", "signature.json: not valid JSON"),
    "not text": (b"\xff\xfe", "signature.json: not valid JSON"),
    "nan": (SIGNATURE_JSON[:-1] + ', "note": NaN}', "signature.json: not valid JSON"),
    "no inputs": (json.dumps(without(SIGNATURE, "inputs")), "has no 'inputs'; add one"),
    "no outputs": (json.dumps(without(SIGNATURE, "outputs")), "has no 'outputs'; add one"),
    "input type": (json.dumps({**SIGNATURE, "input_type": "x"}), "'input_type' must be"),
    "output type": (json.dumps({**SIGNATURE, "output_type": 1}), "'output_type' must be"),
    "shape": (
        json.dumps({**SIGNATURE, "inputs": [{"data_name": "a", "data_shape": ["x"]}]}),
        r"inputs\[0\].data_shape must be a list of integers",
    ),
}


@pytest.mark.parametrize("name", SIGNATURE_MISTAKES)
def test_a_bad_signature_is_explained(tmp_path: Path, name: str) -> None:
    content, message = SIGNATURE_MISTAKES[name]
    files: dict[str, Any] = without(GLUON, "signature.json")
    if content is not None:
        files["signature.json"] = content
    with pytest.raises(SignatureError, match=message):
        export(tmp_path, files)
    assert not (tmp_path / "out" / "test.model").exists()


def test_a_file_name_that_is_no_text_is_explained(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", GLUON)
    with open(bytes(folder) + b"/\xff.txt", "wb"):
        pass
    with pytest.raises(ExportError, match=r"'\\udcff.txt' is not allowed in an archive; rename"):
        export_model("test", folder, None, tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "../a", " a", ".."])
def test_a_name_that_cannot_stand_in_a_url_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="cannot be used in a URL: use up to 128"):
        export_model(name, tmp_path)


@pytest.mark.parametrize("path", ["nowhere", "~no-such-user/model"])
def test_a_missing_model_folder_is_named(path: str) -> None:
    with pytest.raises(ExportError, match=f"{path}: no such folder; set --model-path"):
        export_model("test", Path(path))


def test_an_export_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ExportError, match="out: cannot be created: File exists"):
        export(tmp_path, GLUON)


def test_a_folder_of_services_must_hold_one(tmp_path: Path) -> None:
    two = write_folder(tmp_path / "two", {"a.py": GLUON_SERVICE, "b.py": GLUON_SERVICE})
    with pytest.raises(ExportError, match=r"expected one service file .* found a.py, b.py; name"):
        export(tmp_path, GLUON, two)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import m\nclass A(m.SingleNodeService): ...\n", [("A", None)]),
        ("class B(MXNetBaseService): ...\nclass A(B): ...\n", [("A", ModelFormat.SYMBOLIC)]),
        ("class A(B): ...\nclass B(A): ...\n", []),
        ("class A(A): ...\n", []),
        ("class A: ...\n", []),
        ("\ufeffclass A(ModelService): ...\n", [("A", None)]),
        ("if True:\n    class A(ModelService): ...\n", [("A", None)]),
    ],
)
def test_service_classes_are_found_without_running_the_file(
    tmp_path: Path, source: str, found: list[tuple[str, ModelFormat | None]]
) -> None:
    path = tmp_path / "service.py"
    path.write_text(source + "raise SystemExit\n", encoding="utf-8")
    assert service_classes(path) == found


def test_a_service_in_another_encoding_is_read_as_python_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "service.py"
    path.write_bytes("# coding: latin-1\nclass A(ModelService):\n    x = 'é'\n".encode("latin-1"))
    assert service_classes(path) == [("A", None)]

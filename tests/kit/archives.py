"""Build small real archives for the tests, through the exporter itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mms.archive.manifest import MANIFEST_NAME, Manifest, ModelFormat, Sample, ServingDefaults
from mms.export.package import export_model

SERVICES = Path(__file__).parent / "services"
HANDLERS = Path(__file__).parent / "handlers"


def signature(
    shape: list[int] | None = None,
    input_type: str = "application/json",
    output_type: str = "application/json",
    names: tuple[str, ...] = ("data",),
) -> dict[str, Any]:
    """Return a signature.json document."""
    return {
        "inputs": [{"data_name": name, "data_shape": shape or [0]} for name in names],
        "input_type": input_type,
        "outputs": [{"data_name": "output", "data_shape": [0]}],
        "output_type": output_type,
    }


def make_archive(
    folder: Path,
    service: str,
    signature_document: dict[str, Any] | None = None,
    name: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Pack ``tests/kit/services/<service>.py`` and return the archive's path.

    Args:
        folder: Where to work and to put the archive.
        service: Name of the service file without its ending.
        signature_document: signature.json; one JSON input called ``data`` by default.
        name: Name of the model; the service's by default.
        files: Further files by name.
    """
    name = name or service
    source = folder / f"{name}-source"
    source.mkdir(parents=True)
    shutil.copy(SERVICES / f"{service}.py", source / "service.py")
    (source / "signature.json").write_text(json.dumps(signature_document or signature()))
    for file, content in (files or {}).items():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_bytes(content)
    return export_model(name, source, Path("service.py"), folder).path


def make_folder(
    folder: Path,
    source: str,
    signature_document: dict[str, Any] | None = None,
    parameters: str = "",
    sample: bytes | None = None,
) -> Path:
    """Write an unpacked archive with a service that the exporter may well refuse.

    Args:
        folder: Where to; made if missing.
        source: Text of the service file, indented or not, or the name of a file of
            ``tests/kit/services``.
        signature_document: signature.json; one JSON input called ``data`` by default.
        parameters: Name of the parameter file, which is the caller's to write.
        sample: Body of the sample request, if it is to have one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "service.py").write_text(source_of(source))
    (folder / "signature.json").write_text(json.dumps(signature_document or signature()))
    if sample is not None:
        (folder / "sample.json").write_bytes(sample)
    manifest = Manifest(
        model_name=folder.name,
        model_format=ModelFormat.GLUON,
        service="service.py",
        signature="signature.json",
        parameters=parameters,
        serving=ServingDefaults(
            sample=Sample("sample.json", "application/json") if sample is not None else None
        ),
    )
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest.to_document()))
    return folder


#: y = x W' + b on (N, 3) -> (N, 2): the first entry, and ten plus the rest.
_LINEAR = """
import sys
from mms.engines.imports import import_mxnet
mx = import_mxnet()
mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=2, name="fc").save("net-symbol.json")
weight, bias = mx.nd.array([[1, 0, 0], [0, 1, 1]]), mx.nd.array([0, 10])
mx.nd.save("net-0000.params", {"arg:fc_weight": weight, "arg:fc_bias": bias})
"""


def write_linear(folder: Path) -> Path:
    """Write a real symbolic model, ready to export; MXNet stays out of this process."""
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", _LINEAR], cwd=folder, check=True)
    (folder / "signature.json").write_text(json.dumps(signature([0, 3])))
    return folder


def make_mar(
    folder: Path,
    source: str,
    handler: str = "service:handle",
    name: str = "handled",
    files: Mapping[str, bytes] | None = None,
    **manifest: Any,
) -> Path:
    """Write a 1.x archive as its archiver did, and return its path.

    Args:
        folder: Where to.
        source: Text of ``service.py``, or the name of a file of ``tests/kit/handlers``.
        handler: As the manifest names it.
        name: Of the model.
        files: Further files by name.
        manifest: Further keys of the manifest's ``model``.
    """
    text = source_of(source, HANDLERS)
    document = {
        "specificationVersion": "1.0",
        "implementationVersion": "1.0",
        "modelServerVersion": "1.0",
        "license": "Apache 2.0",
        "runtime": "python",
        "model": {"modelName": name, "handler": handler, **manifest},
        "engine": {"engineName": "MXNet", "engineVersion": "1.2"},
    }
    target = folder / f"{name}.mar"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(document))
        archive.writestr("service.py", text)
        for file, content in (files or {}).items():
            archive.writestr(file, content)
    return target


def source_of(service: str, folder: Path = SERVICES) -> str:
    """Return the text of a service, which is given as such or as the name of a file."""
    if service.isidentifier():
        return (folder / f"{service}.py").read_text()
    return textwrap.dedent(service)

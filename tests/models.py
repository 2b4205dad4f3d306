"""Build small real archives for the tests, through the exporter itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mms.archive.export import export_model

SERVICES = Path(__file__).parent / "services"


def signature(
    shape: list[int] | None = None,
    input_type: str = "application/json",
    output_type: str = "application/json",
    names: tuple[str, ...] = ("data",),
) -> dict[str, Any]:
    """Give a signature.json document."""
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
    """Pack ``tests/services/<service>.py`` and give the archive's path.

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

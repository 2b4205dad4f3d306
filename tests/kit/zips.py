"""Documents, zip files and listings for the tests of archives."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kit.archives import signature

SIGNATURE = signature([0, 3])
MANIFEST: dict[str, Any] = {
    "Model-Archive-Version": 0.2,
    "Model-Server": "0.4",
    "Model": {
        "Symbol": "",
        "Parameters": "",
        "Signature": "signature.json",
        "Service": "service.py",
        "Description": "a test",
        "Model-Name": "test",
        "Model-Format": "Gluon-Imperative",
    },
    "Engine": {"MXNet": "1.1.0"},
}
GLUON_SERVICE = (
    "from mms.model_service.mxnet_model_service import GluonImperativeBaseService\n\n\n"
    "class Service(GluonImperativeBaseService):\n    pass\n"
)
SYMBOL_SERVICE = GLUON_SERVICE.replace("GluonImperativeBaseService", "MXNetBaseService")


def members(**others: bytes) -> dict[str, bytes]:
    """Return the files of a sound archive, and others; ``service.py`` is written ``service_py``."""
    return {
        "MANIFEST.json": json.dumps(MANIFEST).encode(),
        "signature.json": json.dumps(SIGNATURE).encode(),
        "service.py": GLUON_SERVICE.encode(),
        **others,
    }


def write_zip(
    path: Path,
    *entries: tuple[str | zipfile.ZipInfo, bytes],
    base: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """Write a zip file of a sound archive's files and further entries, in that order."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # duplicate names are what some tests are about
        for name, content in (members() if base is None else base).items():
            archive.writestr(name, content)
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    """Return a zip entry whose name is written as it is, with a Unix mode."""
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    info.external_attr = mode << 16
    return info


def write_folder(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files into a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def listing(folder: Path) -> dict[str, str]:
    """Return every path below a folder with its sha256, its link's target, or ""."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[key] = ""
    return found

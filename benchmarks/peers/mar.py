"""Archives of multi-model-server 1.x and TorchServe: a zip with ``MAR-INF/MANIFEST.json``."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from benchmarks.peers.peer import SERVICES


def write_mar(path: Path, handler: str, files: tuple[str, ...]) -> Path:
    """Pack service files; `handler` is ``module:function`` or ``file.py:function``."""
    manifest = {
        "runtime": "python",
        "model": {"modelName": path.stem, "handler": handler, "modelVersion": "1.0"},
        "specificationVersion": "1.0",
        "implementationVersion": "1.0",
        "modelServerVersion": "1.0",
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        for name in files:
            archive.write(SERVICES / name, name)
    return path

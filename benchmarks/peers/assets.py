"""Take the network out of the example's archive, in forms that peers read.

`python -m benchmarks.peers.assets ARCHIVE FOLDER` writes ``crepe-symbol.json`` and
``crepe-0000.params`` (MXNet), ``crepe.npz`` (weights and biases in the order of the layers) and
``synset.txt``.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from mms.archive.reader import open_archive
from mms.engines.imports import import_mxnet

INPUT_SHAPE = (1, 69, 1014)


def write_assets(archive: Path, folder: Path) -> None:
    """Write the network into the folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unpacked = open_archive(archive, Path(scratch)).folder
        made = Path(scratch) / "assets"
        made.mkdir()
        _write_network(unpacked, made)
        shutil.copy(unpacked / "synset.txt", made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _write_network(unpacked: Path, folder: Path) -> None:
    mx = import_mxnet()
    from mms.model_service.model_service import load_service
    from mms.worker.loader import find_service_class

    manifest = json.loads((unpacked / "MANIFEST.json").read_text())
    path = str(unpacked / manifest["Model"]["Service"])
    service_class = find_service_class(load_service(path), path)
    service = service_class(manifest["Model"]["Model-Name"], str(unpacked), manifest, None)
    service.net.hybridize()
    service.net(mx.nd.zeros(INPUT_SHAPE)).wait_to_read()
    service.net.export(str(folder / "crepe"))
    values = [parameter.data().asnumpy() for parameter in service.net.collect_params().values()]
    np.savez(folder / "crepe.npz", *values)


if __name__ == "__main__":
    write_assets(Path(sys.argv[1]), Path(sys.argv[2]))

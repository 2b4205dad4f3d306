"""This project's server, started and asked as a peer is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.peers.peer import BATCH_SIZE, Launch, Peer, Site, Workload, free_port
from benchmarks.peers.requests import NOOP, REVIEW, json_call
from benchmarks.processes import ROOT
from mms.export.package import export_model
from mms.version import __version__

_NOOP_SERVICE = """
from mms.model_service.model_service import SingleNodeService


class Noop(SingleNodeService):
    def _postprocess(self, data):
        return {"ok": True}
"""
_NOOP_SIGNATURE = {
    "inputs": [{"data_name": "data", "data_shape": [0]}],
    "input_type": "application/json",
    "outputs": [{"data_name": "ok", "data_shape": [0]}],
    "output_type": "application/json",
}


def make_ours(archive: Path) -> Peer:
    """Return our server as a peer; `archive` is the example's."""

    def launch(site: Site, workload: Workload) -> Launch:
        port = free_port()
        batch_size = 1 if workload.is_noop else BATCH_SIZE
        path = _noop_archive(site.folder) if workload.is_noop else archive.resolve()
        options = f"--workers {site.workers} --threads 1 --batch-size {batch_size}"
        return Launch(
            command=(
                *(sys.executable, "-m", "mms.cli.serve", "--models", f"{workload.model}={path}"),
                *("--port", str(port), "--management-port", "-1", *options.split()),
            ),
            call=json_call(
                f"http://127.0.0.1:{port}/predictions/{workload.model}",
                workload,
                NOOP if workload.is_noop else [REVIEW],
            ),
            settings=f"{options}; requests on /predictions",
            environment={"PYTHONPATH": str(ROOT)},
        )

    return Peer("mxnet-model-server", f"mxnet-model-server {__version__}", (), launch)


def _noop_archive(folder: Path) -> Path:
    source = folder / "noop"
    source.mkdir()
    (source / "service.py").write_text(_NOOP_SERVICE)
    (source / "signature.json").write_text(json.dumps(_NOOP_SIGNATURE))
    return export_model("noop", source, None, folder).path

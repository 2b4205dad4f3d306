"""MLServer, the Python server behind KServe's V2 protocol."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.peers.peer import MXNET, SERVICES, Launch, Peer, Site, Workload, free_port
from benchmarks.peers.requests import v2_call

_BATCH_DELAY_S = 0.001
_NO_LOGS = {
    "version": 1,
    "disable_existing_loggers": True,
    "root": {"level": "ERROR"},
    "loggers": {"uvicorn": {"level": "ERROR"}, "mlserver": {"level": "ERROR"}},
}


def _launch(site: Site, workload: Workload) -> Launch:
    port = free_port()
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_endpoint": None,
        "gzip_enabled": False,
        "logging_settings": _NO_LOGS,
        "parallel_workers": site.workers,
    }
    model: dict[str, Any] = {
        "name": workload.model,
        "implementation": f"mlserver_models.{workload.model.capitalize()}",
        "max_batch_size": 0 if workload.batch_size == 1 else workload.batch_size,
        "max_batch_time": 0 if workload.batch_size == 1 else _BATCH_DELAY_S,
    }
    site.write("settings.json", json.dumps(settings))
    site.write("model-settings.json", json.dumps(model))
    return Launch(
        command=(str(site.bin / "mlserver"), "start", str(site.folder)),
        call=v2_call(f"http://127.0.0.1:{port}", workload),
        settings=f"parallel_workers={site.workers}, max_batch_size={model['max_batch_size']}, "
        f"max_batch_time={model['max_batch_time']}, V2 protocol, uvloop, no metrics, no gzip, "
        "logs off",
        environment={"PYTHONPATH": str(SERVICES), "CREPE_ASSETS": str(site.assets)},
    )


PEER = Peer(
    "mlserver",
    "MLServer 1.7.1",
    # With uvloop 0.23 its workers die at the start.
    ("mlserver==1.7.1", "uvloop==0.21.0", *MXNET),
    _launch,
)

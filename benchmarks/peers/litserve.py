"""LitServe, Lightning's server on FastAPI."""

from __future__ import annotations

from benchmarks.peers.peer import MXNET, SERVICES, Launch, Peer, Site, Workload, free_port
from benchmarks.peers.requests import plain_call

_BATCH_DELAY_S = 0.005


def _launch(site: Site, workload: Workload) -> Launch:
    port = free_port()
    # Batching makes a service that does nothing slower here.
    batch_size = 1 if workload.is_noop else workload.batch_size
    delay_s = 0.0 if batch_size == 1 else _BATCH_DELAY_S
    options = (str(port), str(site.workers), str(batch_size), str(delay_s))
    return Launch(
        command=(
            *(str(site.bin / "python"), str(SERVICES / "litserve_server.py")),
            *(workload.model, *options),
        ),
        call=plain_call(f"http://127.0.0.1:{port}/predict", workload),
        settings=f"workers_per_device={site.workers}, num_api_servers=1, fast_queue=True, "
        f"max_batch_size={batch_size}, batch_timeout={delay_s}, uvloop, logs off",
        environment={"CREPE_ASSETS": str(site.assets)},
    )


PEER = Peer(
    "litserve",
    "LitServe 0.2.19",
    ("litserve==0.2.19", "uvloop==0.22.1", *MXNET),
    _launch,
)

"""Triton, as NVIDIA's pytriton packs it with its Python backend."""

from __future__ import annotations

import sysconfig

from benchmarks.peers.peer import MXNET, SERVICES, Launch, Peer, Site, Workload, free_port
from benchmarks.peers.requests import v2_call

_BATCH_DELAY_US = 1000


def _launch(site: Site, workload: Workload) -> Launch:
    port, grpc_port = free_port(), free_port()
    options = (str(site.workers), str(workload.batch_size), str(_BATCH_DELAY_US))
    batching = f"max_batch_size={workload.batch_size}, max_queue_delay={_BATCH_DELAY_US} µs"
    return Launch(
        command=(
            *(str(site.bin / "python"), str(SERVICES / "triton_server.py")),
            *(workload.model, str(port), str(grpc_port), *options),
        ),
        call=v2_call(f"http://127.0.0.1:{port}", workload),
        settings=f"{site.workers} instances (threads of one Python process), "
        f"{batching if workload.batch_size > 1 else 'batching off'}, V2 protocol, "
        "MXNET_ENGINE_TYPE=NaiveEngine (the faster one in threads), no metrics, logs off",
        environment={
            "CREPE_ASSETS": str(site.assets),
            "MXNET_ENGINE_TYPE": "NaiveEngine",
            # Its Python backend links libpython, which stands where the interpreter was built.
            "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or "",
        },
    )


PEER = Peer(
    "triton",
    "Triton 2.51 (nvidia-pytriton 0.7.0)",
    ("nvidia-pytriton==0.7.0", *MXNET),
    _launch,
)

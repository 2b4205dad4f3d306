"""Ray Serve, behind the HAProxy that it brings."""

from __future__ import annotations

from benchmarks.peers.peer import MXNET, SERVICES, Launch, Peer, Site, Workload, free_port
from benchmarks.peers.requests import plain_call

_BATCH_DELAY_S = 0.005


def _launch(site: Site, workload: Workload) -> Launch:
    port = free_port()
    # Its replicas take HTTP themselves, so batching could not spare a service that does nothing.
    batch_size = 1 if workload.is_noop else workload.batch_size
    delay_s = 0.0 if batch_size == 1 else _BATCH_DELAY_S
    options = (str(port), str(site.workers), str(batch_size), str(delay_s))
    # Short, since Ray adds 60 characters, and paths of sockets end at 107.
    sockets = site.folder / "h"
    sockets.mkdir()
    return Launch(
        command=(
            *(str(site.bin / "python"), str(SERVICES / "ray_serve_server.py")),
            *(workload.model, *options),
        ),
        call=plain_call(f"http://127.0.0.1:{port}/", workload),
        settings=f"num_replicas={site.workers}, max_batch_size={batch_size}, "
        f"batch_wait_timeout_s={delay_s}, RAY_SERVE_THROUGHPUT_OPTIMIZED=1, "
        "RAY_SERVE_ENABLE_HA_PROXY=1, uvloop, no dashboard, logs off",
        environment={
            "PYTHONPATH": str(SERVICES),
            "CREPE_ASSETS": str(site.assets),
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": str(site.workers),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(sockets / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(sockets / "a"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(sockets),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(sockets / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(sockets / "m"),
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        },
    )


PEER = Peer(
    "ray-serve",
    "Ray Serve 2.60.0",
    ("ray[serve]==2.60.0", *MXNET),
    _launch,
    is_loopback_only=False,
)

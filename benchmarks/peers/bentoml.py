"""BentoML, whose workers take the HTTP requests themselves."""

from __future__ import annotations

from benchmarks.peers.peer import MXNET, SERVICES, Launch, Peer, Site, Workload, free_port
from benchmarks.peers.requests import NOOP, REVIEW, json_call


def _launch(site: Site, workload: Workload) -> Launch:
    port = free_port()
    service = f"bentoml_{workload.model}:{workload.model.capitalize()}"
    # Its workers take HTTP themselves, so batching could not spare a service that does nothing.
    batch_size = 1 if workload.is_noop else workload.batch_size
    batching = f"max_batch_size={batch_size}, max_latency_ms=10000"
    return Launch(
        command=(
            *(str(site.bin / "bentoml"), "serve", "--quiet", "--working-dir", str(SERVICES)),
            *("--host", "127.0.0.1", "--port", str(port), service),
        ),
        call=json_call(
            f"http://127.0.0.1:{port}/predict",
            workload,
            NOOP if workload.is_noop else {"reviews": [REVIEW]},
        ),
        settings=f"workers={site.workers}, threads=1, traffic.timeout=10, "
        f"{batching if batch_size > 1 else 'batching off'}, uvloop, no metrics, no "
        "tracing, logs off",
        environment={
            "CREPE_ASSETS": str(site.assets),
            "PEER_WORKERS": str(site.workers),
            "PEER_BATCH_SIZE": str(batch_size),
            "BENTOML_HOME": str(site.folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            # Otherwise memory grows with the number of requests.
            "OTEL_SDK_DISABLED": "true",
        },
    )


PEER = Peer(
    "bentoml",
    "BentoML 1.4.39",
    ("bentoml==1.4.39", "uvloop==0.22.1", *MXNET),
    _launch,
)

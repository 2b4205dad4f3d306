"""TorchServe, which continued multi-model-server for PyTorch (Java)."""

from __future__ import annotations

import json

from benchmarks.peers.log4j import QUIET
from benchmarks.peers.mar import write_mar
from benchmarks.peers.peer import Launch, Peer, Site, Workload, free_port
from benchmarks.peers.requests import plain_call

_BATCH_DELAY_MS = 1
_CONFIG = """\
inference_address=http://127.0.0.1:{ports[0]}
management_address=http://127.0.0.1:{ports[1]}
metrics_address=http://127.0.0.1:{ports[2]}
grpc_inference_port={ports[3]}
grpc_management_port={ports[4]}
model_store={folder}
load_models={model}.mar
models={models}
job_queue_size=1000
async_logging=true
disable_system_metrics=true
vmargs=-Djava.util.concurrent.ForkJoinPool.common.parallelism={workers}
"""


def _launch(site: Site, workload: Workload) -> Launch:
    archive = site.folder / f"{workload.model}.mar"
    if workload.is_noop:
        write_mar(archive, "mar_noop.py:handle", ("mar_noop.py",))
    else:
        files = ("mar_crepe_torch.py", "crepe_torch.py", "crepe_text.py")
        write_mar(archive, "mar_crepe_torch.py:handle", files)
    options = {
        "minWorkers": site.workers,
        "maxWorkers": site.workers,
        "batchSize": workload.batch_size,
        "maxBatchDelay": _BATCH_DELAY_MS,
    }
    model = {"defaultVersion": True, "marName": archive.name, **options}
    ports = [free_port() for _ in range(5)]
    config = _CONFIG.format(
        ports=ports,
        folder=site.folder,
        model=workload.model,
        models=json.dumps({workload.model: {"1.0": model}}),
        workers=site.workers,
    )
    site.write("config.properties", config)
    site.write("quiet.xml", QUIET)
    shown = ", ".join(f"{name}={value}" for name, value in options.items())
    engine = "" if workload.is_noop else "; the network on PyTorch 2.13, traced and frozen"
    return Launch(
        command=(
            *(str(site.bin / "torchserve"), "--start", "--foreground", "--no-config-snapshots"),
            *("--disable-token-auth", "--enable-model-api"),
            *("--ts-config", "config.properties", "--log-config", "quiet.xml"),
        ),
        call=plain_call(f"http://127.0.0.1:{ports[0]}/predictions/{workload.model}", workload),
        settings=f"{shown}, job_queue_size=1000, async_logging=true, "
        f"ForkJoinPool.common.parallelism={site.workers} (else a thread per batch), no system "
        f"metrics, logs off{engine}",
        environment={"CREPE_ASSETS": str(site.assets)},
    )


PEER = Peer(
    "torchserve",
    "TorchServe 0.12.0 (Java)",
    # Its workers import yaml, which it does not ask pip for.
    ("torchserve==0.12.0", "torch==2.13.0", "numpy==1.26.4", "pyyaml==6.0.3"),
    _launch,
    needs={"java": "Java 11 or newer, on Debian: apt-get install -y openjdk-17-jre-headless"},
)

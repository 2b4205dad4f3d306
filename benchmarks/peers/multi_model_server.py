"""multi-model-server 1.1, the last of the line that began as MXNet's model server (Java)."""

from __future__ import annotations

import urllib.request

from benchmarks.peers.log4j import QUIET
from benchmarks.peers.mar import write_mar
from benchmarks.peers.peer import MXNET, Launch, Peer, Site, Workload, free_port
from benchmarks.peers.requests import plain_call

_BATCH_DELAY_MS = 1
_CONFIG = """\
inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{management_port}
model_store={folder}
async_logging=true
job_queue_size=1000
"""


def _launch(site: Site, workload: Workload) -> Launch:
    port, management_port = free_port(), free_port()
    archive = site.folder / f"{workload.model}.mar"
    if workload.is_noop:
        write_mar(archive, "mar_noop:handle", ("mar_noop.py",))
    else:
        files = ("mar_crepe_mxnet.py", "crepe_mxnet.py", "crepe_text.py")
        write_mar(archive, "mar_crepe_mxnet:handle", files)
    config = _CONFIG.format(port=port, management_port=management_port, folder=site.folder)
    site.write("config.properties", config)
    site.write("quiet.xml", QUIET)
    options = f"initial_workers={site.workers}&batch_size={workload.batch_size}"
    if workload.batch_size > 1:
        options += f"&max_batch_delay={_BATCH_DELAY_MS}"

    def register() -> None:
        url = f"http://127.0.0.1:{management_port}/models?url={archive.name}"
        command = urllib.request.Request(f"{url}&synchronous=true&{options}", method="POST")
        urllib.request.urlopen(command, timeout=60).close()

    return Launch(
        command=(
            *(str(site.bin / "multi-model-server"), "--start", "--foreground"),
            *("--mms-config", "config.properties", "--log-config", "quiet.xml"),
        ),
        call=plain_call(f"http://127.0.0.1:{port}/predictions/{workload.model}", workload),
        settings=f"{options.replace('&', ' ')}, job_queue_size=1000, async_logging=true, logs off",
        environment={"CREPE_ASSETS": str(site.assets)},
        configure=register,
    )


PEER = Peer(
    "multi-model-server",
    "multi-model-server 1.1.11 (Java)",
    ("multi-model-server==1.1.11", *MXNET),
    _launch,
    needs={"java": "Java 8 to 17, on Debian: apt-get install -y openjdk-17-jre-headless"},
)

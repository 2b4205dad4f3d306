"""Typed settings of each model.

Every setting is declared once, as a field below; its flag, environment variable and YAML key are
derived from its name.
"""

from __future__ import annotations

from dataclasses import dataclass

from mms.archive.candidates import ENGINES, PRECISIONS
from mms.config.bounds import (
    MAX_BYTES,
    MAX_DELAY_MS,
    MAX_QUEUE,
    MAX_REQUESTS,
    MAX_SECONDS,
    MAX_THREADS,
    MAX_WORKERS,
)
from mms.config.declaration import Unit, setting
from mms.wire.frames import MAX_COUNT


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Settings of one model."""

    workers: int = setting(
        0, "Worker processes per model; 0 means one per CPU core.", minimum=0, maximum=MAX_WORKERS
    )
    batch_size: int = setting(
        1,
        "Maximum number of requests per forward pass; 1 disables batching.",
        minimum=1,
        maximum=MAX_COUNT,
    )
    max_batch_delay: float = setting(
        0.0,
        "Maximum milliseconds the oldest request waits for a batch to fill. A delay only helps "
        "clients that send in lockstep; 0 sends whatever is queued.",
        minimum=0,
        maximum=MAX_DELAY_MS,
        unit=Unit.MILLISECONDS,
    )
    linger: float = setting(
        0.0,
        "Milliseconds an idle worker waits for the clients it has just answered to send again. For "
        "models whose forward pass takes about as long for many requests as for one; needs "
        "batch_size.",
        minimum=0,
        maximum=MAX_DELAY_MS,
        unit=Unit.MILLISECONDS,
    )
    queue_size: int = setting(
        0,
        "Maximum number of queued requests; 0 means 100 per worker.",
        minimum=0,
        maximum=MAX_QUEUE,
    )
    response_timeout: float = setting(
        120.0,
        "Seconds after which a request fails with 504 and its worker counts as hung.",
        minimum=0.001,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    load_timeout: float = setting(
        600.0,
        "Seconds a worker may take to load the model.",
        minimum=0.001,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    retry_on_crash: bool = setting(True, "Retry the requests of a dead worker once, one at a time.")
    preload: bool = setting(
        True, "Load the model once and fork workers from it (CPU only); saves memory and time."
    )
    threads: int = setting(
        0,
        "Compute threads per worker; 0 means CPU cores divided by workers.",
        minimum=0,
        maximum=MAX_THREADS,
    )
    gpu: tuple[int, ...] = setting(
        (),
        "Number of the GPU to run on, or several: 0,1. Empty means CPU. Files and API calls may "
        "also use a list, and the name devices: [0, 1].",
    )
    gpu_memory: int = setting(
        0,
        "GPU memory in bytes that each worker needs: it is placed by best fit, and refused if it "
        "fits nowhere. 0 spreads workers evenly.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    engine: str = setting(
        "auto",
        "Engine that runs the network: auto takes the fastest of the archive's measured candidates "
        "that this machine runs well, and MXNet if there is none. A named one converts an archive "
        "without candidates when the model is loaded, and compares it with MXNet first.",
        choices=("auto", *ENGINES),
    )
    precision: str = setting(
        "auto",
        "Precision that the network is computed in: auto takes the fastest that agrees.",
        choices=("auto", *PRECISIONS),
    )
    min_agreement: float = setting(
        0.98,
        "Fraction of rows in which a candidate must agree with MXNet to be run.",
        minimum=0,
        maximum=1,
    )
    service: str = setting("", "Service file to use instead of the archive's.")
    handler: str = setting(
        "",
        "Handler (module:function) to use instead of a 1.x archive's; a folder served with a "
        "handler needs no manifest.",
    )
    decode_input_request: bool = setting(
        True,
        "Pass JSON and text bodies to 1.x handlers decoded; otherwise as the bytes received.",
    )
    max_workers: int = setting(
        0,
        "Maximum number of workers to scale up to while requests wait; 0 disables autoscaling.",
        minimum=0,
        maximum=MAX_WORKERS,
    )
    scale_up_wait: float = setting(
        100.0,
        "Milliseconds a request waits before another worker is started.",
        minimum=1,
        maximum=MAX_DELAY_MS,
        unit=Unit.MILLISECONDS,
    )
    scale_down_after: float = setting(
        60.0,
        "Seconds with idle workers before one of the additional workers is stopped.",
        minimum=1,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    max_requests: int = setting(
        0,
        "Requests (plus up to a tenth) after which a worker is replaced; 0 means never.",
        minimum=0,
        maximum=MAX_REQUESTS,
    )
    max_worker_age: float = setting(
        0.0,
        "Seconds after which a worker is replaced; 0 means never.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    max_worker_memory: int = setting(
        0,
        "Resident bytes above which a worker is replaced; 0 means never.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    worker_memory_limit: int = setting(
        0,
        "Bytes of private memory that a worker may use, including the model; a request that needs "
        "more fails with 507, and a worker that has grown beyond it is replaced. Memory that "
        "libraries reserve but never touch does not count. 0 means no limit.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    cancel_running: str = setting(
        "never",
        "Action on a running batch whose clients have all disconnected: never lets it finish, "
        "kill kills and replaces its worker.",
        choices=("never", "kill"),
    )
    load: str = setting(
        "eager",
        "When to load the model: eager means at start-up, lazy means on its first request.",
        choices=("eager", "lazy"),
    )
    idle_timeout: float = setting(
        0.0,
        "Seconds without a request after which the model is unloaded until the next one; 0 means "
        "never.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    pinned: bool = setting(False, "Never unload the model to stay within memory_budget.")

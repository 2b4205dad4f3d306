"""Typed settings of the server and of each model.

Every setting is declared once, as a field below; flag, environment variable and YAML key follow
from its name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mms.config.declaration import COMMA_BEFORE_SCHEME, Unit, setting
from mms.wire.frames import MAX_COUNT, MAX_PAYLOAD_BYTES
from mms.wire.messages import RequestLimits

ENV_PREFIX = "MMS_"
#: Upper bounds. They are far above any use, and below what would harm: a number of workers that
#: exhausts the machine's processes, a time that timers cannot count.
MAX_WORKERS = 1024
MAX_THREADS = 1024
MAX_QUEUE = 1_000_000
MAX_REQUESTS = 10**12
MAX_BYTES = 1 << 50
MAX_ELEMENTS = 10**10
MAX_RATIO = 100_000
MAX_CONNECTIONS = 1_000_000
MAX_SECONDS = 365 * 24 * 3600.0
#: Of what is given in milliseconds: a quarter of an hour of waiting for a batch or a worker.
MAX_DELAY_MS = 900_000.0
#: Half of what a frame between our processes holds.
MAX_BODY_BYTES = MAX_PAYLOAD_BYTES // 2
TOKEN_VARIABLE = "MMS_MANAGEMENT_TOKEN"
#: Second names of settings, in files and calls.
ALIASES = {"gpu": "devices"}
#: Where SageMaker unpacks the models of a multi-model container.
SAGEMAKER_MODELS = "/opt/ml/models"

#: TOKEN, SECRET and so on as a word of the name, but not where the value is a path or an address
#: (AWS_WEB_IDENTITY_TOKEN_FILE), nor as a part of a word (TOKENIZERS_PARALLELISM).
SECRET_VARIABLES = (
    "(?i).*(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|_KEY)S?"
    "(_(?!.*(FILE|PATH|URI)$).*)?"
)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How one model is served."""

    workers: int = setting(
        0, "Worker processes of the model; 0 is one per CPU core.", minimum=0, maximum=MAX_WORKERS
    )
    batch_size: int = setting(
        1,
        "Most requests joined in one forward pass; 1 turns batching off.",
        minimum=1,
        maximum=MAX_COUNT,
    )
    max_batch_delay: float = setting(
        0.0,
        "Milliseconds the oldest request waits for a batch to fill. A delay only helps clients "
        "that come in step; 0 takes what waits.",
        minimum=0,
        maximum=MAX_DELAY_MS,
        unit=Unit.MILLISECONDS,
    )
    linger: float = setting(
        0.0,
        "Milliseconds an idle worker waits for the clients it has just answered to ask again. For "
        "models whose forward takes about as long for many as for one; needs batch_size.",
        minimum=0,
        maximum=MAX_DELAY_MS,
        unit=Unit.MILLISECONDS,
    )
    queue_size: int = setting(
        0,
        "Most requests that wait for the model; 0 is 100 per worker.",
        minimum=0,
        maximum=MAX_QUEUE,
    )
    response_timeout: float = setting(
        120.0,
        "Seconds until a request is answered 504 and a worker counts as hung.",
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
    retry_on_crash: bool = setting(
        True, "Run the requests of a worker that died again, one by one, once."
    )
    preload: bool = setting(
        True, "Load the model once and fork the workers from it (CPU only); saves memory and time."
    )
    threads: int = setting(
        0,
        "Compute threads per worker; 0 is CPU cores divided by workers.",
        minimum=0,
        maximum=MAX_THREADS,
    )
    gpu: tuple[int, ...] = setting(
        (),
        "Number of the GPU to run on, or several: 0,1. Empty is the CPU. In files and calls also "
        "a list, and also as devices: [0, 1].",
    )
    gpu_memory: int = setting(
        0,
        "Bytes of a GPU that each worker needs: it goes where it fits best, or nowhere. 0 spreads "
        "workers evenly.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    service: str = setting("", "Service file to use instead of the archive's.")
    handler: str = setting(
        "",
        "Handler (module:function) to use instead of a 1.x archive's; a folder with one needs no "
        "manifest.",
    )
    decode_input_request: bool = setting(
        True,
        "Give 1.x handlers JSON and text bodies decoded; otherwise as the bytes that were sent.",
    )
    max_workers: int = setting(
        0,
        "Workers to grow to while requests wait; 0 keeps their number as it is.",
        minimum=0,
        maximum=MAX_WORKERS,
    )
    scale_up_wait: float = setting(
        100.0,
        "Milliseconds a request waits until another worker is started.",
        minimum=1,
        maximum=MAX_DELAY_MS,
        unit=Unit.MILLISECONDS,
    )
    scale_down_after: float = setting(
        60.0,
        "Seconds with idle workers until one of the additional ones is stopped.",
        minimum=1,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    max_requests: int = setting(
        0,
        "Requests (plus up to a tenth) after which a worker is replaced; 0 is never.",
        minimum=0,
        maximum=MAX_REQUESTS,
    )
    max_worker_age: float = setting(
        0.0,
        "Seconds after which a worker is replaced; 0 is never.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    max_worker_memory: int = setting(
        0,
        "Resident bytes above which a worker is replaced; 0 is never.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    worker_memory_limit: int = setting(
        0,
        "Bytes of private memory that a worker may use, the model's own included; a request that "
        "needs more fails with 507, and a worker that has grown beyond it is replaced. Memory that "
        "libraries reserve and never touch does not count. 0 is no limit.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    cancel_running: str = setting(
        "never",
        "What happens to a running batch whose clients have all left: never finishes it, kill "
        "kills its worker, which is replaced.",
        choices=("never", "kill"),
    )
    load: str = setting(
        "eager",
        "When the model is loaded: eager is at start, lazy with its first request.",
        choices=("eager", "lazy"),
    )
    idle_timeout: float = setting(
        0.0,
        "Seconds without a request until the model's workers are stopped; 0 is never.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    pinned: bool = setting(
        False, "Never stop the model's workers to keep within the memory budget."
    )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The server process itself."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(
        8080, "Port of the inference API; 0 takes a free one.", minimum=0, maximum=65535
    )
    management_host: str = setting("127.0.0.1", "Address of the management API.")
    management_port: int = setting(
        8081,
        "Port of the management API; 0 takes a free one, -1 turns it off.",
        minimum=-1,
        maximum=65535,
    )
    grpc_port: int = setting(
        -1,
        "Port of the inference API over gRPC; 0 takes a free one, -1 turns it off. Needs grpcio: "
        "pip install 'mxnet-model-server[grpc]'.",
        minimum=-1,
        maximum=65535,
    )
    model_store: str = setting(
        "", "Folder of the archives that the management API may register; none if empty."
    )
    multi_model: bool = setting(
        False,
        "Offer SageMaker's routes that load and unload models on the inference port, for archives "
        "below model_store (/opt/ml/models if that is empty).",
    )
    allowed_urls: tuple[str, ...] = setting(
        (),
        "Regular expressions, separated by commas or as a list, of URLs (http, https, s3, file) "
        "from which the management API may register models, too. Each must match a whole URL, and "
        "every redirect must match one. None if empty.",
        is_pattern=True,
        separator=COMMA_BEFORE_SCHEME,
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Further names, separated by commas or as a list, by which requests may address this "
        "server; * is any. On the management port, and on an inference port that listens on "
        "loopback, a Host header with any other name is refused, since a web page may have rebound "
        "it.",
    )
    allow_private_urls: bool = setting(
        False,
        "Let allowed_urls lead to private addresses and to this machine, and use a proxy for them.",
    )
    state_file: str = setting(
        "", "File that keeps what was registered over a restart; nothing is kept if empty."
    )
    watch: bool = setting(
        False, "Reload a model when its archive, or a file of its folder, changes."
    )
    watch_interval: float = setting(
        1.0,
        "Seconds between looks at watched files.",
        minimum=0.05,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    memory_budget: int = setting(
        0,
        "Bytes that the workers of all models may use; above it, the model least recently used "
        "is put to sleep. 0 is no limit.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    max_request_bytes: int = setting(
        64 << 20, "Longest request body.", minimum=1, maximum=MAX_BODY_BYTES, unit=Unit.BYTES
    )
    max_response_bytes: int = setting(
        256 << 20, "Longest answer of a model.", minimum=1, maximum=MAX_BODY_BYTES, unit=Unit.BYTES
    )
    max_decompressed_bytes: int = setting(
        64 << 20,
        "Longest request body after its Content-Encoding is undone.",
        minimum=1,
        maximum=MAX_BODY_BYTES,
        unit=Unit.BYTES,
    )
    max_decompression_ratio: int = setting(
        100,
        "Most bytes that one byte of a compressed request body may become, for bodies that unpack "
        "to more than 1 MiB.",
        minimum=1,
        maximum=MAX_RATIO,
    )
    max_form_bytes: int = setting(
        16 << 20,
        "Longest URL-encoded form; multipart forms are bounded by max_request_bytes.",
        minimum=1,
        maximum=MAX_BODY_BYTES,
        unit=Unit.BYTES,
    )
    max_form_fields: int = setting(256, "Most fields of a form.", minimum=1, maximum=100_000)
    max_json_elements: int = setting(
        5_000_000,
        "Most elements (values, lists and objects) of a JSON document or a Python literal.",
        minimum=1,
        maximum=MAX_ELEMENTS,
    )
    max_image_pixels: int = setting(
        50_000_000,
        "Most pixels (width times height) of a picture; asked of its header before it is decoded.",
        minimum=1,
        maximum=MAX_ELEMENTS,
    )
    max_buffered_bytes: int = setting(
        0,
        "Bytes of request bodies and answers that the server holds at once, over all models and "
        "clients; above it, requests are answered 503. 0 is a quarter of the memory that the "
        "server may use.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    max_connections: int = setting(
        0,
        "Most connections that are open at once; 0 is what the limit of open files allows.",
        minimum=0,
        maximum=MAX_CONNECTIONS,
    )
    header_timeout: float = setting(
        30.0,
        "Seconds a client may take to send a request's headers.",
        minimum=0.001,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    body_timeout: float = setting(
        60.0,
        "Seconds a client may take to send a request's body.",
        minimum=0.001,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    write_timeout: float = setting(
        60.0,
        "Seconds without progress after which a client that does not read its answer is cut off.",
        minimum=0.001,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    keepalive_timeout: float = setting(
        75.0,
        "Seconds an idle connection is kept open; 0 closes each one after its first answer.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    drain_delay: float = setting(
        0.0,
        "Seconds between turning not ready and closing the port on SIGTERM.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    shutdown_timeout: float = setting(
        30.0,
        "Seconds that accepted requests get to finish on SIGTERM.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    debug_errors: str = setting(
        "auto",
        "Answer errors of services with their type, stage and line: on, off, or auto "
        "(on when listening on loopback only).",
        choices=("auto", "on", "off"),
    )
    blacklist_env_vars: str = setting(
        SECRET_VARIABLES,
        "Regular expression; environment variables whose whole name matches are hidden from "
        "workers. The default hides what is named like a secret, AWS keys included; empty hides "
        "none.",
        is_pattern=True,
    )
    access_log: bool = setting(False, "Log one line per request.")
    log_level: str = setting(
        "INFO",
        "Least severe level to log.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    log_format: str = setting("text", "Log as text or as JSON.", choices=("text", "json"))
    log_file: str = setting("", "File to log to instead of standard error.")
    log_rotation_time: str = setting(
        "", "When to start a new log file: '1 H' (S, M, H, D, W) or 'midnight'."
    )
    work_dir: str = setting(
        "", "Folder to unpack archives in; the system's temporary one if empty."
    )
    metrics_write_to: str = setting(
        "",
        "Where to write metrics under their names of 0.4, besides /metrics: log, csv or "
        "cloudwatch; nowhere if empty.",
        choices=("", "log", "csv", "cloudwatch"),
    )
    metrics_interval: float = setting(
        60.0,
        "Seconds between writes of metrics_write_to.",
        minimum=0.01,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    metrics_dir: str = setting("metrics", "Folder for the files that metrics_write_to csv makes.")
    gen_api: str = setting(
        "",
        "Language of a client to generate once the models are loaded: python, or any that an "
        "installed OpenAPI generator knows.",
    )
    gen_api_dir: str = setting("build", "Folder for openapi.json and the generated client.")
    cache_dir: str = setting(
        "",
        "Folder that keeps downloaded archives; mxnet-model-server in $XDG_CACHE_HOME or in "
        "~/.cache if empty.",
    )
    max_archive_bytes: int = setting(
        64 << 30, "Longest archive to download.", minimum=1, maximum=MAX_BYTES, unit=Unit.BYTES
    )
    max_unpacked_bytes: int = setting(
        64 << 30,
        "Most bytes that an archive may unpack to.",
        minimum=1,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )


def request_limits(settings: ServerSettings) -> RequestLimits:
    """Return what the settings allow one request to cost in a worker."""
    names = (f.name for f in dataclasses.fields(RequestLimits))
    return RequestLimits(**{name: getattr(settings, name) for name in names})

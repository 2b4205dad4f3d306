"""Typed settings of the server; those of each model are in `model_settings`.

Every setting is declared once, as a field below; its flag, environment variable and YAML key are
derived from its name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mms.config.bounds import (
    MAX_BODY_BYTES,
    MAX_BYTES,
    MAX_CONNECTIONS,
    MAX_ELEMENTS,
    MAX_RATIO,
    MAX_SECONDS,
)
from mms.config.bounds import MAX_WORKERS as MAX_WORKERS
from mms.config.declaration import COMMA_BEFORE_SCHEME, Unit, setting
from mms.config.model_settings import ModelSettings as ModelSettings
from mms.wire.messages import RequestLimits

ENV_PREFIX = "MMS_"
TOKEN_VARIABLE = "MMS_MANAGEMENT_TOKEN"
#: Aliases of settings, in files and API calls.
ALIASES = {"gpu": "devices"}
#: Where SageMaker unpacks the models of a multi-model container.
SAGEMAKER_MODELS = "/opt/ml/models"

#: TOKEN, SECRET and so on as a whole word of the name, but not where the value is a path or URI
#: (AWS_WEB_IDENTITY_TOKEN_FILE), nor as part of a word (TOKENIZERS_PARALLELISM).
SECRET_VARIABLES = (
    "(?i).*(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|_KEY)S?"
    "(_(?!.*(FILE|PATH|URI)$).*)?"
)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of the server process."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(
        8080, "Port of the inference API; 0 picks a free one.", minimum=0, maximum=65535
    )
    management_host: str = setting("127.0.0.1", "Address of the management API.")
    management_port: int = setting(
        8081,
        "Port of the management API; 0 picks a free one, -1 disables it.",
        minimum=-1,
        maximum=65535,
    )
    grpc_port: int = setting(
        -1,
        "Port of the inference API over gRPC; 0 picks a free one, -1 disables it. Needs grpcio: "
        "pip install 'mxnet-model-server[grpc]'.",
        minimum=-1,
        maximum=65535,
    )
    model_store: str = setting(
        "", "Folder with the archives that the management API may register; none if empty."
    )
    multi_model: bool = setting(
        False,
        "Serve SageMaker's routes for loading and unloading models on the inference port, for "
        "archives below model_store (/opt/ml/models if that is empty).",
    )
    allowed_urls: tuple[str, ...] = setting(
        (),
        "Regular expressions, separated by commas or as a list, of URLs (http, https, s3, file) "
        "from which the management API may also register models. An expression must match the "
        "whole URL, and every redirect must match one of them. None if empty.",
        is_pattern=True,
        separator=COMMA_BEFORE_SCHEME,
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Additional host names, separated by commas or as a list, by which requests may address "
        "this server; * allows any. On the management port, and on an inference port that listens "
        "on loopback, any other Host header is refused, as a protection against DNS rebinding.",
    )
    cors_allowed_origin: tuple[str, ...] = setting(
        (),
        "Origins whose web pages may use this server: https://page.example, several, or * for any "
        "page (inference API only).",
    )
    cors_allowed_methods: tuple[str, ...] = setting((), "Methods such pages may use; empty: any.")
    cors_allowed_headers: tuple[str, ...] = setting((), "Headers they may send; empty: any.")
    allow_private_urls: bool = setting(
        False,
        "Allow allowed_urls to resolve to private addresses and to this machine, and use a proxy "
        "for them.",
    )
    keep_going: bool = setting(
        False, "Start without the models that do not load, with a warning for each."
    )
    state_file: str = setting(
        "", "File that keeps registrations across restarts; nothing is kept if empty."
    )
    watch: bool = setting(
        False, "Reload a model when its archive, or a file in its folder, changes."
    )
    watch_interval: float = setting(
        1.0,
        "Seconds between checks of watched files.",
        minimum=0.05,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    memory_budget: int = setting(
        0,
        "Bytes that the workers of all models may use together; above it, the least recently used "
        "model is unloaded until its next request. 0 means no limit.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    max_request_bytes: int = setting(
        64 << 20, "Largest request body.", minimum=1, maximum=MAX_BODY_BYTES, unit=Unit.BYTES
    )
    max_response_bytes: int = setting(
        256 << 20, "Largest response body.", minimum=1, maximum=MAX_BODY_BYTES, unit=Unit.BYTES
    )
    max_decompressed_bytes: int = setting(
        64 << 20,
        "Largest request body after decompression (Content-Encoding).",
        minimum=1,
        maximum=MAX_BODY_BYTES,
        unit=Unit.BYTES,
    )
    max_decompression_ratio: int = setting(
        100,
        "Maximum compression ratio of a request body, for bodies that decompress to more than "
        "1 MiB.",
        minimum=1,
        maximum=MAX_RATIO,
    )
    max_form_bytes: int = setting(
        16 << 20,
        "Largest URL-encoded form; multipart forms are limited by max_request_bytes.",
        minimum=1,
        maximum=MAX_BODY_BYTES,
        unit=Unit.BYTES,
    )
    max_form_fields: int = setting(
        256, "Maximum number of fields of a form.", minimum=1, maximum=100_000
    )
    max_json_elements: int = setting(
        5_000_000,
        "Maximum number of elements (values, lists and objects) in a JSON document or a Python "
        "literal.",
        minimum=1,
        maximum=MAX_ELEMENTS,
    )
    max_image_pixels: int = setting(
        50_000_000,
        "Maximum number of pixels (width times height) of an image; read from its header before "
        "it is decoded.",
        minimum=1,
        maximum=MAX_ELEMENTS,
    )
    max_buffered_bytes: int = setting(
        0,
        "Bytes of request and response bodies that the server buffers at once, over all models "
        "and clients; above it, requests fail with 503. 0 means a quarter of the memory available "
        "to the server.",
        minimum=0,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )
    max_connections: int = setting(
        0,
        "Maximum number of open connections; 0 means as many as the limit of open files allows.",
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
        "Seconds without progress after which a client that does not read its response is "
        "disconnected.",
        minimum=0.001,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    keepalive_timeout: float = setting(
        75.0,
        "Seconds an idle connection is kept open; 0 closes each after its first response.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    drain_delay: float = setting(
        0.0,
        "Seconds between becoming not ready and closing the port on SIGTERM.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    shutdown_timeout: float = setting(
        30.0,
        "Seconds that accepted requests have to finish on SIGTERM.",
        minimum=0,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    debug_errors: str = setting(
        "auto",
        "Include type, stage and line of a service's exception in error responses: on, off, or "
        "auto (on only when listening on loopback).",
        choices=("auto", "on", "off"),
    )
    blacklist_env_vars: str = setting(
        SECRET_VARIABLES,
        "Regular expression; environment variables whose whole name matches are hidden from "
        "workers. The default hides variables named like secrets, including AWS keys; empty hides "
        "none.",
        is_pattern=True,
    )
    access_log: bool = setting(False, "Log one line per request.")
    log_level: str = setting(
        "INFO",
        "Lowest level to log.",
        choices=("NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    log_format: str = setting("text", "Log as text or as JSON.", choices=("text", "json"))
    log_file: str = setting("", "File to log to instead of standard error.")
    log_rotation_time: str = setting(
        "",
        "When to start a new log file: '1 H', an interval and one of S, M, H, D, midnight and W0 "
        "to W6 (Monday to Sunday); without an interval, 1.",
    )
    work_dir: str = setting(
        "", "Folder to unpack archives in; the system's temporary folder if empty."
    )
    metrics_write_to: str = setting(
        "",
        "Destination of metrics under their 0.4 names, in addition to /metrics: log, csv or "
        "cloudwatch; none if empty.",
        choices=("", "log", "csv", "cloudwatch"),
    )
    metrics_interval: float = setting(
        60.0,
        "Seconds between writes to metrics_write_to.",
        minimum=0.01,
        maximum=MAX_SECONDS,
        unit=Unit.SECONDS,
    )
    metrics_dir: str = setting("metrics", "Folder for the files of metrics_write_to csv.")
    gen_api: str = setting(
        "",
        "Language of a client to generate once the models are loaded: python, or any language "
        "that an installed OpenAPI generator supports.",
    )
    gen_api_dir: str = setting("build", "Folder for openapi.json and the generated client.")
    cache_dir: str = setting(
        "",
        "Folder for downloaded archives; mxnet-model-server in $XDG_CACHE_HOME or ~/.cache if "
        "empty.",
    )
    max_archive_bytes: int = setting(
        64 << 30, "Largest archive to download.", minimum=1, maximum=MAX_BYTES, unit=Unit.BYTES
    )
    max_unpacked_bytes: int = setting(
        64 << 30,
        "Maximum total size of an archive's unpacked files, in bytes.",
        minimum=1,
        maximum=MAX_BYTES,
        unit=Unit.BYTES,
    )


def request_limits(settings: ServerSettings) -> RequestLimits:
    """Return the limits on one request in a worker."""
    names = (f.name for f in dataclasses.fields(RequestLimits))
    return RequestLimits(**{name: getattr(settings, name) for name in names})

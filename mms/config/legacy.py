"""The configuration of MMS 1.x: each key of ``config.properties``, and what it sets here.

`KEYS` serves the file, the environment (1.x's ``MMS_`` and the key in capitals), messages and
docs/migration.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mms.config.bounds import MAX_BODY_BYTES
from mms.config.hints import nearest
from mms.config.layers import Layer
from mms.config.properties import fill_variables, parse_properties
from mms.config.resources import gpus
from mms.errors import ConfigError

#: The word by which 1.x's ``--mms-config`` names the configuration of a SageMaker container.
SAGEMAKER = "sagemaker"
#: It takes everything from variables, as the one built into 1.x.
_SAGEMAKER_CONFIG = b"""
model_store = $$SAGEMAKER_MODEL_STORE$$
inference_address = http://0.0.0.0:$$SAGEMAKER_BIND_TO_PORT$$
management_address = http://0.0.0.0:$$SAGEMAKER_BIND_TO_PORT$$
default_response_timeout = $$SAGEMAKER_RESPONSE_TIMEOUT$$
default_workers_per_model = $$SAGEMAKER_NUM_MODEL_WORKERS$$
default_service_handler = $$SAGEMAKER_HANDLER$$
max_request_size = $$SAGEMAKER_MAX_REQUEST_SIZE$$
max_response_size = $$SAGEMAKER_MAX_RESPONSE_SIZE$$
decode_input_request = false
"""
_MAX_FILE_BYTES = 1 << 20
_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/\s]+)(?::(?P<port>\d{1,5}))?/?",
    re.ASCII | re.IGNORECASE,
)
_PORTS = {"http": 80, "https": 443}
_NO_TLS = (
    "this server does not speak TLS; set an http:// address, and put a proxy that ends TLS in "
    "front of it"
)

Reader = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Key:
    """A key of 1.x's configuration.

    Attributes:
        sets: The settings that it sets; empty if it has no meaning here.
        remark: For users: how it differs, or why it has no meaning.
        read: Returns the values of these settings.
        maximum: The largest value here; what is above it becomes it.
    """

    sets: tuple[str, ...] = ()
    remark: str = ""
    read: Reader = field(default=lambda text: {})
    maximum: int | None = None


def _same(setting: str, remark: str = "") -> Key:
    return Key((setting,), remark, lambda text: {setting: text})


def _size(setting: str) -> Key:
    remark = f"at most {MAX_BODY_BYTES}"
    return Key((setting,), remark, lambda text: {setting: text}, MAX_BODY_BYTES)


def _flag(setting: str, remark: str = "") -> Key:
    # As Java reads it: anything but "true" is false.
    return Key((setting,), remark, lambda text: {setting: text.lower() == "true"})


def _address(host: str, port: str) -> Key:
    def read(text: str) -> dict[str, Any]:
        match = _ADDRESS.fullmatch(text)
        if text.lower().startswith("unix:"):
            raise ConfigError(
                f"{text}: this server listens on no Unix sockets; set an http:// address, such as "
                "http://127.0.0.1:8080"
            )
        if match is None:
            raise ConfigError(
                f"Invalid binding address {text!r}; write http://HOST:PORT, such as "
                "http://127.0.0.1:8080"
            )
        scheme = match["scheme"].lower()
        if scheme == "https":
            raise ConfigError(f"{text}: {_NO_TLS}")
        return {host: match["host"].strip("[]"), port: match["port"] or _PORTS[scheme]}

    return Key((host, port), "`unix:` and `https://` are refused: use a proxy", read)


def _minutes(text: str) -> dict[str, Any]:
    return {"response_timeout": int(text) * 60 if text.isdecimal() else text}


def _seconds(text: str) -> dict[str, Any]:
    return {} if text == "-1" else {"response_timeout": text}


def _gpus(text: str) -> dict[str, Any]:
    is_count = text.isdecimal() and len(text) < 11
    # At most those that there are, as in 1.x: its configurations run on machines without one, too.
    return {"gpu": ",".join(map(str, range(min(int(text), gpus()))))} if is_count else {"gpu": text}


def _debug(text: str) -> dict[str, Any]:
    return {"workers": 1} if text.lower() == "true" else {}


_NETTY = Key(remark="not needed: this server has no Netty")
_JAVA = Key(remark="not needed: this server has no Java")
_TLS = Key(remark=_NO_TLS)

#: In order of precedence where two set the same.
KEYS: Mapping[str, Key] = {
    "inference_address": _address("host", "port"),
    "management_address": _address("management_host", "management_port"),
    "model_store": _same("model_store"),
    "load_models": Key(("models",), "`ALL` is everything in the model store"),
    "debug": Key(("workers",), "`true` is one worker", _debug),
    "default_workers_per_model": _same("workers"),
    "default_response_timeout_seconds": Key(("response_timeout",), "", _seconds),
    "default_response_timeout": Key(
        ("response_timeout",), "in minutes, as 1.1 read it, whatever its page says", _minutes
    ),
    "unregister_model_timeout": Key(
        remark="not needed: a model that is unregistered finishes its accepted requests"
    ),
    "job_queue_size": _same("queue_size"),
    "max_request_size": _size("max_request_bytes"),
    "max_response_size": _size("max_response_bytes"),
    "number_of_gpu": Key(
        ("gpu",), "a number, of those that there are; the default here is none", _gpus
    ),
    "metric_time_interval": _same("metrics_interval", "for `metrics_write_to`"),
    "decode_input_request": _flag("decode_input_request"),
    "preload_model": _flag("preload", "on by default here"),
    "default_service_handler": _same("handler", "stands in for an archive's own, too"),
    "blacklist_env_vars": _same("blacklist_env_vars"),
    "cors_allowed_origin": _same("cors_allowed_origin"),
    "cors_allowed_methods": _same("cors_allowed_methods"),
    "cors_allowed_headers": _same("cors_allowed_headers"),
    "enable_envvars_config": Key(
        remark="variables count here in any case; with `true`, above the command line"
    ),
    "keystore": _TLS,
    "keystore_pass": _TLS,
    "keystore_type": _TLS,
    "private_key_file": _TLS,
    "certificate_file": _TLS,
    "number_of_netty_threads": _NETTY,
    "netty_client_threads": _NETTY,
    "prefer_direct_buffer": _NETTY,
    "use_native_io": _NETTY,
    "io_ratio": _NETTY,
    "async_logging": _JAVA,
    "vmargs": _JAVA,
    "plugins_path": Key(remark="plug-ins in Java are not supported"),
    "model_server_home": _JAVA,
}


@dataclass(frozen=True, slots=True)
class Legacy:
    """What a configuration of 1.x says, in the terms of this server.

    Attributes:
        layers: Settings, a layer for each key, the strongest first.
        models: The models to load, as ``NAME=LOCATION``, ``LOCATION`` or ``ALL``.
        notes: What has no meaning here, a line each.
        environment_first: Whether the environment beats the command line.
    """

    layers: tuple[Layer, ...] = ()
    models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    environment_first: bool = False


def translate(values: Mapping[str, str], origin_of: Callable[[str], str]) -> Legacy:
    """Translate the keys of 1.x.

    Args:
        values: Values by key.
        origin_of: Returns the origin of a key, for messages.

    Raises:
        ConfigError: A value cannot be read.
    """
    layers, notes = [], []
    for name, key in KEYS.items():
        text = values.get(name, "").strip()
        # 1.x's toolkits leave keys empty for "not set".
        if not text or name in ("load_models", "enable_envvars_config"):
            continue
        if not key.sets:
            notes.append(f"{origin_of(name)} is ignored: {key.remark}")
            continue
        if (
            key.maximum is not None
            and len(text) < 20
            and text.isdecimal()
            and int(text) > key.maximum
        ):
            notes.append(f"{origin_of(name)}: {key.maximum} is the most here, in place of {text}")
            text = str(key.maximum)
        try:
            layers.append(Layer(origin_of(name), key.read(text)))
        except ConfigError as error:
            raise ConfigError(f"{origin_of(name)}: {error}") from None
    for name in values:
        if name not in KEYS:
            notes.append(f"{origin_of(name)} is ignored: unknown key{nearest(name, KEYS)}")
    return Legacy(
        tuple(layers),
        tuple(text.strip() for text in values.get("load_models", "").split(",") if text.strip()),
        tuple(notes),
        values.get("enable_envvars_config", "").strip().lower() == "true",
    )


def read_properties(file: str, environment: Mapping[str, str]) -> Legacy:
    """Translate a ``config.properties``.

    Args:
        file: Its path, or ``sagemaker`` for the built-in one.
        environment: For ``$$NAME$$`` in values.

    Raises:
        ConfigError: It cannot be read, a variable is not set, or a value is not valid.
    """
    data = _SAGEMAKER_CONFIG if file == SAGEMAKER else _read(Path(file))
    values = {
        key: fill_variables(value, environment, f"{file}: {key}")
        for key, value in parse_properties(data).items()
    }
    return translate(values, lambda key: f"{file}: {key}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            data = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_FILE_BYTES} bytes, so no config.properties")
    return data

"""Settings from environment variables: the server's own, those of MMS 1.x, and SageMaker's.

The prefix ``MMS_`` is not this server's alone: the platform, another tool or the server before this
one may set such variables, so an unknown one is reported and ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mms.config.hints import nearest
from mms.config.layers import Layer, keys
from mms.config.legacy import KEYS, Legacy, translate
from mms.config.settings import ENV_PREFIX, TOKEN_VARIABLE, ModelSettings, ServerSettings
from mms.config.values import TRUE

#: Names 1.x's configuration file.
PROPERTIES_VARIABLE = "MMS_CONFIG_FILE"
#: Environment variables with the prefix that are not settings.
_OTHER_VARIABLES = {"MMS_CONFIG", PROPERTIES_VARIABLE, TOKEN_VARIABLE}
#: What Kubernetes sets in pods beside a Service whose name is mms, or begins with "mms-".
_SERVICE_LINK = re.compile(
    r"MMS_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)",
    re.ASCII,
)
_SERVICE_PORT = re.compile(r"MMS_(\w+_)?PORT", re.ASCII)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://", re.ASCII)


def environment_settings(environment: Mapping[str, str]) -> Legacy:
    """Return what ``MMS_*`` variables set; ``MMS_PORT`` is ``port``.

    The names of this server are stronger than those of 1.x.
    """
    names = {name for name in environment if name.startswith(ENV_PREFIX)} - _OTHER_VARIABLES
    links = sorted(name for name in names if _is_service_link(name, environment[name]))
    known = {*keys(ServerSettings), *keys(ModelSettings)}
    ours, older, notes = {}, {}, []
    if links:
        notes.append("variables that Kubernetes sets for Services are ignored: " + ", ".join(links))
    for name in sorted(names - set(links)):
        key = name[len(ENV_PREFIX) :].lower()
        if key in known:
            ours[key] = environment[name]
        elif key in KEYS:
            older[key] = environment[name]
        else:
            near = nearest(key, (*known, *KEYS), _variable)
            notes.append(f"environment variable {name} is ignored: it is no setting{near}")
    legacy = translate(older, _variable)
    layers = (Layer("environment", ours), *legacy.layers)
    return replace(legacy, layers=layers, notes=(*notes, *legacy.notes))


def sagemaker_layer(environment: Mapping[str, str]) -> Layer:
    """Return the settings in SageMaker's variables; they override the defaults only."""
    values: dict[str, Any] = {}
    if "SAGEMAKER_BIND_TO_PORT" in environment:
        # SageMaker connects from outside the container, and uses these routes only.
        values = {"port": environment["SAGEMAKER_BIND_TO_PORT"], "host": "0.0.0.0"}
    if str(environment.get("SAGEMAKER_MULTI_MODEL", "")).lower() in TRUE:
        values |= {"multi_model": True, "host": "0.0.0.0"}
    return Layer("SageMaker", values)


def _variable(key: str) -> str:
    return f"{ENV_PREFIX}{key.upper()}"


def _is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes set a variable.

    Only the value tells ``MMS_PORT``, a setting, from the one of a Service called mms.
    """
    is_port = _SERVICE_PORT.fullmatch(name) and _SERVICE_URL.match(value)
    return bool(is_port or _SERVICE_LINK.fullmatch(name))

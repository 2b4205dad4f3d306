"""Settings from environment variables: the server's own, and SageMaker's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mms.config.layers import Layer, check_keys, keys
from mms.config.settings import ENV_PREFIX, TOKEN_VARIABLE, ModelSettings, ServerSettings
from mms.config.values import TRUE

#: Environment variables with the prefix that are not settings.
_OTHER_VARIABLES = {"MMS_CONFIG", TOKEN_VARIABLE}
_SERVICE_LINK = re.compile(r"MMS_(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_\w+)")


def environment_layer(environment: Mapping[str, str]) -> Layer:
    """Return the settings in ``MMS_*`` variables; ``MMS_PORT`` is ``port``.

    Raises:
        ConfigError: A variable with that prefix is not a setting.
    """
    values = {
        name[len(ENV_PREFIX) :].lower(): value
        for name, value in environment.items()
        if name.startswith(ENV_PREFIX)
        and name not in _OTHER_VARIABLES
        and not _is_service_link(name, value)
    }
    check_keys(values, keys(ServerSettings) + keys(ModelSettings), "environment (MMS_*)")
    return Layer("environment", values)


def sagemaker_layer(environment: Mapping[str, str]) -> Layer:
    """Return the settings in SageMaker's variables; they override the defaults only."""
    values: dict[str, Any] = {}
    if "SAGEMAKER_BIND_TO_PORT" in environment:
        # SageMaker connects from outside the container, and uses these routes only.
        values = {"port": environment["SAGEMAKER_BIND_TO_PORT"], "host": "0.0.0.0"}
    if str(environment.get("SAGEMAKER_MULTI_MODEL", "")).lower() in TRUE:
        values |= {"multi_model": True, "host": "0.0.0.0"}
    return Layer("SageMaker", values)


def _is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes set a variable, as it does in pods beside a Service ``mms``."""
    return value.startswith("tcp://") or bool(_SERVICE_LINK.fullmatch(name))

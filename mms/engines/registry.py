"""The engines that run converted networks, by name, and which engines are installed."""

from __future__ import annotations

from mms.archive.candidates import ENGINES, EngineName
from mms.engines.imports import installed_version
from mms.engines.network import Engine
from mms.engines.onnxruntime_engine import OnnxRuntimeEngine
from mms.engines.openvino_engine import OpenVINOEngine

_CONVERTED: dict[str, Engine] = {
    engine.name: engine for engine in (OnnxRuntimeEngine(), OpenVINOEngine())
}
#: Packages that install MXNet, in its two lanes.
_MXNET = ("mxnet", "mxnet-mkl", "mxnet-cu112", "mxnet-cu110", "mxnet-cu102")


def engine(name: EngineName) -> Engine:
    """Return an engine for converted networks, installed or not.

    Raises:
        KeyError: MXNet, which runs networks as they are: services load those.
    """
    return _CONVERTED[name]


def installed() -> dict[EngineName, str]:
    """Return the version of each engine that is installed, MXNet included; imports none."""
    versions = {name: _version(name) for name in ENGINES}
    return {name: version for name, version in versions.items() if version}


def _version(name: EngineName) -> str:
    return installed_version("mxnet", _MXNET) if name == "mxnet" else engine(name).version()

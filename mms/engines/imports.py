"""Import MXNet 1.9.1 on today's NumPy and Python, or onnxruntime, or say what is missing.

Only worker processes, the exporter's check and the model code itself may come here.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import gc
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np

from mms.errors import EngineMissing

#: MXNet 1.9.1 uses these at import and in its operators; NumPy dropped them in 1.24.
_DROPPED_NAMES = {
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
    "object": object,
    "str": str,
}
#: Shared libraries the MXNet wheel links but does not bundle, and Debian's packages for them.
_SYSTEM_LIBRARIES = {"gomp": "libgomp1", "quadmath": "libquadmath0"}
#: What MXNet imports where it is installed, only for its deprecated FeedForward and for quantizing
#: by entropy. It does without, in half the time and with 60 MB less.
_NEEDLESS = ("sklearn", "scipy.stats")


def import_mxnet() -> ModuleType:
    """Return the mxnet module, importing it the first time.

    Raises:
        EngineMissing: With the command that installs what is missing.
    """
    if "mxnet" in sys.modules:
        return sys.modules["mxnet"]
    restore_numpy_names()
    if importlib.util.find_spec("mxnet") is None:
        raise EngineMissing("MXNet is not installed; run: pip install mxnet==1.9.1")
    if sys.version_info >= (3, 12) and importlib.util.find_spec("setuptools") is None:
        raise EngineMissing(
            "MXNet needs distutils, which Python 3.12 dropped; run: pip install setuptools"
        )
    try:
        with warnings.catch_warnings(), _without(_NEEDLESS), _uncollected():
            # Deprecations inside mxnet that its users cannot mend.
            warnings.simplefilter("ignore")
            import mxnet
    except OSError as error:
        raise EngineMissing(_missing_libraries(error)) from error
    return mxnet  # type: ignore[no-any-return]


def import_onnxruntime() -> ModuleType:
    """Return the onnxruntime module, importing it the first time.

    Raises:
        EngineMissing: With the command that installs what is missing.
    """
    # As `worker_environment` does, for whoever imports a service outside a worker.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineMissing(
            "an ONNX model needs onnxruntime, which is not installed; run: "
            "pip install 'mxnet-model-server[onnx]'"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(f"onnxruntime cannot be loaded: {error}") from error
    return onnxruntime  # type: ignore[no-any-return]


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Have imports of these modules fail meanwhile, unless they have been imported before."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from going through what an import makes, which stays anyway."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def restore_numpy_names() -> None:
    """Put back the aliases that NumPy 1.24 removed, unless they are there."""
    for name, value in _DROPPED_NAMES.items():
        if name not in np.__dict__:
            setattr(np, name, value)


def engine_name() -> str:
    """Return name and version of what runs the model in this process: whatever is loaded."""
    for name in ("mxnet", "onnxruntime", "torch", "tensorflow"):
        if name in sys.modules:
            return f"{name} {getattr(sys.modules[name], '__version__', '')}".strip()
    return f"python {sys.version.split()[0]}"


def _missing_libraries(error: OSError) -> str:
    # The loader names the first one that it does not find; the other may be missing, too.
    missing = [
        package
        for library, package in _SYSTEM_LIBRARIES.items()
        if f"lib{library}.so" in str(error) or ctypes.util.find_library(library) is None
    ]
    if not missing:
        return f"MXNet cannot be loaded: {error}"
    return (
        f"MXNet cannot be loaded ({error}); it needs system libraries: "
        f"run: apt-get install -y {' '.join(missing)}"
    )


if __name__ == "__main__":
    # `make setup` runs this, so that a missing library is told where it can be mended.
    try:
        import_mxnet()
    except EngineMissing as error:
        sys.exit(f"Error: {error}")

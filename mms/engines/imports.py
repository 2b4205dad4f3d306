"""Import MXNet 1.9.1 on current NumPy and Python, or another engine, or report what is missing.

Only for worker processes, the exporter's check and model code.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import gc
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

from mms.engines.numpy_names import restore_numpy_names
from mms.errors import EngineMissing

#: Shared libraries the MXNet wheel links but does not bundle, and Debian's packages for them.
_SYSTEM_LIBRARIES = {"gomp": "libgomp1", "quadmath": "libquadmath0"}
#: Optional imports of MXNet, only for its deprecated FeedForward and for quantizing by entropy.
#: Without them it loads in half the time and takes 60 MB less.
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
            "MXNet needs distutils, which Python 3.12 removed; run: pip install setuptools"
        )
    try:
        with warnings.catch_warnings(), _without(_NEEDLESS), _uncollected():
            # Deprecations inside mxnet that its users cannot fix.
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
    # As `worker_environment` does, for services imported outside a worker.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if not is_installed("onnxruntime"):
        raise EngineMissing(
            "onnxruntime is not installed; run: pip install 'mxnet-model-server[onnx]'"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(f"onnxruntime cannot be loaded: {error}") from error
    return onnxruntime  # type: ignore[no-any-return]


def import_openvino() -> ModuleType:
    """Return the openvino module, importing it the first time.

    Raises:
        EngineMissing: With the command that installs what is missing.
    """
    # Without this, the import alone writes ~/intel and sends data to the vendor, assuming consent.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    if not is_installed("openvino"):
        raise EngineMissing(
            "OpenVINO is not installed; run: pip install 'mxnet-model-server[openvino]'"
        )
    try:
        import openvino
    except ImportError as error:
        raise EngineMissing(f"OpenVINO cannot be loaded: {error}") from error
    return openvino  # type: ignore[no-any-return]


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be found, without importing it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def installed_version(module: str, distributions: Sequence[str]) -> str:
    """Return the version of an engine without importing it; "" if it is not installed.

    Args:
        module: The module it is imported as.
        distributions: The packages that may install it.
    """
    if not is_installed(module):
        return ""
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of unknown version"


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Make imports of these modules fail within the context, unless already imported."""
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
    """Pause the garbage collector during an import, whose objects stay alive anyway."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def engine_name() -> str:
    """Return name and version of the engine loaded in this process, or Python's."""
    for name in ("mxnet", "onnxruntime", "openvino", "torch", "tensorflow"):
        if name in sys.modules:
            # OpenVINO's goes on with a build number and the name of a branch.
            version = getattr(sys.modules[name], "__version__", "").partition("-")[0]
            return f"{name} {version}".strip()
    return f"python {sys.version.split()[0]}"


def _missing_libraries(error: OSError) -> str:
    # The loader names only the first library it does not find; the other may be missing too.
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
    # `make setup` runs this, so that a missing library is reported where it can be installed.
    try:
        import_mxnet()
    except EngineMissing as error:
        sys.exit(f"Error: {error}")

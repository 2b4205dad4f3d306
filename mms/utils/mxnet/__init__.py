"""PUBLIC: image, ndarray and nlp helpers for services, under their v0.4 names."""

import importlib
from types import ModuleType

__all__ = ["image", "ndarray", "nlp"]


def __getattr__(name: str) -> ModuleType:
    # Imported on first use: `image` imports mxnet, which an ONNX service that uses `ndarray` does
    # not need.
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

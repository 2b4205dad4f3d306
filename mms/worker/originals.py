"""Recognise the service files that the exporters of 0.4 and 1.x copied into archives.

Those exporters packed whole files of their own package if a model had no service. The maintained
class runs in place of such a copy, and only of such a copy: a modified one is a user's code,
whatever its class name. A copy is recognised by its text without white space.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

_MXNET = ("mms.model_service.mxnet_model_service", "MXNetBaseService")
_VISION = ("mms.model_service.mxnet_vision_service", "MXNetVisionService")
_GLUON_VISION = ("mms.model_service.gluon_vision_service", "GluonVisionService")
#: Module and class by the SHA-256 of the file's text without white space, taken from the packages
#: mxnet-model-server 0.1.4 to 1.0.8 on PyPI.
_ORIGINALS = {
    # 0.1.4 and 0.1.5, 0.2.0, 0.3, 0.4, 1.0.0 to 1.0.8
    "a635ea3d21a32ab40d5527099341136993d975131ab9736ace8adb413d760e1b": _MXNET,
    "1e6d9050014a40aebbb28b0ec74cba8e572af5b480c8e7f31673ab00945662d2": _MXNET,
    "d802e0231a295957b5d7653a98b1d28d2a69d90c4454ab2c4c3e695e30705436": _MXNET,
    "1e736cabb75ac8b160f8dccce23186f2e8b9c2d143129f1afeeb3acbeda2372c": _MXNET,
    "dccb1c0f7bd1931442973348a887643d7672855be24f804244af5ee439373673": _MXNET,
    # 0.1.4 to 1.0.8
    "92eb30e683252516dd7cb05b343dbfe4de961144e0834380ca17607d6aaecc32": _VISION,
    # 0.4 and 1.0.0, 1.0.8
    "ed3c003944af831bcd29ab78c82dfe46cde93d7c1e67f62f5eaa01d4676da180": _GLUON_VISION,
    "e6780ebfa6cffeef9c22bf60021e5ce98b80d12186efb43bb4c755a9c32a5020": _GLUON_VISION,
}


def maintained_class(path: str) -> type[Any] | None:
    """Return the class to run in place of a copied original; None for any other file.

    Args:
        path: A service file; it is read, not run.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError):
        # The loader of the file reports what is wrong with it.
        return None
    known = _ORIGINALS.get(hashlib.sha256("".join(text.split()).encode()).hexdigest())
    if known is None:
        return None
    module, name = known
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found

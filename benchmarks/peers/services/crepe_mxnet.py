"""The example's network on MXNet, for peers whose models are written in Python."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import numpy as np
from crepe_text import encode, read_labels

#: MXNet 1.9.1 uses these at import; NumPy dropped them in 1.24.
_DROPPED_NAMES = {"bool": bool, "int": int, "float": float, "object": object}


def _import_mxnet() -> ModuleType:
    for name, value in _DROPPED_NAMES.items():
        if name not in np.__dict__:
            setattr(np, name, value)
    import mxnet

    return mxnet


class Crepe:
    """Categories of reviews, as many reviews as come in one forward pass."""

    def __init__(self, assets: str | None = None) -> None:
        folder = Path(assets or os.environ["CREPE_ASSETS"])
        self.labels = read_labels(folder)
        self.mx = mx = _import_mxnet()
        self.net = mx.gluon.SymbolBlock.imports(
            str(folder / "crepe-symbol.json"), ["data"], str(folder / "crepe-0000.params")
        )
        self.net.hybridize(static_alloc=True)
        self([("warm", "up")])

    def __call__(self, reviews: list[tuple[str, str]]) -> list[str]:
        scores = self.net(self.mx.nd.from_numpy(encode(reviews), zero_copy=True)).asnumpy()
        return [self.labels[best] for best in scores.argmax(axis=1)]

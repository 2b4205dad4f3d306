"""The networks of the examples, as their scripts make them, with random parameters."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mms.engines.imports import import_mxnet
from tests.convert.case import Array, Case, Made, block_case

mx = import_mxnet()
ROOT = Path(__file__).parents[2] / "examples"


def example(folder: str, module: str) -> ModuleType:
    """Import a module of an example, which finds those beside it."""
    path = ROOT / folder / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"example_{folder}_{module}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(path.parent))
    return loaded


def _noise(*shape: int) -> Array:
    return np.random.default_rng(4).random(shape, dtype=np.float32)


def _crepe() -> Made:
    service = example("gluon_character_cnn", "character_cnn_service")
    texts = [("Good", "I like this charger, it works."), ("Bad", "The book: dull, and 300 pages!")]
    encoded = service.one_hot([service.character_rows(*text) for text in texts])
    return block_case(service.GluonCrepe(), encoded)


def _alexnet(kind: str) -> Made:
    module = example("gluon_alexnet", f"gluon_{kind}_alexnet")
    net: Any = module.HybridAlexNet() if kind == "hybrid" else module.ImperativeAlexNet()
    return block_case(net, _noise(2, 3, 224, 224), sizes=(1, 2, 3))


def _lstm_ptb() -> Made:
    module = example("lstm_ptb", "lstm_ptb_service")
    words = np.random.default_rng(5).integers(0, 300, (2, 10)).astype(np.float32)
    return block_case(module.LanguageModel(300), words)


def _ssd() -> Made:
    module = example("ssd", "detector")
    net = module.DecodedDetector(module.Detector(3))
    return block_case(net, _noise(2, 3, 128, 128) * 255, sizes=(1, 2, 3), is_deep=True)


def _vision() -> Made:
    from tests.convert.networks import symbol_case

    symbol = example("mxnet_vision", "train").lenet()
    return symbol_case(symbol, _noise(2, 1, 28, 28) * 255, data=(0, 1, 28, 28))


EXAMPLES = (
    Case("Crepe", _crepe),
    Case("example alexnet, hybrid", lambda: _alexnet("hybrid")),
    Case("example alexnet, imperative", lambda: _alexnet("imperative")),
    Case("example lstm_ptb", _lstm_ptb),
    Case("example ssd", _ssd, ("_contrib_MultiBoxPrior", "_contrib_MultiBoxDetection")),
    Case("example mxnet_vision", _vision),
)

"""BentoML: the example's network on MXNet, with and without batching."""

from __future__ import annotations

import os
from typing import Any

import bentoml
from bentoml_settings import SETTINGS

_BATCH_SIZE = int(os.environ["PEER_BATCH_SIZE"])
#: The longest wait is more than any request needs here: past it, requests are refused.
_BATCHING: dict[str, Any] = (
    {"batchable": True, "max_batch_size": _BATCH_SIZE, "max_latency_ms": 10000}
    if _BATCH_SIZE > 1
    else {}
)


@bentoml.service(**SETTINGS)
class Crepe:
    def __init__(self) -> None:
        # In the workers only: the supervisor does not need MXNet.
        from crepe_mxnet import Crepe as Network

        self.network = Network()

    @bentoml.api(**_BATCHING)
    def predict(self, reviews: list[dict[str, str]]) -> list[dict[str, str]]:
        pairs = [(review["review_title"], review["review"]) for review in reviews]
        return [{"category": category} for category in self.network(pairs)]

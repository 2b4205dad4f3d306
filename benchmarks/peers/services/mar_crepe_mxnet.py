"""multi-model-server and TorchServe: the example's network on MXNet."""

from __future__ import annotations

from typing import Any

from crepe_mxnet import Crepe

_crepe: Crepe | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, str]]:
    global _crepe
    if _crepe is None:
        _crepe = Crepe()
    reviews = [request["body"] for request in data or []]
    if not reviews:
        return []
    answers = _crepe([(review["review_title"], review["review"]) for review in reviews])
    return [{"category": category} for category in answers]

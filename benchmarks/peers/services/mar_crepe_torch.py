"""TorchServe: the example's network on PyTorch."""

from __future__ import annotations

import os
from typing import Any

from crepe_torch import Crepe

_crepe: Crepe | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, str]]:
    global _crepe
    if _crepe is None:
        _crepe = Crepe(os.environ["CREPE_ASSETS"])
    reviews = [request["body"] for request in data or []]
    if not reviews:
        return []
    answers = _crepe([(review["review_title"], review["review"]) for review in reviews])
    return [{"category": category} for category in answers]

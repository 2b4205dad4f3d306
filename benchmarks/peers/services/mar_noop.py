"""multi-model-server and TorchServe: a handler that does nothing."""

from __future__ import annotations

from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, bool]]:
    return [{"ok": True} for _ in data or []]

"""BentoML: a service that does nothing."""

from __future__ import annotations

import bentoml
from bentoml_settings import SETTINGS


@bentoml.service(**SETTINGS)
class Noop:
    @bentoml.api
    async def predict(self, x: list[float]) -> dict[str, bool]:
        return {"ok": True}

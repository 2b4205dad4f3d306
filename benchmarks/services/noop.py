"""A service that does nothing: what is left is the server."""

from typing import Any

from mms.model_service.model_service import SingleNodeService


class Noop(SingleNodeService):
    def _postprocess(self, data: Any) -> dict[str, bool]:
        return {"ok": True}

"""A service that gives back what it was asked, so that each answer tells whose it is."""

from typing import Any

from mms.model_service.model_service import SingleNodeService


class Echo(SingleNodeService):
    def _postprocess(self, data: Any) -> Any:
        return data

"""A service whose forward takes nearly as long for one request as for many, as on a GPU."""

import time
from typing import Any

import numpy as np

from mms.model_service.model_service import SingleNodeService

_FIXED_S, _PER_REQUEST_S = 0.005, 0.000125


class FixedCost(SingleNodeService):
    def _preprocess(self, data: Any) -> list[Any]:
        return [np.zeros((1, 1), np.float32)]

    def _inference(self, data: Any) -> list[Any]:
        time.sleep(_FIXED_S + _PER_REQUEST_S * len(data[0]))
        return [data[0]]

    def _postprocess(self, data: Any) -> dict[str, bool]:
        return {"ok": True}

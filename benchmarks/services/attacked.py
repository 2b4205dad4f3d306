"""A service that reads pictures and lists, and does on command what makes a request costly."""

import ctypes
import time
from typing import Any

from mms.model_service.model_service import SingleNodeService
from mms.utils.mxnet import image

_LARGE_CHARS = 8_000_000


class Attacked(SingleNodeService):
    def _preprocess(self, data: list[Any]) -> Any:
        value = data[0]
        if isinstance(value, bytes):
            return image.read(value).shape
        if value == ["die"]:
            ctypes.string_at(0)
        if value and value[0] == "spin":
            end = time.monotonic() + value[1]
            while time.monotonic() < end:
                pass
        return value

    def _postprocess(self, data: Any) -> Any:
        return "x" * _LARGE_CHARS if data == ["large"] else len(data)

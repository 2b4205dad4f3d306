"""Answers the raw pixels of the picture it is sent."""

import base64

from mms.model_service.model_service import SingleNodeService
from mms.utils.mxnet import image


class Shown(SingleNodeService):
    def _preprocess(self, data):
        return image.read(data[0])

    def _postprocess(self, data):
        pixels = data.asnumpy()
        return [list(pixels.shape), base64.b64encode(pixels.tobytes()).decode()]

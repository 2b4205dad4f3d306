"""Overrides inference as a whole, so that nothing may be joined."""

import mxnet as mx

from mms.model_service.model_service import SingleNodeService


class Whole(SingleNodeService):
    def inference(self, data):
        array = mx.nd.array(data[0])
        return [array.asnumpy().tolist(), array.shape[0]]

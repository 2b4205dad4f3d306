"""Answers one row, whatever came in, and how often it was called."""

import mxnet as mx

from mms.model_service.model_service import SingleNodeService


class Summing(SingleNodeService):
    calls = 0

    def _preprocess(self, data):
        return mx.nd.array(data[0])

    def _inference(self, data):
        Summing.calls += 1
        return data.sum(axis=0, keepdims=True)

    def _postprocess(self, data):
        return [data.asnumpy().tolist(), Summing.calls]

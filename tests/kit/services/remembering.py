"""A network that looks at its own input while it answers."""

import mxnet as mx

from mms.model_service.model_service import SingleNodeService


class Remembering(SingleNodeService):
    def _preprocess(self, data):
        return mx.nd.array(data[0])

    def _inference(self, data):
        self.seen = data.asnumpy().tolist()
        return data

    def _postprocess(self, data):
        return self.seen

"""A real network, y = 2x + 1, over requests of (N, 3) rows; notes the rows of each forward pass."""

import os
import time

import mxnet as mx

from mms.model_service.mxnet_model_service import GluonImperativeBaseService


class Net(mx.gluon.nn.HybridBlock):
    def hybrid_forward(self, F, x):
        return F.broadcast_add(x * 2, F.ones((1,)))


class Rows(GluonImperativeBaseService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        self.notes = os.path.join(model_dir, "forwards")
        net = Net()
        net.initialize()
        super().__init__(model_name, model_dir, manifest, net, gpu)

    def _preprocess(self, data):
        self.marker = data[0][0][0]
        return mx.nd.array(data[0], ctx=self.ctx)

    def _inference(self, data):
        with open(self.notes, "a") as notes:
            notes.write(f"{len(data)}\n")
        # A forward as slow as a small network's, so that requests gather behind it.
        time.sleep(0.01)
        if float(data.max().asscalar()) >= 1e6:
            raise ValueError("a value is too large")
        return self.net(data)

    def _postprocess(self, data):
        return {
            "rows": data.asnumpy().tolist(),
            "marker": self.marker,
        }

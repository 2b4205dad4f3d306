"""Tells what its worker process is like."""

import os
import random

import mxnet as mx
import numpy as np

from mms.model_service.model_service import SingleNodeService


class Inspecting(SingleNodeService):
    weights = None
    drawn = None

    def __init__(self, model_name, model_dir, manifest, gpu=None):
        super().__init__(model_name, model_dir, manifest, gpu)
        self.weights = np.ones(8 << 20)  # 64 MB that forked workers share

    def inference(self, data):
        if Inspecting.drawn is None:
            Inspecting.drawn = [
                random.random(),
                float(np.random.random()),
                float(mx.nd.random.uniform().asscalar()),
            ]
        return {
            "pid": os.getpid(),
            "drawn": self.drawn,
            "environment": dict(os.environ),
            "weights": float(self.weights.sum()),
        }

"""Arrays of NumPy, in and out; notes the rows of each forward pass."""

import os
import sys

import numpy as np

from mms.model_service.model_service import SingleNodeService


class Noting(SingleNodeService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        super().__init__(model_name, model_dir, manifest, gpu)
        self.notes = os.path.join(model_dir, "forwards")

    def note(self, rows):
        with open(self.notes, "a") as notes:
            notes.write(f"{rows}\n")


class NumpyArrays(Noting):
    def _preprocess(self, data):
        return np.array(data[0], dtype=np.int64)

    def _inference(self, data):
        if data.min() < -10:
            sys.exit(1)
        self.note(len(data))
        return np.stack([data * 2, data * 3], axis=1)

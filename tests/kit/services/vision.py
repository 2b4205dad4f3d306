"""Tells the size and mean colour of an image, or answers a plain image of that colour."""

import base64
import io

import numpy as np
from PIL import Image

from mms.model_service.model_service import SingleNodeService
from mms.utils.mxnet import image


class Vision(SingleNodeService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        super().__init__(model_name, model_dir, manifest, gpu)
        self.gives_images = model_dir and "paint" in manifest["Model"]["Model-Name"]

    def _preprocess(self, data):
        return image.read(data[0])

    def _postprocess(self, data):
        pixels = data.asnumpy()
        if not self.gives_images:
            return {"shape": list(pixels.shape), "mean": pixels.mean(axis=(0, 1)).round().tolist()}
        output = io.BytesIO()
        colour = tuple(int(value) for value in pixels.mean(axis=(0, 1)))
        Image.fromarray(np.full((2, 2, 3), colour, np.uint8)).save(output, "PNG")
        return [base64.b64encode(output.getvalue()).decode()]

"""Answers the shape that an image was given."""

from mms.model_service.onnx_service import OnnxVisionService


class Shapes(OnnxVisionService):
    def _inference(self, data):
        super()._inference(data)
        return data[0].shape

    def _postprocess(self, data):
        return data

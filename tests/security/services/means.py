"""A Gluon network over images: the means of the channels."""

from mxnet import gluon

from mms.model_service.gluon_vision_service import GluonVisionService


class Means(gluon.HybridBlock):
    def hybrid_forward(self, F, data):
        return F.mean(data, axis=(2, 3))


class Service(GluonVisionService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        super().__init__(model_name, model_dir, manifest, Means(), gpu)

"""PUBLIC: the base classes of services, under the import paths of MMS 0.4."""

from mms.lazy import lazily

__getattr__ = lazily(
    __name__,
    ("gluon_vision_service", "model_service", "mxnet_model_service", "mxnet_vision_service"),
)

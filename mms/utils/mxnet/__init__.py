"""PUBLIC: image, ndarray and nlp helpers for services, under their v0.4 names."""

from mms.utils.mxnet import image, ndarray, nlp

__all__ = ["image", "ndarray", "nlp"]

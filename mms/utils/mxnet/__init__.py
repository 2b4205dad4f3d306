"""PUBLIC: image, ndarray and nlp helpers for services, under their v0.4 names."""

from mms.lazy import lazily

# Imported on first use: `image` imports mxnet, which an ONNX service that uses `ndarray` does not
# need.
__getattr__ = lazily(__name__, ("image", "ndarray", "nlp"))

"""The way to MXNet under its former path, which scripts import."""

from mms.engines.imports import import_mxnet

__all__ = ["import_mxnet"]

"""mxnet-model-server: trained MXNet, Gluon and ONNX models behind HTTP.

The package reads in the direction the data flows::

    cli -> config -> http -> serving -> wire <- worker -> model_service

``mms.model_service``, ``mms.utils.mxnet``, ``mms.service`` and ``mms.context`` are public: they
hold the names that services of MMS 0.4 and 1.x import. Only they and ``mms.worker`` may import
mxnet; the server process never does.
"""

from mms.version import __version__

__all__ = ["__version__"]

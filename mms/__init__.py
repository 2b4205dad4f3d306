"""mxnet-model-server: trained MXNet, Gluon and ONNX models behind HTTP.

The package reads in the direction the data flows::

    cli -> server -> http, grpc -> serving -> wire <- worker -> model_service -> engines
                                      |
              telemetry, config, fetch, archive

Packing has a way of its own: ``cli -> export -> archive``. docs/architecture.md has a
glossary and diagrams.

``mms.model_service``, ``mms.utils.mxnet``, ``mms.service``, ``mms.context``, ``mms.metrics`` and
the modules whose first word is PUBLIC are for users: they hold the names that services and scripts
of MMS 0.4 and 1.x import. Only ``mms.worker``,
``mms.engines``, ``mms.model_service``, ``mms.utils`` and the process that ``mms.export`` starts to
quantize may import mxnet; the server process never does.
"""

from mms.engines.numpy_names import restore_before_mxnet
from mms.lazy import lazily
from mms.version import __version__

restore_before_mxnet()

__all__ = ["__version__"]

# What 0.4 offered after a bare `import mms`.
__getattr__ = lazily(__name__, ("log", "metric", "metrics_manager", "model_service", "version"))

"""PUBLIC: 0.4's web application, in whose place stands ``mxnet-model-server``."""

from mms.lazy import retired

ServingFrontend = retired(
    "mms.serving_frontend.ServingFrontend",
    "start mxnet-model-server, and put own routes behind a proxy",
)

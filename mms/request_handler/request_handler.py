"""PUBLIC: 0.4's base of request handlers."""

from mms.lazy import retired

RequestHandler = retired(
    "mms.request_handler.request_handler.RequestHandler",
    "start mxnet-model-server, and put own routes behind a proxy",
)

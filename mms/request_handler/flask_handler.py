"""PUBLIC: 0.4's request handler for Flask."""

from mms.lazy import retired

FlaskRequestHandler = retired(
    "mms.request_handler.flask_handler.FlaskRequestHandler",
    "start mxnet-model-server, and put own routes behind a proxy",
)

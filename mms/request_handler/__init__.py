"""PUBLIC: 0.4's request handlers."""

from mms.lazy import lazily

__getattr__ = lazily(__name__, ("flask_handler", "request_handler"))

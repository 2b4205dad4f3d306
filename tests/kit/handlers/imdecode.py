"""A 1.x handler that imports mxnet by itself."""

import base64

from mxnet.image import imdecode


def handle(data, context):
    if data is None:
        return None
    return [base64.b64encode(imdecode(bytes(row["body"])).asnumpy().tobytes()) for row in data]

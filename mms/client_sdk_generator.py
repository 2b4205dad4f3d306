"""PUBLIC: 0.4's generator of clients, in whose place stands ``--gen-api``."""

from mms.lazy import retired

ClientSDKGenerator = retired(
    "mms.client_sdk_generator.ClientSDKGenerator",
    "start mxnet-model-server with --gen-api LANGUAGE, or read GET /openapi.json",
)

"""PUBLIC: 1.x's worker process, which the server starts by itself."""

from mms.lazy import retired

MXNetModelServiceWorker = retired(
    "mms.model_service_worker.MXNetModelServiceWorker",
    "mxnet-model-server starts its workers itself",
)

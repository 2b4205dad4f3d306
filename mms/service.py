"""PUBLIC: the exception that 1.x handlers raise, and the object that wrapped a handler in 1.x."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mms.context import Context, RequestProcessor
from mms.metrics.metrics_store import MetricsStore
from mms.protocol.otf_message_handler import create_predict_response

PREDICTION_METRIC = "PredictionTime"
logger = logging.getLogger(__name__)


class PredictionException(Exception):
    """Raise from any stage of a service to choose the answer's status and message.

    Attributes:
        message: Sent to the client as it is.
        error_code: HTTP status of a final answer, from 200.
    """

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


class Service:
    """A handler with its context, as the worker of 1.x called it.

    For tests of handlers; workers of this server have a way of their own.

    Args:
        model_name: Name that clients use.
        model_dir: Folder of the unpacked archive.
        manifest: The archive's MANIFEST.json as a dict; None if it has none.
        entry_point: The handler, ``handle(data, context)``.
        gpu: Number of the GPU to run on; None is the CPU.
        batch_size: Maximum number of requests in a batch.
    """

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any] | None,
        entry_point: Callable[[Any, Context], Any],
        gpu: int | None,
        batch_size: int,
    ) -> None:
        self._context = Context(model_name, model_dir, manifest, batch_size, gpu)
        self._entry_point = entry_point

    @property
    def context(self) -> Context:
        """The context that every call of the handler gets."""
        return self._context

    @staticmethod
    def retrieve_data_for_inference(
        batch: Sequence[dict[str, Any]] | None,
    ) -> tuple[list[RequestProcessor], list[dict[str, Any]], dict[int, str]]:
        """Return headers, inputs and ids of the requests of a batch.

        Args:
            batch: For each request ``requestId`` (bytes), ``parameters`` (each with ``name``,
                ``contentType`` and ``value``) and, unless there are none, ``headers`` (each with
                ``name`` and ``value`` in bytes).

        Raises:
            ValueError: There is no batch.
        """
        if batch is None:
            raise ValueError("Received invalid inputs")
        processors, inputs, ids = [], [], {}
        for index, request in enumerate(batch):
            parameters = request["parameters"]
            headers: dict[str, Any] = {
                parameter["name"]: {"content-type": parameter["contentType"]}
                for parameter in parameters
            }
            for header in request.get("headers") or ():
                headers[header["name"].decode()] = header["value"].decode()
            processors.append(RequestProcessor(headers))
            inputs.append({parameter["name"]: parameter["value"] for parameter in parameters})
            ids[index] = request["requestId"].decode()
        return processors, inputs, ids

    def predict(self, batch: Sequence[dict[str, Any]] | None) -> bytearray:
        """Run the handler once for a batch, and return its answers as a message of 1.x.

        Args:
            batch: As for `retrieve_data_for_inference`.
        """
        processors, inputs, ids = self.retrieve_data_for_inference(batch)
        context = self._context
        context.request_ids = ids
        context.request_processor = processors
        metrics = context.metrics = MetricsStore(ids, context.model_name)
        started = time.perf_counter()
        try:
            answers = self._entry_point(inputs, context)
        except PredictionException as error:
            logger.exception("Prediction error")
            return create_predict_response(None, ids, error.message, error.error_code)
        except MemoryError:
            logger.exception("System out of memory")
            return create_predict_response(None, ids, "Out of resources", 507)
        except Exception:
            logger.exception("Invoking custom service failed.")
            return create_predict_response(None, ids, "Prediction failed", 503)
        if not isinstance(answers, list):
            return create_predict_response(None, ids, "Invalid model predict output", 503)
        if len(answers) != len(inputs):
            return create_predict_response(None, ids, "number of batch response mismatched", 503)
        metrics.add_time(PREDICTION_METRIC, round((time.perf_counter() - started) * 1000, 2))
        return create_predict_response(answers, ids, "Prediction success", 200, context)


def emit_metrics(metrics: Iterable[Any] | None) -> None:
    """Log each metric on a line of its own, as the worker of 1.x did after each batch."""
    for metric in metrics or ():
        logger.info("[METRICS]%s", metric)

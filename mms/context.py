"""PUBLIC: the context of a 1.x handler (its model and requests), under MMS 1.x's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mms.version import __version__


class RequestProcessor:
    """One request's headers, and the status and headers of its answer.

    Args:
        request_header: Headers by name as the client sent them. Each form field and the body
            also has an entry ``{"content-type": ...}`` under its own name.
    """

    def __init__(self, request_header: Mapping[str, Any]) -> None:
        self._status_code = 200
        self._reason_phrase: str | None = None
        self._response_header: dict[str, str] = {}
        self._request_header = request_header
        self._by_lower_name = {name.lower(): value for name, value in request_header.items()}

    def get_request_property(self, key: str) -> Any:
        """Return a header of the request, or None if it is absent; names ignore case."""
        value = self._request_header.get(key)
        return self._by_lower_name.get(key.lower()) if value is None else value

    def get_request_properties(self) -> Mapping[str, Any]:
        """Return all headers of the request."""
        return self._request_header

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Set the status of the answer."""
        self._status_code = code
        self._reason_phrase = reason_phrase

    def get_response_status_code(self) -> int:
        """Return the status of the answer; 200 unless it was set."""
        return self._status_code

    def get_response_status_phrase(self) -> str | None:
        """Return the reason phrase, or None if it was not set."""
        return self._reason_phrase

    def add_response_property(self, key: str, value: str) -> None:
        """Set a header of the answer."""
        self._response_header[key] = value

    def get_response_header(self, key: str | None = None) -> Any:
        """Return all headers set for the answer, or the one named `key`."""
        return self._response_header if key is None else self._response_header.get(key)

    def get_response_headers(self) -> dict[str, str]:
        """Return all headers set for the answer."""
        return self._response_header


class RequestProcessors(list[RequestProcessor]):
    """The processors of a batch's requests.

    A list since 1.1; in the first releases of 1.x it was one object, whose methods handlers of that
    time call: they reach the first request.
    """

    def __getattr__(self, name: str) -> Any:
        if not self:
            raise AttributeError(f"the batch has no request, so there is no {name!r}")
        return getattr(self[0], name)


class Context:
    """The model and the requests that a handler runs. `idx` is a request's index in the batch.

    Args:
        model_name: Name clients use.
        model_dir: Folder of the unpacked archive.
        manifest: The archive's MANIFEST.json as a dict; None if it has none.
        batch_size: Maximum number of requests in a batch.
        gpu: Number of the GPU to run on; None is the CPU.
        mms_version: The server's version.

    Attributes:
        request_ids: Id of each request by its index in the batch.
        metrics: A `MetricsStore` to report metrics to.
    """

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any] | None,
        batch_size: int,
        gpu: int | None,
        mms_version: str = __version__,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self._system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": mms_version,
        }
        self.request_ids: dict[int, str] | None = None
        self._request_processor: RequestProcessors | None = None
        self.metrics: Any = None

    @property
    def system_properties(self) -> dict[str, Any]:
        """``model_dir``, ``gpu_id``, ``batch_size``, ``server_name`` and ``server_version``."""
        return self._system_properties

    @property
    def request_processor(self) -> RequestProcessors | None:
        """A `RequestProcessor` for each request of the batch; None while the model is loaded."""
        return self._request_processor

    @request_processor.setter
    def request_processor(
        self, processors: RequestProcessor | Iterable[RequestProcessor] | None
    ) -> None:
        if isinstance(processors, RequestProcessor):
            processors = [processors]
        self._request_processor = None if processors is None else RequestProcessors(processors)

    def get_request_id(self, idx: int = 0) -> str | None:
        """Return the id of a request."""
        return self.request_ids.get(idx) if self.request_ids else None

    def get_request_header(self, idx: int, key: str) -> Any:
        """Return a header of a request, or None if it is absent."""
        return self._processor(idx).get_request_property(key)

    def get_all_request_header(self, idx: int) -> Mapping[str, Any]:
        """Return all headers of a request."""
        return self._processor(idx).get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the content type of an answer."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """Return the content type set for an answer, or None if it was not set."""
        headers = self.get_response_headers(idx)
        return next((v for name, v in headers.items() if name.lower() == "content-type"), None)

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of an answer."""
        self._processor(idx).add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """Return the headers set for an answer."""
        return self._processor(idx).get_response_headers()

    def set_http_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of one request's answer.

        Args:
            code: HTTP status.
            phrase: Reason phrase; the standard one by default.
            idx: Index of the request in the batch.
        """
        if self.request_processor is not None:
            self._processor(idx).report_status(code, phrase)

    def set_all_http_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status of every request of the batch."""
        for processor in self.request_processor or ():
            processor.report_status(code, phrase)

    def get_http_response_status(self, idx: int) -> tuple[int, str | None]:
        """Return status and reason phrase of one request's answer."""
        processor = self._processor(idx)
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    # The names that later releases of 1.x used.
    set_response_status = set_http_response_status
    set_all_response_status = set_all_http_response_status
    get_response_status = get_http_response_status

    def _processor(self, idx: int) -> RequestProcessor:
        if self.request_processor is None:
            raise ValueError("no request is available while the model is being loaded")
        return self.request_processor[idx]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

"""Run batches through a handler of MMS 1.x: ``handle(data, context)`` with a list of requests.

A handler sees the whole batch at once, as in 1.x. If it raises for a batch, or returns the wrong
number of answers, each request is run again alone, so that only the culprit fails.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mms import log
from mms.archive.manifest import MAR_MANIFEST_NAME
from mms.context import Context, RequestProcessor
from mms.engines.imports import restore_numpy_names
from mms.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    InvalidServiceOutput,
    MMSError,
    ModelLoadFailed,
    OutOfMemory,
    RejectedByService,
)
from mms.metrics.metrics_store import MetricsStore
from mms.quoting import quoted
from mms.wire.frames import MAX_ANSWERS_BYTES
from mms.wire.messages import Answer, Dialect, LoadSpec, Request, RequestLimits, Result, Stage
from mms.worker.confine import limit_hint
from mms.worker.content import unpacked
from mms.worker.failure import from_exception, log_failure
from mms.worker.form import form_parts, in_utf8, is_form, parse_media_type
from mms.worker.headers import allows_body, checked_headers, checked_reason, checked_status
from mms.worker.json_text import read_json
from mms.worker.request import DEFAULT_LIMITS
from mms.worker.response import encode_json, within
from mms.worker.v2 import InferRequest, decode_request, encode_response, header_length
from mms.worker.v2_model import HANDLER_INPUT, HANDLER_OUTPUTS, handler_inputs, outputs_of

logger = logging.getLogger("mms.worker")

EntryPoint = Callable[[Any, Context], Any]

#: The default function if the manifest names only a module.
_DEFAULT_FUNCTION = "handle"
#: Packages whose threads do not survive a fork.
_UNFORKABLE = ("torch", "tensorflow", "jax", "onnxruntime")


@dataclass(slots=True)
class _Job:
    """One request on its way through the handler; setting `answer` ends it.

    `asked` is the decoded request if it came in the Open Inference Protocol V2.
    """

    request: Request
    data: dict[str, Any] = field(default_factory=dict)
    processor: RequestProcessor = field(default_factory=lambda: RequestProcessor({}))
    asked: InferRequest | None = None
    answer: Answer | MMSError | None = None


class HandlerRunner:
    """Runs one handler.

    Args:
        handle: The handler.
        context: The context it was initialized with; every call passes the same one.
        spec: The LoadSpec of this process.
        threads_before: Threads that the process had before the handler was loaded.
    """

    alone_reason = ""
    takes_tensors = False
    gives_tensors = False

    def __init__(
        self, handle: EntryPoint, context: Context, spec: LoadSpec, threads_before: int
    ) -> None:
        self._handle = handle
        self._threads_before = threads_before
        self._context = context
        self._spec = spec
        # A handler for the scripts of another server hands them the bytes of the request.
        takes_bytes = getattr(getattr(handle, "__self__", None), "takes_bytes", False)
        self._decodes = spec.decode_input_request and not takes_bytes
        self.batch_size = spec.batch_size
        self._reports: list[Any] = []
        self._seconds = [0.0] * len(Stage)
        self._room_bytes = MAX_ANSWERS_BYTES

    @property
    def can_fork(self) -> bool:
        """Whether workers may be forked now: a fork would lose threads of the handler."""
        if any(name in sys.modules for name in _UNFORKABLE):
            return False
        # MXNet stops its own threads around a fork; other threads of the handler are unknown.
        return "mxnet" in sys.modules or _native_threads() <= self._threads_before

    def try_joining(self) -> None:
        """Do nothing: handlers always receive whole batches."""

    def take_metrics(self) -> list[Any]:
        """Return the metrics reported since the last call, in the form of `ReportedMetrics`."""
        reports, self._reports = self._reports, []
        return reports

    def run(self, requests: Sequence[Request]) -> Result:
        """Answer each request, in order."""
        started = time.perf_counter()
        self._seconds = [0.0] * len(Stage)
        self._room_bytes = MAX_ANSWERS_BYTES
        jobs = [_Job(request) for request in requests]
        for job in jobs:
            log.request_id.set(job.request.meta.request_id)
            try:
                self._decode(job)
            except MMSError as error:
                job.answer = error
                log_failure(error)
        self._seconds[Stage.DECODE] = time.perf_counter() - started
        alive = [job for job in jobs if job.answer is None]
        for start in range(0, len(alive), max(self.batch_size, 1)):
            batch = alive[start : start + max(self.batch_size, 1)]
            waited_ms = (time.perf_counter() - started) * 1000
            for job in batch:
                if waited_ms > job.request.ms_left:
                    job.answer = DeadlineExceeded("the request waited past its deadline")
            batch = [job for job in batch if job.answer is None]
            if batch:
                self._run_batch(batch)
        log.request_id.set("")
        answers = [job.answer for job in jobs if job.answer is not None]
        decode, preprocess, inference, postprocess, encode = self._seconds
        return Result(answers, (decode, preprocess, inference, postprocess, encode))

    def _decode(self, job: _Job) -> None:
        request, decodes = job.request, self._decodes
        limits = self._spec.limits
        request.body = unpacked(request, limits)
        if request.meta.dialect is not Dialect.OIP:
            job.data, job.processor = decode_parameters(request, decodes, limits)
            return
        job.asked = decode_request(request.body, header_length(request.meta), HANDLER_INPUT, limits)
        job.data = handler_inputs(
            job.asked, lambda name, type_, value: _decoded(name, type_, value, decodes, limits)
        )
        job.processor = RequestProcessor(request.meta.headers)

    def _encode(self, job: _Job, value: Any) -> None:
        if job.asked is None:
            answer = encode_value(value, job.processor)
        else:
            answer = self._encode_v2(job.asked, value, job.processor)
        # All answers of a batch share one frame; each one alone fits.
        job.answer = within(answer, min(self._spec.max_response_bytes, self._room_bytes))
        self._room_bytes -= len(answer.body)

    def _encode_v2(self, asked: InferRequest, value: Any, processor: RequestProcessor) -> Answer:
        """Return an answer in V2; a status and headers set by the handler stay.

        Raises:
            RejectedByService: The status is an error status; V2 errors have a format of their own.
        """
        frame = encode_value(None, processor)
        if frame.status >= 400:
            text = bytes(encode_value(value, processor).body).decode(errors="replace")
            raise RejectedByService(text, frame.status)
        outputs = outputs_of(
            value, HANDLER_OUTPUTS, lambda: bytes(encode_value(value, processor).body)
        )
        answer = encode_response(self._spec.model_name, self._spec.version, asked, outputs)
        if not allows_body(frame.status):
            return replace(frame, body=b"")
        headers = {**frame.headers, **answer.headers}
        return replace(answer, status=frame.status, headers=headers, reason=frame.reason)

    def _run_batch(self, batch: list[_Job]) -> None:
        """Run the handler once for a batch; if that fails, once for each of its requests."""
        ids = [job.request.meta.request_id for job in batch]
        log.request_id.set(",".join(ids))
        started = time.perf_counter()
        try:
            values = self._call(batch, ids)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code raises anything
            self._seconds[Stage.INFERENCE] += time.perf_counter() - started
            failure = self._failure(error)
            if len(batch) == 1:
                self._take_report()
                log_failure(failure)
                batch[0].answer = failure
                return
            logger.warning(
                "a batch of %d failed as one (%s); its requests run one by one", len(batch), failure
            )
            for job in batch:
                job.processor = RequestProcessor(job.processor.get_request_properties())
                self._run_batch([job])
            return
        self._take_report()
        encoding = time.perf_counter()
        self._seconds[Stage.INFERENCE] += encoding - started
        for job, value in zip(batch, values, strict=True):
            try:
                self._encode(job, value)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - values of user classes
                failure = from_exception(error, "encode", self._spec.folder)
                log_failure(failure)
                job.answer = failure
        self._seconds[Stage.ENCODE] += time.perf_counter() - encoding

    def _call(self, batch: list[_Job], ids: list[str]) -> list[Any]:
        context = self._context
        context.request_ids = dict(enumerate(ids))
        context.request_processor = [job.processor for job in batch]
        context.metrics = MetricsStore(context.request_ids, self._spec.model_name)
        values = self._handle([job.data for job in batch], context)
        if not isinstance(values, list):
            raise InvalidServiceOutput(
                "Invalid model predict output: the handler must answer a list with one entry per "
                f"request, it answered a {type(values).__name__}"
            )
        if len(values) != len(batch):
            raise InvalidServiceOutput(
                f"number of batch response mismatched: {len(batch)} requests, {len(values)} answers"
            )
        return values

    def _take_report(self) -> None:
        store = self._context.metrics
        # A handler may have replaced it with anything.
        if isinstance(store, MetricsStore):
            self._reports += store.report()

    def _failure(self, error: BaseException) -> MMSError:
        """Return the error to answer with, in 1.x's words."""
        failure = from_exception(error, "inference", self._spec.folder)
        if isinstance(failure, OutOfMemory):
            return OutOfMemory(f"Out of resources{limit_hint()}", failure.detail)
        if type(failure) is InferenceFailed:
            return InferenceFailed("Prediction failed", failure.detail)
        return failure


def load_handler(spec: LoadSpec) -> tuple[HandlerRunner, str]:
    """Load a 1.x handler and initialize it.

    Returns:
        The runner of its batches, and its name.

    Raises:
        MMSError: The handler is missing, or not a handler.
        Exception: Any exception of the handler itself.
    """
    threads = _native_threads()
    # For handlers that import mxnet themselves.
    restore_numpy_names()
    folder = Path(spec.folder)
    # 1.x ran its workers in that folder, and handlers open their files by bare names.
    os.chdir(folder)
    sys.path.insert(0, spec.folder)
    path = folder / MAR_MANIFEST_NAME
    manifest = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else None
    context = Context(spec.model_name, spec.folder, manifest, spec.batch_size, spec.gpu)
    context.metrics = MetricsStore(None, spec.model_name)
    module, function = _import(spec.handler)
    target = getattr(module, function or _DEFAULT_FUNCTION, None)
    if target is None:
        target = _only_class(module, function or _DEFAULT_FUNCTION)
    if inspect.isclass(target):
        handle = _initialized(target, context)
        return HandlerRunner(handle, context, spec, threads), target.__name__
    if not callable(target):
        raise ModelLoadFailed(f"{spec.handler}: {function!r} is not a function")
    # In 1.x this means that there is no request, only a model to load.
    target(None, context)
    name = f"{module.__name__}:{getattr(target, '__name__', function)}"
    return HandlerRunner(target, context, spec, threads), name


def _native_threads() -> int:
    """Return the number of this process's threads, including those unknown to Python."""
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0


def _import(handler: str) -> tuple[ModuleType, str]:
    """Import a handler's module; return it and the name after the colon."""
    text, _, function = handler.partition(":")
    name = text.removesuffix(".py").split("/")[-1]
    try:
        return importlib.import_module(name), function
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModelLoadFailed(
            f"the handler {handler!r} is neither in the archive ({name}.py) nor installed"
        ) from None


def _only_class(module: ModuleType, function: str) -> type[Any]:
    classes = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__
    ]
    if len(classes) > 1:
        # Helper classes beside the handler: 1.x refused these needlessly.
        classes = [cls for cls in classes if hasattr(cls, "handle")]
    if len(classes) == 1:
        return classes[0]
    names = ", ".join(cls.__name__ for cls in classes) or "none"
    raise ModelLoadFailed(
        f"{module.__name__} has neither a function {function!r} nor just one class with a method "
        f"handle(data, context); its classes: {names}"
    )


def _initialized(cls: type[Any], context: Context) -> EntryPoint:
    service = cls()
    handle: EntryPoint | None = getattr(service, "handle", None)
    if handle is None:
        raise ModelLoadFailed(f"{cls.__name__} has no method handle(data, context)")
    initialize = getattr(service, "initialize", None)
    if initialize is not None:
        initialize(context)
    return handle


def decode_parameters(
    request: Request, decodes: bool, limits: RequestLimits = DEFAULT_LIMITS
) -> tuple[dict[str, Any], RequestProcessor]:
    """Return a request as a handler receives it: values by name, and its headers.

    A form yields its fields by name, any other body its bytes as ``body``. Values are bytearrays,
    except for JSON and text, which are decoded.

    Args:
        request: The request.
        decodes: Whether JSON and text are decoded.
        limits: Maximum numbers of fields and elements.

    Raises:
        InvalidRequest: The body is malformed.
        UnsupportedMedia: A text to decode has an unknown charset.
        PayloadTooLarge: The body has more fields or elements than the limits allow.
    """
    meta = request.meta
    data: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    # 1.x did not pass on query parameters of /predictions.
    if meta.dialect is not Dialect.PLAIN:
        for name, text in meta.query:
            data[name] = bytearray(text, "utf-8", "surrogateescape")
            headers[name] = {"content-type": ""}
    media_type, parameters = parse_media_type(meta.content_type)
    if is_form(media_type):
        for part in form_parts(request.body, media_type, parameters, limits):
            data[part.name] = _decoded(
                part.name, part.media_type, part.value, decodes, limits, part.charset
            )
            headers[part.name] = {"content-type": part.media_type}
    else:
        charset = parameters.get("charset", "")
        data["body"] = _decoded("body", media_type, request.body, decodes, limits, charset)
        headers["body"] = {"content-type": media_type}
    return data, RequestProcessor({**headers, **meta.headers})


def _decoded(
    name: str,
    media_type: str,
    value: bytes | memoryview,
    decodes: bool,
    limits: RequestLimits,
    charset: str = "",
) -> Any:
    if decodes and media_type == "application/json":
        what = quoted(name)
        return read_json(in_utf8(value, charset, what), what, limits.max_json_elements)
    if decodes and media_type.startswith("text"):
        text = in_utf8(value, charset, quoted(name))
        try:
            return str(text, "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{quoted(name)} is not UTF-8 text (byte {error.start})") from None
    return bytearray(value)


def encode_value(value: Any, processor: RequestProcessor) -> Answer:
    """Return the answer for one entry of a handler's list.

    Raises:
        InvalidServiceOutput: The value, its status or its headers cannot be sent.
    """
    headers, content_type_set = checked_headers(processor.get_response_headers())
    status = checked_status(processor.get_response_status_code())
    reason = checked_reason(processor.get_response_status_phrase())
    body: bytes
    if isinstance(value, str):
        body, content_type = value.encode(), "text/plain; charset=utf-8"
    elif isinstance(value, (bytes, bytearray)):
        body, content_type = bytes(value), "application/octet-stream"
    else:
        body, content_type = encode_json(value), "application/json"
    if not allows_body(status):
        body = b""
    return Answer(body, content_type_set or content_type, status, headers, reason)

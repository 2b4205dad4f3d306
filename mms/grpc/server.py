"""The gRPC service: its calls become requests of the same kind as those over HTTP.

Knows nothing of HTTP; what it shares with it lies in `mms.serving`. All of it belongs to the
server's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

from mms import log
from mms.config.settings import ServerSettings
from mms.errors import BufferFull, Draining, Forbidden, MMSError, OutOfMemory, Unavailable
from mms.grpc import inference_pb2 as pb
from mms.grpc import inference_pb2_grpc
from mms.grpc.codec import decode_answer, encode_request
from mms.grpc.errors import code_of, metadata_of, status_of, text_of
from mms.metrics.exporter import ServableMetrics, ServerMetrics
from mms.protocol import V2_HEADER_LENGTH, V2_ROUTE, Buffer, RequestMeta
from mms.serving import v2
from mms.serving.budget import Budget, Hold
from mms.serving.registry import Registry
from mms.serving.request_ids import RequestIds
from mms.serving.servable import Servable
from mms.serving.shadow import Shadows

logger = logging.getLogger("mms.grpc")
access_logger = logging.getLogger("mms.access")

_ID_KEY = "x-request-id"
_PRIORITY_KEY = "x-request-priority"
_RETRY_WHEN_DRAINING_S = 5.0
_CLIENT_LEFT, _INTERNAL_ERROR, _DEADLINE_EXCEEDED = 499, 500, 504
#: A client cancels its call when its deadline passes, and its clock has started before ours.
_CLOCKS_APART_S = 0.1
#: Larger requests are taken apart in a thread: 10 ms of conversion would hold up everybody else.
_LARGE_BYTES = 1 << 20

Work = Callable[["Call"], Awaitable[Any]]


class State(Protocol):
    """What the service must know of the server; `mms.http.context.Context` is one."""

    registry: Registry
    settings: ServerSettings
    metrics: ServerMetrics
    shadows: Shadows
    budget: Budget
    is_started: bool
    is_draining: bool

    @property
    def is_ready(self) -> bool:
        """Whether every start-up model can serve now."""


class Call:
    """One call on its way.

    Attributes:
        request: Its message.
        context: gRPC's own.
        metadata: Its metadata, without what is binary.
        id: Its request id.
        metrics: Counters of the model it asks, once that is known.
    """

    def __init__(self, request: Any, context: Any, ids: RequestIds) -> None:
        self.request = request
        self.context = context
        self.metadata: dict[str, str] = {
            key: value
            for key, value in context.invocation_metadata() or ()
            if isinstance(value, str)
        }
        self.id = ids.of(self.metadata.get(_ID_KEY), getattr(request, "id", None))
        self.metrics: ServableMetrics | None = None


class InferenceService:
    """Answers the calls of GRPCInferenceService.

    Args:
        state: The server.
        debug_errors: Whether clients may be told what a service raised.
    """

    def __init__(self, state: State, debug_errors: bool) -> None:
        self._state = state
        self._debug_errors = debug_errors
        self._ids = RequestIds()

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Whether the server answers."""

        async def work(_: Call) -> Any:
            return pb.ServerLiveResponse(live=True)

        return await self._answer("grpc_server_live", request, context, work)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether every start-up model can serve now."""

        async def work(_: Call) -> Any:
            return pb.ServerReadyResponse(ready=self._state.is_ready)

        return await self._answer("grpc_server_ready", request, context, work)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name, version and extensions of the server."""

        async def work(_: Call) -> Any:
            return pb.ServerMetadataResponse(**v2.server_metadata(self._state.settings))

        return await self._answer("grpc_server_metadata", request, context, work)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether a model can serve now."""

        async def work(_: Call) -> Any:
            return pb.ModelReadyResponse(ready=self._version(request).is_ready)

        return await self._answer("grpc_model_ready", request, context, work)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Inputs and outputs of a model."""

        async def work(_: Call) -> Any:
            servable = self._version(request)
            model = self._state.registry.model(servable.name)
            return pb.ModelMetadataResponse(**v2.model_metadata(model, servable))

        return await self._answer("grpc_model_metadata", request, context, work)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Ask a model."""
        return await self._answer("grpc_infer", request, context, self._infer)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        """Refused: models are managed over HTTP."""
        return await self._answer("grpc_repository", request, context, _refuse)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Refused: models are managed over HTTP."""
        return await self._answer("grpc_repository", request, context, _refuse)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Refused: models are managed over HTTP."""
        return await self._answer("grpc_repository", request, context, _refuse)

    async def _answer(self, route: str, request: Any, context: Any, work: Work) -> Any:
        """Do a call's work; it is measured, and its errors become status codes."""
        started = time.monotonic()
        call = Call(request, context, self._ids)
        log.request_id.set(call.id)
        context.set_trailing_metadata(((_ID_KEY, call.id),))
        status = _CLIENT_LEFT
        try:
            message = await work(call)
            status = 200
            return message
        except MMSError as error:
            status = status_of(error)
            _log_error(error, status)
            if isinstance(error, BufferFull):
                (call.metrics or self._state.metrics).rejected[error.code] += 1
            await self._abort(call, error)
        except MemoryError:
            refusal = OutOfMemory("the server is out of memory; try again later")
            status = status_of(refusal)
            _log_error(refusal, status)
            await self._abort(call, refusal)
        except asyncio.CancelledError:
            left_s = context.time_remaining()
            if left_s is not None and left_s < _CLOCKS_APART_S:
                status = _DEADLINE_EXCEEDED
            raise
        except Exception:
            status = _INTERNAL_ERROR
            logger.exception("a bug: %s", route)
            await context.abort(grpc.StatusCode.INTERNAL, "an internal error; see the server's log")
        finally:
            self._note(call, route, status, time.monotonic() - started)

    async def _abort(self, call: Call, error: MMSError) -> None:
        metadata = ((_ID_KEY, call.id), *metadata_of(error))
        await call.context.abort(code_of(error), text_of(error, self._debug_errors), metadata)

    def _note(self, call: Call, route: str, status: int, seconds: float) -> None:
        """Count a call that has ended, and log it if all are to be logged."""
        if self._state.settings.access_log:
            peer, duration_ms = call.context.peer(), seconds * 1000
            access_logger.info('%s "gRPC %s" %d %.1fms', peer, route, status, duration_ms)
        if call.metrics is None:
            self._state.metrics.requests[route, status] += 1
            return
        call.metrics.requests[route, status] += 1
        call.metrics.duration.observe(seconds)

    def _version(self, request: Any) -> Servable:
        model = self._state.registry.find(request.name, self._state.is_started)
        return model.version(request.version or model.default)

    async def _infer(self, call: Call) -> Any:
        hold = Hold(self._state.budget)
        # Called when the answer has been sent, or will never be.
        call.context.add_done_callback(lambda _: hold.release())
        try:
            return await self._infer_within(hold, call)
        except BaseException:
            hold.release()
            raise

    async def _infer_within(self, hold: Hold, call: Call) -> Any:
        state = self._state
        servable, copy_to = self._choose(call)
        call.metrics = servable.metrics
        if state.is_draining:
            raise Draining("the server is stopping", _RETRY_WHEN_DRAINING_S)
        # The message as gRPC has it, and as workers get it.
        hold.grow(2 * call.request.ByteSize())
        chunks, size = await self._encode(call.request)
        if servable.is_gone:
            # Replaced or unregistered while the request was taken apart: nobody need notice.
            servable, copy_to = self._choose(call)
            call.metrics = servable.metrics
        meta = _meta(call, servable, len(chunks[0])).encode()
        is_urgent = call.metadata.get(_PRIORITY_KEY, "").lower() == "high"
        asking = servable.infer(meta, chunks, size, call.context.time_remaining(), is_urgent)
        if copy_to is not None and copy_to is not servable:
            answer = await state.shadows.answer(asking, copy_to, meta, chunks, size)
        else:
            answer = await asking
        hold.replace(len(answer.body))
        return decode_answer(answer)

    def _choose(self, call: Call) -> tuple[Servable, Servable | None]:
        """Return the version that answers a call, and the one that gets a copy of it, if any."""
        request = call.request
        model = self._state.registry.find(request.model_name, self._state.is_started)
        if request.model_version:
            return model.version(request.model_version), None
        header = model.traffic.sticky_header.lower()
        sticky = call.metadata.get(header) if header else None
        return model.choose(sticky), model.versions.get(model.traffic.shadow)

    async def _encode(self, request: Any) -> tuple[list[Buffer], int]:
        limit = self._state.settings.max_request_bytes
        if request.ByteSize() > _LARGE_BYTES and not request.raw_input_contents:
            return await asyncio.to_thread(encode_request, request, limit)
        return encode_request(request, limit)


class GrpcServer:
    """The service on a port.

    Args:
        state: The server.
        debug_errors: Whether clients may be told what a service raised.
    """

    def __init__(self, state: State, debug_errors: bool) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", state.settings.max_request_bytes),
                # What the model may answer is limited already.
                ("grpc.max_send_message_length", -1),
                # By default, a second server takes half of the calls without a word.
                ("grpc.so_reuseport", 0),
            ]
        )
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceService(state, debug_errors), self._server
        )

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which matters for 0.

        Raises:
            OSError: The address cannot be listened on.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await self._server.start()
        return int(bound)

    async def stop(self, timeout_s: float) -> None:
        """Accept no more calls, and return those accepted that long to finish."""
        await self._server.stop(timeout_s)


async def _refuse(_: Call) -> Any:
    raise Forbidden(
        "models are loaded and unloaded over HTTP, on the management port: "
        "POST /v2/repository/models/NAME/load"
    )


def _meta(call: Call, servable: Servable, json_length: int) -> RequestMeta:
    headers = {V2_HEADER_LENGTH: str(json_length)}
    if servable.archive.manifest.handler:
        # 1.x handlers see all headers; others do not pay for them.
        headers = {**call.metadata, **headers}
    return RequestMeta(call.id, V2_ROUTE, "application/octet-stream", "", "", headers)


def _log_error(error: MMSError, status: int) -> None:
    # Of failing services the worker has logged more; of overload there would be thousands.
    is_ours = status >= 500 and not isinstance(error, Unavailable)
    logger.log(logging.WARNING if is_ours else logging.DEBUG, "answered %d: %s", status, error)

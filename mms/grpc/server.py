"""The gRPC service, which passes its calls to the data plane, as HTTP requests are.

Independent of HTTP. Runs on the server's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from mms.config.settings import ServerSettings
from mms.errors import Forbidden, MMSError, OutOfMemory
from mms.grpc import inference_pb2 as pb
from mms.grpc import inference_pb2_grpc
from mms.grpc.codec import decode_answer, encode_request
from mms.grpc.errors import code_of, metadata_of, status_of, text_of
from mms.serving import oip
from mms.serving.budget import Budget, Hold
from mms.serving.dataplane import CLIENT_LEFT, Call, DataPlane
from mms.wire.frames import Buffer
from mms.wire.messages import V2_HEADER_LENGTH, Dialect, RequestMeta

logger = logging.getLogger("mms.grpc")

_ID_KEY = "x-request-id"
_PRIORITY_KEY = "x-request-priority"
_INTERNAL_ERROR, _DEADLINE_EXCEEDED = 500, 504
#: A client cancels its call when its deadline passes, and its clock started before ours.
_CLOCKS_APART_S = 0.1
#: Larger requests are decoded in a thread: 10 ms of conversion would block all other requests.
_LARGE_BYTES = 1 << 20

Work = Callable[[], Awaitable[Any]]


class InferenceService:
    """Implements GRPCInferenceService.

    Args:
        dataplane: Handles the calls.
        settings: The server's.
        budget: The budget of buffered bytes.
        is_ready: Returns whether every start-up model can serve now.
        debug_errors: Whether responses may show a service's exception.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        settings: ServerSettings,
        budget: Budget,
        is_ready: Callable[[], bool],
        debug_errors: bool,
    ) -> None:
        self._dataplane = dataplane
        self._settings = settings
        self._budget = budget
        self._is_ready = is_ready
        self._debug_errors = debug_errors

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Report liveness of the server."""

        async def work() -> Any:
            return pb.ServerLiveResponse(live=True)

        return await self._answer("grpc_server_live", request, context, work)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Report readiness: whether every start-up model can serve now."""

        async def work() -> Any:
            return pb.ServerReadyResponse(ready=self._is_ready())

        return await self._answer("grpc_server_ready", request, context, work)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Return name, version and extensions of the server."""

        async def work() -> Any:
            return pb.ServerMetadataResponse(**oip.server_metadata(self._settings))

        return await self._answer("grpc_server_metadata", request, context, work)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Report whether a model can serve now."""

        async def work() -> Any:
            servable = self._dataplane.version(request.name, request.version or None)
            return pb.ModelReadyResponse(ready=servable.is_ready)

        return await self._answer("grpc_model_ready", request, context, work)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Return inputs and outputs of a model."""

        async def work() -> Any:
            model = self._dataplane.find(request.name)
            servable = model.version(request.version or model.default)
            return pb.ModelMetadataResponse(**oip.model_metadata(model, servable))

        return await self._answer("grpc_model_metadata", request, context, work)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Run a model."""
        metadata = _metadata(context)
        call = self._begin("grpc_infer", request, metadata)
        # Released once the response has been sent, or never will be.
        hold = Hold(self._budget)
        context.add_done_callback(lambda _: hold.release())

        async def work() -> Any:
            query = _Query(request, context, metadata, hold, self._settings.max_request_bytes)
            return decode_answer(await self._dataplane.predict(call, query))

        try:
            return await self._run(call, context, work)
        except BaseException:
            hold.release()
            raise

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        """Refuse the call: models are managed over HTTP."""
        return await self._answer("grpc_repository", request, context, _refuse)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Refuse the call: models are managed over HTTP."""
        return await self._answer("grpc_repository", request, context, _refuse)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Refuse the call: models are managed over HTTP."""
        return await self._answer("grpc_repository", request, context, _refuse)

    async def _answer(self, route: str, request: Any, context: Any, work: Work) -> Any:
        call = self._begin(route, request, _metadata(context))
        return await self._run(call, context, work)

    def _begin(self, route: str, request: Any, metadata: dict[str, str]) -> Call:
        return self._dataplane.begin(route, metadata.get(_ID_KEY), getattr(request, "id", None))

    async def _run(self, call: Call, context: Any, work: Work) -> Any:
        """Run a call's work, count the call, and map errors to status codes."""
        context.set_trailing_metadata(((_ID_KEY, call.id),))
        status = CLIENT_LEFT
        failure: MMSError | None = None
        try:
            message = await work()
            status = 200
            return message
        except MMSError as error:
            failure = error
        except MemoryError:
            failure = OutOfMemory("the server is out of memory; try again later")
        except asyncio.CancelledError:
            left_s = context.time_remaining()
            if left_s is not None and left_s < _CLOCKS_APART_S:
                status = _DEADLINE_EXCEEDED
            raise
        except Exception:
            status = _INTERNAL_ERROR
            logger.exception("a bug: %s", call.route)
            await context.abort(grpc.StatusCode.INTERNAL, "an internal error; see the server's log")
        finally:
            if failure is not None:
                status = status_of(failure)
            self._dataplane.end(call, status, failure)
            if self._dataplane.logs_access:
                self._dataplane.log_access(call, status, context.peer(), f"gRPC {call.route}")
        if failure is not None:
            metadata = ((_ID_KEY, call.id), *metadata_of(failure))
            code, text = code_of(failure), text_of(failure, self._debug_errors)
            # Its traceback refers to this frame: see `Servable.infer`.
            failure = None
            await context.abort(code, text, metadata)


class _Query:
    """A prediction requested over gRPC (`dataplane.Query`)."""

    def __init__(
        self, request: Any, context: Any, metadata: dict[str, str], hold: Hold, max_bytes: int
    ) -> None:
        self._request = request
        self._context = context
        self._metadata = metadata
        self._max_bytes = max_bytes
        self._json_length = 0
        self.hold = hold
        self.model: str = request.model_name
        self.version: str | None = request.model_version or None
        self.is_urgent = metadata.get(_PRIORITY_KEY, "").lower() == "high"
        self.timeout_s: float | None = None

    def header(self, name: str) -> str | None:
        """Return the metadata value of a name."""
        return self._metadata.get(name.lower())

    async def read(self) -> tuple[list[Buffer], int]:
        """Return the message as workers get it."""
        request = self._request
        # Counted twice: as the message and as the body for the worker.
        self.hold.grow(2 * request.ByteSize())
        if request.ByteSize() > _LARGE_BYTES and not request.raw_input_contents:
            chunks, size = await asyncio.to_thread(encode_request, request, self._max_bytes)
        else:
            chunks, size = encode_request(request, self._max_bytes)
        self._json_length = len(chunks[0])
        self.timeout_s = self._context.time_remaining()
        return chunks, size

    def meta(self, id_: str, wants_headers: bool) -> RequestMeta:
        """Return the metadata of the request for the worker."""
        headers = {V2_HEADER_LENGTH: str(self._json_length)}
        if wants_headers:
            # Only for services that use them.
            headers = {**self._metadata, **headers}
        return RequestMeta(id_, Dialect.OIP, "application/octet-stream", "", "", headers)


class GrpcServer:
    """Serves an `InferenceService` on a port.

    Args:
        service: The service.
        max_request_bytes: Maximum length of a message.
    """

    def __init__(self, service: InferenceService, max_request_bytes: int) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_request_bytes),
                # Models' results are limited already.
                ("grpc.max_send_message_length", -1),
                # By default, a second server on the port silently takes half of the calls.
                ("grpc.so_reuseport", 0),
            ]
        )
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, self._server)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the actual port.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 picks a free one.

        Raises:
            OSError: The address is not available.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await self._server.start()
        return int(bound)

    async def stop(self, timeout_s: float) -> None:
        """Accept no more calls, and give those accepted `timeout_s` seconds to finish."""
        await self._server.stop(timeout_s)


async def _refuse() -> Any:
    raise Forbidden(
        "models are loaded and unloaded over HTTP, on the management port: "
        "POST /v2/repository/models/NAME/load"
    )


def _metadata(context: Any) -> dict[str, str]:
    """Return a call's metadata, without binary values."""
    sent = context.invocation_metadata() or ()
    return {key: value for key, value in sent if isinstance(value, str)}

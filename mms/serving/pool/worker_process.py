"""The server's view of one child process: its socket, its frames, its end.

A `WorkerProcess` is a single process, independent of queues and of the reason for its start. Its
owner receives its events through `WorkerEvents`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from mms.errors import DeadlineExceeded, MMSError, ProtocolError, WorkerDied
from mms.serving.pool.child import Child, ExitStatus, OutputReader, socket_pair
from mms.wire.codec import decode_control, decode_error, decode_ready, encode_control
from mms.wire.frames import Buffer, Frame, FrameDecoder, FrameType
from mms.wire.messages import LoadSpec, Ready

#: Maximum time from the fork of a loader to the READY frame, seconds; measured: 0.03.
FORK_TIMEOUT_S = 10.0
#: Time a process has to exit by itself after STOP, seconds.
STOP_TIMEOUT_S = 2.0
#: Polling interval and limit, in seconds, while the remaining output of a dead process is read. It
#: is at most a socket buffer; only a process that it left behind, and that keeps writing, could
#: take longer.
_DRAIN_POLL_S = 0.001
_DRAIN_LIMIT_S = 1.0


class WorkerEvents(Protocol):
    """Receives the events of a worker process."""

    def on_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """Handle a RESULT frame."""

    def on_metrics(self, report: Any) -> None:
        """Handle metrics reported by the service."""

    def on_alone(self, reason: str) -> None:
        """Handle the switch to running requests one at a time."""

    def on_exited(self, worker: WorkerProcess) -> None:
        """Handle the end of the process; its last output may still arrive, before `on_lost`."""

    def on_lost(self, worker: WorkerProcess) -> None:
        """Handle the loss of the process: it ended, closed its socket, or sent invalid data."""


class WorkerProcess(asyncio.Protocol):
    """One child process.

    Attributes:
        id: Unique over all pools.
        child: The process.
        output: Reads its output, together with that of all processes forked from its loader.
        ready: Its READY message; None before.
        batches: Number of batches it has finished.
        requests: Number of requests it has finished.
        ready_at: Monotonic time at which it became ready; 0 before.
        kill_reason: Why the server killed it, or "".
        gpu: Number of its GPU, None for the CPU.
        is_loader: Whether it is a loader, from which workers are forked.
        is_stopping: Whether it has been asked to exit.
    """

    def __init__(self, id_: int, child: Child, output: OutputReader, events: WorkerEvents) -> None:
        self.id = id_
        self.child = child
        self.output = output
        self.ready: Ready | None = None
        self.batches = 0
        self.requests = 0
        self.ready_at = 0.0
        self.kill_reason = ""
        self.is_loader = False
        self.is_stopping = False
        self.gpu: int | None = None
        self._events = events
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._sock: socket.socket | None = None
        # Created at the start: a forked process may send READY before it is awaited.
        self._reply: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        output.acquire()
        child.when_ended(output.release)
        child.when_ended(self._on_exit)

    @property
    def is_connected(self) -> bool:
        """Whether frames can still be sent and received."""
        return self._transport is not None

    async def connect(self, sock: socket.socket) -> None:
        """Attach the server's end of the process's socket."""
        sock.setblocking(False)
        # Kept to pass descriptors, which transports cannot do; never read here.
        self._sock = sock.dup()
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=sock)

    async def load(self, spec: LoadSpec, timeout_s: float) -> Ready:
        """Let the process load a model, and wait until it has.

        Raises:
            MMSError: The process reported an error, died, or took too long.
        """
        self.send([encode_control(FrameType.LOAD, spec)])
        return await self._await_ready(timeout_s, "load the model")

    async def await_forked(self) -> Ready:
        """Wait until a forked process is ready.

        Raises:
            MMSError: It died or took too long.
        """
        return await self._await_ready(FORK_TIMEOUT_S, "start after a fork")

    async def fork(self) -> tuple[int, socket.socket]:
        """Let this loader fork a worker.

        Returns:
            The worker's pid and the server's end of its socket.

        Raises:
            MMSError: The worker could not be forked, or the loader died or hangs.
        """
        ours, theirs = socket_pair()
        try:
            if self._sock is None or self._transport is None:
                raise WorkerDied("the loader has ended")
            self._reply = asyncio.get_running_loop().create_future()
            try:
                socket.send_fds(self._sock, [encode_control(FrameType.FORK)], [theirs.fileno()])
            except OSError as error:
                raise WorkerDied(f"the loader has ended: {error.strerror}") from None
            frame = await self._await_reply(FORK_TIMEOUT_S, "fork a worker")
            pid = decode_control(frame)
            if frame.type is not FrameType.FORKED or not isinstance(pid, int):
                raise ProtocolError(f"the loader answered {frame.type.name} to FORK")
            return pid, ours
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Write a frame; it is dropped if the process is lost."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(buffers)

    def kill(self, reason: str) -> None:
        """Kill the process; `on_lost` follows."""
        self.kill_reason = self.kill_reason or reason
        self.child.kill()

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> ExitStatus:
        """Ask the process to exit, kill it after a timeout, and wait for its end."""
        self.is_stopping = True
        self.send([encode_control(FrameType.STOP)])
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.child.wait(), timeout_s)
        self.kill("stopped")
        status = await self.child.wait()
        self.close()
        return status

    def close(self) -> None:
        """Release the socket."""
        if self._transport is not None:
            self._transport.abort()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is connected."""
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if not self.child.is_alive:
            self._on_exit()

    def data_received(self, data: bytes) -> None:
        """asyncio: the process wrote something."""
        try:
            frames = self._decoder.feed(data)
        except ProtocolError as error:
            self._lose(error)
            return
        for frame in frames:
            if frame.type is FrameType.RESULT:
                self._events.on_result(self, frame)
            elif frame.type is FrameType.METRICS:
                self._take(frame, self._events.on_metrics)
            elif frame.type is FrameType.ALONE:
                self._take(frame, lambda reason: self._events.on_alone(str(reason)))
            elif not self._reply.done():
                self._settle(frame)
            else:
                self._lose(ProtocolError(f"unexpected {frame.type.name} frame"))

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the process closed its end, or the server did because it has ended."""
        self._transport = None
        self._fail_reply(WorkerDied("the process died"))
        self._events.on_lost(self)

    def _on_exit(self) -> None:
        """Treat an ended process as lost: its socket stays open while a child of it has it."""
        if self._transport is not None:
            self._events.on_exited(self)
            self._lose_when_read(time.monotonic() + _DRAIN_LIMIT_S)

    def _lose_when_read(self, give_up_at: float) -> None:
        if self._transport is None:
            # Its end of file has arrived meanwhile, as it does if no child has the socket.
            return
        if self._has_unread() and time.monotonic() < give_up_at:
            loop = asyncio.get_running_loop()
            loop.call_later(_DRAIN_POLL_S, self._lose_when_read, give_up_at)
            return
        self._transport.abort()

    def _has_unread(self) -> bool:
        """Return whether the process has written data that the transport has not read yet."""
        try:
            return bool(self._sock and self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _lose(self, error: MMSError) -> None:
        """Give up on a process that sent invalid data: user code wrote to its socket."""
        self._fail_reply(error)
        self.kill(str(error))

    def _take(self, frame: Frame, event: Callable[[Any], None]) -> None:
        try:
            event(decode_control(frame))
        except ProtocolError as error:
            self._lose(error)

    def _settle(self, frame: Frame) -> None:
        if frame.type is not FrameType.FAILED:
            self._reply.set_result(frame)
            return
        try:
            self._reply.set_exception(decode_error(frame.payload))
        except ProtocolError as error:
            self._lose(error)

    def _fail_reply(self, error: MMSError) -> None:
        if not self._reply.done():
            self._reply.set_exception(error)
            # Possibly nothing awaits it any more; retrieved, so that asyncio does not warn.
            self._reply.exception()

    async def _await_reply(self, timeout_s: float, what: str) -> Frame:
        try:
            return await asyncio.wait_for(self._reply, timeout_s)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"the worker did not {what} within {timeout_s:g} seconds"
            ) from None

    async def _await_ready(self, timeout_s: float, what: str) -> Ready:
        frame = await self._await_reply(timeout_s, what)
        if frame.type is not FrameType.READY:
            raise ProtocolError(f"the worker answered {frame.type.name}, not READY")
        self.ready = decode_ready(frame)
        self.ready_at = time.monotonic()
        return self.ready

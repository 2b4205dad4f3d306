"""The worker's end of its socket: blocking reads and writes of whole frames."""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Sequence

import numpy as np

from mms.errors import ProtocolError
from mms.wire.frames import HEADER, SOCKET_BUFFER_BYTES, Buffer, Frame, read_header

#: Maximum number of buffers per sendmsg; the kernel's IOV_MAX is 1024.
_MAX_BUFFERS = 512

_open_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close the socket in a child forked by user code, so that it cannot hold or answer on it."""
    for channel in tuple(_open_channels):
        channel.close()


os.register_at_fork(after_in_child=_close_in_child)


class Channel:
    """Frames over a stream socket that this process owns and none of its children inherits."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._passed: list[int] = []
        _open_channels.add(self)
        # Descriptors passed at the start of a process, and received ones, would survive an exec.
        sock.set_inheritable(False)
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)

    def receive(self) -> Frame | None:
        """Wait for the next frame and return it; None if the server has closed its end.

        `take_descriptor` returns a file descriptor sent along with the frame.

        Raises:
            ProtocolError: The stream ends inside a frame, or holds an invalid one.
        """
        header = bytearray(HEADER.size)
        first, descriptors, _, _ = socket.recv_fds(self._sock, HEADER.size, 1)
        self._passed.extend(descriptors)
        if not first:
            return None
        header[: len(first)] = first
        self._fill(memoryview(header)[len(first) :])
        type_, count, batch_id, length = read_header(header)
        # One buffer per frame, never reused: request bodies are views of it. From NumPy, since a
        # bytearray would be zeroed first.
        payload = np.empty(length, np.uint8).data
        self._fill(payload)
        return Frame(type_, count, batch_id, payload)

    def take_descriptor(self) -> int:
        """Return the file descriptor that came with the last frame.

        Raises:
            ProtocolError: There was none.
        """
        if not self._passed:
            raise ProtocolError("a frame that must carry a socket carries none")
        return self._passed.pop()

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Write a frame, passed as a list of buffers."""
        pending = [memoryview(buffer) for buffer in buffers if len(buffer)]
        while pending:
            sent = self._sock.sendmsg(pending[:_MAX_BUFFERS])
            while pending and sent >= len(pending[0]):
                sent -= len(pending.pop(0))
            if sent:
                pending[0] = pending[0][sent:]

    def close(self) -> None:
        """Close the socket in this process."""
        self._sock.close()

    def _fill(self, view: memoryview) -> None:
        while view:
            received = self._sock.recv_into(view)
            if received == 0:
                raise ProtocolError("the stream ends inside a frame")
            view = view[received:]

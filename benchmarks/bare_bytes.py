"""Reference for large bodies: the same bytes over a bare socket, read and counted.

`python -m benchmarks.bare_bytes` prints its port. It reads all connections into the same buffer,
which stays in the cache, and of HTTP it knows no more than where a body begins and how long it is.
"""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

_BUFFER = memoryview(bytearray(256 << 10))


class _Counter(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self._head = b""
        self._length = 0
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports derive from none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, _: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, count: int) -> None:
        if not self._missing:
            self._head += bytes(_BUFFER[:count])
            head, separator, body = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            self._head = b""
            self._length = int(head.lower().partition(b"content-length:")[2].split()[0])
            self._missing = self._length - len(body)
        else:
            self._missing -= count
        if not self._missing:
            answer = b"%d" % self._length
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer))
            self._transport.write(answer)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Counter, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())

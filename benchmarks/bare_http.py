"""Reference for the noop workload: an aiohttp + uvloop handler that answers a constant.

`python -m benchmarks.bare_http` prints its port. No routing by model, no worker, no queue, no
metrics.
"""

from __future__ import annotations

import socket

import uvloop
from aiohttp import web


async def _answer(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=b'{"ok":true}', content_type="application/json")


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/", _answer)
    sock = socket.create_server(("127.0.0.1", 0))
    print(sock.getsockname()[1], flush=True)
    uvloop.install()
    web.run_app(app, sock=sock, access_log=None, print=None)

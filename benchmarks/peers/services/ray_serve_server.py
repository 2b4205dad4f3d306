"""Ray Serve: ``ray_serve_server.py noop|crepe PORT REPLICAS BATCH_SIZE BATCH_DELAY_S``."""

from __future__ import annotations

import signal
import sys
import tempfile
from typing import Any

import ray
from ray import serve
from starlette.requests import Request


class Noop:
    async def __call__(self, request: Request) -> dict[str, bool]:
        await request.json()
        return {"ok": True}


class Crepe:
    def __init__(self, batch_size: int, batch_delay_s: float) -> None:
        from crepe_mxnet import Crepe as Network

        self.network = Network()
        self.is_batching = batch_size > 1
        self.batched.set_max_batch_size(batch_size)
        self.batched.set_batch_wait_timeout_s(batch_delay_s)

    async def __call__(self, request: Request) -> dict[str, str]:
        review = await request.json()
        pair = (review["review_title"], review["review"])
        answers = await self.batched(pair) if self.is_batching else self.network([pair])[0]
        return {"category": answers}

    @serve.batch
    async def batched(self, reviews: list[tuple[str, str]]) -> list[str]:
        return self.network(reviews)


if __name__ == "__main__":
    model, port, replicas, batch_size, batch_delay_s = sys.argv[1:]
    options: dict[str, Any] = {
        "num_replicas": int(replicas),
        "max_ongoing_requests": 1000,
        # The cores are for the work; Ray's own processes count for nothing here.
        "ray_actor_options": {"num_cpus": 0},
    }
    application = (
        serve.deployment(Noop, name="noop", **options).bind()
        if model == "noop"
        else serve.deployment(Crepe, name="crepe", **options).bind(
            int(batch_size), float(batch_delay_s)
        )
    )
    ray.init(
        num_cpus=int(replicas),
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        _temp_dir=f"{tempfile.gettempdir()}/ray",
    )
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config=quiet)
    serve.run(application, logging_config=quiet)
    signal.pause()

"""Triton: ``triton_server.py noop|crepe PORT GRPC_PORT INSTANCES BATCH_SIZE BATCH_DELAY_US``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

Infer = Callable[..., dict[str, np.ndarray]]


def make_noop() -> Infer:
    @batch
    def infer(x: np.ndarray) -> dict[str, np.ndarray]:
        return {"ok": np.ones((len(x), 1), dtype=np.bool_)}

    return infer


def make_crepe() -> Infer:
    from crepe_mxnet import Crepe

    network = Crepe()

    @batch
    def infer(review_title: np.ndarray, review: np.ndarray) -> dict[str, np.ndarray]:
        pairs = [
            (title.decode(), text.decode())
            for title, text in zip(review_title[:, 0], review[:, 0], strict=True)
        ]
        return {"category": np.array([[name.encode()] for name in network(pairs)], dtype=object)}

    return infer


if __name__ == "__main__":
    model, port, grpc_port, instances, batch_size, batch_delay_us = sys.argv[1:]
    make = {"noop": make_noop, "crepe": make_crepe}[model]
    inputs = {
        "noop": [Tensor(name="x", dtype=np.float32, shape=(4,))],
        "crepe": [
            Tensor(name=name, dtype=bytes, shape=(1,)) for name in ("review_title", "review")
        ],
    }[model]
    output = {
        "noop": Tensor(name="ok", dtype=np.bool_, shape=(1,)),
        "crepe": Tensor(name="category", dtype=bytes, shape=(1,)),
    }[model]
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(port),
        grpc_address="127.0.0.1",
        grpc_port=int(grpc_port),
        allow_metrics=False,
        allow_gpu_metrics=False,
    )
    # It stops in order, and removes its files, when interrupted only.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    delay = DynamicBatcher(max_queue_delay_microseconds=int(batch_delay_us))
    with Triton(config=config) as triton:
        triton.bind(
            model_name=model,
            infer_func=[make() for _ in range(int(instances))],
            inputs=inputs,
            outputs=[output],
            config=ModelConfig(max_batch_size=int(batch_size), batcher=delay),
            strict=False,
        )
        triton.serve()

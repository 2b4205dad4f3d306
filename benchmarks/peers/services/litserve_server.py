"""LitServe: ``litserve_server.py noop|crepe PORT WORKERS BATCH_SIZE BATCH_DELAY_S``."""

from __future__ import annotations

import sys
from typing import Any

import litserve


class Noop(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def predict(self, inputs: Any) -> dict[str, bool]:
        return {"ok": True}


class Crepe(litserve.LitAPI):
    def setup(self, device: str) -> None:
        # In the workers only: the server's own process does not need MXNet.
        from crepe_mxnet import Crepe as Network

        self.network = Network()

    def decode_request(self, request: dict[str, str]) -> tuple[str, str]:
        return request["review_title"], request["review"]

    def batch(self, inputs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return inputs

    def predict(self, inputs: Any) -> list[str]:
        return self.network(inputs if isinstance(inputs, list) else [inputs])

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str | list[str]) -> dict[str, str]:
        return {"category": output if isinstance(output, str) else output[0]}


if __name__ == "__main__":
    model, port, workers, batch_size, batch_delay_s = sys.argv[1:]
    api_class = {"noop": Noop, "crepe": Crepe}[model]
    api = api_class(max_batch_size=int(batch_size), batch_timeout=float(batch_delay_s))
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(workers), fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(port),
        num_api_servers=1,
        log_level="error",
        access_log=False,
        generate_client_file=False,
    )

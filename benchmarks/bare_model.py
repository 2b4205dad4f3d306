"""Reference for the model workload: the same service in a loop, with nothing around it.

`python -m benchmarks.bare_model ARCHIVE_FOLDER BATCH_SIZE SECONDS` prints requests per second of
one process: decode the JSON, preprocess, one joint forward, postprocess, encode, again and again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import orjson

from mms.worker.engine import import_mxnet

WARM_UP_S = 0.5


def main() -> None:
    folder, batch_size, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    mx = import_mxnet()
    from mms.model_service.model_service import load_service
    from mms.worker.loader import find_service_class

    manifest = json.loads((folder / "MANIFEST.json").read_text())
    path = str(folder / manifest["Model"]["Service"])
    service_class = find_service_class(load_service(path), path)
    service = service_class(manifest["Model"]["Model-Name"], str(folder), manifest, None)
    body = (folder / manifest["Serving"]["sample"]["file"]).read_bytes()

    def run_batch() -> list[bytes]:
        inputs = [service._preprocess([orjson.loads(body)]) for _ in range(batch_size)]
        joined = mx.nd.concat(*inputs, dim=0) if batch_size > 1 else inputs[0]
        output = service._inference(joined)
        output.wait_to_read()
        return [
            orjson.dumps(service._postprocess(output[row : row + 1])) for row in range(batch_size)
        ]

    _for(WARM_UP_S, run_batch)
    batches, elapsed = _for(seconds, run_batch)
    print(json.dumps({"requests_per_s": batches * batch_size / elapsed}))


def _for(seconds: float, run: object) -> tuple[int, float]:
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < seconds:
        run()  # type: ignore[operator]
        count += 1
    return count, time.perf_counter() - started


if __name__ == "__main__":
    main()

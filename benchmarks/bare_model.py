"""Reference for models: one process that runs the archive's service, with nothing around it.

`python -m benchmarks.bare_model ARCHIVE_FOLDER BATCH_SIZE` loads the service, answers the archive's
sample once and prints a line; then it runs a batch of each size, and prints another. For each
task, a line of JSON on its input, it runs the sample again and again: decode, preprocess, one joint
forward, postprocess, encode. Then it prints what came of it. Several such processes can be given
the same task, to begin at the same time.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.shared_queue import SharedQueue
from mms.engines.imports import import_mxnet
from tests.kit.load.schedule import poisson


@dataclass(frozen=True, slots=True)
class Task:
    """What to run.

    Attributes:
        batch_size: Requests per batch; the most of them in an open loop.
        start_at: When to begin, by `time.monotonic`.
        warm_up_s: Time that does not count, from then on.
        seconds: Time that counts, after it.
        latencies: File for the latencies, float64 seconds.
        rate: Requests per second of an open loop; None is a closed one, with a full batch always
            waiting.
        seed: Of the open loop's random times.
        queue: File that the processes of an open loop share.
        processes: How many they are.
    """

    batch_size: int
    start_at: float
    warm_up_s: float
    seconds: float
    latencies: str
    rate: float | None = None
    seed: int = 0
    queue: str = ""
    processes: int = 1

    @property
    def counts_from(self) -> float:
        return self.start_at + self.warm_up_s


RunBatch = Callable[[int], None]


def load_batch_runner(folder: Path) -> RunBatch:
    """Load the service of an unpacked archive; return a function that runs so many requests."""
    mx = import_mxnet()
    from mms.engines.hybrid import start_trial
    from mms.model_service.model_service import load_service
    from mms.worker.loader import find_service_class

    manifest = json.loads((folder / "MANIFEST.json").read_text())
    path = str(folder / manifest["Model"]["Service"])
    service_class = find_service_class(load_service(path), path)
    service = service_class(manifest["Model"]["Model-Name"], str(folder), manifest, None)
    start_trial(getattr(service, "net", None))
    body = (folder / manifest["Serving"]["sample"]["file"]).read_bytes()
    takes_images = service.signature["input_type"].startswith("image/")

    def preprocess() -> Any:
        return service._preprocess([bytes(body) if takes_images else orjson.loads(body)])

    def join(inputs: list[Any]) -> Any:
        if isinstance(inputs[0], list):
            return [mx.nd.concat(*column, dim=0) for column in zip(*inputs, strict=True)]
        return mx.nd.concat(*inputs, dim=0)

    def run_batch(size: int) -> None:
        if size == 1:
            orjson.dumps(service._postprocess(service._inference(preprocess())))
            return
        output = service._inference(join([preprocess() for _ in range(size)]))
        # Read once: cutting an NDArray would cost an operation of the engine for each request.
        values = output.asnumpy()
        for row in range(size):
            part = mx.nd.from_numpy(values[row : row + 1])
            orjson.dumps(service._postprocess(part))

    return run_batch


def run_closed(task: Task, run_batch: RunBatch) -> dict[str, Any]:
    """Run full batches, one after the other."""
    answered = 0
    while (now := time.monotonic()) < task.counts_from:
        run_batch(task.batch_size)
        answered += task.batch_size
    counting_since = now
    latencies = array("d")
    # Not until a fixed time: a warm-up of one long batch must leave some to measure.
    while now < counting_since + task.seconds:
        run_batch(task.batch_size)
        before, now = now, time.monotonic()
        latencies.extend([now - before] * task.batch_size)
    return {
        "requests_per_s": len(latencies) / (now - counting_since),
        "answered": answered + len(latencies),
        "latencies": latencies,
    }


def run_open(task: Task, run_batch: RunBatch) -> dict[str, Any]:
    """Run what arrives, in batches of what waits; latencies count from the arrival."""
    assert task.rate is not None  # noqa: S101 - the caller has looked
    times = poisson(task.rate, task.warm_up_s, task.seconds, task.seed)
    arrivals = array("d", (task.start_at + at for at in times))
    queue = SharedQueue(Path(task.queue), arrivals, task.processes, task.batch_size)
    latencies = array("d")
    answered = in_time = 0
    while (next_arrival := queue.next_arrival()) is not None:
        now = time.monotonic()
        if now < next_arrival:
            time.sleep(next_arrival - now)
            continue
        batch = queue.take(now)
        if not batch:
            continue
        run_batch(len(batch))
        queue.finish()
        now = time.monotonic()
        answered += len(batch)
        in_time += len(batch) * (0 <= now - task.counts_from < task.seconds)
        latencies.extend(now - arrivals[i] for i in batch if arrivals[i] >= task.counts_from)
    queue.close()
    return {
        "requests_per_s": in_time / task.seconds,
        "answered": answered,
        "latencies": latencies,
    }


def main() -> None:
    run_batch = load_batch_runner(Path(sys.argv[1]))
    run_batch(1)
    print("ready", flush=True)
    # What the first forward of a size prepares is nobody's latency.
    for size in range(1, int(sys.argv[2]) + 1):
        run_batch(size)
    print("warm", flush=True)
    for line in sys.stdin:
        task = Task(**json.loads(line))
        time.sleep(max(task.start_at - time.monotonic(), 0))
        cpu = time.process_time()
        result = run_closed(task, run_batch) if task.rate is None else run_open(task, run_batch)
        result["cpu_s"] = time.process_time() - cpu
        Path(task.latencies).write_bytes(result.pop("latencies").tobytes())
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

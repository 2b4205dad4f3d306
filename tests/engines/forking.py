"""Load a network, fork it many times, and print what each child found, as JSON.

python -m tests.engines.forking ENGINE THREADS FORKS FILE
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mms.engines.network import NetworkFile
from mms.engines.registry import engine
from tests.engines.networks import port

#: A child that hangs is ended by this signal, and seen to be.
_LIMIT_S = 30


def main(name: str, threads: int, forks: int, path: Path) -> None:
    file = NetworkFile(
        path,
        "f32",
        (port("image", 0, 32, 24, 24),),
        (port("scores", 0, 10),),
        threads=threads,
        forks=True,
    )
    network = engine(name).open(file)  # type: ignore[arg-type]
    images = np.random.default_rng(5).normal(size=(8, 32, 24, 24)).astype(np.float32)
    expected = network.run([images])[0]
    network.run([images[:1]])
    found = [{"can_fork": network.can_fork, "threads": _threads()}]
    found += [_in_child(network, images, expected) for _ in range(forks)]
    json.dump(found, sys.stdout)


def _in_child(network: Any, images: Any, expected: Any) -> dict[str, Any]:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(_LIMIT_S)
        network.after_fork()
        one = network.run([images[:1]])[0]
        private = _private_mib()
        all_ = network.run([images])[0]
        found = {
            "error": float(np.abs(np.concatenate([one - expected[:1], all_ - expected])).max()),
            "scale": float(np.abs(expected).max()),
            "private": private,
            "threads": _threads(),
        }
        os.write(write_end, json.dumps(found).encode())
        os._exit(0)
    os.close(write_end)
    text = os.read(read_end, 1 << 16)
    os.close(read_end)
    _, status = os.waitpid(pid, 0)
    return {"status": status, **(json.loads(text) if text else {})}


def _private_mib() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) >> 10


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

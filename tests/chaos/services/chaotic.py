"""Echoes a request's token, and does on command what broken services do.

``options.json`` in the archive holds: ``mark``, given back in each answer; ``load_s``, how long
loading takes; ``load_fault``, what goes wrong then; ``ledger``, a file that each token run is
appended to.
"""

import ctypes
import json
import os
import time
from pathlib import Path
from typing import Any

from mms.model_service.model_service import SingleNodeService


class Chaotic(SingleNodeService):
    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, gpu)
        options = json.loads((Path(model_dir) / "options.json").read_text())
        time.sleep(options["load_s"])
        if options["load_fault"] == "raise":
            raise ValueError("the weights are of another network")
        if options["load_fault"] == "crash":
            ctypes.string_at(0)
        self.mark = options["mark"]
        self.leaked: list[bytearray] = []
        # One answer, filled anew for each request: what 0.4 allowed, and what swaps answers where
        # a request is not finished before the next begins.
        self.answer: dict[str, Any] = {"mark": self.mark, "pid": 0}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.ledger = os.open(options["ledger"], flags, 0o600)

    def _inference(self, data: list[Any]) -> dict[str, Any]:
        token, command, argument, filler = data[0]
        getattr(self, f"do_{command}")(argument)
        os.write(self.ledger, f"{token}\n".encode())
        self.answer.update(token=token, filler=filler, pid=os.getpid())
        return self.answer

    def do_work(self, seconds: float) -> None:
        time.sleep(seconds)

    def do_leak(self, size: int) -> None:
        # Written to, or the kernel would not give the pages.
        self.leaked.append(bytearray(b"x") * size)
        time.sleep(0.005)

    def do_kill(self, _: Any) -> None:
        os.kill(os.getpid(), 9)

    def do_exit(self, _: Any) -> None:
        os._exit(3)

    def do_segfault(self, _: Any) -> None:
        ctypes.string_at(0)

    def do_daemon(self, _: Any) -> None:
        # Forked at the C level: it keeps the worker's socket.
        if ctypes.PyDLL(None).fork() == 0:
            os.setsid()
            time.sleep(600)
            os._exit(0)

    def do_hang_python(self, _: Any) -> None:
        while True:
            pass

    def do_hang_native(self, _: Any) -> None:
        # Blocks in the C library with the interpreter lock held: signals cannot interrupt it.
        while True:
            ctypes.PyDLL(None).usleep(2**31)

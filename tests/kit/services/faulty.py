"""Does on command what broken services do: the request says which."""

import ctypes
import logging
import os
import sys
import time

import mxnet as mx

from mms.model_service.model_service import SingleNodeService
from mms.service import PredictionException


class Faulty(SingleNodeService):
    def _inference(self, data):
        command, *args = data[0]
        return getattr(self, f"do_{command}")(*args)

    def do_echo(self, value):
        return value

    def do_pid(self):
        return os.getpid()

    def do_raise(self, text):
        raise KeyError(text)

    def do_reject(self, text, status):
        raise PredictionException(text, status)

    def do_exit(self, code):
        sys.exit(code)

    def do_hard_exit(self, code):
        os._exit(code)

    def do_segfault(self):
        ctypes.string_at(0)

    def do_abort(self):
        os.abort()

    def do_sleep(self, seconds):
        time.sleep(seconds)
        return "slept"

    def do_wait(self, folder):
        """Note the worker's pid in a folder, and wait there for a file called go."""
        with open(f"{folder}/{os.getpid()}", "w"):
            pass
        while not os.path.exists(f"{folder}/go"):
            time.sleep(0.005)
        return "went"

    def do_hang_python(self):
        while True:
            pass

    def do_hang_native(self):
        # Blocks inside the C library with the interpreter lock held: signals cannot interrupt it.
        ctypes.PyDLL(None).usleep.restype = None
        while True:
            ctypes.PyDLL(None).usleep(2**31)

    def do_huge(self, size):
        return "x" * size

    def do_unserialisable(self):
        return object()

    def do_nested(self, depth):
        value = []
        for _ in range(depth):
            value = [value]
        return value

    def do_nan(self):
        return [float("nan"), float("inf"), 1.5]

    def do_ndarray(self):
        return mx.nd.array([[1, 2], [3, 4]])

    def do_out_of_memory(self):
        raise MemoryError

    def do_log(self, text):
        logging.getLogger("user.code").warning(text)
        return "logged"

    def do_print(self, text):
        print(text)
        return "printed"

    def do_garbage(self, byte, size):
        # Writes to the worker's own socket, as a service with a stray file descriptor might.
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, bytes([byte]) * size)
            except OSError:
                continue
        return "written"

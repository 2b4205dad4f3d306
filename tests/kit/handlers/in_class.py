"""A 1.x handler in a class, which answers how large each of its batches was."""

import os
import time


class Helper:
    """No handler: it has no `handle`."""


class Batcher:
    def __init__(self):
        self.model_dir = None

    def initialize(self, context):
        self.model_dir = context.system_properties["model_dir"]
        self.batch_size = context.system_properties["batch_size"]

    def wait(self, folder):
        """Note the worker's pid in a folder, and wait there for a file called go."""
        open(f"{folder}/{os.getpid()}", "w").close()
        while not os.path.exists(f"{folder}/go"):
            time.sleep(0.005)

    def handle(self, data, context):
        for values in data:
            if values["body"].startswith("wait "):
                self.wait(values["body"].removeprefix("wait "))
        if any(values["body"] == "poison" for values in data):
            raise RuntimeError("poisoned")
        return [
            {"batch": len(data), "most": self.batch_size, "has_dir": bool(self.model_dir)}
            for _ in data
        ]

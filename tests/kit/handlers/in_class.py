"""A 1.x handler in a class, which answers how large each of its batches was."""

import time


class Helper:
    """No handler: it has no `handle`."""


class Batcher:
    def __init__(self):
        self.model_dir = None

    def initialize(self, context):
        self.model_dir = context.system_properties["model_dir"]
        self.batch_size = context.system_properties["batch_size"]

    def handle(self, data, context):
        if any(values["body"] == "slow" for values in data):
            time.sleep(0.3)
        if any(values["body"] == "poison" for values in data):
            raise RuntimeError("poisoned")
        return [
            {"batch": len(data), "most": self.batch_size, "has_dir": bool(self.model_dir)}
            for _ in data
        ]

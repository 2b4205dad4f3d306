"""Answers a fixed text, whatever it is asked; `pid` and `wait` as the faulty service does."""

import os
import time

from mms.model_service.model_service import SingleNodeService

SAID = "a text"


class Says(SingleNodeService):
    def _postprocess(self, data):
        command, *args = data[0] or ["text"]
        if command == "pid":
            return os.getpid()
        if command == "wait":
            open(f"{args[0]}/{os.getpid()}", "w").close()
            while not os.path.exists(f"{args[0]}/go"):
                time.sleep(0.005)
        if command == "environment":
            return dict(os.environ)
        return SAID

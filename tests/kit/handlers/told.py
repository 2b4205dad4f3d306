"""A 1.x handler that does what the field `do` says."""

import os
import time


def handle(data, context):
    if data is None:
        return None
    return [obey(*bytes(request["do"]).decode().split()) for request in data]


def obey(command, *args):
    if command == "wait":
        # Note that it runs, and go on once there is a file called go.
        (folder,) = args
        open(os.path.join(folder, str(os.getpid())), "w").close()
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.005)
    if command == "raise":
        raise ValueError("on purpose")
    if command == "die":
        os._exit(7)
    return "done"

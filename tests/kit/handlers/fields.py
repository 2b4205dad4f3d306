"""A 1.x handler that tells which fields it got; some of them are commands."""

import os
import time


def handle(data, context):
    if data is None:
        return None
    return [answer(index, request, context) for index, request in enumerate(data)]


def answer(index, request, context):
    if "status" in request:
        context.set_http_response_status(int(bytes(request["status"])), "Chosen", index)
        context.set_response_header(index, "X-Chosen", "yes")
    if "wait" in request:
        # Note that it runs, and go on once there is a file called go.
        folder = bytes(request["wait"]).decode()
        open(os.path.join(folder, str(os.getpid())), "w").close()
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.005)
    if "double" in request:
        return request["double"] * 2
    if "header" in request:
        return context.get_request_header(index, bytes(request["header"]).decode()) or "none"
    return {key: [type(value).__name__, str(value)] for key, value in sorted(request.items())}

"""A 1.x handler in a function: tells what it was given, and does what it is told."""

import os

from mms.context import Context
from mms.metrics.dimension import Dimension
from mms.service import PredictionException

initialized = {}


def described(value):
    if isinstance(value, bytearray):
        return ["bytearray", value.decode("latin-1")]
    return [type(value).__name__, value]


def handle(data, context):
    assert isinstance(context, Context)
    if data is None:
        initialized.update(
            cwd=os.getcwd(),
            files=sorted(os.listdir(".")),
            properties=context.system_properties,
            handler=context.manifest["model"]["handler"] if context.manifest else None,
            name=context.model_name,
        )
        return None
    answers = []
    for index, values in enumerate(data):
        command = values.get("body")
        command = command if isinstance(command, dict) else {}
        answers.append(act(command, values, context, index, len(data)))
    if any(isinstance(v.get("body"), dict) and v["body"].get("miscount") for v in data):
        return [*answers, "one too many"]
    return answers


def act(command, values, context, index, batch):
    if "raise" in command:
        raise ValueError(command["raise"])
    if "refuse" in command:
        raise PredictionException("not this one", 442)
    if "memory" in command:
        raise MemoryError
    if "answer" in command:
        return command["answer"]
    if "bytes" in command:
        context.set_response_content_type(index, "image/x-test")
        return bytes.fromhex(command["bytes"])
    if "status" in command:
        context.set_http_response_status(command["status"], "Quite Odd", index)
        context.request_processor[index].add_response_property("X-Own", "yes")
        return {"status": command["status"]}
    if "metrics" in command:
        context.metrics.add_counter("Tokens", 3, index)
        context.metrics.add_time("TokenizeTime", 20, dimensions=[Dimension("step", "first")])
        context.metrics.add_size("Vocabulary", 2, unit="MB")
        context.metrics.add_percent("Known", 50)
        context.metrics.add_error("Trouble", "no number")
        return "reported"
    if "object" in command:
        return object()
    if "initialized" in command:
        return initialized
    properties = context.request_processor[index]
    return {
        "values": {name: described(value) for name, value in values.items()},
        "types": {name: properties.get_request_property(name) for name in values},
        "agent": properties.get_request_property("user-agent"),
        "own": context.get_request_header(index, "x-own"),
        "id": context.get_request_id(index),
        "batch": batch,
        "pid": os.getpid(),
    }

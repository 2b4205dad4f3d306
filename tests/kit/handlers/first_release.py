"""A handler in the style of the first releases of 1.x, where there was one request at a time."""

import os

from mms.context import RequestProcessor

at_load = {}


def handle(data, context):
    if data is None:
        at_load.update(
            ids=context.request_ids,
            processor=context.request_processor,
            level=None,
        )
        context.metrics.add_counter("Loaded", 1)
        at_load["level"] = str(context.metrics.store[0].dimensions[-1])
        return None
    (values,) = data
    body = values.get("body")
    if body == "assign":
        assigned = RequestProcessor({})
        assigned.report_status(207, "Assigned")
        context.request_processor = [assigned]
        return ["assigned"]
    if body == "environment":
        names = ("MMS_DECODE_INPUT_REQUEST", "MXNET_USE_OPERATOR_TUNING", "PYTHONPATH", "TEMP")
        return [{**{name: os.environ.get(name) for name in names}, "cwd": os.getcwd()}]
    if body == "load":
        return [at_load]
    processor = context.request_processor
    processor.report_status(202, "Later")
    processor.add_response_property("X-First", processor.get_request_property("X-Own") or "none")
    if isinstance(body, dict):
        return [{"square": str(body["n"] ** 2), "kind": type(body["n"]).__name__, **body}]
    return [{name: bytes(value).decode() for name, value in values.items()}]

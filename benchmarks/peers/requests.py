"""What servers are sent for each workload: the same content, in the form that each takes."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.client import Request
from benchmarks.peers.peer import Call, Workload

#: Some 30 bytes, of which a noop service makes nothing.
NOOP: dict[str, Any] = {"x": [1.5, 2.5, 3.5, 4.5]}
#: What the network is asked, and its category.
REVIEW = {"review_title": "Inception is the best", "review": "great direction and story"}
CATEGORY = "Movies_and_TV"


def json_call(url: str, workload: Workload, value: Any) -> Call:
    """Return a request with a JSON body; a right answer has ``"ok"`` or the review's category."""
    answer = '"ok"' if workload.is_noop else f'"{CATEGORY}"'
    return Call(url, Request("application/json", json.dumps(value).encode(), answer))


def plain_call(url: str, workload: Workload) -> Call:
    """Return a request for servers that take any JSON."""
    return json_call(url, workload, NOOP if workload.is_noop else REVIEW)


def v2_call(url: str, workload: Workload) -> Call:
    """Return a request in the V2 protocol, with one row in each input."""
    if workload.is_noop:
        inputs = [_input(name, "FP32", values) for name, values in NOOP.items()]
    else:
        inputs = [_input(name, "BYTES", [text]) for name, text in REVIEW.items()]
    return json_call(f"{url}/v2/models/{workload.model}/infer", workload, {"inputs": inputs})


def _input(name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": [1, len(data)], "datatype": datatype, "data": data}

"""Cut the training symbol of an SSD detector to the part that finds objects. Pure.

As MXNet's example/ssd/deploy.py does by building the network anew: the classes' scores go through
a softmax, and MultiBoxDetection turns them, with boxes and anchors, into objects.
"""

from __future__ import annotations

import copy
from typing import Any

from mms.archive.symbol import Symbol, parse_symbol
from mms.errors import ArchiveError

_TARGETS = ("_contrib_MultiBoxTarget", "MultiBoxTarget")
_DETECTIONS = ("_contrib_MultiBoxDetection", "MultiBoxDetection")
#: What example/ssd deploys with, which SageMaker's object detection uses as well.
_ATTRIBUTES = {
    "nms_threshold": "0.5",
    "force_suppress": "False",
    "variances": "(0.1, 0.1, 0.2, 0.2)",
    "nms_topk": "400",
}


def is_detector(symbol: Symbol) -> bool:
    """Whether a symbol finds objects, or was used to train one that does."""
    return any(node.op in (*_TARGETS, *_DETECTIONS) for node in symbol.nodes)


def deploy_form(symbol: Symbol) -> Symbol:
    """Return the symbol without what only training needs; its one output are the objects.

    Raises:
        ArchiveError: It is no training symbol that is known.
    """
    found = _first(symbol, _DETECTIONS)
    nodes: list[dict[str, Any]] = copy.deepcopy(symbol.document["nodes"])
    if found is None:
        return _pruned(symbol, [*nodes, *_detection(symbol)], len(nodes) + 1)
    scores, _ = symbol.nodes[found].inputs[0]
    if symbol.nodes[scores].op in ("SoftmaxOutput", "Softmax"):
        source = list(symbol.nodes[scores].inputs[0])
        nodes[scores] = _softmax(symbol.nodes[scores].name, source)
    return _pruned(symbol, nodes, found)


def _detection(symbol: Symbol) -> list[dict[str, Any]]:
    """Return a softmax and a detection for a symbol that has only targets."""
    target = _first(symbol, _TARGETS)
    anchors, _, classes = symbol.nodes[target or 0].inputs[:3]
    # The loss of the boxes is that of their difference to the target's first output.
    boxes = next(
        (
            link
            for node in symbol.nodes
            if node.op in ("_minus", "_Minus", "elemwise_sub", "broadcast_sub", "_sub")
            and (target, 0) in node.inputs
            for link in node.inputs
            if link != (target, 0)
        ),
        None,
    )
    if boxes is None:
        raise ArchiveError(
            "the symbol trains a detector in a way that is not known; export its deploy form, as "
            "example/ssd/deploy.py of MXNet does"
        )
    place = len(symbol.nodes)
    softmax = _softmax("cls_prob", list(classes))
    links = [[place, 0, 0], [*boxes, 0], [*anchors, 0]]
    detection = {
        "op": _DETECTIONS[0],
        "name": "detection",
        "attrs": _ATTRIBUTES,
        "inputs": links,
    }
    return [softmax, detection]


def _softmax(name: str, source: list[int]) -> dict[str, Any]:
    return {
        "op": "SoftmaxActivation",
        "name": name,
        "attrs": {"mode": "channel"},
        "inputs": [[*source[:2], 0]],
    }


def _first(symbol: Symbol, ops: tuple[str, ...]) -> int | None:
    return next((i for i, node in enumerate(symbol.nodes) if node.op in ops), None)


def _pruned(symbol: Symbol, nodes: list[dict[str, Any]], head: int) -> Symbol:
    """Return a symbol of one output, with the nodes that it needs."""
    needed = {head}
    for index in range(head, -1, -1):
        if index in needed:
            needed |= {link[0] for link in nodes[index]["inputs"]}
    order = sorted(needed)
    places = {old: new for new, old in enumerate(order)}
    kept = []
    for old in order:
        links = [[places[link[0]], *link[1:]] for link in nodes[old]["inputs"]]
        kept.append({**nodes[old], "inputs": links})
    document = {
        **{key: value for key, value in symbol.document.items() if key == "attrs"},
        "nodes": kept,
        "arg_nodes": [i for i, node in enumerate(kept) if node["op"] == "null"],
        "heads": [[places[head], 0, 0]],
    }
    return parse_symbol(document)

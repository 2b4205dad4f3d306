"""What is put right in a symbol before MXNet's exporter reads it. Pure.

Each repair answers one way in which the exporter fails, or writes a file that computes something
else. They run in the order of `REPAIRS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mms.convert.draft import Draft, Entry, attributes, is_true, sizes
from mms.convert.graph import Node
from mms.convert.rnn import unroll_layers

#: What MXNet takes for attributes that a symbol leaves out, where the exporter takes something
#: else: https://mxnet.apache.org/versions/1.9.1/api/python/docs/api/symbol/symbol.html
DEFAULTS = {
    "BatchNorm": {"fix_gamma": "True", "eps": "0.001", "use_global_stats": "False", "axis": "1"},
    "Convolution": {"no_bias": "False", "num_group": "1"},
    "Deconvolution": {"no_bias": "True", "num_group": "1"},
    "FullyConnected": {"flatten": "True", "no_bias": "False"},
    "InstanceNorm": {"eps": "0.001"},
    "L2Normalization": {"eps": "1e-10", "mode": "instance"},
    "LRN": {"knorm": "2", "alpha": "0.0001", "beta": "0.75"},
    "LayerNorm": {"axis": "-1", "eps": "1e-5"},
    "LeakyReLU": {"act_type": "leaky", "slope": "0.25"},
    "Pooling": {
        "pool_type": "max",
        "global_pool": "False",
        "pooling_convention": "valid",
        "count_include_pad": "True",
    },
    "SoftmaxActivation": {"mode": "instance"},
}
#: Attributes that only say how an operator is computed.
_LAYOUTS = ("NCW", "NCHW", "NCDHW", "None")


def fill_defaults(draft: Draft) -> None:
    """Write out the attributes that old symbols leave out.

    The exporter reads a missing ``flatten`` as False, a missing ``knorm`` as 1 and a missing
    ``fix_gamma`` as False: all symbols of Module's time (deepinsight/insightface#1417,
    onnx/models#91).
    """
    for op, defaults in DEFAULTS.items():
        for node in draft.of(op):
            node["attrs"] = {**defaults, **node.get("attrs", {})}


def fix_gammas(draft: Draft) -> None:
    """Write a gamma of 1 where BatchNorm takes it for 1 whatever is stored.

    The exporter writes the stored one: answers were wrong by 170 % without a message
    (zheshipinyinMc/arcface_retinaface_mxnet2onnx#4).
    """
    for node in draft.of("BatchNorm"):
        gamma = draft.parameter(node["inputs"][1])
        if gamma is not None and is_true(attributes(node)["fix_gamma"]):
            draft.parameters[gamma] = np.ones_like(draft.parameters[gamma])


def shape_slopes(draft: Draft) -> None:
    """Write the slopes of a PReLU as (C, 1, 1), one per channel.

    onnxruntime broadcasts (C,) along the last axis, and fails on the first request
    (deepinsight/insightface#1274, linghu8812/tensorrt_inference#57).
    """
    for node in draft.of("LeakyReLU"):
        if attributes(node)["act_type"] != "prelu":
            continue
        slope = draft.parameter(node["inputs"][1])
        if slope is not None and draft.parameters[slope].size > 1:
            axes = _spatial_axes(draft, node["inputs"][0])
            shape = (-1, *(1,) * axes)
            draft.parameters[slope] = draft.parameters[slope].reshape(shape)


def _spatial_axes(draft: Draft, entry: Entry) -> int:
    """Return how many axes stand behind the channels, as the layers before tell; usually two."""
    while True:
        node = draft.nodes[entry[0]]
        if node["op"] in ("FullyConnected", "Flatten", "flatten"):
            return 0
        if node["op"] in ("Convolution", "Deconvolution"):
            return len(sizes(attributes(node)["kernel"]))
        if not node["inputs"]:
            return 2
        entry = node["inputs"][0]


def drop_layouts(draft: Draft) -> None:
    """Leave out the usual layout: the exporter refuses NCW, and so every Conv1D."""
    for node in draft.of("Convolution", "Deconvolution", "Pooling"):
        if attributes(node).get("layout") in _LAYOUTS:
            del node["attrs"]["layout"]


def forget_shapes(draft: Draft) -> None:
    """Leave out what variables say of their shapes, which repairs may have changed."""
    for node in draft.of("null"):
        for key in ("__shape__", "__dtype__", "__init__"):
            node.get("attrs", {}).pop(key, None)


def widen_halves(draft: Draft) -> None:
    """Write half precision as single: MXNet cannot compute it on a CPU, so nothing to compare."""
    for name, array in draft.parameters.items():
        if array.dtype == np.float16:
            draft.parameters[name] = array.astype(np.float32)


def pad_before_pooling(draft: Draft) -> None:
    """Pad before an average pool that counts padding and rounds its size up, and not within it.

    MXNet counts zeros of the padding, but not what a last window has beyond it. ONNX can say this
    of padding that is there already only: OpenVINO was wrong by 18 to 21 %.
    """

    def make(draft: Draft, node: Node) -> Sequence[Entry] | None:
        found = attributes(node)
        padding, kernel = sizes(found.get("pad", "()")), sizes(found.get("kernel", "()"))
        is_meant = (
            found["pool_type"] == "avg"
            and found["pooling_convention"] == "full"
            and is_true(found["count_include_pad"])
            and not is_true(found["global_pool"])
        )
        if not is_meant or not any(padding) or len(kernel) not in (2, 3):
            return None
        width = [0, 0, 0, 0, *(size for size in padding for _ in range(2))]
        padded = draft.add(
            "Pad",
            f"{node['name']}_padded",
            [node["inputs"][0]],
            {"mode": "constant", "constant_value": 0, "pad_width": tuple(width)},
        )
        kept = {key: value for key, value in found.items() if key != "pad"}
        return [
            draft.add("Pooling", node["name"], [padded], {**kept, "count_include_pad": "False"})
        ]

    draft.rewrite(("Pooling",), make)


def fill_pools(draft: Draft) -> None:
    """Write the kernel and stride of a pool for each axis: the exporter takes missing ones wrong.

    A missing stride is 1 in MXNet and in ONNX, but an empty ``pad`` of a global pool is refused.
    """
    for node in draft.of("Pooling"):
        found = attributes(node)
        if is_true(found["global_pool"]):
            for key in ("pad", "stride", "kernel"):
                found.pop(key, None)


def name_outputs(draft: Draft) -> None:
    """Add a node and a name of its own to every output, ``output_0`` and so on.

    An output that other layers read as well is lost otherwise: two of three of an LSTM's cell.
    """
    draft.heads = [
        draft.add("_copy", f"output_{index}", [entry]) for index, entry in enumerate(draft.heads)
    ]


REPAIRS: tuple[Callable[[Draft], None], ...] = (
    fill_defaults,
    widen_halves,
    fix_gammas,
    shape_slopes,
    drop_layouts,
    fill_pools,
    pad_before_pooling,
    unroll_layers,
    forget_shapes,
    name_outputs,
)

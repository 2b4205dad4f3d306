"""Recurrent networks of several layers, or of both directions, as chains of simple ones. Pure.

MXNet's exporter converts one layer in one direction. Of two layers it writes a file that fails at
its first run, unless input and hidden size are equal, and it refuses more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mms.convert.draft import Draft, Entry, attributes, is_true, sizes
from mms.convert.graph import Array, Node

#: Gates by mode: rows of the weights are the gates' one after the other.
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
#: Operators that only change the shape of parameters on their way to an RNN.
_RESHAPES = ("Reshape", "reshape", "Flatten", "flatten", "_copy", "identity")


def unroll_layers(draft: Draft) -> None:
    """Write each layer and direction of an RNN as one of its own, see the module.

    Operators whose parameters are computed by the network, or that project or clip their states,
    are left as they are.
    """
    draft.rewrite(("RNN",), _unroll)


def _unroll(draft: Draft, node: Node) -> Sequence[Entry] | None:
    found = attributes(node)
    packed = _constant(draft, node["inputs"][1])
    if packed is None or not is_plain(found):
        return None
    layers, both = int(found.get("num_layers", "1")), is_true(found.get("bidirectional", "False"))
    cells = _Cells(found["mode"], int(found["state_size"]), layers, 2 if both else 1)
    weights = cells.split(packed)
    if weights is None:
        return None
    states = node["inputs"][2:]
    data, last = node["inputs"][0], []
    for layer in range(layers):
        outputs = []
        for direction in range(cells.directions):
            index = layer * cells.directions + direction
            name = f"{node['name']}_l{layer}{'r' if direction else ''}"
            own = [_row(draft, entry, index, f"{name}_state{i}") for i, entry in enumerate(states)]
            parameters = draft.add_parameter(f"{name}_parameters", weights[index])
            backwards = {"axis": "0"}
            read = draft.add("reverse", f"{name}_read", [data], backwards) if direction else data
            one = draft.add(
                "RNN",
                name,
                [read, parameters, *own],
                {
                    "mode": cells.mode,
                    "state_size": cells.size,
                    "num_layers": 1,
                    "bidirectional": False,
                    "state_outputs": True,
                    "use_sequence_length": False,
                    "projection_size": None,
                    "p": 0,
                },
            )
            last.append([[one[0], 1 + i, 0] for i in range(len(states))])
            written = draft.add("reverse", f"{name}_written", [one], backwards)
            outputs.append(written if direction else one)
        data = _joined(draft, outputs, 2, f"{node['name']}_l{layer}_both")
    if not is_true(found.get("state_outputs", "False")):
        return [data]
    return [
        data,
        *(
            _joined(draft, [state[i] for state in last], 0, f"{node['name']}_last{i}")
            for i in range(len(states))
        ),
    ]


def is_plain(found: Mapping[str, str]) -> bool:
    """Return whether an RNN with these attributes does nothing that has no counterpart in ONNX."""
    unset = (None, "None", "")
    return (
        found.get("mode") in GATES
        and not is_true(found.get("use_sequence_length", "False"))
        and found.get("projection_size") in unset
        and found.get("lstm_state_clip_min") in unset
        and found.get("lstm_state_clip_max") in unset
    )


class _Cells:
    """How the parameters of all layers and directions lie in one vector, as in cuDNN."""

    def __init__(self, mode: str, size: int, layers: int, directions: int) -> None:
        self.mode = mode
        self.size = size
        self.directions = directions
        self._count = layers * directions
        self._rows = GATES[mode] * size

    def split(self, packed: Array) -> list[Array] | None:
        """Return the vector of each cell, layer by layer; None if the length is not as expected.

        First come all weights, of the input and of the state by turns, then all biases.
        """
        rows, size, count = self._rows, self.size, self._count
        deep = rows * (self.directions * size + size)
        first_count = self.directions
        biases = 2 * rows * count
        left = packed.size - biases - deep * (count - first_count)
        width, rest = divmod(left, first_count * rows)
        if rest or width <= size:
            return None
        lengths = [rows * width] * first_count + [deep] * (count - first_count)
        ends = np.cumsum(lengths)
        weights = np.split(packed[: ends[-1]], ends[:-1])
        of_biases = np.split(packed[ends[-1] :], count)
        return [np.concatenate(pair) for pair in zip(weights, of_biases, strict=True)]


def _constant(draft: Draft, entry: Entry) -> Array | None:
    """Return the vector of parameters that an entry is; None if it depends on anything else."""
    name = draft.parameter(entry)
    if name is not None:
        return draft.parameters[name].reshape(-1)
    node = draft.nodes[entry[0]]
    if node["op"] in _RESHAPES:
        return _constant(draft, node["inputs"][0])
    if node["op"] not in ("_rnn_param_concat", "Concat", "concat"):
        return None
    parts = [_constant(draft, one) for one in node["inputs"]]
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _row(draft: Draft, entry: Entry, index: int, name: str) -> Entry:
    """Return the initial state of one cell: (1, N, size) of (cells, N, size)."""
    node = draft.nodes[entry[0]]
    if node["op"] == "_zeros":
        # Its batch is open, which only an RNN that reads it can close.
        _, *rest = sizes(attributes(node)["shape"])
        return draft.add("_zeros", name, [], {**attributes(node), "shape": (1, *rest)})
    return draft.add("slice_axis", name, [entry], {"axis": 0, "begin": index, "end": index + 1})


def _joined(draft: Draft, entries: Sequence[Entry], axis: int, name: str) -> Entry:
    if len(entries) == 1:
        return entries[0]
    return draft.add("Concat", name, entries, {"dim": axis, "num_args": len(entries)})

"""A network of which an engine runs the first part, and MXNet what could not be converted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mms.archive.candidates import EngineName, Port, Precision, Tail
from mms.engines.error_text import reason_line
from mms.engines.imports import import_mxnet
from mms.engines.network import Array, Network
from mms.engines.param_file import bare_name, read_arrays
from mms.errors import InferenceFailed, ModelLoadFailed

mx = import_mxnet()


class CutNetwork:
    """A `Network` made of an engine's and the rest on MXNet.

    Args:
        head: The converted part. It takes all inputs of the network.
        folder: Folder that the paths in `tail` are relative to.
        tail: The rest.

    Attributes:
        engine: The head's engine.
        precision: The head's; the rest computes in single precision.
        inputs: The head's.
        outputs: The network's outputs by the symbol's names, their shapes left open.
        can_fork: Whether the head can; MXNet can.

    Raises:
        ModelLoadFailed: The rest's files are damaged, or do not fit the head.
    """

    def __init__(self, head: Network, folder: Path, tail: Tail) -> None:
        self._head = head
        self.engine: EngineName = head.engine
        self.precision: Precision = head.precision
        self.inputs = head.inputs
        self.can_fork = head.can_fork
        count = len(head.outputs)
        places = {port.name: index for index, port in enumerate(head.inputs)}
        if len(tail.inputs) < count or not set(tail.inputs[count:]) <= set(places):
            raise ModelLoadFailed(
                f"{tail.symbol} does not fit the converted part: it reads "
                f"{', '.join(tail.inputs)}, and that gives {count} arrays"
            )
        #: Inputs of the network that the rest reads as well.
        self._extra = [places[name] for name in tail.inputs[count:]]
        self._block = _load(folder, tail)
        symbols = self._block(*[mx.sym.var(name) for name in tail.inputs])
        names = mx.sym.Group(symbols if isinstance(symbols, list) else [symbols]).list_outputs()
        self.outputs = tuple(Port(name, "FP32", ()) for name in names)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run both parts; see `Network.run`.

        Raises:
            InferenceFailed: MXNet cannot run the rest on what the engine gave.
        """
        between = [*self._head.run(arrays), *(arrays[index] for index in self._extra)]
        try:
            outputs = self._block(*[_borrowed(array) for array in between])
            parts = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            # Waits for MXNet, so what it borrowed is free again.
            return [part.asnumpy() for part in parts]
        except mx.base.MXNetError as error:
            raise InferenceFailed(
                f"MXNet cannot run the rest of the network: {reason_line(str(error))}"
            ) from error

    def after_fork(self) -> None:
        """Make what the head needs anew."""
        self._head.after_fork()


def _load(folder: Path, tail: Tail) -> Any:
    try:
        document = json.loads((folder / tail.symbol).read_text(encoding="utf-8"))
        symbol = mx.sym.load_json(json.dumps(document))
        with warnings.catch_warnings():
            # For input types that the symbol leaves open; the call sets them.
            warnings.simplefilter("ignore", UserWarning)
            block = mx.gluon.SymbolBlock(symbol, [mx.sym.var(name) for name in tail.inputs])
        if tail.parameters:
            arrays = read_arrays(str(folder / tail.parameters))
            named = {bare_name(name): array for name, array in arrays.items()}
            block.collect_params().load_dict(named, cast_dtype=True, dtype_source="saved")
    except (OSError, ValueError, AssertionError, RuntimeError, mx.base.MXNetError) as error:
        raise ModelLoadFailed(
            f"{tail.symbol} cannot be loaded: {reason_line(str(error))}"
        ) from error
    block.hybridize(static_alloc=True)
    return block


def _borrowed(array: Array) -> Any:
    """Return an NDArray on the same memory.

    MXNet marks what it borrows as read-only, which must not reach the owner's array.
    """
    contiguous = np.ascontiguousarray(array)
    return mx.nd.from_numpy(contiguous.view(), zero_copy=True)

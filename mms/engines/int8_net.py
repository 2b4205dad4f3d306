"""Run an int8 network with batches of any size."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from mms.engines.imports import import_mxnet
from mms.errors import ModelLoadFailed

mx = import_mxnet()

#: Input shapes that a network is kept ready for. Each costs the memory of its intermediate results
#: and of the weights in the layout that oneDNN wants for it.
_MAX_SHAPES = 16


class QuantizedNet:
    """An int8 network, callable like the one it was made from.

    oneDNN plans an int8 graph again whenever the shape of its input changes, which takes ten times
    as long as running it. So there is one block for each shape, and all of them share the
    parameters.

    Args:
        symbol_file: Path of ``...-symbol.json``.
        param_file: Path of ``...-0000.params``.
        input_names: Names of the inputs in the order of the call. If the symbol uses other names,
            its inputs are ordered by their numbers (``data0``, ``data1``).
        ctx: Device; int8 runs on the CPU only.

    Raises:
        ModelLoadFailed: `ctx` is a GPU, or symbol and parameters do not match.
    """

    def __init__(
        self, symbol_file: str, param_file: str, input_names: Sequence[str], ctx: Any
    ) -> None:
        if ctx.device_type != "cpu":
            raise ModelLoadFailed("an int8 model runs on the CPU only; serve it without a GPU")
        self.symbol = mx.sym.load(symbol_file)
        parameters = {name.split(":", 1)[-1] for name in mx.nd.load(param_file)}
        free = [name for name in self.symbol.list_arguments() if name not in parameters]
        if len(free) != len(input_names):
            raise ModelLoadFailed(
                f"{os.path.basename(symbol_file)} has the inputs {', '.join(free) or 'none'}, "
                f"the signature {', '.join(input_names)}"
            )
        names = list(input_names) if set(free) == set(input_names) else sorted(free, key=_number)
        with warnings.catch_warnings():
            # It cannot infer the input's type, which the call will set.
            warnings.simplefilter("ignore")
            self._first = mx.gluon.SymbolBlock(self.symbol, [mx.sym.var(name) for name in names])
        self._first.collect_params().load(
            param_file, ctx=ctx, cast_dtype=True, dtype_source="saved"
        )
        self._blocks: OrderedDict[Any, Any] = OrderedDict()

    def __call__(self, *inputs: Any) -> Any:
        """Run the network: NDArrays in, an NDArray or a list of them out, like the original."""
        shapes = tuple(array.shape for array in inputs)
        block = self._blocks.get(shapes)
        if block is None:
            # A copy has a plan of its own and shares the parameters of the first. Both flags are
            # needed to avoid converting the weights to oneDNN's layout on each call: two fifths of
            # the time of a single request to Crepe.
            block = self._blocks[shapes] = copy.copy(self._first)
            block.hybridize(static_alloc=True, static_shape=True)
            if len(self._blocks) > _MAX_SHAPES:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(shapes)
        return block(*inputs)

    def collect_params(self) -> Any:
        """Return the parameters, like a block does."""
        return self._first.collect_params()


def _number(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(\d*)", name)
    assert match is not None  # noqa: S101 - the pattern matches any string
    return match[1], int(match[2] or 0)

"""Run an MXNet symbol: fast on a SymbolBlock, and as 0.4's Module for services that use one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mms.engines.error_text import reason_line
from mms.engines.free_arguments import Graph
from mms.engines.imports import import_mxnet
from mms.engines.int8_net import QuantizedNet
from mms.engines.param_file import bare_name, read_arrays
from mms.errors import ModelLoadFailed

mx = import_mxnet()
logger = logging.getLogger("mms.engines")

#: What a Module keeps on itself; the first use of any of it binds a SymbolModel.
_MODULE_STATE = frozenset(vars(mx.mod.Module(mx.sym.Variable("data"), label_names=None)))
#: What it has of that before.
_OWN_STATE = frozenset(("_symbol", "_data_names", "_output_names"))
#: Operators of MXNet's NumPy interface, whose networks need its semantics.
_NUMPY_OPERATORS = ("_np_", "_npi_", "_npx_")
#: Input shapes for which the zeros of free arguments are kept.
_MAX_SHAPES = 64


class SymbolModel(mx.mod.Module):  # type: ignore[name-defined,misc] # mxnet has no types
    """An MXNet symbol with parameters, callable with any batch size.

    It is a Module, as ``mx_model`` was in 0.4, but runs on a SymbolBlock, which is faster and needs
    no re-binding when the batch size changes, until something is used that only a bound Module
    has: `predict`, `bind`, `get_params`, ``_exec_group`` and so on. From then on the Module runs.

    Args:
        symbol_file: Path of ``...-symbol.json``.
        param_file: Path of ``...-NNNN.params``.
        shapes: Shape by name of the inputs, in the order of the signature; 0 is any size.
        ctx: Device to load onto.
        quantized: The network to run instead, loaded from an int8 symbol and its parameters.

    Attributes:
        block: The block that runs the network; None once the Module does.
        is_bound: Whether the Module runs it, which writes every output into the same arrays.
        was_asked_for_outputs: Whether the outputs of the last forward pass were read, which in a
            batch belong to all its requests. Reset by whoever looks at it.

    Raises:
        ModelLoadFailed: The symbol lacks an input, or parameters and signature do not match it.
    """

    def __init__(
        self,
        symbol_file: str,
        param_file: str,
        shapes: Mapping[str, tuple[int, ...]],
        ctx: Any,
        quantized: QuantizedNet | None = None,
    ) -> None:
        # Not the Module's own: see `__getattr__`.
        self._ctx = ctx
        self._param_file = param_file
        self._shapes = dict(shapes)
        self._data_names = list(shapes)
        self.was_asked_for_outputs = False
        self._inputs: Sequence[Any] = ()
        self._outputs: list[Any] | None = None
        self._has_run = False
        self._free: list[str] = []
        self._zeros: dict[Any, list[Any]] = {}
        self.block: Any = quantized
        document = _read_symbol(symbol_file)
        self._is_numpy = any(node["op"].startswith(_NUMPY_OPERATORS) for node in document["nodes"])
        with self._semantics():
            self._symbol = (mx.np_symbol if self._is_numpy else mx.sym).load(symbol_file)
        self._output_names = self._symbol.list_outputs()
        self.is_bound = False
        if quantized is None:
            self._load(Graph(document))

    def __getattr__(self, name: str) -> Any:
        """Become a bound Module when something of its state is asked for."""
        state = vars(self)
        if name not in _MODULE_STATE or state.get("is_bound", True):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._bind()
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Become a bound Module before its state is changed, as `bind` does first of all."""
        if name in _MODULE_STATE and not vars(self).get("is_bound", True):
            self._bind()
        super().__setattr__(name, value)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run the network.

        Args:
            inputs: NDArrays in the order of `data_names`, on the model's device. They are cast to
                float32, as in Module, so pixels may be uint8.

        Returns:
            The outputs, one NDArray each.
        """
        if self.is_bound:
            return self._run_module(inputs)
        try:
            self._outputs = self._run_block(inputs)
        except mx.base.MXNetError as error:
            # The executor infers types that a block does not: of a symbol that casts its input,
            # say. A network that has run once is not to blame.
            outputs = None if self._has_run else self._bind_for(error, inputs)
            if outputs is None:
                raise
            return outputs
        self._has_run = True
        self._inputs = inputs
        return list(self._outputs)

    def forward(self, data_batch: Any, is_train: bool | None = None) -> None:
        """Run ``data_batch.data`` as Module.forward does; `get_outputs` returns the outputs."""
        plain = not is_train and not isinstance(data_batch, list)
        if self.is_bound or not plain or getattr(data_batch, "label", None):
            # Reads `binded`, and so binds.
            super().forward(data_batch, is_train)
        else:
            self(*[array.as_in_context(self._ctx) for array in data_batch.data])

    def get_outputs(self, merge_multi_context: bool = True) -> list[Any]:
        """Return the outputs of the last forward pass.

        Args:
            merge_multi_context: Whether each is one NDArray; if not, it is a list with one per
                device.
        """
        self.was_asked_for_outputs = True
        if self.is_bound or self._outputs is None:
            outputs: list[Any] = super().get_outputs(merge_multi_context)
            return outputs
        return [array if merge_multi_context else [array] for array in self._outputs]

    def check_shapes(self) -> None:
        """Infer every shape of the network from those of its inputs, as binding a Module did.

        Nothing is checked if an axis other than the batch's may have any size, since the network
        need not accept all of them.

        Raises:
            ModelLoadFailed: The network does not accept such inputs.
        """
        if isinstance(self.block, QuantizedNet) or self._is_numpy:
            return
        if any(0 in shape[1:] for shape in self._shapes.values()):
            return
        known = {name: (shape[0] or 1, *shape[1:]) for name, shape in self._shapes.items()}
        said = ", ".join(f"{name} {show_shape(shape)}" for name, shape in self._shapes.items())
        try:
            inferred, _, _ = self._symbol.infer_shape(**known)
        except mx.base.MXNetError as error:
            raise ModelLoadFailed(
                f"the network does not accept the signature's {said}: {reason_line(str(error))}"
            ) from None
        for name, shape in zip(self._symbol.list_arguments(), inferred or (), strict=False):
            saved = self._saved_shapes.get(name, tuple(shape))
            if saved != tuple(shape) and name not in self._shapes:
                raise ModelLoadFailed(
                    f"with the signature's {said} the network needs a parameter {name!r} of "
                    f"{show_shape(shape)}, but the file holds one of {show_shape(saved)}"
                )

    def _load(self, graph: Graph) -> None:
        """Load the parameters into a block; into a Module if no block can hold the network."""
        arrays = {bare_name(name): array for name, array in read_arrays(self._param_file).items()}
        for name in self._data_names:
            # An input wins over an array of its name in the file.
            arrays.pop(name, None)
        self._saved_shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        arguments = self._symbol.list_arguments()
        free = [name for name in arguments if name not in arrays]
        self._check_inputs(free)
        self._free = [name for name in free if name not in self._shapes]
        for name in self._free:
            if not graph.may_be_zero(name):
                raise ModelLoadFailed(self._missing(name, graph.layer_of(name)))
        if self._free:
            logger.info("zeros for %s: only training sets them", ", ".join(self._free))
        try:
            with self._semantics():
                self.block = self._make_block(arrays)
        except (AssertionError, ValueError, RuntimeError, mx.base.MXNetError) as error:
            # Parameters of storage types that only a Module knows, for one.
            if self._bind_for(error, ()) is None:
                raise ModelLoadFailed(
                    f"the parameters in {os.path.basename(self._param_file)} do not fit the "
                    f"symbol: {reason_line(str(error))}"
                ) from error

    def _check_inputs(self, free: Sequence[str]) -> None:
        for name in self._data_names:
            if name not in free:
                raise ModelLoadFailed(
                    f"the signature's input {name!r} is none of the symbol's inputs: "
                    f"{', '.join(free) or 'none'}"
                )

    def _missing(self, name: str, layer: str) -> str:
        file = os.path.basename(self._param_file)
        hint = (
            f"it is a parameter of {layer!r}: does {file} belong to this symbol?"
            if layer
            else "if it is an input, add it there; if it is a parameter, it was not saved"
        )
        return (
            f"{name!r} is neither in the parameter file {file} nor an input in signature.json; "
            f"{hint}"
        )

    def _make_block(self, arrays: Mapping[str, Any]) -> Any:
        inputs = [mx.sym.var(name) for name in self._data_names + self._free]
        if self._is_numpy:
            inputs = [symbol.as_np_ndarray() for symbol in inputs]
            arrays = {name: array.as_np_ndarray() for name, array in arrays.items()}
        with warnings.catch_warnings():
            # For input types that the symbol leaves open, as most do; `_run_block` passes float32.
            warnings.simplefilter("ignore", UserWarning)
            block = mx.gluon.SymbolBlock(self._symbol, inputs)
        # Cast to the types that the symbol infers for float32 inputs, as Module did: a network
        # saved in half or double precision then runs in single precision.
        block.collect_params().load_dict(
            arrays, ctx=self._ctx, ignore_extra=True, cast_dtype=True, dtype_source="current"
        )
        block.hybridize(static_alloc=True)
        return block

    def _run_block(self, inputs: Sequence[Any]) -> list[Any]:
        floats = [array.astype("float32", copy=False) for array in inputs]
        if self._free:
            floats += self._free_arguments(floats)
        if self._is_numpy:
            with self._semantics():
                outputs = self.block(*[array.as_np_ndarray() for array in floats])
        else:
            outputs = self.block(*floats)
        arrays = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        return [array.as_nd_ndarray() for array in arrays] if self._is_numpy else arrays

    def _free_arguments(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the zeros for arguments that are neither inputs nor saved, of the right shapes."""
        shapes = tuple(array.shape for array in inputs)
        zeros = self._zeros.get(shapes)
        if zeros is None:
            known = dict(zip(self._data_names, shapes, strict=True))
            with self._semantics():
                inferred, _, _ = self._symbol.infer_shape(**known, **self._known_parameters())
                if inferred is None:
                    raise ModelLoadFailed(
                        f"the shapes of {', '.join(self._free)} do not follow from those of the "
                        "inputs; add them to the inputs in signature.json"
                    )
                by_name = dict(zip(self._symbol.list_arguments(), inferred, strict=True))
                zeros = [mx.nd.zeros(by_name[name], ctx=self._ctx) for name in self._free]
            if len(self._zeros) >= _MAX_SHAPES:
                self._zeros.clear()
            self._zeros[shapes] = zeros
        return zeros

    def _known_parameters(self) -> dict[str, tuple[int, ...]]:
        arguments = set(self._symbol.list_arguments())
        return {name: shape for name, shape in self._saved_shapes.items() if name in arguments}

    def _bind(self) -> None:
        """Become the Module that 0.4 made: bound to the signature's shapes, for inference."""
        self.is_bound = self.was_asked_for_outputs = True
        self.block = self._outputs = None
        arrays = read_arrays(self._param_file)
        auxiliary = set(self._symbol.list_auxiliary_states())
        named = {bare_name(name): array for name, array in arrays.items()}
        with self._semantics():
            mx.mod.Module.__init__(
                self,
                symbol=self._symbol,
                context=self._ctx,
                data_names=self._data_names,
                label_names=None,
            )
            self.bind(
                for_training=False,
                # 0.4 wrote 1 for the batch's size and for every free one.
                data_shapes=[
                    (name, (1, *(size or 1 for size in shape[1:])))
                    for name, shape in self._shapes.items()
                ],
            )
            self.set_params(
                {name: array for name, array in named.items() if name not in auxiliary},
                {name: array for name, array in named.items() if name in auxiliary},
                allow_missing=True,
                allow_extra=True,
            )
            shapes = [array.shape for array in self._inputs]
            if shapes and (not self._free or shapes == [desc.shape for desc in self._data_shapes]):
                # Whatever a Module keeps of the last forward pass is there. Only the sizes that it
                # was bound to, where free arguments would have to change theirs, too.
                super().forward(mx.io.DataBatch(list(self._inputs)))
                self._inputs = ()

    def _bind_for(self, error: BaseException, inputs: Sequence[Any]) -> list[Any] | None:
        """Become a Module because a block cannot run the network, unless that cannot either.

        Args:
            error: What the block said.
            inputs: The inputs that it was to run; none to bind only.

        Returns:
            The outputs; None if the network does not run as a Module.
        """
        block = self.block
        try:
            self._bind()
            outputs = self._run_module(inputs) if inputs else []
        except Exception as other:  # noqa: BLE001 - then the block's own error is the one to tell
            logger.debug("the network runs as no Module: %s", reason_line(str(other)))
            for name in _MODULE_STATE - _OWN_STATE:
                self.__dict__.pop(name, None)
            self.block, self.is_bound = block, False
            return None
        logger.info("the network runs as a Module: %s", reason_line(str(error)))
        return outputs

    def _run_module(self, inputs: Sequence[Any]) -> list[Any]:
        super().forward(mx.io.DataBatch(list(inputs)))
        outputs: list[Any] = super().get_outputs()
        return outputs

    @contextlib.contextmanager
    def _semantics(self) -> Iterator[None]:
        """Run the network in the semantics it was made in."""
        if not self._is_numpy:
            yield
            return
        with mx.util.np_shape(True), mx.util.np_array(True):
            yield


def _read_symbol(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            document: dict[str, Any] = json.load(file)
    except (OSError, ValueError) as error:
        raise ModelLoadFailed(f"{os.path.basename(path)} cannot be read: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("nodes"), list):
        raise ModelLoadFailed(f"{os.path.basename(path)} is not the symbol of a network")
    return document


def show_shape(sizes: Sequence[int]) -> str:
    """Return a shape for messages: ? is any size."""
    return "(" + ", ".join("?" if size == 0 else str(size) for size in sizes) + ")"

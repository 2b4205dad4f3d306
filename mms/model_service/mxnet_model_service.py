"""PUBLIC: services for MXNet symbols and Gluon networks, under v0.4's names."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mms.engines.error_text import reason_line
from mms.engines.imports import import_mxnet
from mms.engines.int8_net import QuantizedNet
from mms.errors import InvalidInputShape, InvalidRequest, ModelLoadFailed
from mms.model_service.model_service import SingleNodeService

mx = import_mxnet()


def check_input_shape(inputs: Any, signature: dict[str, Any]) -> None:
    """Check arrays against a signature.

    Args:
        inputs: NDArrays, one per input; axis 0 is the batch and may have any size.
        signature: signature.json as a dict; a 0 in ``data_shape`` allows any size.

    Raises:
        InvalidInputShape: The message names the input, the expected and the actual shape.
    """
    if not isinstance(inputs, (list, tuple)):
        raise InvalidInputShape(f"inputs must be a list of NDArrays, got {type(inputs).__name__}")
    if len(inputs) != len(signature["inputs"]):
        raise InvalidInputShape(
            f"the model takes {len(signature['inputs'])} inputs, got {len(inputs)}"
        )
    for array, spec in zip(inputs, signature["inputs"], strict=True):
        name, expected = spec["data_name"], tuple(spec["data_shape"])
        shape = getattr(array, "shape", None)
        if shape is None:
            raise InvalidInputShape(
                f"input {name!r} must be an NDArray, got {type(array).__name__}"
            )
        fits = len(shape) == len(expected) and all(
            size in (0, got) for size, got in zip(expected[1:], shape[1:], strict=True)
        )
        if not fits:
            raise InvalidInputShape(
                f"input {name!r} has shape {_shape(shape)}, expected {_shape(expected)} "
                "(axis 0 is the batch; ? is any size)"
            )


def _shape(sizes: Sequence[int]) -> str:
    return "(" + ", ".join("?" if size == 0 else str(size) for size in sizes) + ")"


def _to_arrays(data: list[Any], signature: dict[str, Any], ctx: Any) -> list[Any]:
    """Return each input as a float32 NDArray of its shape.

    Raises:
        InvalidRequest: An input is ragged, or contains values that are not numbers.
    """
    arrays = []
    for value, spec in zip(data, signature["inputs"], strict=True):
        try:
            array = np.asarray(value)
            # null would become NaN, and a string the number that it spells.
            if array.dtype.kind not in "biuf":
                raise ValueError(f"it contains other values ({array.dtype})")
            arrays.append(mx.nd.array(array, ctx=ctx, dtype="float32"))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(
                f"input {spec['data_name']!r} is not an array of numbers of shape "
                f"{_shape(spec['data_shape'])}: {error}"
            ) from error
    return arrays


class _ArchiveService(SingleNodeService):
    """The common part of both kinds of MXNet service: device, signature, labels, ping."""

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, gpu)
        self.model_name = model_name
        self.ctx = _device(gpu)
        self.param_filename = manifest["Model"].get("Parameters") or None
        self._signature = _read_signature(model_dir, manifest)
        self._model_dir = model_dir
        self._symbol_filename = manifest["Model"].get("Symbol") or None
        self._is_quantized = bool((manifest.get("Serving") or {}).get("quantization"))
        synset = os.path.join(model_dir, "synset.txt")
        if os.path.isfile(synset):
            with open(synset, encoding="utf-8") as file:
                self.labels = [line.strip() for line in file]

    def ping(self) -> str:
        """Return MXNet's version."""
        return str(mx.__version__)

    @property
    def signature(self) -> dict[str, Any]:
        """signature.json as a dict."""
        return self._signature

    def _quantized_net(self) -> QuantizedNet:
        """Return the archive's int8 network."""
        return QuantizedNet(
            os.path.join(self._model_dir, str(self._symbol_filename)),
            os.path.join(self._model_dir, str(self.param_filename)),
            [spec["data_name"] for spec in self._signature["inputs"]],
            self.ctx,
        )


class MXNetBaseService(_ArchiveService):
    """Serves an MXNet symbol with its parameters.

    Attributes:
        mx_model: The network, a `SymbolModel`.
        ctx: The device it lies on.
        labels: Lines of synset.txt; absent if the archive has none.
    """

    array_stages = ("_preprocess", "_postprocess")

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, gpu)
        symbol = self._symbol_filename
        if not symbol or not self.param_filename:
            raise ModelLoadFailed(
                "MXNetBaseService needs a symbol and a parameter file in the archive; "
                "for a Gluon network derive the service from GluonImperativeBaseService"
            )
        self.mx_model = SymbolModel(
            os.path.join(model_dir, symbol),
            os.path.join(model_dir, self.param_filename),
            [spec["data_name"] for spec in self._signature["inputs"]],
            self.ctx,
            self._quantized_net() if self._is_quantized else None,
        )
        self.mx_model.check_shapes(
            {spec["data_name"]: tuple(spec["data_shape"]) for spec in self._signature["inputs"]}
        )

    def _preprocess(self, data: list[Any]) -> list[Any]:
        """Return each input, a nested list or an array, as a float32 NDArray of its shape."""
        return _to_arrays(data, self.signature, self.ctx)

    def _inference(self, data: list[Any]) -> list[Any]:
        """Check the shapes and run the network.

        Args:
            data: NDArrays, one per input.

        Returns:
            The symbol's outputs, NDArrays on `ctx`.
        """
        check_input_shape(data, self.signature)
        outputs: list[Any] = self.mx_model(*[array.as_in_context(self.ctx) for array in data])
        return outputs

    def _postprocess(self, data: list[Any]) -> list[str]:
        """Return each output as the string of its nested list, as v0.4 did."""
        return [str(array.asnumpy().tolist()) for array in data]


class GluonImperativeBaseService(_ArchiveService):
    """Serves a Gluon network.

    A subclass creates the network and passes it on; the archive's parameter file is then loaded
    onto the device, and a HybridBlock is hybridized. Without a parameter file in the archive the
    subclass initialises the network itself.

    Attributes:
        net: The network.
        ctx: The device it lies on.
        labels: Lines of synset.txt; absent if the archive has none.
    """

    array_stages = ("_preprocess",)

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any],
        net: Any = None,
        gpu: int | None = None,
    ) -> None:
        super().__init__(model_name, model_dir, manifest, gpu)
        self.net = net
        if net is None:
            return
        if self._is_quantized:
            self.net = self._quantized_net()
            return
        if self.param_filename:
            _load_parameters(net, os.path.join(model_dir, self.param_filename), self.ctx)
        if isinstance(net, mx.gluon.HybridBlock):
            # Not static_shape: batch sizes vary, and each change would plan memory again.
            net.hybridize(static_alloc=True)

    def _preprocess(self, data: list[Any]) -> Any:
        """Return each input as a float32 NDArray."""
        return _to_arrays(data, self.signature, self.ctx)

    def _inference(self, data: Any) -> Any:
        """Check the shapes, then run the network on the inputs."""
        check_input_shape(data, self.signature)
        return None if self.net is None else self.net(*data)


class SymbolModel:
    """An MXNet symbol with parameters, callable with any batch size.

    Built on SymbolBlock, which is faster than Module and needs no re-binding when the batch
    size changes; `forward` and `get_outputs` keep services that call the Module running.

    Args:
        symbol_file: Path of ``...-symbol.json``.
        param_file: Path of ``...-NNNN.params``.
        data_names: Names of the symbol's inputs, in the order of the signature.
        ctx: Device to load onto.
        quantized: The network to run instead, loaded from an int8 symbol and its parameters.

    Attributes:
        block: The block that runs the network.

    Raises:
        ModelLoadFailed: The symbol lacks an input, or the parameters do not match the symbol.
    """

    def __init__(
        self,
        symbol_file: str,
        param_file: str,
        data_names: Sequence[str],
        ctx: Any,
        quantized: QuantizedNet | None = None,
    ) -> None:
        self.symbol = mx.sym.load(symbol_file)
        self._ctx = ctx
        self._data_names = list(data_names)
        self._outputs: list[Any] = []
        self._label_names: list[str] = []
        if quantized is not None:
            self.block: Any = quantized
            return
        parameters = {
            _bare_name(name): tuple(array.shape) for name, array in mx.nd.load(param_file).items()
        }
        self._saved_shapes = parameters
        arguments = self.symbol.list_arguments()
        free = [name for name in arguments if name not in parameters]
        for name in self._data_names:
            if name not in free:
                raise ModelLoadFailed(
                    f"the signature's input {name!r} is none of the symbol's inputs: "
                    f"{', '.join(free) or 'none'}"
                )
        # Variables that are neither inputs nor parameters feed a training output such as
        # SoftmaxOutput.
        self._label_names = [name for name in free if name not in self._data_names]
        for name in self._label_names:
            if not name.endswith("label"):
                raise ModelLoadFailed(
                    f"parameter {name!r} of the symbol is missing in {os.path.basename(param_file)}"
                )
        inputs = self._data_names + self._label_names
        with warnings.catch_warnings():
            # For input types that the symbol leaves open, as most do; `__call__` passes float32.
            warnings.simplefilter("ignore", UserWarning)
            self.block = mx.gluon.SymbolBlock(self.symbol, [mx.sym.var(name) for name in inputs])
        # Cast to the types that the symbol infers for float32 inputs, as Module did: a network
        # saved in half or double precision then runs in single precision.
        self.block.collect_params().load(
            param_file, ctx=ctx, ignore_extra=True, cast_dtype=True, dtype_source="current"
        )
        self.block.hybridize(static_alloc=True)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run the network.

        Args:
            inputs: NDArrays in the order of `data_names`, on the model's device. They are cast to
                float32, as in Module, so pixels may be uint8.

        Returns:
            The outputs, one NDArray each.
        """
        floats = [array.astype("float32", copy=False) for array in inputs]
        outputs = self.block(*floats, *self._labels(floats))
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

    def check_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Infer every shape of the network from those of its inputs, as binding a Module did.

        Args:
            shapes: Shape by input name. Nothing is checked if an axis other than the batch's may
                have any size, since the network need not accept all of them.

        Raises:
            ModelLoadFailed: The network does not accept such inputs.
        """
        if isinstance(self.block, QuantizedNet) or any(0 in shape[1:] for shape in shapes.values()):
            return
        known = {name: (shape[0] or 1, *shape[1:]) for name, shape in shapes.items()}
        said = ", ".join(f"{name} {_shape(shape)}" for name, shape in shapes.items())
        try:
            inferred, _, _ = self.symbol.infer_shape(**known)
        except mx.base.MXNetError as error:
            raise ModelLoadFailed(
                f"the network does not accept the signature's {said}: {reason_line(str(error))}"
            ) from None
        for name, shape in zip(self.symbol.list_arguments(), inferred or (), strict=False):
            saved = self._saved_shapes.get(name, tuple(shape))
            if saved != tuple(shape):
                raise ModelLoadFailed(
                    f"with the signature's {said} the network needs a parameter {name!r} of "
                    f"{_shape(shape)}, but the file holds one of {_shape(saved)}"
                )

    def forward(self, data_batch: Any, is_train: bool | None = None) -> None:
        """Run ``data_batch.data``, as Module.forward does; training is not supported."""
        arrays = [array.as_in_context(self._ctx) for array in data_batch.data]
        self._outputs = self(*arrays)

    def get_outputs(self, *_: Any, **__: Any) -> list[Any]:
        """Return the outputs of the last `forward`."""
        return self._outputs

    @property
    def data_names(self) -> list[str]:
        """Names of the inputs."""
        return list(self._data_names)

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs."""
        return list(self.symbol.list_outputs())

    def get_params(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (arguments, auxiliary states), NDArrays by name, as Module.get_params does."""
        auxiliary = set(self.symbol.list_auxiliary_states())
        values = {name: p.data() for name, p in self.block.collect_params().items()}
        return (
            {name: value for name, value in values.items() if name not in auxiliary},
            {name: value for name, value in values.items() if name in auxiliary},
        )

    def _labels(self, inputs: Sequence[Any]) -> list[Any]:
        """Return zeros for inputs that are only used in training."""
        if not self._label_names:
            return []
        known = {name: array.shape for name, array in zip(self._data_names, inputs, strict=True)}
        shapes, _, _ = self.symbol.infer_shape(**known)
        by_name = dict(zip(self.symbol.list_arguments(), shapes, strict=True))
        return [mx.nd.zeros(by_name[name], ctx=self._ctx) for name in self._label_names]


def _bare_name(name: str) -> str:
    """Remove the ``arg:`` or ``aux:`` that save_checkpoint puts before a parameter's name."""
    return name.split(":", 1)[1] if name.startswith(("arg:", "aux:")) else name


def _device(gpu: int | None) -> Any:
    if gpu is None:
        return mx.cpu()
    count = mx.context.num_gpus()
    if int(gpu) >= count:
        # mx.gpu(0) succeeds without a GPU; only the first operation on it fails.
        raise ModelLoadFailed(
            f"GPU {gpu} was asked for but MXNet sees {count}; is this a CUDA build of mxnet?"
        )
    return mx.gpu(int(gpu))


def _read_signature(model_dir: str, manifest: dict[str, Any]) -> dict[str, Any]:
    path = os.path.join(model_dir, manifest["Model"]["Signature"])
    try:
        with open(path, encoding="utf-8-sig") as file:
            document: dict[str, Any] = json.load(file)
    except OSError as error:
        raise ModelLoadFailed(f"signature file {path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ModelLoadFailed(f"signature file {path} is not valid JSON: {error}") from error
    return document


def _load_parameters(net: Any, path: str, ctx: Any) -> None:
    """Load parameters, reporting a mismatch in one line; never serve a random network."""
    try:
        net.load_parameters(path, ctx=ctx)
    except (AssertionError, ValueError, RuntimeError, mx.base.MXNetError) as error:
        # MXNet appends every name in the file.
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:300] if lines else type(error).__name__
        raise ModelLoadFailed(
            f"parameter file {os.path.basename(path)} does not fit {type(net).__name__}: {reason}"
        ) from error

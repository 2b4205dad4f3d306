"""PUBLIC: services for MXNet symbols and Gluon networks, under v0.4's names."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mms.archive.text import blank_labels, read_labels, read_text
from mms.engines import hybrid
from mms.engines.imports import import_mxnet
from mms.engines.int8_net import QuantizedNet
from mms.engines.param_file import load_into
from mms.engines.symbol_model import SymbolModel
from mms.errors import InvalidInputShape, InvalidRequest, ModelLoadFailed
from mms.model_service.model_service import SingleNodeService

mx = import_mxnet()
logger = logging.getLogger("mms.model_service")


class AnySize(int):
    """The 1 that stands in ``signature`` for a size that signature.json leaves open.

    Services make arrays of these shapes, as they could in 0.4; checks accept any size.
    """


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
            size in (0, got) or isinstance(size, AnySize)
            for size, got in zip(expected[1:], shape[1:], strict=True)
        )
        if not fits:
            raise InvalidInputShape(
                f"input {name!r} has shape {_shape(shape)}, expected {_shape(expected)} "
                "(axis 0 is the batch; ? is any size)"
            )


def _shape(sizes: Sequence[int]) -> str:
    shown = ("?" if size == 0 or isinstance(size, AnySize) else str(size) for size in sizes)
    return f"({', '.join(shown)})"


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
    """The common part of both kinds of MXNet service: device, signature, labels, ping.

    Keeps nothing on ``self`` beyond 0.4's own attributes: a service may have any others.
    """

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, gpu)
        self.model_name = model_name
        self.ctx = _device(gpu)
        self.param_filename = manifest["Model"].get("Parameters") or None
        self._signature = _read_signature(model_dir, manifest)
        synset = os.path.join(model_dir, "synset.txt")
        if os.path.isfile(synset):
            self.labels = read_labels(synset)
            if blank := blank_labels(self.labels):
                logger.warning(
                    "synset.txt has no label in line %d; its class is answered as an empty string",
                    blank[0],
                )

    def ping(self) -> str:
        """Return MXNet's version."""
        return str(mx.__version__)

    @property
    def signature(self) -> dict[str, Any]:
        """signature.json as a dict."""
        return self._signature


class MXNetBaseService(_ArchiveService):
    """Serves an MXNet symbol with its parameters.

    Attributes:
        mx_model: The network, a `SymbolModel`, which is a Module.
        ctx: The device it lies on.
        labels: Lines of synset.txt; absent if the archive has none.
    """

    array_stages = ("_preprocess", "_postprocess")

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, gpu)
        symbol = manifest["Model"].get("Symbol") or None
        if not symbol or not self.param_filename:
            raise ModelLoadFailed(
                "MXNetBaseService needs a symbol and a parameter file in the archive; "
                "for a Gluon network derive the service from GluonImperativeBaseService"
            )
        inputs = self._signature["inputs"]
        shapes = {spec["data_name"]: tuple(spec["data_shape"]) for spec in inputs}
        _close_shapes(inputs)
        self.mx_model = SymbolModel(
            os.path.join(model_dir, symbol),
            os.path.join(model_dir, self.param_filename),
            shapes,
            self.ctx,
            _quantized_net(model_dir, manifest, list(shapes), self.ctx),
        )
        self.mx_model.check_shapes()

    @property
    def signature(self) -> dict[str, Any]:
        """signature.json as a dict, in which every size that an input leaves open is 1.

        So is the size of its first axis, the batch, whatever the file says: 0.4 wrote them so.
        """
        return self._signature

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
    onto the device. A HybridBlock is hybridized if its first forward passes return the same
    afterwards, and unless the service hybridizes it or runs it in ``__init__``. Without a parameter
    file in the archive the subclass initialises the network itself; without a network the file
    does not matter.

    A class that overrides `_inference` runs its network itself, and may call this one for the
    check of the shapes, as in 0.4; in a class that does not, it runs the network, too.

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
        names = [spec["data_name"] for spec in self._signature["inputs"]]
        quantized = _quantized_net(model_dir, manifest, names, self.ctx)
        if quantized is not None:
            self.net = quantized
            return
        if self.param_filename:
            load_into(net, os.path.join(model_dir, self.param_filename), self.ctx)
        hybrid.watch(net)

    def _preprocess(self, data: list[Any]) -> Any:
        """Return each input as a float32 NDArray."""
        return _to_arrays(data, self.signature, self.ctx)

    def _inference(self, data: Any) -> Any:
        """Check the shapes; run the network on the inputs unless a subclass does so itself.

        Returns:
            The network's output; None in a class that overrides this method.
        """
        check_input_shape(data, self.signature)
        own = getattr(self._inference, "__func__", None)
        if self.net is None or own is not GluonImperativeBaseService._inference:
            return None
        if mx.util.is_np_array():
            data = [array.as_np_ndarray() for array in data]
        return self.net(*data)


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
        document: dict[str, Any] = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ModelLoadFailed(
            f"signature file {os.path.basename(path)} is not valid JSON: {error}"
        ) from error
    return document


def _close_shapes(inputs: list[dict[str, Any]]) -> None:
    """Write a 1 for the batch and for every size that is left open, in place."""
    for spec in inputs:
        shape = spec["data_shape"]
        shape[:] = [AnySize(1) if size == 0 else size for size in shape]
        shape[0] = AnySize(1)


def _quantized_net(
    model_dir: str, manifest: dict[str, Any], names: list[str], ctx: Any
) -> QuantizedNet | None:
    """Return the archive's int8 network, if it has one."""
    if not (manifest.get("Serving") or {}).get("quantization"):
        return None
    model = manifest["Model"]
    return QuantizedNet(
        os.path.join(model_dir, str(model.get("Symbol"))),
        os.path.join(model_dir, str(model.get("Parameters"))),
        names,
        ctx,
    )

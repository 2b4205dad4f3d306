"""Metadata of the server and of models in the Open Inference Protocol V2, for both transports."""

from __future__ import annotations

from typing import Any

from mms.archive.manifest import ModelFormat
from mms.archive.signature import Signature, TensorSpec
from mms.config.settings import ServerSettings
from mms.serving.registry import Model
from mms.serving.servable import Servable
from mms.version import __version__

_PLATFORMS = {ModelFormat.ONNX: "onnx_onnxv1", ModelFormat.HANDLER: "python"}
#: 1.x handlers name no outputs.
_HANDLER_OUTPUT = TensorSpec("output", (1,))
_HANDLER_INPUT = TensorSpec("body", (1,))


def server_metadata(settings: ServerSettings) -> dict[str, Any]:
    """Return the server's name, version and extensions of the protocol."""
    extensions = ["binary_tensor_data"]
    if settings.management_port >= 0:
        extensions.append("model_repository")
    return {"name": "mxnet-model-server", "version": __version__, "extensions": extensions}


def model_metadata(model: Model, servable: Servable) -> dict[str, Any]:
    """Return the inputs and outputs of one version of a model.

    The formats that the service uses are known once a worker has loaded it; until then they are
    derived from the signature.
    """
    archive = servable.archive
    model_format = archive.manifest.model_format
    inputs, outputs = _specs(archive.signature, bool(archive.manifest.handler))
    takes, gives = _has_tensors(servable)
    return {
        "name": servable.name,
        "versions": list(model.versions),
        "platform": _PLATFORMS.get(model_format, "mxnet_mxnet"),
        "inputs": [_tensor(spec, takes) for spec in inputs],
        "outputs": [_tensor(spec, gives) for spec in outputs],
    }


def _specs(
    signature: Signature | None, is_handler: bool
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    inputs = signature.inputs if signature else (_HANDLER_INPUT,)
    if signature is None or is_handler:
        return inputs, (_HANDLER_OUTPUT,)
    return inputs, signature.outputs


def _has_tensors(servable: Servable) -> tuple[bool, bool]:
    """Return whether a model takes tensors, and whether it returns them."""
    if servable.last_ready is not None:
        return servable.last_ready.takes_tensors, servable.last_ready.gives_tensors
    signature = servable.archive.signature
    if signature is None or servable.archive.manifest.handler:
        return False, False
    return not signature.takes_images, not signature.gives_images


def _tensor(spec: TensorSpec, is_tensor: bool) -> dict[str, Any]:
    if not (is_tensor or spec.data_type):
        # A body: the value of a form field of that name.
        return {"name": spec.name, "datatype": "BYTES", "shape": [1]}
    shape = [size or -1 for size in spec.shape]
    return {"name": spec.name, "datatype": spec.data_type or "FP32", "shape": shape}

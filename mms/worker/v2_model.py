"""Map tensors of the Open Inference Protocol V2 to a model's inputs and outputs.

A numeric tensor is an array. A BYTES tensor of one element is a body: the content of a form field
of that name, such as JSON, an image, or whatever a 1.x handler reads. Never imports mxnet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from mms.archive.signature import Signature, TensorSpec
from mms.errors import InvalidRequest, InvalidServiceOutput
from mms.quoting import quoted, quoted_names
from mms.wire.messages import RequestLimits
from mms.worker.arrays import arrays_of
from mms.worker.image_body import image_value
from mms.worker.request import DEFAULT_LIMITS, json_value
from mms.worker.v2 import InferRequest, unknown_output
from mms.worker.v2_tensors import Tensor, tensor_of

#: The input and output of 1.x handlers, whose archives seldom state them.
HANDLER_INPUT = TensorSpec("body", (1,), "BYTES")
HANDLER_OUTPUTS = ("output",)


def takes_tensors(service: Any, signature: Signature) -> bool:
    """Return whether the model accepts arrays as is: see `SingleNodeService.array_stages`."""
    return (
        not signature.takes_images
        and _is_array_service(service)
        and _takes_arrays(service, "_preprocess")
    )


def takes_only_arrays(service: Any, signature: Signature) -> bool:
    """Return whether the model accepts nothing but arrays, as nested lists or as they are.

    Then a `_preprocess` of ours makes arrays of what it gets; one of the user's own may accept
    anything besides.
    """
    hook = getattr(service, "_preprocess", None)
    return takes_tensors(service, signature) and getattr(hook, "__module__", "").startswith("mms.")


def gives_tensors(service: Any, signature: Signature) -> bool:
    """Return whether `_inference` returns the answer: see `SingleNodeService.array_stages`."""
    return (
        not signature.gives_images
        and _is_array_service(service)
        and _takes_arrays(service, "_postprocess")
    )


def raw_input(signature: Signature, has_tensors: bool) -> TensorSpec | None:
    """Return the input that a raw body holds; None if the model has several inputs."""
    if len(signature.inputs) != 1:
        return None
    spec = signature.inputs[0]
    if not has_tensors:
        return TensorSpec(spec.name, (1,), "BYTES")
    return TensorSpec(spec.name, spec.shape, spec.data_type or "FP32")


def service_inputs(
    request: InferRequest, signature: Signature, limits: RequestLimits = DEFAULT_LIMITS
) -> list[Any]:
    """Return one value per input of the signature: an array, or the value of its body.

    Raises:
        InvalidRequest: Inputs or outputs are not the signature's, or a body is malformed.
    """
    tensors = {tensor.name: tensor for tensor in request.inputs}
    names = dict.fromkeys(signature.input_names)
    for name in tensors:
        if name not in names:
            raise InvalidRequest(
                f"the model has no input {quoted(name, 60)}; its inputs: {quoted_names(names, 60)}"
            )
    for name in names:
        if name not in tensors:
            raise InvalidRequest(
                f"input {name!r} is missing; the request has {quoted_names(tensors, 60)}"
            )
    _check_outputs(request, [spec.name for spec in signature.outputs])
    return [_service_value(tensors[name], signature, limits) for name in names]


def handler_inputs(
    request: InferRequest, decode: Callable[[str, str, bytes], Any]
) -> dict[str, Any]:
    """Return the inputs of a 1.x handler by name: arrays, and bodies as form fields.

    Args:
        request: The request.
        decode: Returns the value of a field from its name, content type ("" if unknown) and bytes.

    Raises:
        InvalidRequest: A body is malformed, or an unknown output is requested.
    """
    _check_outputs(request, HANDLER_OUTPUTS)
    return {
        tensor.name: decode(tensor.name, tensor.content_type, _body(tensor))
        if isinstance(tensor.data, list)
        else tensor.data
        for tensor in request.inputs
    }


def network_outputs(value: Any, names: Sequence[str]) -> list[Tensor] | None:
    """Return a network's outputs as tensors; None if they are not arrays.

    Args:
        value: Return value of `_inference`.
        names: The signature's outputs; further outputs of the network are left out.

    Raises:
        InvalidServiceOutput: The signature names more outputs than the network has.
    """
    arrays = arrays_of(value)
    if arrays is None:
        return None
    if len(arrays) < len(names) and isinstance(value, (list, tuple)):
        raise InvalidServiceOutput(
            f"the network returned {len(arrays)} outputs, but the signature names {len(names)}"
        )
    return _tensors(names, arrays)


def outputs_of(value: Any, names: Sequence[str], body: Callable[[], bytes]) -> list[Tensor]:
    """Return an answer as tensors: one array per output, or else a single tensor with its body.

    Args:
        value: Return value of the service or the handler.
        names: Names of the outputs.
        body: Returns the body of the answer, which becomes the single element of the first output.
    """
    arrays = arrays_of(value)
    if arrays is not None and (len(arrays) == len(names) or not isinstance(value, (list, tuple))):
        tensors = _tensors(names, arrays)
        if tensors is not None:
            return tensors
    return [Tensor(names[0], "BYTES", (1,), [body()])]


def _tensors(names: Sequence[str], arrays: Sequence[Any]) -> list[Tensor] | None:
    tensors = []
    for name, array in zip(names, arrays, strict=False):
        tensor = tensor_of(name, array.asnumpy() if hasattr(array, "asnumpy") else array)
        if tensor is None:
            return None
        tensors.append(tensor)
    return tensors


def _service_value(tensor: Tensor, signature: Signature, limits: RequestLimits) -> Any:
    if isinstance(tensor.data, list):
        if signature.takes_images:
            return image_value(tensor.name, _body(tensor))
        return json_value(tensor.name, _body(tensor), limits)
    if signature.takes_images:
        raise InvalidRequest(
            f"input {quoted(tensor.name, 60)} takes an encoded image, as BYTES of shape [1], not "
            f"{tensor.datatype} of shape {list(tensor.shape)}"
        )
    return tensor.data


def _body(tensor: Tensor) -> bytes:
    if len(tensor.data) != 1:
        raise InvalidRequest(
            f"input {quoted(tensor.name, 60)} must have exactly one element of BYTES, got "
            f"{len(tensor.data)}: each element is an entire body here; send one request for each, "
            "and the server joins them into batches itself"
        )
    return bytes(tensor.data[0])


def _check_outputs(request: InferRequest, names: Sequence[str]) -> None:
    known = set(names)
    for name in request.outputs or ():
        if name not in known:
            raise unknown_output(name, names)


def _is_array_service(service: Any) -> bool:
    return any("_preprocess" in _array_stages(cls) for cls in type(service).__mro__)


def _takes_arrays(service: Any, stage: str) -> bool:
    """Return whether the class that defines a service's stage lists it in `array_stages`."""
    owner = next((cls for cls in type(service).__mro__ if stage in vars(cls)), None)
    return owner is not None and stage not in vars(service) and stage in _array_stages(owner)


def _array_stages(cls: type[Any]) -> Collection[str]:
    """Return a class's own `array_stages`; those of its bases apply only to their stages."""
    stages: Collection[str] = vars(cls).get("array_stages", ())
    return stages

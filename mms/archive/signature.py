"""signature.json: a model's typed inputs and outputs. Pure.

The format is v0.4's: ``inputs`` and ``outputs`` are lists of ``{"data_name", "data_shape"}``, and
``input_type`` and ``output_type`` are MIME types. Entry 0 of a shape is the batch axis; a 0
anywhere in a shape means "any size". v0.4 did not have, but ignores: an entry's ``data_type``, one
of the names of the Open Inference Protocol; ``preprocess`` of pictures, for all inputs or for one;
``postprocess`` of the outputs.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mms.archive.data_types import TABLE
from mms.archive.pictures import (
    DECLARATIONS,
    Postprocess,
    Preprocess,
    parse_postprocess,
    parse_preprocess,
    picture_layout,
    refuse_typos,
)
from mms.errors import SignatureError
from mms.quoting import quoted

JSON_TYPE = "application/json"
IMAGE_PREFIX = "image/"
#: Element types by their names in the Open Inference Protocol V2.
DATA_TYPES = tuple(type_.name for type_ in TABLE)
#: Maximum number of inputs, or outputs, of one model or request.
MAX_TENSORS = 1000
#: NumPy's maximum.
MAX_DIMENSIONS = 32
#: No axis is longer: MXNet counts in 31 bits.
MAX_SIZE = (1 << 31) - 1
_KEYS = ("inputs", "input_type", "outputs", "output_type", "data_name", "data_shape", "data_type")
_EXAMPLE = '{"data_name": "data", "data_shape": [0, 3, 224, 224]}'


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: What clients call it.
        shape: Size of each axis, axis 0 being the batch; 0 is any size.
        data_type: Element type, one of `DATA_TYPES`; "" if the signature does not state it.
        preprocess: What is done to its pictures; None if the signature does not declare it.
    """

    name: str
    shape: tuple[int, ...]
    data_type: str = ""
    preprocess: Preprocess | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model.

    Attributes:
        inputs: At least one, with distinct names.
        input_type: ``application/json`` or ``image/...``.
        outputs: At least one.
        output_type: ``application/json`` or ``image/...``.
        postprocess: What is done to the outputs; None if the signature does not declare it.
    """

    inputs: tuple[TensorSpec, ...]
    input_type: str
    outputs: tuple[TensorSpec, ...]
    output_type: str
    postprocess: Postprocess | None = None

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def takes_images(self) -> bool:
        """Whether the inputs are encoded images."""
        return self.input_type.startswith(IMAGE_PREFIX)

    @property
    def gives_images(self) -> bool:
        """Whether the outputs are encoded images."""
        return self.output_type.startswith(IMAGE_PREFIX)

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document that `parse_signature` reads."""
        document: dict[str, Any] = {
            "inputs": [_spec_document(spec) for spec in self.inputs],
            "input_type": self.input_type,
            "outputs": [_spec_document(spec) for spec in self.outputs],
            "output_type": self.output_type,
        }
        if self.postprocess is not None:
            document["postprocess"] = self.postprocess.to_document()
        return document


def parse_signature(document: Any, source: str = "signature.json") -> Signature:
    """Validate a signature's JSON document and return it typed.

    Args:
        document: Parsed JSON. Unknown keys are ignored, as in v0.4.
        source: Its origin, for messages.

    Raises:
        SignatureError: The message names the key, what is wrong with it and how to fix it.
    """
    if not isinstance(document, dict):
        raise SignatureError(f"{source}: expected a JSON object, got {_kind(document)}")
    inputs = _specs(document, "inputs", source)
    seen: set[str] = set()
    for spec in inputs:
        if spec.name in seen:
            raise SignatureError(
                f"{source}: two inputs are named {quoted(spec.name)}; give each its own data_name"
            )
        seen.add(spec.name)
    input_type = _mime_type(document, "input_type", source)
    outputs = _specs(document, "outputs", source)
    output_type = _mime_type(document, "output_type", source)
    refuse_typos(document, "", source)
    signature = Signature(
        _with_preprocess(inputs, document, source),
        input_type,
        outputs,
        output_type,
        parse_postprocess(document["postprocess"], "postprocess", source)
        if "postprocess" in document
        else None,
    )
    if any("postprocess" in entry for entry in (*document["inputs"], *document["outputs"])):
        raise SignatureError(
            f'{source}: postprocess concerns all outputs together; write it beside "outputs"'
        )
    _check_declarations(signature, source)
    return signature


def _with_preprocess(
    inputs: tuple[TensorSpec, ...], document: dict[str, Any], source: str
) -> tuple[TensorSpec, ...]:
    """Return the inputs, each with what is declared for it or else for all."""
    shared = (
        parse_preprocess(document["preprocess"], "preprocess", source)
        if "preprocess" in document
        else None
    )
    found = []
    for index, (spec, entry) in enumerate(zip(inputs, document["inputs"], strict=True)):
        where = f"inputs[{index}]"
        refuse_typos(entry, f"{where}: ", source)
        own = (
            parse_preprocess(entry["preprocess"], f"{where}.preprocess", source)
            if "preprocess" in entry
            else shared
        )
        found.append(replace(spec, preprocess=own))
    return tuple(found)


def _check_declarations(signature: Signature, source: str) -> None:
    """Check what is declared against the inputs.

    Raises:
        SignatureError: A picture of that kind does not fit into its input.
    """
    for spec in signature.inputs:
        if spec.preprocess is None:
            continue
        if not signature.takes_images:
            raise SignatureError(
                f"{source}: preprocess is for pictures, but input_type is "
                f'"{signature.input_type}"; set it to "image/jpeg", or remove preprocess'
            )
        picture_layout(spec.name, spec.shape, spec.preprocess, source)
        if spec.data_type == "UINT8" and not spec.preprocess.is_raw:
            raise SignatureError(
                f"{source}: the input {spec.name!r} of data_type UINT8 takes pixels from 0 to 255; "
                "remove scale, mean and std from its preprocess"
            )
    if signature.postprocess is None:
        return
    if not signature.takes_images:
        raise SignatureError(
            f"{source}: postprocess is for models that take pictures, but input_type is "
            f'"{signature.input_type}"; set it to "image/jpeg", or remove postprocess'
        )
    if signature.gives_images:
        raise SignatureError(
            f'{source}: postprocess gives numbers, but output_type is "{signature.output_type}"; '
            f'set it to "{JSON_TYPE}", or remove postprocess'
        )
    boxes = signature.postprocess.boxes
    if boxes is not None and boxes.coordinates == "pixels":
        spec = signature.inputs[0]
        layout = picture_layout(spec.name, spec.shape, spec.preprocess, source)
        if not (layout.height and layout.width):
            raise SignatureError(
                f"{source}: postprocess.boxes.coordinates in pixels need a picture of fixed size; "
                f"the input {spec.name!r} has the data_shape {list(spec.shape)}"
            )


def _specs(document: dict[str, Any], key: str, source: str) -> tuple[TensorSpec, ...]:
    value = _required(document, key, source, f"add one, such as [{_EXAMPLE}]")
    if not isinstance(value, list) or not value:
        raise SignatureError(
            f"{source}: {key!r} must be a list with at least one entry such as {_EXAMPLE}, "
            f"got {_kind(value)}"
        )
    if len(value) > MAX_TENSORS:
        raise SignatureError(
            f"{source}: {key!r} has {len(value)} entries, at most {MAX_TENSORS} are allowed"
        )
    return tuple(_spec(entry, f"{key}[{index}]", source) for index, entry in enumerate(value))


def _spec(entry: Any, where: str, source: str) -> TensorSpec:
    if not isinstance(entry, dict):
        raise SignatureError(
            f"{source}: {where} must be an object such as {_EXAMPLE}, got {_kind(entry)}"
        )
    name = _required(entry, "data_name", source, 'add "data_name": "data"', where)
    if not isinstance(name, str) or not name:
        raise SignatureError(
            f"{source}: {where}.data_name must be a non-empty string, got {_kind(name)}"
        )
    shape = _required(entry, "data_shape", source, 'add "data_shape": [0, 3, 224, 224]', where)
    _check_shape(shape, f"{where}.data_shape", source)
    data_type = entry.get("data_type", "")
    if data_type not in ("", *DATA_TYPES):
        raise SignatureError(
            f"{source}: {where}.data_type must be one of {', '.join(DATA_TYPES)}, "
            f"got {quoted(data_type)}"
        )
    return TensorSpec(name, tuple(shape), data_type)


def _check_shape(shape: Any, where: str, source: str) -> None:
    if isinstance(shape, list) and len(shape) > MAX_DIMENSIONS:
        raise SignatureError(
            f"{source}: {where} has {len(shape)} axes, at most {MAX_DIMENSIONS} are allowed"
        )
    if (
        not isinstance(shape, list)
        or not shape
        or not all(isinstance(size, int) and not isinstance(size, bool) for size in shape)
        or not 0 <= min(shape) <= max(shape) <= MAX_SIZE
    ):
        raise SignatureError(
            f"{source}: {where} must be a list of integers >= 0 "
            f"(0 means any size) and <= {MAX_SIZE}, got {quoted(shape)}"
        )


def _mime_type(document: dict[str, Any], key: str, source: str) -> str:
    value = _required(document, key, source, f'add "{key}": "{JSON_TYPE}" or "image/jpeg"')
    if isinstance(value, str):
        text = value.strip().lower()
        is_image = text.startswith(IMAGE_PREFIX) and len(text) > len(IMAGE_PREFIX)
        # It becomes the answer's Content-Type, where a line break would end the header.
        if text == JSON_TYPE or (is_image and text.isascii() and text.isprintable()):
            return text
    raise SignatureError(
        f'{source}: {key!r} must be "{JSON_TYPE}" or an image type such as "image/jpeg", '
        f"got {quoted(value)}"
    )


def _required(document: dict[str, Any], key: str, source: str, fix: str, where: str = "") -> Any:
    if key in document:
        return document[key]
    place = f"{where} has no" if where else "has no"
    # Only names of similar length can be meant; the comparison costs the square of the length.
    unknown = [name for name in islice(document, MAX_TENSORS) if _may_be_meant(name)]
    close = difflib.get_close_matches(key, unknown, n=1)
    hint = f" (is {close[0]!r} a typo?)" if close else ""
    raise SignatureError(f"{source}: {place} {key!r}{hint}; {fix}")


def _may_be_meant(name: Any) -> bool:
    known = (*_KEYS, *DECLARATIONS)
    return isinstance(name, str) and name not in known and len(name) <= 2 * len("output_type")


def _spec_document(spec: TensorSpec) -> dict[str, Any]:
    document: dict[str, Any] = {"data_name": spec.name, "data_shape": list(spec.shape)}
    if spec.data_type:
        document["data_type"] = spec.data_type
    if spec.preprocess is not None:
        document["preprocess"] = spec.preprocess.to_document()
    return document


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    if isinstance(value, list) and not value:
        return "an empty list"
    if value == "":
        return "an empty string"
    return names.get(type(value), quoted(value))

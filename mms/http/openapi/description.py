"""The OpenAPI 3.0 description of a model: schemas of its inputs, its request bodies, an example.

Derived from the signature and the sample request in the archive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mms.archive.manifest import Sample
from mms.archive.signature import JSON_TYPE, Signature, TensorSpec
from mms.serving.registry import Registry

_FORM, _URL_FORM = "multipart/form-data", "application/x-www-form-urlencoded"
BYTES_TYPE = "application/octet-stream"
_MAX_SAMPLE_BYTES = 64 << 10
#: JSON encoders fail at about 250 levels, some of which the document itself needs.
_MAX_SAMPLE_DEPTH = 64
#: Shapes with more axes are described as any value: no tensor has so many, but a file may say so.
_MAX_AXES = 16
_MAX_DEPTH, _MAX_PROPERTIES = 8, 50
ANY: dict[str, Any] = {}
BINARY = {"type": "string", "format": "binary"}

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The data that describes one version of a model.

    Attributes:
        name: Name clients use.
        version: Its version.
        is_default: Whether it answers requests that name no version.
        signature: Inputs and outputs; None if the archive has none (MMS 1.x).
        folder: The unpacked archive.
        sample: The sample request in the archive, if any.
    """

    name: str
    version: str
    is_default: bool
    signature: Signature | None
    folder: Path
    sample: Sample | None = None

    def sample_value(self) -> Any:
        """Return the sample request if it is short JSON, else None. Reads its file."""
        if self.sample is None or self.sample.content_type != JSON_TYPE:
            return None
        path = self.folder / self.sample.file
        try:
            if path.stat().st_size > _MAX_SAMPLE_BYTES:
                return None
            value = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            # The archive was unregistered meanwhile, or the sample is for a form.
            return None
        return value if _is_shallow(value, _MAX_SAMPLE_DEPTH) else None


def _is_shallow(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return True
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in value)


def models_of(registry: Registry) -> list[ModelDescription]:
    """Return every version of every model, each model's default version first."""
    found = []
    for model in registry.models():
        servables = list(model.versions.values())
        for servable in sorted(servables, key=lambda s: s.version != model.default):
            archive = servable.archive
            found.append(
                ModelDescription(
                    servable.name,
                    servable.version,
                    servable.version == model.default,
                    archive.signature,
                    archive.folder,
                    archive.manifest.serving.sample,
                )
            )
    return found


def input_schemas(signature: Signature, sample: Any) -> dict[str, Document]:
    """Return the JSON schema of each input of a model that takes JSON.

    A service may convert its input, and the shape in the signature may be that of the converted
    tensor. So if the archive's sample does not match the shape, the schema is derived from the
    sample.

    Args:
        signature: The signature of a model that takes JSON.
        sample: The result of `ModelDescription.sample_value`.
    """
    values = sample_inputs(signature.input_names, sample)
    return {spec.name: _input_schema(spec, values.get(spec.name)) for spec in signature.inputs}


def sample_inputs(names: Sequence[str], sample: Any) -> dict[str, Any]:
    """Return a sample's value of each input; empty unless it has one for each."""
    if sample is None:
        return {}
    if isinstance(sample, dict) and any(name in sample for name in names):
        return {n: sample[n] for n in names} if all(name in sample for name in names) else {}
    if len(names) > 1:
        return {}
    return {names[0]: [sample] if isinstance(sample, dict) else sample}


def _input_schema(spec: TensorSpec, value: Any) -> Document:
    shape = spec.shape
    schema = _array_schema(shape)
    if value is not None and not _fits(value, shape):
        schema = _schema_like(value)
    text = ", ".join(str(size) if size else "any" for size in shape)
    return {**schema, "description": f"shape in the signature: ({text}); axis 0 is the batch"}


def _array_schema(shape: Sequence[int]) -> Document:
    """Return a schema of nested arrays, with all axes but the batch fixed, unless they are 0."""
    if len(shape) == 1 or len(shape) > _MAX_AXES:
        # A list of any values that the service accepts: a single axis does not restrict them.
        return {"type": "array", "items": ANY}
    schema: Document = {"type": "number"}
    for size in reversed(shape[1:]):
        schema = {"type": "array", "items": schema}
        if size:
            schema |= {"minItems": size, "maxItems": size}
    return {"type": "array", "items": schema}


def _fits(value: Any, shape: Sequence[int]) -> bool:
    """Return whether a value matches `_array_schema`."""
    if not isinstance(value, list):
        return False
    if len(shape) == 1 or len(shape) > _MAX_AXES:
        return True
    return all(_fits_rest(item, shape[1:]) for item in value)


def _fits_rest(value: Any, shape: Sequence[int]) -> bool:
    if not shape:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return (
        isinstance(value, list)
        and shape[0] in (0, len(value))
        and all(_fits_rest(item, shape[1:]) for item in value)
    )


def _schema_like(value: Any, depth: int = 0) -> Document:
    """Derive a schema from an example: its types, without anything specific to its values."""
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, (int, float)):
        return {"type": "number"}
    if isinstance(value, str):
        return {"type": "string"}
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        is_uniform = len(kinds) == 1 and depth < _MAX_DEPTH
        return {
            "type": "array",
            "items": _schema_like(value[0], depth + 1) if is_uniform else ANY,
        }
    if isinstance(value, dict) and depth < _MAX_DEPTH and len(value) <= _MAX_PROPERTIES:
        properties = {key: _schema_like(item, depth + 1) for key, item in value.items()}
        return {"type": "object", "properties": properties}
    return {"type": "object"} if isinstance(value, dict) else ANY


def request_body(model: ModelDescription) -> Document:
    """Return the request body of a model, with all its content types. Reads the sample file."""
    signature = model.signature
    if signature is None:
        return {
            "description": "The archive has no signature: the model's own code decodes the body.",
            "required": True,
            "content": free_content(),
        }
    if signature.takes_images:
        return _image_body(signature)
    # Not listed as content types, as for images: generated clients would have to choose.
    also = "Rows are also accepted as `application/jsonlines`."
    if len(signature.inputs) == 1 and signature.inputs[0].data_type != "BYTES":
        also = (
            "Numbers are also accepted as `application/x-npy`, `text/csv` and "
            "`application/jsonlines`, and are answered so if Accept asks for it."
        )
    content = _json_content(signature, model.sample_value())
    return {"description": also, "required": True, "content": content}


def answer_schema(signature: Signature) -> Document:
    """Return the schema of a model's answer; what a service makes of its outputs is unknown."""
    names = ", ".join(spec.name for spec in signature.outputs)
    schema: Document = {"description": f"the service's result; outputs: {names}"}
    declared = signature.postprocess
    number = {"type": "number"}
    if declared is None or not (declared.boxes or declared.ranks_classes):
        return schema
    # A class without a label is its number.
    item: Document = {"class": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
    if declared.boxes:
        item |= {"score": number, "box": {"type": "array", "items": number}}
    else:
        item["probability" if declared.softmax else "score"] = number
    entry = {"type": "array", "items": {"type": "object", "properties": item}}
    return {**schema, "type": "array", "items": entry}


def free_content() -> Document:
    """Return the content of a body whose format is unknown."""
    return {
        JSON_TYPE: {"schema": ANY},
        _FORM: {"schema": {"type": "object", "additionalProperties": True}},
        BYTES_TYPE: {"schema": BINARY},
    }


def _json_content(signature: Signature, sample: Any) -> Document:
    names = signature.input_names
    schemas = input_schemas(signature, sample)
    body: Document = {"schema": {"type": "object", "required": list(names), "properties": schemas}}
    if len(names) == 1:
        body["schema"] = {"anyOf": [schemas[names[0]], body["schema"]]}
    values = sample_inputs(names, sample)
    if values:
        is_keyed = isinstance(sample, dict) and names[0] in sample
        body["example"] = values if is_keyed else values[names[0]]
    fields = {name: _form_field(name, values) for name in names}
    form = {"schema": {"type": "object", "required": list(names), "properties": fields}}
    return {JSON_TYPE: body, _FORM: form, _URL_FORM: form}


def _form_field(name: str, values: Mapping[str, Any]) -> Document:
    field = {"type": "string", "description": "JSON, or a Python literal as sent by 0.4 clients"}
    return {**field, "example": orjson.dumps(values[name]).decode()} if name in values else field


def _image_body(signature: Signature) -> Document:
    names = list(signature.input_names)
    files = {"type": "object", "required": names, "properties": dict.fromkeys(names, BINARY)}
    content: Document = {_FORM: {"schema": files}}
    if len(names) == 1:
        # The declared subtype is only a hint: any format that the decoder supports is accepted.
        content = {signature.input_type: {"schema": BINARY}, **content}
    # Not listed as a content type: with JSON to choose, generated clients would not upload files.
    also = "Images are also accepted in base64, in a form or as JSON keyed by the inputs' names."
    return {"description": also, "required": True, "content": content}

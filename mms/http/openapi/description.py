"""What the descriptions say of a model: schemas of its inputs, bodies that it takes, an example.

In the words of OpenAPI 3.0, from the signature and the sample request in the archive.
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
#: JSON encoders stop at some 250 levels, of which a document has its own.
_MAX_SAMPLE_DEPTH = 64
#: Deeper ones are described as anything: no tensor has so many axes, but a file may say so.
_MAX_AXES = 16
_MAX_DEPTH, _MAX_PROPERTIES = 8, 50
ANY: dict[str, Any] = {}
BINARY = {"type": "string", "format": "binary"}

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a description says of one version of a model.

    Attributes:
        name: Name clients use.
        version: Its version.
        is_default: Whether it answers requests that name no version.
        signature: Inputs and outputs; None where the archive has none (MMS 1.x).
        folder: The unpacked archive.
        sample: The request that the archive brings along, if any.
    """

    name: str
    version: str
    is_default: bool
    signature: Signature | None
    folder: Path
    sample: Sample | None = None

    def sample_value(self) -> Any:
        """Return the sample request if it is JSON and short, else None. Reads its file."""
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

    A service decides what it makes of its input, and the shape of the signature may be that of
    the tensor that it makes. So where the archive's sample does not fit the shape, the schema is
    the sample's.

    Args:
        signature: Of a model that takes JSON.
        sample: What `ModelDescription.sample_value` gave.
    """
    values = sample_inputs(signature.input_names, sample)
    return {spec.name: _input_schema(spec, values.get(spec.name)) for spec in signature.inputs}


def sample_inputs(names: Sequence[str], sample: Any) -> dict[str, Any]:
    """Return a sample's value for each input; none if it has not one for each."""
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
    """Return nested arrays. The sizes of all axes but the batch are fixed, unless they are 0."""
    if len(shape) == 1 or len(shape) > _MAX_AXES:
        # A list of whatever the service takes: with one axis there is nothing said about it.
        return {"type": "array", "items": ANY}
    schema: Document = {"type": "number"}
    for size in reversed(shape[1:]):
        schema = {"type": "array", "items": schema}
        if size:
            schema |= {"minItems": size, "maxItems": size}
    return {"type": "array", "items": schema}


def _fits(value: Any, shape: Sequence[int]) -> bool:
    """Whether a value is what `_array_schema` describes."""
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
    """Return a schema by an example: its types, and nothing that another value need not have."""
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
    """Return the request body that a model takes, in every form of it. Reads the sample file."""
    signature = model.signature
    if signature is None:
        return {
            "description": "The archive has no signature: the model's own code reads the body.",
            "required": True,
            "content": free_content(),
        }
    if signature.takes_images:
        return _image_body(signature)
    return {"required": True, "content": _json_content(signature, model.sample_value())}


def free_content() -> Document:
    """Return the content of a body of which nothing is known."""
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
    field = {"type": "string", "description": "JSON, or a Python literal as clients of 0.4 send it"}
    return {**field, "example": orjson.dumps(values[name]).decode()} if name in values else field


def _image_body(signature: Signature) -> Document:
    names = list(signature.input_names)
    files = {"type": "object", "required": names, "properties": dict.fromkeys(names, BINARY)}
    content: Document = {_FORM: {"schema": files}}
    if len(names) == 1:
        # The declared subtype is a hint only: any format that the decoder reads is taken.
        content = {signature.input_type: {"schema": BINARY}, **content}
    # Not listed as a content type: given JSON to choose, generated clients upload no file.
    also = "Images are also taken in base64, in a form or as JSON keyed by the inputs' names."
    return {"description": also, "required": True, "content": content}

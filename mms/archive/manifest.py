"""MANIFEST.json: the content of an archive. Pure; imports only errors and quoting.

The schema is v0.4's, plus two optional keys that old servers ignore: ``Files`` (sha256 of each
file) and ``Serving`` (defaults for how to serve the model). ``MAR-INF/MANIFEST.json`` of MMS 1.x
has its own schema, of which only the relevant parts are read.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import sys
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from mms.archive.candidates import Candidate, candidates_document, parse_candidates
from mms.errors import ManifestError
from mms.quoting import quoted

MANIFEST_NAME = "MANIFEST.json"
#: Its place in archives of MMS 1.x and TorchServe.
MAR_MANIFEST_NAME = "MAR-INF/MANIFEST.json"
#: The default name of the signature, as in 1.x archives.
SIGNATURE_NAME = "signature.json"
ARCHIVE_VERSION = 0.2
#: Keys of ``Serving`` besides its sample.
SERVING_KEYS = ("workers", "batch_size", "max_batch_delay", "response_timeout", "device")

#: The largest value of each that `Serving` may set. For a batch: the limit of one worker message.
MAX_BATCH_SIZE = 0xFFFF
#: More processes than any machine has cores.
MAX_WORKERS = 10_000
#: An hour in milliseconds, and a month in seconds: timers do not accept values such as 1e300.
MAX_BATCH_DELAY_MS = 3_600_000
MAX_RESPONSE_TIMEOUT_S = 30 * 86_400

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelFormat(enum.Enum):
    """How the network is stored, by its name in the manifest."""

    GLUON = "Gluon-Imperative"
    SYMBOLIC = "MXNet-Symbolic"
    ONNX = "ONNX"
    HANDLER = "MMS-1.x"


@dataclass(frozen=True, slots=True)
class Sample:
    """A request stored in the archive: for ``--check`` and to warm up workers.

    Attributes:
        file: Path inside the archive of the request's body.
        content_type: MIME type of the body.
    """

    file: str
    content_type: str


@dataclass(frozen=True, slots=True)
class Quantization:
    """The quantization of a network, and its agreement with the original.

    Attributes:
        dtype: ``int8``.
        samples: Number of rows of calibration data compared.
        agreement: Fraction of them with the same largest output; see `mms.export.calibrate`.
        max_relative_error: Largest difference of any output, divided by the largest output.
    """

    dtype: str
    samples: int
    agreement: float
    max_relative_error: float


@dataclass(frozen=True, slots=True)
class ServingDefaults:
    """Default settings for serving the model; flags, environment and configuration override."""

    workers: int | None = None
    batch_size: int | None = None
    max_batch_delay: float | None = None
    response_timeout: float | None = None
    device: str | None = None
    sample: Sample | None = None
    quantization: Quantization | None = None
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model archive's table of contents. Paths are relative to the archive's root.

    A 1.x archive has a `handler`, ``module:function``, in place of a `service`. Its
    `model_version`, `runtime` (``python``, ``python2`` or ``python3``) and `extensions` are shown
    and change nothing; handlers find the whole document in their context.
    """

    model_name: str
    model_format: ModelFormat
    service: str
    signature: str
    handler: str = ""
    parameters: str = ""
    symbol: str = ""
    description: str = ""
    archive_version: float = ARCHIVE_VERSION
    model_server: str = ""
    engine: dict[str, str] = field(default_factory=dict)
    created_by: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    serving: ServingDefaults = field(default_factory=ServingDefaults)
    model_version: str = ""
    runtime: str = "python"
    extensions: Any = None

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document that `parse_manifest` reads."""
        document: dict[str, Any] = {
            "Model-Archive-Version": self.archive_version,
            "Model-Archive-Description": self.description,
            "Model-Server": self.model_server,
            "Model": {
                "Symbol": self.symbol,
                "Parameters": self.parameters,
                "Signature": self.signature,
                "Service": self.service,
                "Description": self.description,
                "Model-Name": self.model_name,
                "Model-Format": self.model_format.value,
            },
            "Engine": dict(self.engine),
        }
        if self.created_by:
            document["Created-By"] = dict(self.created_by)
        serving = _serving_document(self.serving)
        if serving:
            document["Serving"] = serving
        if self.files:
            document["Files"] = dict(self.files)
        return document


def parse_manifest(document: Any, source: str = MANIFEST_NAME) -> Manifest:
    """Validate a manifest's JSON document and return it typed.

    Args:
        document: Parsed JSON. Unknown keys are ignored, so that newer archives load.
        source: Its origin, for messages.

    Raises:
        ManifestError: The message names the key, what is wrong with it and how to fix it.
    """
    root = _object(document, source, "the manifest")
    model = _object(_required(root, "Model", source), source, "Model")
    has_symbol = bool(model.get("Symbol") and model.get("Parameters"))
    text = _required(model, "Model-Format", source, "Model")
    model_format = _model_format(text, source, has_symbol)
    manifest = Manifest(
        model_name=_model_name(_required(model, "Model-Name", source, "Model"), source),
        model_format=model_format,
        service=_path(_required(model, "Service", source, "Model"), "Model.Service", source),
        signature=_path(_required(model, "Signature", source, "Model"), "Model.Signature", source),
        parameters=_path(model.get("Parameters") or "", "Model.Parameters", source, empty=True),
        symbol=_path(model.get("Symbol") or "", "Model.Symbol", source, empty=True),
        description=_text(model.get("Description") or "", "Model.Description", source),
        archive_version=_number(root.get("Model-Archive-Version", ARCHIVE_VERSION), source),
        model_server=str(root.get("Model-Server", "")),
        engine=_labels(root.get("Engine", {}), "Engine", source),
        created_by=_labels(root.get("Created-By", {}), "Created-By", source),
        files=_files(root.get("Files", {}), source),
        serving=parse_serving(root.get("Serving", {}), source),
    )
    if model_format is ModelFormat.SYMBOLIC and not (manifest.symbol and manifest.parameters):
        raise ManifestError(
            f"{source}: a {model_format.value} model needs both Model.Symbol and "
            "Model.Parameters; export it again with its -symbol.json and .params files"
        )
    if model_format is ModelFormat.ONNX and not manifest.symbol:
        raise ManifestError(
            f"{source}: an ONNX model needs its .onnx file as Model.Symbol; export it again"
        )
    return manifest


def parse_mar_manifest(document: Any, source: str = MAR_MANIFEST_NAME) -> Manifest:
    """Validate the manifest of a 1.x archive and return it typed.

    Args:
        document: Parsed JSON. Unknown keys are ignored.
        source: Its origin, for messages.

    Raises:
        ManifestError: The message names the key, what is wrong with it and how to fix it.
    """
    root = _object(document, source, "the manifest")
    model = _object(_required(root, "model", source), source, "model")
    runtime = root.get("runtime") or "python"
    if not str(runtime).lower().startswith("python"):
        raise ManifestError(
            f"{source}: the runtime {quoted(runtime)} is not supported; only Python handlers are"
        )
    engine = _object(root.get("engine") or {}, source, "engine")
    manifest = handler_manifest(
        _model_name(_required(model, "modelName", source, "model"), source),
        _text(model.get("handler") or "", "model.handler", source),
        description=str(model.get("description") or root.get("description") or ""),
        engine={str(engine["engineName"]): str(engine.get("engineVersion", ""))}
        if "engineName" in engine
        else {},
        serving=ServingDefaults(
            batch_size=_optional_number(model, "batchSize", source, int, 1, MAX_BATCH_SIZE),
            max_batch_delay=_optional_number(
                model, "maxBatchDelay", source, float, 0, MAX_BATCH_DELAY_MS
            ),
        ),
    )
    version = model.get("modelVersion")
    return dataclasses.replace(
        manifest,
        # Archivers for other servers write numbers.
        model_version="" if version is None else str(version),
        runtime=str(runtime).lower(),
        extensions=model.get("extensions"),
    )


def handler_manifest(
    model_name: str,
    handler: str,
    description: str = "",
    engine: dict[str, str] | None = None,
    serving: ServingDefaults | None = None,
) -> Manifest:
    """Return the manifest of a model served by a 1.x handler."""
    return Manifest(
        model_name=model_name,
        model_format=ModelFormat.HANDLER,
        service="",
        signature=SIGNATURE_NAME,
        handler=handler,
        description=description,
        engine=engine or {},
        serving=serving or ServingDefaults(),
    )


def is_of_torchserve(document: Any) -> bool:
    """Whether TorchServe's archiver wrote a manifest of this schema."""
    model = document.get("model") if isinstance(document, dict) else None
    return isinstance(model, dict) and (
        "archiverVersion" in document or "serializedFile" in model or "modelFile" in model
    )


def parse_serving(value: Any, source: str) -> ServingDefaults:
    """Validate the ``Serving`` part of a manifest and return it typed.

    Raises:
        ManifestError: The message names the key and what is wrong with it.
    """
    serving = _object(value, source, "Serving")
    return ServingDefaults(
        workers=_optional_number(serving, "workers", source, int, 1, MAX_WORKERS),
        batch_size=_optional_number(serving, "batch_size", source, int, 1, MAX_BATCH_SIZE),
        max_batch_delay=_optional_number(
            serving, "max_batch_delay", source, float, 0, MAX_BATCH_DELAY_MS
        ),
        response_timeout=_optional_number(
            serving, "response_timeout", source, float, 0.001, MAX_RESPONSE_TIMEOUT_S
        ),
        device=_optional_text(serving, "device", source),
        sample=_sample(serving.get("sample"), source),
        quantization=_quantization(serving.get("quantization"), source),
        candidates=parse_candidates(serving.get("candidates"), source),
    )


def _quantization(value: Any, source: str) -> Quantization | None:
    if value is None:
        return None
    key = "Serving.quantization"
    entry = _object(value, source, key)
    dtype = _text(_required(entry, "dtype", source, key), f"{key}.dtype", source)
    if dtype != "int8":
        raise ManifestError(f"{source}: {key}.dtype must be int8, got {quoted(dtype)}")
    return Quantization(
        dtype=dtype,
        samples=_optional_number(entry, "samples", source, int, 0) or 0,
        agreement=_optional_number(entry, "agreement", source, float, -1, 1) or 0.0,
        max_relative_error=_optional_number(entry, "max_relative_error", source, float, 0) or 0.0,
    )


def _sample(value: Any, source: str) -> Sample | None:
    if value is None:
        return None
    sample = _object(value, source, "Serving.sample")
    return Sample(
        file=_path(_required(sample, "file", source, "Serving.sample"), "sample.file", source),
        content_type=_text(
            sample.get("content_type", "application/json"), "Serving.sample.content_type", source
        ),
    )


def _serving_document(serving: ServingDefaults) -> dict[str, Any]:
    document: dict[str, Any] = {
        key: getattr(serving, key) for key in SERVING_KEYS if getattr(serving, key) is not None
    }
    if serving.sample:
        document["sample"] = {
            "file": serving.sample.file,
            "content_type": serving.sample.content_type,
        }
    if serving.quantization:
        document["quantization"] = dataclasses.asdict(serving.quantization)
    if serving.candidates:
        document["candidates"] = candidates_document(serving.candidates)
    return document


def _model_name(value: Any, source: str) -> str:
    # Any string is accepted: old archives contain any, and `--models NAME=PATH` overrides it.
    name = _text(value, "Model.Model-Name", source)
    if not name.strip():
        raise ManifestError(f"{source}: Model.Model-Name is empty; give the model a name")
    return name


def _model_format(value: Any, source: str, has_symbol: bool) -> ModelFormat:
    # A 1.x archive has no such key.
    formats = [f for f in ModelFormat if f is not ModelFormat.HANDLER]
    text = _text(value, "Model.Model-Format", source)
    for model_format in formats:
        # v0.4 itself ignored case.
        if text.lower() == model_format.value.lower():
            return model_format
    # v0.4 took any text; parts of this one made the symbol mandatory.
    if has_symbol or text in ModelFormat.SYMBOLIC.value:
        return ModelFormat.SYMBOLIC
    return ModelFormat.GLUON


def _files(value: Any, source: str) -> dict[str, str]:
    files = _texts(value, "Files", source)
    for path, digest in files.items():
        _path(path, f"Files[{quoted(path)}]", source)
        if not _SHA256.fullmatch(digest):
            raise ManifestError(
                f"{source}: Files[{quoted(path)}] must be a sha256 in 64 lower-case hex digits, "
                f"got {quoted(digest)}"
            )
    return files


def _path(value: Any, key: str, source: str, empty: bool = False) -> str:
    text = _text(value, key, source)
    if not text and empty:
        return text
    path = PurePosixPath(text)
    if not text or "\\" in text or "\0" in text or path.is_absolute() or ".." in path.parts:
        raise ManifestError(
            f"{source}: {key} must be a relative path inside the archive, got {quoted(text)}"
        )
    return text


def _required(mapping: dict[str, Any], key: str, source: str, where: str = "") -> Any:
    if key not in mapping:
        place = f"{where} has" if where else "the manifest has"
        raise ManifestError(
            f"{source}: {place} no {key!r}; export the model again with mxnet-model-export"
        )
    return mapping[key]


def _object(value: Any, source: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{source}: {what} must be a JSON object, got {quoted(value)}")
    return value


def _text(value: Any, key: str, source: str) -> str:
    if not isinstance(value, str):
        raise ManifestError(f"{source}: {key} must be a string, got {quoted(value)}")
    return value


def _texts(value: Any, key: str, source: str) -> dict[str, str]:
    return {
        name: _text(text, f"{key}[{quoted(name)}]", source)
        for name, text in _object(value, source, key).items()
    }


def _labels(value: Any, key: str, source: str) -> dict[str, str]:
    """Return versions and the like as strings; archives of 2018 contain ``{"MXNet": 0.12}``."""
    return {name: str(label) for name, label in _object(value or {}, source, key).items()}


def _number(value: Any, source: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise ManifestError(f"{source}: Model-Archive-Version must be a number, got {quoted(value)}")


def _optional_text(mapping: dict[str, Any], key: str, source: str) -> str | None:
    value = mapping.get(key)
    return None if value is None else _text(value, f"Serving.{key}", source)


def _optional_number(
    mapping: dict[str, Any],
    key: str,
    source: str,
    kind: type[Any],
    minimum: float,
    maximum: float = sys.float_info.max,
) -> Any:
    value = mapping.get(key)
    if value is None:
        return None
    accepted = (int,) if kind is int else (int, float)
    is_number = isinstance(value, accepted) and not isinstance(value, bool)
    if not is_number or not minimum <= value <= maximum:
        what = "an integer" if kind is int else "a number"
        bound = f"<= {maximum}" if is_number and value > maximum else f">= {minimum}"
        raise ManifestError(f"{source}: Serving.{key} must be {what} {bound}, got {quoted(value)}")
    return kind(value)

"""PUBLIC: 0.4's exporter as functions, for build scripts."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mms.archive.model_folder import expand, read_signature
from mms.cli.export import main as export
from mms.errors import ExportError
from mms.export.package import export_model as _export
from mms.lazy import retired

__all__ = ["MMS_SERVICE_FILES", "SIGNATURE_FILE", "export", "export_model", "validate_signature"]

SIGNATURE_FILE = "signature.json"
MANIFEST_FILE_NAME = "MANIFEST.json"
VALID_MIME_TYPE = ["image/jpeg", "application/json"]
#: 1.x's name, whose command only said that it was gone.
main = export
#: Steps of 0.4's `export_model`, which takes them by itself.
_STEPS = (
    *("convert_onnx_model", "find_unique", "generate_manifest", "split_on_letter"),
    *("validate_epoch_number", "validate_model_files", "validate_prefix_match", "validate_service"),
)
_SERVICES = Path(__file__).parent / "model_service"
#: The default service files by the type of their inputs.
MMS_SERVICE_FILES = {
    "image/jpeg": str(_SERVICES / "mxnet_vision_service.py"),
    "application/json": str(_SERVICES / "mxnet_model_service.py"),
}


def __getattr__(name: str) -> type:
    if name in _STEPS:
        return retired(f"{__name__}.{name}", "export_model does all of its work")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def export_model(
    model_name: str,
    model_path: str,
    service_file: str | None = None,
    export_file: str | None = None,
) -> None:
    """Write an archive.

    Args:
        model_name: Name of the model.
        model_path: Folder of its files.
        service_file: Service file, in that folder or elsewhere; one of `MMS_SERVICE_FILES` stands
            for the default service.
        export_file: File to write, which must not exist; ``MODEL_NAME.model`` in the current
            folder by default.

    Raises:
        MMSError: The message says what is missing or wrong, and how to fix it.
    """
    target = expand(Path(export_file or f"{model_name}.model"))
    if os.path.exists(target):
        raise ExportError(f"model file {target} already exists; remove it, or choose another")
    is_default = service_file is None or service_file in MMS_SERVICE_FILES.values()
    service = None if is_default else Path(str(service_file))
    with tempfile.TemporaryDirectory(prefix=".mxnet-model-export-", dir=target.parent) as staging:
        made = _export(model_name, Path(model_path), service, Path(staging))
        made.path.rename(target)


def validate_signature(model_path: str) -> str:
    """Check signature.json of a model's folder, and return its path.

    Raises:
        SignatureError, ExportError: The message says what is wrong with it.
    """
    folder = expand(Path(model_path))
    read_signature(folder)
    return str(folder / SIGNATURE_FILE)

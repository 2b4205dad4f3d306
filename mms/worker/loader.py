"""Load one servable: its service class or 1.x handler, its parameters, its warm-up request."""

from __future__ import annotations

import inspect
import json
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from mms.archive.manifest import MANIFEST_NAME, Manifest, ModelFormat, parse_manifest
from mms.archive.signature import Signature, parse_signature
from mms.engines.imports import import_mxnet
from mms.errors import ModelLoadFailed
from mms.metrics_manager import MetricsManager
from mms.model_service.model_service import (
    ModelService,
    MultiNodesService,
    SingleNodeService,
    load_service,
)
from mms.wire.messages import LoadSpec
from mms.worker.adopted import initialize, overrides_handle
from mms.worker.handler import HandlerRunner, load_handler
from mms.worker.originals import maintained_class
from mms.worker.process import may_fork
from mms.worker.runner import ServiceRunner
from mms.worker.samples import request_pairs, sample_request
from mms.worker.warm_up import warm_up

logger = logging.getLogger("mms.worker")

_ABSTRACT = (ModelService, SingleNodeService, MultiNodesService)


def load(spec: LoadSpec) -> tuple[ServiceRunner | HandlerRunner, str]:
    """Load the service, or the handler of a 1.x archive, and warm it up.

    Returns:
        The runner of its batches, and the name of its class or function.

    Raises:
        MMSError: The archive has no valid service, or its warm-up request failed.
        Exception: Any exception of the service itself.
    """
    return load_handler(spec) if spec.handler else _load_service(spec)


def _load_service(spec: LoadSpec) -> tuple[ServiceRunner | HandlerRunner, str]:
    service, signature, manifest = make_service(spec)
    context = initialize(service, spec, _manifest_document(spec))
    if manifest.model_format is not ModelFormat.ONNX:
        from mms.engines.hybrid import start_trial

        start_trial(getattr(service, "net", None))
    if overrides_handle(service):
        return HandlerRunner(service.handle, context, spec, 0), type(service).__name__
    sample = sample_request(Path(spec.folder), manifest)
    runner = ServiceRunner(service, signature, spec, lambda: request_pairs(sample, signature))
    warm_up(runner, service, signature, manifest, sample, spec)
    runner.try_joining(may_fork(spec) and runner.can_fork)
    return runner, type(service).__name__


def make_service(spec: LoadSpec) -> tuple[Any, Signature, Manifest]:
    """Create the service of a v0.4 archive; return it with the archive's signature and manifest.

    Raises:
        MMSError: The archive has no valid service.
        Exception: Any exception of the service itself.
    """
    folder = Path(spec.folder)
    document = _manifest_document(spec)
    manifest = parse_manifest(document)
    signature_text = (folder / manifest.signature).read_text(encoding="utf-8-sig")
    signature = parse_signature(json.loads(signature_text), manifest.signature)
    if manifest.model_format is not ModelFormat.ONNX:
        # First, so that a missing library is reported as such and not from inside the service.
        import_mxnet()
    MetricsManager.start("", (spec.model_name, manifest.model_name), None)
    path = spec.service_file or str(folder / manifest.service)
    service_class = maintained_class(path)
    if service_class is None:
        service_class = find_service_class(load_service(path), path)
    else:
        logger.info(
            "%s is a copy made by an old exporter; %s runs in its place",
            os.path.basename(path),
            service_class.__name__,
        )
    return (
        service_class(manifest.model_name, spec.folder, document, spec.gpu),
        signature,
        manifest,
    )


def _manifest_document(spec: LoadSpec) -> dict[str, Any]:
    text = (Path(spec.folder) / MANIFEST_NAME).read_text(encoding="utf-8-sig")
    document: dict[str, Any] = json.loads(text)
    return document


def find_service_class(module: ModuleType, path: str) -> type[Any]:
    """Return the one service class of a module.

    Classes defined in the module take precedence over imported ones, and a class that another one
    derives from is not a candidate.

    Raises:
        ModelLoadFailed: The module defines no service class, or several.
    """
    classes = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, ModelService) and cls not in _ABSTRACT
    ]
    own = [cls for cls in classes if cls.__module__ == module.__name__]
    candidates = _leaves(own) or _leaves(classes)
    name = os.path.basename(path)
    if not candidates:
        raise ModelLoadFailed(
            f"{name} defines no service class; derive one from GluonImperativeBaseService or "
            "MXNetBaseService (mms.model_service.mxnet_model_service), or for an ONNX model from "
            "OnnxBaseService (mms.model_service.onnx_service)"
        )
    if len(candidates) > 1:
        names = ", ".join(cls.__name__ for cls in candidates)
        raise ModelLoadFailed(
            f"{name} defines several service classes ({names}); keep one per service file"
        )
    return candidates[0]


def _leaves(classes: list[type[Any]]) -> list[type[Any]]:
    return [
        cls
        for cls in classes
        if not any(other is not cls and issubclass(other, cls) for other in classes)
    ]

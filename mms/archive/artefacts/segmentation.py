"""What SageMaker's semantic segmentation writes: parameters of GluonCV, and hyper-parameters."""

from __future__ import annotations

from pathlib import Path

from mms.archive.artefacts.artefact import Artefact
from mms.archive.artefacts.parts import (
    HYPERPARAMETERS_NAME,
    Parts,
    assemble,
    contents_of,
    read_document,
)
from mms.archive.signature import Signature, TensorSpec
from mms.errors import ArchiveError

PARAMETERS = "model_algo-1"
#: Its name in the archive, as a parameter file's.
_NAMED = "model_algo-0001.params"
_NETWORKS = ("fcn", "psp", "deeplab")


def recognise(folder: Path, name: str) -> Artefact | None:
    """Return a folder with ``model_algo-1`` as a model that answers with a mask.

    Raises:
        ArchiveError: Its hyper-parameters are missing, or name a network that is not known.
    """
    if not (folder / PARAMETERS).is_file():
        return None
    path = folder / HYPERPARAMETERS_NAME
    if not path.is_file():
        raise ArchiveError(
            f"{folder}: {PARAMETERS} of SageMaker's semantic segmentation needs its "
            f"{HYPERPARAMETERS_NAME}; add it, with algorithm, backbone and num_classes: "
            '{"algorithm": "fcn", "backbone": "resnet-50", "num_classes": "21"}'
        )
    values = read_document(path)
    algorithm = values.get("algorithm", "fcn") if isinstance(values, dict) else ""
    if algorithm not in _NETWORKS:
        raise ArchiveError(
            f"{path}: algorithm must be one of {', '.join(_NETWORKS)}, to rebuild the network"
        )
    signature = Signature(
        (TensorSpec("data", (0, 3, 0, 0)),),
        "image/jpeg",
        (TensorSpec("mask", (0, 0, 0)),),
        "image/png",
    )
    parts = Parts(
        "SageMaker semantic segmentation",
        "",
        _NAMED,
        signature,
        ("segmentation_service", "SegmentationService", "Answers an image with a mask."),
        notes=("it needs gluoncv: pip install gluoncv",),
    )
    contents = contents_of(folder)
    contents[_NAMED] = contents.pop(PARAMETERS)
    return assemble(folder, name, contents, parts)

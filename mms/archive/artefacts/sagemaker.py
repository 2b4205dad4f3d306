"""Recognise a model of SageMaker's MXNet container: a script of the user's, a checkpoint, or both.

The content of a ``model.tar.gz``: https://sagemaker.readthedocs.io/en/stable/frameworks/mxnet
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from mms.archive.artefacts.artefact import Artefact
from mms.archive.artefacts.handled import handled
from mms.archive.manifest import SIGNATURE_NAME
from mms.errors import ArchiveError

#: The checkpoint that the container loads without a script, and the shapes of its inputs.
SYMBOL, PARAMETERS, SHAPES = CHECKPOINT = (
    "model-symbol.json",
    "model-0000.params",
    "model-shapes.json",
)
CODE = "code"
#: The container's variable for the script's name, and that name by default.
PROGRAM, _SCRIPT = "SAGEMAKER_PROGRAM", "inference.py"
_HANDLER = "mms.model_service.sagemaker:SageMakerHandler"
_FUNCTION = re.compile(
    rb"^\s*(?:async\s+)?(?:def|from|import)\b.*\b(?:model_fn|transform_fn|predict_fn)\b", re.M
)
#: Ends of the names of files that make another model of a folder, whatever its code/ is for.
_OTHERS = ("-symbol.json", ".params", ".onnx", ".py", SIGNATURE_NAME)
#: A script longer than this is not looked into.
_MAX_SCRIPT_BYTES = 1 << 20


def recognise(
    folder: Path, name: str, environment: Mapping[str, str] = os.environ
) -> Artefact | None:
    """Return a folder with a script in ``code/``, or with the container's checkpoint, as a model.

    Args:
        folder: The unpacked ``model.tar.gz``, or ``/opt/ml/model``.
        name: Name of the model.
        environment: Variables; ``SAGEMAKER_PROGRAM`` names the script.

    Returns:
        The model, served by the container's rules; None if the folder is something else, such as a
        checkpoint with a signature.json.

    Raises:
        ArchiveError: It is a model of this container, but without its script.
    """
    script = find_script(folder, environment)
    # That file is the contract of this server's own models: only a script in code/ outweighs it.
    is_ours = (folder / SIGNATURE_NAME).is_file()
    if (
        script
        and is_ours
        and not (script.startswith(f"{CODE}/") and _has_function(folder / script))
    ):
        script = None
    has_checkpoint = all((folder / file).is_file() for file in CHECKPOINT)
    if script:
        note = f"{script} runs by the rules of SageMaker's MXNet container"
    elif has_checkpoint and not is_ours:
        note = "no script: the default functions of SageMaker's MXNet container run"
    elif (scripts := _scripts(folder / CODE)) and not _may_be_another(folder):
        raise ArchiveError(
            f"{folder}: {CODE}/ holds neither {_SCRIPT} nor a script with model_fn or "
            f"transform_fn; set {PROGRAM} to one of: {', '.join(scripts[:10])}"
        )
    else:
        return None
    return handled("SageMaker model", folder, name, _HANDLER, "MXNet", "", note)


def find_script(folder: Path, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the script of a model by its path in the folder; None if there is none.

    The one that ``SAGEMAKER_PROGRAM`` names comes first, then ``inference.py``, then the only one
    with one of the container's functions, in ``code/`` or else in the folder itself: SageMaker's
    SDK keeps the name that a script was deployed by in that variable, which is not part of the
    model.
    """
    program = environment.get(PROGRAM, "")
    if program and not program.endswith(".py"):
        program += ".py"
    for script in (program, _SCRIPT):
        # Python's path has both folders, in this order.
        if script and "/" not in script and (folder / CODE / script).is_file():
            return f"{CODE}/{script}"
        if script and "/" not in script and _has_function(folder / script):
            return script
    for place in (f"{CODE}/", ""):
        scripts = [place + name for name in _scripts(folder / place)]
        found = [script for script in scripts if _has_function(folder / script)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _scripts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.py")) if folder.is_dir() else []


def _may_be_another(folder: Path) -> bool:
    """Whether a folder has files of which other kinds of models consist."""
    return any(entry.name.endswith(_OTHERS) for entry in folder.iterdir())


def _has_function(path: Path) -> bool:
    """Whether a script defines or imports one of the container's functions, without running it."""
    if not path.is_file() or path.stat().st_size > _MAX_SCRIPT_BYTES:
        return False
    return _FUNCTION.search(path.read_bytes()) is not None

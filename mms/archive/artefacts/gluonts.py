"""Recognise a forecasting model that GluonTS has serialised."""

from __future__ import annotations

from pathlib import Path

import orjson

from mms.archive.artefacts.artefact import Artefact
from mms.archive.artefacts.handled import handled
from mms.errors import ArchiveError

CONFIG = "gluonts-config.json"
_HANDLER = "mms.model_service.gluonts:GluonTSHandler"
_MAX_CONFIG_BYTES = 1 << 20


def recognise(folder: Path, name: str) -> Artefact | None:
    """Return a folder that ``Predictor.serialize`` of GluonTS wrote as a model.

    Args:
        folder: The folder.
        name: Name of the model.

    Returns:
        The model, served with the requests of GluonTS's own server; None if the folder has no
        ``gluonts-config.json``.

    Raises:
        ArchiveError: That file is damaged.
    """
    config = folder / CONFIG
    if not config.is_file():
        return None
    kind, version = _read(config)
    note = f"{kind.rpartition('.')[2]} of GluonTS {version or '(version unknown)'}"
    return handled("GluonTS predictor", folder, name, _HANDLER, "GluonTS", version, note)


def _read(config: Path) -> tuple[str, str]:
    """Return the class of a predictor, and the version of GluonTS that wrote it."""
    if config.stat().st_size > _MAX_CONFIG_BYTES:
        raise ArchiveError(f"{config}: larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        document = orjson.loads(config.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ArchiveError(f"{config}: not valid JSON: {error}") from None
    kind = document.get("type") if isinstance(document, dict) else None
    if not isinstance(kind, str):
        raise ArchiveError(
            f"{config}: it names no type; serialise the predictor again, with GluonTS 0.10 or later"
        )
    return kind, str(document.get("gluonts", ""))

"""What a recogniser finds: enough to serve a file or folder as if it had been exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mms.archive.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Artefact:
    """A recognised model.

    Attributes:
        family: Its kind, for messages and logs, such as "SageMaker model".
        manifest: The manifest that an export would have written.
        files: Files and folders of the user by their name in the archive. They are linked, never
            copied or changed.
        documents: Generated files by their name in the archive, such as signature.json or a
            default service. None of them replaces one of `files`.
        notes: Lines for the log: what was assumed, and what to add to be exact.
    """

    family: str
    manifest: Manifest
    files: Mapping[str, Path]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

"""Only copies of the originals' service files are replaced, told by their text."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mms.worker.originals import _ORIGINALS, maintained_class


def test_a_class_of_the_same_name_is_the_users(tmp_path: Path) -> None:
    path = tmp_path / "mxnet_vision_service.py"
    path.write_text("class MXNetVisionService:\n    pass\n")
    assert maintained_class(str(path)) is None


def test_a_file_that_cannot_be_read_is_left_to_whoever_loads_it(tmp_path: Path) -> None:
    assert maintained_class(str(tmp_path / "missing.py")) is None
    (tmp_path / "latin.py").write_bytes(b"# \xff\n")
    assert maintained_class(str(tmp_path / "latin.py")) is None


def test_digests_are_sha256() -> None:
    length = hashlib.sha256().digest_size * 2
    assert all(len(digest) == length and int(digest, 16) for digest in _ORIGINALS)

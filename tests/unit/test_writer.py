"""Writing archives: the same bytes for the same input, and all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.manifest import Manifest, ModelFormat
from mms.archive.reader import open_archive
from mms.archive.writer import write_archive
from mms.errors import ExportError
from tests.kit.zips import GLUON_SERVICE, SIGNATURE, listing

MANIFEST = Manifest("test", ModelFormat.GLUON, "service.py", "signature.json")
FILES: dict[str, Path | bytes] = {
    "signature.json": json.dumps(SIGNATURE).encode(),
    "service.py": GLUON_SERVICE.encode(),
    "net-0000.params": bytes(5000),
    "sub/words.txt": b"word " * 1000,
}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "words.txt"
    source.write_bytes(b"word " * 1000)
    first, second = tmp_path / "a.model", tmp_path / "b.model"
    write_archive(first, MANIFEST, FILES)
    os.utime(source, (1, 1))
    source.chmod(0o600)
    backwards = dict(reversed(list(FILES.items()))) | {"sub/words.txt": source}
    write_archive(second, MANIFEST, backwards)
    assert first.read_bytes() == second.read_bytes()


def test_weights_are_stored_and_text_is_deflated(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.model", MANIFEST, FILES)
    with zipfile.ZipFile(tmp_path / "a.model") as archive:
        methods = {info.filename: info.compress_type for info in archive.infolist()}
    assert methods.pop("net-0000.params") == zipfile.ZIP_STORED
    assert set(methods.values()) == {zipfile.ZIP_DEFLATED}
    assert next(iter(methods)) == "MANIFEST.json"


def test_every_file_is_listed_with_its_sha256(tmp_path: Path) -> None:
    on_disk = tmp_path / "asset"
    on_disk.write_bytes(b"on disk")
    manifest = write_archive(tmp_path / "a.model", MANIFEST, FILES | {"asset": on_disk})
    assert manifest.files.keys() == {*FILES, "asset"}
    assert manifest.files["asset"] == hashlib.sha256(b"on disk").hexdigest()
    assert manifest.files["net-0000.params"] == hashlib.sha256(bytes(5000)).hexdigest()


def test_an_existing_archive_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    target = tmp_path / "a.model"
    target.write_bytes(b"precious")
    with pytest.raises(ExportError, match=r"a\.model already exists; use --force"):
        write_archive(target, MANIFEST, FILES)
    assert target.read_bytes() == b"precious"
    write_archive(target, MANIFEST, FILES, overwrite=True)
    assert zipfile.is_zipfile(target)
    assert list(listing(tmp_path)) == ["a.model"]


def test_a_file_that_cannot_be_read_is_named_and_the_target_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.model"
    target.write_bytes(b"precious")
    missing = tmp_path / "missing"
    with pytest.raises(ExportError, match=r"a\.model: cannot be written: .*/missing\)"):
        write_archive(target, MANIFEST, FILES | {"z": missing}, overwrite=True)
    assert listing(tmp_path) == {"a.model": hashlib.sha256(b"precious").hexdigest()}


def test_a_write_that_fails_half_way_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "a.model"
    target.write_bytes(b"precious")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # like a disk that fills up
    try:
        with pytest.raises(ExportError, match=r"a\.model: cannot be written: File too large"):
            write_archive(target, MANIFEST, FILES, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path) == {"a.model": hashlib.sha256(b"precious").hexdigest()}


def test_a_file_that_cannot_be_replaced_leaves_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "a.model"
    target.mkdir()
    (target / "inside").touch()
    with pytest.raises(ExportError, match="cannot be written"):
        write_archive(target, MANIFEST, FILES, overwrite=True)
    assert sorted(listing(tmp_path)) == ["a.model", "a.model/inside"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no/a\.model: cannot be written: No such file"):
        write_archive(tmp_path / "no" / "a.model", MANIFEST, FILES)


def test_an_archive_is_readable_like_any_new_file(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.model", MANIFEST, FILES)
    (tmp_path / "other").touch()
    assert (tmp_path / "a.model").stat().st_mode == (tmp_path / "other").stat().st_mode


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,6}\.(txt|params|bin)", fullmatch=True),
        st.binary(max_size=200),
        max_size=5,
    )
)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("written")
    manifest = write_archive(folder / "a.model", MANIFEST, {**FILES, **files})
    archive = open_archive(folder / "a.model", folder)
    assert archive.manifest == manifest
    assert {name: (archive.folder / name).read_bytes() for name in files} == files

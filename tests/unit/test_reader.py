"""Reading archives: sound ones open, hostile ones leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.members import UnpackLimits
from mms.archive.reader import (
    hash_file,
    open_archive,
    read_manifest,
    remove_unpacked,
)
from mms.errors import ArchiveError
from tests.kit.zips import (
    MANIFEST,
    entry,
    listing,
    members,
    write_folder,
    write_zip,
)

MEGABYTE = 1 << 20


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "outer" / "workspace"
    folder.mkdir(parents=True)
    return folder


def test_a_sound_archive_is_unpacked_into_the_workspace(tmp_path: Path, workspace: Path) -> None:
    path = write_zip(tmp_path / "a.model", ("sub/deep/asset.bin", b"\0" * 100))
    archive = open_archive(path, workspace)
    assert archive.folder.parent == workspace
    assert archive.manifest.model_name == "test"
    assert archive.signature is not None
    assert archive.signature.input_names == ("data",)
    assert archive.digest == hash_file(path)
    assert (archive.folder / "sub/deep/asset.bin").read_bytes() == b"\0" * 100
    assert [p.name for p in workspace.iterdir()] == [archive.folder.name]
    remove_unpacked(archive, workspace)
    assert list(workspace.iterdir()) == []


def test_an_unpacked_archive_is_served_where_it_lies(tmp_path: Path, workspace: Path) -> None:
    folder = write_folder(tmp_path / "model", members())
    before = listing(folder)
    archive = open_archive(folder, workspace)
    assert (archive.folder, archive.digest) == (folder, "")
    remove_unpacked(archive, workspace)
    assert listing(folder) == before
    assert list(workspace.iterdir()) == []


def test_an_archive_opens_twice_side_by_side(tmp_path: Path, workspace: Path) -> None:
    path = write_zip(tmp_path / "a.model")
    assert open_archive(path, workspace).folder != open_archive(path, workspace).folder


@pytest.mark.parametrize("prefixes", [("model/",), ("a/", "b/c/")])
def test_folders_around_members_are_dropped_as_04_did(
    tmp_path: Path, workspace: Path, prefixes: tuple[str, ...]
) -> None:
    # 0.4 unpacked each member by its base name.
    files = {
        f"{prefixes[i % len(prefixes)]}{name}": content
        for i, (name, content) in enumerate(members().items())
    }
    path = write_zip(tmp_path / "a.model", base=files)
    archive = open_archive(path, workspace)
    assert sorted(p.name for p in archive.folder.iterdir()) == sorted(members())
    assert read_manifest(path) == archive.manifest


def test_the_last_of_several_members_of_a_name_wins_as_in_04(
    tmp_path: Path, workspace: Path
) -> None:
    files = {f"m/{name}": content for name, content in members().items()}
    path = write_zip(tmp_path / "a.model", ("m/x", b"first"), ("n/x", b"last"), base=files)
    assert (open_archive(path, workspace).folder / "x").read_bytes() == b"last"


@pytest.mark.parametrize("is_file", [True, False])
def test_service_and_signature_may_be_patterns_as_in_04(
    tmp_path: Path, workspace: Path, is_file: bool
) -> None:
    model = {**MANIFEST["Model"], "Service": "serv*.py", "Signature": "*ature.json"}
    files = with_manifest({**MANIFEST, "Model": model})
    if is_file:
        source = write_zip(tmp_path / "a.model", base=files)
    else:
        source = write_folder(tmp_path / "a", files)
    before = listing(tmp_path / "a") if not is_file else {}
    archive = open_archive(source, workspace)
    assert (archive.manifest.service, archive.manifest.signature) == (
        "service.py",
        "signature.json",
    )
    # What a worker reads.
    written = json.loads((archive.folder / "MANIFEST.json").read_text())["Model"]
    assert (written["Service"], written["Signature"]) == ("service.py", "signature.json")
    assert (archive.folder / "service.py").is_file()
    if not is_file:
        assert listing(tmp_path / "a") == before


def test_a_pattern_must_match_one_file(tmp_path: Path, workspace: Path) -> None:
    model = {**MANIFEST["Model"], "Service": "*.py"}
    files = with_manifest({**MANIFEST, "Model": model}) | {"other.py": b""}
    path = write_zip(tmp_path / "a.model", base=files)
    refuse(path, workspace, "the pattern '\\*.py', which must match one file; it matches other.py")


def test_missing_parameters_are_a_note_as_in_04(tmp_path: Path, workspace: Path) -> None:
    model = {**MANIFEST["Model"], "Parameters": "net-0000.params"}
    path = write_zip(tmp_path / "a.model", base=with_manifest({**MANIFEST, "Model": model}))
    archive = open_archive(path, workspace)
    assert archive.manifest.parameters == ""
    assert archive.notes == (
        "the parameter file 'net-0000.params' is missing; the service goes without",
    )


def test_a_folder_with_one_archive_is_that_archive(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "f").mkdir()
    write_zip(tmp_path / "f" / "a.model")
    (tmp_path / "f" / "readme.txt").write_text("about it")
    archive = open_archive(tmp_path / "f", workspace)
    assert archive.manifest.model_name == "test"
    assert archive.digest
    write_zip(tmp_path / "f" / "b.mar")
    refuse(tmp_path / "f", workspace, "2 archives are in it; name one: .*a.model, .*b.mar")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("prefix", ["", "model/"])
def test_an_archive_in_a_tar_file_is_opened(
    tmp_path: Path, workspace: Path, mode: Any, prefix: str
) -> None:
    inner = write_zip(tmp_path / "a.model")
    packed = tmp_path / "model.tar"
    with tarfile.open(packed, mode) as tar:
        tar.add(inner, f"{prefix}a.model")
    archive = open_archive(packed, workspace)
    assert archive.manifest.model_name == "test"
    assert [p for p in workspace.iterdir()] == [archive.folder]
    assert read_manifest(packed) == archive.manifest


def test_an_unpacked_archive_in_a_tar_file_is_opened(tmp_path: Path, workspace: Path) -> None:
    folder = write_folder(tmp_path / "model", members())
    packed = tmp_path / "model.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(folder, "model")
    archive = open_archive(packed, workspace)
    assert (archive.manifest.model_name, archive.digest) == ("test", hash_file(packed))
    assert (archive.folder / "service.py").is_file()
    remove_unpacked(archive, workspace)
    assert list(workspace.iterdir()) == []


def test_an_archive_in_a_zip_file_is_opened_but_not_one_in_that(
    tmp_path: Path, workspace: Path
) -> None:
    inner = write_zip(tmp_path / "a.model")
    paths = [inner]
    for level in range(4):
        files = {f"{level}.model": paths[-1].read_bytes()}
        paths.append(write_zip(tmp_path / f"outer{level}.zip", base=files))
    archive = open_archive(paths[1], workspace)
    assert [p for p in workspace.iterdir()] == [archive.folder]
    remove_unpacked(archive, workspace)
    refuse(paths[4], workspace, "outer3.zip/3.model/2.model: an archive in archives")


def test_a_byte_order_mark_before_the_documents_is_skipped(tmp_path: Path, workspace: Path) -> None:
    files = members()
    for name in ("MANIFEST.json", "signature.json"):
        files[name] = b"\xef\xbb\xbf" + files[name]
    archive = open_archive(write_zip(tmp_path / "a.model", base=files), workspace)
    assert archive.manifest.model_name == "test"


def test_folders_in_a_zip_may_stand_before_and_after_their_files(
    tmp_path: Path, workspace: Path
) -> None:
    path = write_zip(tmp_path / "a.model", ("sub/", b""), ("sub/x", b"1"), ("other/", b""))
    assert (open_archive(path, workspace).folder / "sub" / "x").read_bytes() == b"1"


def test_the_manifest_is_read_without_unpacking(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.model")
    folder = write_folder(tmp_path / "model", members())
    assert read_manifest(path) == read_manifest(folder)


HOSTILE: dict[str, tuple[str | zipfile.ZipInfo, str]] = {
    "parent": ("../evil", "leads out of the archive"),
    "parent further down": ("sub/../../evil", "leads out of the archive"),
    "absolute": (entry("/tmp/mms-evil"), "leads out of the archive"),
    "drive": ("C:/evil", "leads out of the archive"),
    "drive and backslash": (entry("C:\\evil"), "not allowed"),
    "parent with backslash": (entry("..\\evil"), "not allowed"),
    "nul": (entry("evil\0.txt"), "not allowed"),
    "nameless": (entry("."), "not allowed"),
    "endless": ("a/" * 2000 + "a", "not allowed"),
    "symbolic link": (entry("evil", stat.S_IFLNK | 0o777), "a link or a device"),
    "device node": (entry("evil", stat.S_IFBLK | 0o666), "a link or a device"),
    "terminal": (entry("evil", stat.S_IFCHR | 0o666), "a link or a device"),
    "pipe": (entry("evil", stat.S_IFIFO | 0o666), "a link or a device"),
    "socket": (entry("evil", stat.S_IFSOCK | 0o666), "a link or a device"),
    "duplicate": ("service.py", "'service.py' is in the archive twice"),
    "duplicate in another case": ("Service.PY", "'Service.PY' is in the archive twice"),
    "duplicate spelt otherwise": ("./service.py", "is in the archive twice"),
    "file below a file": ("service.py/evil", "lies below a file"),
}


def refuse(path: Path, workspace: Path, message: str, limits: UnpackLimits | None = None) -> None:
    """Check that an archive is refused, naming it, and that nothing of it stays anywhere."""
    outer = workspace.parent
    before = listing(outer)
    with pytest.raises(ArchiveError, match=message) as caught:
        open_archive(path, workspace, limits)
    assert path.name in str(caught.value)
    assert listing(outer) == before


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_entry_is_refused_and_leaves_nothing(
    tmp_path: Path, workspace: Path, name: str
) -> None:
    hostile, message = HOSTILE[name]
    refuse(write_zip(tmp_path / "a.model", (hostile, b"evil")), workspace, message)
    assert not Path("/tmp/mms-evil").exists()


def test_an_encrypted_entry_is_refused(tmp_path: Path, workspace: Path) -> None:
    path = write_zip(tmp_path / "a.model")
    patch_directory(path, "service.py", at=8, value=struct.pack("<H", 1))
    refuse(path, workspace, "'service.py' is encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_compression_that_unpacks_without_bounds_is_refused(
    tmp_path: Path, workspace: Path, method: int
) -> None:
    path = write_zip(tmp_path / "a.model", compression=method)
    refuse(path, workspace, f"compressed by method {method}; only stored and deflated")


def test_a_zip_bomb_is_refused_by_its_ratio(tmp_path: Path, workspace: Path) -> None:
    path = write_zip(tmp_path / "a.model", ("bomb", bytes(4 * MEGABYTE)))
    refuse(path, workspace, "'bomb' unpacks to over 200 times its packed size")


def test_too_many_entries_are_refused(tmp_path: Path, workspace: Path) -> None:
    path = write_zip(tmp_path / "a.model", *((f"f{i}", b"") for i in range(8)))
    refuse(path, workspace, "more than the 10 entries allowed", UnpackLimits(entries=10))


def test_too_much_in_all_is_refused(tmp_path: Path, workspace: Path) -> None:
    path = write_zip(tmp_path / "a.model", ("a", bytes(600)), ("b", bytes(600)))
    limits = UnpackLimits(total_bytes=1500)
    refuse(path, workspace, "unpacks to more than the 1500 bytes allowed", limits)


@pytest.mark.parametrize("claim", [0, 3, 99, MEGABYTE])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_entry_that_lies_about_its_size_is_refused(
    tmp_path: Path, workspace: Path, claim: int, method: int
) -> None:
    path = write_zip(tmp_path / "a.model", ("liar", b"0123456789" * 5), compression=method)
    patch_directory(path, "liar", at=24, value=struct.pack("<I", claim))
    refuse(path, workspace, "longer than it claims|shorter than it claims|damaged|200 times")


def patch_directory(path: Path, name: str, at: int, value: bytes) -> None:
    """Overwrite a field of an entry in the zip's central directory."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    data[start + at : start + at + len(value)] = value
    path.write_bytes(data)


def test_a_truncated_download_says_so(tmp_path: Path, workspace: Path) -> None:
    path = write_zip(tmp_path / "a.model")
    path.write_bytes(path.read_bytes()[:-30])
    refuse(path, workspace, "a .model file is a zip file.*was the download cut short")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04"])
def test_what_is_no_zip_says_so(tmp_path: Path, workspace: Path, content: bytes) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(content)
    refuse(path, workspace, "not a model archive")


def test_a_name_that_is_not_utf8_is_an_archive_error(tmp_path: Path, workspace: Path) -> None:
    path = write_zip(tmp_path / "a.model", ("näme", b"x"))
    path.write_bytes(path.read_bytes().replace("näme".encode(), b"n\xff\xffme"))
    refuse(path, workspace, "damaged")
    with pytest.raises(ArchiveError, match="damaged"):
        read_manifest(path)


def test_a_flipped_byte_in_a_file_is_found(tmp_path: Path, workspace: Path) -> None:
    path = write_zip(
        tmp_path / "a.model", ("w.params", b"weights!"), compression=zipfile.ZIP_STORED
    )
    path.write_bytes(path.read_bytes().replace(b"weights!", b"weightz!"))
    refuse(path, workspace, "damaged: .*w.params")


def with_manifest(document: Any) -> dict[str, bytes]:
    return members() | {"MANIFEST.json": json.dumps(document).encode()}


def mar(model: dict[str, str], **manifest: str) -> dict[str, bytes]:
    """Return the files of a 1.x archive without its handler."""
    return {"MAR-INF/MANIFEST.json": json.dumps({"model": model, **manifest}).encode()}


INCOMPLETE: dict[str, tuple[dict[str, bytes], str]] = {
    "no manifest": ({"a": b"x"}, "neither MANIFEST.json nor MAR-INF/MANIFEST.json"),
    "empty 1.x manifest": ({"MAR-INF/MANIFEST.json": b"{}"}, "the manifest has no 'model'"),
    "1.x without handler": (mar({"modelName": "a"}), "it names no handler"),
    "1.x of Java": (
        mar({"modelName": "a", "handler": "x"}, runtime="java"),
        "the runtime 'java' is not supported",
    ),
    "of TorchServe": (
        mar({"modelName": "a", "handler": "image_classifier", "serializedFile": "m.pth"}),
        "a TorchServe archive whose handler 'image_classifier' is part of TorchServe",
    ),
    "broken manifest": ({"MANIFEST.json": b"{"}, "MANIFEST.json: not valid JSON"),
    "broken signature": (members() | {"signature.json": b"nope"}, "signature.json: not valid JSON"),
    "wrong signature": (members() | {"signature.json": b"[]"}, "expected a JSON object"),
    "no service": (
        {k: v for k, v in members().items() if k != "service.py"},
        "Model.Service names 'service.py', which is not in the archive",
    ),
    "service name too long": (
        with_manifest({**MANIFEST, "Model": {**MANIFEST["Model"], "Service": "a" * 300}}),
        "cannot be read: File name too long",
    ),
    "sample missing": (
        with_manifest({**MANIFEST, "Serving": {"sample": {"file": "sample.json"}}}),
        "the sample 'sample.json' is not in the archive",
    ),
    "listed file missing": (
        with_manifest({**MANIFEST, "Files": {"synset.txt": "0" * 64}}),
        "'synset.txt' is listed in the manifest but missing",
    ),
    "digest differs": (
        with_manifest({**MANIFEST, "Files": {"service.py": "0" * 64}}),
        "'service.py' differs from its sha256 .*fetch it again, or export it again",
    ),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_incomplete_archive_says_what_is_missing(
    tmp_path: Path, workspace: Path, name: str
) -> None:
    files, message = INCOMPLETE[name]
    refuse(write_zip(tmp_path / "a.model", base=files), workspace, message)
    if name not in ("listed file missing", "digest differs"):
        refuse(write_folder(tmp_path / "a", files), workspace, message)


@pytest.mark.parametrize("name", ["listed file missing", "digest differs"])
def test_a_folder_is_a_working_copy_whose_files_may_change(
    tmp_path: Path, workspace: Path, name: str
) -> None:
    files, _ = INCOMPLETE[name]
    folder = write_folder(tmp_path / "a", files)
    assert open_archive(folder, workspace).folder == folder


def test_an_oversized_manifest_is_not_parsed(tmp_path: Path, workspace: Path) -> None:
    files = members() | {"MANIFEST.json": b" " * (9 * MEGABYTE)}
    path = write_zip(tmp_path / "a.model", base=files, compression=zipfile.ZIP_STORED)
    refuse(path, workspace, "MANIFEST.json is larger than")
    with pytest.raises(ArchiveError, match="is larger than"):
        read_manifest(path)


def test_a_mar_file_and_a_mar_folder_are_recognised_without_unpacking(tmp_path: Path) -> None:
    files = {"MAR-INF/MANIFEST.json": b"{}"}
    for source in (
        write_zip(tmp_path / "a.mar", base=files),
        write_folder(tmp_path / "mar", files),
    ):
        with pytest.raises(ArchiveError, match="MAR-INF"):
            read_manifest(source)


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path, workspace: Path) -> None:
    folder = write_folder(tmp_path / "model", members())
    (tmp_path / "secret").write_text("class Service: ...")
    (folder / "service.py").unlink()
    (folder / "service.py").symlink_to(tmp_path / "secret")
    refuse(folder, workspace, "'service.py' leads out of the archive")


def test_a_link_within_a_folder_is_followed(tmp_path: Path, workspace: Path) -> None:
    folder = write_folder(tmp_path / "model", members())
    (folder / "service.py").rename(folder / "real.py")
    (folder / "service.py").symlink_to("real.py")
    assert open_archive(folder, workspace).folder == folder


def test_a_link_to_itself_is_missing(tmp_path: Path, workspace: Path) -> None:
    folder = write_folder(tmp_path / "model", members())
    (folder / "service.py").unlink()
    (folder / "service.py").symlink_to("service.py")
    refuse(folder, workspace, "names 'service.py', which is not in the archive")


@pytest.mark.parametrize("read", [read_manifest, lambda path: open_archive(path, Path("/nowhere"))])
def test_what_cannot_be_opened_says_why(read: Callable[[str], object]) -> None:
    for source, message in (
        ("/no/such/file.model", "no such file or folder"),
        ("~no-such-user/file.model", "no such file or folder"),
        ("a" * 300, "no such file or folder|File name too long"),
        ("/proc/self/mem", "cannot be read|not a model archive"),
        ("/dev/null", "neither a file nor a folder|not a model archive"),
    ):
        with pytest.raises(ArchiveError, match=message) as caught:
            read(source)
        assert source in str(caught.value)


def _sound_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = write_zip(
            Path(folder, "a.model"), ("sub/asset", b"abc" * 30), ("w.params", bytes(64))
        )
        return path.read_bytes()


SOUND = _sound_bytes()
mutations = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "drop"]),
        st.integers(0, len(SOUND) - 1) | st.integers(len(SOUND) - 500, len(SOUND) - 1),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def mutate(changes: list[tuple[str, int, bytes]]) -> bytes:
    data = bytearray(SOUND)
    for kind, at, value in changes:
        if kind == "set":
            data[at : at + len(value)] = value
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = value
        else:
            del data[at : at + len(value)]
    return bytes(data)


@given(mutations)
@settings(max_examples=200, deadline=None)
def test_a_damaged_archive_opens_or_is_an_archive_error(
    changes: list[tuple[str, int, bytes]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder, "outer", "workspace")
        workspace.mkdir(parents=True)
        path = Path(folder, "a.model")
        path.write_bytes(mutate(changes))
        with contextlib.suppress(ArchiveError):
            read_manifest(path)
        try:
            archive = open_archive(path, workspace)
        except ArchiveError:
            assert listing(workspace.parent) == {"workspace": ""}
        else:
            assert list(workspace.iterdir()) == [archive.folder]
        assert sorted(p.name for p in Path(folder).iterdir()) == ["a.model", "outer"]


@given(st.lists(st.tuples(st.text("./\\ab:\0é~", min_size=1, max_size=12), st.booleans())))
@settings(max_examples=100, deadline=None)
def test_no_name_leads_out_of_the_workspace(names: list[tuple[str, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder, "outer", "workspace")
        workspace.mkdir(parents=True)
        entries = [(entry(name + "/" * is_folder), b"") for name, is_folder in names]
        path = write_zip(Path(folder, "a.model"), *entries)
        with contextlib.suppress(ArchiveError):
            open_archive(path, workspace)
        assert [p.name for p in workspace.parent.iterdir()] == ["workspace"]
        assert sorted(p.name for p in Path(folder).iterdir()) == ["a.model", "outer"]

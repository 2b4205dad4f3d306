"""model-archiver: archives of 1.x with the layout that model-archiver 1.0.3 gives them."""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mms.archive.manifest import ModelFormat
from mms.archive.reader import open_archive
from mms.cli.archiver import main

HANDLER = "def handle(data, context):\n    return data\n"
#: What the folder below becomes, as 1.0.3 packs it.
PACKED = {
    ".dotfile": "x",
    "MAR-INF/MANIFEST.json": """\
{
  "runtime": "python",
  "model": {
    "modelName": "net",
    "handler": "service:handle"
  },
  "modelServerVersion": "1.0",
  "implementationVersion": "1.0",
  "specificationVersion": "1.0"
}""",
    "MAR-INF/other": "x",
    "link.py": HANDLER,
    "service.py": HANDLER,
    "sub/a.txt": "x",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name in (
        *(".DS_Store", ".dotfile", "MANIFEST.json", "old.DS_Store", "old.mar", "service.pyc"),
        *(".git/config", "__MACOSX/a", "__pycache__/service.pyc", "sub/.hidden/a", "sub/a.txt"),
        *("sub/MANIFEST.json", "MAR-INF/MANIFEST.json", "MAR-INF/other"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (folder / "service.py").write_text(HANDLER)
    (folder / "link.py").symlink_to("service.py")
    (folder / "sub_link").symlink_to("sub")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def archiver(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archiver:
    monkeypatch.chdir(tmp_path)
    return Archiver(monkeypatch, folder)


class Archiver:
    """Runs the command in a folder, with what it always needs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self._usual = {
            "--model-name": "net",
            "--model-path": str(folder),
            "--handler": "service:handle",
        }

    def __call__(self, *options: str, **usual: str) -> None:
        changed = self._usual | {f"--{k.replace('_', '-')}": v for k, v in usual.items()}
        words = [word for pair in changed.items() for word in pair]
        self._monkeypatch.setattr(sys, "argv", ["model-archiver", *words, *options])
        main()

    def fails(self, *options: str, status: int = 1, **usual: str) -> None:
        with pytest.raises(SystemExit) as caught:
            self(*options, **usual)
        assert caught.value.code == status


def test_a_mar_is_a_deflated_zip(archiver: Archiver, tmp_path: Path) -> None:
    archiver()
    with zipfile.ZipFile("net.mar") as archive:
        assert {info.filename: archive.read(info).decode() for info in archive.infolist()} == PACKED
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        assert archive.namelist()[-1] == "MAR-INF/MANIFEST.json"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "net.mar"}
    assert os.stat("net.mar").st_mode & 0o777 == os.stat("model/service.py").st_mode & 0o777
    manifest = open_archive("net.mar", tmp_path).manifest
    assert (manifest.model_name, manifest.handler) == ("net", "service:handle")
    assert manifest.model_format is ModelFormat.HANDLER


def test_a_tgz_has_everything_below_the_models_name(archiver: Archiver) -> None:
    archiver("--archive-format", "tgz")
    with tarfile.open("net.tar.gz") as archive:
        members = archive.getmembers()
        # A link is packed as its file; 1.0.3 packs the link, which a server must not follow.
        assert all(member.isreg() and not member.uid for member in members)
        found = {member.name: archive.extractfile(member) for member in members}
        texts = {name: file.read().decode() for name, file in found.items() if file}
    assert texts == {f"net/{name}": text for name, text in PACKED.items()}


def test_without_an_archive_it_is_a_folder(archiver: Archiver, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    archiver("--archive-format", "no-archive", export_path="out")
    found = {
        path.relative_to("out/net").as_posix(): path.read_text()
        for path in Path("out/net").rglob("*")
        if path.is_file()
    }
    assert found == PACKED
    assert open_archive("out/net", tmp_path).manifest.handler == "service:handle"


def test_a_folder_can_be_packed_in_place(archiver: Archiver, folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "net")
    archiver("-f", "--archive-format", "no-archive", model_path="net")
    assert Path("net/MAR-INF/MANIFEST.json").read_text() == PACKED["MAR-INF/MANIFEST.json"]
    assert Path("net/old.mar").read_text() == "x"


@pytest.mark.parametrize("archive_format", ["tgz", "no-archive"])
def test_what_is_written_into_the_folder_is_not_packed_again(
    archiver: Archiver, folder: Path, archive_format: str
) -> None:
    for _ in range(2):
        archiver("-f", "--archive-format", archive_format, export_path=str(folder))
    assert not (folder / "net" / "net").exists()
    if archive_format == "tgz":
        with tarfile.open(folder / "net.tar.gz") as archive:
            assert {name.removeprefix("net/") for name in archive.getnames()} == set(PACKED)


def test_options_may_be_abbreviated(archiver: Archiver) -> None:
    archiver("--archive", "tgz", "--run", "python3", "--forc")
    assert Path("net.tar.gz").is_file()


def test_the_runtime_is_in_the_manifest(archiver: Archiver, tmp_path: Path) -> None:
    archiver("--runtime", "python2")
    assert open_archive("net.mar", tmp_path).manifest.runtime == "python2"


def test_an_archive_is_replaced_only_by_force(
    archiver: Archiver, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("net.mar").write_text("old")
    archiver.fails()
    assert Path("net.mar").read_text() == "old"
    assert capsys.readouterr().err == "Error: net.mar already exists; use --force to replace it\n"
    archiver("--force")
    assert zipfile.is_zipfile("net.mar")


@pytest.mark.parametrize("name", ["a b", "_x", ".x", "a/b", "ä", "a\n", ""])
def test_names_that_1_x_refuses(
    archiver: Archiver, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archiver.fails(model_name=name)
    assert "the model name" in capsys.readouterr().err


def test_mistakes(
    archiver: Archiver, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    archiver.fails(model_path="nowhere")
    archiver.fails(export_path="nowhere")
    (folder / "broken").symlink_to("nowhere")
    archiver.fails()
    assert capsys.readouterr().err.splitlines() == [
        "Error: nowhere: no such folder; set --model-path to an existing one",
        "Error: nowhere: no such folder; set --export-path to an existing one",
        f"Error: {folder}/broken: neither a file nor a link to one; remove it",
    ]
    archiver.fails(status=2, runtime="java")
    archiver.fails("--archive-format", "rar", status=2)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_onnx_files_are_not_converted(
    archiver: Archiver, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1.0.3 calls MXNet's converter, which reads no current file.
    archiver("--convert", "--force")
    (folder / "net.onnx").write_text("x")
    archiver.fails("--convert", "--force")
    assert "net.onnx: is not converted" in capsys.readouterr().err
    archiver("--force")

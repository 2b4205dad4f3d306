"""Folders as they are while a model is made: the exporter's input, and unpacked archives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from mms.archive.reader import open_archive
from mms.errors import ArchiveError
from mms.export.package import export_model
from tests.kit.archives import make_archive, make_mar, signature, write_linear
from tests.kit.server import StartServer
from tests.kit.waiting import until
from tests.kit.zips import listing

SERVICE = """
from mms.model_service.model_service import SingleNodeService


class Adder(SingleNodeService):
    def _inference(self, data):
        return [data[0][0] + {added}]
"""


def write_source(folder: Path, added: int = 1) -> Path:
    """Write a folder that the exporter takes, with a service that adds a number."""
    folder.mkdir()
    (folder / "adder.py").write_text(SERVICE.format(added=added))
    (folder / "signature.json").write_text(json.dumps(signature()))
    return folder


async def test_the_exporters_folder_is_served_and_its_edits_are_loaded(
    tmp_path: Path, start_server: StartServer
) -> None:
    source = write_source(tmp_path / "source")
    before = listing(source)
    server = await start_server({"watch": True, "watch_interval": 0.2}, adder=source)
    assert await server.ask("adder", [1]) == (200, [2])
    assert listing(source) == before
    (source / "adder.py").write_text(SERVICE.format(added=20))

    async def is_newer() -> bool:
        return await server.ask("adder", [1]) == (200, [21])

    await until(is_newer)
    # A mistake keeps the last version that worked.
    (source / "adder.py").write_text("def (:\n")
    (source / "helper.py").write_text("")
    assert await server.ask("adder", [1]) == (200, [21])


async def test_an_unpacked_archive_may_be_edited(tmp_path: Path, start_server: StartServer) -> None:
    # With its digests in the manifest, an edit was refused as damage.
    packed = export_model("adder", write_source(tmp_path / "source"), export_path=tmp_path).path
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(unpacked)
    server = await start_server({"watch": True, "watch_interval": 0.2}, adder=unpacked)
    assert await server.ask("adder", [1]) == (200, [2])
    (unpacked / "adder.py").write_text(SERVICE.format(added=20))

    async def is_newer() -> bool:
        return await server.ask("adder", [1]) == (200, [21])

    await until(is_newer)


async def test_every_way_in_takes_the_same(tmp_path: Path, start_server: StartServer) -> None:
    store = tmp_path / "store"
    store.mkdir()
    write_source(store / "source")
    (store / "wrapped").mkdir()
    make_archive(tmp_path, "echo").rename(store / "wrapped" / "echo.model")
    with zipfile.ZipFile(store / "zipped.zip", "w") as archive:
        for name in ("adder.py", "signature.json"):
            archive.write(store / "source" / name, f"adder/{name}")
    server = await start_server({"model_store": str(store), "management_port": 0})
    for name, url in (("a", "source"), ("b", "zipped.zip"), ("c", "wrapped")):
        query = f"/models?url={url}&model_name={name}&initial_workers=1"
        status, answer = await server.manage("POST", query)
        assert status == 200, answer
    assert await server.ask("a", [1]) == (200, [2])
    assert await server.ask("b", [1]) == (200, [2])
    assert (await server.ask("c", [1]))[0] == 200
    names = {entry["name"] for entry in (await server.manage("POST", "/v2/repository/index"))[1]}
    assert {"source", "wrapped"} <= names


def print_config(base: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(base), **variables}
    command = [sys.executable, "-m", "mms.cli.serve", "serve", "--print-config"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_serve_takes_what_is_in_its_folder(tmp_path: Path) -> None:
    folder = write_linear(tmp_path / "model")
    models = yaml.safe_load(print_config(tmp_path).stdout)["models"]
    assert models["model"]["path"] == str(folder)
    # With a handler, 1.x's toolkits needed no manifest.
    shutil.rmtree(folder)
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "any.py").write_text("")
    models = yaml.safe_load(print_config(tmp_path, MMS_HANDLER="svc:handle").stdout)["models"]
    assert models["model"]["path"] == str(folder)


def test_a_folder_that_holds_a_mar_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "work").mkdir()
    make_mar(tmp_path / "f", "in_class")
    assert open_archive(tmp_path / "f", tmp_path / "work").manifest.model_name == "handled"


def test_a_loose_model_goes_before_the_archive_that_was_exported_from_it(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    export_model("adder", source, export_path=source)
    (tmp_path / "work").mkdir()
    archive = open_archive(source, tmp_path / "work")
    assert (archive.family, archive.manifest.service) == ("model folder", "adder.py")
    assert not (archive.folder / "adder.model").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"\x80\x02}q", "a pickle, as PyTorch .* write it, and not a model archive"),
        ("a.json", b"{}", "a JSON document, and not a model archive"),
        ("a.h5", b"\x89HDF\r\n", "an HDF5 file"),
        ("a.npy", b"\x93NUMPY", "a NumPy array"),
        ("a.params", b"", r"no a-symbol\.json beside the parameters"),
        ("a.bin", b"\x00" * 9, "not a model archive"),
    ],
)
def test_another_kind_of_file_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "work").mkdir()
    with pytest.raises(ArchiveError, match=message):
        open_archive(tmp_path / name, tmp_path / "work")


def test_a_folder_of_something_else_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("")
    with pytest.raises(ArchiveError, match="no other model that is known"):
        open_archive(tmp_path, tmp_path / "work")

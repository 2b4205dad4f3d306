"""ONNX models that name files outside of their folder as their weights."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from mms.engines.onnx_session import open_session
from mms.errors import ModelLoadFailed
from tests.kit.onnx_models import write_external


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_external(tmp_path / "models" / "net")


def point_to(folder: Path, location: str) -> str:
    """Have the model take its weights from elsewhere; return its path."""
    path = folder / "net.onnx"
    model = onnx.load_model(path, load_external_data=False)
    found = [
        entry
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    assert found
    for entry in found:
        entry.value = location
    path.write_bytes(model.SerializeToString())
    return str(path)


class TestV29WeightsElsewhere:
    """The weights are there and whole: only where they lie is wrong."""

    def test_v29_weights_beside_the_model_are_read(self, folder: Path) -> None:
        assert open_session(str(folder / "net.onnx"), threads=1)

    def test_v29_weights_below_the_folder_are_read(self, tmp_path: Path) -> None:
        folder = write_external(tmp_path / "deep", "weights/net.data")
        assert open_session(str(folder / "net.onnx"), threads=1)

    @pytest.mark.parametrize("how", ["above", "absolute", "back", "link", "folder link"])
    def test_v29_weights_outside_of_the_folder_are_refused(self, folder: Path, how: str) -> None:
        elsewhere = folder.parent / "secret.data"
        (folder / "net.onnx.data").rename(elsewhere)
        (folder / "in").mkdir()
        location = {
            "above": "../secret.data",
            "absolute": str(elsewhere),
            "back": "in/../../secret.data",
            "link": "link.data",
            "folder link": "up/secret.data",
        }[how]
        os.symlink(elsewhere, folder / "link.data")
        os.symlink(folder.parent, folder / "up")
        path = point_to(folder, location)
        with pytest.raises(ModelLoadFailed, match=r"its weights lie in .*outside"):
            open_session(path, threads=1)

    @pytest.mark.parametrize("hides", [b"\xc2\x3e\x03", b"\xfb\x06\xfc\x06"], ids=["cut", "group"])
    def test_v29_a_field_that_hides_what_follows_is_refused(
        self, folder: Path, hides: bytes
    ) -> None:
        path = folder / "net.onnx"
        # protobuf skips groups that it does not know; we do not follow them.
        path.write_bytes(path.read_bytes() + hides)
        with pytest.raises(ModelLoadFailed, match="export it again"):
            open_session(str(path), threads=1)

    def test_v29_a_name_that_is_no_text_hides_nothing(self, folder: Path) -> None:
        (folder / "net.onnx.data").rename(folder.parent / "secret.data")
        path = Path(point_to(folder, "../secret.data"))
        # Model.graph (7) > initializer (5) > external_data (13) > value (2)
        entry = b"\x6a\x03\x12\x01\xff"
        tensor = b"\x2a" + bytes([len(entry)]) + entry
        path.write_bytes(b"\x3a" + bytes([len(tensor)]) + tensor + path.read_bytes())
        with pytest.raises(ModelLoadFailed, match="its weights lie in"):
            open_session(str(path), threads=1)

    def test_v29_a_folder_of_a_longer_name_is_another_folder(self, folder: Path) -> None:
        other = folder.parent / "net-of-others"
        other.mkdir()
        (folder / "net.onnx.data").rename(other / "net.onnx.data")
        path = point_to(folder, "../net-of-others/net.onnx.data")
        with pytest.raises(ModelLoadFailed, match="its weights lie in"):
            open_session(path, threads=1)

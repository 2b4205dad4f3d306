"""Text files of users: synset.txt in the encodings and line ends that editors write."""

from __future__ import annotations

from pathlib import Path

import pytest

from mms.archive.text import blank_labels, read_labels, read_text
from mms.errors import ModelLoadFailed


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("red\ngreen\n", ["red", "green"]),
        ("red\ngreen", ["red", "green"]),
        # 0.4 kept the mark in the first label.
        ("\ufeffred\r\ngreen\r\n", ["red", "green"]),
        (" n01 a cat \n n02\ta dog\n", ["n01 a cat", "n02\ta dog"]),
        # No line ends, though `str.splitlines` takes them for some.
        ("a\x0bb\x0cc\x85d\u2028e\n", ["a\x0bb\x0cc\x85d\u2028e"]),
        # 0.4 had classes without a name for these.
        ("red\ngreen\n\n \n", ["red", "green"]),
        # It keeps its place, as in 0.4: "green" is the third class.
        ("red\n\ngreen\n", ["red", "", "green"]),
        ("", []),
    ],
)
def test_one_label_a_line(tmp_path: Path, content: str, labels: list[str]) -> None:
    path = tmp_path / "synset.txt"
    path.write_bytes(content.encode())
    assert read_labels(path) == labels


def test_blank_lines_are_counted_from_one() -> None:
    assert blank_labels(["red", "", "green", ""]) == [2, 4]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("rot\n\u7eff\n".encode("gbk"), r"another encoding \(line 2\); save it as UTF-8"),
        ("rot\n".encode("utf-16"), r"UTF-16 \(line 1\); save it as UTF-8"),
    ],
)
def test_another_encoding_is_told_with_the_file(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "synset.txt"
    path.write_bytes(data)
    with pytest.raises(ModelLoadFailed, match=f"^synset.txt is not in UTF-8 but in {said}"):
        read_text(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"^synset.txt cannot be read: No such file"):
        read_text(tmp_path / "synset.txt")

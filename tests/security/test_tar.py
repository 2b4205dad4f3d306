"""Tar files: what is unpacked, and every reason to refuse one, at a bounded cost."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from mms.archive.members import UnpackLimits
from mms.archive.tar import is_tar, unpack_tar
from mms.errors import ArchiveError, StorageFull
from tests.kit.zips import listing, members, write_folder, write_zip

_END = bytes(2 * tarfile.BLOCKSIZE)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def info(name: str, size: int = 0, type_: bytes = tarfile.REGTYPE, **others: object) -> bytes:
    """Return one header, without its data."""
    member = tarfile.TarInfo(name)
    member.type, member.size = type_, size
    for key, value in others.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def file(name: str, data: bytes = b"") -> bytes:
    """Return a member: header and data."""
    return info(name, len(data)) + padded(data)


def extension(type_: bytes, data: bytes) -> bytes:
    return info("header", len(data), type_) + padded(data)


def pax(**records: bytes) -> bytes:
    """Return a pax header; a dot in a key is written as two underscores."""
    data = b""
    for key, value in records.items():
        body = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(body) + len(str(len(body)))
        length = len(body) + len(str(length))
        data += str(length).encode() + body
    return extension(tarfile.XHDTYPE, data)


def with_sum(block: bytes) -> bytes:
    """Return a header with a new checksum, after a change by hand."""
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def write(path: Path, *parts: bytes, packed: bool = True, end: bytes = _END) -> Path:
    data = b"".join(parts) + end
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


FILES = {"model-symbol.json": b"{}", "code/inference.py": b"pass", "code/lib/deep/a.py": b""}


class TestUnpacking:
    @pytest.mark.parametrize("mode", ["w", "w:gz"])
    @pytest.mark.parametrize(
        "format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    )
    def test_what_python_packs_is_unpacked(
        self, tmp_path: Path, target: Path, mode: str, format_: int
    ) -> None:
        long = "code/" + "/".join(["a" * 60] * 3) + "/ü.py"
        source = write_folder(tmp_path / "source", {**FILES, long: os.urandom(3 << 20)})
        path = tmp_path / "model.tar.gz"
        with tarfile.open(path, mode, format=format_) as archive:  # type: ignore[call-overload]
            archive.add(source, ".")
        assert is_tar(path)
        unpack_tar(path, target, UnpackLimits())
        assert listing(target) == listing(source)

    @pytest.mark.parametrize("options", [["-czf"], ["-cf"], ["--format=v7", "-cf"]])
    def test_what_tar_packs_is_unpacked(
        self, tmp_path: Path, target: Path, options: list[str]
    ) -> None:
        source = write_folder(tmp_path / "source", FILES)
        path = tmp_path / "model.tar"
        subprocess.run(["tar", *options, path, "-C", source, "."], check=True)
        assert is_tar(path)
        unpack_tar(path, target, UnpackLimits())
        assert listing(target) == listing(source)

    def test_several_gzip_files_in_one_are_one(self, tmp_path: Path, target: Path) -> None:
        data = file("a", b"1" * 1000) + _END
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(512))
        unpack_tar(path, target, UnpackLimits())
        assert (target / "a").read_bytes() == b"1" * 1000

    def test_headers_of_no_use_are_skipped(self, tmp_path: Path, target: Path) -> None:
        path = write(
            tmp_path / "a.tar.gz",
            extension(tarfile.XGLTYPE, b"21 comment=git abcde\n"),
            pax(mtime=b"1.5", LIBARCHIVE__xattr__user__x=b"\xff\0"),
            file("a", b"1"),
        )
        unpack_tar(path, target, UnpackLimits())
        assert listing(target).keys() == {"a"}

    def test_modes_and_owners_do_not_matter(self, tmp_path: Path, target: Path) -> None:
        path = write(tmp_path / "a.tar.gz", info("a", mode=0o6777, uid=0) + info("b", mode=0))
        unpack_tar(path, target, UnpackLimits())
        for name in ("a", "b"):
            assert (target / name).stat().st_mode & 0o7111 == 0
            assert (target / name).stat().st_uid == os.getuid()

    def test_other_files_are_none(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        for content in (b"", b"\0" * 2000, b"PK\3\4" + bytes(600), b"{}" * 400):
            path.write_bytes(content)
            assert not is_tar(path)
        assert not is_tar(write_zip(path))


REFUSED: dict[str, tuple[bytes, str]] = {
    "parent": (file("../evil"), "leads out of the archive"),
    "parent inside": (file("a/../../evil"), "leads out of the archive"),
    "absolute": (file("/etc/evil"), "leads out of the archive"),
    "drive": (file("C:/evil"), "leads out of the archive"),
    "backslash": (file("a\\b"), "is not allowed"),
    "no name": (file(""), "is not allowed"),
    "dots": (file("./."), "is not allowed"),
    "folder that leads out": (info("../a", type_=tarfile.DIRTYPE), "leads out"),
    "name of GNU that leads out": (
        extension(tarfile.GNUTYPE_LONGNAME, b"/etc/" + b"a" * 200 + b"\0") + file("a"),
        "leads out",
    ),
    "name of pax that leads out": (pax(path=b"../evil") + file("a"), "leads out"),
    "empty name of pax": (pax(path=b"") + file("a"), "is not allowed"),
    "NUL in a name of pax": (pax(path=b"a\0b") + file("a"), "is not allowed"),
    "long name": (pax(path=b"a/" * 600 + b"a") + file("a"), "is not allowed"),
    "symbolic link": (
        info("a", type_=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "is a link or a device",
    ),
    "hard link": (file("a") + info("b", type_=tarfile.LNKTYPE, linkname="a"), "is a link"),
    "device": (info("a", type_=tarfile.CHRTYPE, devmajor=1), "is a link or a device"),
    "pipe": (info("a", type_=tarfile.FIFOTYPE), "is a link or a device"),
    "volume": (info("a", type_=b"V"), "is a link or a device"),
    "sparse file of GNU": (info("a", type_=tarfile.GNUTYPE_SPARSE), "a sparse file"),
    "sparse file of pax": (pax(GNU__sparse__major=b"1") + file("a"), "a sparse file"),
    "duplicate": (file("a") + file("./a"), "'a' is in the archive twice"),
    "duplicate in another case": (file("a") + file("A"), "'A' is in the archive twice"),
    "file below a file": (file("a") + file("a/b"), "'a/b' lies below a file"),
    "file above a file": (file("a/b") + file("A"), "'a/b' lies below a file"),
    "size below zero": (
        with_sum(info("a")[:124] + b"\xff" * 12 + info("a")[136:]) + bytes(512),
        "a size below zero",
    ),
    "size of pax below zero": (pax(size=b"-512") + file("a"), "a size is not a number"),
    "size of pax beyond all": (pax(size=b"9" * 30) + file("a"), "a size is not a number"),
    "size that is not there": (info("a", 9 << 30) + b"1" * 512, "ends too early"),
    "size of pax that is not there": (pax(size=b"%d" % (8 << 30)) + file("a"), "too early"),
    "one name for all": (extension(tarfile.XGLTYPE, b"9 path=a\n"), "all its members one path"),
    "pax without a length": (extension(tarfile.XHDTYPE, b"path=a\n"), "a pax header"),
    "pax with a false length": (extension(tarfile.XHDTYPE, b"99 path=a\n"), "a pax header"),
    "pax with a length of zero": (extension(tarfile.XHDTYPE, b"0 path=a\n"), "a pax header"),
    "pax that claims a gigabyte": (info("a", 1 << 30, tarfile.XHDTYPE), "a header of 1073741824"),
    "name that claims a gigabyte": (
        info("a", 1 << 30, tarfile.GNUTYPE_LONGNAME),
        "more than the 65536 allowed",
    ),
    "headers without end": (pax(mtime=b"1") * 10 + file("a"), "more than 4 headers"),
    "false checksum": (file("a")[:100] + b"x" + file("a")[101:], "not a tar file, or damaged"),
    "no tar file": (b"text " * 200, "not a tar file, or damaged"),
}


class TestRefusals:
    @pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
    @pytest.mark.parametrize("case", REFUSED)
    def test_a_member_that_is_not_allowed_leaves_nothing_behind(
        self, tmp_path: Path, target: Path, case: str, packed: bool
    ) -> None:
        content, message = REFUSED[case]
        path = write(tmp_path / "a.tar", file("first/sound", b"1"), content, packed=packed)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ArchiveError, match=message) as caught:
            unpack_tar(path, target, UnpackLimits())
        assert str(path) in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before
        assert list(target.iterdir()) == []

    @pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
    def test_a_file_cut_anywhere_is_refused(
        self, tmp_path: Path, target: Path, packed: bool
    ) -> None:
        path = write(tmp_path / "a.tar", file("a", os.urandom(300)), file("b"), packed=packed)
        data = path.read_bytes()
        # Without the second block of zeros, a plain tar file is still whole.
        last = len(data) if packed else len(data) - tarfile.BLOCKSIZE
        for length in range(0, last, 1 if packed else 97):
            path.write_bytes(data[:length])
            with pytest.raises(ArchiveError, match=r"too early|damaged"):
                unpack_tar(path, target, UnpackLimits())
        assert list(target.iterdir()) == []

    def test_a_changed_byte_never_changes_what_is_unpacked(
        self, tmp_path: Path, target: Path
    ) -> None:
        content = os.urandom(200)
        path = write(tmp_path / "a.tar.gz", file("a", b"weights"), file("b", content))
        data = path.read_bytes()
        # The first ten bytes, the header, have a time and the system in them.
        for place in range(10, len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            try:
                unpack_tar(path, target, UnpackLimits())
            except ArchiveError:
                assert list(target.iterdir()) == []
            else:
                # A few bits only fill a byte.
                assert (target / "a").read_bytes() == b"weights"
                assert (target / "b").read_bytes() == content
                shutil.rmtree(target)
                target.mkdir()

    @pytest.mark.parametrize(
        ("tail", "packed"),
        [(b"garbage", True), (b"garbage", False), (file("b") + _END, True)],
    )
    def test_what_follows_the_end_is_refused(
        self, tmp_path: Path, target: Path, tail: bytes, packed: bool
    ) -> None:
        path = write(tmp_path / "a.tar", file("a"), _END, tail, packed=packed)
        with pytest.raises(ArchiveError, match="goes on after its end"):
            unpack_tar(path, target, UnpackLimits())

    def test_garbage_after_gzip_is_refused(self, tmp_path: Path, target: Path) -> None:
        path = write(tmp_path / "a.tar.gz", file("a"))
        path.write_bytes(path.read_bytes() + b"garbage")
        with pytest.raises(ArchiveError, match="goes on after its end"):
            unpack_tar(path, target, UnpackLimits())

    @pytest.mark.parametrize(
        ("compress", "name"),
        [(bz2.compress, "bzip2"), (lzma.compress, "xz"), (b"\x28\xb5\x2f\xfd".__add__, "zstd")],
    )
    def test_other_compressions_are_named(
        self, tmp_path: Path, target: Path, compress: Callable[[bytes], bytes], name: str
    ) -> None:
        path = tmp_path / "model.tar.gz"
        path.write_bytes(compress(file("a") + _END))
        assert is_tar(path)
        with pytest.raises(ArchiveError, match=f"compressed with {name}; only gzip .* tar -czf"):
            unpack_tar(path, target, UnpackLimits())

    def test_a_missing_file_is_named(self, tmp_path: Path, target: Path) -> None:
        with pytest.raises(ArchiveError, match=r"gone\.tar: cannot be read: No such file"):
            unpack_tar(tmp_path / "gone.tar", target, UnpackLimits())


class TestCost:
    def test_a_bomb_is_refused_before_it_is_unpacked(self, tmp_path: Path, target: Path) -> None:
        path = tmp_path / "bomb.tar.gz"
        with gzip.open(path, "wb") as packed:
            packed.write(info("zeros", 4 << 30))
            for _ in range(64):
                packed.write(bytes(1 << 20))
        with pytest.raises(ArchiveError, match="unpacks to over 200 times its packed size"):
            unpack_tar(path, target, UnpackLimits())
        assert list(target.iterdir()) == []

    def test_a_total_beyond_the_limit_is_refused_by_its_headers(
        self, tmp_path: Path, target: Path
    ) -> None:
        path = write(tmp_path / "a.tar", file("a", b"1" * 900), info("b", 101), packed=False)
        with pytest.raises(ArchiveError, match=r"more than the 1000 bytes .*max-unpacked-bytes"):
            unpack_tar(path, target, UnpackLimits(total_bytes=1000))

    def test_more_than_the_disk_has_is_refused_before_it_is_written(
        self, tmp_path: Path, target: Path
    ) -> None:
        size = shutil.disk_usage(target).free + (1 << 40)
        path = write(tmp_path / "a.tar", pax(size=b"%d" % size), file("a"), packed=False)
        with pytest.raises(StorageFull, match="free some space there, or set work_dir"):
            unpack_tar(path, target, UnpackLimits(total_bytes=size * 2))

    @pytest.mark.parametrize("type_", [tarfile.REGTYPE, tarfile.DIRTYPE])
    def test_a_million_members_cost_no_more_than_the_number_allowed(
        self, tmp_path: Path, target: Path, type_: bytes
    ) -> None:
        path = tmp_path / "many.tar.gz"
        with gzip.open(path, "wb", compresslevel=1) as packed:
            for start in range(0, 1_000_000, 10_000):
                packed.write(info(f"{start:07d}", type_=type_) * 10_000)
        tracemalloc.start()
        with pytest.raises(ArchiveError, match=r"twice|more than the 100 entries"):
            unpack_tar(path, target, UnpackLimits(entries=100, ratio=10**6))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()

    def test_folders_that_only_follow_from_names_count(self, tmp_path: Path, target: Path) -> None:
        deep = "/".join(["a"] * 40)
        path = write(tmp_path / "a.tar", *(file(f"{n}/{deep}") for n in range(4)), packed=False)
        unpack_tar(path, target, UnpackLimits(entries=164))
        shutil.rmtree(target)
        target.mkdir()
        with pytest.raises(ArchiveError, match="more than the 163 entries allowed"):
            unpack_tar(path, target, UnpackLimits(entries=163))

    def test_a_large_file_is_never_in_memory(self, tmp_path: Path, target: Path) -> None:
        path = tmp_path / "large.tar"
        with path.open("wb") as out:
            out.write(info("large", 64 << 20))
            out.truncate(512 + (64 << 20) + 1024)
        tracemalloc.start()
        unpack_tar(path, target, UnpackLimits())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
        assert (target / "large").stat().st_size == 64 << 20

    def test_random_bytes_raise_nothing_else(self, tmp_path: Path, target: Path) -> None:
        path = tmp_path / "random.tar"
        sound = file("a/b", b"1" * 600) + pax(path=b"c") + file("x") + _END
        for _ in range(300):
            data = bytearray(sound)
            for place in os.urandom(3):
                data[place * len(data) // 256] ^= 1 << (place % 8)
            stream = io.BytesIO()
            stream.write(with_sum(bytes(data[:512])))
            stream.write(data[512:])
            path.write_bytes(stream.getvalue())
            try:
                unpack_tar(path, target, UnpackLimits())
            except ArchiveError:
                assert list(target.iterdir()) == []
            else:
                shutil.rmtree(target)
                target.mkdir()

    def test_the_files_of_an_archive_may_be_unpacked_as_they_are(
        self, tmp_path: Path, target: Path
    ) -> None:
        source = write_folder(tmp_path / "source", members())
        path = tmp_path / "model.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(source, "model")
        unpack_tar(path, target, UnpackLimits())
        assert listing(target / "model") == listing(source)

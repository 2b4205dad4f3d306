"""What an archive may cost is decided before it is spent, whatever its directory claims."""

from __future__ import annotations

import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mms.archive.members import UnpackLimits, open_zip
from mms.archive.reader import open_archive, read_manifest
from mms.errors import ArchiveError, StorageFull
from tests.kit.fileserver import file_server
from tests.kit.zips import members, write_zip

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def local(name: bytes, data: bytes, extra: bytes = b"") -> bytes:
    """Return a stored member's own header, without its data."""
    size, crc = len(data), zlib.crc32(data)
    return (
        _LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 0, crc, size, size, len(name), len(extra))
        + name
        + extra
    )


def central(name: bytes, data: bytes, offset: int) -> bytes:
    size, crc = len(data), zlib.crc32(data)
    return (
        _CENTRAL.pack(
            b"PK\1\2", 20, 20, 0, 0, 0, 0, crc, size, size, len(name), 0, 0, 0, 0, 0, offset
        )
        + name
    )


def end(count: int, size: int, offset: int) -> bytes:
    return _END.pack(b"PK\5\6", 0, 0, count, count, size, offset, 0)


def end64(count: int, size: int, offset: int) -> bytes:
    """Return the records of a zip64 archive, whose directory stands at `offset`."""
    record = _END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = _LOCATOR64.pack(b"PK\6\7", 0, offset + size, 1)
    return record + locator + end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


def with_empty_entries(path: Path, count: int, tail: Callable[[int, int, int], bytes]) -> Path:
    """Write an archive of very many entries without a byte in them."""
    directory = b"".join(central(b"%07d" % number, b"", 0) for number in range(count))
    head = local(b"0000000", b"")
    path.write_bytes(head + directory + tail(count, len(directory), len(head)))
    return path


def quoting(path: Path, count: int, kernel: bytes) -> Path:
    """Write members that hold the headers of all later ones, and share the last one's data."""
    names = [b"%04d" % number for number in range(count)]
    tail = kernel
    pieces: list[tuple[bytes, bytes]] = []
    for name in reversed(names):
        pieces.append((name, tail))
        tail = local(name, tail) + tail
    pieces.reverse()
    files, offset, directory = b"", 0, b""
    for name, data in pieces:
        header = local(name, data)
        directory += central(name, data, offset)
        files += header
        offset += len(header)
    files += kernel
    path.write_bytes(files + directory + end(count, len(directory), len(files)))
    return path


class TestV15:
    def test_v15_members_that_share_their_bytes_are_refused(
        self, tmp_path: Path, workspace: Path
    ) -> None:
        path = quoting(tmp_path / "a.model", 50, bytes(range(256)) * 400)
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        assert unpacked > 40 * path.stat().st_size
        with pytest.raises(ArchiveError, match="overlaps"):
            open_archive(path, workspace)
        assert list(workspace.iterdir()) == []

    def test_v15_two_entries_of_one_member_are_refused(
        self, tmp_path: Path, workspace: Path
    ) -> None:
        data = b"twice" * 100
        head = local(b"a", data) + data
        directory = central(b"a", data, 0) + central(b"b", data, 0)
        path = tmp_path / "a.model"
        path.write_bytes(head + directory + end(2, len(directory), len(head)))
        with pytest.raises(ArchiveError, match="overlaps"):
            open_archive(path, workspace)

    def test_v15_a_member_longer_than_the_file_is_refused(
        self, tmp_path: Path, workspace: Path
    ) -> None:
        head = local(b"a", b"x") + b"x"
        directory = (
            _CENTRAL.pack(b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 10**9, 10**9, 1, 0, 0, 0, 0, 0, 0)
            + b"a"
        )
        path = tmp_path / "a.model"
        path.write_bytes(head + directory + end(1, len(directory), len(head)))
        with pytest.raises(ArchiveError, match="longer than the file"):
            open_archive(path, workspace)

    def test_v15_many_small_bombs_are_one_large_bomb(self, tmp_path: Path, workspace: Path) -> None:
        bombs = [(f"zeros-{number}", bytes(1 << 20)) for number in range(20)]
        path = write_zip(tmp_path / "a.model", *bombs)
        with pytest.raises(ArchiveError, match="unpacks to over 200 times its packed size"):
            open_archive(path, workspace)
        assert list(workspace.iterdir()) == []

    def test_v15_small_files_that_pack_well_are_no_bomb(
        self, tmp_path: Path, workspace: Path
    ) -> None:
        tables = [(f"table-{number}", bytes(1000)) for number in range(100)]
        open_archive(write_zip(tmp_path / "a.model", *tables), workspace)

    @pytest.mark.parametrize("tail", [end64, lambda _, size, at: end(1, size, at)])
    @pytest.mark.parametrize("count", [300_000, 1_000_000])
    def test_v15_a_million_empty_entries_cost_what_the_allowed_ones_do(
        self, tmp_path: Path, workspace: Path, tail: Callable[..., bytes], count: int
    ) -> None:
        """Whatever number the file's last record states."""
        path = with_empty_entries(tmp_path / "a.model", count, tail)
        for read in (lambda: open_archive(path, workspace), lambda: read_manifest(path)):
            tracemalloc.start()
            try:
                with pytest.raises(ArchiveError, match=r"too many entries|10000 entries allowed"):
                    read()
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            # The directory itself at most; zipfile's objects for 300,000 entries are 130 MB.
            assert peak < 24 << 20

    def test_v15_the_allowed_number_of_entries_is_read(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "a.model")
        with open_zip(path, UnpackLimits(entries=len(members()))) as archive:
            assert len(archive.infolist()) == len(members())
        with (
            pytest.raises(ArchiveError, match="entries allowed"),
            open_zip(path, UnpackLimits(entries=len(members()) - 1)),
        ):
            pass

    def test_v15_what_the_disk_has_no_room_for_is_refused_before_it_is_full(
        self, tmp_path: Path, workspace: Path
    ) -> None:
        """A claim of an exabyte, with the limits of size and ratio out of the way."""
        size = 1 << 60
        extra = struct.pack("<HHQQ", 1, 16, size, 1)
        name = b"huge"
        head = local(name, b"x") + b"x"
        entry = _CENTRAL.pack(
            b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 4, len(extra), 0, 0, 0, 0, 0
        )
        directory = entry + name + extra
        path = tmp_path / "a.model"
        path.write_bytes(head + directory + end(1, len(directory), len(head)))
        limits = UnpackLimits(total_bytes=1 << 62, ratio=1 << 62)
        with pytest.raises(StorageFull, match="free in"):
            open_archive(path, workspace, limits)
        assert list(workspace.iterdir()) == []


#: Unpacks or fetches an archive into a folder, and says which error came of it.
_USE = """
    import pathlib, sys
    from mms.fetch.download import FetchOptions, fetch
    from mms.archive.reader import open_archive
    from mms.errors import MMSError
    from mms.http.errors import status_of
    source, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    try:
        if "://" in source:
            fetch(source, FetchOptions(cache=folder))
        else:
            open_archive(source, folder)
    except MMSError as error:
        print(status_of(error), error.code, error)
"""


class TestV27:
    @pytest.fixture
    def use(self, tmp_path: Path) -> Callable[[str, str], str]:
        """Return a function that uses an archive in a tiny file system of its own."""
        can_mount = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True)
        if can_mount.returncode:
            pytest.skip("needs user namespaces to mount a small file system")
        script, small = tmp_path / "use.py", tmp_path / "small"
        script.write_text(textwrap.dedent(_USE))
        small.mkdir()

        def run(source: str, options: str) -> str:
            command = (
                f"mount -t tmpfs -o {options} none {small} && "
                f"{sys.executable} {script} {source} {small}"
            )
            unshare = ["unshare", "-rm", "sh", "-c", command]
            return subprocess.run(unshare, check=False, capture_output=True, text=True).stdout

        return run

    @pytest.fixture
    def archive(self, tmp_path: Path) -> Path:
        weights = bytes(range(256)) * (3 << 12)
        return write_zip(tmp_path / "a.model", ("weights", weights), compression=zipfile.ZIP_STORED)

    @pytest.mark.parametrize("options", ["size=1m", "size=64m,nr_inodes=4"])
    def test_v27_no_room_to_unpack_is_507(
        self, use: Callable[[str, str], str], archive: Path, options: str
    ) -> None:
        """Found before unpacking or, where it is files that the disk has no room for, while."""
        assert use(str(archive), options).startswith("507 storage_full")

    def test_v27_no_room_to_keep_a_download_is_507(
        self, use: Callable[[str, str], str], archive: Path
    ) -> None:
        with file_server() as files:
            found = use(files.add("/a.model", archive.read_bytes()), "size=1m")
        assert found.startswith("507 storage_full")
        assert "cache_dir" in found

"""The scratch folder: gone with its server, however that ends."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from mms.archive.workspace import open_workspace


def test_the_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_goes_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_workspace(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_missing_parent_is_made(tmp_path: Path) -> None:
    with open_workspace(tmp_path / "a" / "b") as folder:
        assert folder.parent == tmp_path / "a" / "b"


def test_the_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    orphan = tmp_path / "mxnet-model-server-dead"
    orphan.mkdir()
    (orphan / "lock").touch()
    (orphan / "weights").write_text("x")
    with open_workspace(tmp_path):
        assert not orphan.exists()


def test_another_server_s_folder_is_left_alone(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as first, open_workspace(tmp_path) as second:
        assert first != second
        assert first.is_dir()


def test_the_lock_is_never_seen_unlocked(tmp_path: Path) -> None:
    """Or a server that starts at the same time would remove the folder as an orphan's."""
    with open_workspace(tmp_path) as folder, (folder / "lock").open() as lock:
        assert [path.name for path in folder.iterdir()] == ["lock"]
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("name", ["mxnet-model-server-no-lock-yet", "somebody-else-s"])
def test_folders_that_may_be_somebody_s_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with open_workspace(tmp_path):
        pass
    assert (tmp_path / name).is_dir()


def test_a_link_with_our_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "lock").touch()
    (tmp_path / "mxnet-model-server-link").symlink_to(victim)
    with open_workspace(tmp_path):
        pass
    assert (victim / "lock").exists()

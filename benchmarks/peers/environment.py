"""A virtual environment for each peer, with pinned packages, below ``build/peers``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.peer import Peer, PeerUnavailable

#: Some are several hundred megabytes, and mirrors can be slow.
INSTALL_LIMIT_S = 1800
_STAMP, _FAILURE = "installed.txt", "failure.txt"


def environment_bin(root: Path, peer: Peer) -> Path:
    """Return the folder of the commands of a peer's environment, absolute."""
    return (root / peer.name / "venv" / "bin").absolute()


def install(root: Path, peer: Peer) -> None:
    """Install a peer into an environment of its own, unless it is there.

    Raises:
        PeerUnavailable: pip failed; the message has its last word, and its log is kept.
    """
    folder = root.absolute() / peer.name
    if _is_installed(folder, peer):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "install.log"
    pip = (str(folder / "venv/bin/python"), "-m", "pip", "install", "--disable-pip-version-check")
    try:
        _run(log, sys.executable, "-m", "venv", str(folder / "venv"))
        _run(log, *pip, *peer.packages)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder / "venv", ignore_errors=True)
        reason = f"could not be installed: {_last_error(log) or error} (all of it: {log})"
        (folder / _FAILURE).write_text(reason)
        raise PeerUnavailable(reason) from error
    (folder / _STAMP).write_text(_wanted(peer))


def check_installed(root: Path, peer: Peer) -> None:
    """Look whether a peer was installed.

    Raises:
        PeerUnavailable: It was not; the message says why.
    """
    folder = root / peer.name
    if not _is_installed(folder, peer):
        failure = folder / _FAILURE
        raise PeerUnavailable(
            failure.read_text() if failure.exists() else "is not installed; run with --install"
        )


def _is_installed(folder: Path, peer: Peer) -> bool:
    """Tell whether an install of exactly these packages has succeeded."""
    stamp = folder / _STAMP
    return stamp.exists() and stamp.read_text() == _wanted(peer)


def _run(log: Path, *command: str) -> None:
    with log.open("a") as output:
        subprocess.run(command, check=True, timeout=INSTALL_LIMIT_S, stdout=output, stderr=output)


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.startswith("ERROR:")]
    return lines[-1].removeprefix("ERROR:").strip() if lines else ""


def _wanted(peer: Peer) -> str:
    return "\n".join([sys.version.split()[0], *peer.packages]) + "\n"

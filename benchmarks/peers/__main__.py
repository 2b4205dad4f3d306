"""`make bench-peers`: other model servers beside ours, one run, one machine.

Each peer is installed into an environment of its own below ``build/peers``. Then, peer by peer,
ours and the peer serve the same work and take the load in turn. What cannot be installed or
started is left out, with its reason. See README.md in this folder.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.peers import (
    bentoml,
    litserve,
    mlserver,
    multi_model_server,
    ray_serve,
    torchserve,
    triton,
)
from benchmarks.peers.environment import install
from benchmarks.peers.isolate import can_isolate, is_isolated, raise_loopback, run_isolated
from benchmarks.peers.ours import make_ours
from benchmarks.peers.peer import Peer, PeerUnavailable
from benchmarks.peers.report import to_document, to_markdown
from benchmarks.peers.rounds import Plan, measure
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.result import describe_machine
from mms.config.resources import usable_cores

PEERS = {
    module.PEER.name: module.PEER
    for module in (multi_model_server, torchserve, mlserver, litserve, bentoml, ray_serve, triton)
}


@click.command(help=__doc__)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Measure this peer; may be given several times. All by default.",
)
@click.option("--install/--no-install", "is_installing", default=True, help="Install peers first.")
@click.option("--install-only", is_flag=True, help="Install, and measure nothing.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--seconds", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Of each round."
)
@click.option(
    "--warm-up",
    "warm_up_s",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds of load on each server before its first round.",
)
@click.option(
    "--workers",
    default=usable_cores,
    show_default="one per core",
    type=click.IntRange(1),
    help="Worker processes of each server.",
)
@click.option(
    "--archive",
    default="build/character_cnn.model",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The example's archive.",
)
@click.option("--root", default="build/peers", show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    default="build/peers.json",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the result goes; a .md file of the same name is written beside it.",
)
def main(
    only: tuple[str, ...],
    is_installing: bool,
    install_only: bool,
    archive: Path,
    root: Path,
    output: Path,
    rounds: int,
    seconds: float,
    warm_up_s: float,
    workers: int,
) -> None:
    # As an exception, it unwinds: every server is stopped, every folder removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    peers = [PEERS[name] for name in only or PEERS]
    if not archive.exists():
        raise click.ClickException(f"{archive} is not there; make {archive} builds it")
    if is_installing:
        _install(root, peers)
        if install_only:
            return
    if not is_isolated() and can_isolate():
        sys.exit(run_isolated([*sys.argv[1:], "--no-install"]))
    if is_isolated():
        raise_loopback()
    assets = _write_assets(archive, root)
    machine = describe_machine()
    plan = Plan(rounds, seconds, warm_up_s, workers, root, assets)
    try:
        outcome = measure(make_ours(archive), Path(sys.executable).parent, peers, plan, _tell)
    except (PeerUnavailable, BenchmarkError, OSError) as error:
        raise click.ClickException(f"our own server: {error}") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(to_document(outcome, plan, machine), indent=2) + "\n")
    tables = to_markdown(outcome, plan, machine)
    output.with_suffix(".md").write_text(tables)
    click.echo(f"\n{tables}\nwritten to {output} and {output.with_suffix('.md')}")


def _install(root: Path, peers: list[Peer]) -> None:
    for peer in peers:
        _tell(f"{peer.title}: installing")
        try:
            install(root, peer)
        except PeerUnavailable as error:
            _tell(f"{peer.title}: {error}")


def _write_assets(archive: Path, root: Path) -> Path:
    """Return the folder with the network, made anew if the archive is newer."""
    folder = root.absolute() / "assets"
    if not folder.exists() or folder.stat().st_mtime < archive.stat().st_mtime:
        # In a process of its own: MXNet stays out of the one that measures.
        command = [sys.executable, "-m", "benchmarks.peers.assets", str(archive), str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)
    return folder


def _tell(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()

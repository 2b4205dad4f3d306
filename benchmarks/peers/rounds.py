"""Measure peers against ours: both run, and take the load in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.client import Demand, Level, Sample
from benchmarks.client import measure as put_load
from benchmarks.peers.environment import check_installed, environment_bin
from benchmarks.peers.isolate import is_isolated
from benchmarks.peers.peer import Peer, PeerUnavailable, Workload
from benchmarks.peers.process import Running, running
from benchmarks.processes import BenchmarkError

#: By this name a sample has the CPU time of all processes of its server.
CPU = "server"
#: Connections while servers warm up: all workers get work, and Java compiles what is hot.
_WARM_UP_CONNECTIONS = 32
#: Of each round, not counted: connections are made.
_ROUND_WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """How the run is done.

    Attributes:
        rounds: Of ours and the peer each, per number of connections.
        seconds: Of each round.
        warm_up_s: Load on each server before its first round.
        workers: Worker processes of each server, one thread each.
        root: Folder of the environments and logs.
        assets: Folder of the network.
    """

    rounds: int
    seconds: float
    warm_up_s: float
    workers: int
    root: Path
    assets: Path


@dataclass(frozen=True, slots=True)
class Comparison:
    """A peer and ours under the same load; each round is (ours, peer)."""

    peer: Peer
    workload: Workload
    connections: int
    rounds: tuple[tuple[Sample, Sample], ...]

    @property
    def ratios(self) -> list[float]:
        """How many times as many requests as the peer ours answers, by round."""
        return [ours.requests_per_s / peer.requests_per_s for ours, peer in self.rounds]

    @property
    def ratio(self) -> float:
        """The rounds' median of it."""
        return statistics.median(self.ratios)

    @property
    def is_lost(self) -> bool:
        """Whether the peer was faster in every round."""
        return max(self.ratios) < 1

    @property
    def is_level(self) -> bool:
        """Whether each was faster in some round, so that the rounds do not tell who is."""
        return min(self.ratios) < 1 <= max(self.ratios)


@dataclass(slots=True)
class Account:
    """What is known of one server: why it did not run, or how it was set and what it took.

    Attributes:
        peer: The server.
        failure: Why it did not run or did not go on; empty if it did.
        settings: By workload.
        start_s: From the command to the first right answer, by workload.
        memory_bytes: Of all its processes after the load, by workload; pages that several share
            count once.
    """

    peer: Peer
    failure: str = ""
    settings: dict[Workload, str] = field(default_factory=dict)
    start_s: dict[Workload, float] = field(default_factory=dict)
    memory_bytes: dict[Workload, int] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """Everything that a run has found."""

    ours: Account
    peers: list[Account]
    comparisons: list[Comparison] = field(default_factory=list)


def measure(
    ours: Peer, bin_: Path, peers: Sequence[Peer], plan: Plan, tell: Callable[[str], None]
) -> Outcome:
    """Run everything; a peer that does not run is left out, and its account says why.

    Args:
        ours: Our server.
        bin_: Where its command is.
        peers: The peers, installed or not.
        plan: How to do it.
        tell: Called with a line about what was just found.

    Raises:
        PeerUnavailable: Our own server did not start.
        OSError: It does not answer.
    """
    outcome = Outcome(Account(ours), [_account(peer, plan, tell) for peer in peers])
    for workload in Workload:
        with _running(ours, workload, bin_, plan) as server:
            _ready(outcome.ours, server, workload, plan)
            for account in outcome.peers:
                if not account.failure:
                    _compare(account, server, workload, outcome.comparisons, plan, tell)
            outcome.ours.memory_bytes[workload] = server.memory_bytes()
    return outcome


def _account(peer: Peer, plan: Plan, tell: Callable[[str], None]) -> Account:
    account = Account(peer)
    try:
        peer.check(is_isolated())
        check_installed(plan.root, peer)
    except PeerUnavailable as error:
        _give_up(account, str(error), tell)
    return account


def _give_up(account: Account, reason: str, tell: Callable[[str], None]) -> None:
    account.failure = reason
    tell(f"{account.peer.title}: did not run: {reason}")


def _compare(
    account: Account,
    ours: Running,
    workload: Workload,
    comparisons: list[Comparison],
    plan: Plan,
    tell: Callable[[str], None],
) -> None:
    peer, bin_ = account.peer, environment_bin(plan.root, account.peer)
    try:
        with ExitStack() as stack:
            try:
                server = stack.enter_context(_running(peer, workload, bin_, plan))
            except PeerUnavailable as error:
                # On a busy machine some fail now and then (Triton's sockets, for one).
                tell(f"{peer.title}: started once more, because it {error}")
                server = stack.enter_context(_running(peer, workload, bin_, plan))
            _ready(account, server, workload, plan)
            for connections in workload.connections:
                pairs = tuple(
                    (_round(ours, connections, plan), _round(server, connections, plan))
                    for _ in range(plan.rounds)
                )
                comparisons.append(Comparison(peer, workload, connections, pairs))
                tell(_line(comparisons[-1]))
            account.memory_bytes[workload] = server.memory_bytes()
    except (PeerUnavailable, BenchmarkError, OSError) as error:
        _give_up(account, f"{workload.title}: {error}", tell)


def _line(comparison: Comparison) -> str:
    rates = ", ".join(
        f"{ours.requests_per_s:.0f} against {peer.requests_per_s:.0f}"
        for ours, peer in comparison.rounds
    )
    return (
        f"{comparison.peer.title}, {comparison.workload.model}, {comparison.connections}: "
        f"× {comparison.ratio:.2f} (ours {rates} requests/s)"
    )


def _running(
    peer: Peer, workload: Workload, bin_: Path, plan: Plan
) -> AbstractContextManager[Running]:
    folder = plan.root / peer.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{workload.name.lower()}.log"
    return running(lambda site: peer.launch(site, workload), bin_, plan.assets, plan.workers, log)


def _ready(account: Account, server: Running, workload: Workload, plan: Plan) -> None:
    account.settings[workload] = server.launch.settings
    account.start_s[workload] = server.start_s
    _load(server, Demand(Level(_WARM_UP_CONNECTIONS), 0, plan.warm_up_s))


def _round(server: Running, connections: int, plan: Plan) -> Sample:
    sample = _load(server, Demand(Level(connections), _ROUND_WARM_UP_S, plan.seconds))
    if not sample.requests_per_s:
        raise PeerUnavailable(f"gave {sample.answered} answers under load, none of them right")
    return sample


def _load(server: Running, demand: Demand) -> Sample:
    """Put load on a server; it must not look fast by answering errors, nor end the run by one."""
    call = server.launch.call
    return put_load(call.url, call.request, demand, {CPU: server.cpu_s}, tolerates=True)

"""The comparison with other servers: what its report says, and that it hides no loss."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

from benchmarks.client import Sample
from benchmarks.peers.peer import Launch, Peer, PeerUnavailable, Site, Workload
from benchmarks.peers.report import to_document, to_markdown
from benchmarks.peers.rounds import CPU, Account, Comparison, Outcome, Plan


def never(site: Site, workload: Workload) -> Launch:
    raise PeerUnavailable("nothing is started here")


def sample(rate: float) -> Sample:
    return Sample(rate, array("d", [1 / rate, 2 / rate]), {CPU: 1e6}, answered=9)


def comparison(peer: Peer, workload: Workload, rates: list[tuple[float, float]]) -> Comparison:
    rounds = tuple((sample(ours), sample(theirs)) for ours, theirs in rates)
    return Comparison(peer, workload, workload.connections[0], rounds)


def test_report_tells_gains_losses_what_is_level_and_what_did_not_run() -> None:
    quick, broken = Peer("quick", "Quick 1", ("quick==1",), never), Peer("bad", "Bad 2", (), never)
    measured = Account(quick, settings={Workload.NOOP_ONE: "workers=2"})
    measured.memory_bytes[Workload.NOOP_ONE] = 250_000_000
    outcome = Outcome(
        Account(Peer("ours", "Ours 3", (), never)),
        [measured, Account(broken, "needs java")],
        [
            comparison(quick, Workload.NOOP_ONE, [(300, 100), (200, 100), (900, 100)]),
            comparison(quick, Workload.CREPE_ONE, [(50, 100), (60, 100), (70, 100)]),
            comparison(quick, Workload.CREPE_MANY, [(90, 100), (110, 100), (120, 100)]),
        ],
    )
    plan = Plan(3, 1.0, 2.0, 2, Path("root"), Path("assets"))

    lines = to_markdown(outcome, plan, {"cores": 2}).splitlines()

    assert "| requests/s at connections | noop, 1 | crepe, 1 | crepe, 16 |" in lines[2]
    assert lines[4].startswith("| **Ours 3** | 300 | 60 | 110 |")
    assert lines[5] == "| Quick 1 | 100 (× 3.00) | **100 (× 0.60)** | 100 (× 1.10) | 250 | – |"
    assert "Faster than ours in every round: Quick 1 at crepe, 1 (× 0.60)." in lines
    assert "Faster in some rounds, slower in others: Quick 1 at crepe, 16 (× 1.10)." in lines
    assert "- Bad 2 was not measured, or not to the end: needs java" in lines
    assert "  - noop for one client: workers=2" in lines
    document = json.loads(json.dumps(to_document(outcome, plan, {"cores": 2}), allow_nan=False))
    assert [row["ratio"] for row in document["comparisons"]] == [3.0, 0.6, 1.1]
    assert document["comparisons"][1]["rounds"][2]["ours"]["load"]["requests_per_s"] == 70
    assert document["peers"][1]["failure"] == "needs java"

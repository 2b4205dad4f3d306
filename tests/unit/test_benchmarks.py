"""The arithmetic of the benchmarks: random times, percentiles, ratios, what counts as noise."""

from __future__ import annotations

import itertools
from array import array
from pathlib import Path

import pytest

from benchmarks.client import Level, Sample
from benchmarks.compare import Figure, judge
from benchmarks.processes import BenchmarkError
from benchmarks.result import read_document, write_document
from benchmarks.rounds import ratio
from benchmarks.shared_queue import SharedQueue, make_queue
from tests.kit.load.schedule import percentiles, poisson


def test_a_seed_gives_the_same_times_at_the_rate_asked_for() -> None:
    times = poisson(1000.0, 1.0, 19.0, seed=3)
    assert times == poisson(1000.0, 1.0, 19.0, seed=3)
    assert times != poisson(1000.0, 1.0, 19.0, seed=4)
    assert list(times) == sorted(times)
    # Five standard deviations of a Poisson count of 20,000.
    assert abs(len(times) - 20_000) < 5 * 20_000**0.5
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # Independent arrivals: one gap in e is longer than the mean.
    assert sum(gap > 0.001 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_however_low_the_rate_there_is_a_request_to_count() -> None:
    times = poisson(0.001, 1.0, 1.0, seed=3)
    assert len(times) == 1
    assert times[0] >= 1.0


def test_percentiles_are_nearest_ranks_in_milliseconds() -> None:
    shuffled = [index / 1000 for index in range(1000, 0, -1)]
    found = percentiles(shuffled)
    assert found == {"p50_ms": 500.0, "p95_ms": 950.0, "p99_ms": 990.0, "p99_9_ms": 999.0}
    assert percentiles([0.002]) == dict.fromkeys(found, 2.0)
    assert percentiles([]) == {}


def sample(requests_per_s: float, *latencies: float) -> Sample:
    return Sample(requests_per_s, array("d", latencies), {})


def test_less_than_the_reference_is_below_one_in_either_loop() -> None:
    slow, fast = sample(50.0, 0.4, 0.5, 0.9), sample(100.0, 0.1, 0.25, 0.3)
    assert ratio(Level(16), slow, fast) == 0.5
    assert ratio(Level(share=0.8), slow, fast) == 0.5


@pytest.mark.parametrize(
    ("old", "new", "is_better_high", "verdict"),
    [
        ([1.0, 1.1, 0.9], [1.2, 1.3, 1.4], True, "better"),
        ([1.0, 1.1, 0.9], [1.2, 1.3, 1.4], False, "worse"),
        ([1.2, 1.3, 1.4], [1.0, 1.1, 0.9], True, "worse"),
        ([1.0, 1.1, 0.9], [1.05, 1.3, 1.4], True, ""),
        ([1.0, 1.1], [1.2, 1.3], True, "?"),
    ],
)
def test_only_a_difference_beyond_all_rounds_is_one(
    old: list[float], new: list[float], is_better_high: bool, verdict: str
) -> None:
    assert judge(Figure(old, is_better_high), Figure(new, is_better_high)) == verdict


def test_bare_processes_share_what_waits_as_workers_do(tmp_path: Path) -> None:
    make_queue(tmp_path / "queue")
    arrivals = [0.0] * 7 + [5.0]
    first, second = (SharedQueue(tmp_path / "queue", arrivals, 2, batch_size=8) for _ in range(2))
    assert first.take(now=1.0) == range(4)
    # The first one is busy: the rest is for the second one alone.
    assert second.take(now=1.0) == range(4, 7)
    first.finish()
    assert not first.take(now=2.0)
    assert first.next_arrival() == 5.0
    assert first.take(now=5.0) == range(7, 8)
    assert second.next_arrival() is None
    first.close()
    second.close()


def test_a_file_that_is_no_result_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    with pytest.raises(BenchmarkError, match=r"bench\.json cannot be read"):
        read_document(path)
    path.write_text("half")
    with pytest.raises(BenchmarkError, match="is not JSON"):
        read_document(path)
    write_document({"format": 0}, path)
    with pytest.raises(BenchmarkError, match="is no result of this version"):
        read_document(path)

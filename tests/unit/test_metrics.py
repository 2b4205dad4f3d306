"""Histograms and the text that Prometheus reads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.telemetry.counters import (
    BATCH_BUCKETS,
    DURATION_BUCKETS,
    SIZE_BUCKETS,
    STAGE_BUCKETS,
    Histogram,
    ServableMetrics,
    ServerMetrics,
)
from mms.telemetry.prometheus import Exporter, ServableSnapshot
from mms.telemetry.service_metrics import ReportedMetrics


@pytest.mark.parametrize(
    "entry",
    [
        None,
        ["loss", 1.0],
        ["loss", "much", "", False, []],
        ["loss", None, "", False, []],
        ["loss", 10**400, "", False, []],
    ],
)
def test_what_a_worker_reports_that_is_no_metric_is_counted_and_left_out(entry: Any) -> None:
    reported = ReportedMetrics()
    reported.take([entry, ["loss", 0.5, "", False, []]])
    assert reported.dropped == 1
    assert [sample[3] for sample in reported.samples()] == [0.5]


def test_a_value_on_a_bound_is_counted_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert histogram.total == 14.0


@given(st.lists(st.floats(0, 1e6)))
@settings(max_examples=100, deadline=None)
def test_buckets_hold_what_lies_at_or_below_their_bound(values: list[float]) -> None:
    histogram = Histogram(DURATION_BUCKETS)
    for value in values:
        histogram.observe(value)
    for bound, count in histogram.cumulative():
        assert count == sum(value <= float(bound) for value in values)


@pytest.mark.parametrize("bounds", [DURATION_BUCKETS, STAGE_BUCKETS, BATCH_BUCKETS, SIZE_BUCKETS])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


async def test_what_takes_time_is_read_once_for_all_who_wait_for_a_text() -> None:
    now = 0.0
    exporter = Exporter(OneModel(ServableMetrics("m", "1")), ServerMetrics(), 1.0, lambda: now)
    readings, go = [], asyncio.Event()

    async def read() -> None:
        readings.append(now)
        await go.wait()

    asking = [asyncio.create_task(exporter.fresh(read)) for _ in range(3)]
    await asyncio.sleep(0)
    go.set()
    texts = await asyncio.gather(*asking)
    assert len(readings) == 1
    assert len(set(texts)) == 1
    assert await exporter.fresh(read) == texts[0]
    assert len(readings) == 1
    now = 100.0
    await exporter.fresh(read)
    assert len(readings) == 2


class OneModel:
    def __init__(self, metrics: ServableMetrics) -> None:
        self.metrics = metrics

    def snapshots(self) -> Iterable[ServableSnapshot]:
        yield ServableSnapshot(
            metrics=self.metrics,
            state="ready",
            states=["loading", "ready"],
            queue_depth=3,
            queue_limit=100,
            in_flight=2,
            workers={"busy": 1, "dead": 0},
            worker_memory=[1000],
        )


def test_a_scrape_shows_what_was_counted() -> None:
    metrics, server = ServableMetrics("crepe", "2"), ServerMetrics()
    metrics.requests["predictions", 200] += 7
    metrics.rejected["queue_full"] += 1
    metrics.restarts["signal"] += 2
    metrics.releases["full"] += 3
    metrics.duration.observe(0.002)
    server.requests["unknown", 404] += 5
    text = Exporter(OneModel(metrics), server).render().decode()
    labels = 'model="crepe",version="2"'
    for line in (
        f'mms_requests_total{{code="200",{labels[:13]},route="predictions",version="2"}} 7.0',
        'mms_requests_total{code="404",model="",route="unknown",version=""} 5.0',
        f'mms_requests_rejected_total{{{labels[:13]},reason="queue_full",version="2"}} 1.0',
        f"mms_queue_depth{{{labels}}} 3.0",
        f"mms_queue_limit{{{labels}}} 100.0",
        f"mms_in_flight{{{labels}}} 2.0",
        'mms_model_state{model="crepe",state="ready",version="2"} 1.0',
        'mms_model_state{model="crepe",state="loading",version="2"} 0.0',
        f"mms_request_duration_seconds_count{{{labels}}} 1.0",
    ):
        assert _sorted(line) in {_sorted(found) for found in text.splitlines()}


def _sorted(line: str) -> str:
    """Return a sample with its labels in order of their names."""
    match = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
    if match is None:
        return line
    name, labels, value = match.groups()
    return f"{name} {sorted(labels.split(','))} {value}"


def test_a_hostile_label_cannot_forge_a_sample() -> None:
    metrics = ServableMetrics('x"} 1\nforged_total{a="', "1")
    text = Exporter(OneModel(metrics), ServerMetrics()).render().decode()
    assert not re.search(r"^forged_total", text, re.MULTILINE)

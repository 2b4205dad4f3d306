"""Write reference.md, metrics.md and mms.example.yaml from the code's declarations: `make docs`.

A test compares the files with what this gives, so that they cannot fall behind.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

from aiohttp import web

from mms.config.build import Config
from mms.config.declaration import rules_of
from mms.config.settings import ENV_PREFIX, ModelSettings, ServerSettings
from mms.errors import MMSError, StartupError, subclasses
from mms.http.app import make_app
from mms.http.context import Context
from mms.http.errors import status_of
from mms.http.guard import Guard
from mms.http.management import make_management_app
from mms.serving.budget import Budget
from mms.serving.controlplane import ControlPlane
from mms.serving.dataplane import DataPlane
from mms.serving.lifecycle import ServableState
from mms.serving.pool.slot import WorkerState
from mms.serving.registry import Registry
from mms.serving.shadow import Shadows
from mms.telemetry.counters import ServableMetrics, ServerMetrics
from mms.telemetry.machine import Machine
from mms.telemetry.prometheus import Exporter, ServableSnapshot
from mms.telemetry.readings import Counts

REFERENCE = Path(__file__).parent / "reference.md"
EXAMPLE = Path(__file__).parent / "mms.example.yaml"
METRICS = Path(__file__).parent / "metrics.md"
#: v0.4's metrics, and what says the same to Prometheus.
_V04_METRICS = {
    "PredictionTotal": 'sum of `mms_requests_total{model="..."}`',
    "Prediction4XX": '`mms_requests_total{model="...",code=~"4.."}`',
    "Prediction5XX": '`mms_requests_total{model="...",code=~"5.."}`',
    "LatencyOverall": "`mms_request_duration_seconds`",
    "LatencyPreprocess": '`mms_stage_duration_seconds{stage="preprocess"}`',
    "LatencyInference": '`mms_stage_duration_seconds{stage="inference"}`',
    "LatencyPostprocess": '`mms_stage_duration_seconds{stage="postprocess"}`',
    "PingTotal": '`mms_requests_total{route="ping"}`',
    "APIDescriptionTotal": '`mms_requests_total{route="api_description"}`',
    "CPUUtilization": "the node exporter's; of the server alone, `process_cpu_seconds_total`",
    "MemoryUsed": "the node exporter's; `process_resident_memory_bytes`, `mms_worker_memory_bytes`",
    "MemoryAvailable": "the node exporter's",
    "MemoryUtilization": "the node exporter's",
    "DiskUsed": "the node exporter's",
    "DiskAvailable": "the node exporter's",
    "DiskUtilization": "the node exporter's",
}


def reference() -> str:
    """Return the whole document."""
    parts = [
        "# Reference\n\nWritten from the code by `make docs`; do not edit.",
        "## Settings\n\nA flag beats an environment variable, which beats the file given with "
        "`--config`, which beats the archive's own `Serving` defaults. `--print-config` shows "
        "where each value comes from, as a file that can be given as `--config`.\n\nA size is a "
        "number of bytes or has a unit: `512MiB`, `2GB`. A time is a number of what the setting "
        "names or has a unit: `500ms`, `30s`, `2m`. A list is separated by commas; in the file it "
        "may be a list.",
        "### Server\n\n" + _settings(ServerSettings),
        "### Models\n\nAs flags and variables they hold for every model; in the file, under "
        "`models.NAME`, for one.\n\n" + _settings(ModelSettings),
        "### File\n\n[mms.example.yaml](mms.example.yaml) shows every key with its default.",
        "## Routes\n\n### Inference\n\n" + _routes(make_app(_context(), Guard(ServerSettings()))),
        "### Management\n\nOn a port of its own; see [management.md](management.md).\n\n"
        + _routes(_management_app()),
        "## Errors\n\n" + _errors(),
        "## Exit statuses\n\n" + _exit_statuses(),
        "## Metrics\n\nIn [metrics.md](metrics.md).",
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def metrics() -> str:
    """Return the page on metrics."""
    return _METRICS_PAGE.format(
        metrics=_metrics().rstrip(),
        destinations=_table(("`--metrics-write-to`", ""), _DESTINATIONS).rstrip(),
        names=_v04_metrics().rstrip(),
    )


_DESTINATIONS: list[tuple[str, ...]] = [
    (
        "`log`",
        "a line of the logger `mms.metrics` for each metric; in JSON logs, `model` says whose it "
        "is",
    ),
    (
        "`csv`",
        "`mms_NAME.csv` for each metric, in the folder `--metrics-dir` (`metrics`); its columns "
        "are time (UTC), value and model",
    ),
    (
        "`cloudwatch`",
        "AWS CloudWatch, namespace `MXNetModelServer`, dimensions `host` and, for models, "
        "`model_name`; needs `pip install 'mxnet-model-server[cloudwatch]'`, a region "
        "(`AWS_DEFAULT_REGION`) and credentials that allow `cloudwatch:PutMetricData`",
    ),
]
_METRICS_PAGE = """\
# Metrics

Written from the code by `make docs`; do not edit.

## Prometheus

`GET /metrics` on the inference port, in Prometheus' text format:

```yaml
scrape_configs:
  - job_name: mms
    static_configs:
      - targets: ["127.0.0.1:8080"]
```

Units are seconds and bytes. Requests that belong to no model (pings, descriptions, unknown models)
have empty model and version labels; a name that a client makes up never becomes a label.

{metrics}

## Under their names of 0.4

`--metrics-write-to` writes metrics as Model Server for Apache MXNet 0.4 named them, every
`--metrics-interval` seconds (60) and once more when the server stops. Counts are sums over the
interval, times are means over its requests (of a stage, over its batches), and what concerns the
machine is the mean of a look every 5 seconds. A metric that nothing happened to is not written.
The versions of a model count as one.

{destinations}

A destination that fails is named in the log once, until it works again; what the interval had is
then lost, and serving goes on.

{names}

Different from 0.4: nothing is written unless asked for; the CSV files have a header and a third
column, the model, without which several models could not be told apart; the log line is another;
`APIDescriptionTotal` has the unit Count, not Percent.
"""


def _v04_metrics() -> str:
    model, server = ServableMetrics("model", "1"), ServerMetrics()
    counts, machine = Counts(lambda: [model], server), Machine()
    for status in (400, 500):
        model.requests["predictions", status] += 1
    for histogram in (model.duration, *model.stages.values()):
        histogram.observe(1.0)
    for route in ("ping", "api_description"):
        server.requests[route, 200] += 1
    machine.sample()
    rows = [
        (f"`{reading.name}`", reading.unit, _V04_METRICS[reading.name])
        for reading in counts.take() + machine.take()
    ]
    return _table(("0.4", "unit", "for Prometheus"), rows)


def _settings(cls: type[Any]) -> str:
    rows = [
        (
            f"`--{f.name.replace('_', '-')}`",
            f"`{ENV_PREFIX}{f.name.upper()}`",
            f"`{f.default}`" if f.default not in ("", ()) else "",
            rules_of(f).help.replace("|", "\\|"),
        )
        for f in dataclasses.fields(cls)
    ]
    return _table(("flag", "environment", "default", ""), rows)


def example() -> str:
    """Return a configuration file with every key at its default."""
    lines = [
        "# Every setting with its default; written from the code by `make docs`.",
        "# mxnet-model-server --config mms.yaml",
        "",
        "# --- The server ---",
    ]
    lines += _yaml(ServerSettings, "")
    lines += ["", "# --- Every model that does not say otherwise ---"]
    lines += _yaml(ModelSettings, "")
    lines += [
        "",
        "# --- The models: a path, or a path and settings of its own ---",
        "models:",
        "  crepe: build/character_cnn.model",
        "  resnet:",
        "    path: models/resnet.model",
        "    workers: 2",
        "    batch_size: 16",
    ]
    return "\n".join(lines) + "\n"


def _yaml(cls: type[Any], indent: str) -> list[str]:
    lines = []
    for f in dataclasses.fields(cls):
        lines += [f"{indent}# {line}" for line in textwrap.wrap(rules_of(f).help, 90)]
        lines.append(f"{indent}{f.name}: {json.dumps(f.default)}")
    return lines


def _context() -> Context:
    registry, metrics = Registry(), ServerMetrics()
    exporter = Exporter(registry, metrics)
    budget = Budget(0)
    shadows = Shadows(metrics.shadows, budget)
    dataplane = DataPlane(registry, metrics, shadows, logs_access=False)
    controlplane = ControlPlane(Config(ServerSettings(), (), {}), registry, lambda _: {})
    return Context(registry, ServerSettings(), exporter, dataplane, controlplane)


def _management_app() -> web.Application:
    return make_management_app(_context(), Guard(ServerSettings()))


def _routes(app: web.Application) -> str:
    rows = [
        (f"`{route.method} {route.resource.canonical}`", _first_line(route))
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    ]
    return _table(("route", ""), rows)


def _first_line(route: web.AbstractRoute) -> str:
    return (route.handler.__doc__ or "").strip().splitlines()[0]


def _errors() -> str:
    rows = []
    for cls in subclasses():
        # A worker makes one more, out of ours and MXNet's.
        if cls.__module__ == MMSError.__module__ and not issubclass(cls, StartupError):
            error = cls("", 0) if cls.__name__ == "RejectedByService" else cls("")  # type: ignore[call-arg, arg-type]
            status = "the service's own" if cls.__name__ == "RejectedByService" else None
            rows.append((f"`{cls.code}`", str(status or status_of(error)), _doc(cls)))
    return _table(("`error.code`", "status", ""), rows)


def _exit_statuses() -> str:
    rows = [("0", "stopped by a signal, after finishing what was accepted")]
    statuses: dict[int, list[str]] = {}
    for cls in subclasses(StartupError):
        statuses.setdefault(cls.exit_status, []).append(f"`{cls.code}`")
    rows += [(str(status), ", ".join(codes)) for status, codes in sorted(statuses.items())]
    return _table(("status", ""), rows)


def _metrics() -> str:
    class OneModel:
        def snapshots(self) -> list[ServableSnapshot]:
            metrics = ServableMetrics("model", "1")
            states = [state.value for state in ServableState]
            workers = {state.value: 0 for state in WorkerState}
            return [ServableSnapshot(metrics, states[0], states, 0, 0, 0, workers, [1])]

    labels = {
        "mms_requests": "model, version, route, code",
        "mms_requests_rejected": "model, version, reason",
        "mms_batch_release": "model, version, reason",
        "mms_worker_restarts": "model, version, reason",
        "mms_shadow_requests": "model, version, outcome",
    }
    rows = []
    for family in Exporter(OneModel(), ServerMetrics()).collect():
        known = [key for s in family.samples[:1] for key in s.labels if key != "le"]
        name = family.name + ("_total" if family.type == "counter" else "")
        shown = labels.get(family.name, ", ".join(known))
        rows.append((f"`{name}`", family.type, shown, family.documentation))
    rows.append(("`process_*`", "", "", "The server process: CPU, memory, open files, start time."))
    return _table(("metric", "type", "labels", ""), rows)


def _doc(cls: type[Any]) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    METRICS.write_text(metrics(), encoding="utf-8")
    EXAMPLE.write_text(example(), encoding="utf-8")

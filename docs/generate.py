"""Write docs/reference.md from the code's own declarations: `make docs`.

A test compares the file with what this gives, so that the reference cannot fall behind.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from aiohttp import web

from mms.config import ENV_PREFIX, ModelSettings, ServerSettings
from mms.errors import StartupError, subclasses
from mms.http.app import make_app
from mms.http.context import Context
from mms.http.errors import status_of
from mms.metrics import Exporter, ServableMetrics, ServableSnapshot, ServerMetrics
from mms.serving.lifecycle import ServableState, WorkerState
from mms.serving.registry import Registry

TARGET = Path(__file__).parent / "reference.md"
#: v0.4's metrics, which it wrote to a log or a CSV file, and what says the same now.
_V04_METRICS = {
    "PredictionTotal": 'sum of `mms_requests_total{model="..."}`',
    "Prediction4XX": '`mms_requests_total{model="...",code=~"4.."}`',
    "Prediction5XX": '`mms_requests_total{model="...",code=~"5.."}`',
    "LatencyOverall": "`mms_request_duration_seconds`",
    "LatencyPreprocess": '`mms_stage_duration_seconds{stage="preprocess"}`',
    "LatencyInference": '`mms_stage_duration_seconds{stage="inference"}`',
    "PingTotal": '`mms_requests_total{route="ping"}`',
    "APIDescriptionTotal": '`mms_requests_total{route="api_description"}`',
    "CPU, MEMORY, DISK": "`process_cpu_seconds_total`, `process_resident_memory_bytes`, "
    "`mms_worker_memory_bytes`; disks are the node exporter's business",
}


def reference() -> str:
    """Give the whole document."""
    parts = [
        "# Reference\n\nWritten from the code by `make docs`; do not edit.",
        "## Settings\n\nA flag beats an environment variable, which beats the file given with "
        "`--config`, which beats the archive's own `Serving` defaults. `--print-config` shows "
        "where each value comes from.",
        "### Server\n\n" + _settings(ServerSettings),
        "### Models\n\nAs flags and variables they hold for every model; in the file, under "
        "`models.NAME`, for one.\n\n" + _settings(ModelSettings),
        "### File\n\n```yaml\n" + _example_file() + "```",
        "## Routes\n\n" + _routes(),
        "## Errors\n\n" + _errors(),
        "## Exit statuses\n\n" + _exit_statuses(),
        "## Metrics\n\n" + _metrics(),
        "### Names of 0.4\n\n"
        + _table(("0.4", "now"), [(f"`{k}`", v) for k, v in _V04_METRICS.items()]),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _settings(cls: type[Any]) -> str:
    rows = [
        (
            f"`--{f.name.replace('_', '-')}`",
            f"`{ENV_PREFIX}{f.name.upper()}`",
            f"`{f.default}`" if f.default != "" else "",
            f.metadata["help"].replace("|", "\\|"),
        )
        for f in dataclasses.fields(cls)
    ]
    return _table(("flag", "environment", "default", ""), rows)


def _example_file() -> str:
    return (
        "port: 8080\n"
        "batch_size: 4            # for every model that does not say otherwise\n"
        "models:\n"
        "  crepe: build/character_cnn.model\n"
        "  resnet:\n"
        "    path: models/resnet.model\n"
        "    workers: 2\n"
        "    batch_size: 16\n"
    )


def _routes() -> str:
    registry, metrics = Registry(), ServerMetrics()
    app = make_app(Context(registry, ServerSettings(), metrics, Exporter(registry, metrics)))
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
        if not issubclass(cls, StartupError):
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
            return [ServableSnapshot(metrics, states[0], states, 0, 0, 0, workers, [(1, 1)])]

    labels = {
        "mms_requests": "model, version, route, code",
        "mms_requests_rejected": "model, version, reason",
        "mms_batch_release": "model, version, reason",
        "mms_worker_restarts": "model, version, reason",
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
    TARGET.write_text(reference(), encoding="utf-8")

"""Write what the documentation says of the code from the code itself: `make docs`.

All of reference.md, metrics.md and mms.example.yaml, and the marked blocks of architecture.md and
migration.md. A test compares the files with what this returns, so that they cannot fall behind.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from aiohttp import web

from mms.config.build import Config
from mms.config.declaration import rules_of
from mms.config.legacy import KEYS
from mms.config.settings import ENV_PREFIX, ModelSettings, ServerSettings
from mms.errors import MMSError, StartupError, subclasses
from mms.http.app import make_app
from mms.http.context import Context
from mms.http.errors import status_of
from mms.http.guard import Guard
from mms.http.management import make_management_app
from mms.serving.budget import Budget
from mms.serving.controlplane import ControlPlane
from mms.serving.dataplane import (
    CLIENT_LEFT,
    CLIENT_LEFT_REASON,
    SERVER_MOVES,
    SLOW_READER_REASON,
    DataPlane,
    ServerState,
    reasons,
)
from mms.serving.lifecycle import SERVABLE_MOVES, ServableState
from mms.serving.pool.machine import PHASE_MOVES, Phase
from mms.serving.pool.slot import WORKER_MOVES, WorkerState
from mms.serving.registry import Registry
from mms.serving.shadow import Shadows
from mms.telemetry.counters import ServableMetrics, ServerMetrics
from mms.telemetry.machine import Machine
from mms.telemetry.prometheus import Exporter, ServableSnapshot
from mms.telemetry.readings import Counts
from mms.telemetry.service_metrics import MAX_SERIES

ROOT = Path(__file__).parents[1]
MIGRATION = Path(__file__).parent / "migration.md"
ARCHITECTURE = Path(__file__).parent / "architecture.md"
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
        "## Routes\n\nEvery route answers `OPTIONS` with its methods, or with the description that "
        "is listed here. Slashes too many in a path say nothing.\n\n### Inference\n\nHandlers of "
        "1.x are asked by any method where models are, and by any path below "
        "`/predictions/{model}/`.\n\n" + _routes(make_app(_context(), Guard(ServerSettings()))),
        "### Management\n\nOn a port of its own; see [management.md](management.md).\n\n"
        + _routes(_management_app()),
        "## Errors\n\n" + _errors(),
        "## Exit statuses\n\n" + _exit_statuses(),
        "## Metrics\n\nIn [metrics.md](metrics.md).",
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


Graph = Mapping[str, AbstractSet[str]]
_BLOCK = re.compile(r"(<!-- generated: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def architecture(text: str, imports: Graph, starts: Graph) -> str:
    """Return the page on the architecture with its marked blocks as they must be.

    Args:
        text: The page as it is.
        imports: What each package of `mms`, and each module right in it, needs of the others.
        starts: Which of these it starts as processes instead of importing them.
    """
    blocks = {
        "packages": _package_table(imports),
        "package graph": _package_graph(imports, starts),
        "servable states": _state_diagram(SERVABLE_MOVES, ServableState.UNLOADED),
        "worker states": _state_diagram(WORKER_MOVES, WorkerState.STARTING),
        "pool phases": _state_diagram(PHASE_MOVES, Phase.NEW),
        "server states": _state_diagram(SERVER_MOVES, ServerState.STARTING),
    }
    missing = blocks.keys() - {name for _, name, _ in _BLOCK.findall(text)}
    if missing:
        raise ValueError(f"{ARCHITECTURE.name} has no block for {sorted(missing)}")
    return _BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}{match[3]}", text)


def migration(text: str) -> str:
    """Return the page on coming from 0.4 or 1.x with its marked block as it must be."""
    rows = []
    for name, key in KEYS.items():
        sets = ", ".join(f"`{setting}`" for setting in key.sets) or "-"
        rows.append(f"| `{name}` | {sets} | {key.remark} |\n")
    table = "| 1.x | here | |\n| --- | --- | --- |\n" + "".join(rows)
    return _BLOCK.sub(lambda match: f"{match[1]}{table}{match[3]}", text)


def _package_table(imports: Graph) -> str:
    rows = []
    for name in sorted(imports.keys() - {"mms"}):
        path = ROOT / name.replace(".", "/")
        shown = f"{path.relative_to(ROOT)}/" if path.is_dir() else f"{path.relative_to(ROOT)}.py"
        summary = _summary(name)
        needs = ", ".join(f"`{other[4:]}`" for other in sorted(imports[name]))
        rows.append((f"`{shown}`", summary.replace("|", "\\|"), needs))
    return _table(("package", "", "imports"), rows)


def _summary(name: str) -> str:
    """Return the first paragraph of a package's or module's docstring."""
    path = ROOT / name.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def _package_graph(imports: Graph, starts: Graph) -> str:
    """Draw the packages; an arrow is left out where a longer way says the same.

    So is what only users import: the names of 0.4 and 1.x that have no part in the server.
    """
    lines = ["```mermaid", "flowchart TD"]
    used = set[str]().union(*imports.values())
    for name in sorted(imports.keys() - {"mms"}):
        if name not in used and _summary(name).startswith("PUBLIC"):
            continue
        for other in sorted(imports[name]):
            if other in starts.get(name, ()):
                lines.append(f"    {name[4:]} -. starts .-> {other[4:]}")
            elif not any(other in _below(third, imports) for third in imports[name] - {other}):
                lines.append(f"    {name[4:]} --> {other[4:]}")
    return "\n".join([*lines, "```"]) + "\n"


def _below(name: str, imports: Graph) -> set[str]:
    direct = imports[name]
    return set(direct).union(*(_below(other, imports) for other in direct))


def _state_diagram(moves: Mapping[Any, Iterable[Any]], first: enum.Enum) -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.name}"]
    for current in type(first):
        lines += [
            f"    {current.name} --> {following.name}"
            for following in type(first)
            if following in moves[current] and following is not current
        ]
    return "\n".join([*lines, "```"]) + "\n"


def metrics() -> str:
    """Return the page on metrics."""
    return _METRICS_PAGE.format(
        series=MAX_SERIES,
        codes=textwrap.fill(
            ", ".join(f"`{code}`" for code in reasons() if code not in _NO_CODES), 100
        ),
        reasons=_table(("reason", ""), _REASONS).rstrip(),
        states=", ".join(f"`{state.value}`" for state in WorkerState),
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
#: Besides the codes of errors.
_REASONS: list[tuple[str, ...]] = [
    (
        f"`{CLIENT_LEFT_REASON}`",
        "the client closed its connection before it had its answer; `mms_requests_total` counts it "
        f"under code {CLIENT_LEFT}",
    ),
    (
        f"`{SLOW_READER_REASON}`",
        "the connection was closed because the client did not read its answer (`write_timeout`); "
        "counted without a model",
    ),
]
_NO_CODES = (CLIENT_LEFT_REASON, SLOW_READER_REASON)
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

`mms_requests_rejected_total` counts each refusal once, over HTTP and gRPC alike: before a version
has been chosen (the server is draining, the body is too large) for the version named or the default
one. Its `reason` is the [`error.code`](reference.md#errors) that the client got, one of
{codes},
or

{reasons}

What the service itself answers or raises (`inference_failed`, `invalid_service_output`,
`rejected_by_service`) is no refusal, and neither is what does not get as far as a route (malformed
requests, unknown paths): `mms_requests_total` has them by their code.

`mms_workers` counts workers by `state`:
{states}.
`stopping` lasts until the process has ended, of a worker that was killed, too; `backoff` is one
whose next start waits, since it died or failed to start several times.

What a service reports itself is `mms_service_<name>` with its dimensions as labels: 1.x handlers
with `context.metrics` (in a service of 0.4 `self.metrics`), services of 0.4 with
`mms.metric.Metric` and `mms.metrics_manager.MetricsManager.metrics`. `add_time` and metrics in
milliseconds give a sum and a count of seconds, `add_counter` and sums a counter, everything else
the last value. It is taken with the next answer, and a version has at most {series} series.

## Under their names of 0.4

`--metrics-write-to` writes metrics as Model Server for Apache MXNet 0.4 named them, every
`--metrics-interval` seconds (60) and once more when the server stops. Counts are sums over the
interval, times are means over its requests (of a stage, over its batches), and what concerns the
machine is the mean of a look every 5 seconds. A metric that nothing happened to is not written.
The versions of a model count as one. What a service reports itself is written under the name and
the unit that it gives: the sum of a counter, the mean of anything else, over all dimensions. Under
one of the names below a count is added to the server's, and a time stands in its place.

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
        if route.method not in ("HEAD", "*") and route.resource is not None
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


def main() -> None:
    """Write the files."""
    # The graph that the tests of the imports check.
    sys.path.insert(0, str(ROOT))
    from tests.unit.test_imports import ROOMS, STARTED

    text = ARCHITECTURE.read_text(encoding="utf-8")
    ARCHITECTURE.write_text(architecture(text, ROOMS, STARTED), encoding="utf-8")
    text = MIGRATION.read_text(encoding="utf-8")
    MIGRATION.write_text(migration(text), encoding="utf-8")
    REFERENCE.write_text(reference(), encoding="utf-8")
    METRICS.write_text(metrics(), encoding="utf-8")
    EXAMPLE.write_text(example(), encoding="utf-8")


if __name__ == "__main__":
    main()

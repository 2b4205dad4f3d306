"""Names that services and scripts of MMS 0.4 import, and what they do."""

from __future__ import annotations

import importlib
import json
import logging
import logging.handlers
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mms
from mms import log, metrics_manager
from mms.arg_parser import ArgParser
from mms.errors import ExportError, SignatureError
from mms.export_model import MMS_SERVICE_FILES, export_model, validate_signature
from mms.log import LOG_LEVEL_DICT, get_logger, getLogger
from mms.metric import MAX_VALUES, Metric, MetricUnit, take_report
from mms.metrics_manager import MetricsManager
from mms.model_loader import ModelLoader
from mms.mxnet_model_server import MMS
from mms.storage import KVStorage
from mms.telemetry.counters import ServableMetrics, ServerMetrics
from mms.telemetry.readings import Counts
from mms.utils.timeit_decorator import timeit
from tests.kit.archives import make_archive, signature


@pytest.mark.parametrize(
    "name", ["log", "metric", "metrics_manager", "model_service", "version", "__version__"]
)
def test_a_bare_import_offers_the_attribute(name: str) -> None:
    # And without MXNet, which no unit test may import.
    assert getattr(mms, name) is not None


def test_other_attributes_are_missing_in_the_usual_words() -> None:
    with pytest.raises(AttributeError, match="module 'mms' has no attribute 'nothing'"):
        _ = mms.nothing
    assert mms.model_service.model_service.SingleNodeService


RETIRED = [
    ("mms.client_sdk_generator", "ClientSDKGenerator", "--gen-api"),
    ("mms.export_model", "generate_manifest", "export_model"),
    ("mms.model_service_worker", "MXNetModelServiceWorker", "mxnet-model-server"),
    ("mms.request_handler.flask_handler", "FlaskRequestHandler", "mxnet-model-server"),
    ("mms.request_handler.request_handler", "RequestHandler", "mxnet-model-server"),
    ("mms.service_manager", "ServiceManager", "management API"),
    ("mms.serving_frontend", "ServingFrontend", "mxnet-model-server"),
]


@pytest.mark.parametrize(("module", "name", "instead"), RETIRED)
def test_what_has_no_part_here_can_be_imported_and_says_so_when_used(
    module: str, name: str, instead: str
) -> None:
    cls: Any = getattr(importlib.import_module(module), name)
    derived = type("Derived", (cls,), {})
    for use in (cls, derived, cls.generate):
        with pytest.raises(NotImplementedError, match=f"{module}.{name} is not part") as caught:
            use()
        assert instead in str(caught.value)


def test_a_storage_is_a_dict_with_a_name() -> None:
    storage = KVStorage("models")
    storage["a"] = 1
    assert (storage.name, storage) == ("models", {"a": 1})


class TestLog:
    @pytest.fixture
    def name(self, request: pytest.FixtureRequest) -> Iterator[str]:
        name = f"names.{request.node.name}"
        yield name
        for handler in list(logging.getLogger(name).handlers):
            logging.getLogger(name).removeHandler(handler)
            handler.close()

    def test_without_a_name_it_is_the_root(self) -> None:
        level = logging.getLogger().level
        assert get_logger(level="ERROR") is logging.getLogger()
        assert logging.getLogger().level == level

    def test_the_first_call_sets_the_level(self, name: str) -> None:
        assert get_logger(name, level="DEBUG").level == logging.DEBUG
        assert get_logger(name, level="ERROR").level == logging.DEBUG

    def test_a_file(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "own.log"
        logger = get_logger(name, str(path), "INFO", "D", 2)
        logger.info("hello")
        (handler,) = logger.handlers
        assert isinstance(handler, logging.handlers.TimedRotatingFileHandler)
        assert (handler.when, handler.interval) == ("D", 2 * 86400)
        assert path.read_text() == "hello\n"

    def test_the_older_name(self, name: str) -> None:
        assert getLogger(name, None, "a", "WARNING").level == logging.WARNING

    def test_levels(self) -> None:
        assert LOG_LEVEL_DICT == {
            "CRITICAL": 50,
            "ERROR": 40,
            "WARNING": 30,
            "INFO": 20,
            "DEBUG": 10,
            "NOTSET": 0,
        }
        with pytest.raises(KeyError):
            get_logger("names.unknown", level="LOUD")
        assert "names.unknown" not in log._named


class TestMetrics:
    @pytest.fixture(autouse=True)
    def clean(self) -> Iterator[None]:
        take_report()
        yield
        take_report()
        MetricsManager.metrics.clear()

    def test_units(self) -> None:
        assert MetricUnit == {
            "ms": "Milliseconds",
            "percent": "Percent",
            "count": "Count",
            "MB": "Megabytes",
            "GB": "Gigabytes",
        }

    def test_the_manager_has_those_of_each_model_and_of_the_server(self) -> None:
        MetricsManager.start("log", {"a": "x", "b": "y"}, threading.Lock())
        model = [
            *("Prediction5XX", "Prediction4XX", "PredictionTotal"),
            *("LatencyOverall", "LatencyInference", "LatencyPreprocess", "LatencyPostprocess"),
        ]
        server = [
            *("PingTotal", "APIDescriptionTotal", "CPUUtilization", "MemoryUsed"),
            *("MemoryAvailable", "MemoryUtilization", "DiskUsed", "DiskAvailable"),
            "DiskUtilization",
        ]
        expected = {f"{name}_{metric}" for name in "ab" for metric in model} | set(server)
        assert set(MetricsManager.metrics) == expected
        assert isinstance(MetricsManager.metrics, dict)

    def test_updates_are_reported_once(self) -> None:
        MetricsManager.start("", ["net"], None)
        MetricsManager.metrics["net_Prediction5XX"].update(1)
        MetricsManager.metrics["net_Prediction5XX"].update(metric=2)
        MetricsManager.metrics["net_LatencyPreprocess"].update(4)
        MetricsManager.metrics["net_LatencyPreprocess"].update(6.5)
        assert take_report() == [
            ["Prediction5XX", 3.0, "Count", True, []],
            ["LatencyPreprocess", 4.0, "Milliseconds", False, []],
            ["LatencyPreprocess", 6.5, "Milliseconds", False, []],
        ]
        assert take_report() == []

    def test_a_metric_of_ones_own(self) -> None:
        started: list[Metric] = []
        metric = Metric(
            "Words", threading.Lock(), "net", MetricUnit["count"], True, 5, started.append
        )
        assert started == [metric]
        assert (metric.interval_sec, metric.aggregate_method) == (5, "interval_average")
        with pytest.raises(RuntimeError, match="cannot be recognized"):
            Metric("Words", None, "net", "Count", aggregate_method="mean")
        with pytest.raises((TypeError, ValueError)):
            metric.update("many")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "name",
        [
            *("cpu_utilization", "memory_used", "memory_available", "memory_utilization"),
            *("disk_used", "disk_available", "disk_utilization"),
        ],
    )
    def test_the_machine_can_be_sampled(self, name: str) -> None:
        Metric("Own", None, None, "Percent", update_func=getattr(metrics_manager, name))
        ((_, value, _, _, _),) = take_report()
        assert value >= 0

    def test_values_that_nothing_takes_do_not_fill_the_memory(self) -> None:
        metric = Metric("Words", None, "net", "Count")
        for value in range(MAX_VALUES + 5):
            metric.update(value)
        assert len(take_report()) == MAX_VALUES

    def test_they_are_written_with_the_servers_own(self) -> None:
        # In 0.4 the server and a service update the same metric.
        metrics = ServableMetrics("net", "1")
        counts = Counts(lambda: [metrics], ServerMetrics())
        metrics.requests["legacy_predict", 500] += 2
        metrics.duration.observe(0.5)
        metrics.reported.take(
            [
                ["Prediction5XX", 3.0, "Count", True, []],
                ["LatencyOverall", 10.0, "Milliseconds", False, []],
                ["LatencyOverall", 30.0, "Milliseconds", False, []],
                ["../Own", 7, "things", False, [["step", "a"]]],
            ]
        )
        assert {(r.name, r.unit, r.value, r.model) for r in counts.take()} == {
            ("PredictionTotal", "Count", 2, "net"),
            ("Prediction5XX", "Count", 5, "net"),
            ("LatencyOverall", "Milliseconds", 20, "net"),
            (".._Own", "None", 7, "net"),
        }
        assert counts.take() == []


def test_a_decorator_logs_how_long_a_function_takes(caplog: pytest.LogCaptureFixture) -> None:
    @timeit
    def work(a: int, *, b: int) -> int:
        """Work."""
        return a + b

    with caplog.at_level(logging.INFO):
        assert work(1, b=2) == 3
    assert work.__doc__ == "Work."
    assert caplog.messages[0].startswith("work took 0.0")


class TestArguments:
    def test_the_servers(self) -> None:
        args = ArgParser.extract_args(["--models", "a=x", "b=y=z", "--port", "80", "--gpu", "1"])
        # 0.4 gives texts.
        assert vars(args) == {
            "models": {"a": "x", "b": "y=z"},
            "service": None,
            "gen_api": None,
            "port": "80",
            "host": None,
            "gpu": "1",
            "log_file": None,
            "log_rotation_time": None,
            "log_level": None,
            "metrics_write_to": "log",
        }
        with pytest.raises(SystemExit):
            ArgParser.mms_parser().parse_args(["--models", "x"])

    def test_the_exporters(self) -> None:
        args = ArgParser.export_parser().parse_args(["--model-name", "a", "--model-path", "b"])
        assert vars(args) == {"model_name": "a", "model_path": "b", "service_file_path": None}

    def test_gunicorn_is_told_the_command_in_its_place(self) -> None:
        args = ArgParser.extract_args(["--models", "a=x y", "--port", "80"])
        with pytest.raises(NotImplementedError) as caught:
            MMS("mms", args, []).create_app()
        command = "mxnet-model-server --models 'a=x y' --port 80 --metrics-write-to log"
        assert str(caught.value).endswith(f"run: {command}")


class TestExport:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        make_archive(tmp_path, "echo")
        return tmp_path / "echo-source"

    def test_it_writes_the_named_file_and_refuses_to_replace_it(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export_model("net", str(folder), "service.py", str(tmp_path / "other.model"))
        monkeypatch.chdir(tmp_path)
        export_model(model_name="net", model_path=str(folder), service_file="service.py")
        assert {path.name for path in tmp_path.glob("*.model")} == {
            "echo.model",
            "net.model",
            "other.model",
        }
        with pytest.raises(ExportError, match="already exists"):
            export_model("net", str(folder), "service.py")
        ((name, model, model_dir, manifest),) = ModelLoader.load({"a": "net.model"})
        assert (name, model, manifest["Model"]["Model-Name"]) == ("a", "net", "net")
        assert (Path(model_dir) / "service.py").is_file()

    def test_a_signature(self, folder: Path) -> None:
        assert validate_signature(str(folder)) == str(folder / "signature.json")
        (folder / "signature.json").write_text(json.dumps({**signature(), "inputs": {}}))
        with pytest.raises(SignatureError):
            validate_signature(str(folder))

    def test_default_services_are_files(self) -> None:
        assert set(MMS_SERVICE_FILES) == {"image/jpeg", "application/json"}
        assert all(Path(path).is_file() for path in MMS_SERVICE_FILES.values())

"""Names that handlers of 1.x import: values and texts as multi-model-server 1.1.11 gives them."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import socket
import time
from typing import Any

import pytest

from mms.context import Context, RequestProcessor, RequestProcessors
from mms.metrics import process_memory_metric, system_metrics
from mms.metrics.dimension import Dimension
from mms.metrics.metric import Metric, MetricUnit
from mms.metrics.metric_encoder import MetricEncoder
from mms.metrics.metrics_store import MetricsStore
from mms.metrics.unit import Units
from mms.protocol.otf_message_handler import create_load_model_response
from mms.service import PREDICTION_METRIC, PredictionException, Service, emit_metrics


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix what the texts contain besides their arguments."""
    monkeypatch.setattr(socket, "gethostname", lambda: "host")
    monkeypatch.setattr(time, "time", lambda: 1600000000.7)


@pytest.mark.parametrize(
    "name",
    [
        "mms.context.Context",
        "mms.context.RequestProcessor",
        "mms.service.Service",
        "mms.service.PredictionException",
        "mms.service.emit_metrics",
        "mms.service.PREDICTION_METRIC",
        "mms.metrics.dimension.Dimension",
        "mms.metrics.metric.Metric",
        "mms.metrics.metric.MetricUnit",
        "mms.metrics.metric_encoder.MetricEncoder",
        "mms.metrics.metric_collector.system_metrics",
        "mms.metrics.metrics_store.MetricsStore",
        "mms.metrics.process_memory_metric.check_process_mem_usage",
        "mms.metrics.process_memory_metric.get_cpu_usage",
        "mms.metrics.system_metrics.collect_all",
        "mms.metrics.unit.Units",
        "mms.model_loader.ModelLoader",
        "mms.model_loader.ModelLoaderFactory",
        "mms.model_service.model_service.SingleNodeService",
        "mms.model_service_worker.MXNetModelServiceWorker",
        "mms.protocol.otf_message_handler.create_predict_response",
        "mms.protocol.otf_message_handler.retrieve_msg",
        "mms.utils.timeit_decorator.timeit",
        "mms.utils.mxnet.nlp",
    ],
)
def test_the_name_can_be_imported(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(module), attribute) is not None


def test_the_package_of_metrics_offers_its_modules() -> None:
    # `import mms.metrics` is enough in 1.x.
    package = importlib.import_module("mms.metrics")
    for name in (
        *("dimension", "metric", "metric_encoder", "metrics_store", "system_metrics", "unit"),
    ):
        assert getattr(package, name).__name__ == f"mms.metrics.{name}"


@pytest.mark.usefixtures("fixed")
class TestMetrics:
    def test_texts_and_documents(self) -> None:
        dimensions = [Dimension("stage", "a"), Dimension("Level", "Model")]
        metric = Metric("Tokens", 3, "count", dimensions, "id1", "counter")
        assert str(metric) == "Tokens.Count:3|#stage:a,Level:Model|#hostname:host,1600000000,id1"
        assert str(Metric("T", 3, None, [])) == "T.unit:3|#|#hostname:host,1600000000"
        assert metric.to_dict() == {
            "MetricName": "Tokens",
            "Value": 3,
            "Unit": "Count",
            "Dimensions": dimensions,
            "Timestamp": 1600000000,
            "HostName": "host",
            "RequestId": "id1",
        }
        assert json.loads(json.dumps(metric, cls=MetricEncoder))["Dimensions"] == [
            {"Name": "stage", "Value": "a"},
            {"Name": "Level", "Value": "Model"},
        ]
        with pytest.raises(TypeError):
            json.dumps(object(), cls=MetricEncoder)

    def test_units(self) -> None:
        units = {
            "ms": "Milliseconds",
            "s": "Seconds",
            "percent": "Percent",
            "count": "Count",
            "MB": "Megabytes",
            "GB": "Gigabytes",
            "kB": "Kilobytes",
            "B": "Bytes",
            None: "unit",
        }
        assert Units().units == MetricUnit.units == units

    def test_a_store_keeps_them_under_its_texts(self) -> None:
        store = MetricsStore({0: "a", 1: "b"}, "net")
        store.add_counter("C", 1, 0, [Dimension("x", "y")])
        store.add_counter("C", 2, 0, [Dimension("x", "y")])
        store.add_size("S", 2, unit="B")
        store.add_time("T", 5, 1, "s")
        store.add_error("E", "bad")
        store.add_percent("P", 50)
        store.add_metric("M", 1, unit="things")
        assert list(store.cache) == [
            "C-count-a-x:y-ModelName:net-Level:Model",
            "S-B-a,b-ModelName:net-Level:Model",
            "T-s-b-ModelName:net-Level:Model",
            "E--None-Level:Error",
            "P-percent-a,b-ModelName:net-Level:Model",
            "M-things-a,b-ModelName:net-Level:Model",
        ]
        assert list(map(str, store.store)) == [
            "C.Count:3|#x:y,ModelName:net,Level:Model|#hostname:host,1600000000,a",
            "S.Bytes:2|#ModelName:net,Level:Model|#hostname:host,1600000000,a,b",
            "T.Seconds:5|#ModelName:net,Level:Model|#hostname:host,1600000000,b",
            "E.:bad|#Level:Error|#hostname:host,1600000000",
            "P.Percent:50|#ModelName:net,Level:Model|#hostname:host,1600000000,a,b",
            "M.things:1|#ModelName:net,Level:Model|#hostname:host,1600000000,a,b",
        ]
        assert (store.request_ids, store.model_name) == ({0: "a", 1: "b"}, "net")

    @pytest.mark.parametrize("unit", ["h", "B"])
    def test_a_time_has_no_other_units(self, unit: str) -> None:
        with pytest.raises(ValueError, match="unit"):
            MetricsStore({}, "net").add_time("T", 1, unit=unit)

    def test_each_is_logged_on_a_line(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            emit_metrics([Metric("T", 3, "ms", [])])
            emit_metrics(None)
        assert caplog.messages == ["[METRICS]T.Milliseconds:3|#|#hostname:host,1600000000"]


def test_the_machines_metrics_have_their_names(caplog: pytest.LogCaptureFixture) -> None:
    system_metrics.system_metrics.clear()
    with caplog.at_level(logging.INFO):
        system_metrics.collect_all(system_metrics)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "CPUUtilization.Percent",
        "DiskAvailable.Gigabytes",
        "DiskUsage.Gigabytes",
        "DiskUtilization.Percent",
        "MemoryAvailable.Megabytes",
        "MemoryUsed.Megabytes",
        "MemoryUtilization.Percent",
        "",
    ]


def test_the_memory_of_processes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        process_memory_metric.check_process_mem_usage(io.StringIO(f"{os.getpid()},\n"))
    pid, _, size = caplog.messages[0].partition(":")
    assert int(pid) == os.getpid()
    assert int(size) > 0
    assert process_memory_metric.get_cpu_usage("99999999") == 0


BATCH: list[dict[str, Any]] = [
    {
        "requestId": b"r1",
        "parameters": [{"name": "body", "contentType": "text/plain", "value": "hi"}],
        "headers": [{"name": b"A", "value": b"B"}],
    },
    {"requestId": b"r2", "parameters": []},
]


def serve(handle: Any) -> bytes:
    return bytes(Service("net", "/m", None, handle, None, 2).predict(BATCH))


class TestService:
    def test_it_runs_a_handler_as_the_worker_of_1x_did(self) -> None:
        service = Service("net", "/m", {"a": 1}, lambda data, context: [], 3, 2)
        assert service.context == Context("net", "/m", {"a": 1}, 2, 3)
        processors, inputs, ids = Service.retrieve_data_for_inference(BATCH)
        assert (inputs, ids) == ([{"body": "hi"}, {}], {0: "r1", 1: "r2"})
        assert processors[0].get_request_properties() == {
            "body": {"content-type": "text/plain"},
            "A": "B",
        }
        with pytest.raises(ValueError, match="invalid inputs"):
            Service.retrieve_data_for_inference(None)

    def test_answers_in_the_format_of_1x(self) -> None:
        def handle(data: Any, context: Context) -> list[Any]:
            context.set_response_content_type(0, "a/b")
            context.set_response_status(201, "Made", 1)
            return [b"x", {"a": [1]}]

        assert serve(handle) == (
            b"\x00\x00\x00\xc8\x00\x00\x00\x12Prediction success"
            b"\x00\x00\x00\x02r1\x00\x00\x00\x03a/b\x00\x00\x00\xc8\x00\x00\x00\x00"
            b"\x00\x00\x00\x01\x00\x00\x00\x0ccontent-type\x00\x00\x00\x03a/b\x00\x00\x00\x01x"
            b"\x00\x00\x00\x02r2\x00\x00\x00\x00\x00\x00\x00\xc9\x00\x00\x00\x04Made"
            b'\x00\x00\x00\x00\x00\x00\x00\x16{\n  "a": [\n    1\n  ]\n}\xff\xff\xff\xff'
        )

    def test_the_time_is_a_metric(self) -> None:
        service = Service("net", "/m", None, lambda data, context: data, None, 2)
        service.predict(BATCH)
        assert [metric.name for metric in service.context.metrics.store] == [PREDICTION_METRIC]

    def test_errors_are_answers(self) -> None:
        def refuse(data: Any, context: Context) -> list[Any]:
            raise PredictionException("no", 442)

        def exhaust(data: Any, context: Context) -> list[Any]:
            raise MemoryError

        for handle, start in (
            (refuse, b"\x00\x00\x01\xba\x00\x00\x00\x02no"),
            (exhaust, b"\x00\x00\x01\xfb\x00\x00\x00\x10Out of resources"),
            (lambda data, context: 1 / 0, b"\x00\x00\x01\xf7\x00\x00\x00\x11Prediction failed"),
            (lambda data, context: 1, b"\x00\x00\x01\xf7\x00\x00\x00\x1cInvalid model predict"),
            (lambda data, context: [1], b"\x00\x00\x01\xf7\x00\x00\x00#number of batch response"),
            (lambda data, context: [set(), 1], b"\x00\x00\x01\xf7\x00\x00\x00#Unsupported model"),
        ):
            assert serve(handle).startswith(start)
        assert create_load_model_response(200, "ok") == b"\0\0\0\xc8\0\0\0\2ok\xff\xff\xff\xff"


class TestContext:
    def test_while_loading_there_is_no_request(self) -> None:
        context = Context("net", "/m", None, 1, None)
        assert context.request_ids is None
        assert context.request_processor is None

    def test_processors_are_a_list_and_the_first_of_it(self) -> None:
        # 1.1 has a list, the first releases of 1.x one object.
        context = Context("net", "/m", None, 2, None)
        first, second = RequestProcessor({"A": "B"}), RequestProcessor({})
        context.request_processor = [first, second]
        assert context.request_processor == [first, second]
        context.request_processor[1].report_status(201)
        context.request_processor.report_status(404, "Nowhere")
        context.request_processor.add_response_property("X", "1")
        assert context.request_processor.get_request_property("A") == "B"
        assert context.request_processor.get_response_header("X") == "1"
        assert context.request_processor._request_header == {"A": "B"}
        assert context.get_response_status(0) == (404, "Nowhere")
        assert context.get_response_status(1) == (201, None)

    def test_one_processor_can_be_assigned(self) -> None:
        context = Context("net", "/m", None, 1, None)
        context.request_processor = RequestProcessor({"A": "B"})
        assert context.get_request_header(0, "A") == "B"
        with pytest.raises(AttributeError, match="no request"):
            _ = RequestProcessors().anything

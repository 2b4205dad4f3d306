"""Serve a predictor of GluonTS as a 1.x handler, with the requests of GluonTS's own server.

``{"instances": [{"start": ..., "target": [...]}], "configuration": {"freq": ...}}`` is answered
with ``{"predictions": [...]}``, one forecast for each series.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mms.archive.artefacts.gluonts import CONFIG
from mms.engines.error_text import short_text
from mms.engines.imports import import_mxnet
from mms.errors import EngineMissing, InvalidRequest
from mms.quoting import quoted

_OUTPUTS = ("mean", "quantiles", "samples")
_SAMPLES, _QUANTILES = 100, ("0.1", "0.5", "0.9")
#: Each of them costs memory for each step of each series.
_MAX_SAMPLES, _MAX_QUANTILES = 10_000, 1_000


@dataclass(frozen=True, slots=True)
class _Configuration:
    """What a request asks for.

    Attributes:
        freq: Time between two values, as pandas writes it.
        samples: Number of futures to draw.
        outputs: Which of mean, quantiles and samples to answer.
        quantiles: The quantiles, as GluonTS has parsed them.
    """

    freq: str
    samples: int
    outputs: tuple[str, ...]
    quantiles: tuple[Any, ...]


class GluonTSHandler:
    """Loads a predictor, and answers its requests."""

    def initialize(self, context: Any) -> None:
        """Load the predictor.

        Raises:
            EngineMissing: GluonTS or MXNet is not installed.
            Exception: Any exception of the predictor.
        """
        folder = Path(context.system_properties["model_dir"])
        gpu = context.system_properties.get("gpu_id")
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["type"]
        options: dict[str, Any] = {}
        if str(kind).startswith("gluonts.mx"):
            # First, since GluonTS imports it without the names that NumPy has removed.
            mx = import_mxnet()
            options["ctx"] = mx.cpu() if gpu is None else mx.gpu(gpu)
        if importlib.util.find_spec("gluonts") is None:
            raise EngineMissing(
                "a GluonTS predictor needs gluonts, which is not installed; run: pip install "
                "gluonts"
            )
        from gluonts.dataset.common import ListDataset
        from gluonts.dataset.jsonl import encode_json
        from gluonts.exceptions import GluonTSException
        from gluonts.model.forecast import Quantile
        from gluonts.model.predictor import Predictor

        self._dataset: Callable[[list[Any], str], Any] = ListDataset
        self._encode: Callable[[Any], Any] = encode_json
        self._fault_of_data: type[Exception] = GluonTSException
        self._parse_quantile: Callable[[Any], Any] = Quantile.parse
        self._predictor = Predictor.deserialize(folder, **options)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Return the forecasts for each request of a batch.

        Raises:
            InvalidRequest: A request is not as it must be.
        """
        return [self._answer(fields) for fields in data]

    def _answer(self, fields: dict[str, Any]) -> dict[str, Any]:
        document = fields.get("body")
        if isinstance(document, (bytes, bytearray, str)):
            try:
                document = json.loads(document)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"the body is not valid JSON: {error}") from None
        if not isinstance(document, dict) or not isinstance(document.get("instances"), list):
            raise InvalidRequest(
                'send {"instances": [{"start": "2026-01-31", "target": [1.5, 2]}], '
                '"configuration": {"freq": "D"}} as JSON'
            )
        configuration = self._configuration(document.get("configuration"))
        series = self._series(document["instances"], configuration.freq)
        # What pandas and GluonTS make of dates and lengths is only seen when they are used.
        try:
            forecasts = list(self._predictor.predict(series, num_samples=configuration.samples))
        except self._fault_of_data as error:
            raise InvalidRequest(short_text(error)) from error
        try:
            predictions = [self._described(forecast, configuration) for forecast in forecasts]
        except NotImplementedError:
            raise InvalidRequest(
                "this predictor answers a distribution without quantiles; ask for "
                '"output_types": ["mean"]'
            ) from None
        return {"predictions": self._encode(predictions)}

    def _series(self, instances: list[Any], freq: str) -> Any:
        for number, instance in enumerate(instances):
            if not isinstance(instance, dict) or not {"start", "target"} <= instance.keys():
                raise InvalidRequest(f"instances[{number}] must have start and target")
        try:
            return self._dataset(instances, freq)
        except (self._fault_of_data, ValueError, TypeError, OverflowError) as error:
            raise InvalidRequest(f"the instances cannot be read: {short_text(error)}") from error

    def _configuration(self, document: Any) -> _Configuration:
        if not isinstance(document, dict) or not isinstance(document.get("freq"), str):
            raise InvalidRequest('configuration must have freq, such as {"freq": "H"} for hours')
        samples = document.get("num_samples", document.get("num_eval_samples", _SAMPLES))
        if not isinstance(samples, int) or not 1 <= samples <= _MAX_SAMPLES:
            raise InvalidRequest(
                f"configuration.num_samples must be an integer from 1 to {_MAX_SAMPLES}, got "
                f"{quoted(samples)}"
            )
        outputs = document.get("output_types", ["mean", "quantiles"])
        if not isinstance(outputs, list) or not all(output in _OUTPUTS for output in outputs):
            raise InvalidRequest(
                f"configuration.output_types must be a list of {', '.join(_OUTPUTS)}, got "
                f"{quoted(outputs)}"
            )
        quantiles = document.get("quantiles", list(_QUANTILES))
        if not isinstance(quantiles, list) or len(quantiles) > _MAX_QUANTILES:
            raise InvalidRequest(
                f"configuration.quantiles must be a list of at most {_MAX_QUANTILES}"
            )
        parsed = tuple(self._quantile(quantile) for quantile in quantiles)
        return _Configuration(document["freq"], samples, tuple(outputs), parsed)

    def _quantile(self, value: Any) -> Any:
        try:
            quantile = self._parse_quantile(str(value))
        except ValueError:
            quantile = None
        if quantile is None or not 0 <= quantile.value <= 1:
            raise InvalidRequest(
                f'configuration.quantiles: expected such as "0.9" or "p90", got {quoted(value)}'
            )
        return quantile

    @staticmethod
    def _described(forecast: Any, configuration: _Configuration) -> dict[str, Any]:
        described: dict[str, Any] = {}
        if "mean" in configuration.outputs:
            described["mean"] = forecast.mean.tolist()
        if "quantiles" in configuration.outputs:
            described["quantiles"] = {
                quantile.name: forecast.quantile(quantile.value).tolist()
                for quantile in configuration.quantiles
            }
        if "samples" in configuration.outputs:
            samples = getattr(forecast, "samples", None)
            described["samples"] = None if samples is None else samples.tolist()
            length = getattr(forecast, "valid_length", None)
            if length is not None:
                described["valid_length"] = length.tolist()
        return described

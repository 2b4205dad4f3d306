"""Predictors of GluonTS, trained and serialised here: served as its own server answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from mms.archive.artefacts.gluonts import recognise
from mms.archive.members import UnpackLimits
from mms.archive.tar import unpack_tar
from mms.errors import ModelLoadFailed
from tests.artefacts.sagemaker import lay_out, pack
from tests.kit.server import RunningServer, StartServer, running_servers

pytest.importorskip("gluonts")
pytestmark = pytest.mark.asyncio(loop_scope="module")

SERIES = [
    {"start": "2026-01-01", "target": [round(2 + np.sin(n / 3 + k), 3) for n in range(40)]}
    for k in range(3)
]
LENGTH = 3
#: Trains each, serialises it, and writes what GluonTS itself predicts. One of them answers a
#: distribution whose values need no random numbers, one is no network at all, one draws samples.
_TRAINED = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from mms.engines.imports import import_mxnet
mx = import_mxnet()
from gluonts.dataset.common import ListDataset
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from gluonts.mx import DeepAREstimator, SimpleFeedForwardEstimator, Trainer
from gluonts.mx.distribution import GaussianOutput, StudentTOutput
series, length = json.loads(sys.argv[1]), int(sys.argv[2])
data = ListDataset(series, freq="D")
trainer = Trainer(epochs=1, num_batches_per_epoch=2)
common = dict(prediction_length=length, context_length=6, trainer=trainer)
forward = dict(num_hidden_dimensions=[4], sampling=False, **common)
predictors = {
    "gaussian": SimpleFeedForwardEstimator(distr_output=GaussianOutput(), **forward).train(data),
    "student": SimpleFeedForwardEstimator(distr_output=StudentTOutput(), **forward).train(data),
    "deepar": DeepAREstimator(freq="D", num_layers=1, num_cells=4, **common).train(data),
    "naive": SeasonalNaivePredictor(prediction_length=length, season_length=7),
}
for name, predictor in predictors.items():
    Path(name).mkdir()
    predictor.serialize(Path(name))
    forecasts = list(predictor.predict(data, num_samples=2000))
    document = [{"mean": forecast.mean.tolist()} for forecast in forecasts]
    if name != "student":
        for one, forecast in zip(document, forecasts):
            one["quantiles"] = {q: forecast.quantile(q).tolist() for q in ("0.1", "0.5", "0.9")}
    Path(f"{name}.json").write_text(json.dumps(document))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    command = [sys.executable, "-c", _TRAINED, json.dumps(SERIES), str(LENGTH)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    models: dict[str, Any] = {}
    for name in ("gaussian", "student", "deepar", "naive"):
        unpacked = folder / f"{name}-unpacked"
        unpacked.mkdir()
        unpack_tar(pack(folder / name, folder / f"{name}.tar.gz"), unpacked, UnpackLimits())
        models[name] = lay_out(recognise, unpacked, folder / f"{name}-laid")
    return await start_shared({"debug_errors": "on"}, **models)


async def ask(
    server: RunningServer, model: str, document: Any = None, **configuration: Any
) -> tuple[int, Any]:
    if document is None:
        document = {"instances": SERIES, "configuration": {"freq": "D", **configuration}}
    url = f"{server.url}/invocations?model_name={model}"
    async with server.session.post(url, json=document) as response:
        return response.status, await response.json()


def expected(folder: Path, model: str) -> Any:
    return json.loads((folder / f"{model}.json").read_text())


class TestForecasts:
    @pytest.mark.parametrize("model", ["gaussian", "naive"])
    async def test_what_needs_no_random_numbers_is_as_gluonts_predicts(
        self, server: RunningServer, folder: Path, model: str
    ) -> None:
        status, answer = await ask(server, model)
        assert status == 200
        wanted = expected(folder, model)
        assert len(answer["predictions"]) == len(wanted) == len(SERIES)
        for got, want in zip(answer["predictions"], wanted, strict=True):
            # Mean and the three quantiles are what GluonTS's server answers unless asked for more.
            assert got.keys() == {"mean", "quantiles"}
            assert list(got["quantiles"]) == ["0.1", "0.5", "0.9"]
            np.testing.assert_allclose(got["mean"], want["mean"], atol=1e-5)
            for quantile, values in want["quantiles"].items():
                np.testing.assert_allclose(got["quantiles"][quantile], values, atol=1e-5)

    async def test_samples_are_drawn_from_the_same_distribution(
        self, server: RunningServer, folder: Path
    ) -> None:
        outputs = ["mean", "quantiles", "samples"]
        status, answer = await ask(server, "deepar", num_samples=2000, output_types=outputs)
        assert status == 200
        for got, want in zip(answer["predictions"], expected(folder, "deepar"), strict=True):
            samples = np.array(got["samples"])
            assert samples.shape == (2000, LENGTH)
            np.testing.assert_allclose(samples.mean(axis=0), got["mean"], atol=1e-5)
            low, high = (np.array(want["quantiles"][q]) for q in ("0.1", "0.9"))
            # Of two times 2000 samples, the medians differ by a few hundredths of their spread.
            middle = np.array(got["quantiles"]["0.5"]) - np.array(want["quantiles"]["0.5"])
            assert (np.abs(middle) < 0.15 * (high - low)).all()

    async def test_each_draw_is_another_one(self, server: RunningServer) -> None:
        first, second = [
            (await ask(server, "deepar", num_samples=10))[1]["predictions"] for _ in range(2)
        ]
        assert first != second

    @pytest.mark.parametrize("key", ["num_samples", "num_eval_samples"])
    async def test_both_names_of_the_number_of_samples(
        self, server: RunningServer, key: str
    ) -> None:
        _, answer = await ask(server, "deepar", output_types=["samples"], **{key: 7})
        assert np.shape([one["samples"] for one in answer["predictions"]]) == (3, 7, LENGTH)

    async def test_quantiles_have_the_names_that_gluonts_gives_them(
        self, server: RunningServer
    ) -> None:
        # As Quantile.parse of GluonTS: "p90" is "0.9".
        status, answer = await ask(server, "gaussian", quantiles=["0.30", "p90"])
        assert status == 200
        assert list(answer["predictions"][0]["quantiles"]) == ["0.30", "0.9"]

    async def test_no_instances_are_no_predictions(self, server: RunningServer) -> None:
        document = {"instances": [], "configuration": {"freq": "D"}}
        assert await ask(server, "gaussian", document) == (200, {"predictions": []})

    async def test_a_body_without_a_content_type_is_json(self, server: RunningServer) -> None:
        body = json.dumps({"instances": SERIES[:1], "configuration": {"freq": "D"}}).encode()
        url = f"{server.url}/predictions/naive"
        async with server.session.post(
            url, data=body, headers={"Content-Type": "application/octet-stream"}
        ) as response:
            assert len((await response.json())["predictions"]) == 1


#: What GluonTS's own server answers with 500 and a traceback.
BAD: dict[str, tuple[Any, str]] = {
    "no object": ([1], 'send {"instances":'),
    "no instances": ({"configuration": {"freq": "D"}}, 'send {"instances":'),
    "no configuration": ({"instances": SERIES}, "configuration must have freq"),
    "no freq": ({"instances": SERIES, "configuration": {}}, "configuration must have freq"),
    "a freq that is none": (
        {"instances": SERIES, "configuration": {"freq": "often"}},
        "the instances cannot be read",
    ),
    "no target": (
        {"instances": [SERIES[0], {"start": "2026-01-01"}], "configuration": {"freq": "D"}},
        "instances[1] must have start and target",
    ),
    "a target of words": (
        {"instances": [{"start": "2026-01-01", "target": ["a"]}], "configuration": {"freq": "D"}},
        "the instances cannot be read",
    ),
    "a start that is none": (
        {"instances": [{"start": "once", "target": [1]}], "configuration": {"freq": "D"}},
        "the instances cannot be read",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize("case", BAD)
    async def test_a_request_that_is_none_is_a_400(self, server: RunningServer, case: str) -> None:
        document, message = BAD[case]
        status, answer = await ask(server, "naive", document)
        assert status == 400
        assert message in answer["message"]

    @pytest.mark.parametrize(
        ("configuration", "message"),
        [
            ({"num_samples": 0}, "num_samples must be an integer from 1 to 10000, got 0"),
            ({"num_samples": 10**9}, "num_samples must be an integer from 1 to 10000"),
            ({"num_samples": "ten"}, "num_samples must be an integer"),
            ({"output_types": ["median"]}, "must be a list of mean, quantiles, samples"),
            ({"output_types": "mean"}, "must be a list of mean, quantiles, samples"),
            ({"quantiles": ["often"]}, 'expected such as "0.9" or "p90", got'),
            ({"quantiles": ["1.5"]}, 'expected such as "0.9" or "p90"'),
            ({"quantiles": ["nan"]}, 'expected such as "0.9" or "p90"'),
            ({"quantiles": ["0.5"] * 2000}, "a list of at most 1000"),
        ],
    )
    async def test_a_configuration_that_is_none_is_a_400(
        self, server: RunningServer, configuration: dict[str, Any], message: str
    ) -> None:
        status, answer = await ask(server, "gaussian", **configuration)
        assert status == 400
        assert message in answer["message"]

    async def test_quantiles_of_a_distribution_without_them(
        self, server: RunningServer, folder: Path
    ) -> None:
        status, answer = await ask(server, "student")
        assert status == 400
        assert 'ask for "output_types": ["mean"]' in answer["message"]
        status, answer = await ask(server, "student", output_types=["mean"])
        assert status == 200
        for got, want in zip(answer["predictions"], expected(folder, "student"), strict=True):
            np.testing.assert_allclose(got["mean"], want["mean"], atol=1e-5)


async def test_a_class_that_is_not_there_is_told_at_load(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    config = {"type": "gluonts.mx.model.nowhere.Predictor", "gluonts": "0.1"}
    (source / "gluonts-config.json").write_text(json.dumps(config))
    laid = lay_out(recognise, source, tmp_path / "laid")
    async with running_servers(tmp_path) as start:
        with pytest.raises(ModelLoadFailed, match=r"Cannot locate gluonts\.mx\.model\.nowhere"):
            await start(m=laid)

"""Every number has an upper bound, from wherever it is set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mms.archive.manifest import ServingDefaults
from mms.config.build import build_config
from mms.config.declaration import rules_of
from mms.config.layers import with_archive_defaults
from mms.config.settings import MAX_WORKERS, ModelSettings, ServerSettings
from mms.errors import ConfigError
from tests.kit.server import RunningServer, StartServer
from tests.management.stores import says

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBERS = [
    (cls, field)
    for cls in (ModelSettings, ServerSettings)
    for field in dataclasses.fields(cls)
    if type(field.default) in (int, float)
]
IDS = [field.name for _, field in NUMBERS]
HUGE: list[Any] = [10**18, 1e300, "1e300", float("inf"), "inf", "9" * 400, "9" * 5_000]


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def loop_of_the_module() -> None:
    """Have the loop there before a test's open files are counted, whichever test is the first."""


@pytest.mark.parametrize(("cls", "field"), NUMBERS, ids=IDS)
async def test_v16_every_number_has_bounds_that_are_kept_from_wherever_it_is_set(
    tmp_path: Path, cls: type, field: dataclasses.Field[Any]
) -> None:
    minimum, maximum = rules_of(field).minimum, rules_of(field).maximum
    assert minimum is not None
    assert maximum is not None
    default: Any = field.default
    assert minimum <= default <= maximum
    file = tmp_path / "mms.yaml"
    for value in [*HUGE, maximum * 2 + 1]:
        # YAML itself refuses numbers of thousands of digits.
        message = f"{field.name}: (must be at most|expected)|not valid YAML: Exceeds"
        with pytest.raises(ConfigError, match=message) as caught:
            build_config([("m", "m")], {field.name: value}, {})
        assert len(str(caught.value)) < 500
        with pytest.raises(ConfigError, match=message):
            build_config([("m", "m")], {}, {f"MMS_{field.name.upper()}": str(value)})
        file.write_text(f"{field.name}: {'.inf' if value == float('inf') else value}\n")
        with pytest.raises(ConfigError, match=message):
            build_config([("m", "m")], {}, {}, file)
        if cls is ModelSettings:
            own = {"path": "m", field.name: None if value == float("inf") else value}
            if own[field.name] is not None:
                file.write_text(json.dumps({"models": {"m": own}}))
                with pytest.raises(ConfigError, match=message):
                    build_config([], {}, {}, file)
    config = build_config([("m", "m")], {field.name: maximum}, {})
    kept = config.server if cls is ServerSettings else config.models[0].settings
    assert getattr(kept, field.name) == maximum


@pytest.mark.parametrize("key", ["workers", "batch_size", "max_batch_delay", "response_timeout"])
async def test_v16_an_archive_s_own_defaults_keep_the_bounds(key: str) -> None:
    values: dict[str, Any] = {key: 10**9}
    serving = ServingDefaults(**values)
    with pytest.raises(ConfigError, match=f"archive's Serving: {key}: must be at most"):
        with_archive_defaults(ModelSettings(), serving, {})


async def test_v16_an_archive_s_device_has_few_digits() -> None:
    serving = ServingDefaults(device="gpu:" + "9" * 5_000)
    with pytest.raises(ConfigError, match="gpu: expected GPU numbers"):
        with_archive_defaults(ModelSettings(), serving, {})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    says(folder / "store" / "m", "m")
    settings = {"management_port": 0, "model_store": str(folder / "store")}
    return await start_shared(settings, m=folder / "store" / "m")


async def test_v16_the_management_api_keeps_them(server: RunningServer) -> None:
    numbers = [f.name for cls, f in NUMBERS if cls is ModelSettings]
    asked: list[tuple[str, str, dict[str, Any]]] = []
    # What is no integer, such as "1e300", counts as not given.
    for value in (10**9, 10**18, 10**30, "-1", "9" * 5_000):
        for name in ("min_worker", "max_worker"):
            asked.append(("PUT", "/models/m", {name: value}))
        asked.append(("POST", "/models", {"url": "m", "model_name": "n", "initial_workers": value}))
    for name in numbers:
        for value in (10**18, "1e300", "inf", "NaN"):
            # As in 1.x, a word is no number, and counts as not given.
            if value not in ("inf", "NaN"):
                asked.append(("POST", "/models", {"url": "m", "model_name": "n", name: value}))
            asked.append(("POST", "/v2/repository/models/n/load", {"parameters": {name: value}}))
    for name in ("batch_size", "max_batch_delay", "linger", "queue_size", "response_timeout"):
        asked.append(("PUT", "/models/m", {name: 10**18}))
    before = dataclasses.asdict(server.servable("m").settings)
    for method, path, document in asked:
        status, answer = await server.manage(method, path, document)
        assert status == 400, (path, document)
        assert len(json.dumps(answer)) < 2_000
    assert dataclasses.asdict(server.servable("m").settings) == before
    assert (server.servable("m").size, "n" in server.names) == (1, False)
    _, answer = await server.manage("PUT", "/models/m", {"min_worker": MAX_WORKERS + 1})
    assert f"min_worker must be an integer from 0 to {MAX_WORKERS}" in answer["message"]

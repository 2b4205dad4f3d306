"""The control plane alone: who may have what registered, before any process starts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from mms.config.build import Config
from mms.config.layers import Layer
from mms.config.settings import ModelSettings, ServerSettings
from mms.errors import (
    ConfigError,
    Conflict,
    DownloadFailed,
    Draining,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
)
from mms.serving.controlplane import ControlPlane
from mms.serving.registration import Registration, Trust
from mms.serving.registry import Registry
from tests.kit.archives import make_archive
from tests.kit.fileserver import closed_port


def make_controlplane(
    folder: Path, layers: Sequence[Layer] = (), allowed_urls: Sequence[str] = ()
) -> ControlPlane:
    settings = ServerSettings(
        model_store=str(folder / "store"),
        cache_dir=str(folder / "cache"),
        allowed_urls=tuple(allowed_urls),
    )
    (folder / "store").mkdir()
    config = Config(settings, (), {}, tuple(layers))
    return ControlPlane(config, Registry(), lambda _: {})


@pytest.mark.parametrize("keep", [False, True])
async def test_who_asked_decides_what_is_fetched_and_not_whether_it_is_kept(
    tmp_path: Path, keep: bool
) -> None:
    controlplane = make_controlplane(tmp_path)
    controlplane.open(tmp_path / "work")
    url = f"http://127.0.0.1:{closed_port()}/m.model"
    expected = {Trust.OPERATOR: DownloadFailed, Trust.CALLER: Forbidden}
    for trust, error in expected.items():
        registration = Registration("m", url, ModelSettings(), {}, trust, keep=keep)
        with pytest.raises(error):
            await controlplane.register(registration)
    assert controlplane.registrations() == []


async def test_nothing_is_registered_before_there_is_a_place_to_unpack_it(tmp_path: Path) -> None:
    controlplane = make_controlplane(tmp_path)
    registration = Registration("m", "m.model", ModelSettings(), {}, Trust.OPERATOR)
    with pytest.raises(Draining, match="starting or stopping"):
        await controlplane.register(registration)


async def test_what_is_admitted_has_the_caller_s_trust_and_each_value_its_origin(
    tmp_path: Path,
) -> None:
    controlplane = make_controlplane(tmp_path, [Layer("flag", {"workers": 3, "batch_size": 2})])
    archive = make_archive(tmp_path, "echo")
    archive.rename(tmp_path / "store" / "echo.model")
    values = {"batch_size": "8", "response_timeout": "30s", "devices": [0, 1]}
    found = controlplane.admit("echo.model", values)
    assert (found.name, found.version, found.trust) == ("", None, Trust.CALLER)
    assert found.settings == ModelSettings(
        workers=3, batch_size=8, response_timeout=30.0, gpu=(0, 1)
    )
    origins = {key: origin for key, origin in found.origins.items() if origin != "default"}
    assert origins == {
        "workers": "flag",
        "batch_size": "request",
        "response_timeout": "request",
        "gpu": "request",
    }
    assert (found.is_startup, found.keep) == (False, True)
    # By its name alone, as V2 has it.
    assert controlplane.admit(None, {}, name="echo").path == found.path


@pytest.mark.parametrize(
    ("url", "name", "values", "error", "message"),
    [
        ("none.model", None, {}, ModelNotFound, "not found in model store: none.model"),
        ("../m.model", None, {}, Forbidden, "not in the model store"),
        ("http://h/m.model", None, {}, Forbidden, "only archives in the model store"),
        (None, "nobody", {}, ModelNotFound, "looked for nobody.model, nobody.mar, nobody"),
        (None, "../store/m", {}, InvalidRequest, "cannot be used in a URL"),
        (".", "m", {}, Forbidden, "not in the model store"),
        ("m", None, {"service": "/x.py"}, Forbidden, "service file outside the archive"),
        ("m", None, {"bach_size": 2}, InvalidRequest, "unknown parameter 'bach_size'"),
        ("m", None, {"batch_size": "x"}, ConfigError, "^request: batch_size: expected an integer"),
    ],
)
async def test_what_is_not_admitted(
    tmp_path: Path,
    url: str | None,
    name: str | None,
    values: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    controlplane = make_controlplane(tmp_path)
    (tmp_path / "store" / "m").mkdir()
    with pytest.raises(error, match=message):
        controlplane.admit(url, values, name=name)


async def test_a_version_that_is_registered_is_taken(tmp_path: Path) -> None:
    controlplane = make_controlplane(tmp_path)
    (tmp_path / "work").mkdir()
    controlplane.open(tmp_path / "work")
    archive = make_archive(tmp_path, "echo")
    settings = ModelSettings(load="lazy")
    registration = Registration("echo", str(archive), settings, {}, Trust.OPERATOR)
    servable = await controlplane.register(registration)
    try:
        assert controlplane.registration(servable).version == "1"
        for version in (None, "1"):
            with pytest.raises(Conflict, match="already registered"):
                controlplane.check("echo", version)
        controlplane.check("echo", "2")
        await controlplane.unregister("echo")
        controlplane.check("echo", None)
    finally:
        await controlplane.stop(0.0, asyncio.Event())

"""Settings: where each value comes from, and what a wrong one is answered with."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.manifest import ServingDefaults
from mms.config.build import build_config, read_file
from mms.config.environment import environment_layer
from mms.config.layers import keys, with_archive_defaults
from mms.config.resources import usable_cores
from mms.config.settings import ModelSettings, ServerSettings
from mms.config.values import parse_gpus
from mms.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mms.yaml"


CREPE = [("crepe", "crepe.model")]


def test_without_anything_said_the_defaults_hold() -> None:
    config = build_config(CREPE, {}, {})
    assert config.server == ServerSettings()
    assert config.models[0].settings == ModelSettings()
    assert set(config.origins.values()) == {"default"}


def test_flag_beats_environment_beats_file_beats_default(file: Path) -> None:
    file.write_text("port: 1\nhost: file\nlog_level: error\n")
    environment = {"MMS_PORT": "2", "MMS_HOST": "environment"}
    config = build_config([], {"port": 3, "host": None}, environment, file)
    server, origins = config.server, config.origins
    assert (server.port, origins["port"]) == (3, "flag")
    assert (server.host, origins["host"]) == ("environment", "environment")
    assert (server.log_level, origins["log_level"]) == ("ERROR", str(file))
    assert (server.log_format, origins["log_format"]) == ("text", "default")


def test_a_model_s_own_settings_beat_the_file_s_common_ones_but_no_flag(file: Path) -> None:
    file.write_text(
        "workers: 2\nbatch_size: 2\nqueue_size: 2\n"
        "models:\n  a: {path: a.model, workers: 3, batch_size: 3}\n  b: b.model\n"
    )
    config = build_config([], {"batch_size": 9}, {}, file)
    a, b = config.models
    assert (a.name, a.path, b.name, b.path) == ("a", "a.model", "b", "b.model")
    assert (a.settings.workers, a.settings.batch_size, a.settings.queue_size) == (3, 9, 2)
    assert (b.settings.workers, b.settings.batch_size, b.settings.queue_size) == (2, 9, 2)
    assert config.origins["models.a.workers"] == f"{file}: models.a"
    assert config.origins["models.b.workers"] == str(file)
    assert config.origins["models.a.batch_size"] == "flag"


def test_a_path_on_the_command_line_replaces_the_file_s_and_keeps_its_settings(
    file: Path,
) -> None:
    file.write_text("models:\n  crepe: {path: old.model, workers: 3}\n")
    [model] = build_config(CREPE, {}, {}, file).models
    assert (model.path, model.settings.workers) == ("crepe.model", 3)


def test_an_archive_s_defaults_fill_in_what_nobody_set() -> None:
    config = build_config(CREPE, {"workers": 2}, {})
    serving = ServingDefaults(workers=7, batch_size=8, max_batch_delay=1.5, response_timeout=9.0)
    found = with_archive_defaults(config.models[0].settings, serving, config.origins, "crepe")
    assert found == ModelSettings(
        workers=2, batch_size=8, max_batch_delay=1.5, response_timeout=9.0
    )


def test_the_environment_s_texts_are_read_as_their_types() -> None:
    environment = {
        "MMS_WORKERS": "3",
        "MMS_RESPONSE_TIMEOUT": "1.5",
        "MMS_PRELOAD": "Off",
        "MMS_ACCESS_LOG": "yes",
        "MMS_GPU": "0,1",
        "MMS_CONFIG": "elsewhere.yaml",
        "OTHER": "x",
    }
    config = build_config(CREPE, {}, environment)
    model = config.models[0].settings
    assert (model.workers, model.response_timeout, model.preload) == (3, 1.5, False)
    assert (config.server.access_log, model.gpu) == (True, "0,1")


@pytest.mark.parametrize(("text", "value"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_yaml_s_on_and_off_are_words_where_words_are_wanted(
    file: Path, text: str, value: str
) -> None:
    file.write_text(f"debug_errors: {text}\n")
    assert build_config([], {}, {}, file).server.debug_errors == value


def test_a_list_of_gpus_in_yaml_is_read(file: Path) -> None:
    file.write_text("gpu: [0, 1]\n")
    assert build_config(CREPE, {}, {}, file).models[0].settings.gpu == "0,1"


def test_an_unknown_variable_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"MMS_\*.*unknown key 'prot'.*did you mean 'port'"):
        environment_layer({"MMS_PROT": "1"})


UNKNOWN = [
    ("worker: 2", "unknown key 'worker'; did you mean 'workers'"),
    ("zzz: 2", r"unknown key 'zzz'; known: workers, .*models|unknown key 'zzz'; known: host"),
    ("8080: x", "unknown key 8080"),
    ("models:\n  a: {path: x, batchsize: 2}", "models.a: unknown key 'batchsize'; did you mean"),
    ("models:\n  a: {path: x, port: 2}", "models.a: unknown key 'port'"),
    ("models: [a]", "models must map names to paths or settings"),
    ("models:\n  a: {workers: 2}", "models.a needs a path"),
    ("models:\n  a: 5", "models.a needs a path"),
    ("models:\n  a/b: x", "model name 'a/b' cannot stand in a URL; use letters"),
    ("- a", "expected keys and values, got list"),
    ("a: [", "not valid YAML"),
    ("port: 2020-13-45", "not valid YAML"),
    ("!!python/object/apply:os.system ['true']", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), UNKNOWN)
def test_a_mistake_in_the_file_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        build_config([], {}, {}, file)
    assert str(file) in str(caught.value) or "model name" in str(caught.value)


VALUES: list[tuple[str, Any, str]] = [
    ("port", "http", "port: expected a whole number, got 'http'"),
    ("port", -1, "port: must be at least 0, got -1"),
    ("port", 65536, "port: must be at most 65535, got 65536"),
    ("port", True, "expected a whole number, got True"),
    ("port", 1.5, "expected a whole number, got 1.5"),
    ("port", [1], "expected a whole number"),
    ("max_request_bytes", 2**40, "must be at most"),
    ("max_response_bytes", 0, "must be at least 1"),
    ("batch_size", 0, "must be at least 1, got 0"),
    ("batch_size", 65536, "must be at most 65535, got 65536"),
    ("response_timeout", 0, "must be at least 0.001, got 0"),
    ("response_timeout", "nan", "expected a number, got 'nan'"),
    ("response_timeout", float("inf"), "expected a number, got inf"),
    ("response_timeout", 10**400, "expected a number"),
    ("response_timeout", True, "expected a number, got True"),
    ("preload", "maybe", "preload: expected true or false, got 'maybe'"),
    ("preload", 2, "expected true or false, got 2"),
    ("host", {"a": 1}, "host: expected a text"),
    ("host", True, "expected a text, got True"),
    ("log_level", "loud", "must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, got 'loud'"),
    ("log_format", "xml", "must be one of text, json, got 'xml'"),
    ("debug_errors", "perhaps", "must be one of auto, on, off, got 'perhaps'"),
]


@pytest.mark.parametrize(("key", "value", "message"), VALUES)
def test_an_impossible_value_names_its_origin_and_its_key(
    key: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^flag: .*{key}: .*") as caught:
        build_config(CREPE, {key: value}, {})
    assert message in str(caught.value)


def test_one_name_for_two_models_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a' twice \(x and y\); give each its own name"):
        build_config([("a", "x"), ("a", "y")], {}, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read: No such file"):
        read_file(tmp_path / "no.yaml")


def test_an_empty_file_sets_nothing(file: Path) -> None:
    file.write_text("# nothing yet\n")
    assert read_file(file) == {}


def test_every_setting_says_what_it_does() -> None:
    for cls in (ServerSettings, ModelSettings):
        for field in dataclasses.fields(cls):
            text = field.metadata["help"]
            assert text.endswith(".")
            assert len(text) > 10


def test_every_default_obeys_its_own_rules() -> None:
    for cls in (ServerSettings, ModelSettings):
        defaults = {key: str(value) for key, value in dataclasses.asdict(cls()).items()}
        config = build_config(CREPE, defaults, {})
        found = config.server if cls is ServerSettings else config.models[0].settings
        assert found == cls()


def test_no_setting_of_the_server_is_one_of_the_models_too() -> None:
    assert not set(keys(ServerSettings)) & set(keys(ModelSettings))


@pytest.mark.parametrize(
    ("text", "gpus"), [("", ()), (" ", ()), ("0", (0,)), ("0,1", (0, 1)), (" 2 , 3 ", (2, 3))]
)
def test_gpu_numbers_are_read(text: str, gpus: tuple[int, ...]) -> None:
    assert parse_gpus(text) == gpus


@pytest.mark.parametrize("text", ["a", "0,", ",0", "0 1", "-1", "0.5"])
def test_what_is_no_gpu_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"gpu: expected numbers such as 0 or 0,1, got '{text}'"):
        parse_gpus(text)


def test_there_is_at_least_one_core() -> None:
    assert usable_cores() >= 1


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
known = st.sampled_from([*keys(ServerSettings), *keys(ModelSettings), "models"])


@given(st.dictionaries(known, values, max_size=3) | values)
@settings(max_examples=100, deadline=None)
def test_any_document_is_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, document: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    with contextlib.suppress(ConfigError):
        build_config(CREPE, {}, {}, file)


@given(st.binary(max_size=100))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(content)
    with contextlib.suppress(ConfigError):
        build_config([], {}, {}, file)

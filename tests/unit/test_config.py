"""Settings: where each value comes from, and what a wrong one is answered with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.manifest import ServingDefaults
from mms.config.build import build_config, read_file
from mms.config.declaration import rules_of
from mms.config.layers import keys, resolve, with_archive_defaults
from mms.config.printed import to_yaml
from mms.config.resources import usable_cores
from mms.config.settings import ModelSettings, ServerSettings
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
    assert a.origins["workers"] == f"{file}: models.a"
    assert b.origins["workers"] == str(file)
    assert a.origins["batch_size"] == "flag"


def test_a_path_on_the_command_line_replaces_the_file_s_and_keeps_its_settings(
    file: Path,
) -> None:
    file.write_text("models:\n  crepe: {path: old.model, workers: 3}\n")
    [model] = build_config(CREPE, {}, {}, file).models
    assert (model.path, model.settings.workers) == ("crepe.model", 3)


def test_an_archive_s_defaults_fill_in_what_nobody_set() -> None:
    config = build_config(CREPE, {"workers": 2}, {})
    serving = ServingDefaults(workers=7, batch_size=8, max_batch_delay=1.5, response_timeout=9.0)
    model = config.models[0]
    found = with_archive_defaults(model.settings, serving, model.origins)
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
    assert (config.server.access_log, model.gpu) == (True, (0, 1))


@pytest.mark.parametrize(("text", "value"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_yaml_s_on_and_off_are_words_where_words_are_wanted(
    file: Path, text: str, value: str
) -> None:
    file.write_text(f"debug_errors: {text}\n")
    assert build_config([], {}, {}, file).server.debug_errors == value


def test_a_list_of_gpus_in_yaml_is_read(file: Path) -> None:
    file.write_text("gpu: [0, 1]\n")
    assert build_config(CREPE, {}, {}, file).models[0].settings.gpu == (0, 1)


def test_an_unknown_variable_is_noted_once_with_the_nearest_known_one() -> None:
    config = build_config([], {}, {"MMS_PROT": "1", "MMS_TEAM_OF_OURS": "vision"})
    assert config.server == ServerSettings()
    assert config.notes == (
        "environment variable MMS_PROT is ignored: it is no setting; did you mean 'MMS_PORT'?",
        "environment variable MMS_TEAM_OF_OURS is ignored: it is no setting",
    )


LINKS = {
    "MMS_PORT": "tcp://10.0.0.1:8080",
    "MMS_SERVICE_HOST": "10.0.0.1",
    "MMS_PORT_8080_TCP_ADDR": "10.0.0.1",
    # Of a Service called mms-canary, and of one called mms-management.
    "MMS_CANARY_SERVICE_HOST": "10.0.0.2",
    "MMS_CANARY_SERVICE_PORT": "8080",
    "MMS_CANARY_SERVICE_PORT_HTTP": "8080",
    "MMS_CANARY_PORT": "udp://10.0.0.2:8080",
    "MMS_CANARY_PORT_8080_UDP": "udp://10.0.0.2:8080",
    "MMS_CANARY_PORT_8080_UDP_PROTO": "udp",
    "MMS_MANAGEMENT_PORT": "tcp://10.0.0.3:8081",
}


def test_what_kubernetes_sets_for_services_is_ignored_whatever_their_names() -> None:
    config = build_config([], {}, LINKS)
    assert config.server == ServerSettings()
    [note] = config.notes
    assert all(name in note for name in LINKS)


def test_a_port_beside_service_links_is_still_a_setting() -> None:
    environment = {**LINKS, "MMS_PORT": "9000", "MMS_MANAGEMENT_PORT": "9001"}
    server = build_config([], {}, environment).server
    assert (server.port, server.management_port) == (9000, 9001)


UNKNOWN = [
    ("worker: 2", "unknown key 'worker'; did you mean 'workers'"),
    ("zzz: 2", r"unknown key 'zzz'; known: workers, .*models|unknown key 'zzz'; known: host"),
    ("8080: x", "unknown key 8080"),
    ("models:\n  a: {path: x, batchsize: 2}", "models.a: unknown key 'batchsize'; did you mean"),
    ("models:\n  a: {path: x, port: 2}", "models.a: unknown key 'port'"),
    ("models: [a]", "models must map names to paths or settings"),
    ("models:\n  a: {workers: 2}", "models.a needs a path"),
    ("models:\n  a: 5", "models.a needs a path"),
    ("models:\n  a/b: x", "model name 'a/b' cannot be used in a URL: use up to 128"),
    ("- a", "expected a mapping, got list"),
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
    ("port", "http", "port: expected an integer, got 'http'"),
    ("port", -1, "port: must be at least 0, got -1"),
    ("port", 65536, "port: must be at most 65535, got 65536"),
    ("port", True, "expected an integer, got True"),
    ("port", 1.5, "expected an integer, got 1.5"),
    ("port", [1], "expected an integer"),
    ("max_request_bytes", 2**40, "must be at most"),
    ("max_response_bytes", 0, "must be at least 1"),
    ("batch_size", 0, "must be at least 1, got 0"),
    ("batch_size", 65536, "must be at most 65535, got 65536"),
    ("response_timeout", 0, "must be at least 0.001, got 0"),
    (
        "response_timeout",
        "nan",
        "or a time such as 30s, 500ms or 2m, got",
    ),
    ("response_timeout", float("inf"), "expected a number of seconds"),
    ("response_timeout", 10**400, "expected a number of seconds"),
    ("response_timeout", True, "500ms or 2m, got True"),
    ("preload", "maybe", "preload: expected true or false, got 'maybe'"),
    ("preload", 2, "expected true or false, got 2"),
    ("host", {"a": 1}, "host: expected a string"),
    ("host", True, "expected a string, got True"),
    (
        "log_level",
        "loud",
        "must be one of NOTSET, DEBUG, INFO, WARNING, ERROR, CRITICAL, got 'loud'",
    ),
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
            text = rules_of(field).help
            assert text.endswith(".")
            assert len(text) > 10


def test_every_default_obeys_its_own_rules() -> None:
    for cls in (ServerSettings, ModelSettings):
        defaults = {
            key: value if isinstance(value, tuple) else str(value)
            for key, value in dataclasses.asdict(cls()).items()
        }
        config = build_config(CREPE, defaults, {})
        found = config.server if cls is ServerSettings else config.models[0].settings
        assert found == cls()


def test_no_setting_of_the_server_is_one_of_the_models_too() -> None:
    assert not set(keys(ServerSettings)) & set(keys(ModelSettings))


@pytest.mark.parametrize(
    ("text", "gpus"), [("", ()), (" ", ()), ("0", (0,)), ("0,1", (0, 1)), (" 2 , 3 ", (2, 3))]
)
def test_gpu_numbers_are_read(text: str, gpus: tuple[int, ...]) -> None:
    assert build_config(CREPE, {"gpu": text}, {}).models[0].settings.gpu == gpus


@pytest.mark.parametrize("text", ["a", "0,", ",0", "0 1", "-1", "0.5"])
def test_what_is_no_gpu_number_is_refused(text: str) -> None:
    message = f"flag: gpu: expected GPU numbers such as 0 or 0,1, got '{text}'"
    with pytest.raises(ConfigError, match=message):
        build_config(CREPE, {"gpu": text}, {})


@pytest.mark.parametrize("value", [[], [0], [0, 1], ["0", "1"], (2, 3)])
def test_gpu_numbers_may_be_a_list(file: Path, value: Any) -> None:
    file.write_text(yaml.safe_dump({"devices": list(value)}))
    found = build_config(CREPE, {}, {}, file).models[0].settings.gpu
    assert found == tuple(int(number) for number in value)


SIZES = [
    (4096, 4096),
    ("4096", 4096),
    (1e6, 10**6),
    ("1b", 1),
    ("2GB", 2 * 10**9),
    ("2gb", 2 * 10**9),
    ("512MiB", 512 << 20),
    ("1.5 KiB", 1536),
    ("0.5kB", 500),
    ("1TiB", 1 << 40),
]


@pytest.mark.parametrize(("value", "size"), SIZES)
def test_a_size_is_a_number_of_bytes_or_has_a_unit(file: Path, value: Any, size: int) -> None:
    file.write_text(yaml.safe_dump({"memory_budget": value}))
    assert build_config([], {}, {}, file).server.memory_budget == size
    environment = {"MMS_MEMORY_BUDGET": str(int(value) if isinstance(value, float) else value)}
    assert build_config([], {}, environment).server.memory_budget == size


TIMES = [
    (30, 30_000),
    ("30", 30_000),
    ("30s", 30_000),
    ("500ms", 500),
    ("0.5 s", 500),
    ("2m", 120_000),
    ("2min", 120_000),
    ("0.1h", 360_000),
]


@pytest.mark.parametrize(("value", "milliseconds"), TIMES)
def test_a_time_is_a_number_of_its_own_unit_or_has_one(value: Any, milliseconds: float) -> None:
    found = build_config(CREPE, {"response_timeout": value}, {}).models[0].settings
    assert found.response_timeout == milliseconds / 1000
    if str(value).strip()[-1].isalpha():
        found = build_config(CREPE, {"max_batch_delay": value}, {}).models[0].settings
        assert found.max_batch_delay == milliseconds


QUANTITIES = [
    (
        "memory_budget",
        "2 pounds",
        "expected an integer number of bytes or a size such as 512MiB or 2GB",
    ),
    ("memory_budget", "0.3b", "expected an integer number of bytes"),
    ("memory_budget", "-1GB", "expected an integer number of bytes"),
    ("memory_budget", "9999TiB", "must be at most"),
    ("memory_budget", "30s", "expected an integer number of bytes"),
    ("max_batch_delay", "2GB", "expected a number of milliseconds or a time such as 5ms"),
    ("max_batch_delay", "1h", "must be at most 900000, got '1h'"),
    ("idle_timeout", "s", "expected a number of seconds"),
    ("workers", "2GB", "expected an integer, got '2GB'"),
]


@pytest.mark.parametrize(("key", "value", "message"), QUANTITIES)
def test_a_unit_that_does_not_fit_is_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^flag: {key}: {message}"):
        build_config(CREPE, {key: value}, {})


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("allowed_hosts", "mms, proxy.example", ("mms", "proxy.example")),
        ("allowed_hosts", ["mms", "a,b"], ("mms", "a", "b")),
        ("allowed_hosts", "", ()),
        ("allowed_hosts", [""], ()),
        ("allowed_urls", "https://a/{1,2}, s3://b/.*", ("https://a/{1,2}", "s3://b/.*")),
        ("allowed_urls", ["https://a/.*", "", "s3://b/x,y"], ("https://a/.*", "s3://b/x,y")),
    ],
)
def test_a_list_is_a_list_wherever_it_is_set(key: str, value: Any, found: Any) -> None:
    assert getattr(build_config([], {key: value}, {}).server, key) == found


@pytest.mark.parametrize(("key", "value"), [("allowed_urls", [{}]), ("host", ["a"])])
def test_what_is_no_list_of_strings_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"flag: {key}: expected a string"):
        build_config([], {key: value}, {})


@pytest.mark.parametrize("key", ["allowed_urls", "blacklist_env_vars"])
def test_what_is_no_regular_expression_is_refused_before_anything_starts(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"flag: {key}: '\(' is not a regular expression: "):
        build_config([], {key: "("}, {})


def any_value(field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    """Return what a setting may be."""
    rules = rules_of(field)
    if rules.choices:
        return st.sampled_from(rules.choices)
    if rules.is_pattern:
        return st.sampled_from(["", "a.*", "https://a/{1,2}", "[a: #'\"]"])
    if isinstance(field.default, bool):
        return st.booleans()
    if isinstance(field.default, int):
        return st.integers(int(rules.minimum or 0), int(rules.maximum or 0))
    if isinstance(field.default, float):
        return st.floats(rules.minimum, rules.maximum)
    if field.type == "tuple[int, ...]":
        return st.lists(st.integers(0, 999), max_size=3)
    return st.text(max_size=8)


ANY_SETTINGS = {
    cls: st.fixed_dictionaries({}, optional={f.name: any_value(f) for f in dataclasses.fields(cls)})
    for cls in (ServerSettings, ModelSettings)
}


@given(
    server=ANY_SETTINGS[ServerSettings],
    shared=ANY_SETTINGS[ModelSettings],
    own=st.dictionaries(
        st.sampled_from(["m", "on", "1", "1.5", "null", "a-b"]), ANY_SETTINGS[ModelSettings]
    ),
)
@settings(max_examples=100, deadline=None)
def test_a_configuration_that_is_printed_can_be_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    server: dict[str, Any],
    shared: dict[str, Any],
    own: dict[str, dict[str, Any]],
) -> None:
    file = tmp_path_factory.getbasetemp() / "own: \n#.yaml"
    models = {name: {**values, "path": f"/x y/{name}"} for name, values in own.items()}
    file.write_text(yaml.safe_dump({**shared, "models": models}), encoding="utf-8")
    config = build_config([], server, {"MMS_WORKERS": "3"}, file)
    copy = tmp_path_factory.getbasetemp() / "copy.yaml"
    copy.write_text(to_yaml(config, lambda model: model.settings), encoding="utf-8")
    again = build_config([], {}, {}, copy)
    assert again.server == config.server
    assert [(m.name, m.path, m.settings) for m in again.models] == [
        (m.name, m.path, m.settings) for m in config.models
    ]
    # What nobody has set is still for the archives of models to set, and for later models, too.
    for model, same in zip(config.models, again.models, strict=True):
        assert unset(model.origins) == unset(same.origins)
    (before, origins), (after, copied) = (
        resolve(ModelSettings, found.layers) for found in (config, again)
    )
    assert (before, unset(origins)) == (after, unset(copied))


def unset(origins: Mapping[str, str]) -> set[str]:
    return {key for key, origin in origins.items() if origin == "default"}


def test_what_an_archive_sets_is_printed_and_left_to_the_archive(file: Path) -> None:
    config = build_config(CREPE, {"workers": 2}, {})
    serving = ServingDefaults(workers=7, batch_size=8)
    text = to_yaml(
        config, lambda model: with_archive_defaults(model.settings, serving, model.origins)
    )
    assert "    workers: 2  # flag\n" in text
    assert "    #batch_size: 8  # archive\n" in text
    file.write_text(text)
    [model] = build_config([], {}, {}, file).models
    assert with_archive_defaults(model.settings, serving, model.origins).batch_size == 8


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

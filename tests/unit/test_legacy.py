"""The configuration of MMS 1.x: its file, its keys, its variables."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms.config.build import Config, build_config
from mms.config.layers import Layer
from mms.config.legacy import KEYS, SAGEMAKER, read_properties
from mms.config.properties import fill_variables, parse_properties
from mms.config.resources import gpus
from mms.config.settings import TOKEN_VARIABLE, ModelSettings, ServerSettings
from mms.errors import ConfigError

#: Of another kind: it names the models themselves.
MODELS = "models"
TOKEN = {TOKEN_VARIABLE: "0123456789abcdef"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.properties"


def configured(file: Path, text: str, **environment: str) -> Config:
    file.write_text(text)
    return build_config([], {}, environment, properties=str(file))


# What java.util.Properties reads of each.
PROPERTIES: list[tuple[bytes, dict[str, str]]] = [
    (b"a=1\nb: 2\nc 3", {"a": "1", "b": "2", "c": "3"}),
    (b"# x=1\n! y=2\n  # z=3\n\n  a = 1 ", {"a": "1 "}),
    (b"a=b=c:d", {"a": "b=c:d"}),
    (b"a=1,\\\n   2,\\\r\n\t3\nb=4", {"a": "1,2,3", "b": "4"}),
    (b"a=x\\\\\nb=2", {"a": "x\\", "b": "2"}),
    (b"a\\=b\\:c\\ d=\\t\\n\\u00e9\\q", {"a=b:c d": "\t\n\u00e9q"}),
    (b"a=1\na=2", {"a": "2"}),
    (b"a\nb=\n=c", {"a": "", "b": "", "": "c"}),
    (b"a=1\\", {"a": "1"}),
    (b"a=1\\\n# not a comment", {"a": "1# not a comment"}),
    (b"a=/opt/caf\xc3\xa9", {"a": "/opt/caf\u00e9"}),
    (b"a=/opt/caf\xe9", {"a": "/opt/caf\u00e9"}),
    (b"\xef\xbb\xbfa=1", {"a": "1"}),
    (b"a=1\rb=2\r\nc=3", {"a": "1", "b": "2", "c": "3"}),
    (b"", {}),
]


@pytest.mark.parametrize(("data", "values"), PROPERTIES)
def test_properties_are_read_as_java_reads_them(data: bytes, values: dict[str, str]) -> None:
    assert parse_properties(data) == values


@given(st.binary())
def test_any_bytes_are_properties(data: bytes) -> None:
    parse_properties(data)


def test_variables_stand_in_values_several_in_one() -> None:
    filled = fill_variables("http://$$HOST$$:$$PORT$$", {"HOST": "h", "PORT": "1"}, "f: k")
    assert filled == "http://h:1"
    with pytest.raises(ConfigError, match="f: k: Invalid Environment Variable PORT"):
        # 1.x stops with these words, too.
        fill_variables("http://$$HOST$$:$$PORT$$", {"HOST": "h"}, "f: k")


def test_every_key_sets_what_there_is() -> None:
    known = {f.name for cls in (ServerSettings, ModelSettings) for f in dataclasses.fields(cls)}
    for name, key in KEYS.items():
        assert set(key.sets) <= {*known, MODELS} or name.startswith("cors_"), name
        assert key.sets or key.remark, name
        assert set(key.read("1")) <= set(key.sets) if "address" not in name else True, name


SET = [
    ("inference_address=http://0.0.0.0:80", {"host": "0.0.0.0", "port": 80}),
    ("inference_address=HTTP://[::1]", {"host": "::1", "port": 80}),
    ("management_address=http://127.0.0.2:9/", {"management_host": "127.0.0.2"}),
    ("model_store=/models", {"model_store": "/models"}),
    ("max_request_size = 1000", {"max_request_bytes": 1000}),
    ("max_response_size:1000", {"max_response_bytes": 1000}),
    # The most here: 1.x takes up to 2 GiB.
    ("max_request_size=2000000000", {"max_request_bytes": 536870912}),
    ("metric_time_interval=5", {"metrics_interval": 5.0}),
    ("blacklist_env_vars=.*USERNAME.*", {"blacklist_env_vars": ".*USERNAME.*"}),
]


@pytest.mark.parametrize(("text", "values"), SET)
def test_a_key_sets_the_server(file: Path, text: str, values: dict[str, Any]) -> None:
    config = configured(file, text)
    assert {name: getattr(config.server, name) for name in values} == values
    origins = {config.origins[name] for name in values}
    assert origins == {f"{file}: {text.replace(':', '=').split('=')[0].strip()}"}


SET_OF_MODELS = [
    ("default_workers_per_model=3", {"workers": 3}),
    ("job_queue_size=77", {"queue_size": 77}),
    # 1.1.11 multiplies by 60, whatever its page says.
    ("default_response_timeout=2", {"response_timeout": 120.0}),
    ("default_response_timeout_seconds=7\ndefault_response_timeout=2", {"response_timeout": 7.0}),
    ("default_response_timeout_seconds=-1\ndefault_response_timeout=2", {"response_timeout": 120}),
    # 1.x takes at most as many as there are.
    ("number_of_gpu=2", {"gpu": tuple(range(min(2, gpus())))}),
    ("number_of_gpu=2147483647", {"gpu": tuple(range(gpus()))}),
    ("number_of_gpu=0", {"gpu": ()}),
    ("decode_input_request=false", {"decode_input_request": False}),
    # Java: whatever is not "true" is false.
    ("decode_input_request=yes", {"decode_input_request": False}),
    ("preload_model=TRUE", {"preload": True}),
    ("default_service_handler=mod:func", {"handler": "mod:func"}),
    ("debug=true\ndefault_workers_per_model=3", {"workers": 1}),
    ("debug=1\ndefault_workers_per_model=3", {"workers": 3}),
]


@pytest.mark.parametrize(("text", "values"), SET_OF_MODELS)
def test_a_key_sets_every_model(file: Path, text: str, values: dict[str, Any]) -> None:
    file.write_text(text)
    [model] = build_config([("m", "m.mar")], {}, {}, properties=str(file)).models
    assert {name: getattr(model.settings, name) for name in values} == values


def test_gpus_are_counted_by_their_device_files(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert gpus(tmp_path) == 2


def test_a_key_is_a_variable_too(file: Path) -> None:
    environment = {"MMS_JOB_QUEUE_SIZE": "7", "MMS_LOAD_MODELS": "a.mar, b=b.mar"}
    config = build_config([("m", "m.mar")], {}, environment)
    assert config.models[0].settings.queue_size == 7
    assert config.models[0].origins["queue_size"] == "MMS_JOB_QUEUE_SIZE"
    assert config.load_models == ("a.mar", "b=b.mar")
    assert config.notes == ()


def test_a_variable_beats_the_file_and_a_flag_beats_both(file: Path) -> None:
    file.write_text("job_queue_size=1\nload_models=f.mar\n")
    environment = {"MMS_JOB_QUEUE_SIZE": "2", "MMS_LOAD_MODELS": "e.mar"}
    pairs = [("m", "m.mar")]
    config = build_config(pairs, {}, environment, properties=str(file))
    assert config.models[0].settings.queue_size == 2
    assert config.load_models == ("e.mar",)
    flags = {"queue_size": 3}
    config = build_config(pairs, flags, environment, properties=str(file))
    assert config.models[0].settings.queue_size == 3


def test_the_environment_beats_flags_if_the_file_says_so(file: Path) -> None:
    # 1.x: enable_envvars_config puts MMS_ variables above the command line.
    file.write_text("enable_envvars_config=true\n")
    flags, environment = {"model_store": "/flag"}, {"MMS_MODEL_STORE": "/environment"}
    server = build_config([], flags, environment, properties=str(file)).server
    assert server.model_store == "/environment"


def test_the_new_name_of_a_variable_beats_the_old_one() -> None:
    environment = {"MMS_JOB_QUEUE_SIZE": "7", "MMS_QUEUE_SIZE": "8"}
    assert build_config([("m", "m")], {}, environment).models[0].settings.queue_size == 8


def test_a_yaml_file_beats_the_properties(file: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "mms.yaml"
    yaml.write_text("model_store: /yaml\n")
    file.write_text("model_store=/properties\nmax_request_size=5\n")
    server = build_config([], {}, {}, yaml, str(file)).server
    assert (server.model_store, server.max_request_bytes) == ("/yaml", 5)


NOTED = [
    ("number_of_netty_threads=4", "number_of_netty_threads is ignored: not needed"),
    ("vmargs=-Xmx1g", "vmargs is ignored: not needed: this server has no Java"),
    ("keystore=/k.p12", "keystore is ignored: this server does not speak TLS"),
    ("job_queue_sizes=1", "job_queue_sizes is ignored: unknown key; did you mean 'job_queue_size'"),
    ("max_request_size=999999999", "max_request_size: 536870912 is the most here"),
]


@pytest.mark.parametrize(("text", "note"), NOTED)
def test_what_has_no_meaning_here_is_noted(file: Path, text: str, note: str) -> None:
    [found] = configured(file, text).notes
    assert found.startswith(f"{file}: ")
    assert note in found


def test_empty_values_set_nothing(file: Path) -> None:
    # SageMaker's toolkits and templates leave such.
    assert configured(file, "default_workers_per_model=\nkeystore=\n").notes == ()


REFUSED = [
    ("inference_address=https://0.0.0.0:8443", "does not speak TLS"),
    ("inference_address=unix:/tmp/s", "unix:/tmp/s: this server listens on no Unix sockets"),
    ("inference_address=0.0.0.0:8080", "Invalid binding address"),
    ("inference_address=http://a:99999", "port: must be at most 65535"),
    ("job_queue_size=many", "job_queue_size: queue_size: expected an integer, got 'many'"),
    ("model_store=$$NO_SUCH$$", "model_store: Invalid Environment Variable NO_SUCH"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_value_that_cannot_hold_is_refused_by_its_key(
    file: Path, text: str, message: str
) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        build_config([("m", "m.mar")], {}, {}, properties=str(file))
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no/such: cannot be read: No such file"):
        read_properties(str(tmp_path / "no" / "such"), {})
    large = tmp_path / "large"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        read_properties(str(large), {})


class TestManagement:
    """1.x opens it to whom its address says; without a token that would be to anybody."""

    def test_an_open_address_without_a_token_is_this_machine_s_only(self, file: Path) -> None:
        config = configured(file, "management_address=http://0.0.0.0:8081")
        assert (config.server.management_host, config.server.management_port) == ("127.0.0.1", 8081)
        assert "listens on 127.0.0.1 only, until MMS_MANAGEMENT_TOKEN" in config.notes[0]

    def test_on_the_open_inference_address_it_is_off(self, file: Path) -> None:
        both = "inference_address=http://0.0.0.0:80\nmanagement_address=http://0.0.0.0:80"
        config = configured(file, both)
        assert (config.server.host, config.server.port) == ("0.0.0.0", 80)
        assert config.server.management_port == -1
        assert "the management API is off, until MMS_MANAGEMENT_TOKEN" in config.notes[0]

    @pytest.mark.parametrize(
        ("address", "environment"),
        [("http://0.0.0.0:80", TOKEN), ("http://127.0.0.1:80", {}), ("http://localhost:80", {})],
    )
    def test_with_a_token_or_on_loopback_it_is_where_it_was_set(
        self, file: Path, address: str, environment: dict[str, str]
    ) -> None:
        both = f"inference_address={address}\nmanagement_address={address}"
        config = configured(file, both, **environment)
        server = config.server
        assert (server.management_host, server.management_port) == (server.host, server.port)
        assert config.notes == ()

    def test_a_setting_of_ours_stays_as_set(self) -> None:
        # The server itself refuses it without a token.
        config = build_config([], {"management_host": "0.0.0.0"}, {})
        assert config.server.management_host == "0.0.0.0"


def test_the_built_in_configuration_of_sagemaker_reads_its_variables() -> None:
    environment = {
        "SAGEMAKER_MODEL_STORE": "/models",
        "SAGEMAKER_BIND_TO_PORT": "9090",
        "SAGEMAKER_RESPONSE_TIMEOUT": "1",
        "SAGEMAKER_NUM_MODEL_WORKERS": "2",
        "SAGEMAKER_HANDLER": "h:f",
        "SAGEMAKER_MAX_REQUEST_SIZE": "10",
        "SAGEMAKER_MAX_RESPONSE_SIZE": "20",
    }
    config = build_config([("m", "m")], {}, environment, properties=SAGEMAKER)
    server, model = config.server, config.models[0].settings
    assert (server.host, server.port, server.model_store) == ("0.0.0.0", 9090, "/models")
    assert (server.max_request_bytes, server.max_response_bytes) == (10, 20)
    assert (model.workers, model.handler, model.response_timeout) == (2, "h:f", 60.0)
    assert model.decode_input_request is False
    with pytest.raises(ConfigError, match="Invalid Environment Variable SAGEMAKER_MODEL_STORE"):
        build_config([], {}, {}, properties=SAGEMAKER)


def test_what_the_way_of_starting_sets_is_weaker_than_a_flag() -> None:
    preset = Layer("1.x", {"keep_going": True})
    assert build_config([], {}, {}, preset=preset).server.keep_going
    assert not build_config([], {"keep_going": False}, {}, preset=preset).server.keep_going

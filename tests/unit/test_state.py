"""The state file: whatever is written is read back, and whatever else is read is refused."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mms.errors import ConfigError
from mms.serving.stamp import file_stamp
from mms.serving.state import SavedModel, SavedTraffic, State, read_state, write_state

Values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
Json = st.recursive(
    st.one_of(st.none(), Values),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=20,
)
Models = st.fixed_dictionaries(
    {
        "name": st.text(),
        "version": st.text(),
        "path": st.text(),
        "size": st.one_of(st.none(), st.integers(0, 100)),
        "settings": st.dictionaries(st.text(), Values),
    }
)
SavedModels = Models.map(lambda document: msgspec.convert(document, SavedModel))
Splits = st.fixed_dictionaries(
    {
        "default": st.text(),
        "weights": st.dictionaries(st.text(), st.integers(0)),
        "sticky_header": st.text(),
        "shadow": st.text(),
    }
)
SavedSplits = Splits.map(lambda document: msgspec.convert(document, SavedTraffic))
States = st.builds(State, st.lists(SavedModels), st.dictionaries(st.text(), SavedSplits))
MODEL: dict[str, Any] = {"name": "m", "version": "1", "path": "/m", "size": None, "settings": {}}
SPLIT: dict[str, Any] = {"default": "1", "weights": {}, "sticky_header": "", "shadow": ""}
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(state=States)
@SAME_FOLDER
def test_what_is_written_is_read_back(tmp_path: Path, state: State) -> None:
    path = str(tmp_path / "state.json")
    write_state(path, state)
    assert read_state(path) == state
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"models": [], "traffic": []},
        {"models": []},
        {"": True},
        {"models": [{"name": "m"}], "traffic": {}},
        {"models": [{**MODEL, "size": -1}], "traffic": {}},
        {"models": [{**MODEL, "size": True}], "traffic": {}},
        {"models": [{**MODEL, "version": 1}], "traffic": {}},
        {"models": [], "traffic": {"m": {**SPLIT, "weights": {"1": 0.5}}}},
    ],
)
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"models": [MODEL], "traffic": {"m": SPLIT}}))
    assert read_state(str(path)).models == [SavedModel(**MODEL)]
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"state\.json is not a valid state file .*; remove it"):
        read_state(str(path))


@given(data=st.binary(max_size=200))
@SAME_FOLDER
def test_bytes_that_are_no_state_are_a_config_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"state_file .*state\.json"):
        read_state(str(path))


@st.composite
def almost_states(draw: st.DrawFn) -> Any:
    """Return documents that are a state but for one value."""
    document: dict[str, Any] = {
        "models": [draw(Models)],
        "traffic": {"m": draw(Splits)},
    }
    place = draw(st.sampled_from(["top", "model", "models", "traffic", "split", "weights"]))
    if place == "top":
        return draw(Json)
    if place == "models":
        document["models"] = draw(Json)
    elif place == "model":
        document["models"][0][draw(st.sampled_from(sorted(document["models"][0])))] = draw(Json)
    elif place == "traffic":
        document["traffic"] = draw(Json)
    elif place == "split":
        document["traffic"]["m"][draw(st.sampled_from(sorted(document["traffic"]["m"])))] = draw(
            Json
        )
    else:
        document["traffic"]["m"]["weights"] = draw(st.dictionaries(st.text(), Json))
    return document


@given(document=almost_states())
@SAME_FOLDER
def test_a_state_that_is_read_has_the_right_types_throughout(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(document))
    try:
        state = read_state(str(path))
    except ConfigError:
        return
    for entry in state.models:
        assert all(isinstance(text, str) for text in (entry.name, entry.version, entry.path))
        assert entry.size is None or type(entry.size) is int
        assert entry.size is None or entry.size >= 0
        assert isinstance(entry.settings, dict)
    for split in state.traffic.values():
        assert all(
            isinstance(text, str) for text in (split.default, split.sticky_header, split.shadow)
        )
        assert all(type(weight) is int for weight in split.weights.values())


def test_no_path_and_no_file_are_an_empty_state(tmp_path: Path) -> None:
    assert read_state("") == State([], {})
    assert read_state(str(tmp_path / "missing")) == State([], {})
    write_state("", State([], {}))


def test_a_folder_in_its_place_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="state_file"):
        read_state(str(tmp_path))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    old = State([], {"m": SavedTraffic("1", {}, "", "")})
    write_state(str(path), old)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        write_state(str(path), State([], {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["state.json"]
    assert read_state(str(path)) == old
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("place", ["missing/state.json", "file/state.json", "folder"])
def test_a_place_that_cannot_be_written_is_logged(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    write_state(str(tmp_path / place), State([], {}))
    assert f"state_file {tmp_path / place} cannot be written" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_the_stamp_of_a_file_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "m.model"
    assert file_stamp(str(path)) is None
    path.write_bytes(b"1")
    first = file_stamp(str(path))
    assert first == file_stamp(str(path))
    path.write_bytes(b"22")
    second = file_stamp(str(path))
    assert second != first
    # Replaced by one of the same size and time.
    status = path.stat()
    other = tmp_path / "other"
    other.write_bytes(b"33")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)
    assert file_stamp(str(path)) not in (first, second)


def test_the_stamp_of_a_folder_changes_with_its_files_but_not_with_compiled_ones(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    assert file_stamp(str(folder)) is None
    (folder / "deep" / "a.py").write_text("1")
    first = file_stamp(str(folder))
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("1")
    assert file_stamp(str(folder)) == first
    (folder / "b.py").write_text("1")
    second = file_stamp(str(folder))
    assert second != first
    (folder / "b.py").unlink()
    assert file_stamp(str(folder)) == first

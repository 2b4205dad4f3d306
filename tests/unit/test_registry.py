"""Which version answers: any sequence of changes leaves a registry that can answer."""

from __future__ import annotations

import asyncio
import string
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mms.archive.reader import Archive, open_archive
from mms.config.settings import ModelSettings
from mms.errors import InvalidRequest, ModelNotFound, ModelNotReady, VersionNotFound
from mms.serving.registry import Registry, Traffic
from mms.serving.servable import Servable
from tests.kit.archives import make_archive

VERSIONS = ("1", "2", "3")
NAMES = ("a", "b")


@pytest.fixture(scope="module")
def servables(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Servable]:
    """Servables that nobody loads, by name and version."""
    folder = tmp_path_factory.mktemp("registry")
    archive = open_archive(make_archive(folder, "echo"), folder)

    async def make() -> dict[tuple[str, str], Servable]:
        keys = [(name, version) for name in NAMES for version in VERSIONS]
        return {key: make_servable(*key, archive) for key in keys}

    return asyncio.run(make())


def make_servable(name: str, version: str, archive: Archive) -> Servable:
    return Servable(name, version, archive, ModelSettings(workers=1), 1 << 20, lambda _: {})


@pytest.fixture(scope="module")
def one(servables: Mapping[tuple[str, str], Servable]) -> list[Servable]:
    """The versions of one model."""
    return [servables["a", version] for version in VERSIONS]


def filled(servables: list[Servable]) -> Registry:
    registry = Registry()
    for servable in servables:
        registry.add(servable)
    return registry


def test_until_all_archives_are_read_an_unknown_model_may_still_come(one: list[Servable]) -> None:
    registry = filled(one)
    for is_started in (True, False):
        assert registry.find("a", is_started) is registry.model("a")
    with pytest.raises(ModelNotReady, match="the server is starting"):
        registry.find("b", False)
    with pytest.raises(ModelNotFound):
        registry.find("b", True)


def test_the_first_version_is_the_default_until_another_is_made_it(one: list[Servable]) -> None:
    registry = filled(one[:2])
    assert registry.get("a") is one[0]
    registry.add(one[2], make_default=True)
    assert registry.get("a") is one[2]
    assert registry.get("a", "2") is one[1]


def test_removing_the_default_makes_the_newest_of_the_others_the_default(
    one: list[Servable],
) -> None:
    registry = filled(one)
    registry.remove(one[0])
    assert registry.get("a") is one[2]


def test_removing_one_that_has_been_replaced_leaves_its_replacement(one: list[Servable]) -> None:
    registry = filled(one[:1])
    registry.remove(make_servable_like(one[0]))
    assert registry.get("a") is one[0]


def make_servable_like(servable: Servable) -> Servable:
    async def make() -> Servable:
        return make_servable(servable.name, servable.version, servable.archive)

    return asyncio.run(make())


def test_the_last_version_takes_the_model_along(one: list[Servable]) -> None:
    registry = filled(one)
    for servable in one:
        registry.remove(servable)
    assert "a" not in registry
    with pytest.raises(ModelNotFound, match="loaded models: none"):
        registry.model("a")


def test_errors_name_what_there_is_and_cut_what_was_asked(one: list[Servable]) -> None:
    registry = filled(one)
    with pytest.raises(VersionNotFound, match="has no version '9'; its versions: 1, 2, 3"):
        registry.get("a", "9")
    with pytest.raises(ModelNotFound) as caught:
        registry.get("x" * 10_000)
    assert len(str(caught.value)) < 200


Weights = st.dictionaries(st.sampled_from([*VERSIONS, "9"]), st.integers(-3, 1000), max_size=4)


@given(
    weights=Weights,
    shadow=st.sampled_from(["", *VERSIONS, "9"]),
    sticky=st.one_of(st.none(), st.text(max_size=20)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_split_is_refused_or_chooses_among_versions_with_weight(
    one: list[Servable], weights: dict[str, int], shadow: str, sticky: str | None
) -> None:
    model = filled(one).model("a")
    before = model.traffic
    traffic = Traffic(weights, "X-User", shadow)
    is_known = {*weights, shadow} <= {"", *VERSIONS}
    is_fair = not weights or (min(weights.values()) >= 0 and sum(weights.values()) > 0)
    if is_known and is_fair:
        model.split(traffic)
        chosen = model.choose(sticky)
        assert model.versions[chosen.version] is chosen
        assert weights.get(chosen.version, 0) > 0 or not weights
        if sticky is not None:
            assert model.choose(sticky) is chosen
    else:
        expected = VersionNotFound if not is_known else InvalidRequest
        with pytest.raises(expected):
            model.split(traffic)
        assert model.traffic is before


@given(weights=st.lists(st.integers(1, 20), min_size=3, max_size=3))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sticky_values_are_spread_by_the_weights(one: list[Servable], weights: list[int]) -> None:
    model = filled(one).model("a")
    model.split(Traffic(dict(zip(VERSIONS, weights, strict=True)), "X-User"))
    met = Counter(model.choose(f"user-{n}").version for n in range(2000))
    for version, weight in zip(VERSIONS, weights, strict=True):
        # CRC-32 of the same texts is the same everywhere, so these bounds either hold or do not.
        assert abs(met[version] / 2000 - weight / sum(weights)) < 0.08


def test_the_sticky_choice_is_the_same_in_every_process(one: list[Servable]) -> None:
    model = filled(one).model("a")
    model.split(Traffic({"1": 50, "2": 50}, "X-User"))
    chosen = "".join(model.choose(letter).version for letter in string.ascii_lowercase)
    assert chosen == "12212121111121221212211112"


def test_a_sticky_value_may_be_bytes_that_are_no_text(one: list[Servable]) -> None:
    model = filled(one).model("a")
    model.split(Traffic({"1": 1}, "X-User"))
    # What aiohttp makes of the header bytes FF FE.
    assert model.choose("\udcff\udcfe") is one[0]


Step = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(NAMES), st.sampled_from(VERSIONS), st.booleans()),
    st.tuples(st.just("remove"), st.sampled_from(NAMES), st.sampled_from(VERSIONS), st.just(True)),
    st.tuples(st.just("split"), st.sampled_from(NAMES), st.sampled_from(VERSIONS), st.booleans()),
)


@given(steps=st.lists(Step, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_changes_every_model_known_can_answer(
    servables: Mapping[tuple[str, str], Servable], steps: list[tuple[str, str, str, bool]]
) -> None:
    registry = Registry()
    known: dict[str, set[str]] = {}
    for action, name, version, flag in steps:
        servable = servables[name, version]
        if action == "add":
            registry.add(servable, make_default=flag)
            known.setdefault(name, set()).add(version)
            if flag:
                assert registry.get(name) is servable
        elif action == "remove" and version in known.get(name, ()):
            registry.remove(servable)
            known[name].remove(version)
            if not known[name]:
                del known[name]
        elif action == "split" and version in known.get(name, ()):
            weights = dict.fromkeys(known[name], 1) if flag else {version: 1}
            registry.model(name).split(Traffic(weights, "", version))
        assert {model.name for model in registry.models()} == set(known)
        for model in registry.models():
            assert set(model.versions) == known[model.name]
            assert registry.get(model.name).version == model.default
            assert model.choose(None).version in known[model.name]
            assert set(model.traffic.weights) <= known[model.name]
            assert model.traffic.shadow in {"", *known[model.name]}
        found = {(s.name, s.version) for s in registry.servables()}
        assert found == {(n, v) for n, versions in known.items() for v in versions}

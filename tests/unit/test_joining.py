"""What decides whether requests share a forward pass: agreement, shared state, made-up requests."""

from __future__ import annotations

import base64
import io
import math
import types
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mms.archive.signature import Signature, TensorSpec
from mms.errors import InferenceFailed, MMSError
from mms.wire.messages import Answer, Dialect, Request, RequestMeta
from mms.worker.agreement import answer_distance, output_distance
from mms.worker.arrays import detached, fits_batch_axis, split
from mms.worker.samples import request_pairs, zero_requests
from mms.worker.shared_state import SharedState
from mms.worker.trial import reason_against_joining


def answer(document: Any, **more: Any) -> Answer:
    return Answer(orjson.dumps(document), **more)


class TestAgreement:
    @pytest.mark.parametrize(
        ("one", "other", "distance"),
        [
            ([1.0, 2.0], [1.0, 2.0], 0.0),
            ([1.0, 2.0], [1.0, 2.5], 0.2),
            (["[[1.0, 2.0]]"], ["[[1.0, 2.5]]"], 0.2),
            ([{"p": 0.5, "class": "a"}], [{"p": 0.25, "class": "a"}], 0.5),
            ([1, 2], [1, 3], math.inf),
            ([1.0], [1.0, 1.0], math.inf),
            ({"a": 1.0}, {"b": 1.0}, math.inf),
            (["class 1"], ["class 2"], 0.5),
            (["red"], ["blue"], math.inf),
            ([None], [1.0], math.inf),
            ([True], [1.0], math.inf),
        ],
    )
    def test_answers_differ_by_their_numbers(self, one: Any, other: Any, distance: float) -> None:
        assert answer_distance(answer(one), answer(other)) == pytest.approx(distance)

    def test_answers_of_another_status_or_kind_are_others(self) -> None:
        assert answer_distance(answer([1.0]), answer([1.0], status=201)) == math.inf
        assert answer_distance(Answer(b"a", "text/plain"), Answer(b"b", "text/plain")) == math.inf

    def test_outputs_of_other_shapes_or_kinds_are_others(self) -> None:
        zeros = np.zeros((1, 2), np.float32)
        assert output_distance([zeros], [zeros.copy()]) == 0.0
        assert output_distance(zeros, zeros + 1) == 1.0
        assert output_distance([zeros], [zeros, zeros]) == math.inf
        assert output_distance(zeros, np.zeros((2, 1), np.float32)) == math.inf
        assert output_distance("text", zeros) == math.inf
        assert output_distance(zeros, np.full((1, 2), np.nan, np.float32)) == math.inf

    @given(st.lists(st.floats(-1e6, 1e6), max_size=6), st.floats(0, 1e-4))
    @settings(max_examples=50, deadline=None)
    def test_rounding_is_no_difference(self, numbers: list[float], noise: float) -> None:
        others = [number * (1 + noise) for number in numbers]
        assert answer_distance(answer(numbers), answer(others)) <= 1e-3


class Thing:
    shared: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"deep": [{}]}
        self.values = [1, 2]
        self.names = {"a"}
        self.recent = deque([1], maxlen=2)
        self.raw = bytearray(4)
        self.array = np.zeros(3)
        self.large = np.zeros(10_000)
        self.other = types.SimpleNamespace(value=1)
        self.scale = 1.0


CHANGES: dict[str, Callable[[Thing], Any]] = {
    "self.state": lambda thing: thing.state.update(key=object()),
    "self.state['deep'][0]": lambda thing: thing.state["deep"][0].update(key=1),
    "self.values": lambda thing: thing.values.append(3),
    "self.names": lambda thing: thing.names.add("b"),
    "self.recent": lambda thing: thing.recent.append(2),
    "self.raw": lambda thing: thing.raw.__setitem__(0, 1),
    "self.array": lambda thing: thing.array.fill(1.0),
    "self.other": lambda thing: setattr(thing.other, "value", 2),
    "Thing.shared": lambda thing: Thing.shared.update(key=1),
    "an attribute of the original service": lambda thing: setattr(thing, "scale", 2.0),
}


class TestSharedState:
    @pytest.mark.parametrize("path", CHANGES)
    def test_a_change_is_named(self, path: str) -> None:
        thing = Thing()
        state = SharedState(thing)
        before = state.snapshot()
        assert state.changed(before) == ""
        CHANGES[path](thing)
        try:
            assert state.changed(before) == path
        finally:
            Thing.shared.clear()

    def test_large_arrays_are_looked_into_when_thorough(self) -> None:
        thing = Thing()
        state = SharedState(thing)
        before, thorough = state.snapshot(), state.snapshot(is_thorough=True)
        thing.large[5000] = 1
        assert state.changed(before) == ""
        assert state.changed(thorough, is_thorough=True) == "self.large"

    def test_a_value_set_to_the_same_object_is_no_change(self) -> None:
        thing = Thing()
        state = SharedState(thing)
        before = state.snapshot()
        thing.state["deep"] = thing.state["deep"]
        thing.values[:] = [1, 2]
        assert state.changed(before) == ""

    def test_a_service_that_holds_itself_is_searched_once(self) -> None:
        thing = Thing()
        thing.state["self"] = thing
        thing.values.append(thing.values)  # type: ignore[arg-type]
        assert SharedState(thing).snapshot()

    def test_an_object_of_slots_has_nothing_to_watch(self) -> None:
        class Slots:
            __slots__ = ("value",)

        state = SharedState(Slots())
        assert state.changed(state.snapshot()) == ""


def one_input(*shape: int, kind: str = "application/json", data_type: str = "") -> Signature:
    spec = TensorSpec("data", shape, data_type)
    return Signature((spec,), kind, (spec,), "application/json")


class TestMadeUpRequests:
    @pytest.mark.parametrize("data_type", ["", "INT64", "FP32", "BOOL", "BYTES"])
    def test_pairs_fit_the_signature_and_differ(self, data_type: str) -> None:
        for first, second in request_pairs(None, one_input(0, 3, data_type=data_type)):
            values = [orjson.loads(request.body)["data"] for request in (first, second)]
            assert values[0] != values[1]
            assert [np.shape(value) for value in values] == [(1, 3), (1, 3)]

    def test_free_axes_get_several_sizes(self) -> None:
        sizes = {
            np.shape(orjson.loads(request.body)["data"])
            for request in zero_requests(one_input(0, 0))
        }
        assert sizes == {(1, 1), (1, 8), (1, 224)}

    def test_a_huge_input_is_not_made_up(self) -> None:
        assert list(zero_requests(one_input(1, 100_000, 100_000))) == []

    @pytest.mark.parametrize(
        ("shape", "size"),
        [((0, 3, 20, 10), (10, 20)), ((1, 20, 10, 3), (10, 20)), ((0, 3, 0, 0), (224, 224))],
    )
    def test_pictures_have_the_signatures_size(
        self, shape: tuple[int, ...], size: tuple[int, int]
    ) -> None:
        request = next(iter(zero_requests(one_input(*shape, kind="image/jpeg"))))
        data = base64.b64decode(orjson.loads(request.body)["data"])
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == size

    @pytest.mark.parametrize(
        ("sample", "variants"),
        [
            ([{"review": "good"}], [[{"review": "doog"}]]),
            ([[1, 2, 3]], [[[3, 2, 1]], [[0, 1, 2]]]),
            ([[0.5, 0.5]], [[[0.25, 0.25]]]),
            ({"flag": True}, []),
        ],
    )
    def test_a_sample_has_variants_of_its_kind(self, sample: Any, variants: list[Any]) -> None:
        request = Request(
            RequestMeta("id", Dialect.PLAIN, "application/json", ""),
            memoryview(orjson.dumps(sample)),
        )
        pairs = [pair for pair in request_pairs(request, one_input(0, 3)) if pair[0] is request]
        assert [orjson.loads(second.body) for _, second in pairs] == variants


class Candidate:
    """Answers a request's number, in one of the ways in which services do."""

    def __init__(
        self,
        alone: Callable[[float], Any] = lambda value: value,
        joined: Callable[[list[float]], Any] = lambda values: values,
        outputs_differ: bool = True,
    ) -> None:
        self._alone, self._joined, self._outputs_differ = alone, joined, outputs_differ

    def answer_alone(self, request: Request) -> Answer | MMSError:
        value = self._alone(float(bytes(request.body)))
        return value if isinstance(value, MMSError) else answer([value])

    def answer_joined(self, requests: list[Request]) -> list[Answer | MMSError] | str:
        values = self._joined([float(bytes(request.body)) for request in requests])
        return values if isinstance(values, str) else [answer([value]) for value in values]

    def joined_outputs_differ(self) -> bool:
        return self._outputs_differ


def pairs(*numbers: tuple[float, float]) -> list[tuple[Request, Request]]:
    meta = RequestMeta("id", Dialect.PLAIN, "", "")
    return [
        (Request(meta, memoryview(b"%f" % one)), Request(meta, memoryview(b"%f" % other)))
        for one, other in numbers
    ]


class TestTrial:
    def test_those_that_agree_are_joined(self) -> None:
        assert reason_against_joining(Candidate(), pairs((1, 2))) == ""

    @pytest.mark.parametrize(
        "joined",
        [lambda values: values[::-1], lambda values: [values[-1]] * 2, lambda values: [3.0, 4.0]],
        ids=["swapped", "last", "others"],
    )
    def test_other_answers_together_are_a_reason(self, joined: Any) -> None:
        reason = reason_against_joining(Candidate(joined=joined), pairs((1, 2)))
        assert reason == "two requests get different answers together than alone"

    def test_swapped_answers_that_are_nearly_alike_are_found(self) -> None:
        near = Candidate(
            alone=lambda value: 0.5 + value * 1e-4,
            joined=lambda values: [0.5 + value * 1e-4 for value in values[::-1]],
        )
        assert "different answers together" in reason_against_joining(near, pairs((1, 2)))

    def test_a_service_that_never_answers_the_same_is_not_joined(self) -> None:
        calls = iter(range(100))
        reason = reason_against_joining(Candidate(alone=lambda _: next(calls)), pairs((1, 2)))
        assert reason == "the same request does not get the same answer twice"

    def test_requests_that_fail_alone_are_passed_over(self) -> None:
        candidate = Candidate(
            alone=lambda value: InferenceFailed("too small") if value < 3 else value
        )
        assert reason_against_joining(candidate, pairs((1, 2), (3, 4))) == ""
        assert "add a sample request" in reason_against_joining(candidate, pairs((1, 2)))

    def test_answers_that_are_always_the_same_prove_nothing(self) -> None:
        constant = Candidate(
            alone=lambda _: 1.0, joined=lambda values: [1.0] * len(values), outputs_differ=False
        )
        assert "proves nothing" in reason_against_joining(constant, pairs((1, 2), (3, 4)))

    def test_the_candidates_own_reason_counts(self) -> None:
        assert reason_against_joining(Candidate(joined=lambda _: "because"), pairs((1, 2))) == (
            "because"
        )


class TestArrays:
    def test_parts_of_a_batch_share_no_memory_with_the_service(self) -> None:
        buffer = np.arange(4.0).reshape(2, 2)
        first, second = split([buffer], [1, 1])
        buffer[:] = -1
        assert (first[0].tolist(), second[0].tolist()) == ([[0, 1]], [[2, 3]])
        value = detached((buffer,))
        buffer[:] = 7
        assert value[0].tolist() == [[-1, -1], [-1, -1]]

    @pytest.mark.parametrize(
        ("shape", "rows", "fits"), [(0, 4, True), (1, 1, True), (4, 4, False), (4, 2, True)]
    )
    def test_a_fixed_axis_is_no_batch(self, shape: int, rows: int, fits: bool) -> None:
        assert fits_batch_axis([np.zeros((rows, 3))], one_input(shape, 3)) is fits

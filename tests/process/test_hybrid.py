"""Gluon networks answer as they do in 0.4, which never hybridized one; most of them faster."""

# mypy: disallow-subclassing-any=False

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mms.engines.hybrid import start_trial, watch
from mms.engines.imports import import_mxnet

mx = import_mxnet()
nn = mx.gluon.nn
HybridBlock: Any = mx.gluon.HybridBlock

pytestmark = pytest.mark.filterwarnings("ignore")

ZEROS, ONES, ROWS = [[0, 0, 0]], [[1, 1, 1]], [[1, 2, 3]]


def run(net: Any, *values: Any) -> list[Any]:
    """Serve requests: the outputs, beside whether the network is hybridized then."""
    net.initialize(mx.init.Constant(0.5))
    watch(net)
    start_trial(net)
    return [(ask(net, value), net._active) for value in values]


def ask(net: Any, value: Any) -> Any:
    return net(mx.nd.array(value)).asnumpy().tolist()


def dense() -> Any:
    net = nn.HybridSequential()
    net.add(nn.Dense(2, in_units=3))
    return net


def test_a_network_that_computes_the_same_is_hybridized_by_its_first_request() -> None:
    answers = run(dense(), ZEROS, ROWS, [[1, 2, 3], [4, 5, 6]])
    assert answers == [([[0, 0]], True), ([[3, 3]], True), ([[3, 3], [7.5, 7.5]], True)]


class Shape(HybridBlock):
    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return x * x.shape[0]


class Value(HybridBlock):
    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return x * 2 if x.sum().asscalar() > 0 else x * 3


class Kind(HybridBlock):
    """Zeros, as in a warm-up, do not show that its branches differ."""

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.relu(x) if F is mx.nd else F.sigmoid(x) - 0.5


class Random(HybridBlock):
    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return x * 0 + next(_NUMBERS)


class Counting(HybridBlock):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        self.calls += 1
        return x * self.calls


_NUMBERS = itertools.count(1)
_MODES = [1]


@pytest.mark.parametrize(
    ("net", "answers"),
    [
        (Shape(), [[[0, 0, 0]], [[1, 2, 3]], [[2, 2, 2], [2, 2, 2]]]),
        (Value(), [[[0, 0, 0]], [[2, 4, 6]], [[2, 2, 2], [2, 2, 2]]]),
        (Kind(), [[[0, 0, 0]], [[1, 2, 3]], [[1, 1, 1], [1, 1, 1]]]),
        (Counting(), [[[0, 0, 0]], [[2, 4, 6]], [[3, 3, 3], [3, 3, 3]]]),
    ],
)
def test_one_whose_code_looks_at_more_than_numbers_is_not(net: Any, answers: list[Any]) -> None:
    asked = run(net, ZEROS, ROWS, ONES * 2)
    assert [answer for answer, _ in asked] == answers
    assert not net._active


def test_one_that_draws_numbers_is_not_even_tried() -> None:
    assert run(Random(), ZEROS, ZEROS) == [([[1, 1, 1]], False), ([[2, 2, 2]], False)]


class Sampling(HybridBlock):
    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.broadcast_add(x, F.sample_normal(F.zeros((3,)), F.ones((3,))).reshape((1, 3)))


def test_one_that_returns_something_else_each_time_is_not() -> None:
    (first, _), (second, active) = run(Sampling(), ZEROS, ZEROS)
    assert first != second
    assert not active


class Flag(HybridBlock):
    factor = 1

    def __init__(self) -> None:
        super().__init__()
        self.flag, self.modes, self.nested = 1, [1], {"deep": [(1, [1])]}

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        deep = self.nested["deep"][0][1][0]
        return x * self.flag * self.modes[0] * self.factor * _MODES[0] * deep


@pytest.mark.parametrize("where", ["attribute", "list", "class", "nested", "global"])
def test_one_whose_python_state_changes_follows_it(where: str) -> None:
    net = Flag()
    assert run(net, ONES, ROWS) == [([[1, 1, 1]], True), ([[1, 2, 3]], True)]
    match where:
        case "attribute":
            net.flag = 5
        case "list":
            net.modes[0] = 5
        case "nested":
            net.nested["deep"][0][1][0] = 5
        case "class":
            Flag.factor = 5
        case _:
            _MODES[0] = 5
    try:
        assert ask(net, ROWS) == [[5, 10, 15]]
        assert not net._active
    finally:
        Flag.factor, _MODES[0] = 1, 1


class Config:
    scale = 1


class Configured(HybridBlock):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return x * self.config.scale


def test_one_with_state_that_cannot_be_watched_is_not() -> None:
    net = Configured()
    run(net, ROWS)
    net.config.scale = 5
    assert ask(net, ROWS) == [[5, 10, 15]]


def test_a_lambda_follows_what_it_closes_over() -> None:
    scale = 1
    net = nn.HybridSequential()
    net.add(nn.HybridLambda(lambda F, x: x * scale))
    assert run(net, ROWS) == [([[1, 2, 3]], True)]
    scale = 5
    assert ask(net, ROWS) == [[5, 10, 15]]


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_of_its_layers_are_called(when: str) -> None:
    net = dense()
    seen: list[Any] = []

    def hook(_: Any, inputs: Any, __: Any) -> None:
        seen.append(inputs[0].asnumpy().tolist())

    if when == "before":
        net[0].register_forward_hook(hook)
    run(net, ROWS)
    if when == "after":
        net[0].register_forward_hook(hook)
    seen.clear()
    assert ask(net, ONES) == [[1.5, 1.5]]
    assert seen == [ONES]


def test_a_bad_request_fails_and_changes_nothing() -> None:
    net = dense()
    run(net, ROWS)
    with pytest.raises(mx.base.MXNetError):
        ask(net, [[1, 2]])
    assert net._active
    assert ask(net, ROWS) == [[3, 3]]


def test_the_first_failure_of_a_hybridized_one_is_its_last() -> None:
    class Rows(HybridBlock):
        def hybrid_forward(self, F: Any, *inputs: Any) -> Any:
            return sum(inputs[1:], inputs[0])

    net = Rows()
    run(net, ROWS)
    three = [mx.nd.array(ROWS) for _ in range(3)]
    # Recorded with one input, and so unable to take three.
    assert net(*three).asnumpy().tolist() == [[3, 6, 9]]
    assert not net._active


@pytest.mark.parametrize("how", ["hybridize", "run", "child"])
def test_one_that_its_service_hybridizes_or_runs_is_left_alone(how: str) -> None:
    net = dense()
    net.initialize(mx.init.Constant(0.5))
    watch(net)
    if how == "run":
        ask(net, ROWS)
    elif how == "child":
        net[0].hybridize()
    else:
        net.hybridize()
    start_trial(net)
    assert ask(net, ROWS) == [[3, 3]]
    assert net._active == (how == "hybridize")
    assert not {"_mms_trial", "forward", "_call_cached_op"} & set(vars(net))


def test_one_that_its_service_hybridizes_later_is_left_alone() -> None:
    net = dense()
    net.initialize(mx.init.Constant(0.5))
    watch(net)
    start_trial(net)
    with pytest.raises(mx.base.MXNetError):
        ask(net, [[1, 2]])
    net.hybridize()
    assert ask(net, ROWS) == [[3, 3]]
    assert net._active
    assert not {"_mms_trial", "forward", "_call_cached_op"} & set(vars(net))


def test_a_block_is_left_alone() -> None:
    net = nn.Sequential()
    net.add(nn.Dense(2, in_units=3))
    watch(net)
    start_trial(net)
    start_trial(None)
    assert [name for name in vars(net) if name.startswith("_mms")] == []

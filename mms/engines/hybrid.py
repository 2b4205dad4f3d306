"""Hybridize a Gluon network where that changes nothing but its speed.

A hybridized network is recorded as a graph once, and its Python code never runs again. Code that
looks at shapes or values fails then, or keeps the branch that it took first. So a network runs as
it is at first; then once more, and hybridized, on the same inputs. Only if all agree does it stay
hybridized, and only as long as no Python state of its blocks changes and no forward pass fails.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from mms.engines.error_text import reason_line
from mms.engines.imports import import_mxnet
from mms.engines.python_state import PythonState, blocks_of

mx = import_mxnet()
logger = logging.getLogger("mms.engines")

#: Difference of outputs, relative to the largest of them, that fused operators may make.
_TOLERANCE = 1e-4
_HALF_TOLERANCE = 1e-2
#: The attributes of ours on a network: the trial, and the methods that it stands before.
_TRIAL, _FORWARD, _CALL = "_mms_trial", "forward", "_call_cached_op"
_OURS = frozenset((_TRIAL, _FORWARD, _CALL))


def watch(net: Any) -> None:
    """Prepare a trial of a network that its owner is about to finish making.

    It is left alone if it is no HybridBlock, or if its owner hybridizes or runs it before
    `start_trial`.
    """
    if isinstance(net, mx.gluon.HybridBlock) and _TRIAL not in vars(net):
        vars(net)[_TRIAL] = _Trial(net)
        vars(net)[_FORWARD] = types.MethodType(_noted_forward, net)


def start_trial(net: Any) -> None:
    """Have the next forward pass decide whether the network is hybridized from then on."""
    trial = getattr(net, "__dict__", {}).get(_TRIAL)
    if trial is not None:
        trial.start()


class _Trial:
    """What is known of one network: not started, on trial, or hybridized with a guard."""

    def __init__(self, net: Any) -> None:
        self._net = net
        self._was_called = False
        self._has_started = False
        self._state: PythonState | None = None
        self._is_proven = False

    def start(self) -> None:
        """Wait for the next forward pass, unless the owner has run or hybridized the network."""
        if self._was_called or _is_hybridized(self._net):
            self._withdraw()
        self._has_started = True

    def forward(self, inputs: tuple[Any, ...]) -> Any:
        """Run the network as it was made; try it hybridized if this is the first request."""
        if not self._has_started:
            self._was_called = True
            return type(self._net).forward(self._net, *inputs)
        waiting = vars(self._net).pop(_FORWARD)
        if _is_hybridized(self._net):
            self._withdraw()
            return self._net.forward(*inputs)
        state = _state_of(self._net)
        try:
            output = self._net.forward(*inputs)
        except BaseException:
            # A request that it does not take: the next one tells more.
            vars(self._net)[_FORWARD] = waiting
            raise
        if reason := self._reason_against(state, inputs, output):
            self._leave(reason)
        else:
            vars(self._net)[_CALL] = types.MethodType(_guarded_call, self._net)
            self._state = _state_of(self._net)
        return output

    def run(self, inputs: tuple[Any, ...]) -> Any:
        """Run the hybridized network; as it was made, once anything speaks against it."""
        if self._state is None or self._state.has_changed():
            self._leave("its Python state has changed")
            return self._net.forward(*inputs)
        try:
            output = type(self._net)._call_cached_op(self._net, *inputs)
        except Exception as error:  # noqa: BLE001 - user code raises anything
            plain = self._run_plain(inputs)
            # It has not raised, so the inputs are not at fault.
            self._leave(f"{type(error).__name__}: {reason_line(str(error))}")
            return plain
        if not self._is_proven:
            plain = self._run_plain(inputs)
            if not is_alike(plain, output):
                self._leave("it computes something else then")
                return plain
            self._is_proven = _varies(inputs)
        return output

    def _reason_against(self, state: PythonState, inputs: tuple[Any, ...], output: Any) -> str:
        """Run the network again, and hybridized; return the reason to leave it, "" if none."""
        net = self._net
        if state.unwatched:
            return f"its code may depend on {state.unwatched}"
        if state.has_changed():
            return "a forward pass changes its Python state"
        try:
            if not is_alike(net.forward(*inputs), output):
                return "the same inputs do not have the same outputs"
            # Not static_shape: batch sizes vary, and each change would plan memory again.
            net.hybridize(static_alloc=True)
            if not is_alike(net.forward(*inputs), output):
                return "it computes something else then"
        except Exception as error:  # noqa: BLE001 - user code raises anything
            return f"{type(error).__name__}: {reason_line(str(error))}"
        # Inputs that are all the same, such as the zeros of a warm-up, prove little.
        self._is_proven = _varies(inputs)
        return "being recorded changes its Python state" if state.has_changed() else ""

    def _leave(self, reason: str) -> None:
        """Let the network run as it was made from now on."""
        logger.info("%s is not hybridized: %s", type(self._net).__name__, reason)
        self._withdraw()
        self._net.hybridize(False)

    def _withdraw(self) -> None:
        for name in _OURS:
            vars(self._net).pop(name, None)

    def _run_plain(self, inputs: tuple[Any, ...]) -> Any:
        """Run the network as it was made, and keep what was recorded of it."""
        blocks = [block for block in blocks_of(self._net) if getattr(block, "_active", False)]
        for block in blocks:
            block._active = False
        try:
            return self._net.forward(*inputs)
        finally:
            for block in blocks:
                block._active = True


def _noted_forward(net: Any, *inputs: Any) -> Any:
    """Stand before a network's method of the same name until it has been tried."""
    return vars(net)[_TRIAL].forward(inputs)


def _guarded_call(net: Any, *inputs: Any) -> Any:
    """Stand before HybridBlock's method of the same name, on one network."""
    return vars(net)[_TRIAL].run(inputs)


def _state_of(net: Any) -> PythonState:
    return PythonState(net, _OURS)


def _is_hybridized(net: Any) -> bool:
    return any(getattr(block, "_active", False) for block in blocks_of(net))


def is_alike(one: Any, other: Any) -> bool:
    """Return whether two outputs are the same arrays, up to the rounding of fused operators."""
    mine, others = _flat(one), _flat(other)
    return len(mine) == len(others) and all(map(_is_close, mine, others))


def _is_close(one: Any, other: Any) -> bool:
    if not isinstance(one, mx.nd.NDArray) or not isinstance(other, mx.nd.NDArray):
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    a, b = (array.asnumpy().astype(np.float64) for array in (one, other))
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    tolerance = _HALF_TOLERANCE if one.dtype == np.float16 else _TOLERANCE
    return bool(np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [array for part in value for array in _flat(part)]
    return [value]


def _varies(inputs: Sequence[Any]) -> bool:
    arrays = [array.asnumpy() for array in _flat(inputs) if isinstance(array, mx.nd.NDArray)]
    return any(array.size and (array != array.flat[0]).any() for array in arrays)

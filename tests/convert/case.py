"""One network of the list: how it is made, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mms.convert.batches import BATCH_SIZES, variants
from mms.convert.graph import Traced
from mms.convert.trace import trace_block
from mms.engines.imports import import_mxnet

mx = import_mxnet()
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Made:
    """A network with random parameters.

    Attributes:
        traced: It, as the converter sees it.
        run: The network on MXNet, arrays in and out.
        batches: What to ask, in three batch sizes.
    """

    traced: Traced
    run: Callable[[Sequence[Array]], list[Array]]
    batches: list[list[Array]]


@dataclass(frozen=True, slots=True)
class Case:
    """One network.

    Attributes:
        name: Its name in the table.
        make: Makes it.
        cut: Operators of the part that must stay on MXNet.
        is_small: Whether its graph is also broken on purpose, which takes many runs.
    """

    name: str
    make: Callable[[], Made]
    cut: tuple[str, ...] = ()
    is_small: bool = False


def perturb(net: Any, rng: np.random.Generator) -> None:
    """Give a block parameters of which each matters, so that a mistake with any of them shows.

    Normalisations are created as gamma 1, beta 0, mean 0 and variance 1, which hides all mistakes.
    The variances are small so that epsilon counts, and weights before them, too.
    """
    has_norms = any(name.endswith("var") for name in net.collect_params())
    for parameter in net.collect_params().values():
        shape, name = parameter.shape, parameter.name
        if name.endswith("gamma"):
            values = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("var"):
            values = rng.uniform(0.02, 0.2, shape)
        elif name.endswith(("beta", "mean", "bias")):
            values = rng.normal(0, 0.2, shape)
        elif name.endswith("alpha"):
            values = rng.uniform(0.05, 0.6, shape)
        elif name.endswith("weight"):
            fan_in = int(np.prod(shape[1:])) or 1
            values = rng.normal(0, (2 / fan_in) ** 0.5 * (0.3 if has_norms else 1), shape)
        else:
            continue
        # Into memory of its own: oneDNN may have laid out the old one its own way.
        parameter.reset_ctx(mx.cpu())
        parameter.set_data(mx.nd.array(values.astype(np.float32)))


def normalise(net: Any, arrays: Sequence[Array]) -> None:
    """Set the running statistics near what the network sees, so that nothing overflows or vanishes.

    In a deep network that is random all through, either happens, and then mistakes do not show.
    """
    rng = np.random.default_rng(0)

    def fit(block: Any, inputs: Sequence[Any]) -> None:
        values = np.moveaxis(inputs[0].asnumpy(), 1, 0)
        values = values.reshape(len(values), -1)
        mean, variance = values.mean(axis=1), values.var(axis=1)
        block.running_mean.set_data(mx.nd.array(mean + rng.normal(0, 0.1, mean.shape)))
        block.running_var.set_data(mx.nd.array(variance * rng.uniform(0.8, 1.5, mean.shape) + 1e-3))

    handles: list[Any] = []
    net.apply(
        lambda block: (
            handles.append(block.register_forward_pre_hook(fit))
            if isinstance(block, mx.gluon.nn.BatchNorm)
            else None
        )
    )
    net(*map(mx.nd.array, arrays))
    mx.nd.waitall()
    for handle in handles:
        handle.detach()


def block_case(
    net: Any,
    *samples: Array,
    sizes: Sequence[int] = BATCH_SIZES,
    axis: int = 0,
    seed: int = 0,
    is_deep: bool = False,
    quiet: str = "",
) -> Made:
    """Make a case of a Gluon block that is not initialized yet.

    Args:
        net: The block.
        samples: A few rows of each input.
        sizes: Sizes of the batches.
        axis: The batch's axis, of all inputs.
        seed: Of the parameters.
        is_deep: Whether its normalisations need to fit what they see.
        quiet: Pattern of the names of weights that are to be a tenth of the others.
    """
    rng = np.random.default_rng(seed)
    mx.random.seed(seed)
    net.initialize(mx.init.Normal(0.1))
    inputs = [mx.nd.array(sample, dtype=sample.dtype) for sample in samples]
    net(*inputs)
    perturb(net, rng)
    for parameter in net.collect_params(quiet).values() if quiet else ():
        parameter.set_data(parameter.data() / 10)
    if is_deep:
        normalise(net, samples)
    rows = [np.moveaxis(sample, axis, 0) for sample in samples]
    batches = [
        [np.ascontiguousarray(np.moveaxis(array, 0, axis)) for array in batch]
        for batch in variants(rows, sizes)
    ]

    def run(arrays: Sequence[Array]) -> list[Array]:
        return flat(net(*[mx.nd.array(array, dtype=array.dtype) for array in arrays]))

    return Made(trace_block(net, batches), run, batches)


def flat(outputs: Any) -> list[Array]:
    """Return NDArrays in nested lists as a list of arrays."""
    if isinstance(outputs, (list, tuple)):
        return [array for part in outputs for array in flat(part)]
    array: Array = outputs.asnumpy()
    return [array]

"""The list of networks: model zoos, the examples, and one of each kind that conversion gets wrong.

All have random parameters, see `tests.convert.case.perturb`, and small inputs.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mms.convert.batches import BATCH_SIZES, variants
from mms.convert.trace import trace_symbol_model
from mms.engines.imports import import_mxnet
from mms.engines.symbol_model import SymbolModel
from tests.convert.case import Array, Case, Made, block_case, perturb
from tests.convert.examples import EXAMPLES

mx = import_mxnet()
nn, rnn = mx.gluon.nn, mx.gluon.rnn


def pictures(size: int, rows: int = 2, channels: int = 3) -> Array:
    """Return smooth pictures, (rows, channels, size, size) float32 of about -2 to 2."""
    rng = np.random.default_rng(1)
    coarse = rng.normal(0, 1, (rows, channels, size // 4 + 1, size // 4 + 1))
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3)[:, :, :size, :size]
    return np.asarray(fine + rng.normal(0, 0.3, fine.shape), np.float32)


def rows(*shape: int) -> Array:
    """Return normally distributed values."""
    return np.random.default_rng(2).normal(0, 1, shape).astype(np.float32)


def labels(*shape: int, limit: int = 50, dtype: Any = np.float32) -> Array:
    """Return whole numbers below `limit`."""
    return np.asarray(np.random.default_rng(3).integers(0, limit, shape), dtype)


def zoo(name: str, size: int, sizes: Sequence[int] = BATCH_SIZES, **options: Any) -> Case:
    """Return a case of MXNet's model zoo."""

    def make() -> Made:
        net = mx.gluon.model_zoo.vision.get_model(name, classes=10, **options)
        return block_case(net, pictures(size), sizes=sizes, is_deep=True)

    return Case(name, make)


def gluoncv(
    name: str,
    size: int,
    sizes: Sequence[int] = BATCH_SIZES,
    cut: tuple[str, ...] = (),
    quiet: str = "",
    **opts: Any,
) -> Case:
    """Return a case of GluonCV's model zoo."""

    def make() -> Made:
        import gluoncv as cv

        net = cv.model_zoo.get_model(name, pretrained=False, **opts)
        return block_case(net, pictures(size), sizes=sizes, is_deep=True, quiet=quiet)

    return Case(f"gluoncv {name}", make, cut)


def small(name: str, make: Callable[[], Made], cut: tuple[str, ...] = ()) -> Case:
    """Return a case whose graph is also broken on purpose."""
    return Case(name, make, cut, is_small=True)


def layers(*blocks: Any) -> Any:
    """Return blocks as a network."""
    net = nn.HybridSequential()
    net.add(*blocks)
    return net


def symbol_case(symbol: Any, *samples: Array, **shapes: tuple[int, ...]) -> Made:
    """Make a case of a symbol with parameters, loaded from its two files as services do."""
    known = {name: (1, *shape[1:]) for name, shape in shapes.items()}
    with warnings.catch_warnings():
        # For the types of inputs, which the symbol leaves open.
        warnings.simplefilter("ignore", UserWarning)
        inputs = [mx.sym.var(name) for name in (*shapes, *_labels(symbol))]
        net = mx.gluon.SymbolBlock(symbol, inputs)
    arguments, _, states = symbol.infer_shape(**known)
    by_name = dict(zip(symbol.list_arguments(), arguments, strict=True))
    by_name |= dict(zip(symbol.list_auxiliary_states(), states, strict=True))
    for parameter in net.collect_params().values():
        parameter.shape = by_name[parameter.name]
    net.initialize(mx.init.Normal(0.1))
    perturb(net, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder, "net"))
        symbol.save(f"{prefix}-symbol.json")
        auxiliary = set(symbol.list_auxiliary_states())
        mx.nd.save(
            f"{prefix}-0000.params",
            {
                f"{'aux' if p.name in auxiliary else 'arg'}:{p.name}": p.data()
                for p in net.collect_params().values()
            },
        )
        model = SymbolModel(f"{prefix}-symbol.json", f"{prefix}-0000.params", shapes, mx.cpu())
    batches = variants(samples)

    def run(arrays: Sequence[Array]) -> list[Array]:
        return [out.asnumpy() for out in model(*map(mx.nd.array, arrays))]

    return Made(trace_symbol_model(model, batches), run, batches)


def _labels(symbol: Any) -> list[str]:
    return [name for name in symbol.list_arguments() if name.endswith("label")]


class WithStates(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc] # mxnet has no types
    """A recurrent layer of (T, N, C) that takes its states, which returns them, too."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        with self.name_scope():
            self.layer = layer

    def hybrid_forward(self, F: Any, x: Any, *states: Any) -> Any:
        out, states = self.layer(x, list(states))
        return (out, *states)


class Unrolled(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc] # mxnet has no types
    """Cells over fixed steps and a projection to two parameters, as DeepAR does."""

    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.cells = rnn.HybridSequentialRNNCell()
            self.cells.add(rnn.LSTMCell(12))
            self.cells.add(rnn.LSTMCell(12))
            self.mean, self.scale = nn.Dense(1, flatten=False), nn.Dense(1, flatten=False)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        size = F.mean(F.abs(x), axis=1, keepdims=True) + 1e-3
        begin = self.cells.begin_state(
            func=lambda **_: F.tile(F.sum(F.zeros_like(x), axis=(1, 2)).expand_dims(1), (1, 12))
        )
        out, _ = self.cells.unroll(
            6, F.broadcast_div(x, size), begin_state=begin, layout="NTC", merge_outputs=True
        )
        spread = F.Activation(self.scale(out), act_type="softrelu")
        return F.broadcast_mul(self.mean(out), size), F.broadcast_mul(spread, size)


class Heads(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc] # mxnet has no types
    """Two inputs and three outputs, one of which feeds another."""

    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.table, self.body = nn.Embedding(50, 8), nn.Dense(8, activation="tanh")
            self.one, self.two = nn.Dense(4), nn.Dense(4)

    def hybrid_forward(self, F: Any, ids: Any, x: Any) -> Any:
        joined = F.concat(F.mean(self.table(ids), axis=1), self.body(x), dim=1)
        first = self.one(joined)
        return first, self.two(F.relu(first)), F.softmax(first)


def embedder() -> Any:
    """Return the symbol of an ArcFace-like embedder in small, in the words of its own script."""
    var = mx.sym.Variable
    x = (mx.sym.identity(var("data")) - 127.5) * 0.0078125
    for index, (filters, stride) in enumerate(((8, 1), (12, 2), (16, 2))):
        name = f"stage{index}"
        x = mx.sym.Convolution(
            x, kernel=(3, 3), stride=(stride, stride), pad=(1, 1), num_filter=filters, no_bias=True,
            name=f"{name}_conv",
        )  # fmt: skip
        x = mx.sym.BatchNorm(x, fix_gamma=False, eps=2e-5, momentum=0.9, name=f"{name}_bn")
        slope = var(f"{name}_relu_gamma", attr={"__init__": '["Constant", {"value": 0.25}]'})
        x = mx.sym.LeakyReLU(x, gamma=slope, act_type="prelu", name=f"{name}_relu")
    x = mx.sym.BatchNorm(x, fix_gamma=False, eps=2e-5, name="bn1")
    x = mx.sym.Dropout(x, p=0.4)
    x = mx.sym.FullyConnected(x, num_hidden=16, name="pre_fc1")
    # The gamma that it stores is not the one that it computes with.
    return mx.sym.BatchNorm(x, fix_gamma=True, eps=2e-5, name="fc1")


def module_symbol(kind: str) -> Any:
    """Return a symbol as scripts for Module wrote it, with a training output."""
    x = mx.sym.Variable("data")
    x = mx.sym.Convolution(x, kernel=(3, 3), pad=(1, 1), num_filter=8, name="conv")
    x = mx.sym.Activation(mx.sym.BatchNorm(x, name="bn"), act_type="relu")
    x = mx.sym.LRN(x, nsize=5, alpha=0.5)
    x = mx.sym.Pooling(x, kernel=(3, 3), stride=(2, 2), pool_type="max")
    x = mx.sym.FullyConnected(x, num_hidden=6, name="fc")
    return getattr(mx.sym, kind)(x, name="out")


def recurrent(kind: str, count: int, both: bool, has_states: bool) -> Made:
    """Return an RNN; with its states, in the layout (T, N, C)."""
    layer = getattr(rnn, kind)
    options = {"bidirectional": both, "input_size": 6}
    if not has_states:
        return block_case(layer(10, count, layout="NTC", **options), rows(2, 7, 6))
    states = [rows(count * (2 if both else 1), 2, 10) for _ in range(2 if kind == "LSTM" else 1)]
    return block_case(WithStates(layer(10, count, **options)), rows(7, 2, 6), *states, axis=1)


def convolutions(**pool: Any) -> Any:
    """Return a small classifier of pictures with most of a zoo's operators."""
    return layers(
        nn.Conv2D(8, 3, strides=2, padding=1),
        nn.BatchNorm(),
        nn.Activation("relu"),
        nn.AvgPool2D(3, 2, 1, **pool),
        nn.Conv2D(12, 3, padding=1, groups=2, use_bias=False),
        nn.BatchNorm(scale=False, epsilon=1e-3),
        nn.LeakyReLU(0.1),
        nn.MaxPool2D(2, 2),
        nn.Flatten(),
        nn.Dense(10),
    )


ZOO = (
    zoo("resnet18_v1", 64),
    zoo("resnet18_v2", 64),
    zoo("mobilenet0.25", 64),
    zoo("mobilenetv2_0.25", 64),
    zoo("squeezenet1.1", 224, (1, 2, 3)),
    zoo("densenet121", 224, (1, 2, 3)),
    zoo("alexnet", 96),
    zoo("vgg11", 32),
    zoo("inceptionv3", 299, (1, 2, 3)),
)
GLUONCV = (
    gluoncv("resnet50_v1d", 64, classes=10),
    gluoncv("cifar_resnet20_v1", 32),
    gluoncv("mobilenetv3_small", 64, classes=10),
    gluoncv("simple_pose_resnet18_v1b", 64, pretrained_base=False),
    gluoncv("fcn_resnet50_voc", 64, (1, 2, 3), pretrained_base=False),
    gluoncv(
        "ssd_512_mobilenet1.0_voc", 256, (1, 2, 3), ("_contrib_box_nms",), pretrained_base=False
    ),
    gluoncv(
        "yolo3_mobilenet0.25_voc", 128, (1, 2, 3), ("_contrib_box_nms",),
        # Else most of its scores are 1, and chance decides which hundred boxes are kept.
        quiet=".*yolooutput.*_weight", pretrained_base=False,
    ),
    gluoncv("center_net_resnet18_v1b_voc", 128, (1, 2, 3), pretrained_base=False, cut=("topk",)),
)  # fmt: skip
SMALL = (
    small("convolutions", lambda: block_case(convolutions(), pictures(24))),
    small(
        "pools, pad not counted",
        lambda: block_case(convolutions(count_include_pad=False), pictures(24)),
    ),
    small(
        "pools, full convention", lambda: block_case(convolutions(ceil_mode=True), pictures(25))
    ),
    small(
        "PReLU per channel",
        lambda: block_case(
            layers(nn.Conv2D(6, 3), nn.PReLU(in_channels=6), nn.Flatten(), nn.Dense(5)),
            pictures(12),
        ),
    ),
    small(
        "Conv1D",
        lambda: block_case(
            layers(nn.Conv1D(8, 3, activation="relu"), nn.MaxPool1D(2, 2), nn.Conv1D(6, 3),
                   nn.Flatten(), nn.Dense(4)),
            rows(2, 5, 30),
        ),
    ),
    small(
        "Conv2DTranspose, InstanceNorm, LayerNorm",
        lambda: block_case(
            layers(nn.Conv2DTranspose(6, 4, strides=2, padding=1), nn.InstanceNorm(),
                   nn.Activation("sigmoid"), nn.LayerNorm(), nn.Conv2D(3, 1)),
            pictures(8) / 10,
        ),
    ),
    small(
        "GroupNorm",
        lambda: block_case(
            layers(nn.Conv2D(8, 3), nn.GroupNorm(4), nn.Activation("relu"), nn.Conv2D(4, 3)),
            pictures(10),
        ),
    ),
    small("two inputs, three outputs", lambda: block_case(Heads(), labels(2, 6), rows(2, 5))),
    small(
        "int32 labels",
        lambda: block_case(
            layers(nn.Embedding(400, 8), nn.Flatten(), nn.Dense(5)),
            labels(2, 6, limit=400, dtype=np.int32),
        ),
    ),
    small("DeepAR-like", lambda: block_case(Unrolled(), rows(2, 6, 3))),
    small(
        "ArcFace-like",
        lambda: symbol_case(embedder(), pictures(16) * 60 + 120, data=(0, 3, 16, 16)),
    ),
    *(
        small(
            f"Module, {kind}",
            lambda kind=kind: symbol_case(  # type: ignore[misc] # a default binds early
                module_symbol(kind), pictures(12), data=(0, 3, 12, 12)
            ),
        )
        for kind in ("SoftmaxOutput", "LinearRegressionOutput", "LogisticRegressionOutput")
    ),
    *(
        small(
            f"{kind}, {count} layers{', both ways' * both}{', states' * has_states}",
            lambda k=kind, c=count, b=both, s=has_states: recurrent(k, c, b, s),  # type: ignore[misc]
        )
        for kind, count, both, has_states in (
            ("LSTM", 1, False, False),
            ("LSTM", 1, False, True),
            ("LSTM", 2, False, False),
            ("LSTM", 3, False, True),
            ("LSTM", 1, True, True),
            ("LSTM", 2, True, False),
            ("GRU", 1, False, True),
            ("GRU", 2, False, False),
            ("GRU", 1, True, False),
            ("RNN", 1, False, True),
            ("RNN", 3, False, False),
        )
    ),
)  # fmt: skip
NETWORKS = {case.name: case for case in (*SMALL, *EXAMPLES, *ZOO, *GLUONCV)}

"""Break the graph of every small network on purpose: ``python -m tests.convert.broken OUTPUT``.

Writes what became of each broken graph as JSON to OUTPUT.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx

from mms.archive.candidates import EngineName
from mms.convert.agreement import compare, reason_against, task_of
from mms.convert.convert import Converted, convert
from mms.errors import ConversionFailed
from tests.convert.case import Array, Case, Made
from tests.convert.engines import open_network
from tests.convert.mutants import MUTATIONS, Model
from tests.convert.networks import NETWORKS

#: One engine is enough: the graph is wrong, not what runs it.
ENGINE: EngineName = "onnxruntime"


class Broken(msgspec.Struct):
    """One broken graph.

    Attributes:
        network: The network.
        mutation: How it was broken; "" for the graph as it was converted.
        place: The node.
        reason: Why it is refused; "" if it passes.
        max_error: Largest error, if it ran.
        is_same: Whether it answers as the whole graph does, to the last bit: what was changed does
            not matter to this network. Rounding a size up that is even is no mistake.
    """

    network: str
    mutation: str
    place: str
    reason: str
    max_error: float = 0.0
    is_same: bool = False


def break_all(case: Case) -> Iterator[Broken]:
    """Break one network in each way that it can be, beginning with the whole one."""
    made = case.make()
    expected = [made.run(batch) for batch in made.batches]
    with tempfile.TemporaryDirectory() as folder:
        try:
            converted = convert(made.traced, Path(folder), "net")
        except ConversionFailed as error:
            yield Broken(case.name, "", "", str(error))
            return
        proto = onnx.load(converted.model)
        judge = _Judge(made, converted, expected)
        whole = Broken(case.name, "", "", "")
        judge.judge(whole, proto)
        yield whole
        for mutation in MUTATIONS if not whole.reason else ():
            name = mutation.__name__
            model = Model(proto)
            rng = np.random.default_rng(zlib.crc32(f"{case.name} {name}".encode()))
            if (place := mutation(model, rng)) is not None:
                broken = Broken(case.name, name, place, "")
                judge.judge(broken, model.proto)
                yield broken


class _Judge:
    """Runs graphs of one network and compares them with MXNet."""

    def __init__(self, made: Made, converted: Converted, expected: list[list[Array]]) -> None:
        self._made, self._converted, self._expected = made, converted, expected
        self._whole: list[list[Array]] = []

    def judge(self, broken: Broken, proto: onnx.ModelProto) -> None:
        """Run a graph, the whole one first of all, and write down what is found."""
        try:
            network = open_network(ENGINE, self._converted, proto.SerializeToString())
            got = [network.run(batch) for batch in self._made.batches]
            agreement = compare(self._expected, got, task_of(self._expected[0]), "f32")
        except Exception as error:  # noqa: BLE001 - a graph that does not run is refused, too
            broken.reason = f"{type(error).__name__}: {error}"[:200]
            return
        self._whole = self._whole or got
        broken.reason = reason_against(agreement, "f32", 1.0)
        broken.max_error = agreement.max_error
        broken.is_same = all(
            np.array_equal(one, other)
            for batch, others in zip(self._whole, got, strict=True)
            for one, other in zip(batch, others, strict=True)
        )


def main(output: str, *names: str) -> None:
    """Break the networks of these names, or all small ones."""
    warnings.simplefilter("ignore")
    chosen = names or [name for name, case in NETWORKS.items() if case.is_small]
    broken = [row for name in chosen for row in break_all(NETWORKS[name])]
    Path(output).write_text(json.dumps(msgspec.to_builtins(broken)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Graphs of one-dimensional convolutions become graphs of images, and nothing else changes."""

from __future__ import annotations

from typing import Any

from mms.engines.widen import for_inference, widen


def graph(*nodes: tuple[str, str, list[int], dict[str, str]], head: int | None = None) -> Any:
    """Build a symbol's document from (op, name, numbers of inputs, attributes)."""
    return {
        "nodes": [
            {"op": op, "name": name, "attrs": attrs, "inputs": [[i, 0, 0] for i in inputs]}
            for op, name, inputs, attrs in nodes
        ],
        "arg_nodes": [i for i, node in enumerate(nodes) if node[0] == "null"],
        "node_row_ptr": list(range(len(nodes) + 1)),
        "heads": [[len(nodes) - 1 if head is None else head, 0, 0]],
        "attrs": {"mxnet_version": ["int", 10901]},
    }


CONV = {"kernel": "(3,)", "stride": "(2,)", "pad": "(1,)", "dilate": "()", "layout": "NCW"}


def ops(document: Any) -> list[str]:
    return [node["op"] for node in document["nodes"] if node["op"] != "null"]


def test_a_graph_without_one_dimensional_operators_is_left_alone() -> None:
    document = graph(
        ("null", "data", [], {}),
        ("null", "w", [], {}),
        ("Convolution", "c", [0, 1], {"kernel": "(3, 3)"}),
    )
    assert widen(document) == (document, [])


def test_a_convolution_gets_an_axis_before_it_and_loses_it_after_it() -> None:
    document, weights = widen(
        graph(
            ("null", "data", [], {}),
            ("null", "w", [], {"__shape__": "(4, 3, 3)", "__dtype__": "0"}),
            ("Convolution", "c", [0, 1], dict(CONV)),
        )
    )
    assert weights == ["w"]
    assert ops(document) == ["expand_dims", "Convolution", "squeeze"]
    names = {node["name"]: node for node in document["nodes"]}
    assert names["w"]["attrs"] == {"__dtype__": "0"}
    assert names["c"]["attrs"] == {
        "kernel": "(1, 3)",
        "stride": "(1, 2)",
        "pad": "(0, 1)",
        "dilate": "()",
        "layout": "NCHW",
    }
    assert document["nodes"][document["heads"][0][0]]["op"] == "squeeze"
    assert [document["nodes"][i]["name"] for i in document["arg_nodes"]] == ["data", "w"]


def test_a_stretch_of_images_stays_one_until_something_flattens_it() -> None:
    document, _ = widen(
        graph(
            ("null", "data", [], {}),
            ("null", "w", [], {}),
            ("Convolution", "c", [0, 1], dict(CONV)),
            ("Activation", "a", [2], {"act_type": "relu"}),
            ("Pooling", "p", [3], {"kernel": "(2,)", "pool_type": "max"}),
            ("Dropout", "d", [4], {}),
            ("Flatten", "f", [5], {}),
        )
    )
    assert ops(document) == [
        "expand_dims", "Convolution", "Activation", "Pooling", "Dropout", "Flatten"
    ]  # fmt: skip


def test_an_operator_that_cannot_take_images_gets_what_it_got_before() -> None:
    document, _ = widen(
        graph(
            ("null", "data", [], {}),
            ("null", "w", [], {}),
            ("Convolution", "c", [0, 1], dict(CONV)),
            ("transpose", "t", [2], {"axes": "(0, 2, 1)"}),
            ("elemwise_add", "s", [2, 2], {}),
            ("mean", "m", [4], {"axis": "2"}),
            ("elemwise_add", "sum", [2, 0], {}),
        )
    )
    nodes = {node["name"]: node for node in document["nodes"]}
    by_number = document["nodes"]

    def input_ops(name: str) -> list[str]:
        return [by_number[entry[0]]["op"] for entry in nodes[name]["inputs"]]

    assert input_ops("t") == ["squeeze"]
    assert input_ops("s") == ["Convolution", "Convolution"]
    assert input_ops("m") == ["squeeze"]
    assert input_ops("sum") == ["Convolution", "expand_dims"]
    # What two operators need in the other form is made once.
    assert ops(document).count("expand_dims") == 1


def test_outputs_for_training_become_what_they_answer() -> None:
    document = for_inference(
        graph(
            ("null", "data", [], {}),
            ("null", "softmax_label", [], {}),
            ("SoftmaxOutput", "softmax", [0, 1], {"grad_scale": "2"}),
            ("LinearRegressionOutput", "line", [2, 1], {}),
            ("LogisticRegressionOutput", "curve", [3, 1], {}),
        )
    )
    assert ops(document) == ["softmax", "_copy", "sigmoid"]
    assert [len(node["inputs"]) for node in document["nodes"]] == [0, 0, 1, 1, 1]
    assert document["nodes"][2]["attrs"] == {"axis": "1"}

"""Train a network on handwritten digits and write it as two ONNX models, ready to export.

``digits`` takes the 64 numbers of an 8 x 8 picture and is what skl2onnx makes of a scikit-learn
classifier. ``digits_image`` is the same network as a graph of our own that takes pictures.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

SIDE = 8
#: Pixels of the data set go from 0 to 16; those of an image service from 0 to 1.
DEEPEST = 16
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Any onnxruntime that the server allows reads these.
OPSET = 17
IR_VERSION = 8


def write_tensor_model(folder: Path, model: MLPClassifier, example: NDArray[np.float32]) -> None:
    """Write the classifier as skl2onnx converts it.

    Args:
        folder: Where to.
        model: The classifier.
        example: Pixels from 0 to 1 of shape (1, 64), for the input's type and as sample request.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Without zipmap, probabilities are an array; with it, a map from class to probability.
    converted = to_onnx(model, example, options={"zipmap": False}, target_opset=OPSET)
    onnx.save(converted, folder / "digits.onnx")
    (folder / "sample.json").write_text(json.dumps(example.tolist()))


def write_image_model(folder: Path, model: MLPClassifier, example: NDArray[np.float32]) -> None:
    """Write the same network as a graph from images, (N, 1, 8, 8), to probabilities, (N, 10).

    Args:
        folder: Where to.
        model: The classifier, with one hidden layer.
        example: Pixels from 0 to 1 of shape (1, 64), for the sample request.
    """
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Flatten", ["image"], ["pixels"]),
        helper.make_node("Gemm", ["pixels", "w0", "b0"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w1", "b1"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ]
    weights = [
        numpy_helper.from_array(values.astype(np.float32), f"{name}{layer}")
        for name, layers in (("w", model.coefs_), ("b", model.intercepts_))
        for layer, values in enumerate(layers)
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(LABELS)])],
        weights,
    )
    opset = helper.make_opsetid("", OPSET)
    onnx.save(
        helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION),
        folder / "digits_image.onnx",
    )
    (folder / "synset.txt").write_text("\n".join(LABELS) + "\n")
    picture = (example.reshape(SIDE, SIDE) * 255).round().astype(np.uint8)
    Image.fromarray(picture).save(folder / "sample.png")


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default="build/onnx")
def main(output: Path) -> None:
    """Train, say how well it does on digits it has not seen, and write both models."""
    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels / DEEPEST).astype(np.float32)
    training, unseen, training_digits, unseen_digits = train_test_split(
        pixels, digits, test_size=0.25, stratify=digits, random_state=0
    )
    model = MLPClassifier(hidden_layer_sizes=(64,), max_iter=1000, random_state=0)
    model.fit(training, training_digits)
    print(f"accuracy on {len(unseen)} unseen digits: {model.score(unseen, unseen_digits):.3f}")
    # As sample request the one it is surest of.
    surest = int(model.predict_proba(unseen).max(axis=1).argmax())
    example = unseen[surest : surest + 1]
    write_tensor_model(output / "digits", model, example)
    write_image_model(output / "digits_image", model, example)
    print(f"wrote {output}/digits and {output}/digits_image")
    print(f"the sample request is a {unseen_digits[surest]}")


if __name__ == "__main__":
    main()

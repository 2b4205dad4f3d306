"""Make models as their own libraries write them, and what the bare engine answers.

Run as a program, with a folder to write to: MXNet and its libraries stay out of the tests' process.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from mms.engines.imports import import_mxnet

mx = import_mxnet()


def picture(height: int, width: int, seed: int = 3) -> Any:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def save_png(path: Path, pixels: Any) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


def parameters(symbol: Any, seed: int, **shapes: tuple[int, ...]) -> dict[str, Any]:
    """Return values for all parameters of a symbol, as save_checkpoint names them."""
    random = np.random.RandomState(seed)
    arguments, _, states = symbol.infer_shape(**shapes)
    values = {}
    for kind, names, sizes in (
        ("arg", symbol.list_arguments(), arguments),
        ("aux", symbol.list_auxiliary_states(), states),
    ):
        for name, size in zip(names, sizes, strict=True):
            if name not in shapes and not name.endswith("label"):
                low = 0.5 if kind == "aux" or name.endswith("gamma") else -0.2
                values[f"{kind}:{name}"] = mx.nd.array(random.uniform(low, low + 0.5, size))
    return values


def forward(symbol: Any, values: dict[str, Any], **inputs: Any) -> list[Any]:
    """Return what the bare engine answers."""
    arrays = {name: mx.nd.array(value) for name, value in inputs.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executor = symbol.simple_bind(mx.cpu(), grad_req="null", **shapes)
    bare = {name.split(":")[1]: value for name, value in values.items()}
    executor.copy_params_from(
        {k: v for k, v in bare.items() if k in executor.arg_dict},
        {k: v for k, v in bare.items() if k in executor.aux_dict},
    )
    return [out.asnumpy() for out in executor.forward(is_train=False, **arrays)]


def save(folder: Path, prefix: str, symbol: Any, values: dict[str, Any], epoch: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    symbol.save(str(folder / f"{prefix}-symbol.json"))
    mx.nd.save(str(folder / f"{prefix}-{epoch:04d}.params"), values)


def checkpoint(root: Path) -> None:
    """Two epochs of a Module's checkpoint with a training output."""
    data = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=4, name="fc1")
    data = mx.sym.FullyConnected(mx.sym.Activation(data, act_type="relu"), num_hidden=2, name="fc2")
    symbol = mx.sym.SoftmaxOutput(data, name="softmax")
    x = np.array([[1, 2, 3], [0.5, -1, 4]], dtype=np.float32)
    for epoch in (1, 12):
        values = parameters(symbol, epoch, data=(2, 3))
        save(root / "checkpoint", "net", symbol, values, epoch)
        np.save(root / f"checkpoint-{epoch}.npy", forward(symbol, values, data=x)[0])


def classification(root: Path) -> None:
    """What SageMaker's image classification writes: a training symbol, and its shapes."""
    data = mx.sym.BatchNorm(mx.sym.var("data"), fix_gamma=True, eps=2e-5, name="bn_data")
    data = mx.sym.Convolution(data, num_filter=4, kernel=(3, 3), stride=(2, 2), name="conv0")
    data = mx.sym.Pooling(data, global_pool=True, kernel=(7, 7), pool_type="avg", name="pool1")
    data = mx.sym.FullyConnected(mx.sym.Flatten(data), num_hidden=5, name="fc1")
    symbol = mx.sym.SoftmaxOutput(data, name="softmax")
    values = parameters(symbol, 5, data=(1, 3, 24, 32))
    folder = root / "classification"
    save(folder, "model_algo_1", symbol, values, 3)
    shapes = [
        {"shape": [32, 3, 24, 32], "name": "data"},
        {"shape": [32], "name": "softmax_label"},
    ]
    (folder / "model-shapes.json").write_text(json.dumps(shapes))
    pixels = picture(24, 32)
    save_png(root / "classification.png", pixels)
    x = pixels.astype(np.float32).transpose(2, 0, 1)[np.newaxis]
    np.save(root / "classification.npy", forward(symbol, values, data=x)[0])


def detection(root: Path) -> None:
    """An SSD as example/ssd of MXNet trains it, and what its deployed form finds."""
    data, label = mx.sym.var("data"), mx.sym.var("label")
    body = mx.sym.Convolution(data, num_filter=6, kernel=(3, 3), stride=(8, 8), name="conv0")
    body = mx.sym.Activation(body, act_type="relu")
    anchors = mx.sym.contrib.MultiBoxPrior(body, sizes=(0.3, 0.6), ratios=(1,), name="anchors")
    boxes = mx.sym.Convolution(body, num_filter=8, kernel=(1, 1), name="loc")
    boxes = mx.sym.Flatten(mx.sym.transpose(boxes, axes=(0, 2, 3, 1)))
    classes = mx.sym.Convolution(body, num_filter=6, kernel=(1, 1), name="cls")
    classes = mx.sym.transpose(classes, axes=(0, 2, 3, 1))
    classes = mx.sym.transpose(mx.sym.reshape(classes, (0, -1, 3)), axes=(0, 2, 1), name="scores")
    target = mx.sym.contrib.MultiBoxTarget(anchors, label, classes, name="multibox_target")
    probability = mx.sym.SoftmaxOutput(
        classes, target[2], use_ignore=True, ignore_label=-1, multi_output=True, name="cls_prob"
    )
    loss = mx.sym.MakeLoss(mx.sym.smooth_l1(target[1] * (boxes - target[0])), name="loc_loss")
    settings = {"nms_threshold": 0.5, "variances": (0.1, 0.1, 0.2, 0.2), "nms_topk": 400}
    found = mx.sym.contrib.MultiBoxDetection(
        probability, boxes, anchors, name="detection", **settings
    )
    symbol = mx.sym.Group(
        [
            probability,
            loss,
            mx.sym.MakeLoss(target[2], name="cls_label"),
            mx.sym.MakeLoss(found, grad_scale=0, name="det_out"),
        ]
    )
    deployed = mx.sym.contrib.MultiBoxDetection(
        mx.sym.SoftmaxActivation(classes, mode="channel"), boxes, anchors, **settings
    )
    values = parameters(deployed, 7, data=(1, 3, 32, 32))
    save(root / "detection", "model_algo_1", symbol, values)
    (root / "detection" / "hyperparams.json").write_text(json.dumps({"image_shape": "32"}))
    # The same without its detection, as old versions trained it.
    targets = mx.sym.Group([probability, loss])
    save(root / "targets", "model_algo_1", targets, values)
    shapes = [{"shape": [32, 3, 32, 32], "name": "data"}]
    (root / "targets" / "model-shapes.json").write_text(json.dumps(shapes))
    pixels = picture(32, 32)
    save_png(root / "detection.png", pixels)
    x = pixels.astype(np.float32) - np.array([123, 117, 104], dtype=np.float32)
    rows = forward(deployed, values, data=x.transpose(2, 0, 1)[np.newaxis])[0][0]
    np.save(root / "detection.npy", rows[rows[:, 0] >= 0])


def face(root: Path) -> None:
    """A network built like those of InsightFace: it normalises colours, and its output is fc1."""
    data = (mx.sym.var("data") - 127.5) * 0.0078125
    data = mx.sym.Convolution(data, num_filter=4, kernel=(3, 3), stride=(16, 16), pad=(1, 1))
    data = mx.sym.BatchNorm(data, fix_gamma=False, name="bn1")
    data = mx.sym.FullyConnected(data, num_hidden=8, name="pre_fc1")
    symbol = mx.sym.BatchNorm(data, fix_gamma=True, name="fc1")
    values = parameters(symbol, 9, data=(1, 3, 112, 112))
    save(root / "face", "model", symbol, values)
    pixels = picture(112, 112)
    save_png(root / "face.png", pixels)
    x = pixels.astype(np.float32).transpose(2, 0, 1)[np.newaxis]
    np.save(root / "face.npy", forward(symbol, values, data=x)[0])


def gluon_folder(root: Path) -> None:
    """A Gluon network with its service: what the exporter takes."""
    net = mx.gluon.nn.Dense(2, in_units=3)
    net.initialize(mx.init.Constant(0.5))
    (root / "gluon").mkdir()
    net.save_parameters(str(root / "gluon" / "dense-0000.params"))


def zoo(root: Path) -> None:
    """Networks of GluonCV, with and without their preprocessing, as its helper exports them."""
    import gluoncv
    from gluoncv.data.transforms.presets import imagenet

    mx.random.seed(1)
    net = gluoncv.model_zoo.get_model("mobilenet0.25", pretrained=False, classes=7)
    net.initialize(mx.init.Xavier(magnitude=3))
    pixels = picture(240, 300)
    save_png(root / "zoo.png", pixels)
    x = imagenet.transform_eval(mx.nd.array(pixels, dtype="uint8"))
    for name, options in (("zoo", {}), ("zoo-raw", {"preprocess": None, "layout": "CHW"})):
        (root / name).mkdir()
        gluoncv.utils.export_block(str(root / name / "m"), net, **options)
    np.save(root / "zoo.npy", net(x).softmax().asnumpy())

    net = gluoncv.model_zoo.get_model(
        "ssd_512_mobilenet1.0_custom", classes=["a", "b"], pretrained_base=False
    )
    net.initialize(mx.init.Normal(0.02))
    pixels = picture(512, 512)
    save_png(root / "zoo-ssd.png", pixels)
    x = mx.nd.image.normalize(
        mx.nd.image.to_tensor(mx.nd.array(pixels, dtype="uint8")),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ).expand_dims(0)
    net(x)
    # Nothing has been learned, so that the features of deep layers are huge; boxes then are, too.
    for feature, *predictors in zip(
        net.features(x), net.class_predictors, net.box_predictors, strict=True
    ):
        largest = max(float(feature.abs().max().asscalar()), 1e-6)
        for block in predictors:
            for parameter in block.collect_params(".*weight").values():
                parameter.set_data(parameter.data() / largest)
    ids, scores, boxes = (out.asnumpy()[0] for out in net(x))
    (root / "zoo-ssd").mkdir()
    gluoncv.utils.export_block(str(root / "zoo-ssd" / "d"), net, data_shape=(512, 512, 3))
    rows = np.concatenate([ids, scores, boxes / 512], axis=1)
    np.save(root / "zoo-ssd.npy", rows[rows[:, 0] >= 0])


def segmentation(root: Path) -> None:
    """What SageMaker's semantic segmentation writes."""
    import gluoncv

    mx.random.seed(1)
    net = gluoncv.model_zoo.FCN(
        3, backbone="resnet50", aux=True, pretrained_base=False, crop_size=64
    )
    net.initialize()
    pixels = picture(40, 72)
    save_png(root / "segmentation.png", pixels)
    x = gluoncv.data.transforms.presets.segmentation.test_transform(mx.nd.array(pixels), mx.cpu())
    scores = net.predict(x)
    np.save(root / "segmentation.npy", mx.nd.argmax(scores, axis=1)[0].asnumpy())
    folder = root / "segmentation"
    folder.mkdir()
    net.save_parameters(str(folder / "model_algo-1"))
    values = {"algorithm": "fcn", "backbone": "resnet-50", "num_classes": "3", "crop_size": "64"}
    (folder / "hyperparams.json").write_text(json.dumps(values))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for make in (
        *(checkpoint, classification, detection, face),
        *(gluon_folder, zoo, segmentation),
    ):
        make(target)

"""Declared pictures beside what MXNet and its transforms make of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mms.archive.pictures import ImageLayout, Preprocess
from mms.engines.imports import import_mxnet
from mms.engines.pictures import picture_array

mx = import_mxnet()

# MXNet imports names of SciPy that have moved.
pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")

FREE = ImageLayout(False, 3, 0, 0)


def picture(pixels: Any) -> bytes:
    output = io.BytesIO()
    Image.fromarray(pixels).save(output, "PNG")
    return output.getvalue()


def test_opencv_s_filter_is_that_of_mxnet_to_the_last_bit() -> None:
    random = np.random.default_rng(3)
    for turn in range(200):
        height, width, *size = (int(side) for side in random.integers(1, 90, 4))
        if turn % 8 < 3:
            # Exact factors of 1, 2 and 3: OpenCV treats one of them in another way.
            height, width = ((turn % 8 + 1) * side for side in size)
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        how = Preprocess(resize=(size[0], size[1]), interpolation="opencv-bilinear")
        expected = mx.image.imresize(mx.nd.array(pixels, dtype="uint8"), size[1], size[0], 1)
        array = picture_array(picture(pixels), how, FREE, np.uint8)
        assert np.array_equal(array[0], expected.asnumpy()), (height, width, size)


@pytest.mark.parametrize(("height", "width"), [(300, 451), (451, 300), (512, 512), (97, 40)])
def test_a_declaration_gives_the_numbers_of_the_transforms_that_networks_are_trained_with(
    height: int, width: int
) -> None:
    transforms = mx.gluon.data.vision.transforms
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    # GluonCV's preset for ImageNet.
    steps = transforms.Compose(
        [
            transforms.Resize(256, keep_ratio=True),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    pixels = np.random.default_rng(4).integers(0, 256, (height, width, 3), np.uint8)
    expected = steps(mx.nd.array(pixels, dtype="uint8")).asnumpy()
    how = Preprocess(256, (224, 224), "RGB", 1 / 255, mean, std, "", "opencv-bilinear")
    array = picture_array(picture(pixels), how, ImageLayout(True, 3, 224, 224))
    assert np.abs(array[0] - expected).max() < 1e-5

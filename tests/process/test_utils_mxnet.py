"""The helpers of mms.utils.mxnet: signatures, values and edges as MMS 0.4 has them."""

from __future__ import annotations

import base64
import inspect
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mms.engines.imports import import_mxnet
from mms.errors import MMSError

mx = import_mxnet()

from mms.utils.mxnet import image, ndarray, nlp  # noqa: E402

#: Of MXNet itself, when it makes arrays.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

#: All public functions of 0.4's package: their parameters, and the defaults of those that have one.
SIGNATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "image.color_normalize": ("src mean std", {"std": None}),
    "image.fixed_crop": ("src x0 y0 w h size interp", {"size": None, "interp": 2}),
    "image.read": ("buf flag to_rgb out", {"flag": 1, "to_rgb": True, "out": None}),
    "image.resize": ("src new_width new_height interp", {"interp": 2}),
    "image.transform_shape": ("img_arr dim_order", {"dim_order": "NCHW"}),
    "image.write": (
        "img_arr flag format dim_order",
        {"flag": 1, "format": "jpeg", "dim_order": "CHW"},
    ),
    "ndarray.top_probability": ("data labels top", {"top": 5}),
    "nlp.encode_sentences": (
        "sentences vocab invalid_label invalid_key start_label",
        {"vocab": None, "invalid_label": -1, "invalid_key": "\n", "start_label": 0},
    ),
    "nlp.pad_sentence": (
        "sentence buckets invalid_label data_name layout",
        {"invalid_label": -1, "data_name": "data", "layout": "NT"},
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_function_is_called_as_in_0_4(name: str) -> None:
    module, _, function = name.partition(".")
    called = getattr({"image": image, "ndarray": ndarray, "nlp": nlp}[module], function)
    parameters = inspect.signature(called).parameters.values()
    names, defaults = SIGNATURES[name]
    assert [parameter.name for parameter in parameters] == names.split()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == defaults


class TestTopProbability:
    @pytest.mark.parametrize(
        ("row", "labels", "top", "best"),
        [
            ([0.1, 0.3, 0.3, 0.2, 0.3], "abcde", 4, "bced"),
            ([0.5] * 3, "abc", 5, "abc"),
            ([0.9, 0.8, 0.1, 0.1], "ab", 2, "ab"),
            ([0.1, 0.2], "abc", 0, ""),
            ([0.1, 0.2, 0.3], "abc", -1, "cb"),
            ([0.1, 0.2, 0.3], {0: "x", 1: "y", 2: "z"}, 2, "zy"),
        ],
    )
    @pytest.mark.parametrize("make", [mx.nd.array, np.array])
    def test_the_best_classes(
        self, make: Callable[..., Any], row: list[float], labels: Any, top: int, best: str
    ) -> None:
        found = ndarray.top_probability(make([row]), labels, top)
        assert "".join(entry["class"] for entry in found) == best
        assert all(type(entry["probability"]) is float for entry in found)

    def test_a_best_class_without_a_name(self) -> None:
        # 0.4 raises IndexError, too.
        with pytest.raises(IndexError, match=r"class 3 .* only 2 of the model's 4 classes"):
            ndarray.top_probability(mx.nd.array([[0.1, 0.2, 0.8, 0.9]]), ["a", "b"])

    def test_equal_values_are_in_the_engines_order(self) -> None:
        values = np.random.RandomState(0).randint(0, 7, (1, 1000)).astype("float32") / 7
        found = ndarray.top_probability(mx.nd.array(values), range(1000), 20)
        assert [entry["class"] for entry in found] == [
            int(index)
            for index in mx.nd.argsort(mx.nd.array(values)[0], is_ascend=False)[:20].asnumpy()
        ]

    def test_axes_after_the_second_are_dropped(self) -> None:
        values = mx.nd.array(np.arange(5.0).reshape(1, 5, 1, 1))
        assert ndarray.top_probability(values, "abcde", 2) == [
            {"probability": 4.0, "class": "e"},
            {"probability": 3.0, "class": "d"},
        ]
        with pytest.raises(ValueError, match="size not equal to one"):
            ndarray.top_probability(mx.nd.zeros((1, 5, 2, 2)), "abcde")
        with pytest.raises(IndexError):
            ndarray.top_probability(mx.nd.zeros((5,)), "abcde")

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [("float32", 0.30000001192092896), ("float64", 0.3), ("float16", 0.300048828125)],
    )
    def test_values_are_those_of_their_type(self, dtype: str, value: float) -> None:
        # The engine of 0.4 cannot sort half precision.
        values = mx.nd.array([[0.1, 0.3]], dtype=dtype)
        assert ndarray.top_probability(values, "ab", 1) == [{"probability": value, "class": "b"}]

    def test_nan_is_the_least_probable(self) -> None:
        # In 0.4 the order of all others is undefined then.
        found = ndarray.top_probability(mx.nd.array([[float("nan"), 0.2, 0.5]]), "abc")
        assert [entry["class"] for entry in found] == ["c", "b", "a"]


class TestEncodeSentences:
    @pytest.mark.parametrize(
        ("sentences", "options", "encoded", "vocabulary"),
        [
            (
                [["the", "dog"]],
                {"vocab": {"the": 1}, "invalid_label": 0, "start_label": 1},
                [[1, 0]],
                {"the": 1},
            ),
            ([["a"]], {"vocab": {}}, [[-1]], {}),
            (
                [["a", "b", "a"], ["c"]],
                {},
                [[0, 1, 0], [2]],
                {"\n": -1, "a": 0, "b": 1, "c": 2},
            ),
            (
                [["a", "b", "a"], ["c"]],
                {"invalid_label": 1, "invalid_key": "X"},
                [[0, 2, 0], [3]],
                {"X": 1, "a": 0, "b": 2, "c": 3},
            ),
            ([["a", "\n"]], {"start_label": 5}, [[5, -1]], {"\n": -1, "a": 5}),
            ([], {}, [], {"\n": -1}),
        ],
    )
    def test_tokens_become_numbers(
        self,
        sentences: list[list[str]],
        options: dict[str, Any],
        encoded: list[list[int]],
        vocabulary: dict[str, int],
    ) -> None:
        assert nlp.encode_sentences(sentences, **options) == (encoded, vocabulary)

    def test_a_given_vocabulary_is_returned_itself(self) -> None:
        vocabulary = {f"word{i}": i for i in range(100)}
        found = nlp.encode_sentences([["word56", "new"]], vocabulary)
        assert found[0] == [[56, -1]]
        assert found[1] is vocabulary
        assert len(vocabulary) == 100


class TestPadSentence:
    @pytest.mark.parametrize(
        ("sentence", "buckets", "options", "bucket", "data", "shape"),
        [
            ([1, 2, 3], [2, 4, 8], {}, 4, [1, 2, 3, -1], (1, 4)),
            ([1, 2, 3], [2, 4, 8], {"invalid_label": 0, "layout": "TN"}, 4, [1, 2, 3, 0], (4, 1)),
            ([1, 2], [2, 4], {}, 2, [1, 2], (1, 2)),
            ([], [2, 4], {}, 2, [-1, -1], (1, 2)),
            (np.array([1.5, 2]), (3,), {"layout": "any other"}, 3, [1.5, 2, -1], (3, 1)),
        ],
    )
    def test_it_is_filled_up_to_the_smallest_bucket(
        self,
        sentence: Any,
        buckets: Any,
        options: dict[str, Any],
        bucket: int,
        data: list[float],
        shape: tuple[int, int],
    ) -> None:
        batch = nlp.pad_sentence(sentence, buckets, data_name="x", **options)
        assert isinstance(batch, mx.io.DataBatch)
        assert (batch.bucket_key, batch.pad, batch.label, batch.index) == (bucket, 0, None, None)
        assert [array.asnumpy().tolist() for array in batch.data] == [[data]]
        assert batch.data[0].dtype is np.float32
        (described,) = batch.provide_data
        assert isinstance(described, mx.io.DataDesc)
        assert (described.name, described.shape) == ("x", shape)
        assert described.layout == options.get("layout", "NT")

    def test_one_that_is_longer_than_all_buckets(self) -> None:
        with pytest.raises(IndexError, match=r"3 tokens, more than the longest bucket: \[2\]"):
            nlp.pad_sentence([1, 2, 3], [2])


def encoded(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def decoded(text: str) -> list[Any]:
    pixels: list[Any] = np.array(Image.open(io.BytesIO(base64.b64decode(text)))).tolist()
    return pixels


class TestImage:
    @pytest.fixture
    def pixels(self) -> Any:
        return np.random.RandomState(0).randint(0, 255, (6, 8, 3)).astype("uint8")

    def test_read(self, pixels: Any) -> None:
        data = encoded(pixels)
        assert (image.read(data).asnumpy() == pixels).all()
        mirrored = image.read(np.frombuffer(data, "uint8"), to_rgb=False).asnumpy()[..., ::-1]
        assert (mirrored == pixels).all()
        assert image.read(data, 0).shape == (6, 8, 1)

    @pytest.mark.parametrize("data", [b"no image", b""])
    @pytest.mark.parametrize("kind", [mx.base.MXNetError, MMSError, Exception])
    def test_what_is_no_image_is_an_error_of_mxnet_and_of_ours(
        self, data: bytes, kind: type[Exception]
    ) -> None:
        with pytest.raises(kind):
            image.read(data)
        with pytest.raises(ValueError, match="must be of type"):
            image.read("text")

    @pytest.mark.parametrize("order", ["CHW", "HWC"])
    def test_write_casts_as_the_engine_does(self, order: Any) -> None:
        array = mx.nd.array(
            [
                [[-3.7, 0.5, 255.9], [256, 300, 1000]],
                [[1, 2, 3], [4, 5, 6.9]],
                [[7, 8, 9], [1, 2, float("nan")]],
            ]
        )
        given = array if order == "CHW" else array.transpose((1, 2, 0))
        assert decoded(image.write(given, format="png", dim_order=order)) == [
            [[253, 1, 7], [0, 2, 8], [255, 3, 9]],
            [[0, 4, 1], [44, 5, 2], [232, 6, 0]],
        ]
        grey = given[0:1] if order == "CHW" else given[:, :, 0:1]
        assert decoded(image.write(grey, 0, "png", order)) == [[253, 0, 255], [0, 44, 232]]

    def test_write_makes_jpeg_text(self) -> None:
        text = image.write(mx.nd.zeros((3, 4, 5)))
        assert isinstance(text, str)
        assert base64.b64decode(text).startswith(b"\xff\xd8")

    def test_transform_shape(self) -> None:
        array = mx.nd.zeros((3, 2, 4))
        assert image.transform_shape(array).shape == (1, 4, 3, 2)
        assert image.transform_shape(array, "NHWC").shape == (1, 3, 2, 4)

    def test_other_orders_are_assertions(self) -> None:
        for wrong in (
            lambda: image.transform_shape(mx.nd.zeros((3, 2, 4)), "CHW"),  # type: ignore[arg-type]
            lambda: image.write(mx.nd.zeros((3, 2, 4)), dim_order="NCHW"),  # type: ignore[arg-type]
        ):
            with pytest.raises(AssertionError, match="dim_order must be"):
                wrong()

    def test_resize_and_crop_are_the_engines(self, pixels: Any) -> None:
        array = mx.nd.array(pixels, dtype="uint8")
        assert image.resize(array, 4, 3).asnumpy().tolist() == (
            mx.image.imresize(array, 4, 3, 2).asnumpy().tolist()
        )
        assert image.fixed_crop(array, 1, 2, 4, 3).shape == (3, 4, 3)
        assert image.fixed_crop(array, 1, 2, 4, 3, (2, 2)).asnumpy().tolist() == (
            mx.image.fixed_crop(array, 1, 2, 4, 3, (2, 2), 2).asnumpy().tolist()
        )

    def test_color_normalize(self) -> None:
        array = mx.nd.array([[[10, 20, 30]]], dtype="uint8")
        result = image.color_normalize(array, mx.nd.array([1.0, 2, 3]), mx.nd.array([2.0, 2, 2]))
        assert result.dtype is np.float32
        assert result.asnumpy().tolist() == [[[4.5, 9, 13.5]]]
        assert image.color_normalize(array, 3, 2).asnumpy().tolist() == [[[3.5, 8.5, 13.5]]]
        assert image.color_normalize(array, None).asnumpy().tolist() == [[[10, 20, 30]]]
        own = array.astype("float32")
        image.color_normalize(own, 3, 2)
        assert own.asnumpy().tolist() == [[[10, 20, 30]]]

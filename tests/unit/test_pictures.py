"""Declarations on pictures: what is accepted, what a mistake is answered with, what they do."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mms.archive.pictures import (
    COLORS,
    INTERPOLATIONS,
    LAYOUTS,
    MAX_SIDE,
    MAX_TOP,
    Boxes,
    ImageLayout,
    Postprocess,
    Preprocess,
    parse_postprocess,
    parse_preprocess,
    picture_layout,
)
from mms.archive.signature import Signature, parse_signature
from mms.engines.pictures import declared_answer, picture_array
from mms.errors import InvalidServiceOutput, SignatureError, UndecodableImage

BOUNDED = settings(max_examples=100, deadline=None)
SHAPE = [0, 3, 224, 224]
IMAGENET = {
    "resize": 256,
    "crop": 224,
    "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
sides = st.integers(1, MAX_SIDE)
sizes = st.tuples(sides, sides)
numbers = st.floats(-1e6, 1e6).map(float)
factors = numbers.filter(bool)
preprocesses = st.builds(
    Preprocess,
    resize=st.none() | sides | sizes,
    color=st.sampled_from(["", *COLORS]),
    scale=factors,
    mean=st.lists(numbers, min_size=3, max_size=3).map(tuple) | st.just(()),
    std=st.tuples(factors) | st.just(()),
    layout=st.sampled_from(["", *LAYOUTS]),
    interpolation=st.sampled_from(INTERPOLATIONS),
) | st.builds(Preprocess, crop=sizes)
postprocesses = (
    st.builds(
        Postprocess,
        softmax=st.none() | st.booleans(),
        top_k=st.none() | st.integers(1, MAX_TOP),
    )
    | st.builds(Postprocess, normalize=st.booleans())
    | st.builds(
        Postprocess,
        top_k=st.none() | st.integers(1, MAX_TOP),
        boxes=st.builds(
            Boxes, threshold=numbers, coordinates=st.sampled_from(["fractions", "pixels"])
        ),
    )
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [*Preprocess.__dataclass_fields__, *Postprocess.__dataclass_fields__, "threshold"]
            )
            | st.text(max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def document(shape: Any = SHAPE, kind: str = "image/jpeg", **more: Any) -> dict[str, Any]:
    """Return signature.json with these keys of its own."""
    return {
        "inputs": [{"data_name": "data", "data_shape": shape}],
        "input_type": kind,
        "outputs": [{"data_name": "softmax", "data_shape": [0, 1000]}],
        "output_type": "application/json",
        **more,
    }


def picture(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    output = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(output, kind, **options)
    return output.getvalue()


def _listed(size: Any) -> Any:
    return list(size) if isinstance(size, tuple) else size


def gradient(height: int, width: int) -> Any:
    """Return pixels that all differ from their neighbours: (H, W, 3) uint8."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 7 % 256, columns * 5 % 256, (rows + columns) * 3 % 256], -1).astype(
        np.uint8
    )


# --- Documents -----------------------------------------------------------------------------------


@given(preprocesses)
@BOUNDED
def test_a_preprocess_comes_back_from_its_document(how: Preprocess) -> None:
    assert parse_preprocess(how.to_document(), "preprocess", "s.json") == how


@given(postprocesses)
@BOUNDED
def test_a_postprocess_comes_back_from_its_document(how: Postprocess) -> None:
    assert parse_postprocess(how.to_document(), "postprocess", "s.json") == how


@given(values)
@BOUNDED
def test_anything_is_a_declaration_or_a_signature_error(value: Any) -> None:
    for shape in (SHAPE, [0, 0, 0, 1], [3, 8]):
        with contextlib.suppress(SignatureError):
            parse_signature(document(shape, preprocess=value, postprocess=value))
        with contextlib.suppress(SignatureError):
            parse_signature(document(shape, postprocess=value))


def test_a_signature_with_declarations_comes_back_from_its_document() -> None:
    signature = parse_signature(document(preprocess=IMAGENET, postprocess={"softmax": True}))
    assert parse_signature(signature.to_document()) == signature
    how = signature.inputs[0].preprocess
    assert how is not None
    assert (how.resize, how.crop, how.color) == (256, (224, 224), "")
    assert signature.postprocess == Postprocess(softmax=True)


def test_without_declarations_a_signature_has_none() -> None:
    signature = parse_signature(document())
    assert signature.inputs[0].preprocess is None
    assert signature.postprocess is None
    assert signature == Signature(
        signature.inputs, "image/jpeg", signature.outputs, "application/json"
    )


def test_what_an_input_declares_replaces_what_all_do() -> None:
    signature = parse_signature(
        document(preprocess=IMAGENET)
        | {
            "inputs": [
                {"data_name": "left", "data_shape": SHAPE, "preprocess": {"color": "BGR"}},
                {"data_name": "right", "data_shape": SHAPE},
            ]
        }
    )
    left, right = signature.inputs
    assert left.preprocess == Preprocess(color="BGR")
    assert right.preprocess is not None
    assert right.preprocess.resize == 256


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"preproces": {}}, "unknown key 'preproces'; did you mean 'preprocess'?"),
        ({"postProcess": {}}, "unknown key 'postProcess'; did you mean 'postprocess'?"),
        ({"preprocess": []}, "preprocess must be an object such as"),
        (
            {"preprocess": {"sacle": 1}},
            "preprocess has the unknown key 'sacle'; did you mean 'scale'?; its keys are resize,",
        ),
        ({"preprocess": {"colour": "RGB"}}, "did you mean 'color'?"),
        ({"preprocess": {"dtype": "float32"}}, "'dtype'; the element type is the input's data_ty"),
        ({"preprocess": {"color": "CMYK"}}, 'must be one of "RGB", "BGR", "GRAY", got \'CMYK\''),
        ({"preprocess": {"layout": "CHW"}}, 'must be one of "NCHW", "NHWC", got \'CHW\''),
        ({"preprocess": {"scale": "1/255"}}, "preprocess.scale must be a number, got '1/255'"),
        ({"preprocess": {"scale": float("nan")}}, "preprocess.scale must be a number"),
        ({"preprocess": {"scale": 0}}, "scale and std must not be 0"),
        ({"preprocess": {"std": [1, 0, 1]}}, "scale and std must not be 0"),
        ({"preprocess": {"mean": [1, 2]}}, "or a list with one for each channel, got [1, 2]"),
        ({"preprocess": {"resize": 0}}, "[height, width] or the length of the shorter side"),
        ({"preprocess": {"resize": [1 << 40, 1]}}, f"in pixels from 1 to {MAX_SIDE}"),
        ({"preprocess": {"resize": True}}, "got True"),
        ({"preprocess": {"resize": 200, "crop": 224}}, "[224, 224] does not fit into a picture re"),
        (
            {"preprocess": {"resize": 256}},
            'add "crop": [224, 224], or stretch it with "resize": [224, 224]',
        ),
        ({"preprocess": {"crop": 112}}, "preprocess.crop makes pictures of [112, 112] (height, w"),
        ({"preprocess": {"color": "GRAY"}}, 'with 3 channels, but preprocess.color is "GRAY"'),
        ({"preprocess": {}, "input_type": "application/json"}, "preprocess is for pictures"),
        ({"postprocess": {}, "input_type": "application/json"}, "postprocess is for models that"),
        ({"postprocess": {}, "output_type": "image/png"}, "postprocess gives numbers"),
        ({"postprocess": {"softmax": 1}}, "postprocess.softmax must be true or false, got 1"),
        ({"postprocess": {"topk": 3}}, "did you mean 'top_k'?"),
        ({"postprocess": {"top_k": 0}}, f"must be an integer from 1 to {MAX_TOP}, got 0"),
        ({"postprocess": {"boxes": {"treshold": 1}}}, "did you mean 'threshold'?"),
        ({"postprocess": {"boxes": True, "softmax": True}}, "exclude each other"),
        ({"postprocess": {"normalize": True, "top_k": 3}}, "exclude each other"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SignatureError, match=re.escape(message)):
        parse_signature(document(**keys), "s.json")


def test_a_postprocess_of_one_output_is_refused() -> None:
    outputs = [{"data_name": "y", "data_shape": [0], "postprocess": {}}]
    with pytest.raises(SignatureError, match='write it beside "outputs"'):
        parse_signature(document(outputs=outputs))


def test_keys_that_resemble_no_declaration_are_ignored_as_in_0_4() -> None:
    parse_signature(document(input="x", process="y", threshold=3, post=[]))


def test_a_byte_input_takes_raw_pixels_only() -> None:
    inputs = [{"data_name": "data", "data_shape": SHAPE, "data_type": "UINT8"}]
    parse_signature(document(inputs=inputs, preprocess={"color": "BGR"}))
    with pytest.raises(SignatureError, match="remove scale, mean and std"):
        parse_signature(document(inputs=inputs, preprocess={"scale": 0.5}))


def test_boxes_in_pixels_need_a_fixed_size() -> None:
    boxes = {"boxes": {"coordinates": "pixels"}}
    parse_signature(document(postprocess=boxes))
    with pytest.raises(SignatureError, match="need a picture of fixed size; the input 'data'"):
        parse_signature(document([0, 3, 0, 0], postprocess=boxes))


def test_every_example_of_the_documentation_is_a_signature() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text()
    examples = re.findall(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(examples) == 6
    for example in examples:
        parse_signature(json.loads(example))
    for key in (
        *Preprocess.__dataclass_fields__,
        *(key for key in Postprocess.__dataclass_fields__),
        *(f"boxes.{key}" for key in Boxes.__dataclass_fields__),
    ):
        assert f"| `{key}` |" in text


# --- Layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "how", "layout"),
    [
        ((0, 3, 8, 6), Preprocess(), ImageLayout(True, 3, 8, 6)),
        ((0, 3, 0, 0), None, ImageLayout(True, 3, 0, 0)),
        ((1, 8, 6, 3), None, ImageLayout(False, 3, 8, 6)),
        ((1, 8, 6, 1), None, ImageLayout(False, 1, 8, 6)),
        ((0, 0, 8, 6), None, ImageLayout(True, 3, 8, 6)),
        ((0, 0, 8, 6), Preprocess(color="GRAY"), ImageLayout(True, 1, 8, 6)),
        ((0, 3, 6, 3), Preprocess(layout="NHWC"), ImageLayout(False, 3, 3, 6)),
        ((0, 0, 0, 0), Preprocess(layout="NHWC"), ImageLayout(False, 3, 0, 0)),
    ],
)
def test_layout_and_free_sizes_follow_from_shape_and_declaration(
    shape: tuple[int, ...], how: Preprocess | None, layout: ImageLayout
) -> None:
    assert picture_layout("data", shape, how, "s.json") == layout


@pytest.mark.parametrize(
    ("shape", "written"),
    [
        ((3, 8, 6), [0, 3, 8, 6]),
        ((8, 6, 3), [0, 8, 6, 3]),
        ((0, 8, 6), [0, 1, 8, 6]),
        ((8, 6), [0, 1, 8, 6]),
        ((0, 4, 8, 6), [0, 3, 8, 6]),
        ((3,), [0, 3, 224, 224]),
        ((0, 3), [0, 3, 224, 224]),
        ((0, 3, 1, 8, 8), [0, 3, 224, 224]),
    ],
)
def test_a_shape_that_holds_no_picture_is_refused_with_one_that_does(
    shape: tuple[int, ...], written: list[int]
) -> None:
    with pytest.raises(SignatureError, match=re.escape(f"{list(shape)}, which cannot")) as refused:
        picture_layout("data", shape, None, "s.json")
    assert f"write {written}" in str(refused.value)
    picture_layout("data", written, None, "s.json")


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=6),
    st.none() | st.builds(Preprocess, layout=st.sampled_from(["", *LAYOUTS])),
)
@BOUNDED
def test_any_shape_has_a_layout_or_is_refused_with_one_that_has(
    shape: list[int], how: Preprocess | None
) -> None:
    try:
        layout = picture_layout("data", shape, how, "s.json")
    except SignatureError as error:
        written = re.search(r"write (\[[\d, ]+\])", str(error))
        assert written is not None
        picture_layout("data", json.loads(written[1]), None, "s.json")
        return
    spatial = shape[2:] if layout.is_channels_first else shape[1:3]
    assert [layout.height, layout.width] == spatial
    assert layout.channels in (1, 3)


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.none() | st.integers(1, 40) | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.none() | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(INTERPOLATIONS),
)
@BOUNDED
def test_every_picture_gets_the_declared_size(
    height: int, width: int, resize: Any, crop: tuple[int, int] | None, interpolation: str
) -> None:
    try:
        how = parse_preprocess(
            {
                "interpolation": interpolation,
                **({} if resize is None else {"resize": _listed(resize)}),
                **({} if crop is None else {"crop": _listed(crop)}),
            },
            "preprocess",
            "s.json",
        )
    except SignatureError:
        return
    _, channels, *size = picture_array(picture(gradient(height, width)), how, FREE).shape
    assert channels == 3
    if how.size is not None:
        assert tuple(size) == how.size
    elif isinstance(how.resize, int):
        assert min(size) == how.resize
    else:
        assert size == [height, width]


# --- Pixels --------------------------------------------------------------------------------------

FREE = ImageLayout(True, 3, 0, 0)


def test_without_any_key_pixels_stay_as_they_are() -> None:
    pixels = gradient(6, 9)
    array = picture_array(picture(pixels), Preprocess(), FREE)
    assert array.dtype == np.float32
    assert np.array_equal(array, pixels.transpose(2, 0, 1)[np.newaxis])


def test_channels_last_bgr_bytes() -> None:
    pixels = gradient(6, 9)
    layout = ImageLayout(False, 3, 6, 9)
    array = picture_array(picture(pixels), Preprocess(color="BGR"), layout, np.uint8)
    assert array.dtype == np.uint8
    assert np.array_equal(array, pixels[np.newaxis, ..., ::-1])


def test_scale_mean_and_std_apply_in_that_order_per_channel_of_the_declared_colour() -> None:
    how = Preprocess(color="BGR", scale=0.5, mean=(1, 2, 3), std=(2, 4, 8))
    array = picture_array(picture([[[200, 100, 50]]]), how, FREE)
    assert array.ravel().tolist() == [(25 - 1) / 2, (50 - 2) / 4, (100 - 3) / 8]


def test_a_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture_array(picture(gradient(6, 9), exif=exif), Preprocess(), FREE)
    assert turned.shape == (1, 3, 9, 6)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS[:-1])
@pytest.mark.parametrize(("height", "width"), [(31, 47), (47, 31), (12, 12)])
def test_resize_and_crop_in_one_step_equal_two(interpolation: str, height: int, width: int) -> None:
    pixels = gradient(height, width)
    how = Preprocess(resize=20, crop=(16, 18), interpolation=interpolation)
    array = picture_array(picture(pixels), how, FREE, np.uint8)
    size = (20 * width // min(height, width), 20 * height // min(height, width))
    filters = {"area": Image.Resampling.BOX}
    method = filters.get(interpolation) or Image.Resampling[interpolation.upper()]
    whole = np.asarray(Image.fromarray(pixels).resize(size, method))
    top, left = (size[1] - 16) // 2, (size[0] - 18) // 2
    expected = whole[top : top + 16, left : left + 18].transpose(2, 0, 1)[np.newaxis]
    difference = np.abs(array.astype(int) - expected)
    # Those two are not continuous: rounding decides which pixel counts at a border of two.
    if interpolation in ("nearest", "area"):
        assert (difference > 0).mean() < 0.1
    else:
        assert difference.max() == 0


def test_a_crop_alone_takes_the_middle_in_its_proportions() -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    array = picture_array(picture(pixels), Preprocess(crop=(4, 4)), FREE)
    assert array.shape == (1, 3, 4, 4)
    assert array[:, :, :, 1:3].min() == 255


def test_the_default_size_is_the_input_s() -> None:
    array = picture_array(picture(gradient(5, 9)), Preprocess(), ImageLayout(True, 1, 4, 0))
    assert array.shape == (1, 1, 4, 9)


def test_a_thin_picture_costs_no_more_than_its_crop() -> None:
    thin = picture(np.zeros((1, 60_000, 3)))
    how = Preprocess(resize=256, crop=(224, 224))
    assert picture_array(thin, how, FREE).shape == (1, 3, 224, 224)
    with pytest.raises(UndecodableImage, match="60000 x 1 pixels would become 15360000 x 256"):
        picture_array(thin, Preprocess(resize=256), FREE)


# --- Answers -------------------------------------------------------------------------------------


SCORES = np.array([[1.0, 3.0, 2.0, -1.0]])


def test_only_a_softmax_makes_probabilities() -> None:
    labels = ["a", "b", "c", "d"]
    [best] = declared_answer([SCORES], Postprocess(softmax=True, top_k=2), labels)
    powers = np.exp(SCORES[0])
    assert [entry["class"] for entry in best] == ["b", "c"]
    assert [entry["probability"] for entry in best] == pytest.approx(
        [powers[1] / powers.sum(), powers[2] / powers.sum()]
    )
    [best] = declared_answer([SCORES], Postprocess(top_k=2), labels)
    assert best == [{"score": 3.0, "class": "b"}, {"score": 2.0, "class": "c"}]


def test_without_labels_a_class_is_its_number() -> None:
    [best] = declared_answer([SCORES], Postprocess(softmax=False))
    assert [entry["class"] for entry in best] == [1, 2, 0, 3]


def test_too_few_labels_are_counted() -> None:
    with pytest.raises(
        InvalidServiceOutput, match=r"returns 4 classes but synset.txt names only 3"
    ):
        declared_answer([SCORES], Postprocess(softmax=True), ["a", "b", "c"])


def test_nothing_declared_leaves_the_outputs() -> None:
    assert declared_answer([SCORES], Postprocess())[0] is SCORES


def test_embeddings_get_the_length_of_one() -> None:
    [array] = declared_answer(
        [
            np.array([[3.0, 4.0]]),
        ],
        Postprocess(normalize=True),
    )
    assert array.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    [zeros] = declared_answer([np.zeros((1, 2))], Postprocess(normalize=True))
    assert zeros.tolist() == [[0, 0]]


#: Rows of MultiBoxDetection: class, score, left, top, right, bottom.
ROWS = np.array(
    [
        [
            [1, 0.6, 0.1, 0.2, 0.3, 0.4],
            [0, 0.9, 0.5, 0.5, 1.0, 1.0],
            [0, 0.3, 0.0, 0.0, 0.1, 0.1],
            [-1, 0.99, 0.0, 0.0, 0.0, 0.0],
        ]
    ]
)


def test_boxes_of_one_output_and_of_three_are_the_same_objects() -> None:
    expected = [
        {"class": "dog", "score": 0.9, "box": [0.5, 0.5, 1.0, 1.0]},
        {"class": "cat", "score": 0.6, "box": [0.1, 0.2, 0.3, 0.4]},
    ]
    labels = ["dog", "cat"]
    assert declared_answer([ROWS], Postprocess(boxes=Boxes()), labels) == [expected]
    # GluonCV's detectors return these three, in pixels of their input.
    pixels = ROWS[..., 2:] * np.array([200, 100, 200, 100])
    three = [ROWS[..., :1], ROWS[..., 1:2], pixels]
    how = Postprocess(boxes=Boxes(coordinates="pixels"), top_k=1)
    [objects] = declared_answer(three, how, labels, (100, 200))
    assert objects == expected[:1]


def test_outputs_that_are_no_boxes_are_shown_by_their_shapes() -> None:
    with pytest.raises(InvalidServiceOutput, match=r"outputs have the shapes \(1, 4\); a detector"):
        declared_answer([SCORES], Postprocess(boxes=Boxes()))

"""What counts as the same answer, and batches made of few rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms.archive.candidates import Precision
from mms.convert.agreement import Array, compare, reason_against, task_of
from mms.convert.batches import variants
from mms.errors import ConversionFailed

RNG = np.random.default_rng(0)
SCORES = RNG.normal(0, 1, (8, 5)).astype(np.float32)


def shapes(*all_: tuple[int, ...]) -> list[Array]:
    return [np.zeros(shape, np.float32) for shape in all_]


@pytest.mark.parametrize(
    ("outputs", "task"),
    [
        (shapes((2, 10)), "classes"),
        (shapes((2, 10), (2, 4)), "classes"),
        (shapes((2, 1)), "values"),
        (shapes((2, 5, 10)), "values"),
        (shapes((2, 100, 6)), "boxes"),
        (shapes((2, 100, 1), (2, 100, 1), (2, 100, 4)), "boxes"),
        (shapes((2, 100), (2, 100), (2, 100, 4)), "boxes"),
        (shapes((2, 100), (2, 100), (2, 100, 5)), "classes"),
        (shapes((2, 100, 1), (2, 100, 1), (2, 90, 4)), "values"),
        (shapes((2, 100, 6), (2, 3)), "values"),
    ],
)
def test_the_task_follows_from_the_shapes_of_the_outputs(outputs: list[Array], task: str) -> None:
    assert task_of(outputs) == task


def test_the_same_answers_agree_whatever_is_compared() -> None:
    for precision in ("f32", "bf16", "int8"):
        for task in ("classes", "values"):
            agreement = compare([[SCORES[:3]], [SCORES]], [[SCORES[:3]], [SCORES]], task, precision)
            assert (agreement.score, agreement.max_error, agreement.rows) == (1.0, 0.0, 11)
            assert agreement.batch_sizes == (3, 8)
            assert reason_against(agreement, precision, 1.0) == ""


@pytest.mark.parametrize(
    ("precision", "task", "error", "score"),
    [
        ("f32", "classes", 0.9e-4, 1.0),
        ("f32", "classes", 1.1e-4, 0.0),
        ("f32", "values", 1.1e-4, 0.0),
        ("bf16", "values", 0.029, 1.0),
        ("bf16", "values", 0.031, 0.0),
        ("bf16", "classes", 0.019, 1.0),
        ("bf16", "classes", 0.021, 0.0),
        ("int8", "values", 0.049, 1.0),
        ("int8", "values", 0.051, 0.0),
        ("int8", "classes", 0.4, 1.0),
    ],
)
def test_each_precision_has_its_bound(
    precision: Precision, task: str, error: float, score: float
) -> None:
    # The largest entry grows, so the class stays.
    got = SCORES.copy()
    rows = np.arange(len(got))
    got[rows, SCORES.argmax(axis=1)] += error * np.abs(SCORES).max(axis=1)
    agreement = compare([[SCORES]], [[got]], task, precision)  # type: ignore[arg-type]
    assert agreement.score == score
    assert agreement.median_error == pytest.approx(error, rel=1e-3)


def test_one_row_in_single_precision_that_differs_is_refused_whatever_share_is_enough() -> None:
    got = SCORES.copy()
    got[3] *= 1.002
    agreement = compare([[SCORES]], [[got]], "classes", "f32")
    assert agreement.score == 7 / 8
    assert "87.50% of 8 rows" in reason_against(agreement, "f32", 0.5)
    assert reason_against(agreement, "bf16", 0.5) == ""


def test_classes_that_differ_by_less_than_the_rounding_are_the_same_in_bf16_only() -> None:
    expected = np.array([[1.0, 0.998, 0.2], [0.1, 0.5, 0.9]], np.float32)
    got = np.array([[0.998, 1.0, 0.2], [0.1, 0.5, 0.9]], np.float32)
    assert compare([[expected]], [[got]], "classes", "bf16").score == 1.0
    assert compare([[expected]], [[got]], "classes", "int8").score == 0.5
    far = np.array([[0.9, 1.0, 0.2], [0.1, 0.5, 0.9]], np.float32)
    assert compare([[expected]], [[far]], "classes", "bf16").score == 0.0


def test_outputs_behind_the_classes_count_as_values() -> None:
    other = RNG.normal(0, 1, (8, 3)).astype(np.float32)
    wrong = other.copy()
    wrong[2] *= 1.2
    assert compare([[SCORES, other]], [[SCORES, wrong]], "classes", "int8").score == 7 / 8


def test_an_output_without_a_batch_axis_counts_for_all_rows() -> None:
    states = RNG.normal(0, 1, (2, 8, 4)).astype(np.float32)
    wrong = states.copy()
    wrong[1, 7] *= 2
    assert compare([[SCORES, states]], [[SCORES, wrong]], "values", "f32").score == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_agrees_with_nothing(value: float) -> None:
    got = SCORES.copy()
    got[0, 0] = value
    for precision in ("f32", "bf16", "int8"):
        for task in ("classes", "values"):
            agreement = compare([[SCORES]], [[got]], task, precision)
            assert agreement.score < 1.0
            assert np.isfinite(agreement.max_error)
    both = compare([[got]], [[got]], "values", "f32")
    assert both.score == (7 / 8 if np.isnan(value) else 1.0)


def test_a_row_that_is_all_but_zero_is_measured_beside_the_others() -> None:
    expected = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]], np.float32)
    got = expected + np.array([[0, 0], [1e-9, 0], [0, 0]], np.float32)
    assert compare([[expected]], [[got]], "values", "f32").score == 1.0
    got[1] = 1.0
    assert compare([[expected]], [[got]], "values", "f32").score == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("got", "said"),
    [
        ([], "0 batches came back instead of 1"),
        ([[SCORES, SCORES]], "gives 2 outputs, not 1"),
        ([[SCORES[:, :3]]], r"output 0 has the shape \(8, 3\), not \(8, 5\)"),
    ],
)
def test_answers_of_another_number_or_shape_are_refused(got: list[list[Array]], said: str) -> None:
    with pytest.raises(ConversionFailed, match=said):
        compare([[SCORES]], got, "classes", "f32")


BOXES = np.array(
    [[[0, 0.9, 0.1, 0.1, 0.5, 0.5], [1, 0.8, 0.4, 0.4, 0.9, 0.9], [-1, 0, 0, 0, 0, 0]]], np.float32
)


def test_boxes_are_matched_whatever_their_order() -> None:
    got = BOXES[:, [2, 1, 0]]
    got[0, 2, 1] += 0.005
    agreement = compare([[BOXES]], [[got]], "boxes", "f32")
    assert (agreement.score, agreement.task) == (1.0, "boxes")
    assert agreement.max_error == pytest.approx(0.005, rel=1e-3)
    triple = [BOXES[..., :1], BOXES[..., 1:2], BOXES[..., 2:]]
    turned = [got[..., :1], got[..., 1:2], got[..., 2:]]
    assert compare([triple], [turned], "boxes", "f32").score == 1.0
    flat, flat_turned = ([x[..., 0] for x in (a, b)] + [c] for a, b, c in (triple, turned))
    assert compare([flat], [flat_turned], "boxes", "f32").score == 1.0


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ((0, 0), 1.0),
        ((0, 0), -1.0),
        ((0, 1), 0.02),
        ((1, 2), 0.06),
        ((2, 0), 1.0),
        ((1, 4), np.nan),
    ],
)
def test_a_box_of_another_class_score_or_place_is_another_box(
    place: tuple[int, int], change: float
) -> None:
    got = BOXES.copy()
    got[0][place] += change
    assert compare([[BOXES]], [[got]], "boxes", "f32").score == 0.0


def test_a_box_that_is_turned_inside_out_is_compared_by_its_corners() -> None:
    turned = BOXES[..., [0, 1, 4, 5, 2, 3]]
    got = turned.copy()
    got[..., 2:] += 1e-6
    assert compare([[turned]], [[got]], "boxes", "f32").score == 1.0
    assert compare([[turned]], [[BOXES]], "boxes", "f32").score == 0.0


def test_a_box_is_matched_once() -> None:
    got = BOXES.copy()
    got[0, 1] = got[0, 0]
    expected = BOXES.copy()
    expected[0, 1] = [0, 0.9, 0.12, 0.1, 0.5, 0.5]
    assert compare([[expected]], [[got]], "boxes", "f32").score == 1.0
    assert compare([[BOXES]], [[got]], "boxes", "f32").score == 0.0


def test_batches_go_through_the_rows_before_any_is_rolled() -> None:
    rows = np.arange(12).reshape(2, 2, 3)
    one, three, eight = (batch[0] for batch in variants([rows]))
    assert [len(one), len(three), len(eight)] == [1, 3, 8]
    assert (one[0] == rows[0]).all()
    assert (three[0] == rows[1]).all()
    assert (three[1] == np.roll(rows[0], 1, axis=-1)).all()


@given(count=st.integers(1, 12), width=st.integers(12, 30), whole=st.booleans())
def test_no_two_rows_are_equal_and_none_is_invented(count: int, width: int, whole: bool) -> None:
    rows = np.random.default_rng(count).permutation(count * width).reshape(count, width)
    array = rows.astype(np.int32 if whole else np.float32)
    made = np.concatenate([batch[0] for batch in variants([array])])
    assert made.dtype == array.dtype
    assert len({row.tobytes() for row in made}) == len(made) == 12
    originals = {tuple(sorted(row)) for row in array.tolist()}
    assert {tuple(sorted(row)) for row in made.tolist()} <= originals


def test_inputs_are_rolled_together_along_the_last_axis_that_can_be() -> None:
    lengths, column = np.array([4, 7]), np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    for batch in variants([lengths, column]):
        assert all(array.flags["C_CONTIGUOUS"] for array in batch)
    eight = variants([lengths, column])[2]
    assert set(eight[0].tolist()) == {4, 7}
    assert len({row.tobytes() for row in eight[1]}) == 6

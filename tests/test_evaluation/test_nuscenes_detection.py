"""What the unmodified nuScenes devkit (1.2.0) makes of detections; docs/user_guides/evaluators.md says it in words."""

from __future__ import annotations

import numpy as np
import pytest
from nuscenes.eval.common.utils import velocity_l2

from .nuscenes_boxes import NAN, area, box, evaluate_all, evaluate_class

ERRORS = ('trans_err', 'scale_err', 'orient_err', 'vel_err', 'attr_err')
TRUTH = [box(10 * i) for i in range(4)]


def found(scores: list[float], shifts: list[float]) -> list:
    """Detections of the four cars, each beside its car by a shift in metres."""
    return [box(10 * i + shift, score) for i, (score, shift) in enumerate(zip(scores, shifts))]


@pytest.mark.parametrize('equal', [1e-6, 0.5, 1.0])
def test_of_equal_scores_only_the_last_listed_counts_in_the_errors(equal: float) -> None:
    """Four cars found, one of them beside its car by a metre: an error of 0 or 1 m, by the order in the file."""
    rows = found([equal] * 4, [1.0, 0, 0, 0])
    for order, expected in (([0, 1, 2, 3], 0.0), ([3, 2, 1, 0], 1.0), ([1, 0, 2, 3], 0.0), ([1, 2, 3, 0], 1.0)):
        ap, errors = evaluate_class(TRUTH, [rows[i] for i in order])
        assert ap == pytest.approx(1)
        assert errors['trans_err'] == expected
    # With different scores the order in the file means nothing, and all four count.
    rows = found([0.9, 0.8, 0.7, 0.6], [1.0, 0, 0, 0])
    values = {evaluate_class(TRUTH, order)[1]['trans_err'] for order in (rows, rows[::-1])}
    assert len(values) == 1 and 0.25 < values.pop() < 1


def test_a_tie_of_right_and_wrong_is_decided_by_the_order() -> None:
    rows = [box(0, 0.5), box(50, 0.5)]
    first, second = evaluate_class([box(0)], rows)[0], evaluate_class([box(0)], rows[::-1])[0]
    # The one listed last is taken first: the wrong one lies in front, or behind.
    assert (first, second) == (pytest.approx(0.2), pytest.approx(0.9938, abs=1e-4))


def test_of_two_equal_detections_of_one_object_the_last_listed_is_matched() -> None:
    rows = [box(0, 0.5), box(1, 0.5)]
    for order, error in ((rows, 1.0), (rows[::-1], 0.0)):
        assert evaluate_class([box(0)], order)[1]['trans_err'] == error


def test_the_most_confident_is_matched_even_where_another_is_nearer() -> None:
    ap, errors = evaluate_class([box(0)], [box(1.9, 0.9), box(0, 0.8)])
    assert errors['trans_err'] == pytest.approx(1.9) and ap < 1


def test_scores_of_zero() -> None:
    """Full precision, and the worst errors, though every box is exactly right."""
    ap, errors = evaluate_class(TRUTH, found([0.0] * 4, [0.0] * 4))
    assert ap == pytest.approx(1)
    assert errors == dict.fromkeys(ERRORS, 1.0)
    smallest = float(np.finfo(np.float32).tiny)
    assert evaluate_class(TRUTH, found([smallest] * 4, [0.0] * 4))[1] == dict.fromkeys(ERRORS, 0.0)


def test_what_scores_of_zero_cost() -> None:
    zero, small = (evaluate_all(TRUTH, found([score] * 4, [0.0] * 4)) for score in (0.0, 1e-6))
    assert zero.mean_ap == small.mean_ap == pytest.approx(0.1)  # one of ten classes
    assert zero.nd_score == pytest.approx(0.05)
    # five times (1 - error) of a class that no mean leaves out: 10, 10, 9, 8 and 8 classes
    assert small.nd_score == pytest.approx((5 * 0.1 + 1 / 10 + 1 / 10 + 1 / 9 + 1 / 8 + 1 / 8) / 10)


def test_velocities_that_are_no_numbers_are_ignored() -> None:
    """True velocity 5 m/s, predicted 0 or NaN; a NaN is no error, and in front of the first number the error is 0."""
    truth = [box(10 * i, velocity=(5.0, 0.0)) for i in range(4)]

    def error(unknown: set[int]) -> float:
        rows = [box(10 * i, 0.9 - 0.1 * i, velocity=NAN if i in unknown else (0.0, 0.0)) for i in range(4)]
        return evaluate_class(truth, rows)[1]['vel_err']

    assert np.isnan(velocity_l2(truth[0], box(0, velocity=NAN)))  # its docstring promises infinity
    assert error(set()) == 5.0
    assert error({3}) == error({1, 2, 3}) == 5.0
    assert 5.0 > error({0}) > error({0, 1}) > error({0, 1, 2}) > 0.0
    assert error({0, 1, 2}) < 1.0
    assert error({0, 1, 2, 3}) == 1.0  # none known: better than a wrong number


def test_one_unknown_velocity_and_equal_scores_make_a_velocity_error_of_zero() -> None:
    truth = [box(10 * i, velocity=(5.0, 0.0)) for i in range(4)]
    rows = [box(10 * i, 0.5, velocity=NAN if i == 3 else (0.0, 0.0)) for i in range(4)]
    assert evaluate_class(truth, rows)[1]['vel_err'] == 0.0
    assert evaluate_class(truth, rows[::-1])[1]['vel_err'] == 5.0


def test_true_velocities_that_are_no_numbers() -> None:
    assert evaluate_class([box(0, velocity=NAN)], [box(0, 0.9)])[1]['vel_err'] == 1.0


def test_precision_rises_from_recall_zero_in_a_line() -> None:
    """One car, one right detection, and a wrong one in front: 0 at recall 0, 1/2 at recall 1, in between a line."""
    line = np.linspace(0, 0.5, 101)
    ap = evaluate_class([box(0)], [box(50, 0.9), box(0, 0.8)])[0]
    assert ap == pytest.approx(area(line)) == pytest.approx(0.2)
    assert ap < area(np.full(101, 0.5)) / 2  # half of what a precision of 1/2 is worth


def test_wrong_detections_behind_all_right_ones_cost_something() -> None:
    def behind(number: int) -> float:
        return evaluate_class([box(0)], [box(0, 0.9), *[box(50, 0.1)] * number])[0]

    assert behind(0) == pytest.approx(1)
    for number in (1, 2, 5):
        # the precision at recall 1 is the one after the last detection
        assert behind(number) == pytest.approx(area(np.append(np.ones(100), 1 / (1 + number))))
    assert behind(9) == behind(100) == pytest.approx(area(np.append(np.ones(100), 0)))
    # Where not all cars are found, only the end of the curve is touched, too.
    some = evaluate_class(TRUTH, found([0.9, 0.8, 0.7, 0.6], [0.0] * 4)[:2])[0]
    assert evaluate_class(TRUTH, [*found([0.9, 0.8, 0.7, 0.6], [0.0] * 4)[:2], box(90, 0.1)])[0] < some


def test_a_wrong_detection_costs_more_the_further_in_front_it_stands() -> None:
    rows = found([0.9, 0.8, 0.7, 0.6], [0.0] * 4)
    values = [evaluate_class(TRUTH, [*rows, box(90, score)])[0] for score in (0.95, 0.85, 0.75, 0.65, 0.55)]
    assert values == sorted(values)
    steps = np.interp(np.linspace(0, 1, 101), np.linspace(0, 1, 5), [0, 1 / 2, 2 / 3, 3 / 4, 4 / 5])
    assert values[0] == pytest.approx(area(steps)) and values[0] < 0.6 and values[-1] > 0.99


def test_a_class_without_ground_truth_counts_as_nothing_found() -> None:
    """All four cars found: the other nine classes are zeros in the mean and worst in the errors."""
    metrics = evaluate_all(TRUTH, found([0.9, 0.8, 0.7, 0.6], [0.0] * 4))
    assert metrics.mean_dist_aps['car'] == pytest.approx(1) and metrics.mean_ap == pytest.approx(0.1)
    assert [metrics.get_label_tp('truck', error) for error in ERRORS] == [1.0] * 5
    assert metrics.tp_errors['trans_err'] == pytest.approx(0.9)
    # and detections of such a class cost nothing
    more = evaluate_all(TRUTH, [*found([0.9, 0.8, 0.7, 0.6], [0.0] * 4), *[box(5, 1.0, 'bicycle')] * 50])
    assert more.nd_score == metrics.nd_score


def test_the_first_tenth_of_recall_is_worth_nothing() -> None:
    """One of eleven found is as good as none; one of nine is worth little, with errors of that one alone."""
    ap, errors = evaluate_class([box(10 * i) for i in range(11)], [box(0, 0.9)])
    assert (ap, errors) == (0.0, dict.fromkeys(ERRORS, 1.0))
    ap, errors = evaluate_class([box(10 * i) for i in range(9)], [box(0, 0.9)])
    assert (ap, errors) == (pytest.approx(1 / 90), dict.fromkeys(ERRORS, 0.0))


def test_who_finds_less_may_have_smaller_errors() -> None:
    rows = found([0.9, 0.8, 0.7, 0.6], [0.0, 0.5, 1.0, 1.5])
    (all_ap, all_errors), (few_ap, few_errors) = evaluate_class(TRUTH, rows), evaluate_class(TRUTH, rows[:2])
    assert few_ap < all_ap and few_errors['trans_err'] < all_errors['trans_err']


def test_errors_are_means_of_means_over_recall() -> None:
    """An error of the most confident detection counts more than the same error of the least confident one."""
    sure, unsure = (evaluate_class(TRUTH, found([0.9, 0.8, 0.7, 0.6], s))[1] for s in ([1.0, 0, 0, 0], [0, 0, 0, 1.0]))
    assert sure['trans_err'] > 0.5 and unsure['trans_err'] < 0.05


def test_objects_without_an_attribute() -> None:
    """Ignored beside others, and the worst error where a class has no other object."""
    bare = [box(0, attribute_name=''), box(10)]
    assert evaluate_class(bare, [box(0, 0.9), box(10, 0.8)])[1]['attr_err'] == 0.0
    assert evaluate_class(bare[:1], [box(0, 0.9)])[1]['attr_err'] == 1.0


def test_errors_above_one_cost_no_more_than_one() -> None:
    truth = [box(10 * i, velocity=(5.0, 0.0)) for i in range(4)]
    slow, slower = (
        evaluate_all(truth, [box(10 * i, 0.9 - 0.1 * i, velocity=(speed, 0.0)) for i in range(4)])
        for speed in (-10.0, -100.0)
    )
    assert slower.tp_errors['vel_err'] > slow.tp_errors['vel_err'] > 1
    assert slower.nd_score == slow.nd_score

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmprune3d.evaluation import NaNPredictionError
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan
from mmprune3d.upgrade.search import PlanSearch, SearchRequest, parse_plan

KEYS, LAYERS = 160, 6


def search(
    drop: Callable[[int, int], float], max_drop: float = 0.01, template: KeyPlan | None = None
) -> tuple[PlanSearch, list[str]]:
    """A search over an invented detector whose mAP falls by `drop(r, n)`."""

    def evaluate(plan: KeyPlan | None) -> dict[str, float]:
        return {'mAP': 0.5 - (drop(plan.r, plan.n) if plan else 0.0), 'NDS': 0.6}

    lines: list[str] = []
    request = SearchRequest(template or TgGBCPlan(r=1), max_drop)
    found = PlanSearch(request, evaluate, KEYS, LAYERS, samples=7, say=lines.append)
    found.run()
    return found, lines


def brute_force(drop: Callable[[int, int], float], max_drop: float) -> tuple[int, int] | None:
    """By definition: the largest r for which some n holds, then the smallest n."""
    holding = [(r, -n) for r in range(10, KEYS, 10) for n in range(1, LAYERS) if drop(r, n) <= max_drop + 1e-9]
    return (max(holding)[0], -max(holding)[1]) if holding else None


@pytest.mark.parametrize('max_drop', [0.0, 0.004, 0.01, 0.03, 0.2])
def test_where_accuracy_falls_with_r_the_search_agrees_with_trying_everything(max_drop: float) -> None:
    def drop(r: int, n: int) -> float:
        return (r / KEYS) ** 2 * (0.02 + 0.1 / n)

    found, _ = search(drop, max_drop)
    expected = brute_force(drop, max_drop)
    assert (None if found.plan is None else (found.plan.r, found.plan.n)) == expected


@pytest.mark.parametrize('seed', range(5))
def test_where_accuracy_jumps_the_result_is_what_is_promised(seed: int) -> None:
    def drop(r: int, n: int) -> float:
        return (r * 7919 + n * 104729 + seed * 31) % 101 / 1000

    found, _ = search(drop)
    r, n = (0, 0) if found.plan is None else (found.plan.r, found.plan.n)
    assert r == 0 or drop(r, n) <= 0.01
    assert all(drop(r, smaller) > 0.01 for smaller in range(1, n))
    assert r == 150 or all(drop(r + 10, any_n) > 0.01 for any_n in range(1, LAYERS))


def test_plans_under_which_the_detector_predicts_nan_do_not_hold() -> None:
    def drop(r: int, n: int) -> float:
        if r > 80:
            raise NaNPredictionError('the detector predicts NaN')
        return 0.0

    found, lines = search(drop)
    assert (found.plan.r, found.plan.n) == (80, 1)
    assert any('predicts NaN' in line for line in lines) and '| not possible |' in found.markdown()


def test_plans_under_which_nothing_is_found_do_not_hold() -> None:
    found, _ = search(lambda r, n: 0.0 if r <= 80 else 0.5)
    assert (found.plan.r, found.plan.n) == (80, 1)


def test_a_detector_that_finds_nothing_unpruned_is_not_searched() -> None:
    with pytest.raises(ValueError, match='mAP and NDS of 0 on these 7 samples'):
        PlanSearch(SearchRequest(TgGBCPlan(r=1)), lambda _: {'mAP': 0.0, 'NDS': 0.0}, KEYS, LAYERS, samples=7)


def test_nothing_is_found_where_everything_costs_too_much() -> None:
    found, lines = search(lambda r, n: 0.3)
    assert found.plan is None and found.to_dict()['found'] is None
    assert lines[-1] == 'Nothing holds the limit' and len(lines) == len(found.trials) + 2


def test_the_drop_of_both_scores_counts() -> None:
    request = SearchRequest(TgGBCPlan(r=1), max_drop=0.01)
    scores = {None: {'mAP': 0.5, 'NDS': 0.6}}
    found = PlanSearch(
        request, lambda plan: scores.get(plan, {'mAP': 0.6, 'NDS': 0.5}), KEYS, LAYERS, 7, lambda _: None
    )
    assert found.run() is None


def test_plans_that_are_not_possible_are_not_evaluated() -> None:
    tried = []

    def drop(r: int, n: int) -> float:
        tried.append((r, n))
        return 0.0

    found, _ = search(drop, template=ToMePlan(r=1))
    impossible = [(trial.plan.r, trial.plan.n) for trial in found.trials if trial.reason]
    assert impossible and not set(impossible) & set(tried)
    assert 'not possible' in found.markdown()


def test_settings_of_the_template_stay() -> None:
    found, _ = search(lambda r, n: 0.0, template=TgGBCPlan(r=1, k=33, score='mean'))
    assert found.plan == TgGBCPlan(r=150, n=1, k=33, score='mean')


def test_the_report_warns_that_the_choice_flatters() -> None:
    found, _ = search(lambda r, n: 0.0)
    assert 'flattering' in found.markdown() and 'flattering' in found.to_dict()['warning']
    assert '| 150 | 1 | 0.5000 | 0.6000 | +0.0000 | +0.0000 | yes |' in found.markdown()


def test_command_line() -> None:
    assert parse_plan('tggbc', 'r=5,n=1') == TgGBCPlan(r=5, n=1)
    assert parse_plan('tome', 'r=5,n=1') == ToMePlan(r=5, n=1)
    request = parse_plan('tggbc', 'auto, k=9', max_drop=0.02, calibrate=3)
    assert request == SearchRequest(TgGBCPlan(r=1, k=9), 0.02, 3)
    assert parse_plan('tggbc', 'auto').max_drop == 0.01


@pytest.mark.parametrize(
    ('text', 'settings', 'message'),
    [
        ('auto,n=2', {}, 'looks for r and n itself'),
        ('auto,m=2', {}, 'unknown setting m; valid are'),
        ('auto', {'max_drop': 1.0}, '0.01 is one point'),
        ('r=5', {'calibrate': 5}, 'are for --tggbc auto'),
    ],
)
def test_what_is_not_valid_is_said(text: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_plan('tggbc', text, **settings)


def test_an_evaluator_without_scores_is_refused() -> None:
    message = 'one of the figures mAP, NDS, bbox_mAP; the evaluator of the config gives loss'
    with pytest.raises(ValueError, match=message):
        PlanSearch(SearchRequest(TgGBCPlan(r=1)), lambda _: {'loss': 1.0}, KEYS, LAYERS, 7)

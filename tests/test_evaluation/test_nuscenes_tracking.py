"""What the unmodified nuScenes devkit (1.2.0) makes of tracks; docs/user_guides/evaluators.md says it in words.

Most of its tracking code imports motmetrics, which our locked set-up does not have: loading, interpolation and the
means over classes are tested without it, what needs it is skipped with that reason.
"""

from __future__ import annotations

import math
import types
from collections import defaultdict

import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.tracking.data_classes import TrackingBox, TrackingConfig, TrackingMetrics
from nuscenes.eval.tracking.loaders import interpolate_tracks
from nuscenes.eval.tracking.metrics import mota_custom, motar

SECOND = 1_000_000  # time stamps are microseconds


@pytest.fixture(scope='module')
def config() -> TrackingConfig:
    return config_factory('tracking_nips_2019')


def track_box(x: float, name: str = 'car', track: str = 'a', score: float = 0.5) -> TrackingBox:
    settings = {'size': (2.0, 4.0, 1.5), 'rotation': (1.0, 0.0, 0.0, 0.0), 'sample_token': 'sample'}
    where = (float(x), 0.0, 0.0)
    return TrackingBox(translation=where, tracking_id=track, tracking_name=name, tracking_score=score, **settings)


def gap_filled(present: dict[float, float], times: list[float]) -> list[float]:
    """Positions at `times`, from a track that is known at some of them."""
    frames = defaultdict(list, {int(t * SECOND): [] for t in times})
    for time, place in present.items():
        frames[int(time * SECOND)] = [track_box(place)]
    return [boxes[0].translation[0] for _, boxes in sorted(interpolate_tracks(frames).items())]


@pytest.mark.usefixtures('config')
def test_interpolation_swaps_its_weights() -> None:
    """A car at 2 m/s, unseen in between: at 0.5 s of 2 s it is put where it will be at 1.5 s, and goes backwards."""
    assert gap_filled({0: 0.0, 2: 4.0}, [0, 0.5, 2]) == pytest.approx([0, 3, 4])
    assert gap_filled({0: 0.0, 2: 4.0}, [0, 0.5, 1, 1.5, 2]) == pytest.approx([0, 3, 2, 1, 4])


@pytest.mark.usefixtures('config')
def test_one_gap_in_the_middle_is_right() -> None:
    """Equal weights may be swapped: keyframes are half a second apart, and a single missing one lies in the middle."""
    assert gap_filled({0: 0.0, 1: 2.0}, [0, 0.5, 1]) == pytest.approx([0, 1, 2])


def test_a_class_without_ground_truth_is_free_in_amota(config: TrackingConfig) -> None:
    """Its values are NaN, and the mean passes over them; detection takes a zero."""
    metrics = TrackingMetrics(config)
    assert len(metrics.class_names) == 7 and math.isnan(metrics.label_metrics['amota']['car'])
    metrics.add_label_metric('amota', 'car', 0.8)
    assert metrics.compute_metric('amota') == pytest.approx(0.8)
    metrics.add_label_metric('amota', 'truck', 0.0)
    assert metrics.compute_metric('amota') == pytest.approx(0.4)


def test_accuracies_are_cut_at_zero() -> None:
    """Ten objects, five found: ten false positives are as bad as a thousand, and MOTAR forgives the five missed."""
    assert motar(None, num_matches=5, num_misses=5, num_switches=0, num_false_positives=0, num_objects=10) == 1.0
    for wrong, expected in ((1, 0.8), (5, 0.0), (1000, 0.0)):
        counts = {'num_misses': 5, 'num_switches': 0, 'num_false_positives': wrong, 'num_objects': 10}
        assert motar(None, num_matches=5, **counts) == pytest.approx(expected)
        assert mota_custom(None, **counts) == pytest.approx(max(0, 0.5 - wrong / 10))


@pytest.fixture(scope='module')
def tracking() -> types.ModuleType:
    pytest.importorskip('motmetrics', reason='the rest of the tracking evaluation needs motmetrics (pip install)')
    from nuscenes.eval.tracking import algo

    return algo


def evaluate_tracks(algo: types.ModuleType, config: TrackingConfig, truth: list, found: list, name: str = 'car'):
    """One scene of two frames."""
    scenes = [{'scene': dict(enumerate(rows))} for rows in (truth, found)]
    settings = (config.dist_fcn_callable, config.dist_th_tp, config.min_recall, config.num_thresholds)
    return algo.TrackingEvaluation(*scenes, name, *settings, config.metric_worst, verbose=False).accumulate()


def test_tracks_of_a_class_without_ground_truth(tracking: types.ModuleType, config: TrackingConfig) -> None:
    """Two false tracks, and not one figure of the class is a number."""
    found = [[track_box(0, 'truck'), track_box(9, 'truck', 'b')]] * 2
    data = evaluate_tracks(tracking, config, [[track_box(0)]] * 2, found, 'truck')
    assert all(math.isnan(value) for value in (*data.motar, *data.mota, *data.fp))


def test_equal_scores_leave_one_threshold(tracking: types.ModuleType, config: TrackingConfig) -> None:
    """All forty recalls get the same figures: with a false track of that score, none of them is without it."""
    truth = [[track_box(0)]] * 2
    found = [[track_box(0), track_box(9, track='b')]] * 2
    data = evaluate_tracks(tracking, config, truth, found)
    assert set(data.confidence) == {0.5} and set(data.motar) == {0.0}
    found = [[track_box(0), track_box(9, track='b', score=0.4)]] * 2
    assert set(evaluate_tracks(tracking, config, truth, found).motar) == {1.0}

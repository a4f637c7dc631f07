from __future__ import annotations

import numpy as np
import pytest
import torch

from mmprune3d.measure.accuracy import evenly_spaced, summarize

OF_NUSCENES = 'NuScenes metric/pred_instances_3d_NuScenes'


def test_figures_of_several_evaluators_are_kept_apart() -> None:
    nuscenes = {f'{OF_NUSCENES}/car_AP_dist_0.5': 0.1, f'{OF_NUSCENES}/mAP': 0.2, f'{OF_NUSCENES}/NDS': 0.3}
    other = {'Mine/mAP': 0.9, 'Mine/boxes': 7, 'plain': 8.0}
    expected = {'mAP': 0.2, 'NDS': 0.3, 'Mine/mAP': 0.9, 'Mine/boxes': 7.0, 'plain': 8.0}
    assert summarize(nuscenes | other) == expected
    # whichever evaluator comes first in the config
    assert summarize(other | nuscenes) == expected
    assert list(summarize(other | nuscenes))[:2] == ['mAP', 'NDS']


def test_one_evaluator_shows_its_summary() -> None:
    assert summarize({'mAP': 0.2, 'NDS': 0.3, 'car_AP_dist_0.5': 0.1}) == {'mAP': 0.2, 'NDS': 0.3}
    assert summarize({'coco/bbox_mAP': 0.4, 'coco/bbox_mAP_50': 0.5}) == {'bbox_mAP': 0.4, 'bbox_mAP_50': 0.5}
    assert summarize({'Mine/boxes': 7}) == {'Mine/boxes': 7.0}


@pytest.mark.parametrize('value', ['much', [1.0, 2.0], None, np.zeros(2), torch.zeros(2)])
def test_what_is_no_number_costs_no_figures(value: object) -> None:
    given = {'Mine/other': value, f'{OF_NUSCENES}/NDS': np.float32(0.25), 'Mine/boxes': torch.tensor(7)}
    assert summarize(given) == {'NDS': 0.25, 'Mine/boxes': 7.0}
    assert summarize({'Mine/other': value}) == {}


def test_samples_are_spread_evenly() -> None:
    assert evenly_spaced(9, 3) == [0, 4, 8] and evenly_spaced(5, None) == evenly_spaced(5, 5) == [0, 1, 2, 3, 4]
    for count in (0, 6):
        with pytest.raises(ValueError, match='valid are 1 to 5'):
            evenly_spaced(5, count)

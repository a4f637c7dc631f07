"""The AlterMOMA study end to end, on a detector and data of a toy's size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from experiments.altermoma import score_statistics, scoring_cost
from experiments.altermoma import study as fusion_study
from experiments.altermoma.features import draw_states
from experiments.altermoma.redundancy import redundancy
from experiments.altermoma.study import STUDY, PrunedRow, run_training
from experiments.altermoma.table import table
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from tests.conftest import TinyDataset
from tests.test_upgrade.small_bevfusion import save_random, small_config

SHORT = {'sparsity': 0.5, 'eval_batches': 1, 'reactivation_steps': 1}
ROWS = {
    'dense': PrunedRow('control'),
    'altermoma-50': PrunedRow('AlterMOMA', {'criterion': 'altermoma', **SHORT}, paper='1.0'),
    'imp-50': PrunedRow('IMP', {'criterion': 'magnitude', 'sparsity': 0.5, 'epochs_per_round': 1, 'rewind': 'init'}),
}


@pytest.fixture
def toy(tiny: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Path, Path]:
    config = small_config(tiny.root, tmp_path / 'logs')
    save_random(config, tmp_path / 'dense.pth')
    monkeypatch.setattr(fusion_study, 'STUDY', replace(STUDY, rows=ROWS))
    monkeypatch.setattr(fusion_study, 'STRIDE', 1)
    monkeypatch.setattr(fusion_study, 'BATCH_SIZE', 1)
    monkeypatch.setattr(fusion_study, 'RECALIBRATION_BATCHES', 1)
    return config, tmp_path / 'dense.pth', tmp_path / 'study'


def test_trainings_and_their_table(toy: tuple[Config, Path, Path]) -> None:
    base, checkpoint, out = toy
    with pytest.MonkeyPatch.context() as patch:
        for name in ROWS:
            result = run_training(base, checkpoint, name, 1, out)
            assert np.isfinite(result['mAP'])
            assert result['loss'] > 0
        lengths = {json.loads(path.read_text())['iterations'] for path in out.glob('*/result.json')}
        assert len(lengths) == 1
        # what is there is not trained again
        patch.setattr('experiments.altermoma.study.training_config', None)
        assert run_training(base, checkpoint, 'altermoma-50', 1, out)['keep']['all'] == pytest.approx(0.5, abs=1e-4)
    weights = torch.load(out / 'altermoma-50-seed1' / 'final.pth', weights_only=True)['state_dict']
    zeros = sum(int((value == 0).sum()) for key, value in weights.items() if key.endswith('weight') and value.dim() > 1)
    total = sum(value.numel() for key, value in weights.items() if key.endswith('weight') and value.dim() > 1)
    assert zeros / total == pytest.approx(0.5, abs=0.02)
    text = table(out)
    assert all(row.title in text for row in ROWS.values())


def test_features_of_all_states_are_drawn(toy: tuple[Config, Path, Path], tmp_path: Path) -> None:
    base, checkpoint, _ = toy
    base.point_cloud_range = base.model.data_preprocessor.voxelize_cfg.point_cloud_range
    plan = AlterMOMAPlan(sparsity=0.9, eval_batches=1, reactivation_steps=2, lr=1e-2)
    states = draw_states(base, checkpoint, plan, 0, tmp_path / 'features.png')
    assert {state: set(maps) for state, maps in states.items()} == {
        'original': {'camera', 'lidar', 'fused'},
        'reactivated': {'camera', 'lidar'},
        'pruned': {'camera', 'lidar', 'fused'},
    }
    for name in ('camera', 'lidar'):
        seen = [states[state][name] for state in states]
        assert all(np.isfinite(values).all() for values in seen)
        assert not any(np.allclose(first, second) for first, second in zip(seen, seen[1:]))
    assert (tmp_path / 'features.png').is_file()


def test_redundancy_of_the_streams(toy: tuple[Config, Path, Path]) -> None:
    base, checkpoint, out = toy
    result = redundancy(base, checkpoint, out, samples=2)
    assert set(result['accuracy']) == {'nothing masked', 'camera masked', 'lidar masked'}
    assert set(result['explained']) == {'camera from lidar', 'lidar from camera'}
    assert all(value <= 1 for value in result['explained'].values())


def test_statistics_of_scores(toy: tuple[Config, Path, Path]) -> None:
    base, checkpoint, out = toy
    plans = {
        'none': AlterMOMAPlan(sparsity=0.8, eval_batches=1, beta=0.0, reactivation_steps=1),
        'usual': AlterMOMAPlan(sparsity=0.8, eval_batches=1, reactivation_steps=1),
    }
    result = score_statistics.score_statistics(base, checkpoint, plans, out)
    for group in ('camera', 'lidar', 'fusion'):
        assert result['none'][group]['top_kept'] == result['none'][group]['top_kept_beta0']
        assert result['usual'][group]['top_kept'] < result['usual'][group]['top_kept_beta0']
        assert -1 <= result['usual'][group]['spearman'] <= 1
    assert '| usual |' in score_statistics.statistics_table(result)


def test_cost_of_scoring(toy: tuple[Config, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, checkpoint, out = toy
    settings = {
        'altermoma': dict(criterion='altermoma', eval_batches=2, reactivation_steps=3),
        'snip': dict(criterion='snip', eval_batches=2),
    }
    monkeypatch.setattr(scoring_cost, 'SETTINGS', settings)
    result = scoring_cost.scoring_cost(base, checkpoint, out)['criteria']
    # without a mask, and for each of two modalities before, during and after the reactivation
    assert result['altermoma']['passes'] == 2 + 2 * (2 + 3 + 2)
    assert result['snip']['passes'] == 2
    assert result['altermoma']['peak_mib'] > result['snip']['peak_mib'] > 0
    assert '| snip | 2 |' in scoring_cost.cost_table(scoring_cost.scoring_cost(base, checkpoint, out))


def test_rank_correlation() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 10.0])
    assert score_statistics.spearman(values, values**3) == pytest.approx(1.0)
    assert score_statistics.spearman(values, -values) == pytest.approx(-1.0)
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4, whichever of the equal ones comes first
    tied, others = torch.tensor([0.0, 5.0, 5.0, 7.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    assert score_statistics.spearman(tied, others) == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)
    assert score_statistics.spearman(tied.flip(0), others.flip(0)) == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)

"""The AlterMOMA study: its configs, its tables, and how redundancy is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from experiments.altermoma import study as fusion_study
from experiments.altermoma.redundancy import explained, redundancy_table
from experiments.altermoma.study import RUNS, SPARSITIES, STUDY, plan_of, run_training, training_config
from experiments.altermoma.table import table
from mmprune3d.engine.loops.settings import PruningSettings
from mmprune3d.engine.runners.altermoma_runner import with_pruning_loop
from mmprune3d.evaluation import NaNPredictionError
from mmprune3d.measure import accuracy

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'bevfusion' / 'bevfusion_tiny.py'


def test_every_row_of_the_study_is_a_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fusion_study, 'dataset_length', lambda _: 100)
    base = Config.fromfile(CONFIG)
    before = base.pretty_text
    lengths = set()
    for name, row in RUNS.items():
        config = training_config(base, row, Path('start.pth'), 3, tmp_path / name)
        lengths.add(
            (
                config.train_cfg.max_epochs,
                len(config.train_dataloader.dataset.indices),
                config.optim_wrapper.optimizer.lr,
            )
        )
        assert config.load_from == 'start.pth'
        assert (row.pruning is None) == (name == 'dense')
        if row.pruning is not None:
            settings = PruningSettings.from_dict(config.pruning)
            assert settings.plan.seed == 3
            assert f'{round(100 * settings.plan.sparsity)}' in name
            # IMP spends the first of its epochs before it prunes, and the others prune at once
            assert settings.due(1) == (1 if name.startswith('imp') else 0)
            assert with_pruning_loop(config).train_cfg.type == 'PruningLoop'
    assert len(lengths) == 1  # all train equally long, on the same data
    assert base.pretty_text == before
    assert plan_of(0.8).criterion == 'altermoma'


def test_an_unfinished_training_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fusion_study, 'dataset_length', lambda _: 100)
    settings = Config.fromfile(CONFIG), RUNS['dense'], Path('start.pth'), 0, tmp_path
    assert not training_config(*settings).resume
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    torch.save({'state_dict': {}}, tmp_path / 'epoch_1.pth')
    config = training_config(*settings)
    assert config.resume
    assert config.load_from == str(tmp_path / 'epoch_1.pth')
    assert config.default_hooks.checkpoint.max_keep_ckpts == 2  # with 1, mmengine deletes it before it saves the next


def test_an_unknown_training_lists_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='valid are dense, imp-80'):
        run_training(Config(), Path('x.pth'), 'altermoma-81', 0, tmp_path)


def write_result(out: Path, name: str, seed: int, mean_ap: float) -> None:
    folder = out / f'{name}-seed{seed}'
    folder.mkdir(parents=True)
    keep = {} if name == 'dense' else {'keep': {'all': 0.2, 'camera': 0.125, 'lidar': 0.41, 'fusion': 0.33}}
    result = {'name': name, 'seed': seed, 'mAP': mean_ap, 'NDS': mean_ap + 0.02, **keep}
    (folder / 'result.json').write_text(json.dumps(result))


def test_the_table_shows_what_was_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no results'):
        STUDY.results(tmp_path)
    write_result(tmp_path, 'dense', 0, 0.4)
    write_result(tmp_path, 'altermoma-80', 1, 0.32)
    write_result(tmp_path, 'altermoma-80', 0, 0.3)
    write_result(tmp_path, 'altermoma-80-beta0', 0, 0.2)
    text = table(tmp_path)
    assert '| AlterMOMA, 80 % | 30.0 / 32.0 (31.0) | 32.0 / 34.0 (33.0) | 12 / 41 / 33 | 67.3 |' in text
    assert '| unpruned, fine-tuned (control) | 40.0 | 42.0 |  | 67.8 |' in text
    assert 'ProsPr' not in text
    assert text.rstrip() == (tmp_path / 'table.md').read_text().rstrip()
    assert len(json.loads((tmp_path / 'table.json').read_text())['results']) == 4
    assert (tmp_path / 'criteria.png').is_file()
    assert (tmp_path / 'beta.png').is_file()
    assert len(SPARSITIES) == 3


def test_explained_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(4000, 6, generator=generator)
    fit = torch.arange(4000) % 2 == 0
    mixed = source @ torch.randn(6, 3, generator=generator) + 5.0
    assert explained(source, mixed, fit) > 0.999
    other = torch.randn(4000, 3, generator=generator)
    assert abs(explained(source, other, fit)) < 0.02
    noisy = mixed + mixed.std() * other  # as much noise as signal
    assert 0.35 < explained(source, noisy, fit) < 0.65


def test_the_table_of_redundancy() -> None:
    text = redundancy_table(
        {
            'accuracy': {'nothing masked': {'mAP': 0.4, 'NDS': 0.41}, 'camera masked': {'mAP': 0.385, 'NDS': 0.4}},
            'explained': {'camera from lidar': 0.123},
        }
    )
    assert '| camera masked | 38.5 | 40.0 |' in text
    assert '| camera from lidar | 12.3 |' in text


def test_a_row_that_predicts_nan_counts_as_nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*_: object, **__: object) -> dict[str, float]:
        raise NaNPredictionError('the detector predicts NaN: 3 of 9 scores of sample 0')

    told = []
    monkeypatch.setattr(accuracy, 'evaluate', evaluate)
    monkeypatch.setattr(accuracy, 'print_log', lambda text, **_: told.append(text))
    assert accuracy.figures_of_row(None, 'imp-90') == {'mAP': 0.0, 'NDS': 0.0}
    assert told[0].startswith('imp-90: the detector predicts NaN') and 'finds nothing' in told[0]


def test_a_result_that_is_not_whole_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'dense-seed0' / 'result.json'
    path.parent.mkdir()
    path.write_text('{"name": "dense", "mAP"')
    with pytest.raises(ValueError, match=r'dense-seed0/result.json is not a complete JSON file .* remove it'):
        STUDY.results(tmp_path)
    with pytest.raises(ValueError, match='remove it, and run again'):
        run_training(Config(), Path('x.pth'), 'dense', 0, tmp_path)

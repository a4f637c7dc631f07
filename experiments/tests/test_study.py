"""What studies share: a row is trained once, goes on after an interruption, and is found again with its seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from experiments import study as studies
from experiments.benchmark import stage_times
from experiments.study import Result, Row, Study
from experiments.tables import by_seed, listed, markdown_table, write_table
from mmprune3d import files

ROWS = {'wide': Row('Wide', paper='1.0'), 'wide-2': Row('Wide, twice')}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(studies, 'require_accuracy_of', lambda config, what: None)
    torch.save({'w': torch.zeros(1)}, tmp_path / 'start.pth')
    return Config(dict(model=dict(type='A')))


def test_a_row_is_trained_once_and_only_its_result_stays(base: Config, tmp_path: Path) -> None:
    trained = []

    def train(config: Config, start: Path, name: str, seed: int, where: Path) -> Result:
        where.mkdir(parents=True, exist_ok=True)
        for file in ('epoch_1.pth', 'final.pth'):
            (where / file).touch()
        if not trained:
            trained.append('half')
            raise KeyboardInterrupt
        trained.append((config, start, name, seed))
        return {'mAP': 0.5}

    study = Study(ROWS, train, leftovers='epoch_*.pth')
    run = (base, tmp_path / 'start.pth', 'wide', 3, tmp_path / 'out')
    with pytest.raises(KeyboardInterrupt):
        study.run_training(*run)
    assert (study.folder(tmp_path / 'out', 'wide', 3) / 'epoch_1.pth').exists()
    for _ in range(2):
        assert study.run_training(*run) == {'name': 'wide', 'seed': 3, 'mAP': 0.5}
    assert trained == ['half', (base, tmp_path / 'start.pth', 'wide', 3)]
    assert {path.name for path in (tmp_path / 'out' / 'wide-seed3').iterdir()} == {'final.pth', 'result.json'}
    with pytest.raises(ValueError, match="no training 'narrow'; valid are wide, wide-2"):
        study.run_training(base, tmp_path / 'start.pth', 'narrow', 0, tmp_path / 'out')
    with pytest.raises(ValueError, match=r'has results of a run with other settings \(model.type was .A., is .B.\)'):
        study.run_training(Config(dict(model=dict(type='B'))), *run[1:])


@pytest.mark.parametrize('folder_name', ['{name}-{seed}', '{name}-seed{seed}'])
def test_results_belong_to_their_row_and_are_ordered_by_seed(folder_name: str, tmp_path: Path) -> None:
    study = Study(ROWS, lambda *_: {}, folder_name)
    with pytest.raises(ValueError, match='has no results; train first, for example wide'):
        study.results(tmp_path)
    for name, seed in (('wide-2', 0), ('wide', 10), ('wide', 2)):
        files.write_json(study.folder(tmp_path, name, seed) / 'result.json', {'name': name, 'seed': seed})
    found = study.results(tmp_path)
    assert list(found) == ['wide', 'wide-2']
    assert [result['seed'] for result in found['wide']] == [2, 10]
    assert [result['seed'] for result in found['wide-2']] == [0]


def test_tables(tmp_path: Path) -> None:
    lines = list(markdown_table(('', 'mAP', 'paper'), [('a', 0.5, ''), ('b', 1, 'x')], 'lrl'))
    assert lines == ['| | mAP | paper |', '|---|---:|---|', '| a | 0.5 |  |', '| b | 1 | x |']
    results = [{'seed': 1, 'mAP': 0.2}, {'seed': 0, 'mAP': 0.1}]
    assert (by_seed(results, 'mAP'), by_seed(results[:1], 'mAP')) == ('10.0 / 20.0 (15.0)', '20.0')
    assert listed({'device': 'cpu', 'batch': 1}) == 'device cpu, batch 1'
    assert write_table(tmp_path, lines, {'a': results[:1], 'b': results[1:]}, env={}) == '\n'.join(lines)
    assert files.read_json(tmp_path / 'table.json') == {'results': results, 'env': {}}
    assert (tmp_path / 'table.md').read_text() == '\n'.join(lines) + '\n'


def test_timed_calls_take_turns_and_the_first_round_warms_up() -> None:
    order = []

    def call(name: str) -> dict[str, float]:
        order.append(name)
        return {'decoder': float(len(order))}

    times = stage_times({name: lambda name=name: call(name) for name in 'ab'}, 2, 'title')
    assert ''.join(order) == 'ababab'
    assert times == {'a': [{'decoder': 3.0}, {'decoder': 5.0}], 'b': [{'decoder': 4.0}, {'decoder': 6.0}]}

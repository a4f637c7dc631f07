"""Compaction: the small detector computes what the pruned one computes, and its training goes on where it was."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint
from torch import Tensor, nn

from mmprune3d.adapters.learned_queries import learned_queries
from mmprune3d.checkpoint.compact import TRAINING_STATE
from mmprune3d.upgrade.compact import build_model, compact, compact_config, run_compact
from tests.test_adapters import small_detr
from tests.test_engine.blink import training_config
from tests.test_models.test_petr.small import batch

ITERATIONS, AT, TARGET = 8, 5, 7
ROOT = Path(__file__).parents[2]
HOOKS = [
    dict(type='GPQHook', target=TARGET, interval=1),
    dict(type='IterationSeedHook'),
    dict(type='EMAHook', momentum=0.1),
]


def config(work_dir: Path, **changes: Any) -> Config:
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.1))
    settings = dict(custom_hooks=HOOKS, optim_wrapper=wrapper, experiment_name=f'compact-{work_dir.name}', **changes)
    return training_config(work_dir, ITERATIONS, 2 * ITERATIONS, groups=2, **settings)


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries go until iteration 5."""
    work_dir = tmp_path_factory.mktemp('train')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '_log_env', lambda *_: None)
        Runner.from_cfg(config(work_dir)).train()
    config(work_dir).dump(work_dir / 'config.py')
    return work_dir


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location='cpu', weights_only=True)


def run(model: nn.Module) -> dict[str, Tensor]:
    data = model.eval().data_preprocessor(batch(), False)
    with torch.no_grad():
        return model(**data, mode='tensor')


def loaded(config: Config, weights: dict[str, Tensor]) -> nn.Module:
    model = build_model(config)
    model.load_state_dict(weights, strict=True)  # torch's own loader: nothing of ours is needed
    return model


@pytest.mark.parametrize('iteration', [2, AT, ITERATIONS])
@pytest.mark.parametrize('part', ['state_dict', 'ema_state_dict'])
def test_outputs_are_equal_bit_for_bit(trained, iteration, part):
    data = checkpoint(trained / f'iter_{iteration}.pth')
    (small,) = compact(config(trained), data)
    assert small.num_queries == small.config.model.pts_bbox_head.num_query == max(12 - iteration, TARGET)
    before, after = (
        {name.removeprefix('module.'): value for name, value in states[part].items() if name != 'steps'}
        for states in (data, small.checkpoint)
    )
    assert not any('removal_rank' in name for name in after)
    found, expected = run(loaded(small.config, after)), run(loaded(config(trained), before))
    assert found['all_cls_scores'].shape[2] == small.num_queries
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_training_goes_on_as_if_the_queries_had_never_been_there(trained, tmp_path):
    """The optimizer of the small detector is aligned: a step with it is a step of the large one."""
    (small,) = compact(config(trained), checkpoint(trained / f'iter_{AT}.pth'))
    torch.save(small.checkpoint, tmp_path / 'small.pth')
    settings = copy.deepcopy(small.config)
    assert all(hook['type'] != 'GPQHook' for hook in settings.custom_hooks)
    settings.merge_from_dict(
        dict(work_dir=str(tmp_path), resume=True, load_from=str(tmp_path / 'small.pth'), experiment_name='small')
    )
    Runner.from_cfg(settings).train()
    found = checkpoint(tmp_path / f'iter_{ITERATIONS}.pth')
    (expected,) = compact(config(trained), checkpoint(trained / f'iter_{ITERATIONS}.pth'))
    for part in ('state_dict', 'ema_state_dict'):
        for name, value in expected.checkpoint[part].items():
            assert torch.equal(found[part][name], value), name


def test_several_sizes_from_one_run(trained):
    data = checkpoint(trained / f'iter_{ITERATIONS}.pth')
    points = 'pts_bbox_head.reference_points'
    rank, rows = (data['state_dict'][f'{points}.{name}'] for name in ('removal_rank', 'weight'))
    made = compact(config(trained), data, sizes=(12, 9, 7), drop=TRAINING_STATE)
    assert [small.num_queries for small in made] == [12, 9, 7]
    for small in made:
        kept = small.checkpoint['meta']['mmprune3d']['compact']['kept']
        assert torch.equal(small.checkpoint['state_dict'][f'{points}.weight'], rows[kept])
        gone = [i for i in range(12) if i not in kept]
        assert sorted(rank[gone].tolist()) == list(range(1, 12 - small.num_queries + 1))  # those that went first
        assert not set(TRAINING_STATE) & set(small.checkpoint) and 'ema_state_dict' in small.checkpoint
        assert small.checkpoint['meta']['mmprune3d']['gpq']['target'] == TARGET
    # rows that come back are as they were when they went; EMAHook keeps the model itself under the other name
    now, then = (checkpoint(trained / f'iter_{i}.pth')['ema_state_dict'] for i in (ITERATIONS, 3))
    assert torch.equal(*(states[f'module.{points}.weight'][rank == 3] for states in (now, then)))


@pytest.mark.parametrize('conditional', [False, True])
def test_detrs_of_mmdet(conditional):
    model = small_detr.build(conditional)
    settings = Config(dict(model=model_config(conditional), default_scope='mmdet'))
    queries = learned_queries(model)
    queries.embedding.remove(torch.tensor([3, 0, 7]))
    (small,) = compact(settings, {'state_dict': model.state_dict(), 'meta': {}})
    assert small.config.model.num_queries == 9
    assert small.config.model.test_cfg.max_per_img == (10 if conditional else 9)
    data = small_detr.batch(2)
    expected = small_detr.outputs(model, data)
    assert all(
        map(
            torch.equal, small_detr.outputs(loaded(small.config, small.checkpoint['state_dict']).eval(), data), expected
        )
    )
    assert type(build_model(small.config).query_embedding) is nn.Embedding


def model_config(conditional: bool) -> dict:
    return small_detr.config(conditional) | dict(test_cfg=dict(max_per_img=10))


def test_nothing_to_compact_and_impossible_sizes(trained):
    data = checkpoint(trained / f'iter_{ITERATIONS}.pth')
    for sizes in ((6,), (13,)):
        with pytest.raises(ValueError, match=f'{sizes[0]} queries; valid are 7 .left now. to 12'):
            compact(config(trained), data, sizes)
    (small,) = compact(config(trained), data)
    with pytest.raises(ValueError, match='has all of its 7 queries: there is nothing to compact'):
        compact(small.config, small.checkpoint)


def test_a_config_that_does_not_say_the_number(trained):
    settings = config(trained)
    del settings.model.pts_bbox_head['num_query']
    queries = learned_queries(build_model(config(trained)))
    with pytest.raises(ValueError, match=r'the config has no model\.pts_bbox_head\.num_query'):
        compact_config(settings, queries, 7)


def test_without_an_optimizer_in_the_config(trained):
    settings = config(trained)
    settings.optim_wrapper = None
    data = checkpoint(trained / f'iter_{ITERATIONS}.pth')
    with pytest.raises(ValueError, match='--drop-training-state'):
        compact(settings, data)
    assert 'optimizer' not in compact(settings, data, drop=TRAINING_STATE)[0].checkpoint


def test_the_command(trained, tmp_path):
    command = [sys.executable, '-m', 'mmprune3d', 'compact', trained / 'config.py', trained / f'iter_{AT}.pth']
    command += ['--at', '9,7', '--drop-training-state', '--out', tmp_path]
    environment_is = dict(capture_output=True, text=True, check=False, cwd=ROOT)
    result = subprocess.run([*map(str, command)], **environment_is)
    assert result.returncode == 0, result.stderr[-2000:]
    for size in (9, 7):
        path = tmp_path / f'iter_{AT}_q{size}'
        assert f'{path}.py {path}.pth' in result.stdout
        settings = Config.fromfile(f'{path}.py')
        with DefaultScope.overwrite_default_scope('mmdet3d'):
            model = build_model(settings)
        load_checkpoint(model, f'{path}.pth', strict=True)
        assert run(model)['all_cls_scores'].shape[2] == size
    assert (tmp_path / f'iter_{AT}_q7.pth').stat().st_size < 0.7 * (trained / f'iter_{AT}.pth').stat().st_size


@pytest.mark.parametrize('missing', ['config.py', 'none.pth'])
def test_missing_files_are_named(trained, tmp_path, missing):
    files = [trained / 'config.py', trained / 'iter_1.pth']
    files[missing.endswith('.pth')] = tmp_path / missing
    with pytest.raises(FileNotFoundError, match=missing):
        run_compact(*files)

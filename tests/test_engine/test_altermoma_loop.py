"""The pieces of a training that prunes: loops, runner, rounds of IMP, the masks of scoring alone, settings."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import LOOPS, RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmprune3d.checkpoint.masks import load_masks
from mmprune3d.engine.batches import CachedBatches, draw, seeded
from mmprune3d.engine.loops.settings import PruningSettings
from mmprune3d.engine.recalibration import recalibrate
from mmprune3d.engine.runners.altermoma_runner import AlterMOMARunner, PruningRunner, with_pruning_loop
from mmprune3d.pruning.altermoma import AlterMOMAPlan, WeightPlan
from mmprune3d.upgrade.masks import prune_checkpoint
from tests.kills import assert_same

from .small_fusion import GROUPS, INTERFACES, SmallFusion, SmallFusionDataset, fusion_config, write_config

CRITERIA = AlterMOMAPlan.criteria


def pruning(criterion: str = 'altermoma', **settings: Any) -> dict:
    quick = dict(sparsity=0.6, eval_batches=2, reactivation_steps=2, groups=GROUPS, interfaces=INTERFACES)
    if criterion == 'synflow':
        quick['rounds'] = 4
    return dict(criterion=criterion, **{**quick, **settings})


def run(work_dir: Path, settings: dict, **changes: Any) -> Runner:
    config = fusion_config(work_dir, runner_type='PruningRunner', pruning=settings, **changes)
    runner = RUNNERS.build(config)
    runner.train()
    return runner


@pytest.mark.parametrize('criterion', CRITERIA)
def test_one_training_scores_prunes_and_fine_tunes(tmp_path, criterion):
    runner = run(tmp_path, pruning(criterion))
    masks = load_masks(tmp_path / 'epoch_3.pth')
    report = json.loads((tmp_path / 'keep_rates.json').read_text())
    total = sum(mask.numel() for mask in masks.values())
    assert report['total']['kept'] == sum(int(mask.sum()) for mask in masks.values()) == total - round(0.6 * total)
    pruned = torch.load(tmp_path / 'pruned.pth', weights_only=True)['state_dict']
    for name, mask in masks.items():
        assert not runner.model.state_dict()[name][~mask].any() and not pruned[name][~mask].any()
        moved = runner.model.state_dict()[name] != pruned[name]
        assert torch.equal(moved, mask) or criterion in ('random', 'magnitude', 'synflow')  # those keep dead weights
    hub = runner.message_hub
    for group, row in report['groups'].items():
        assert hub.get_scalar(f'train/keep_rate_{group}').current() == row['rate']
    saved = torch.load(tmp_path / 'epoch_3.pth', weights_only=True)['meta']['mmprune3d']['altermoma']
    assert saved == PruningSettings.from_dict(pruning(criterion)).plan.to_dict() == report['plan']


def test_pruning_nothing_changes_nothing(tmp_path):
    """Weights, buffers and random numbers are what they were; the loader of the training was not touched."""
    folders = [tmp_path / name for name in ('pruned', 'plain')]
    for folder in folders:
        folder.mkdir()
    changes = dict(model=dict(type='SmallFusion', dropout=0.3), custom_hooks=[dict(type='EMAHook', momentum=0.1)])
    run(folders[0], pruning(sparsity=0.0), **copy.deepcopy(changes))
    Runner.from_cfg(fusion_config(folders[1], **copy.deepcopy(changes))).train()
    ours, theirs = (torch.load(folder / 'epoch_3.pth', weights_only=True) for folder in folders)
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_same(ours[part], theirs[part], part)


def test_iterations_instead_of_epochs(tmp_path):
    loop = dict(by_epoch=False, max_iters=6, val_interval=9)
    checkpoints = dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False))
    runner = run(tmp_path, pruning('snip'), train_cfg=loop, default_hooks=checkpoints)
    assert type(runner.train_loop).__name__ == 'PruningIterLoop'
    for name, mask in load_masks(tmp_path / 'iter_6.pth').items():
        assert not runner.model.state_dict()[name][~mask].any()
    whole = torch.load(tmp_path / 'iter_6.pth', weights_only=True)
    run(
        tmp_path,
        pruning('snip'),
        train_cfg=loop,
        default_hooks=checkpoints,
        resume=True,
        load_from=str(tmp_path / 'iter_2.pth'),
    )
    for part in ('state_dict', 'optimizer', 'mmprune3d'):
        assert_same(torch.load(tmp_path / 'iter_6.pth', weights_only=True)[part], whole[part], part)


def test_recalibration_in_a_training_reaches_the_average(tmp_path):
    hooks = [dict(type='EMAHook', update_buffers=True)]
    run(tmp_path, pruning('magnitude', recalibrate=3), custom_hooks=hooks)
    pruned = torch.load(tmp_path / 'pruned.pth', weights_only=True)
    model = SmallFusion()
    model.load_state_dict(pruned['state_dict'])
    mean = model.fusion_layer[1].running_mean.clone()
    with seeded(0):
        loader = DataLoader(SmallFusionDataset(), batch_size=2, collate_fn=pseudo)
        recalibrate(model, CachedBatches(draw(loader, 3, 0), model.data_preprocessor))
    assert torch.equal(model.fusion_layer[1].running_mean, mean) and mean.any()
    assert torch.equal(pruned['ema_state_dict']['module.fusion_layer.1.running_mean'], mean)


def pseudo(samples: list[dict]) -> dict:
    inputs = {name: [sample['inputs'][name] for sample in samples] for name in samples[0]['inputs']}
    return dict(inputs=inputs, data_samples=[sample['data_samples'] for sample in samples])


def test_the_lottery_ticket(tmp_path):
    """IMP: epochs, rounds of equal ratios, weights from the beginning, an optimizer that forgets."""
    dense = tmp_path / 'dense.pth'
    Runner.from_cfg(fusion_config(tmp_path, train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1))).train()
    (tmp_path / 'epoch_1.pth').rename(dense)
    initial = torch.load(dense, weights_only=True)['state_dict']
    settings = pruning('magnitude', sparsity=0.75, rounds=2, epochs_per_round=1, rewind='init')
    hooks = [dict(type='EMAHook', momentum=0.1)]
    runner = run(tmp_path, settings, load_from=str(dense), custom_hooks=hooks)
    assert 'mmprune3d' not in torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    first, last = (load_masks(tmp_path / f'epoch_{epoch}.pth') for epoch in (2, 3))
    total = sum(mask.numel() for mask in last.values())
    assert sum(int(mask.sum()) for mask in first.values()) == total - (total + 1) // 2
    assert sum(int(mask.sum()) for mask in last.values()) == total - round(0.75 * total)
    assert not any((last[name] & ~first[name]).any() for name in last)
    scored = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)['ema_state_dict']  # EMAHook swaps
    pooled = torch.cat([scored[f'module.{name}'].abs()[first[name]] for name in first])
    threshold = pooled.sort().values[-(total - round(0.75 * total))]
    for name, mask in last.items():
        assert torch.equal(mask, first[name] & (scored[f'module.{name}'].abs() >= threshold))
    rewound = torch.load(tmp_path / 'pruned.pth', weights_only=True)
    assert rewound['optimizer']['state'] == {} and rewound['ema_state_dict']['steps'] == 0
    for name in dict(runner.model.named_parameters()):
        expected = initial[name] * last.get(name, 1)
        assert torch.equal(rewound['state_dict'][name], expected)
        assert torch.equal(rewound['ema_state_dict'][f'module.{name}'], expected)


def test_scoring_alone_finds_the_masks_of_the_training_and_more_can_go(tmp_path):
    Runner.from_cfg(fusion_config(tmp_path)).train()
    source = tmp_path / 'epoch_3.pth'
    config = write_config(tmp_path / 'config.py', tmp_path, pruning=pruning())
    report = prune_checkpoint(config, source, tmp_path / 'out', {})
    masks = load_masks(tmp_path / 'out' / 'masks.pth')
    folder = tmp_path / 'training'
    folder.mkdir()
    run(folder, pruning(), load_from=str(source))
    assert_same(load_masks(folder / 'epoch_3.pth'), masks, 'masks')
    assert json.loads((tmp_path / 'out' / 'report.json').read_text()) == json.loads(json.dumps(report))
    assert (
        (tmp_path / 'out' / 'report.md').read_text().startswith('# altermoma, sparsity 0.6: config\n\n| part | group')
    )
    prune_checkpoint(config, folder / 'epoch_3.pth', tmp_path / 'more', dict(sparsity=0.8, criterion='snip'))
    more = load_masks(tmp_path / 'more' / 'masks.pth')
    assert not any((more[name] & ~mask).any() for name, mask in masks.items())
    for name in ('epochs_per_round', 'recalibrate'):
        with pytest.raises(ValueError, match='needs a training'):
            prune_checkpoint(config, source, tmp_path, {name: 1, 'criterion': 'magnitude'})


@pytest.mark.parametrize(
    'train_cfg, expected',
    [
        (dict(by_epoch=True, max_epochs=2), dict(type='PruningLoop', max_epochs=2)),
        (dict(max_epochs=2, val_interval=1), dict(type='PruningLoop', max_epochs=2, val_interval=1)),
        (dict(type='IterBasedTrainLoop', max_iters=9), dict(type='PruningIterLoop', max_iters=9)),
        (dict(by_epoch=False, max_iters=9), dict(type='PruningIterLoop', max_iters=9)),
        (dict(type=EpochBasedTrainLoop, max_epochs=2), dict(type='PruningLoop', max_epochs=2)),
        (dict(type='mmengine.IterBasedTrainLoop', max_iters=9), dict(type='PruningIterLoop', max_iters=9)),
        (dict(type='mmengine.runner.EpochBasedTrainLoop', max_epochs=2), dict(type='PruningLoop', max_epochs=2)),
    ],
)
@pytest.mark.parametrize('name', ['PruningRunner', 'AlterMOMARunner'])
def test_the_runner_puts_pruning_into_the_loop(train_cfg, expected, name):
    config = Config(dict(runner_type=name, pruning=dict(sparsity=0.8), train_cfg=train_cfg))
    made = with_pruning_loop(config)
    assert made.to_dict() == dict(train_cfg=dict(expected, sparsity=0.8))
    assert config.pruning == dict(sparsity=0.8)
    assert with_pruning_loop(Config(dict(pruning=dict(sparsity=0.8)))).to_dict() == {}


class TheirLoop(EpochBasedTrainLoop):
    """Does something that would be lost."""


def test_loops_of_others_and_runners_as_classes():
    with pytest.raises(ValueError, match=r'the loop .*TheirLoop; valid are EpochBasedTrainLoop, IterBasedTrainLoop'):
        with_pruning_loop(Config(dict(pruning=dict(sparsity=0.8), train_cfg=dict(type=TheirLoop, max_epochs=2))))
    for kind in (AlterMOMARunner, 'mmprune3d.engine.runners.AlterMOMARunner'):
        with pytest.raises(ValueError, match='the config has no pruning'):
            RUNNERS.build(Config(dict(runner_type=kind)))


def test_both_names_are_registered_and_every_setting_is_described():
    for registry, names in (
        (RUNNERS, ('PruningRunner', 'AlterMOMARunner')),
        (LOOPS, ('PruningLoop', 'AlterMOMALoop')),
        (LOOPS, ('PruningIterLoop', 'AlterMOMAIterLoop')),
    ):
        new, old = (registry.get(name) for name in names)
        assert new is old and new.__name__ == names[0]
    assert AlterMOMARunner is PruningRunner and AlterMOMAPlan is WeightPlan
    for field in fields(WeightPlan):
        assert f'\n        {field.name}: ' in WeightPlan.__doc__ and f'``{field.name}``' in PruningSettings.__doc__
    for field in fields(PruningSettings):
        assert f'\n        {field.name}: ' in PruningSettings.__doc__


@pytest.mark.parametrize('loop', ['PruningLoop', 'AlterMOMALoop'])
def test_the_loop_of_a_written_config_prunes_with_any_runner(tmp_path, loop):
    train_cfg = dict(type=loop, max_epochs=1, **pruning('magnitude'))
    Runner.from_cfg(fusion_config(tmp_path, train_cfg=train_cfg)).train()
    assert torch.load(tmp_path / 'epoch_1.pth', weights_only=True)['meta']['mmprune3d']['altermoma']['sparsity'] == 0.6


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(pruning=None), r'the config has no pruning; write pruning = dict\(sparsity=0.8\)'),
        (dict(pruning=dict(sparsty=0.8)), 'unknown setting sparsty; valid are epochs_per_round.*sparsity'),
        (dict(pruning=pruning(flops=0.5, sparsity=None)), "mode='channels' removes channels, for which the model"),
        (dict(pruning=pruning(epochs_per_round=1)), "are for criterion='magnitude' .IMP., not 'altermoma'"),
        (dict(pruning=pruning('magnitude', rounds=2)), 'rounds=2 of magnitude pruning need epochs_per_round'),
        (dict(pruning=pruning('magnitude', rewind='init')), 'before training there is no way back'),
        (dict(pruning=pruning('magnitude', rewind='3', epochs_per_round=1)), "rewind='3'; valid are none, init"),
        (dict(pruning=pruning(recalibrate=-1)), 'recalibrate=-1 must be a whole number'),
        (
            dict(pruning=pruning('magnitude', rounds=3, epochs_per_round=1)),
            'do not fit into max_epochs=3; it must be 4',
        ),
        (dict(pruning=dict(sparsity=0.8)), 'SmallFusion .*has no fusion map'),
        (
            dict(train_cfg=dict(type='OtherLoop')),
            'the loop OtherLoop; valid are EpochBasedTrainLoop, IterBasedTrainLoop',
        ),
        (
            dict(
                pruning=pruning('magnitude', rounds=2, epochs_per_round=1),
                train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
            ),
            'this training counts iterations; IMP needs PruningLoop',
        ),
        (dict(custom_hooks=[dict(type='MaskHook', masks='m.pth')]), 'but the loop makes masks: leave them out'),
    ],
)
def test_trainings_that_cannot_prune(tmp_path, changes, message):
    settings = dict(pruning=pruning(), runner_type='AlterMOMARunner')
    config = fusion_config(tmp_path, **{**settings, **changes})
    if config.pruning is None:
        config.pop('pruning')
    with pytest.raises(ValueError, match=message):
        RUNNERS.build(config).train()
    assert not list(tmp_path.glob('*.pth'))


def test_masks_of_a_loaded_checkpoint_go_first(tmp_path):
    run(tmp_path, pruning('magnitude', sparsity=0.3))
    first = load_masks(tmp_path / 'epoch_3.pth')
    (tmp_path / 'epoch_3.pth').rename(tmp_path / 'masked.pth')
    run(tmp_path, pruning(), load_from=str(tmp_path / 'masked.pth'))
    second = load_masks(tmp_path / 'epoch_3.pth')
    assert not any((second[name] & ~mask).any() for name, mask in first.items())
    assert sum(int(m.sum()) for m in second.values()) < sum(int(m.sum()) for m in first.values())

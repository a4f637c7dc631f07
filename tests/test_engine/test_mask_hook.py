"""Weights that were pruned stay pruned: against a loop by hand, killed and resumed, averaged, in half precision."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet3d.apis import init_model
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmprune3d.adapters.fusion import prunable
from mmprune3d.checkpoint.masks import load_masks, save_masks
from mmprune3d.engine.hooks.mask_hook import MaskHook
from tests.kills import assert_same, in_process

from .small_fusion import SmallFusion, batches, fusion_config

EPOCHS, ITERATIONS = 3, 12
EMA = dict(type='EMAHook', momentum=0.1)


def random_masks(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=generator) > 0.6 for name, p in prunable(SmallFusion()).items()}


@pytest.fixture(scope='module')
def masks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('masks') / 'masks.pth'
    save_masks(path, random_masks(), dict(criterion='random'))
    return path


def train(work_dir: Path, *hooks: dict, **changes: Any) -> Runner:
    custom = [dict(type='IterationSeedHook'), *hooks]
    runner = Runner.from_cfg(fusion_config(work_dir, custom_hooks=custom, **changes))
    runner.train()
    return runner


def checkpoint(work_dir: Path, epoch: int = EPOCHS) -> dict:
    return torch.load(work_dir / f'epoch_{epoch}.pth', weights_only=True)


def assert_masked(state: dict[str, Tensor], masks: dict[str, Tensor], prefix: str = '') -> None:
    """What is removed is zero, positive zero, and what is not has not been touched."""
    for name, mask in masks.items():
        weights = state[prefix + name]
        assert not weights[~mask].any() and not weights[~mask].signbit().any(), name
        assert weights[mask].all(), name


WRAPPERS = [
    dict(optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.5)),
    dict(optimizer=dict(type='SGD', lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True)),
    dict(optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=0.01)),
    dict(optimizer=dict(type='AdamW', lr=1e-2), accumulative_counts=3),
    dict(type='BFloat16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2)),
]


@pytest.mark.parametrize(
    'wrapper, ema',
    [
        *((wrapper, EMA) for wrapper in WRAPPERS),
        (WRAPPERS[0], dict(EMA, begin_epoch=2)),
        (WRAPPERS[0], dict(EMA, update_buffers=True, interval=2)),
    ],
    ids=str,
)
def test_masks_survive_training(masks_file, tmp_path, wrapper, ema):
    masks = random_masks()
    train(tmp_path, dict(type='MaskHook', masks=str(masks_file)), ema, optim_wrapper=wrapper)
    for epoch in range(1, EPOCHS + 1):
        saved = checkpoint(tmp_path, epoch)
        assert_masked(saved['state_dict'], masks)  # the averaged weights, for EMAHook swaps them
        assert_masked(saved['ema_state_dict'], masks, 'module.')
        assert_same(load_masks(tmp_path / f'epoch_{epoch}.pth'), masks, 'masks')
    names = [name for name, _ in SmallFusion().named_parameters()]
    for number, state in saved['optimizer']['state'].items():
        for part in set(state) - {'step'}:
            mask = masks.get(names[number])
            assert mask is None or (not state[part][~mask].any() and state[part][mask].any())


class Watch(Hook):
    priority = 'LOW'

    def __init__(self) -> None:
        self.norms: list[float] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.norms.append(runner.message_hub.get_scalar('train/grad_norm').current())


def test_a_loop_by_hand_gives_the_same_bits(masks_file, tmp_path):
    """Masked gradients are what clipping sees."""
    wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1), clip_grad=dict(max_norm=0.05))
    loader = dict(fusion_config(tmp_path).train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    hooks = [dict(type='IterationSeedHook'), dict(type='MaskHook', masks=str(masks_file))]
    config = fusion_config(tmp_path, custom_hooks=hooks, optim_wrapper=wrapper, train_dataloader=loader)
    runner, watch = Runner.from_cfg(config), Watch()
    runner.register_hook(watch)
    by_hand = SmallFusion()
    by_hand.load_state_dict(runner.model.state_dict())
    runner.train()

    masks, parameters = random_masks(), dict(by_hand.named_parameters())
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    norms = []
    for name, mask in masks.items():
        parameters[name].data[~mask] = 0
    for _ in range(EPOCHS):
        for batch in batches(4):
            optimizer.zero_grad()
            by_hand(**batch, mode='loss')['loss_bbox'].backward()
            for name, mask in masks.items():
                parameters[name].grad[~mask] = 0
            norms.append(float(torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)))
            optimizer.step()
    assert watch.norms == norms
    assert_same(dict(runner.model.state_dict()), dict(by_hand.state_dict()), 'state_dict')


def test_masks_that_keep_everything_change_nothing(tmp_path):
    folders = [tmp_path / name for name in ('with', 'without')]
    for folder in folders:
        folder.mkdir()
    save_masks(tmp_path / 'all.pth', {name: torch.ones_like(mask) for name, mask in random_masks().items()}, {})
    train(folders[0], dict(type='MaskHook', masks=str(tmp_path / 'all.pth')), EMA)
    train(folders[1], EMA)
    ours, theirs = map(checkpoint, folders)
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_same(ours[part], theirs[part], part)


def test_momentum_from_before_the_masks_is_overruled(masks_file, tmp_path):
    sgd = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
    train(tmp_path, EMA, optim_wrapper=sgd, train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1))
    dense = checkpoint(tmp_path, 1)
    assert all(state['momentum_buffer'].any() for state in dense['optimizer']['state'].values())
    train(tmp_path, dict(type='MaskHook', masks=str(masks_file)), EMA, optim_wrapper=sgd, resume=True)
    assert_masked(checkpoint(tmp_path)['state_dict'], random_masks())
    assert_masked(checkpoint(tmp_path)['ema_state_dict'], random_masks(), 'module.')


def test_an_infinite_gradient_of_a_removed_weight_does_no_harm(masks_file, tmp_path):
    hook = MaskHook()
    runner = Runner.from_cfg(fusion_config(tmp_path))
    runner.model.bbox_head.weight.data[:] = torch.inf
    masks = {'bbox_head.weight': torch.zeros(2, 6, dtype=torch.bool)}
    hook.set_masks(runner, masks, {})
    assert not runner.model.bbox_head.weight.any()
    (runner.model.bbox_head.weight * torch.inf).sum().backward()
    assert torch.equal(runner.model.bbox_head.weight.grad, torch.zeros(2, 6))
    hook.stop()
    (runner.model.bbox_head.weight * 3).sum().backward()
    assert torch.equal(runner.model.bbox_head.weight.grad, torch.full((2, 6), 3.0))


@pytest.mark.parametrize('point, iteration, priority', [('after', 5, 0), ('after', 9, 45), ('saving', 8, 95)], ids=str)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(masks_file, tmp_path, point, iteration, priority):
    """The file with the masks may be gone by then."""
    folders = [tmp_path / name for name in ('whole', 'killed')]
    for folder in folders:
        folder.mkdir()
    hook, checkpoints = (
        dict(type='MaskHook', masks=str(masks_file)),
        dict(checkpoint=dict(type='CheckpointHook', interval=1)),
    )
    changes = dict(default_hooks=checkpoints)
    train(folders[0], hook, EMA, **changes)
    killer = dict(type='SigKillHook', point=point, iteration=iteration, priority=priority)
    assert in_process(train, folders[1], hook, EMA, killer, **changes) == -signal.SIGKILL
    train(folders[1], dict(type='MaskHook'), EMA, resume=True, **changes)
    ours, theirs = (checkpoint(folder) for folder in folders)
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'mmprune3d'):
        assert_same(ours[part], theirs[part], part)


def test_a_masked_checkpoint_is_tested_without_the_hook(masks_file, tmp_path):
    train(tmp_path, dict(type='MaskHook', masks=str(masks_file)))
    path = str(tmp_path / f'epoch_{EPOCHS}.pth')
    results = []
    for hooks in ([], [dict(type='MaskHook')], [dict(type='MaskHook', masks=str(masks_file))]):
        runner = Runner.from_cfg(fusion_config(tmp_path, load_from=path, custom_hooks=hooks))
        results.append(runner.test())
        assert_masked(runner.model.state_dict(), random_masks())
    assert results[0] == results[1] == results[2]
    model = init_model(fusion_config(tmp_path), path, device='cpu')
    assert_masked(model.state_dict(), random_masks())


def test_masks_apply_to_a_dense_checkpoint_in_a_test_and_in_validation(masks_file, tmp_path):
    train(tmp_path)
    dense = str(tmp_path / f'epoch_{EPOCHS}.pth')
    hook = dict(type='MaskHook', masks=str(masks_file))
    for what in ('test', 'val'):
        runner = Runner.from_cfg(fusion_config(tmp_path, load_from=dense, custom_hooks=[hook]))
        getattr(runner, what)()
        assert_masked(runner.model.state_dict(), random_masks())


def test_fine_tuning_a_masked_checkpoint_takes_its_masks_unless_others_are_given(masks_file, tmp_path):
    train(tmp_path, dict(type='MaskHook', masks=str(masks_file)))
    path = str(tmp_path / f'epoch_{EPOCHS}.pth')
    train(tmp_path, dict(type='MaskHook'), load_from=path)
    assert_masked(checkpoint(tmp_path)['state_dict'], random_masks())
    save_masks(tmp_path / 'others.pth', random_masks(1), {})
    train(tmp_path, dict(type='MaskHook', masks=str(tmp_path / 'others.pth')), load_from=path)
    found = checkpoint(tmp_path)['state_dict']  # what only the first masks removed may stay zero
    assert not any(found[name][~mask].any() for name, mask in random_masks(1).items())
    assert_same(load_masks(tmp_path / f'epoch_{EPOCHS}.pth'), random_masks(1), 'masks')


@HOOKS.register_module()
class ShardedHook(Hook):
    """Pretends that the model is sharded."""

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        runner.model.__class__ = type('MMFullyShardedDataParallel', (SmallFusion,), {})


def with_masks(masks: dict[str, Tensor]) -> Any:
    return lambda folder: (save_masks(folder / 'm.pth', masks, {}), dict(type='MaskHook', masks=str(folder / 'm.pth')))[
        1
    ]


@pytest.mark.parametrize(
    'hooks, message',
    [
        (lambda _: dict(type='MaskHook'), 'MaskHook: no masks. Give the file that "mmprune3d prune" wrote'),
        (
            with_masks({'head.weight': torch.ones(2, 6) > 0}),
            'masks of 1 parameters that the model lacks: head.weight; it has',
        ),
        (
            with_masks({'bbox_head.weight': torch.ones(6, 2) > 0}),
            r'bbox_head.weight: shape \[6, 2\], the parameter has \[2, 6\]',
        ),
        (with_masks({}), 'm.pth has no masks'),
    ],
)
def test_what_does_not_fit(tmp_path, hooks, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, hooks(tmp_path))
    assert not list(tmp_path.glob('epoch_*'))


def test_sharded_parameters_are_refused(masks_file, tmp_path):
    with pytest.raises(ValueError, match='FullyShardedDataParallel are pieces'):
        train(tmp_path, dict(type='ShardedHook'), dict(type='MaskHook', masks=str(masks_file)))

"""A shorter or longer training with other rates has the old curve of learning rates, stretched and scaled."""

from __future__ import annotations

import copy
import inspect
from fractions import Fraction
from typing import Any

import pytest
import torch
from mmdet.registry import PARAM_SCHEDULERS
from mmengine.hooks import EMAHook
from mmengine.optim.scheduler import LinearLR, MultiStepLR, lr_scheduler, momentum_scheduler, param_scheduler
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler

from mmprune3d.upgrade.schedules import COMMON, SCHEDULERS, scaled, stretched, stretched_hooks

LENGTH = 40
"""Iterations per epoch."""
WHOLE = 12
RATE, MOMENTUM = 0.01, 0.9


def built(entries: list[dict[str, Any]], optimizer: torch.optim.Optimizer, epochs: int) -> list[_ParamScheduler]:
    """Schedulers as the Runner of mmengine builds them."""
    made = []
    for entry in copy.deepcopy(entries):
        entry.setdefault('end', epochs if entry.get('by_epoch', True) else epochs * LENGTH)
        made.append(PARAM_SCHEDULERS.build(entry, default_args=dict(optimizer=optimizer, epoch_length=LENGTH)))
    return made


def curve(entries: list[dict[str, Any]], epochs: int, rate: float = RATE) -> dict[str, torch.Tensor]:
    """Learning rate and momentum in every iteration of a training, one that nothing improves in its validations."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=MOMENTUM)
    schedulers, seen = built(entries, optimizer, epochs), []
    for _ in range(epochs):
        for _ in range(LENGTH):
            seen.append([optimizer.param_groups[0][name] for name in ('lr', 'momentum')])
            optimizer.step()
            _step(schedulers, by_epoch=False)
        _step(schedulers, by_epoch=True)
        for scheduler in schedulers:
            if getattr(scheduler, 'need_val_args', False):
                scheduler.step({'loss': 1.0})
    return dict(zip(('lr', 'momentum'), torch.tensor(seen, dtype=torch.float64).T))


def _step(schedulers: list[_ParamScheduler], by_epoch: bool) -> None:
    for scheduler in schedulers:
        if scheduler.by_epoch is by_epoch:
            scheduler.step()


def unit(entries: list[dict[str, Any]]) -> int:
    """Iterations between two values."""
    per_epoch = [one for one in entries if one.get('by_epoch', True) and not one.get('convert_to_iter_based', False)]
    return LENGTH if per_epoch else 1


def assert_stretched(
    old: torch.Tensor, new: torch.Tensor, ratio: Fraction, slack: float, factor: float, rest: float
) -> None:
    """Every value of `new` lies between those that `old` has around the same place, times the factor.

    Args:
        old: [iterations].
        new: [iterations * ratio].
        ratio: Length over length.
        slack: Iterations of `old` to both sides.
        factor: Of the rates.
        rest: What rounding may change, as a share of the highest value; and a five-hundredth of each.
    """
    for position, value in enumerate(new.tolist()):
        middle = position / float(ratio)
        around = old[max(int(middle - slack), 0) : int(middle + slack) + 2] * factor
        low, high = float(around.min()), float(around.max())
        if middle + slack > len(old):  # a step further than `old` got
            low, high = 2 * low - high, 2 * high - low
        room = rest * factor * float(old.max()) + value / 500
        low, high = low - room, high + room
        assert low <= value <= high, (position, value, low, high)


WARM = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=60)
CASES: dict[str, list[dict[str, Any]]] = {
    'nothing': [],
    'warm-up': [WARM],
    'warm-up by epoch': [dict(type='LinearLR', start_factor=0.1, end=4)],
    'warm-up by epoch, converted': [dict(type='LinearLR', start_factor=0.1, end=3, convert_to_iter_based=True)],
    'linear fall over all epochs': [dict(type='LinearLR', start_factor=1, end_factor=0.01)],
    'constant': [dict(type='ConstantLR', factor=0.2, end=6)],
    'constant by iteration': [dict(type='ConstantLR', factor=0.2, by_epoch=False, begin=30, end=90)],
    'constant, converted': [dict(type='ConstantLR', factor=0.2, begin=1, end=6, convert_to_iter_based=True)],
    'cosine': [dict(type='CosineAnnealingLR', T_max=WHOLE, eta_min=1e-5)],
    'cosine without T_max': [dict(type='CosineAnnealingLR', begin=1, end=WHOLE, eta_min_ratio=0.01)],
    'cosine by iteration': [dict(type='CosineAnnealingLR', T_max=WHOLE * LENGTH, by_epoch=False, eta_min=1e-4)],
    'cosine that goes up again': [dict(type='CosineAnnealingLR', T_max=4, eta_min=1e-4)],
    'cosine that goes up again, by iteration': [
        dict(type='CosineAnnealingLR', T_max=4 * LENGTH, eta_min=1e-4, by_epoch=False)
    ],
    'cyclic': [
        dict(type='CosineAnnealingLR', T_max=5, end=5, eta_min=10 * RATE, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=7, begin=5, end=12, eta_min=1e-4 * RATE, convert_to_iter_based=True),
        dict(type='CosineAnnealingMomentum', T_max=5, end=5, eta_min=0.85, convert_to_iter_based=True),
        dict(type='CosineAnnealingMomentum', T_max=7, begin=5, end=12, eta_min=0.95, convert_to_iter_based=True),
    ],
    'restarts': [dict(type='CosineRestartLR', periods=[4, 8], restart_weights=[1, 0.5], eta_min=1e-5)],
    'restarts, converted': [
        dict(type='CosineRestartLR', periods=[4, 8], restart_weights=[1, 1], eta_min=0, convert_to_iter_based=True)
    ],
    'restarts by iteration': [
        dict(type='CosineRestartLR', periods=[150] * 4, restart_weights=[1] * 4, eta_min_ratio=0.1, by_epoch=False)
    ],
    'exponential': [dict(type='ExponentialLR', gamma=0.7)],
    'exponential by iteration': [dict(type='ExponentialLR', gamma=0.99, by_epoch=False, begin=40, end=400)],
    'exponential, converted': [dict(type='ExponentialLR', gamma=0.99, begin=3, end=8, convert_to_iter_based=True)],
    'milestones': [WARM, dict(type='MultiStepLR', milestones=[8, 11], end=WHOLE, gamma=0.1)],
    'milestones by iteration': [dict(type='MultiStepLR', milestones=[333, 333, 500], by_epoch=False, begin=20)],
    'milestones, converted': [dict(type='MultiStepLR', milestones=[3, 5], begin=2, convert_to_iter_based=True)],
    'one cycle': [dict(type='OneCycleLR', eta_max=0.1, total_steps=WHOLE, pct_start=0.4)],
    'one cycle without total_steps': [dict(type='OneCycleLR', eta_max=0.1, convert_to_iter_based=True)],
    'one cycle by iteration': [dict(type='OneCycleLR', eta_max=0.1, total_steps=WHOLE * LENGTH, by_epoch=False)],
    'one cycle, converted': [
        dict(type='OneCycleLR', eta_max=0.1, total_steps=WHOLE, pct_start=0.1, convert_to_iter_based=True)
    ],
    'one cycle that goes on': [
        dict(type='OneCycleLR', eta_max=[0.1], total_steps=WHOLE + 1, three_phase=True, convert_to_iter_based=True)
    ],
    'polynomial': [dict(type='PolyLR', power=0.9, eta_min=1e-4)],
    'polynomial by iteration': [dict(type='PolyLR', power=2, eta_min=1e-4, begin=100, end=500, by_epoch=False)],
    'polynomial, converted': [dict(type='PolyLR', power=1, eta_min=1e-4, end=7, convert_to_iter_based=True)],
    'plateau': [dict(type='ReduceOnPlateauLR', patience=3, factor=0.3, min_value=2e-4)],
    'steps': [dict(type='StepLR', step_size=5, gamma=0.3)],
    'steps by iteration': [dict(type='StepLR', step_size=120, gamma=0.3, by_epoch=False)],
    'steps, converted': [dict(type='StepLR', step_size=5, begin=1, gamma=0.3, convert_to_iter_based=True)],
    'quadratic': [dict(type='mmdet.QuadraticWarmupLR', end=4, convert_to_iter_based=True)],
    'quadratic by iteration': [dict(type='mmdet.QuadraticWarmupLR', end=150, by_epoch=False)],
    'another parameter': [
        dict(type='CosineAnnealingParamScheduler', param_name='momentum', T_max=WHOLE, eta_min=0.5),
        dict(type='MultiStepParamScheduler', param_name='lr', milestones=[7], gamma=0.5),
    ],
    'momentum in steps': [dict(type='MultiStepMomentum', milestones=[5], gamma=0.9)],
}
LENGTHS = (1, 5, 6, 24, 30)
ROUNDING = {'exponential': 0.03, 'quadratic': 0.15, 'restarts': 0.15}
"""Name -> what a step more or less changes for good, as a share of the highest rate."""
REFUSED = {('restarts', 1), ('restarts, converted', 1), ('cosine that goes up again', 1)}
"""Restarts inside an epoch."""


@pytest.mark.parametrize('epochs', LENGTHS)
@pytest.mark.parametrize('name', CASES)
def test_the_curve_is_stretched_and_scaled(name: str, epochs: int) -> None:
    entries = CASES[name]
    if (name, epochs) in REFUSED:
        with pytest.raises(ValueError, match=f'do not fit into 1 of {WHOLE} epochs'):
            stretched(entries, WHOLE, epochs)
        return
    new = scaled(stretched(entries, WHOLE, epochs), 0.5)
    old, found = curve(entries, WHOLE), curve(new, epochs, 0.5 * RATE)
    ratio = Fraction(epochs, WHOLE)
    slack = (unit(entries) + 1) + (unit(new) + 1) / float(ratio)
    if 'restarts' in name or 'again' in name:  # they are moved to whole epochs
        slack += LENGTH / 2 / float(ratio)
    rest = ROUNDING.get(name.split()[0].rstrip(','), 1e-5)
    assert_stretched(old['lr'], found['lr'], ratio, slack, 0.5, rest)
    assert_stretched(old['momentum'], found['momentum'], ratio, slack, 1.0, rest)


def test_the_table_has_every_scheduler_of_mmengine() -> None:
    modules = (lr_scheduler, momentum_scheduler, param_scheduler)
    found = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
    classes = {one for one in found if issubclass(one, _ParamScheduler) and one is not _ParamScheduler}
    assert len(classes) >= 29
    for kind in classes:
        assert any(parent in SCHEDULERS for parent in kind.__mro__), kind
        tested = {type_of(entry) for entries in CASES.values() for entry in entries}
        base = next(parent for parent in kind.__mro__ if parent in SCHEDULERS)
        assert any(issubclass(one, base) for one in tested), base


def type_of(entry: dict[str, Any]) -> type:
    return PARAM_SCHEDULERS.get(entry['type'])


def test_the_table_knows_every_parameter() -> None:
    for kind, meaning in SCHEDULERS.items():
        known = {*COMMON, *meaning.counts, *meaning.rates, *meaning.plain, 'optimizer', 'self'}
        assert set(inspect.signature(kind.__init__).parameters) <= known, kind


def test_one_whole_training_changes_nothing() -> None:
    for entries in CASES.values():
        assert scaled(stretched(entries, WHOLE, WHOLE), 1) == entries
        assert stretched(entries, WHOLE, WHOLE) is not entries


@pytest.mark.parametrize(
    ('entry', 'momentum'),
    [
        (dict(type='CosineAnnealingMomentum', eta_min=0.8), 0.8),
        (dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min=0.8), 0.8),
        (dict(type='CosineAnnealingParamScheduler', param_name='lr', eta_min=0.8), 0.4),
        (dict(type='CosineAnnealingLR', eta_min=0.8), 0.4),
    ],
)
def test_only_learning_rates_are_scaled(entry: dict[str, Any], momentum: float) -> None:
    assert scaled([entry], 0.5)[0]['eta_min'] == momentum


def test_rates_of_groups_and_of_plateaus() -> None:
    assert scaled(dict(type='OneCycleLR', eta_max=[0.2, 0.4]), 0.5)[0]['eta_max'] == [0.1, 0.2]
    plateau = scaled(dict(type='ReduceOnPlateauLR', min_value=[0.2, 0.4]), 0.5)[0]
    assert plateau['min_value'] == [0.1, 0.2] and plateau['eps'] == 5e-9
    assert stretched(dict(type='ReduceOnPlateauLR', patience=0), 10, 2)[0]['patience'] == 0


def test_types_in_every_form_and_every_structure() -> None:
    as_class, dotted = dict(type=MultiStepLR, milestones=[8, 11]), 'mmengine.optim.scheduler.MultiStepLR'
    halves = [dict(entry, milestones=[4, 6]) for entry in (as_class, dict(as_class, type=dotted))]
    assert stretched(dict(as_class, milestones=[8, 12]), 12, 6) == halves[:1]
    assert stretched((dict(as_class, type=dotted, milestones=[8, 12]),), 12, 6) == halves[1:]
    several = stretched(dict(one=[as_class], other=dict(type=LinearLR, by_epoch=False, end=100)), 12, 24)
    assert several['one'][0]['milestones'] == [16, 22] and several['other'][0]['end'] == 200
    assert stretched(None, 12, 6) is None and scaled([], 0.5) == []


class OtherScheduler(_ParamScheduler):
    """Of somebody else."""


class BentCosine(lr_scheduler.CosineAnnealingLR):
    """With a parameter of its own."""


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        (dict(type=OtherScheduler), 'OtherScheduler mean .* is not known; known are ConstantLR, CosineAnnealingLR, '),
        (dict(type='NoSuchLR'), 'NoSuchLR mean'),
        (dict(end=3), 'valid are entries with a type'),
        (dict(type=BentCosine, bend=3), 'BentCosine has unknown bend; valid are type, .*T_max, eta_min'),
        ('CosineAnnealingLR', 'valid are entries with a type'),
    ],
)
def test_what_is_not_known_is_named(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stretched([entry], 12, 6)
    with pytest.raises(ValueError, match=message):
        scaled([entry], 0.5)


def test_hooks_act_at_the_same_share_of_the_training() -> None:
    pipeline = dict(type='mmdet.PipelineSwitchHook', switch_epoch=18, switch_pipeline=[])
    hooks = [
        dict(type='DisableObjectSampleHook'),
        dict(type='mmdet3d.DisableObjectSampleHook', disable_after_epoch=16),
        pipeline,
        dict(type=EMAHook, begin_epoch=4),
        dict(type='mmdet.YOLOXModeSwitchHook', num_last_epochs=5),
        dict(type='IterTimerHook'),
        dict(type='HookOfSomebody', disable_after_epoch=16),
    ]
    short = stretched_hooks(hooks, 20, 5)
    assert [hook.get('disable_after_epoch') for hook in short[:2]] == [4, 4]
    assert short[2] == dict(pipeline, switch_epoch=4) and short[3] == dict(type=EMAHook, begin_epoch=1)
    assert short[4]['num_last_epochs'] == 1 and short[5:] == hooks[5:]
    assert stretched_hooks(hooks, 20, 20) == hooks and stretched_hooks(None, 20, 5) == []

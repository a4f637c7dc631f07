"""What the parameters of a scheduler mean, so that a training can be made shorter or longer and its rates lower.

A parameter is a count (of epochs or iterations, as `by_epoch` says), a rate (an absolute value of what is scheduled),
or neither (factors, ratios, names). Another length stretches all counts alike, warm-ups in iterations too; another
learning rate scales the rates of learning rate schedulers, not those of momentum. The curve is then the old one,
stretched and scaled. `SCHEDULERS` is the table, with every scheduler of mmengine 0.10 and mmdet's quadratic warm-up.

A value per epoch becomes one per iteration where a training gets shorter, and counts of epochs that do not come out
even are parts of an epoch: mmengine converts them (``convert_to_iter_based``) if a scheduler is smooth. Steps between
two epochs become schedulers that multiply once. Where neither is possible (restarts, plateaus, exponential decay per
epoch) counts are rounded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil
from typing import Any

from mmdet.engine.hooks import PipelineSwitchHook, YOLOXModeSwitchHook
from mmdet.engine.schedulers import QuadraticWarmupParamScheduler
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmdet.registry import PARAM_SCHEDULERS
from mmdet3d.engine.hooks import DisableObjectSampleHook
from mmdet3d.registry import HOOKS as MMDET3D_HOOKS
from mmengine.hooks import EMAHook
from mmengine.optim.scheduler import lr_scheduler, momentum_scheduler
from mmengine.optim.scheduler import param_scheduler as base
from mmengine.optim.scheduler.param_scheduler import INF

from mmprune3d.config_types import class_of, dotted

Entry = dict[str, Any]

COMMON = ('type', '_scope_', 'param_name', 'by_epoch', 'convert_to_iter_based', 'begin', 'end', 'last_step', 'verbose')
"""Parameters of every scheduler."""
SHORTEST = 2
"""Steps of a range: a linear or constant scheduler of one step (mmengine 0.10) never gives the rate back."""


@dataclass(frozen=True)
class Stretch:
    """From a training of `whole` epochs to one of `epochs`."""

    whole: int
    epochs: int

    @property
    def ratio(self) -> Fraction:
        """Length of the new training divided by that of the old one."""
        return Fraction(self.epochs, self.whole)

    def __call__(self, count: float) -> Fraction:
        """A count in the new training, exactly."""
        return Fraction(count).limit_denominator(10**6) * self.ratio


@dataclass(frozen=True)
class Meaning:
    """A row of the table.

    Attributes:
        stretch: Gives the entries that do in the new training what one entry does in the old one.
        counts: Parameters that `stretch` changes, besides ``begin`` and ``end``.
        rates: Absolute values -> their defaults.
        plain: Parameters that stay as they are.
    """

    stretch: Callable[[Entry, Stretch], list[Entry]]
    counts: tuple[str, ...] = ()
    rates: Mapping[str, float | None] = field(default_factory=dict)
    plain: tuple[str, ...] = ()


def _number(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def _stretched(entry: Entry, names: Sequence[str], to: Stretch) -> dict[str, Fraction]:
    """The counts that an entry has; one without an end (None, or mmengine's infinity) is left out."""
    return {name: to(entry[name]) for name in names if entry.get(name) is not None and entry[name] < INF}


def _rounded(entry: Entry, names: Sequence[str], to: Stretch) -> Entry:
    """`entry` with whole counts, above 0 if they were, and a range of at least `SHORTEST`."""
    counts = {name: max(round(value), int(value > 0)) for name, value in _stretched(entry, names, to).items()}
    if 'end' in counts:
        counts['end'] = max(counts['end'], counts.get('begin', 0) + SHORTEST)
    return {**entry, **counts}


def _plateau(entry: Entry, to: Stretch) -> list[Entry]:
    """Plateaus, which count validations: the rate falls in the one after `patience` without progress (default 10)."""
    patience = max(round(to(entry.get('patience', 10) + 1)) - 1, 0)
    return [{**_rounded(entry, ('begin', 'end', 'cooldown'), to), 'patience': patience}]


def _smooth(entry: Entry, to: Stretch) -> list[Entry]:
    """Ranges; where epochs do not come out even, or fewer of them show the curve, iterations are counted instead."""
    names = ('begin', 'end', 'T_max')
    if not entry.get('by_epoch', True):
        return [_rounded(entry, names, to)]
    counts = _stretched(entry, names, to)
    if 'T_max' in counts and counts['T_max'].denominator != 1 and _overruns(entry, to):
        counts['T_max'] = Fraction(_at_least_one([round(counts['T_max'])], entry, 'T_max', to)[0])
    if to.ratio < 1 or any(value.denominator != 1 for value in counts.values()):
        entry = {**entry, 'convert_to_iter_based': True}
    return [{**entry, **{name: _number(value) for name, value in counts.items()}}]


def _overruns(entry: Entry, to: Stretch) -> bool:
    """Whether a cosine goes up again: mmengine's formula then wants T_max to be whole, or divides by nearly 0."""
    return min(entry.get('end', to.whole), to.whole) - entry.get('begin', 0) > entry['T_max']


def _cycle(entry: Entry, to: Stretch) -> list[Entry]:
    """One cycle: its length is ``total_steps``, which mmengine wants whole, or the range."""
    # mmengine 0.10 divides by 0 where pct_start makes a rise of exactly one step
    entry = {**entry, 'pct_start': min(entry.get('pct_start', 0.3) * (1 + 1e-6), 1.0)}
    total = entry.get('total_steps')
    if total is None:
        return _smooth(entry, to)
    if not entry.get('by_epoch', True):
        return [_rounded(entry, ('begin', 'end', 'total_steps'), to)]
    if to(total).denominator == 1:
        return [{**one, 'total_steps': int(to(total))} for one in _smooth(entry, to)]
    rest = {name: value for name, value in entry.items() if name != 'total_steps'}
    return _smooth({**rest, 'end': entry.get('begin', 0) + total}, to)


def _milestones(entry: Entry, to: Stretch) -> list[Entry]:
    """Schedulers that multiply the rate by a factor at listed steps (``MultiStepLR``)."""
    if not entry.get('by_epoch', True):
        rounded = [max(round(to(mark)), 1) for mark in entry['milestones']]
        return [{**_rounded(entry, ('begin', 'end'), to), 'milestones': rounded}]
    marks = [to(mark) for mark in entry['milestones']]
    if _even(entry, marks, to):
        return [{**_rounded(entry, ('begin', 'end'), to), 'milestones': [round(mark) for mark in marks]}]
    return _jumps(entry, entry['milestones'], to)


def _steps(entry: Entry, to: Stretch) -> list[Entry]:
    """A factor every `step_size` steps; where those are rounded, the factor changes so that the envelope stays."""
    size, gamma, by_epoch = to(entry['step_size']), entry.get('gamma', 0.1), entry.get('by_epoch', True)
    if by_epoch and not _even(entry, [size], to) and gamma <= 1:
        last = min(entry.get('end', to.whole), to.whole) - entry.get('begin', 0)
        return _jumps(entry, range(entry['step_size'], ceil(last), entry['step_size']), to)
    whole = max(round(size), 1)
    counts = _rounded(entry, ('begin', 'end'), to)
    return [{**counts, 'step_size': whole, 'gamma': gamma ** float(whole / size)}]


def _even(entry: Entry, marks: Sequence[Fraction], to: Stretch) -> bool:
    """Whether epochs come out even, or have to be rounded: mmengine has no single factor above 1."""
    ends = _stretched(entry, ('begin', 'end'), to).values()
    return entry.get('gamma', 0.1) > 1 or all(value.denominator == 1 for value in (*marks, *ends))


def _jumps(entry: Entry, marks: Sequence[int], to: Stretch) -> list[Entry]:
    """A scheduler per milestone that multiplies once, at an iteration between two epochs, and never again."""
    kind = class_of(entry['type'], PARAM_SCHEDULERS) or object
    if issubclass(kind, lr_scheduler.LRSchedulerMixin):
        constant: type = lr_scheduler.ConstantLR
    elif issubclass(kind, momentum_scheduler.MomentumSchedulerMixin):
        constant = momentum_scheduler.ConstantMomentum
    else:
        constant = base.ConstantParamScheduler
    begin, end = entry.get('begin', 0), entry.get('end', INF)
    rest: Entry = {name: entry[name] for name in ('param_name', 'verbose') if name in entry}
    one: Entry = dict(
        type=constant.__name__, factor=entry.get('gamma', 0.1), end=INF, convert_to_iter_based=True, **rest
    )
    return [{**one, 'begin': _number(to(begin + mark))} for mark in marks if begin + mark < end]


def _decay(entry: Entry, to: Stretch) -> list[Entry]:
    """A factor per step, which becomes another one, so that the whole decay stays."""
    entry = {**entry, 'gamma': entry['gamma'] ** float(1 / to.ratio)}
    if entry.get('by_epoch', True) and entry.get('convert_to_iter_based', False):
        return _smooth(entry, to)
    return [_rounded(entry, ('begin', 'end'), to)]


def _periods(entry: Entry, to: Stretch) -> list[Entry]:
    """Periods with restarts between them, which have to be at whole steps."""
    ends = [0, *(round(to(end)) for end in accumulate(entry['periods']))]
    periods = _at_least_one([after - before for before, after in pairwise(ends)], entry, 'periods', to)
    return [{**_rounded(entry, ('begin', 'end'), to), 'periods': periods}]


def _at_least_one(counts: list[int], entry: Entry, name: str, to: Stretch) -> list[int]:
    if min(counts) < 1:
        raise ValueError(
            f'param_scheduler: {name}={entry[name]} of {_name(entry)} do not fit into {to.epochs} of {to.whole} '
            'epochs, as restarts have to be at whole epochs: train more epochs, or give another param_scheduler'
        )
    return counts


SCHEDULERS: dict[type, Meaning] = {
    base.ConstantParamScheduler: Meaning(_smooth, plain=('factor',)),
    base.CosineAnnealingParamScheduler: Meaning(_smooth, ('T_max',), {'eta_min': None}, ('eta_min_ratio',)),
    base.CosineRestartParamScheduler: Meaning(
        _periods, ('periods',), {'eta_min': None}, ('eta_min_ratio', 'restart_weights')
    ),
    base.ExponentialParamScheduler: Meaning(_decay, ('gamma',)),
    base.LinearParamScheduler: Meaning(_smooth, plain=('start_factor', 'end_factor')),
    base.MultiStepParamScheduler: Meaning(_milestones, ('milestones',), plain=('gamma',)),
    base.OneCycleParamScheduler: Meaning(
        _cycle,
        ('total_steps',),
        {'eta_max': None},
        ('pct_start', 'anneal_strategy', 'div_factor', 'final_div_factor', 'three_phase'),
    ),
    base.PolyParamScheduler: Meaning(_smooth, (), {'eta_min': None}, ('power',)),
    base.ReduceOnPlateauParamScheduler: Meaning(
        _plateau,
        ('patience', 'cooldown'),
        {'min_value': None, 'eps': 1e-8},
        ('monitor', 'rule', 'factor', 'threshold', 'threshold_rule'),
    ),
    base.StepParamScheduler: Meaning(_steps, ('step_size',), plain=('gamma',)),
    QuadraticWarmupParamScheduler: Meaning(_smooth),
}
"""Scheduler -> what its parameters mean; for the classes for learning rates and momentum too, which inherit from it."""


def stretched(schedulers: Any, whole: int, epochs: int) -> Any:
    """``param_scheduler`` of a training of `whole` epochs, for one of `epochs`.

    Args:
        schedulers: An entry, a list, a dict of those for several optimizers, or None.
        whole: Epochs of the training that it is written for.
        epochs: Epochs of the new training.

    Raises:
        ValueError: If a scheduler or a parameter is unknown, or cannot be that short.
    """
    to = Stretch(whole, epochs)
    if to.ratio == 1:
        return copy.deepcopy(schedulers)
    return _each(schedulers, lambda entry: meaning_of(entry).stretch(entry, to))


def scaled(schedulers: Any, factor: float) -> Any:
    """``param_scheduler`` for learning rates that are `factor` times as high; momentum and others stay.

    Args:
        schedulers: An entry, a list, a dict of those for several optimizers, or None.
        factor: Factor of the optimizer's learning rate.

    Raises:
        ValueError: If a scheduler or a parameter is unknown.
    """
    if factor == 1:
        return copy.deepcopy(schedulers)
    return _each(schedulers, lambda entry: [_scaled(entry, factor)])


def _scaled(entry: Entry, factor: float) -> Entry:
    meaning, kind = meaning_of(entry), class_of(entry['type'], PARAM_SCHEDULERS) or object
    if not issubclass(kind, lr_scheduler.LRSchedulerMixin) and entry.get('param_name') != 'lr':
        return entry
    rates = {name: entry.get(name, default) for name, default in meaning.rates.items()}
    return {**entry, **{name: _times(rate, factor) for name, rate in rates.items() if rate is not None}}


def _times(rate: Any, factor: float) -> Any:
    """A rate, or one per group of parameters, times a factor."""
    return [one * factor for one in rate] if isinstance(rate, (list, tuple)) else rate * factor


def meaning_of(entry: Entry) -> Meaning:
    """The row of the table for an entry.

    Raises:
        ValueError: If it is of no known scheduler, or has an unknown parameter.
    """
    kind = class_of(entry.get('type'), PARAM_SCHEDULERS)
    found = next((SCHEDULERS[parent] for parent in (kind.__mro__ if kind else ()) if parent in SCHEDULERS), None)
    if found is None:
        known = ', '.join(sorted(parent.__name__.replace('ParamScheduler', 'LR') for parent in SCHEDULERS))
        raise ValueError(
            f'param_scheduler: what the parameters of {_name(entry)} mean for a training of another length or learning '
            f'rate is not known; known are {known}, and the same for momentum and for other parameters'
        )
    unknown = sorted(set(entry) - {*COMMON, *found.counts, *found.rates, *found.plain})
    if unknown:
        valid = ', '.join((*COMMON, *found.counts, *found.rates, *found.plain))
        raise ValueError(f'param_scheduler: {_name(entry)} has unknown {", ".join(unknown)}; valid are {valid}')
    return found


def _name(entry: Entry) -> str:
    return str(dotted(entry.get('type'))).rsplit('.', 1)[-1]


def _each(schedulers: Any, change: Callable[[Entry], list[Entry]]) -> Any:
    """Every entry changed, in the structure that mmengine takes; a single entry becomes a list."""
    if schedulers is None:
        return None
    if isinstance(schedulers, Mapping):
        if 'type' in schedulers:
            return change(copy.deepcopy(dict(schedulers)))
        return {name: _each(part, change) for name, part in schedulers.items()}
    if isinstance(schedulers, (list, tuple)):
        return [one for entry in schedulers for one in _each(entry, change)]
    raise ValueError(f'param_scheduler has {schedulers!r}; valid are entries with a type, and lists of them')


HOOK_COUNTS: dict[type, dict[str, int | None]] = {
    DisableObjectSampleHook: {'disable_after_epoch': 15},
    EMAHook: {'begin_epoch': None, 'begin_iter': None},
    PipelineSwitchHook: {'switch_epoch': None},
    YOLOXModeSwitchHook: {'num_last_epochs': 15},
}
"""Hook -> its parameters that say when in a training something happens, with their defaults."""


def stretched_hooks(hooks: Sequence[Any] | None, whole: int, epochs: int) -> list[Any]:
    """``custom_hooks`` of a training of `whole` epochs, for one of `epochs`: what they do happens at the same share."""
    made, to = [], Stretch(whole, epochs)
    for hook in hooks or ():
        kind = _hook_class(hook)
        counts = next((HOOK_COUNTS[parent] for parent in kind.__mro__ if parent in HOOK_COUNTS), {}) if kind else {}
        found = {name: hook.get(name, default) for name, default in counts.items()}
        changes = {name: round(to(count)) for name, count in found.items() if count is not None}
        made.append({**hook, **changes} if changes and to.ratio != 1 else hook)
    return made


def _hook_class(hook: Any) -> type | None:
    kind = hook.get('type') if isinstance(hook, Mapping) else None
    return class_of(kind, MMDET3D_HOOKS) or class_of(kind, MMDET_HOOKS)

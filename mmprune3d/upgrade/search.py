"""The plan that removes most while accuracy holds: largest r, then smallest n (appendix C.1 of the tgGBC paper).

r runs over a grid of sixteenths of the keys and is found by bisection, n over all layers from the first. What holds for
the result: it keeps the limit on the samples of the search; every smaller n was tried for its r, and failed; the next
larger r of the grid was tried with every n, and failed. What does not hold: that no still larger r keeps the limit.
Accuracy is not monotone in r (section 4.5.1), and bisection does not look at every r.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmengine.runner import Runner

from mmprune3d.measure.samples import images_of, is_kind
from mmprune3d.pruning import checks
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.plans import PLANS

AUTO = 'auto'
GRID = 16
"""r is tried at multiples of 1/16 of the keys."""
LIMITED = ('mAP', 'NDS', 'bbox_mAP')
"""Figures that may not drop by more than the limit, as far as the evaluator has them: of nuScenes and COCO."""
NEEDED = f'{AUTO} limits how much accuracy drops, and needs one of the figures {", ".join(LIMITED)}'
ROUNDING = 1e-9
"""Differences of two scores up to this count as rounding errors."""
WARNING = (
    'The plan was chosen on test samples, and accuracy is measured on samples that include them: '
    'what the report says about accuracy is flattering.'
)


def key_plans() -> dict[str, type[KeyPlan]]:
    """Method -> class of its plans, for the methods that prune keys: for them a plan can be searched."""
    return {name: plan for name, plan in PLANS.items() if issubclass(plan, KeyPlan)}


@dataclass(frozen=True)
class SearchRequest:
    """What a search for a plan looks for.

    Attributes:
        template: A plan with the settings that stay; its r and n are replaced.
        max_drop: The largest difference of mAP, and of NDS, to the baseline; 0.01 is one point of 100.
        calibrate: How many samples, spread evenly over the test set; None means all.
    """

    template: KeyPlan
    max_drop: float = 0.01
    calibrate: int | None = None

    def __post_init__(self) -> None:
        max_drop = checks.plain(self.max_drop)
        if not checks.is_number(max_drop) or not 0 <= max_drop < 1:
            raise ValueError(
                f'max_drop={checks.shown(max_drop)} must lie from 0 to below 1; 0.01 is one point of mAP or NDS'
            )
        object.__setattr__(self, 'max_drop', max_drop)
        if self.calibrate is not None:
            object.__setattr__(self, 'calibrate', checks.count('calibrate', self.calibrate, 1))

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.template.method

    @classmethod
    def parse(cls, method: str, text: str, **settings: Any) -> SearchRequest:
        """A request from 'auto' or, with settings of the plan, 'auto,k=100'.

        Raises:
            ValueError: If a setting is unknown, or is r or n.
        """
        plan_type = key_plans()[checks.choice('method', method, tuple(key_plans()))]
        rest = text.split(',')[1:]
        taken = [item for item in rest if item.partition('=')[0].strip() in ('r', 'n')]
        if taken:
            raise ValueError(f'{AUTO} looks for r and n itself: leave {", ".join(taken)} out')
        return cls(plan_type.parse(','.join(['r=1', *rest])), **settings)


def parse_plan(
    method: str, text: str, max_drop: float | None = None, calibrate: int | None = None
) -> KeyPlan | SearchRequest:
    """What a command line asks for.

    Args:
        method: Name of a method that prunes keys.
        text: Settings, or 'auto', possibly followed by settings.
        max_drop: The largest drop of accuracy, with 'auto' only; None means 0.01.
        calibrate: Samples to search on, with 'auto' only; None means all.

    Raises:
        ValueError: If something is not valid.
    """
    if text.split(',')[0].strip() == AUTO:
        limit = {} if max_drop is None else {'max_drop': max_drop}
        return SearchRequest.parse(method, text, calibrate=calibrate, **limit)
    if max_drop is not None or calibrate is not None:
        raise ValueError(f'--max-drop and --calibrate are for --{method} {AUTO}; {text!r} fixes the plan')
    return key_plans()[checks.choice('method', method, tuple(key_plans()))].parse(text)


def require_limited(runner: Runner) -> None:
    """Refuses evaluators that are known not to give a figure of `LIMITED`, before they are run.

    Raises:
        ValueError: If no evaluator gives such a figure; the message names the evaluators.
    """
    metrics = runner.test_evaluator.metrics
    without = [
        is_kind(metric, 'KittiMetric', 'IndoorMetric')
        or (images_of(metric) is not None and 'bbox' not in getattr(metric, 'metrics', ()))
        for metric in metrics
    ]
    if all(without):
        names = ', '.join(type(metric).__name__ for metric in metrics)
        raise ValueError(f'{NEEDED}; {names} of the config gives none of them: write r and n instead of {AUTO}')


@dataclass(frozen=True)
class Trial:
    """One plan that was tried.

    Attributes:
        plan: The plan.
        figures: Figures of the evaluation; empty if the plan is not possible.
        drops: Baseline minus pruned, for the figures that are limited.
        holds: Whether no drop exceeds the limit.
        reason: Why it is not possible, or ''.
    """

    plan: KeyPlan
    figures: Mapping[str, float] = field(default_factory=dict)
    drops: Mapping[str, float] = field(default_factory=dict)
    holds: bool = False
    reason: str = ''

    def line(self) -> str:
        """The trial in one line, for the screen."""
        if self.reason:
            return f'r={self.plan.r} n={self.plan.n}: {self.reason}'
        figures = ', '.join(
            f'{name} {self.figures.get(name, 0.0):.4f} ({0 - drop:+.4f})' for name, drop in self.drops.items()
        )
        return f'r={self.plan.r} n={self.plan.n}: {figures} {"holds" if self.holds else "drops too much"}'


class PlanSearch:
    """Searches the plan that removes most while accuracy holds.

    Args:
        request: What the search looks for.
        evaluate: Returns the figures of the model under a plan; None means unpruned.
        num_keys: Keys that the first decoder layer attends to.
        num_layers: Decoder layers.
        samples: How many samples `evaluate` is about, for the report.
        say: Gets a line per plan that is tried.

    Raises:
        ValueError: If the evaluator has neither mAP nor NDS, or both are 0, or there are too few keys or layers.
    """

    def __init__(
        self,
        request: SearchRequest,
        evaluate: Callable[[KeyPlan | None], Mapping[str, float]],
        num_keys: int,
        num_layers: int,
        samples: int,
        say: Callable[[str], None] = print,
    ) -> None:
        if num_keys < 2 or num_layers < 2:
            raise ValueError(f'nothing to search: {num_keys} keys, {num_layers} decoder layers')
        self.request = request
        self.evaluate = evaluate
        self.num_keys = num_keys
        self.num_layers = num_layers
        self.samples = samples
        self.say = say
        self.trials: list[Trial] = []
        self.plan: KeyPlan | None = None
        self.baseline = dict(evaluate(None))
        self.limited = [name for name in LIMITED if name in self.baseline]
        if not self.limited:
            raise ValueError(f'{NEEDED}; the evaluator of the config gives {", ".join(self.baseline) or "none"}')
        if not any(self.baseline[name] for name in self.limited):
            raise ValueError(
                f'the unpruned detector has {" and ".join(self.limited)} of 0 on these {samples} samples, so that '
                'pruning cannot lower it. Check checkpoint, score threshold and data'
            )

    def run(self) -> KeyPlan | None:
        """Searches; returns the plan, or None if nothing holds the limit."""
        figures = ', '.join(f'{name} {self.baseline[name]:.4f}' for name in self.limited)
        self.say(f'Search on {self.samples} samples, drop up to {self.request.max_drop}; baseline: {figures}')
        amounts = sorted({step * self.num_keys // GRID for step in range(1, GRID)} - {0})
        low, high = -1, len(amounts)
        while high - low > 1:
            middle = (low + high) // 2
            found = self._smallest_n(amounts[middle])
            if found is None:
                high = middle
            else:
                low, self.plan = middle, found
        self.say(f'Found: {self.plan}' if self.plan else 'Nothing holds the limit')
        return self.plan

    def _smallest_n(self, r: int) -> KeyPlan | None:
        for n in range(1, self.num_layers):
            trial = self._try(replace(self.request.template, r=r, n=n))
            self.trials.append(trial)
            self.say(trial.line())
            if trial.holds:
                return trial.plan
        return None

    def _try(self, plan: KeyPlan) -> Trial:
        try:
            plan.removals(self.num_layers, self.num_keys)
            # fails for images with fewer keys than the first, and for a model that predicts NaN
            figures = dict(self.evaluate(plan))
        except ValueError as error:
            return Trial(plan, reason=str(error))
        # CocoMetric gives no figure at all where nothing was found
        drops = {name: self.baseline[name] - figures.get(name, 0.0) for name in self.limited}
        return Trial(plan, figures, drops, max(drops.values()) <= self.request.max_drop + ROUNDING)

    def to_dict(self) -> dict[str, Any]:
        """The search as plain types, for `report.json`."""
        return {
            'max_drop': self.request.max_drop,
            'samples': self.samples,
            'grid': f'{GRID} steps of {self.num_keys} keys',
            'baseline': self.baseline,
            'found': None if self.plan is None else self.plan.to_dict(),
            'warning': WARNING,
            'trials': [
                {
                    'plan': trial.plan.to_dict(),
                    **trial.figures,
                    'holds': trial.holds,
                    **({'impossible': trial.reason} if trial.reason else {}),
                }
                for trial in self.trials
            ],
        }

    def markdown(self) -> str:
        """The search as a section of `report.md`."""
        return '\n'.join(self._lines())

    def _lines(self) -> Iterator[str]:
        limit, names = self.request.max_drop, self.limited
        yield from ('## Search', '')
        yield f'Largest r (in steps of 1/{GRID} of {self.num_keys} keys), then smallest n, whose drops of'
        yield f'{" and ".join(names)} stay within {limit:g} on {self.samples} samples. In the order of the trials:'
        yield from ('', f'| r | n | {" | ".join(names)} | {" | ".join(f"Δ{name}" for name in names)} | holds |')
        yield f'|---:|---:|{"---:|" * (2 * len(names))}---|'
        baseline = ' | '.join(f'{self.baseline[name]:.4f}' for name in names)
        yield f'| 0 | - | {baseline} |{" - |" * len(names)} baseline |'
        for trial in self.trials:
            figures = [f'{trial.figures.get(name, 0.0):.4f}' if trial.drops else '-' for name in names]
            changes = [f'{0 - trial.drops[name]:+.4f}' if trial.drops else '-' for name in names]
            verdict = 'not possible' if trial.reason else 'yes' if trial.holds else 'no'
            yield f'| {trial.plan.r} | {trial.plan.n} | {" | ".join([*figures, *changes])} | {verdict} |'
        yield from ('', WARNING, '')
        yield 'For the r that was found all smaller n failed, and for the next larger r of the steps every n did.'
        yield from ('Not every larger r was tried.', '')

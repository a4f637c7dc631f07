"""A toy method of another package, second file: what an upgrade does with it, its hook, and its entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmprune3d.upgrade.methods import Method
from mmprune3d.upgrade.steps import Step

from .plan import SilentPlan


@dataclass(frozen=True)
class Silencing(Step):
    """Multiplies the output of a layer while the model runs."""

    at_run_time: ClassVar[bool] = True

    plan: SilentPlan

    def check_model(self, model: nn.Module, config: Config) -> None:
        if self.plan.layer not in dict(model.named_children()):
            raise ValueError(f'{self.plan.title}: the model has no layer {self.plan.layer}')

    def attach(self, model: nn.Module) -> None:
        self.detach(model)
        layer = model.get_submodule(self.plan.layer)
        layer.silenced = layer.register_forward_hook(lambda _, inputs, output: output * self.plan.factor)

    def detach(self, model: nn.Module) -> None:
        vars(model.get_submodule(self.plan.layer)).pop('silenced', NOTHING).remove()


class Nothing:
    def remove(self) -> None:
        pass


NOTHING = Nothing()


@HOOKS.register_module()
class SilentHook(Hook):
    prunes_tests = True

    def __init__(self, **settings: Any) -> None:
        self.step = Silencing(SilentPlan.from_dict(settings))

    def before_test_epoch(self, runner: Runner) -> None:
        self.step.attach(runner.model)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.step.detach(runner.model)


METHOD = Method(
    name='silent',
    plan=SilentPlan,
    step=Silencing,
    summary='multiplies the output of a layer by a factor',
    detectors='any',
    training='',
    carrier='`SilentHook`',
    help='Silence shows what a method of another package needs.',
    hook='SilentHook',
    imports=('tests.test_upgrade.toy.method',),
)

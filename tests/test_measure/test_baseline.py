"""What is called a baseline is unpruned, however a hook or a setting came into its config."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from experiments.altermoma import study as fusion_study
from experiments.gpq import study as query_study
from experiments.halting import study as halting_study
from mmprune3d import adapters
from mmprune3d.config_types import dotted
from mmprune3d.engine.hooks import GPQHook, HaltingHook, MaskHook, TgGBCHook, ToMeHook
from mmprune3d.measure.accuracy import evaluate
from mmprune3d.measure.baseline import check_baseline, check_hooks, prunes
from mmprune3d.measure.replayed_tests import CachedTest
from mmprune3d.measure.runners import prepare
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.upgrade.compare import KeyComparison, SideBySide
from mmprune3d.upgrade.configs import upgraded_config
from tests.test_config_types import FORMS

CONFIG = Path(__file__).parents[2] / 'configs' / 'petr' / 'petr_tiny.py'
PLAN = TgGBCPlan(r=10, n=1, k=20)


class TheirHook(TgGBCHook):
    """A subclass that no registry knows."""


class SneakyHook(Hook):
    """Prunes without being one of ours."""

    def before_test_epoch(self, runner: Runner) -> None:
        adapters.attach(runner.model, PLAN)


class DetachingHook(Hook):
    def before_test_epoch(self, runner: Runner) -> None:
        adapters.detach(runner.model)


def test_config(**changes: Any) -> Config:
    config = dict(test_dataloader=dict(batch_size=1), test_evaluator=dict(type='Metric'), model=dict(type='Model'))
    return Config({**config, **changes})


test_config.__test__ = False


@pytest.mark.parametrize('form', [*FORMS, ToMeHook, TheirHook], ids=str)
def test_a_config_that_prunes_is_refused_in_every_form(form: Any) -> None:
    name = form.rsplit('.', 1)[-1] if isinstance(form, str) else form.__name__
    for hooks in ([dict(type=form, r=3)], [dict(type='EMAHook'), dict(type=form, r=3)]):
        with pytest.raises(ValueError, match=rf'the config prunes already \({name} in custom_hooks\)'):
            prepare(test_config(custom_hooks=hooks), Path('x.pth'), Path('out'))


def test_masks_from_a_file_are_refused_and_others_left_out() -> None:
    for form in ('MaskHook', MaskHook, 'mmengine.MaskHook'):
        with pytest.raises(ValueError, match=r'prunes already \(MaskHook'):
            prepare(test_config(custom_hooks=[dict(type=form, masks='x.pth')]), Path('x.pth'), Path('out'))
        prepared = prepare(
            test_config(custom_hooks=[dict(type=form), dict(type='IterTimerHook')]), Path('x.pth'), Path('out')
        )
        assert prepared.custom_hooks == [dict(type='IterTimerHook')]


def test_averages_change_nothing_in_a_test_and_stay_in_the_upgraded_config() -> None:
    hooks = [dict(type='EMAHook'), dict(type=EMAHook, momentum=0.1), dict(type='IterTimerHook')]
    assert prepare(test_config(custom_hooks=hooks), Path('x.pth'), Path('out')).custom_hooks == hooks[2:]
    assert upgraded_config(test_config(custom_hooks=hooks[:1]), None).custom_hooks == hooks[:1]


@pytest.mark.parametrize(
    'sections', [dict.fromkeys(('custom_hooks', 'default_hooks', 'custom_imports', 'test_cfg')), {}]
)
def test_sections_that_are_none_or_missing(sections: dict[str, Any]) -> None:
    config = test_config(**sections)
    prepared = prepare(config, Path('x.pth'), Path('out'))
    assert prepared.custom_hooks == [] and prepared.test_cfg == {} and list(prepared.default_hooks) == ['logger']
    upgraded = upgraded_config(config, PLAN)
    assert [hook.type for hook in upgraded.custom_hooks] == ['TgGBCHook']
    assert upgraded.custom_imports.imports == ['mmprune3d']


@pytest.mark.parametrize('imports', ['projects.mine', ['projects.mine'], ['mmprune3d', 'projects.mine'], None])
def test_imports_of_the_config_stay(imports: Any) -> None:
    upgraded = upgraded_config(test_config(custom_imports=dict(imports=imports)), None)
    assert upgraded.custom_imports.imports == [*(['projects.mine'] if imports else []), 'mmprune3d']


def test_a_logger_of_another_class_is_replaced_as_a_whole() -> None:
    hooks = dict(logger=dict(type='TheirLogger', colour='red'), timer=dict(type='IterTimerHook'), checkpoint=None)
    prepared = prepare(test_config(default_hooks=hooks), Path('x.pth'), Path('out'))
    assert prepared.default_hooks.logger == dict(type='LoggerHook', interval=10**9)
    assert prepared.default_hooks.timer.type == 'IterTimerHook' and prepared.default_hooks.checkpoint is None


def petr(**transformer: Any) -> torch.nn.Module:
    from mmdet3d.registry import MODELS
    from mmengine.registry import DefaultScope

    config = Config.fromfile(CONFIG).model
    config.pts_bbox_head.transformer.update(transformer)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return MODELS.build(config)


def test_models_that_prune() -> None:
    model = petr()
    assert not prunes(model) and not prunes(torch.nn.Linear(2, 2))
    adapters.attach(model, PLAN)
    assert prunes(model)
    with pytest.raises(ValueError, match='the baseline is pruned'):
        check_baseline(SimpleNamespace(model=model, hooks=[]))
    adapters.detach(model)
    check_baseline(SimpleNamespace(model=model, hooks=[]))
    assert prunes(petr(type='TgGBCPETR3DTransformer', tggbc=dict(r=20)))


@pytest.mark.parametrize('measure', [KeyComparison, SideBySide, CachedTest, evaluate], ids=lambda one: one.__name__)
@pytest.mark.parametrize('hook', [TheirHook(r=5), ToMeHook(r=5), MaskHook('x.pth')], ids=lambda one: type(one).__name__)
def test_hooks_that_prune_are_noticed_by_everything_that_measures(measure: Any, hook: Hook) -> None:
    runner = SimpleNamespace(model=torch.nn.Linear(2, 2), hooks=[Hook(), hook])
    with pytest.raises(ValueError, match=rf'would be pruned by hooks of its runner \({type(hook).__name__}\)'):
        measure(runner, runner.model)


def test_hooks_that_change_nothing_in_a_test() -> None:
    check_hooks(SimpleNamespace(hooks=[GPQHook(target=5, epochs=1), MaskHook(), HaltingHook(), Hook()]))


def test_the_studies_measure_with_the_same_function() -> None:
    assert fusion_study.figures_of_row is halting_study.figures_of_row is query_study.figures_of_row


@pytest.mark.parametrize(
    ('hook', 'attached', 'message'),
    [
        (SneakyHook, False, 'a hook of the config prunes'),
        (DetachingHook, True, 'a hook of the config removes the plan from'),
    ],
)
def test_a_hook_of_somebody_is_noticed_before_the_first_batch(
    hook: type[Hook],
    attached: bool,
    message: str,
    overrides: dict[str, Any],
    petr_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config.fromfile(CONFIG)
    config.merge_from_dict(overrides)
    config.custom_hooks = [dict(type=dotted(hook))]  # the runner writes its config
    runner = Runner.from_cfg(prepare(config, petr_checkpoint, tmp_path))
    if attached:
        adapters.attach(runner.model, PLAN)
    monkeypatch.setattr(runner.model, 'test_step', lambda _: pytest.fail('a batch ran'))
    with pytest.raises(ValueError, match=message):
        evaluate(runner, 'baseline')
    assert all(type(one).__module__ != 'mmprune3d.measure.accuracy' for one in runner.hooks)

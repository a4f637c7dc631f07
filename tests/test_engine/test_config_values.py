"""Property tests: any values in the settings of hooks, loops and models, as mmengine builds them from a config."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import HOOKS, RUNNERS, init_default_scope

from mmprune3d import adapters
from mmprune3d.adapters.fusion import MAP_SETTINGS
from mmprune3d.engine.hooks.key_pruning_hook import TrainingSchedule
from mmprune3d.engine.loops.settings import PruningSettings
from mmprune3d.engine.runners.altermoma_runner import with_pruning_loop
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.pruning.halting import keep_by_rank
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.upgrade.altermoma import FusionPruning
from mmprune3d.upgrade.channel_settings import ChannelSettings
from mmprune3d.upgrade.channels import prune_channels
from mmprune3d.upgrade.finetune import PlanWithFineTuning
from mmprune3d.upgrade.masks import prune_checkpoint
from mmprune3d.upgrade.search import SearchRequest, key_plans, parse_plan
from tests.config_values import (
    NO_COUNTS,
    NO_SHARES,
    anything,
    assert_plain,
    assert_stored,
    examples,
    works_or_says,
)
from tests.test_models.test_petr.small import batch, build, detector_config
from tests.test_models.test_sst.small_sst import GATES, GRID, WIDTH, coords_of
from tests.test_models.test_sst.small_sst import detector_config as sst_config

from .small_fusion import GROUPS, INTERFACES, SmallFusion, fusion_config, write_config

Make = Callable[[dict[str, Any]], Any]


def hook(kind: str) -> Make:
    return lambda settings: HOOKS.build(dict(settings, type=kind))


def halting_sst(settings: dict[str, Any]) -> torch.nn.Module:
    init_default_scope('mmdet3d')
    backbone = sst_config()['backbone']
    return MODELS.build({**backbone, **settings})


def avit_sst(settings: dict[str, Any]) -> torch.nn.Module:
    init_default_scope('mmdet3d')
    backbone = {name: value for name, value in sst_config()['backbone'].items() if name != 'halting'}
    return MODELS.build({**backbone, 'type': 'AViTSST', **settings})


def detector(settings: dict[str, Any]) -> torch.nn.Module:
    init_default_scope('mmdet3d')
    return MODELS.build({**sst_config(), 'sparsity_loss': settings})


TAKERS: dict[str, tuple[Make, dict[str, Any], tuple[str, ...]]] = {
    'TgGBCHook': (hook('TgGBCHook'), dict(r=6, n=2), ('r', 'n', 'k', 't', 'q', 'score', 'activation', 'train')),
    'ToMeHook': (hook('ToMeHook'), dict(r=6, n=2), ('r', 'n', 'q', 'train')),
    'GPQHook': (hook('GPQHook'), dict(target=5), ('target', 'interval', 'epochs', 'per_step', 'criterion', 'seed')),
    'MaskHook': (hook('MaskHook'), dict(), ('masks',)),
    'HaltingHook': (hook('HaltingHook'), dict(), ('interval', 'patience')),
    'IterationSeedHook': (hook('IterationSeedHook'), dict(), ('seed',)),
    'AllowShapeMismatchHook': (hook('AllowShapeMismatchHook'), dict(prefixes=['head']), ('prefixes',)),
    'train of a hook': (TrainingSchedule.from_dict, dict(), ('warmup', 'heating', 'by_epoch')),
    'pruning': (
        PruningSettings.from_dict,
        dict(sparsity=0.5, criterion='magnitude', epochs_per_round=1, groups=GROUPS),
        ('sparsity', 'mode', 'criterion', 'rounds', 'rewind', 'recalibrate', 'epochs_per_round', *MAP_SETTINGS),
    ),
    'pruning of channels': (
        ChannelSettings.from_dict,
        dict(flops=0.3),
        ('flops', 'max_ratio', 'round_to', 'tolerance', 'recalibrate', 'min_keep', *MAP_SETTINGS),
    ),
    'search': (lambda values: SearchRequest(TgGBCPlan(r=1), **values), dict(), ('max_drop', 'calibrate')),
    'fine-tuning': (lambda values: PlanWithFineTuning(TgGBCPlan(r=1), **values), dict(), ('epochs', 'lr_factor')),
    'HaltingSST': (halting_sst, dict(), ('halting', 'recycle', 'score_scope', 'unet_to_bev')),
    'a gate': (
        lambda values: halting_sst(dict(halting=[{**GATES[0], **values}])),
        dict(),
        ('block', 'module', 'threshold', 'bounds', 'relative', 'fuse'),
    ),
    'HaltingUNet': (
        lambda values: halting_sst(dict(halting=[dict(GATES[0], module={**GATES[0]['module'], **values})])),
        dict(),
        ('in_channels', 'token_channels', 'widths', 'expansion', 'init_score'),
    ),
    'HaltingMLP': (
        lambda values: halting_sst(dict(halting=[dict(GATES[1], module={**GATES[1]['module'], **values})])),
        dict(),
        ('in_channels', 'init_score'),
    ),
    'AViTSST': (
        avit_sst,
        dict(channels=4),
        ('channels', 'gamma', 'beta', 'eps', 'granularity', 'output', 'ponder_weight', 'prior_weight', 'prior_depth'),
    ),
    'sparsity_loss': (detector, dict(), ('kind', 'weight', 'alpha', 'gamma', 'positives', 'overlap', 'min_radius')),
}
"""What takes settings -> how it is made of them, settings that are right, and names of which one gets any value."""


@pytest.mark.parametrize('taker', TAKERS)
@examples(60)
@given(data=st.data())
def test_one_setting_of_any_value(taker, data):
    make, right, names = TAKERS[taker]
    name, value = data.draw(st.sampled_from(names)), data.draw(anything)
    works_or_says(lambda: make({**copy.deepcopy(right), name: value}), name, 'a gate', 'gates stand before')


@pytest.mark.parametrize('taker', ['TgGBCHook', 'ToMeHook', 'GPQHook', 'train of a hook', 'pruning', 'sparsity_loss'])
def test_unknown_settings_are_named_with_those_that_are_known(taker):
    make, right, names = TAKERS[taker]
    with pytest.raises(ValueError, match=r'unknown setting wrong; valid are .*') as error:
        make({**right, 'wrong': 1})
    known = [name for name in names if name != 'train']
    assert all(name in str(error.value) for name in known)


COUNTS = [
    ('HaltingHook', 'interval'), ('HaltingHook', 'patience'), ('IterationSeedHook', 'seed'), ('pruning', 'recalibrate'),
    ('pruning', 'epochs_per_round'), ('pruning of channels', 'round_to'), ('pruning of channels', 'recalibrate'),
    ('search', 'calibrate'), ('fine-tuning', 'epochs'), ('a gate', 'block'), ('HaltingMLP', 'in_channels'),
    ('HaltingUNet', 'expansion'), ('AViTSST', 'channels'), ('sparsity_loss', 'min_radius'),
]  # fmt: skip
SHARES = [
    ('pruning of channels', 'max_ratio'), ('pruning of channels', 'tolerance'), ('search', 'max_drop'),
    ('a gate', 'threshold'), ('HaltingMLP', 'init_score'), ('AViTSST', 'eps'), ('sparsity_loss', 'overlap'),
]  # fmt: skip


@pytest.mark.parametrize(('taker', 'name'), COUNTS)
def test_what_is_no_count_is_refused(taker, name):
    for value in NO_COUNTS:
        with pytest.raises(ValueError, match=f'{name}=.* must be a whole number'):
            TAKERS[taker][0]({**TAKERS[taker][1], name: value})


@pytest.mark.parametrize(('taker', 'name'), SHARES)
def test_what_is_no_share_is_refused(taker, name):
    for value in NO_SHARES:
        with pytest.raises(ValueError, match=f'{name}='):
            TAKERS[taker][0]({**TAKERS[taker][1], name: value})


@examples(60)
@given(value=anything)
def test_pruning_of_the_runner_and_train_of_a_hook_are_dicts(value):
    config = Config(dict(runner_type='AlterMOMARunner', train_cfg=dict(by_epoch=True, max_epochs=1)))
    config._cfg_dict['pruning'] = value
    assert works_or_says(lambda: with_pruning_loop(config), 'pruning', 'AlterMOMA') is None
    made = works_or_says(lambda: HOOKS.build(dict(type='TgGBCHook', r=1, train=value)), 'train')
    assert made is None or value is None or value == {}


@pytest.mark.parametrize('wrong', [5, 'sparsity=0.5', [0.5]], ids=str)
def test_pruning_of_a_config_that_is_no_dict_stops_every_tool(tmp_path, wrong):
    config, weights = write_config(tmp_path / 'from' / 'config.py', tmp_path, pruning=wrong), tmp_path / 'some.pth'
    torch.save({'state_dict': {'weight': torch.zeros(1)}}, weights)
    for prune, settings in ((prune_checkpoint, dict(sparsity=0.5)), (prune_channels, dict(flops=0.5))):
        with pytest.raises(ValueError, match=r'pruning: .* must be a dict of settings'):
            prune(config, weights, tmp_path / 'out', settings)
    with pytest.raises(ValueError, match=r'pruning: .* must be a dict of settings'):
        FusionPruning(AlterMOMAPlan(0.5)).settings(Config.fromfile(config))


@examples(60)
@given(
    warmup=st.integers(0, 5) | st.floats(0, 1e9),
    heating=st.integers(0, 5) | st.floats(0, 1e9),
    by_epoch=st.booleans(),
    per_epoch=st.integers(1, 5000),
)
def test_a_schedule_grows_from_nothing_to_everything(warmup, heating, by_epoch, per_epoch):
    schedule = TrainingSchedule(warmup, heating, by_epoch)
    unit = per_epoch if by_epoch else 1
    end = round(warmup * unit) + round(heating * unit)
    shares = [schedule.share(iteration, per_epoch) for iteration in (0, round(warmup * unit) - 1, end // 2, end)]
    assert all(0 <= share <= 1 for share in shares) and shares[-1] == 1
    assert round(warmup * unit) == 0 or shares[1] == 0


@examples(80)
@given(
    method=st.sampled_from(list(key_plans())) | st.text(max_size=3),
    text=st.text('auton,=kqrt 0123.+', max_size=12) | st.sampled_from(['auto', 'auto,k=3', 'auto,q=2', ' auto , t=1']),
    max_drop=st.none() | st.sampled_from([0, 0.5, 1, -1, True, 'x', float('nan')]),
    calibrate=st.none() | st.sampled_from([0, 1, 5, -1, 2.0, True]),
)
def test_what_a_command_line_asks_for(method, text, max_drop, calibrate):
    found = works_or_says(lambda: parse_plan(method, text, max_drop, calibrate))
    if isinstance(found, SearchRequest):
        assert_plain((found.max_drop, found.calibrate))
        assert 0 <= found.max_drop < 1 and found.calibrate in (None, 1, 5)
    assert_stored(found if isinstance(found, KeyPlan) else found.template) if found else None


@examples(40)
@given(data=st.data(), share=st.floats(0, 1), relative=st.booleans())
def test_gates_that_are_built_keep_to_their_bounds(data, share, relative):
    bounds = sorted((share, data.draw(st.floats(0, 1))))
    gate = dict(GATES[1], block=0, bounds=bounds, threshold=data.draw(st.floats(0, 1)), relative=relative)
    model = halting_sst(dict(halting=[gate]))
    coords = coords_of((13, 5), grid=GRID)
    scores, sample = torch.linspace(0, 1, len(coords)), coords[:, 0]
    keep = model.halting[0].decide(scores, sample, torch.tensor([13, 5]))
    assert torch.equal(keep, keep_by_rank(scores, sample, torch.tensor([13, 5]), gate['threshold'], tuple(bounds)))
    halted = [int((~keep[sample == number]).sum()) for number in (0, 1)]
    for total, count in zip((13, 5), halted, strict=True):
        assert bounds[0] * total - 1 <= count <= bounds[1] * total + 1e-3
    assert WIDTH  # of the tokens


schedules = dict(warmup=st.integers(0, 4), heating=st.integers(0, 4), by_epoch=st.booleans())


class FakeRunner(SimpleNamespace):
    """What hooks ask of a runner before the first batch."""


@pytest.fixture(scope='module')
def petr() -> torch.nn.Module:
    return build(detector_config())


def runner_of(model: torch.nn.Module, folder: Path, iterations: int, per_epoch: int) -> FakeRunner:
    return FakeRunner(
        model=model, iter=0, max_iters=iterations, train_dataloader=range(per_epoch), work_dir=str(folder), hooks=[],
        logger=logging.getLogger('silent'),
    )  # fmt: skip


@examples(40)
@given(
    kind=st.sampled_from(['TgGBCHook', 'ToMeHook']),
    r=st.integers(0, 30) | st.floats(0, 1, exclude_max=True) | st.lists(st.integers(0, 14), min_size=1, max_size=4),
    n=st.none() | st.integers(0, 4),
    train=st.none() | st.fixed_dictionaries(schedules),
    iterations=st.integers(1, 12),
)
def test_a_key_pruning_hook_fits_or_stops_before_the_first_batch(petr, tmp_path, kind, r, n, train, iterations):
    """And when it has not stopped, the model prunes as the plan says."""
    made = works_or_says(lambda: HOOKS.build(dict(type=kind, r=r, n=n, train=train)), 'r=', 'r lists')
    if made is None:
        return
    runner = runner_of(petr, tmp_path, iterations, 4)
    assert works_or_says(lambda: made.before_train(runner) or True, 'pruning layers', 'iterations') in (True, None)
    assert not adapters.is_attached(petr)
    keys = works_or_says(lambda: list(made.plan.keys_per_layer(24, 3)))
    if keys is not None:
        adapters.attach(petr, made.plan)
        with torch.no_grad():
            data = petr.data_preprocessor(batch(), False)
            assert adapters.keys_per_layer(petr.eval(), lambda: petr(**data, mode='tensor')) == keys
        adapters.detach(petr)


@examples(40)
@given(
    target=st.integers(1, 14),
    timing=st.fixed_dictionaries({}, optional=dict(interval=st.integers(1, 9), epochs=st.floats(0.1, 9))),
    per_step=st.just('all') | st.integers(1, 5),
    iterations=st.integers(1, 40),
)
def test_a_query_pruning_hook_fits_or_stops_before_the_first_batch(tmp_path, target, timing, per_step, iterations):
    model = build(detector_config())
    made = works_or_says(lambda: HOOKS.build(dict(type='GPQHook', target=target, per_step=per_step, **timing)), 'give')
    if made is None:
        return
    runner = runner_of(model, tmp_path, iterations, 4)
    made.before_run(runner)
    if works_or_says(lambda: made.before_train(runner) or True, 'target', 'begin', 'last query'):
        assert made.schedule.end <= iterations and made.schedule.total == 12 - target
        made.scorer.stop()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(groups=dict(GROUPS, camera=['nothing'])), "no module 'nothing'"),
        (dict(interfaces=dict(camera='nothing')), "no method or module 'nothing'"),
        (dict(protected=['nothing']), "protected: 'nothing' matches no scores; there are"),
        (dict(min_keep=0.9), 'sparsity=0.8 removes .* must stay'),
    ],
)
def test_what_would_stop_a_round_of_imp_stops_before_the_first_batch(tmp_path, monkeypatch, settings, message):
    """It came after `epochs_per_round` epochs."""
    imp = dict(criterion='magnitude', sparsity=0.8, epochs_per_round=1, groups=GROUPS, interfaces=INTERFACES)
    changes = dict(runner_type='AlterMOMARunner', pruning={**imp, **settings})
    runner = RUNNERS.build(fusion_config(tmp_path, **changes))
    monkeypatch.setattr(SmallFusion, 'forward', lambda *_, **__: pytest.fail('a batch was computed'))
    with pytest.raises(ValueError, match=message):
        runner.train()


def test_a_plan_for_validation_that_does_not_fit_stops_before_the_first_batch(petr, tmp_path):
    """It came with the first validation, after an epoch."""
    made = HOOKS.build(dict(type='TgGBCHook', r=4, n=3))
    with pytest.raises(ValueError, match='n=3 pruning layers in a decoder of 3: valid are 1 to 2'):
        made.before_train(runner_of(petr, tmp_path, 10, 4))


def test_the_exact_hook_has_no_settings():
    with pytest.raises(ValueError, match='ExactOnCPUHook: unknown setting anything; valid are none'):
        HOOKS.build(dict(type='ExactOnCPUHook', anything=1))
    assert GPQPlan(target=1).epochs == 6

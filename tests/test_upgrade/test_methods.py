"""The registry of methods, and a method of another package: two files and one entry point."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn

import mmprune3d
from mmprune3d import adapters
from mmprune3d.pruning import plans
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan
from mmprune3d.upgrade import describe, methods
from mmprune3d.upgrade.prune import prune, unprune
from mmprune3d.upgrade.run import run_upgrade
from mmprune3d.upgrade.steps import Options, Step
from tests.test_engine.small_fusion import write_config

from .toy.method import METHOD, Silencing
from .toy.plan import SilentPlan

ROOT = Path(__file__).parents[2]
NAMES = ['tggbc', 'tome', 'gpq', 'altermoma', 'halting']


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package whose one entry point names the toy method."""
    monkeypatch.setattr(methods, 'METHODS', dict(methods.known()))
    monkeypatch.setattr(plans, 'PLANS', dict(plans.PLANS))
    folder = tmp_path_factory.mktemp('site')
    info = folder / 'toy-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text('[mmprune3d.methods]\nsilent = tests.test_upgrade.toy.method:METHOD\n')
    monkeypatch.syspath_prepend(folder)
    methods._load_plugins.cache_clear()
    yield info
    methods._load_plugins.cache_clear()


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(dict(type='SmallFusion')).state_dict(), 'meta': {}}, tmp_path / 'dense.pth')
    return write_config(tmp_path / 'config.py', tmp_path / 'work'), tmp_path / 'dense.pth'


def test_every_method_has_a_plan_a_step_and_where_it_prunes_at_run_time_a_hook() -> None:
    assert list(methods.known()) == NAMES == list(plans.PLANS)
    for name, method in methods.known().items():
        assert method.plan_type is plans.PLANS[name] and method.plan_type.method == name
        assert issubclass(method.step_type, Step) and bool(method.hook) == method.step_type.at_run_time
        assert bool(method.training) == ('epochs' in method.step_type.options)
        plan = method.plan_type.parse(method.plan_type.example)
        assert plan.method == name
        assert not method.hook or HOOKS.build(dict(type=method.hook, **asdict(plan))).plan == plan


@pytest.mark.parametrize('name', NAMES)
def test_the_settings_of_every_plan_are_described(name: str) -> None:
    settings = describe.settings_of(plans.PLANS[name])
    assert all(10 < len(setting.text) < 200 and '\n' not in setting.text for setting in settings)
    text = describe.describe(name)
    assert f'mmprune3d upgrade CONFIG CHECKPOINT {name} ' in text and max(map(len, text.splitlines())) <= 100
    assert all(f'  {setting.name}' in text for setting in settings)


def test_the_table_for_the_documentation_has_a_row_per_method() -> None:
    rows = describe.table().splitlines()[2:]
    assert [row.split('|')[1].strip('` ') for row in rows] == NAMES
    assert len({row.count('|') for row in describe.table().splitlines()}) == 1


def test_plans_of_all_methods_come_back_from_what_is_stored() -> None:
    for plan in plans.PLANS.values():
        made = plan.parse(plan.example)
        assert plans.plan_from_dict(json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises(ValueError, match='valid are tggbc, tome, gpq, altermoma, halting'):
        plans.plan_from_dict(dict(method='x', r=5))


def test_methods_that_go_together_are_done_in_the_order_that_works() -> None:
    steps = methods.steps_of([TgGBCPlan(r=5), GPQPlan(target=5, epochs=1)])
    assert [step.method for step in steps] == ['gpq', 'tggbc']
    assert [step.method for step in methods.parse({'tome': 'r=5', 'gpq': 'target=5'})] == ['gpq', 'tome']


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['tggbc', 'altermoma'], r'tggbc and altermoma cannot be combined .* tggbc with gpq, tome with gpq\. Upgrade'),
        (['tggbc', 'tome'], 'tggbc and tome cannot be combined'),
        (['gpq', 'tggbc', 'halting'], 'gpq and halting cannot be combined'),
        (['gpq', 'gpq'], 'gpq is given twice'),
        (['gbq'], "'gbq' is not a method; valid are tggbc, tome, gpq, altermoma, halting"),
        ([], 'say what to prune: tggbc, tome, gpq, altermoma, halting'),
    ],
)
def test_what_does_not_go_together_is_said_before_any_work(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.check_together(names)


def test_plans_that_do_not_go_together_are_refused_before_any_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='altermoma and tggbc cannot be combined'):
        run_upgrade(tmp_path / 'no.py', 'no.pth', [AlterMOMAPlan(sparsity=0.5), TgGBCPlan(r=5)], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('texts', 'options', 'message'),
    [
        ({'tggbc': 'r=5'}, Options(epochs=3), '--epochs is an option of gpq, altermoma, halting, not of tggbc'),
        ({'gpq': 'target=5'}, Options(max_drop=0.1), '--max-drop is an option of tggbc, tome, not of gpq'),
        ({'tggbc': 'r=5'}, Options(calibrate=3), "--max-drop and --calibrate are for --tggbc auto; 'r=5' fixes"),
        ({'gpq': 'target=5'}, Options(epochs=0), 'epochs=0 must be a whole number, 1 or more'),
    ],
)
def test_options_that_change_nothing_are_refused(texts: dict[str, str], options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.parse(texts, options)


def test_options_reach_their_methods() -> None:
    queries, keys = methods.parse({'tggbc': 'auto', 'gpq': 'target=5'}, Options(3, 0.25, 0.02, 7))
    assert (queries.epochs, queries.lr_factor, queries.plan.target) == (3, 0.25, 5)
    assert (keys.request.max_drop, keys.request.calibrate) == (0.02, 7)
    (plain,) = methods.parse({'halting': 'sparsity=0.5'})
    assert (plain.epochs, plain.lr_factor) == (None, 0.5)


def test_pruning_a_model_in_memory() -> None:
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(Config.fromfile(ROOT / 'configs' / 'petr' / 'petr_tiny.py').model)
    for plan in (TgGBCPlan(r=5), ToMePlan(r=5).to_dict()):
        assert prune(model, plan) is model and adapters.is_attached(model)
        assert unprune(model, plan) is model and not adapters.is_attached(model)
    assert mmprune3d.prune is prune and mmprune3d.unprune is unprune
    with pytest.raises(ValueError, match=r'GPQ cannot .* needs training .* mmprune3d upgrade CONFIG CHECKPOINT gpq t'):
        prune(model, GPQPlan(target=5))
    with pytest.raises(ValueError, match='nothing that can be pruned'):
        prune(nn.Linear(2, 2), TgGBCPlan(r=5))


@pytest.mark.usefixtures('installed')
def test_a_method_of_another_package_upgrades_a_detector(small: tuple[Path, Path], tmp_path: Path) -> None:
    from mmprune3d.cli import upgrade as command

    assert command.texts_of(['silent', 'layer=fusion_layer']) == {'silent': 'layer=fusion_layer'}
    args = SimpleNamespace(config=small[0], checkpoint=small[1], out=tmp_path / 'out', cfg_options={})
    vars(args).update(timed=1, repeats=1, pictures=0, samples=None)
    vars(args).update(epochs=None, lr_factor=None, max_drop=None, calibrate=None)
    command.run_methods({'silent': 'layer=fusion_layer'}, args)
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['plan'] == dict(method='silent', layer='fusion_layer', factor=0.0)
    assert report['title'] == 'config: silent' and set(report['baseline']['ms']) >= {'fusion_layer', 'total'}
    text = (tmp_path / 'out' / 'report.md').read_text()
    assert report['plans'] == [report['plan']] and f'Plan: `{json.dumps(report["plan"])}`.' in text
    assert '| mean |' in text and '| parameters (millions) |' in text
    weights = torch.load(tmp_path / 'out' / 'upgraded.pth', weights_only=True)
    assert plans.plan_from_dict(weights['meta']['mmprune3d']['silent']) == SilentPlan('fusion_layer')

    config = Config.fromfile(tmp_path / 'out' / 'upgraded.py')
    assert config.custom_imports.imports[-2:] == ['mmprune3d', 'tests.test_upgrade.toy.method']
    config.load_from, config.work_dir = str(tmp_path / 'out' / 'upgraded.pth'), str(tmp_path / 'test')
    found = Runner.from_cfg(config).test()
    bias = float(weights['state_dict']['bbox_head.bias'].sum())  # all that is left
    assert found['mean'] == report['upgraded']['mean'] == pytest.approx(bias) != report['baseline']['mean']
    with pytest.raises(ValueError, match=r'the config prunes already \(SilentHook in custom_hooks\)'):
        run_upgrade(tmp_path / 'out' / 'upgraded.py', small[1], SilentPlan('fusion_layer'), tmp_path / 'twice')


@pytest.mark.usefixtures('installed')
def test_a_method_of_another_package_appears_everywhere(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argparse

    from mmprune3d.cli import common
    from mmprune3d.cli import upgrade as command

    parser = argparse.ArgumentParser()
    common.add_commands(parser, {'upgrade': command})
    with pytest.raises(SystemExit):
        parser.parse_args(['upgrade', '--help'])
    assert 'halting, silent and settings' in ' '.join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        parser.parse_args(['upgrade', '--describe'])
    assert 'silent     multiplies the output of a layer by a factor\n' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parser.parse_args(['upgrade', '--describe', 'silent'])
    assert '  factor (0.0)             What its output is multiplied by\n' in capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', ['upgrade.py', '--help'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / 'tools' / 'upgrade.py'), run_name='__main__')
    assert '--silent KEY=VALUE' in capsys.readouterr().out
    assert '| `silent` | multiplies the output' in describe.table()
    model = nn.ModuleDict({'fusion_layer': nn.Linear(2, 2)})
    before = model.fusion_layer(torch.ones(2))
    assert not prune(model, dict(method='silent', layer='fusion_layer')).fusion_layer(torch.ones(2)).any()
    assert torch.equal(unprune(model, SilentPlan('fusion_layer')).fusion_layer(torch.ones(2)), before)


def test_a_broken_package_costs_its_methods_only(installed: Path) -> None:
    (installed / 'entry_points.txt').write_text('[mmprune3d.methods]\nbad = tests.test_upgrade.toy.nowhere:METHOD\n')
    with pytest.warns(UserWarning, match=r'the methods of tests\.test_upgrade\.toy\.nowhere:METHOD are missing'):
        assert list(methods.known()) == NAMES


@pytest.mark.usefixtures('installed')
def test_names_are_unique() -> None:
    assert methods.register(METHOD) is METHOD  # again
    with pytest.raises(ValueError, match="there is a method 'silent' already"):
        methods.register(replace(METHOD, summary='does something else'))

    class Other(SilentPlan):
        pass

    with pytest.raises(ValueError, match="'silent' is the method of SilentPlan already"):
        plans.register(Other)
    assert methods.step_for(SilentPlan('x')) == Silencing(SilentPlan('x'))


@pytest.mark.parametrize('function', [prune, unprune])
@pytest.mark.parametrize('plan', [None, 3, 'tggbc', TgGBCPlan, [TgGBCPlan(r=3)]], ids=str)
def test_what_is_no_plan_is_named(function: Callable, plan: object) -> None:
    with pytest.raises(ValueError, match=r'is not a plan: valid is one plan, such as TgGBCPlan\(r=12000\)'):
        function(nn.Linear(2, 2), plan)


@pytest.mark.parametrize('function', [prune, unprune])
@pytest.mark.parametrize('model', [None, 'config.py', dict(type='PETR3D')], ids=str)
def test_what_is_no_model_is_named(function: Callable, model: object) -> None:
    with pytest.raises(ValueError, match=rf'is a {type(model).__name__}, not a detector: valid is a model, such as'):
        function(model, TgGBCPlan(r=3))


def test_an_entry_point_has_the_name_of_its_method(installed: Path) -> None:
    (installed / 'entry_points.txt').write_text('[mmprune3d.methods]\nother = tests.test_upgrade.toy.method:METHOD\n')
    with pytest.warns(UserWarning, match='the entry point other names the method silent: they must have one name'):
        assert 'silent' in methods.known()

"""Types of config entries, in every form that mmengine takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmdet3d.registry import HOOKS as MMDET3D_HOOKS
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook, LoggerHook
from mmengine.registry import HOOKS, WEIGHT_INITIALIZERS
from mmengine.runner import Runner

from mmprune3d.config_types import class_of, dotted, is_a, movable, only, without, writable
from mmprune3d.engine.hooks import TgGBCHook
from mmprune3d.engine.hooks.key_pruning_hook import KeyPruningHook
from mmprune3d.models.slim_detector import SlimDetector
from tests.toy_runner import ToyDataset, ToyMetric, ToyModel, write_config

FORMS = (
    'TgGBCHook',
    'mmengine.TgGBCHook',
    'mmprune3d.engine.hooks.TgGBCHook',
    'mmprune3d.engine.hooks.tggbc_hook.TgGBCHook',
    TgGBCHook,
)
"""One hook."""


class QuietHook(TgGBCHook):
    """Of a user, registered nowhere."""


@pytest.mark.parametrize('registry', [HOOKS, MMDET3D_HOOKS], ids=['mmengine', 'mmdet3d'])
@pytest.mark.parametrize('form', FORMS, ids=str)
def test_every_form_is_the_same_class(form: Any, registry: Any) -> None:
    assert class_of(form, registry) is TgGBCHook
    for entry in (dict(type=form, r=3), form):
        assert is_a(entry, 'TgGBCHook', registry) and is_a(entry, KeyPruningHook, registry)
        assert not is_a(entry, 'ToMeHook', registry) and not is_a(entry, EMAHook, registry)


@pytest.mark.parametrize('kind', [None, '', 'Nothing', 'nowhere.Nothing', 3, len])
def test_what_is_no_class_is_none(kind: Any) -> None:
    assert class_of(kind, HOOKS) is None
    assert not is_a(dict(type=kind), 'TgGBCHook', HOOKS) and not is_a({}, 'TgGBCHook', HOOKS)


def test_what_is_looked_for_has_to_exist() -> None:
    with pytest.raises(KeyError, match="'Nothing' is not in the hook registry"):
        is_a(dict(type='TgGBCHook'), 'Nothing', HOOKS)


def test_functions_and_objects_and_other_names() -> None:
    for form in ('SlimDetector', 'mmdet3d.SlimDetector', SlimDetector):
        assert is_a(dict(type=form), 'SlimDetector', MODELS)
    assert not is_a(dict(type='PETR3D'), 'SlimDetector', MODELS)
    assert is_a(TgGBCHook(r=3), 'TgGBCHook', HOOKS) and not is_a(LoggerHook(), 'TgGBCHook', HOOKS)
    assert is_a(dict(type='mmengine.model.weight_init.PretrainedInit'), 'Pretrained', WEIGHT_INITIALIZERS)


def test_lists_of_hooks() -> None:
    hooks = [dict(type=form) for form in (*FORMS, QuietHook)]
    others = [dict(type='EMAHook'), dict(type=LoggerHook)]
    assert only([*hooks, *others], 'TgGBCHook', HOOKS) == hooks
    assert without([*hooks, *others], 'TgGBCHook', HOOKS) == others
    assert only(None, 'TgGBCHook', HOOKS) == without(None, 'TgGBCHook', HOOKS) == []


def test_names_are_those_that_classes_are_found_by() -> None:
    for thing in (TgGBCHook, SlimDetector):
        name = dotted(thing)
        assert (class_of(name, HOOKS) or MODELS.get(name)) is thing
    assert dotted('TgGBCHook') == 'TgGBCHook' and dotted(None) is None


def test_a_config_with_classes_is_written_and_runs(tmp_path: Path) -> None:
    config = Config.fromfile(write_config(tmp_path / 'config.py', tmp_path / 'work'))
    config.model = dict(type=ToyModel)
    config.custom_hooks = [dict(type=EMAHook, momentum=0.1), dict(type=LoggerHook)]
    config.test_dataloader.dataset = dict(type=ToyDataset)
    config.test_evaluator = [dict(type=ToyMetric)]
    writable(config).dump(tmp_path / 'written.py')
    written = Config.fromfile(tmp_path / 'written.py')
    assert only(written.custom_hooks, EMAHook, HOOKS) == [dict(type='mmengine.hooks.ema_hook.EMAHook', momentum=0.1)]
    assert config.model.type is ToyModel and written.model.type == 'tests.toy_runner.ToyModel'
    assert Runner.from_cfg(written).test()['score'] == 0.5


def test_a_pure_python_config_is_written(tmp_path: Path) -> None:
    (tmp_path / 'pure.py').write_text(
        'from mmengine.hooks import EMAHook, LoggerHook\n'
        'from mmprune3d.engine.hooks import TgGBCHook\n\n'
        'default_hooks = dict(logger=dict(type=LoggerHook, interval=3))\n'
        'custom_hooks = [dict(type=TgGBCHook, r=3), dict(type=EMAHook)]\n'
    )
    config = Config.fromfile(tmp_path / 'pure.py')
    assert len(only(config.custom_hooks, TgGBCHook, HOOKS)) == 1
    config.custom_hooks = [dict(**without(config.custom_hooks, TgGBCHook, HOOKS)[0], momentum=0.1)]  # a class by now
    writable(config).dump(tmp_path / 'written.py')
    written = Config.fromfile(tmp_path / 'written.py')
    assert issubclass(class_of(written.default_hooks.logger.type, HOOKS), Hook)
    assert len(only(written.custom_hooks, EMAHook, HOOKS)) == 1 and written.custom_hooks[0].momentum == 0.1


def test_a_folder_that_is_moved_is_found_by_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path('made')  # from the working directory, as users give it
    folder.mkdir()
    names = dict(load_from='made/a.pth', model=dict(parts=['made/b.json', 'made/c.json', 3]), work_dir='made')
    movable(Config(names), folder, 'a.pth', 'b.json').dump(folder / 'config.py')
    folder.rename('moved')
    monkeypatch.chdir('/')
    found, there = Config.fromfile(tmp_path / 'moved' / 'config.py'), tmp_path / 'moved'
    assert found.load_from == str(there / 'a.pth') and found.work_dir == 'made'
    assert found.model.parts == [str(there / 'b.json'), 'made/c.json', 3]

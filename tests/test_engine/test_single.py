"""Two hooks of a kind are refused before the first batch, by every entry of the runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmprune3d.engine.hooks import GPQHook, HaltingHook, MaskHook, TgGBCHook, ToMeHook
from mmprune3d.engine.hooks.single import check_single
from tests.toy_runner import ToyModel, write_config


@MODELS.register_module()
class NeverRunModel(ToyModel):
    def forward(self, inputs, mode='tensor'):
        pytest.fail('a batch ran')


class TheirTgGBCHook(TgGBCHook):
    """Of a user."""


TGGBC, TOME = dict(type='TgGBCHook', r=3), dict(type='ToMeHook', r=3)
GPQ = dict(type='GPQHook', target=3, epochs=1)
PAIRS = {
    'tggbc twice': ([TGGBC, TGGBC], '2 hooks of the config prune keys: TgGBCHook, TgGBCHook'),
    'tggbc and tome': ([TGGBC, TOME], 'prune keys: TgGBCHook, ToMeHook'),
    'a subclass': ([TOME, dict(type='tests.test_engine.test_single.TheirTgGBCHook', r=3)], 'TheirTgGBCHook'),
    'three': ([TGGBC, TOME, TOME], '3 hooks of the config prune keys'),
    'gpq twice': ([GPQ, GPQ], 'prune queries: GPQHook, GPQHook'),
    'masks twice': ([dict(type='MaskHook'), dict(type='mmengine.MaskHook')], 'mask weights: MaskHook, MaskHook'),
    'halting twice': ([dict(type='HaltingHook')] * 2, 'log the halting of tokens'),
}


@pytest.mark.parametrize('entry', ['train', 'val', 'test'])
@pytest.mark.parametrize('name', PAIRS)
def test_a_second_one_is_refused(name: str, entry: str, tmp_path: Path) -> None:
    hooks, message = PAIRS[name]
    changes: dict[str, Any] = dict(model=dict(type='NeverRunModel'), custom_hooks=hooks)
    runner = Runner.from_cfg(Config.fromfile(write_config(tmp_path / 'config.py', tmp_path / 'work', **changes)))
    with pytest.raises(ValueError, match=message):
        getattr(runner, entry)()


@pytest.mark.parametrize(
    'hooks',
    [
        [TgGBCHook(r=3), GPQHook(target=3, epochs=1)],
        [ToMeHook(r=3), MaskHook(), HaltingHook(), Hook(), Hook()],
    ],
)
def test_different_kinds_go_together(hooks: list[Hook]) -> None:
    class Holder:
        pass

    Holder.hooks = hooks
    check_single(Holder, TgGBCHook.__mro__[1], 'prune keys')
    for kind in (GPQHook, MaskHook, HaltingHook):
        check_single(Holder, kind, 'something')

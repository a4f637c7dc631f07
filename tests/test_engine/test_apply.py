from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmdet3d.apis import init_model
from mmengine.config import Config
from torch import nn

from mmprune3d import adapters
from mmprune3d.engine import prune_as_configured
from mmprune3d.pruning.tggbc import TgGBCPlan
from tests.test_config_types import FORMS

CONFIG = Path(__file__).parents[2] / 'configs' / 'petr' / 'petr_tiny.py'


def test_a_model_of_init_model_prunes_as_its_config_says() -> None:
    config = Config.fromfile(CONFIG)
    config.custom_hooks = [dict(type='EMAHook'), dict(type='TgGBCHook', r=300, n=1, k=20)]
    model = init_model(config, None, device='cpu')
    assert not adapters.is_attached(model)
    assert prune_as_configured(model) == TgGBCPlan(r=300, n=1, k=20)
    assert adapters.is_attached(model)


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_hooks_in_every_form_are_found(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    attached = []
    monkeypatch.setattr(adapters, 'attach', lambda model, plan: attached.append(plan))
    model = nn.Linear(1, 1)
    model.cfg = Config(dict(custom_hooks=[dict(type='EMAHook'), dict(type=form, r=3)]))
    assert prune_as_configured(model) == TgGBCPlan(r=3) and attached == [TgGBCPlan(r=3)]


def test_a_config_without_a_pruning_hook_is_an_error() -> None:
    model = nn.Linear(1, 1)
    model.cfg = Config(dict(custom_hooks=None))
    with pytest.raises(ValueError, match='found 0; write custom_hooks'):
        prune_as_configured(model)
    model.cfg = Config(dict(custom_hooks=[dict(type='TgGBCHook', r=3), dict(type='ToMeHook', r=3)]))
    with pytest.raises(ValueError, match='found 2'):
        prune_as_configured(model)

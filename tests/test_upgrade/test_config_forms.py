"""Tools that look for a type in a config find it in every form, and what they write can be read again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

from mmprune3d.config_types import is_a
from mmprune3d.engine.hooks import GPQHook, HaltingHook, MaskHook, TgGBCHook
from mmprune3d.export.onnx import load_model
from mmprune3d.layers.halting import HaltingUNet
from mmprune3d.models.slim_detector import SlimDetector
from mmprune3d.models.sst import HaltingSSTDetector, SSTBackbone, SSTDetector
from mmprune3d.models.sst.halting_backbone import HaltingGate
from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.pruning.halting import HaltingPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.upgrade.compact import compact_config
from mmprune3d.upgrade.configs import upgraded_config
from mmprune3d.upgrade.gpq import QueryPruning
from mmprune3d.upgrade.halting import HaltingUpgrade
from mmprune3d.upgrade.slim_files import slim_config

CONFIGS = Path(__file__).parents[2] / 'configs'


def written(config: Config, tmp_path: Path) -> Config:
    config.dump(tmp_path / 'written.py')
    return Config.fromfile(tmp_path / 'written.py')


@pytest.mark.parametrize('form', ['GPQHook', 'mmengine.GPQHook', 'mmprune3d.engine.hooks.GPQHook', GPQHook], ids=str)
def test_gpq_is_not_added_twice_and_goes_with_compaction(form: Any, tmp_path: Path) -> None:
    config = Config.fromfile(CONFIGS / 'petr' / 'petr_tiny.py')
    config.custom_hooks = [dict(type=form, target=5, epochs=1)]
    with pytest.raises(ValueError, match='has a GPQHook already'):
        QueryPruning(GPQPlan(target=5, epochs=1)).config(config, Path('x.pth'), tmp_path)
    queries = SimpleNamespace(config_changes=lambda count: {'pts_bbox_head.num_query': count}, COUNT='num_query')
    assert compact_config(config, queries, 5).custom_hooks == []
    config.custom_hooks = None
    assert compact_config(config, queries, 5).model.pts_bbox_head.num_query == 5


@pytest.mark.parametrize('backbone', ['SSTBackbone', 'mmdet3d.SSTBackbone', SSTBackbone], ids=str)
@pytest.mark.parametrize('detector', ['SSTDetector', 'mmprune3d.models.sst.SSTDetector', SSTDetector], ids=str)
def test_halting_goes_into_every_form_of_sst(detector: Any, backbone: Any, tmp_path: Path) -> None:
    config = Config.fromfile(CONFIGS / 'sst' / 'sst_tiny.py')
    config.model.type, config.model.backbone.type = detector, backbone
    config.custom_hooks = [dict(type=HaltingHook, interval=3), dict(type='EMAHook')]
    made = written(HaltingUpgrade(HaltingPlan(sparsity=0.5)).config(config), tmp_path)
    assert made.model.type == 'HaltingSSTDetector' and made.model.backbone.type == 'HaltingSST'
    assert made.custom_hooks == [dict(type='EMAHook'), dict(type='HaltingHook')]


class TheirSST(SSTDetector):
    """Does something that would be lost."""


@pytest.mark.parametrize('detector', [HaltingSSTDetector, 'HaltingSSTDetector', TheirSST], ids=str)
def test_halting_does_not_replace_other_detectors(detector: Any) -> None:
    config = Config.fromfile(CONFIGS / 'sst' / 'sst_tiny.py')
    config.model.type = detector
    with pytest.raises(ValueError, match=r'not into (HaltingSSTDetector|TheirSST) with SSTBackbone'):
        HaltingUpgrade(HaltingPlan(sparsity=0.5)).config(config)


def test_slim_configs_replace_masks_and_structures_in_every_form(tmp_path: Path) -> None:
    hooks = [dict(type=form, masks='dense.pth') for form in ('MaskHook', MaskHook, 'mmprune3d.engine.hooks.MaskHook')]
    config = Config(dict(model=dict(type='Dense'), custom_hooks=hooks))
    slim = slim_config(config, 'structure.json')
    assert written(slim, tmp_path).custom_hooks == [dict(type='MaskHook')] * 3
    for form in (SlimDetector, 'mmdet3d.SlimDetector'):
        slim.model.type = form
        again = slim_config(slim, 'other.json').model
        assert again.detector == dict(type='Dense') and again.structure == 'other.json'


def test_an_exported_head_prunes_as_its_hook_says(petr_checkpoint: Path) -> None:
    config = Config.fromfile(CONFIGS / 'petr' / 'petr_tiny.py')
    config.custom_hooks = [dict(type=TgGBCHook, r=40, n=1, k=20)]
    config.default_scope = None
    model = load_model(config, petr_checkpoint, None)
    assert model.pts_bbox_head.transformer.decoder.key_pruner.plan == TgGBCPlan(r=40, n=1, k=20)


@pytest.mark.parametrize('form', ['HaltingUNet', 'mmengine.HaltingUNet', HaltingUNet], ids=str)
def test_a_gate_tells_a_unet_how_wide_tokens_are(form: Any) -> None:
    plain = HaltingGate(0, dict(type='HaltingUNet', in_channels=150), embed_dims=200)
    gate = HaltingGate(0, dict(type=form, in_channels=150), embed_dims=200)
    assert [value.shape for value in gate.parameters()] == [value.shape for value in plain.parameters()]


def test_hooks_that_were_classes_are_written_as_names(tmp_path: Path) -> None:
    config = Config(dict(model=dict(type=SSTDetector), custom_hooks=[dict(type=HaltingHook)]))
    made = written(upgraded_config(config, TgGBCPlan(r=3)), tmp_path)
    assert is_a(made.custom_hooks[0], HaltingHook, HOOKS) and is_a(made.custom_hooks[1], TgGBCHook, HOOKS)

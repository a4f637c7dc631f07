"""Channels taken out of detectors: what is reached, that nothing else changes, and that the files work."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmprune3d.checkpoint.masks import load_masks, packed_state
from mmprune3d.cli import main
from mmprune3d.upgrade import channels as channel_pruning
from mmprune3d.upgrade.channel_settings import ChannelSettings, with_target
from mmprune3d.upgrade.channels import first_sample, slim
from mmprune3d.upgrade.slim_files import BUILDER, slim_config
from tests.kills import assert_same
from tests.test_coupling.channel_nets import bevfusion_batch
from tests.test_engine.small_fusion import GROUPS, INTERFACES, fusion_config, write_config

from .small_bevfusion import save_random, small_config

MAP = dict(groups=GROUPS, interfaces=INTERFACES, head='bbox_head')


def settings(**given: Any) -> ChannelSettings:
    values = dict(criterion='snip', eval_batches=1, tolerance=0.1, **MAP)
    return ChannelSettings.from_dict({**values, **given})


@pytest.fixture
def small(tmp_path: Path) -> tuple[Config, Path]:
    """A detector that runs in a blink, and its weights."""
    config = fusion_config(tmp_path / 'work')
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'dense.pth')
    return config, tmp_path / 'dense.pth'


@pytest.fixture(scope='module')
def bevfusion(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A slim BEVFusion3D in a folder, and the config of the dense one."""
    out = tmp_path_factory.mktemp('slim')
    config = small_config(tiny.root, out / 'work')
    save_random(config, out / 'dense.pth')
    plan = dict(flops=0.5, eval_batches=1, reactivation_steps=1)
    slim(config, out / 'dense.pth', ChannelSettings.from_dict(plan)).write(out)
    return out, config


def test_half_of_the_flops_of_bevfusion_are_gone(bevfusion: tuple[Path, Config]) -> None:
    report = json.loads((bevfusion[0] / 'report.json').read_text())
    before, after = report['gflops']
    assert after / before == pytest.approx(0.5, abs=0.01)
    assert 1 - after / before == pytest.approx(report['reached'], abs=1e-6)
    assert report['difference'] < 1e-5
    assert sum(row['kept'] for row in report['layers'].values()) == report['total']['kept'] < report['total']['total']
    assert set(report['groups']) == {'camera', 'lidar', 'fusion'}
    assert report['plan']['flops'] == 0.5 and report['left_out']['bbox_head.heatmap_head.1'] == 'reaches the output'
    assert set(report['notes']['reactivation_losses']) == {'camera', 'lidar'}
    weights = torch.load(bevfusion[0] / 'slim.pth', weights_only=True)
    params = sum(value.numel() for name, value in weights['state_dict'].items() if 'running_' not in name)
    assert report['params'][1] < report['params'][0] and params == pytest.approx(report['params'][1], rel=0.02)
    assert weights['meta']['mmprune3d']['altermoma']['flops'] == 0.5
    assert '| **lidar** |' in (bevfusion[0] / 'report.md').read_text()


def test_init_model_takes_the_files(bevfusion: tuple[Path, Config]) -> None:
    from mmdet3d.apis import init_model

    out = bevfusion[0]
    model = init_model(str(out / 'slim.py'), str(out / 'slim.pth'), device='cpu')
    structure = json.loads((out / 'structure.json').read_text())
    assert type(model).__name__ == 'BEVFusion3D'
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == structure
    stored = torch.load(out / 'slim.pth', weights_only=True)['state_dict']
    name = 'pts_middle_encoder.encoder_layers.encoder_layer1.0.conv1.weight'
    assert torch.equal(model.state_dict()[name], stored[name])


def test_the_files_can_be_moved(bevfusion: tuple[Path, Config], tmp_path: Path) -> None:
    (tmp_path / 'slim.py').write_bytes((bevfusion[0] / 'slim.py').read_bytes())
    config = Config.fromfile(tmp_path / 'slim.py')
    assert (config.model.structure, config.load_from) == (str(tmp_path / 'structure.json'), str(tmp_path / 'slim.pth'))


def test_the_slim_detector_trains(bevfusion: tuple[Path, Config]) -> None:
    out = bevfusion[0]
    config = Config.fromfile(out / 'slim.py')
    assert config.model.type == BUILDER and config.load_from == str(out / 'slim.pth')
    config.train_dataloader.dataset.indices = 1
    config.work_dir = str(out / 'trained')
    runner = Runner.from_cfg(config)
    runner.train()
    before = torch.load(out / 'slim.pth', weights_only=True)['state_dict']
    after = torch.load(out / 'trained' / 'epoch_1.pth', weights_only=True)['state_dict']
    assert {name: value.shape for name, value in after.items()} == {n: v.shape for n, v in before.items()}
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert {name.split('.')[0] for name in changed} >= {'img_backbone', 'pts_middle_encoder', 'fusion_layer'}


def test_removing_nothing_is_the_identity(small: tuple[Config, Path]) -> None:
    made = slim(*small, settings(flops=0.0))
    assert_same(made.checkpoint['state_dict'], torch.load(small[1], weights_only=True)['state_dict'], 'weights')
    assert made.report['difference'] == 0 and made.report['total']['rate'] == 1


@pytest.mark.parametrize('target', [dict(flops=0.3), dict(params=0.3), dict(sparsity=0.25, mode='channels')])
def test_targets(small: tuple[Config, Path], target: dict[str, Any]) -> None:
    report = slim(*small, settings(**target)).report
    kind = next(iter(target))
    shares = {
        'flops': 1 - report['gflops'][1] / report['gflops'][0],
        'params': 1 - report['params'][1] / report['params'][0],
        'sparsity': 1 - report['total']['rate'],
    }
    assert shares[kind] == pytest.approx(report['reached']) == pytest.approx(target[kind], abs=0.1)


def test_a_slim_model_can_lose_more(small: tuple[Config, Path], tmp_path: Path) -> None:
    slim(*small, settings(params=0.3)).write(tmp_path / 'first')
    config = Config.fromfile(tmp_path / 'first' / 'slim.py')
    again = slim(config, tmp_path / 'first' / 'slim.pth', settings(params=0.3))
    assert again.config.model.detector == small[0].model
    assert again.report['params'][0] == json.loads((tmp_path / 'first' / 'report.json').read_text())['params'][1]
    again.write(tmp_path / 'second')
    assert Config.fromfile(tmp_path / 'second' / 'slim.py').model.structure == str(tmp_path / 'second/structure.json')


def test_masks_of_weights_are_sliced_too(small: tuple[Config, Path], tmp_path: Path) -> None:
    config, path = small
    data = torch.load(path, weights_only=True)
    weight = data['state_dict']['fusion_layer.0.weight']
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    weight *= mask
    torch.save({**data, 'mmprune3d': packed_state({'fusion_layer.0.weight': mask}, {})}, path)
    config.custom_hooks = [dict(type='MaskHook', masks='dense_masks.pth')]
    made = slim(config, path, settings(params=0.3))
    made.write(tmp_path)
    kept, value = load_masks(tmp_path / 'slim.pth'), made.checkpoint['state_dict']['fusion_layer.0.weight']
    assert torch.equal(kept['fusion_layer.0.weight'], value != 0) and value.shape != weight.shape
    assert made.config.custom_hooks == [dict(type='MaskHook')]


def test_recalibration_changes_statistics_only(small: tuple[Config, Path]) -> None:
    plain, new = (slim(*small, settings(params=0.3, recalibrate=n)).checkpoint['state_dict'] for n in (0, 2))
    changed = [name for name, value in new.items() if not torch.equal(value, plain[name])]
    assert changed and all('running_' in name or 'num_batches' in name for name in changed)


def test_a_coupling_that_was_not_seen_is_an_error(small: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weights: dict, *_: Any) -> dict:
        return {name: value.clone() for name, value in weights.items()}

    monkeypatch.setattr(channel_pruning, 'mask_state_dict', wrong)
    with pytest.raises(ValueError, match=r'differs from the masked one by \d.*coupled group of channels was not found'):
        slim(*small, settings(params=0.5))


def test_a_slim_model_that_does_not_run_names_the_layer(
    small: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(model: nn.Module, *_: Any) -> float:
        return model.get_submodule('fusion_layer')(torch.zeros(1, 1, 2, 2))

    monkeypatch.setattr(channel_pruning, 'output_difference', outputs)
    with pytest.raises(ValueError, match=r'does not run: fusion_layer\.0 \(Conv2d\) works with a .*protected='):
        slim(*small, settings(params=0.5))


def test_protected_parts_lose_nothing(small: tuple[Config, Path]) -> None:
    report = slim(*small, settings(params=0.3, protected=['img_backbone', 'fusion_layer.0.weight'])).report
    assert list(report['layers']) == ['pts_middle_encoder.0', 'pts_middle_encoder.3']
    assert report['left_out']['fusion_layer.0'] == 'protected'


def test_frozen_layers_are_left_out(small: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    build = channel_pruning._build

    def frozen(config: Config) -> Any:
        model = build(config)
        model.img_backbone[0].weight.requires_grad = False
        return model

    monkeypatch.setattr(channel_pruning, '_build', frozen)
    report = slim(*small, settings(params=0.3)).report
    assert report['left_out']['img_backbone.0'] == 'frozen' and 'img_backbone.0' not in report['layers']


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(sparsity=0.5), "mode='unstructured'; removing channels needs mode='channels'"),
        (dict(flops=0.5, roundto=8), 'unknown setting roundto; valid are max_ratio, round_to, tolerance'),
        (dict(), 'give exactly one of sparsity, flops, params'),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**given)


def test_a_target_out_of_reach_says_what_is_possible(small: tuple[Config, Path]) -> None:
    with pytest.raises(ValueError, match=r'cannot remove 95\.0% of the flops: the nearest .*at most \d'):
        slim(*small, settings(flops=0.95, tolerance=0.01))


def test_there_must_be_data_to_score_with(small: tuple[Config, Path]) -> None:
    config = copy.deepcopy(small[0])
    config.train_dataloader = None
    with pytest.raises(ValueError, match='the config has no train_dataloader'):
        slim(config, small[1], settings(flops=0.3))


def test_a_target_replaces_another() -> None:
    assert with_target(dict(sparsity=0.8, scope='global'), dict(flops=0.5)) == dict(
        scope='global', flops=0.5, mode='channels'
    )
    assert with_target({}, dict(channels=0.3)) == dict(sparsity=0.3, mode='channels')
    assert with_target(dict(params=0.2), {}) == dict(params=0.2, mode='channels')
    assert with_target(dict(criterion='snip'), dict(sparsity=0.5)) == dict(criterion='snip', sparsity=0.5)


def test_slim_configs_do_not_prune_in_training(small: tuple[Config, Path]) -> None:
    config = copy.deepcopy(small[0])
    config.runner_type, config.pruning, config.resume = 'AlterMOMARunner', dict(sparsity=0.5), True
    made = slim_config(config, {})
    assert 'runner_type' not in made and 'pruning' not in made and not made.resume


def test_first_sample() -> None:
    batch, _ = bevfusion_batch()
    raw = {'inputs': {'img': [1, 2], 'points': torch.ones(3, 2)}, 'data_samples': ['a', 'b'], 'n': 3}
    cut = first_sample(raw)
    assert cut['inputs']['img'] == [1] and cut['data_samples'] == ['a'] and cut['n'] == 3
    assert cut['inputs']['points'].shape == (1, 2) and first_sample(batch)['imgs'].shape[0] == 1


def test_the_command_line(
    small: tuple[Config, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path / 'config.py', tmp_path / 'work', pruning=MAP)
    command = ['prune', config, small[1], '--out', tmp_path / 'out', 'criterion=magnitude', 'flops=0.3']
    command = list(map(str, command))
    assert main([*command, 'tolerance=0.1']) == 0
    printed = capsys.readouterr().out
    assert '| part | group | channels |' in printed and 'GFLOPs per sample' in printed
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    assert written == {'slim.py', 'slim.pth', 'structure.json', 'report.json', 'report.md', 'keep_rates.png', 'logs'}
    with pytest.raises(SystemExit, match='error: sparsity and flops: give one target'):
        main([*command, 'sparsity=0.5'])

"""The study of token halting, on a detector and data of a toy's size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import IterBasedTrainLoop

from experiments.halting import study as halting_study
from experiments.halting.__main__ import commands
from experiments.halting.models import fitted
from experiments.halting.rows import BOUNDS, CONTROL, RUNS, row_config
from experiments.halting.speed import PARTS, measure_speed, time_parts
from experiments.halting.study import BATCH_SIZE, ITERATIONS, LR, STUDY, run_training, start_of, training_config
from experiments.halting.table import table
from experiments.halting.token_layouts import Grid
from experiments.models import build
from tests.conftest import TinyDataset
from tests.test_upgrade.small_bevfusion import save_random

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
CONFIG = CONFIGS / 'sst' / 'sst_tiny.py'
TRAINED = (CONTROL, 'halt-82', 'avit-high', 'width-4')


def toy_config(root: Path, work_dir: Path) -> Config:
    """sst_tiny on 32 x 32 pillars, with two blocks of 32 features."""
    config = Config.fromfile(CONFIG)
    area = tuple(config.point_cloud_range)
    config.model = fitted(config.model, Grid(area, 3.2), 8)
    model, width = config.model, 32
    model.voxel_encoder.feat_channels = [16, width]
    model.backbone.update(
        num_blocks=2, d_model=[width] * 2, nhead=[4] * 2, dim_feedforward=[width] * 2, num_attached_conv=1
    )
    model.backbone.update(conv_in_channel=width, conv_out_channel=width, conv_kwargs=dict(kernel_size=3, padding=1))
    model.neck.update(in_channels=[width], out_channels=[width])
    model.bbox_head.in_channels = width
    model.train_cfg.update(voxel_size=[3.2, 3.2, 8.0], grid_size=[32, 32, 1])
    for name in ('train', 'val', 'test'):
        config[f'{name}_dataloader'].dataset.data_root = f'{root}/'
    for name in ('val', 'test'):
        config[f'{name}_evaluator'].update(data_root=f'{root}/', ann_file=f'{root}/nuscenes_infos_val.pkl')
    config.work_dir, config.log_level = str(work_dir), 'ERROR'
    return config


@pytest.fixture(autouse=True)
def plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Config, 'pretty_text', property(repr))  # formats the config anew for every runner


@pytest.fixture
def toy(tiny: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Path, Path]:
    config = toy_config(tiny.root, tmp_path / 'logs')
    save_random(config, tmp_path / 'dense.pth')
    for name, value in {'ITERATIONS': 2, 'BATCH_SIZE': 1, 'SAVE_EVERY': 1}.items():
        monkeypatch.setattr(halting_study, name, value)
    return config, tmp_path / 'dense.pth', tmp_path / 'study'


def test_trainings_speed_and_table(toy: tuple[Config, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, checkpoint, out = toy
    for name in TRAINED:
        result = run_training(base, checkpoint, name, 1, out)
        assert (result['iterations'], result['name'], result['seed']) == (2, name, 1)
        assert 0 <= result['mAP'] <= 1 and result['loss'] > 0
        assert sorted(path.name for path in (out / f'{name}-1').glob('*.pth'))[0] == 'final.pth'
        assert not list((out / f'{name}-1').glob('iter_*'))
    shares = json.loads((out / 'halt-82-1' / 'result.json').read_text())['sparsity']
    first, second = BOUNDS[82]
    # bounds are met to one token of a sample, of which there are hundreds
    assert shares['all'] == pytest.approx([first] * 2 + [second] * 2, abs=0.01)
    assert shares['mean'] == pytest.approx((first + second) / 2, abs=0.01)
    assert min(shares['foreground']) >= 0 and max(shares['foreground']) < 1
    assert shares['foreground'] != shares['background']
    assert json.loads((out / 'sst-1' / 'result.json').read_text())['sparsity'] == {'mean': 0.0}
    with pytest.MonkeyPatch.context() as patch:  # what is there is not trained again
        patch.setattr(halting_study, 'training_config', None)
        assert run_training(base, checkpoint, 'halt-82', 1, out)['sparsity'] == shares

    speeds = measure_speed(base, out, 1, frames=2, repeats=2)
    assert set(speeds) == set(TRAINED)
    for speed in speeds.values():
        assert set(speed['ms']) == set(speed['control_ms']) == set(PARTS)
        assert all(0 < speed['ms'][part] < speed['ms']['detector'] for part in ('sra', 'map', 'backbone'))
        assert speed['ms']['sra'] + speed['ms']['map'] < 1.2 * speed['ms']['backbone']  # medians need not add up
    assert speeds[CONTROL]['ms'] == speeds[CONTROL]['control_ms']
    text = table(out)
    assert all(RUNS[name].title in text for name in TRAINED)
    assert 'head scaling' not in text
    assert (out / 'pareto.png').is_file()
    assert (out / 'table.md').read_text().rstrip() == text.rstrip()
    assert len(json.loads((out / 'table.json').read_text())['results']) == len(TRAINED)


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / 'final.pth', weights_only=True)['state_dict']


def test_interrupted_is_uninterrupted(toy: tuple[Config, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, checkpoint, out = toy
    monkeypatch.setattr(halting_study, 'tested', lambda *_: {})
    run_training(base, checkpoint, 'halt-82', 1, out)
    run_iter = IterBasedTrainLoop.run_iter

    def stop_at_second(loop: IterBasedTrainLoop, batch: dict) -> None:
        if loop.iter:
            raise KeyboardInterrupt
        run_iter(loop, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(IterBasedTrainLoop, 'run_iter', stop_at_second)
        run_training(base, checkpoint, 'halt-82', 1, out / 'other')
    assert not (out / 'other' / 'halt-82-1' / 'result.json').exists()
    run_training(base, checkpoint, 'halt-82', 1, out / 'other')
    weights = [
        torch.load(folder / 'halt-82-1' / 'final.pth', weights_only=True)['state_dict']
        for folder in (out, out / 'other')
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    # another seed is another training
    run_training(base, checkpoint, 'halt-82', 2, out)
    other = final_weights(out / 'halt-82-2')
    assert any(not torch.equal(weights[0][key], other[key]) for key in other)


def test_every_row_trains_equally_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(halting_study, 'dataset_length', lambda _: 2304)
    base = Config.fromfile(CONFIG)
    before, budgets = base.to_dict(), set()
    for name, row in RUNS.items():
        config = training_config(base, row, Path('start.pth'), 3, tmp_path / name)
        indices = config.train_dataloader.dataset.indices
        assert len(indices) == len(set(indices)) == ITERATIONS * BATCH_SIZE and (indices[0], indices[-1]) == (0, 2303)
        cycle = config.param_scheduler[0]
        budgets.add((config.train_cfg.max_iters, config.train_dataloader.batch_size, cycle.total_steps, cycle.eta_max))
        assert config.train_cfg.val_begin > config.train_cfg.max_iters
        assert (config.load_from, config.resume, config.randomness.seed) == ('start.pth', False, 3)
        model = build(config.model)  # every one of them can be built, and starts from the same tokens
        assert model.backbone.num_layers == 8
    assert budgets == {(ITERATIONS, BATCH_SIZE, ITERATIONS, LR)}
    assert base.to_dict() == before
    settings = base, RUNS[CONTROL], Path('start.pth'), 0, tmp_path
    assert not training_config(*settings).resume
    (tmp_path / 'last_checkpoint').write_text('iter_128.pth')
    torch.save({'state_dict': {}}, tmp_path / 'iter_128.pth')
    config = training_config(*settings)
    assert config.resume and config.load_from == str(tmp_path / 'iter_128.pth')


def test_bounds_make_the_mean_sparsity() -> None:
    for percent, (first, second) in BOUNDS.items():
        assert (2 * first + 6 * second) / 8 == pytest.approx(percent / 100, abs=5e-4)
        gates = RUNS[f'halt-{percent}'].model['backbone']['halting']
        assert [gate['bounds'] for gate in gates] == [(first, first), (second, second)]


def test_the_config_is_the_row_of_the_study() -> None:
    wanted = Config.fromfile(CONFIGS / 'halting' / 'halting_sst_tiny.py').model
    made = row_config(Config.fromfile(CONFIG), RUNS['halt-82']).model
    assert json.loads(json.dumps(made)) == json.loads(json.dumps(wanted))


@pytest.mark.parametrize('name', ['width-4', 'heads-2'])
def test_scaled_attention_starts_from_slices(toy: tuple[Config, Path, Path], name: str, tmp_path: Path) -> None:
    base, checkpoint, _ = toy
    base.model.backbone.layer_cfg = dict(head_dims=16)
    save_random(base, checkpoint)
    assert start_of(base, RUNS[CONTROL], checkpoint, tmp_path) == checkpoint
    start = torch.load(start_of(base, RUNS[name], checkpoint, tmp_path), weights_only=True)['state_dict']
    model = build(row_config(base, RUNS[name]).model)
    model.load_state_dict(start)
    heads, width = RUNS[name].heads
    attention = model.backbone.block_list[0].encoder_list[0].win_attn.self_attn
    assert (attention.num_heads, attention.head_dims) == (heads, width)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training 'halt-83'; valid are sst, halt-75"):
        run_training(Config(), Path('x.pth'), 'halt-83', 0, tmp_path)
    with pytest.raises(ValueError, match='no results of sst with seed 4'):
        measure_speed(Config(), tmp_path, 4)
    with pytest.raises(ValueError, match='has no results; train first, for example sst'):
        STUDY.results(tmp_path)


def test_a_part_that_does_not_run_is_no_time() -> None:
    class Idle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Linear(1, 1)
            self.backbone.plan = self.backbone.run_block = self.backbone.to_map = None

        def test_step(self, batch: dict) -> None:
            self.backbone(torch.zeros(1))

    with pytest.raises(RuntimeError, match='Linear has not run sra, map'):
        time_parts(Idle(), {})


def write_result(out: Path, name: str, seed: int, mean_ap: float, speedup: float | None, **sparsity: object) -> None:
    result = {'name': name, 'seed': seed, 'mAP': mean_ap, 'NDS': mean_ap + 0.02, 'sparsity': {'mean': 0.0, **sparsity}}
    if speedup is not None:
        control = {'sra': 60.0, 'backbone': 90.0, 'detector': 120.0, 'map': 45.0}
        ms = {part: value / speedup for part, value in control.items()}
        result['speed'] = {'ms': ms, 'control_ms': control, 'frames': 16, 'repeats': 3, 'env': {'threads': 2}}
    folder = out / f'{name}-{seed}'
    folder.mkdir(parents=True)
    (folder / 'result.json').write_text(json.dumps(result))


def test_the_command_makes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = {'all': [0.7, 0.8], 'foreground': [0.1, 0.25], 'background': [0.75, 0.85]}
    write_result(tmp_path, 'sst', 0, 0.5, None)
    commands().main(['table', '--out', str(tmp_path)])
    assert '| SST, fine-tuned (control) | 50.0 | 52.0 | 0.0 |  | 1.00: 76.2 |' in capsys.readouterr().out
    assert not (tmp_path / 'pareto.png').exists()
    write_result(tmp_path, 'sst', 1, 0.52, 1.0)
    write_result(tmp_path, 'halt-82', 1, 0.47, 1.5, **{**layers, 'mean': 0.82})
    write_result(tmp_path, 'halt-82', 0, 0.49, 2.0, **{**layers, 'mean': 0.82, 'foreground': None})
    write_result(tmp_path, 'halt-82-uniform', 0, 0.4, 2.0, **{**layers, 'mean': 0.82})
    commands().main(['table', '--out', str(tmp_path)])
    text = capsys.readouterr().out
    assert (
        '| SST_halt, 0.82 | 49.0 / 47.0 (48.0) | 51.0 / 49.0 (50.0) | 82.0 | 1.75 / 1.75 / 1.75 | 1.37: 76.1 |' in text
    )
    assert '| SST_halt, 0.82 | 10.0 / 75.0 | 25.0 / 85.0 |' in text
    assert text.count('uniform sparsity loss') == 2
    assert 'cannot become more than 2.00 times as fast' in text
    assert (tmp_path / 'pareto.png').is_file()
    with pytest.raises(SystemExit, match=r'error: .* has no results'):
        commands().main(['table', '--out', str(tmp_path / 'nothing')])

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.tggbc import benchmark, sweep
from experiments.tggbc.__main__ import commands
from experiments.tggbc.cost import cross_attention_flops
from mmprune3d.pruning.tggbc import TgGBCPlan

SMALL = benchmark.Row(96, TgGBCPlan(r=80, n=2, k=5), queries=12, width=32, heads=4, layers=4, feedforward=48)


@pytest.fixture
def small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, 'ROWS', {'small': SMALL, 'smaller': replace(SMALL, keys=64, plan=TgGBCPlan(r=10))})
    monkeypatch.setattr(sweep, 'ROWS', benchmark.ROWS)


@torch.no_grad()
def test_all_ways_compute_what_they_should() -> None:
    model = benchmark.Decoder(SMALL, batch=2)
    torch.testing.assert_close(model.stock_fused(), model.stock(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.ours(), model.official(), atol=1e-5, rtol=1e-5)
    others = [model.tome(), model.floor()]
    for i, output in enumerate([model.stock(), model.ours(), *others]):
        assert output.shape == (2, 12, 20)
        assert not any(torch.allclose(output, other, atol=1e-4) for other in others[i:][1:])


def test_table_7_counts_importance_in_all_layers_but_the_last() -> None:
    rows = {'streampetr_vov_1600x640': (174.91, 61.44, 64.88), 'open_r101_1408x512': (123.55, 58.84, 52.37)}
    for name, (before, after, saved) in rows.items():
        row = benchmark.ROWS[name]
        flops = cross_attention_flops(row.plan, row.keys, scored_layers=row.layers - 1)
        assert [round(value / 1e9, 2) for value in flops] == [before, after]
        assert round(100 * (1 - flops[1] / flops[0]), 2) == saved
        assert round(cross_attention_flops(row.plan, row.keys)[1] / 1e9, 2) != after


def test_merging_is_cut_to_half_of_the_keys() -> None:
    assert benchmark.tome_plan(benchmark.ROWS['streampetr_vov_1600x640']).r == (10500, 6750)
    assert benchmark.tome_plan(benchmark.ROWS['open_r50_704x256']).r == (1000, 1000)


def test_keys_per_layer_are_those_of_the_detectors() -> None:
    cameras = {'1600x640': 6 * 40 * 100, '1408x512': 6 * 32 * 88, '704x256': 6 * 16 * 44, '1600x800': 6 * 50 * 100}
    for name, row in benchmark.ROWS.items():
        size = name.rsplit('_', 1)[1]
        frames = 2 if name.startswith(('petrv2', 'mbev')) else 1
        assert row.keys == cameras.get(size, frames * 6 * 20 * 50), name


@pytest.mark.usefixtures('small_rows')
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'out.json'
    commands().main(['benchmark', '--repeats', '1', '--json', str(out)])
    data = json.loads(out.read_text())
    assert [row['row'] for row in data['rows']] == ['small', 'smaller']
    for row in data['rows']:
        assert all(set(row[part]) == set(benchmark.COLUMNS) for part in ('ms', 'peak_mib', 'gflops'))
        assert all(value > 0 for part in ('ms', 'peak_mib', 'gflops') for value in row[part].values())
        assert row['gflops']['floor'] < row['gflops']['ours']
    assert data['rows'][0]['gflops']['ours'] < data['rows'][0]['gflops']['stock_fused']
    assert data['env']['dtype'] == 'float32' and data['env']['batch'] == 1
    table = capsys.readouterr().out
    assert '| small | 96, 80 |' in table
    assert '(r=68)' in table


@pytest.mark.usefixtures('small_rows')
def test_unknown_row() -> None:
    with pytest.raises(SystemExit, match='no row petr; valid are small, smaller'):
        commands().main(['benchmark', '--rows', 'petr'])


@pytest.mark.usefixtures('small_rows')
def test_sweep_varies_one_setting_at_a_time(tmp_path: Path) -> None:
    result = sweep.measure('small', repeats=1)
    assert [point['value'] for point in result['points']['n']] == [1, 2, 3]
    operations = [point['gflops'] for point in result['points']['r']]
    assert operations == sorted(operations, reverse=True)
    assert sweep.plot(result, tmp_path).stat().st_size > 10_000
    assert '| k |' in sweep.markdown([result])

"""The benchmark of halted tokens: it times models that compute what they should, at the sparsity that it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from experiments.halting import benchmark as backbone_benchmark
from experiments.halting import models as backbone_models
from experiments.halting.__main__ import commands
from experiments.halting.benchmark import PARTS, ROWS, compare_attention, markdown, measure, measure_layout
from experiments.halting.models import (
    CANDIDATES,
    Detectors,
    calibrate,
    fitted,
    halted_shares,
    heatmap_biases,
    make_detectors,
    run_blocks,
    set_heatmap_biases,
    set_sparsity,
    steer,
)
from experiments.halting.token_layouts import Grid, TokenLayout, occupied, priority
from experiments.models import CONFIGS

SIDE = 66
"""Cells of the map along each side: enough for the 4096 candidates that the heads take."""


@pytest.fixture(scope='module')
def layout() -> TokenLayout:
    half = SIDE * 0.16
    grid = Grid((-half, -half, -2.0, half, half, 4.0), 0.32)
    points = torch.rand(900, 5, generator=torch.Generator().manual_seed(0))
    points[:, :3] = points[:, :3] * torch.tensor([2 * half, 2 * half, 2.0]) - torch.tensor([half, half, 1.0])
    points, coords = occupied(points, grid)
    return TokenLayout(points, coords, grid, torch.tensor([[2.0, 3.0, 0, 4.5, 2.0, 1.6, 0.3]]), 'random points')


@pytest.fixture(scope='module')
def detectors(layout: TokenLayout) -> Detectors:
    found = make_detectors(ROWS['objects'], layout, window=12)
    steer(found.halting.backbone, layout, 'objects')
    return found


@pytest.fixture(scope='module')
def results(layout: TokenLayout, detectors: Detectors) -> list[dict[str, Any]]:
    with torch.inference_mode():
        return measure_layout('objects', ROWS['objects'], layout, detectors, 1, (0.0, 0.89))


@pytest.mark.parametrize('sparsity', [0.0, 0.1, 0.375, 0.75, 0.82, 0.89, 0.95])
@pytest.mark.parametrize('layers', [4, 8, 12])
def test_shares_have_the_mean_that_was_asked_for(sparsity: float, layers: int) -> None:
    first, second = halted_shares(sparsity, layers)
    assert (2 * first + (layers - 2) * second) / layers == pytest.approx(sparsity)
    assert 0 <= first <= second < 1


def test_shares_are_near_the_bounds_of_the_paper() -> None:
    assert halted_shares(0.0) == (0.0, 0.0)
    assert halted_shares(0.89) == pytest.approx((0.824, 0.912))
    for sparsity, layers in ((1.0, 8), (-0.1, 8), (0.5, 2)):
        with pytest.raises(ValueError, match='sparsity must be'):
            halted_shares(sparsity, layers)


def test_rows_are_as_the_file_needs_them(results: list[dict[str, Any]], layout: TokenLayout) -> None:
    tokens = len(layout.coords)
    assert json.loads(json.dumps(results)) == results
    for result, sparsity in zip(results, (0.0, 0.89), strict=True):
        assert result['sparsity'] == sparsity
        assert (result['tokens'], result['window'], result['layout']) == (tokens, 12, 'objects')
        assert 1 - sum(result['live']) / (8 * tokens) == pytest.approx(sparsity, abs=2 / tokens)
        for key in ('ms', 'unhalted_ms', 'official_style_ms'):
            assert list(result[key]) == list(PARTS) == ['sra', 'backbone', 'detector']
            assert min(result[key].values()) > 0
    assert results[0]['live'] == [tokens] * 8
    assert results[1]['unhalted_ms'] == results[0]['unhalted_ms']
    assert results[1]['ms'] != results[0]['ms']
    assert [found['tokens'] for found in results[0]['attention']] == [tokens, round(0.1 * tokens)]
    assert all(0 < found['difference'] < 1e-4 for found in results[0]['attention'])


def test_the_table_has_a_line_for_each_baseline_and_sparsity(results: list[dict[str, Any]]) -> None:
    text = markdown(results)
    for start in ('unhalted, ours', 'unhalted, official', '0.00', '0.89'):
        assert text.count(f'| 12 | {start} |') == 1
    sparsities, attention = text.split('\n\n')
    for table in (sparsities, attention):
        assert len({line.count('|') for line in table.splitlines()}) == 1
    took, baseline = results[1]['ms']['sra'], results[1]['official_style_ms']['sra']
    assert f' {took:.0f} | {results[1]["unhalted_ms"]["sra"] / took:.2f} | {baseline / took:.2f} |' in text


def test_tokens_near_objects_live_longest(layout: TokenLayout, detectors: Detectors) -> None:
    scores = priority(layout, 'objects')
    set_sparsity(detectors.halting.backbone, 0.75)
    with torch.no_grad():
        record = detectors.halting.backbone.forward_with_record(detectors.tokens, path='sparse')[1]
    found = scores[record.coords[:, 2], record.coords[:, 3]]
    live = record.live()
    assert torch.equal(detectors.tokens.coords, layout.coords)
    for layer in (0, 2):
        assert found[live[layer]].min() >= found[~live[layer]].max()


def test_blocks_alone_compute_what_the_halting_backbone_computes(detectors: Detectors) -> None:
    backbone, tokens = detectors.halting.backbone, detectors.tokens
    set_sparsity(backbone, 0.75)
    backbone.to_bev = False
    with torch.no_grad():
        (expected,), record = backbone.forward_with_record(tokens, path='sparse')
        found = run_blocks(backbone, tokens, record)
    backbone.to_bev = True
    torch.testing.assert_close(found, expected[record.live()[-1]], rtol=0, atol=1e-5)


def test_all_three_detectors_have_the_same_weights(detectors: Detectors) -> None:
    with torch.no_grad():
        fast, official = detectors.fast.backbone(detectors.tokens)[0], detectors.official.backbone(detectors.tokens)[0]
    assert (fast - official).abs().max() < 1e-5 * fast.abs().max()
    halting = detectors.halting.state_dict()
    for key, value in detectors.fast.state_dict().items():
        assert torch.equal(halting[key], value)


def test_about_as_many_cells_pass_the_threshold_as_in_a_trained_head(detectors: Detectors) -> None:
    with torch.no_grad():
        (maps,) = detectors.fast.bbox_head(detectors.fast.extract_feat(inputs_of(detectors)))[0]
    passing = int((maps['heatmap'].sigmoid() >= detectors.fast.bbox_head.bbox_coder.score_threshold).sum())
    assert passing == pytest.approx(CANDIDATES, abs=5)


def test_halted_detectors_have_as_many_candidates(detectors: Detectors) -> None:
    halting = detectors.halting
    with torch.no_grad():
        own = [bias.clone() for bias in heatmap_biases(halting)]
        for sparsity in (0.0, 0.89):
            set_sparsity(halting.backbone, sparsity)
            calibrate(halting, inputs_of(detectors))
            (maps,) = halting.bbox_head(halting.extract_feat(inputs_of(detectors)))[0]
            passing = int((maps['heatmap'].sigmoid() >= halting.bbox_head.bbox_coder.score_threshold).sum())
            assert passing == pytest.approx(CANDIDATES, abs=5)
        set_heatmap_biases(halting, own)


def inputs_of(detectors: Detectors) -> dict[str, Any]:
    return detectors.fast.data_preprocessor(detectors.sample)['inputs']


def test_a_difference_between_the_schemes_is_an_error(detectors: Detectors) -> None:
    norm = detectors.official.backbone.blocks.block_list[3].encoder_list[1].norm2
    norm.bias.data[0] += 1
    with torch.no_grad(), pytest.raises(RuntimeError, match='published scheme differ'):
        compare_attention(detectors, torch.zeros(SIDE, SIDE), 1)
    norm.bias.data[0] -= 1


@pytest.mark.parametrize('row', ROWS)
def test_models_of_all_rows_are_fitted_to_grid_and_window(row: str) -> None:
    for name in (ROWS[row].dense, ROWS[row].halting):
        model = Config.fromfile(CONFIGS / name).model
        before = model.backbone.output_shape
        small = fitted(model, Grid((0, 0, -1, 6.4, 3.2, 1), 0.32), window=6)
        assert model.backbone.output_shape == before
        assert small.backbone.output_shape == [10, 20]
        assert small.middle_encoder.sparse_shape == [20, 10, 1]
        assert small.middle_encoder.window_shape == [6, 6, 1]
        assert fitted(model, Grid((0, 0, -1, 6.4, 3.2, 1), 0.32), None).middle_encoder == model.middle_encoder | {
            'sparse_shape': [20, 10, 1]
        }


def test_command_line(
    results: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []

    def measured(row: str, repeats: int, **options: object) -> list[dict[str, Any]]:
        asked.append((row, repeats, options))
        return results

    monkeypatch.setattr(backbone_benchmark, 'measure', measured)
    monkeypatch.setattr(torch, 'set_num_threads', lambda count: asked.append(count))
    out = tmp_path / 'out.json'
    commands().main(['benchmark', '--window', '14', '--repeats', '3', '--json', str(out)])
    options = {'tokens': 20000, 'window': 14, 'points': None, 'dims': 5, 'device': 'cpu'}
    assert asked == [2, ('objects', 3, options), ('scattered', 3, options)]
    written = json.loads(out.read_text())
    assert set(written) == {'rows', 'env'}
    assert written['rows'] == 2 * results
    assert markdown(2 * results) in capsys.readouterr().out


def test_a_real_frame_needs_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backbone_benchmark.rows_with(Path('frame.bin')) == ['objects', 'scattered', 'frame']
    monkeypatch.setattr(torch, 'set_num_threads', lambda count: None)
    with pytest.raises(SystemExit, match='no row frame; valid are objects, scattered'):
        commands().main(['benchmark', '--layout', 'frame'])


def test_errors_say_what_is_valid(detectors: Detectors, layout: TokenLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='no row waymo; valid are objects, scattered, frame'):
        measure('waymo')
    with pytest.raises(ValueError, match='needs a file of points'):
        measure('frame')
    monkeypatch.setattr(detectors.halting.backbone.halting[1], 'block', 2)
    with pytest.raises(ValueError, match=r'before the blocks 0 and 1, got \[0, 2\]'):
        steer(detectors.halting.backbone, layout, 'objects')


def test_configs_that_differ_in_more_than_halting_are_refused(
    layout: TokenLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, names.pop(0), torch.nn.Linear(1, 1))
            self.data_preprocessor = lambda sample: {'inputs': None}
            self.tokens = lambda inputs: None

    names = ['neck', 'nick', 'neck']
    monkeypatch.setattr(backbone_models, 'build', lambda config: Model())
    monkeypatch.setattr(backbone_models, 'calibrate', lambda *_: None)
    with pytest.raises(RuntimeError, match=r'differ in more than halting: nick.weight, nick.bias, neck.weight'):
        make_detectors(ROWS['objects'], layout, None)

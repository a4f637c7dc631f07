from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.gpq import benchmark
from experiments.gpq.__main__ import commands
from experiments.gpq.breakdown import PARTS
from experiments.gpq.lean import LeanDecoder
from experiments.gpq.models import Pair, Row, make_pair
from mmprune3d import adapters
from mmprune3d.export.graph import shapes_of
from mmprune3d.layers.attention import Keys
from mmprune3d.measure.flops import count_flops
from mmprune3d.models.petr.decoder import PETR3DDecoder
from mmprune3d.pruning.tggbc import TgGBCPlan

DECODER = Row((3, 5), cameras=2, width=32, heads=4, layers=2, feedforward=48, classes=7, depths=8)
ROWS = {
    'decoder': DECODER,
    'memory': replace(DECODER, memory=9),
    'head': replace(DECODER, whole_head=True),
}
QUERIES = (12, 1)


def trained(row: Row, queries: int) -> Pair:
    """With biases that are not zero: a fresh ``nn.MultiheadAttention`` has none that a mistake would show in."""
    pair = make_pair(row, queries)
    modules = (pair.plain.head if row.whole_head else pair.plain).modules()
    for module in modules:
        if isinstance(module, torch.nn.MultiheadAttention):
            torch.nn.init.normal_(module.in_proj_bias)
            torch.nn.init.normal_(module.out_proj.bias)
    return pair


@pytest.fixture
def small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, 'ROWS', ROWS)


@torch.no_grad()
@pytest.mark.parametrize('memory', [0, 9])
def test_lean_decoder_computes_what_the_plain_one_does(memory: int) -> None:
    pair = trained(replace(DECODER, memory=memory), 12)
    expected = pair.plain(**pair.inputs)
    pair.plain.decoder = LeanDecoder(pair.plain.decoder)
    for name, output in pair.plain(**pair.inputs).items():
        torch.testing.assert_close(output, expected[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_plain_decoder_without_memory_is_the_package_s_own() -> None:
    pair = trained(DECODER, 12)
    query_pos, content, pos = pair.inputs.values()
    keys = Keys(content + pos, content)
    own = pair.plain.decoder(torch.zeros_like(query_pos), keys, query_pos, None, all_layers=False).queries[-1]
    torch.testing.assert_close(pair.plain(**pair.inputs)['cls_logits'], pair.plain.cls_branch(own))


@torch.no_grad()
def test_lean_decoder_in_a_head() -> None:
    pair = trained(ROWS['head'], 12)
    expected = pair.plain(**pair.inputs)
    pair.plain.head.transformer.decoder = LeanDecoder(pair.plain.head.transformer.decoder)
    outputs = pair.plain.head.forward_tensors(*pair.inputs.values(), None, pair.plain.canvas, all_layers=False)
    torch.testing.assert_close(outputs['all_cls_scores'][-1], expected['cls_logits'], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs['all_bbox_preds'][-1], expected['box_codes'], atol=1e-4, rtol=1e-5)


def test_lean_decoder_refuses_what_it_would_ignore() -> None:
    decoder = PETR3DDecoder(2, 32, 4, 48)
    lean = LeanDecoder(decoder)
    tokens, padding = torch.zeros(1, 3, 32), torch.zeros(1, 3, dtype=torch.bool)
    for keys, options in (
        (Keys(tokens, tokens, padding), {}),
        (Keys(tokens, tokens), {'all_layers': True}),
        (Keys(tokens, tokens), {'num_denoising': 1}),
        (Keys(tokens, tokens), {'self_attn_mask': torch.zeros(3, 3, dtype=torch.bool)}),
    ):
        with pytest.raises(ValueError, match='no masks, no denoising queries'):
            lean(None, keys, tokens, **options)
    adapters.attach(decoder, TgGBCPlan(r=1, n=1, k=1))
    with pytest.raises(ValueError, match='detach the plan first'):
        LeanDecoder(decoder)


@pytest.mark.parametrize('name', ROWS)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    for queries in QUERIES:
        pair, flops = make_pair(ROWS[name], queries), benchmark.flops_of(ROWS[name], queries)
        for way in ('plain', 'lean'):
            counted = count_flops(partial(getattr(pair, way), **pair.inputs), {})
            assert flops[way]['total'] == pytest.approx(counted['total'], rel=1e-12)
            assert sum(flops[way].values()) == pytest.approx(2 * flops[way]['total'])


def test_operations_by_part() -> None:
    pair, flops = make_pair(ROWS['memory'], 12), benchmark.flops_of(ROWS['memory'], 12)['plain']
    layers = pair.plain.decoder.layers
    stages = {f'{index}{j}': layer.attentions[j] for index, layer in enumerate(layers) for j in (0, 1)}
    stages |= {f'{index}ffn': layer.ffns[0] for index, layer in enumerate(layers)}
    counted = count_flops(lambda: pair.plain(**pair.inputs), stages)
    assert flops['self'] == pytest.approx(sum(counted[f'{index}0'] for index in range(2)))
    assert flops['cross'] + flops['keys'] == pytest.approx(sum(counted[f'{index}1'] for index in range(2)))
    assert flops['ffn'] == pytest.approx(sum(counted[f'{index}ffn'] for index in range(2)))
    assert flops['heads'] == pytest.approx(counted['rest'])


def test_rows_are_those_of_the_paper() -> None:
    assert {name: (row.keys, row.memory) for name, row in benchmark.ROWS.items()} == {
        'petr_800x320': (6000, 0),
        'focalpetr_704x256': (4224, 0),
        'streampetr_704x256': (4224, 768),
        'petr_800x320_head': (6000, 0),
    }


def test_nodes_are_named_by_part_and_fixed_cameras_leave_no_position_to_compute() -> None:
    row = ROWS['head']
    pair = trained(row, 12)
    models = benchmark.exports(pair, row, 12)
    for way in ('plain', 'lean'):
        shapes = shapes_of(models[way])
        products = [node for node in models[way].graph.node if node.op_type in ('MatMul', 'Gemm', 'Conv')]
        made = {
            part: [shapes[node.output[0]] for node in products if node.name.split('/')[0] == part] for part in PARTS
        }
        assert made['self'] and all(row.keys not in shape for shape in made['self'])
        assert made['cross'].count((1, 4, 12, 30)) == 2
        assert len(made['keys']) == 5 and len(made['ffn']) == 4 and len(made['heads']) == 6
        assert all(row.keys in shape or shape[-2:] == row.cells for shape in made['keys'])
    assert [info.name for info in models['rig'].graph.input] == ['img_feats']
    spent = {}
    for way, model in models.items():
        spent[way] = benchmark.parts_of(model, benchmark.feeds_of(model, pair.inputs), row.keys, 1)
    assert all(set(parts) == set(PARTS) for parts in spent.values())
    assert spent['rig']['positions'] == 0 < spent['lean']['positions']


def test_differences_beyond_the_tolerance_are_an_error() -> None:
    expected = {'cls_logits': torch.zeros(2), 'box_codes': torch.zeros(2)}
    assert benchmark.differences([np.zeros(2), np.full(2, 5e-4)], expected)['box_codes'] == 5e-4
    for wrong in (2e-4, np.nan):
        with pytest.raises(RuntimeError, match='differ'):
            benchmark.differences([np.full(2, wrong), np.zeros(2)], expected)


@pytest.mark.usefixtures('small_rows')
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'out.json'
    arguments = ['benchmark', '--rows', 'memory', '--repeats', '1', '--json', str(out)]
    commands().main([*arguments, '--queries', '1', '12'])
    data = json.loads(out.read_text())
    (row,) = data['rows']
    assert row['row'] == 'memory' and row['queries'] == [12, 1] and row['shape']['keys'] == 30
    assert list(row['ms']) == ['torch', 'plain', 'lean']
    for part in ('difference', 'gflops', 'part_ms'):
        assert list(row[part]) == ['plain', 'lean']
        assert all(list(by_count) == ['12', '1'] for by_count in row[part].values())
    assert all(value > 0 for by_count in row['ms'].values() for value in by_count.values())
    assert {'torch', 'onnxruntime', 'threads', 'device'} <= set(data['env'])
    printed = capsys.readouterr().out
    assert benchmark.markdown(data['rows']) in printed
    assert '| row | N_k | | 12 | 1 | less with 1 |' in printed
    assert '| memory | 12 | GFLOPs, plain export |' in printed and '| memory | 1 | ms, lean export |' in printed


@pytest.mark.usefixtures('small_rows')
def test_unknown_row() -> None:
    with pytest.raises(SystemExit, match='no row petr; valid are decoder, memory, head'):
        commands().main(['benchmark', '--rows', 'petr'])
    with pytest.raises(ValueError, match='no row petr; valid are decoder, memory, head'):
        benchmark.measure('petr')

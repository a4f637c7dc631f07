from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from onnx import numpy_helper
from torch import nn

from mmprune3d import adapters
from mmprune3d.cli import main
from mmprune3d.export.graph import shapes_of, topk_sizes
from mmprune3d.export.onnx import (
    OPSET,
    HeadShapes,
    PortableHead,
    compare,
    export_head,
    find_head,
    images_of,
    run_export,
)
from mmprune3d.ops.attention import fused_attention
from mmprune3d.pruning.selection import top_indices
from mmprune3d.pruning.tggbc import TgGBCPlan
from tests.test_models.test_petr.small import CAMERAS, HEIGHT, WIDTH, build, detector_config, head_config

ROOT = Path(__file__).parents[2]
CELLS = (2, 4)
KEYS = CAMERAS * CELLS[0] * CELLS[1]
QUERIES = 12
OPERATORS = {
    'Add',
    'And',
    'Cast',
    'Clip',
    'Concat',
    'Conv',
    'Div',
    'Equal',
    'Expand',
    'Gather',
    'GatherElements',
    'GatherND',
    'Greater',
    'IsInf',
    'IsNaN',
    'LayerNormalization',
    'Less',
    'Log',
    'MatMul',
    'Mul',
    'Neg',
    'Not',
    'Or',
    'ReduceMax',
    'ReduceMean',
    'ReduceSum',
    'Relu',
    'Reshape',
    'ScatterElements',
    'Sigmoid',
    'Slice',
    'Softmax',
    'Sqrt',
    'Squeeze',
    'Sub',
    'TopK',
    'Transpose',
    'Unsqueeze',
    'Where',
}
"""What the graphs may consist of."""


class Exported(NamedTuple):
    portable: PortableHead
    shapes: HeadShapes
    model: onnx.ModelProto

    def run(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(self.model.SerializeToString(), providers=['CPUExecutionProvider'])
        names = [info.name for info in session.get_outputs()]
        feeds = dict(zip(('img_feats', 'img2lidar'), (tensor.numpy() for tensor in inputs)))
        return dict(zip(names, session.run(None, feeds)))


def small_head(plan: TgGBCPlan | None) -> nn.Module:
    head = build(head_config())
    if plan is not None:
        adapters.attach(head, plan)
    return head


def shapes_for(batch: int, image_size: tuple[int, int] = (HEIGHT, WIDTH)) -> HeadShapes:
    return HeadShapes(batch, CAMERAS, 24, CELLS, image_size, (HEIGHT, WIDTH))


def exported(plan: TgGBCPlan | None, shapes: HeadShapes, largest_topk: int | None) -> Exported:
    portable = PortableHead(small_head(plan), shapes).eval()
    return Exported(portable, shapes, export_head(portable, shapes, largest_topk))


CASES: dict[str, Callable[[], Exported]] = {
    'unpruned': lambda: exported(None, shapes_for(1), None),
    'pruned': lambda: exported(TgGBCPlan(r=11, n=2, k=5), shapes_for(2), 6),  # 24, then 20, then 13 keys
    'padded': lambda: exported(TgGBCPlan(r=18, n=1, k=0, q=4), shapes_for(1, (16, 48)), None),  # 9 of 24 keys are valid
}


@pytest.fixture(scope='module')
def made() -> dict[str, Exported]:
    return {}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, made: dict[str, Exported]) -> Exported:
    if request.param not in made:
        made[request.param] = CASES[request.param]()
    return made[request.param]


@pytest.fixture
def pruned(made: dict[str, Exported]) -> Exported:
    return made.setdefault('pruned', made.get('pruned') or CASES['pruned']())


@torch.no_grad()
def test_onnx_runtime_computes_what_eager_does_and_keeps_the_same_keys(case: Exported) -> None:
    inputs, head = case.shapes.example(seed=5), case.portable.head
    found, expected = case.run(inputs), {}

    def call() -> None:
        expected.update(head.forward_tensors(*inputs, case.shapes.mask, (HEIGHT, WIDTH), all_layers=False))

    kept = adapters.kept_keys(head, call)
    logits, codes = expected['all_cls_scores'][-1].numpy(), expected['all_bbox_preds'][-1].numpy()
    if case.portable.plan is not None and case.portable.plan.q:  # the queries that are left come in any order
        (order,), (right,) = found['cls_logits'][..., 0].argsort(), logits[..., 0].argsort()
        logits, codes = logits[:, right], codes[:, right]
        found = {name: array[:, order] if len(order) == array.shape[1] else array for name, array in found.items()}
    np.testing.assert_allclose(found['cls_logits'], logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found['box_codes'], codes, rtol=0, atol=1e-4)
    assert compare(case.model, case.portable, case.shapes)['box_codes'] < 1e-4
    for layer, ids in enumerate(kept):
        if layer and ids.shape != kept[layer - 1].shape:
            np.testing.assert_array_equal(np.sort(found[f'kept_keys_{layer}']), ids.sort().values)
        else:
            assert f'kept_keys_{layer}' not in found


def test_graph_is_static_and_made_of_known_operators(case: Exported) -> None:
    onnx.checker.check_model(case.model, full_check=True)
    assert {node.op_type for node in case.model.graph.node} <= OPERATORS
    assert [(entry.domain, entry.version) for entry in case.model.opset_import] == [('', 18)]
    assert not any(None in shape for shape in shapes_of(case.model).values())


def test_shapes_names_and_metadata(pruned: Exported) -> None:
    shapes, graph = shapes_of(pruned.model), pruned.model.graph
    assert {info.name: shapes[info.name] for info in graph.input} == {
        'img_feats': (2, CAMERAS, 24, *CELLS),
        'img2lidar': (2, CAMERAS, 4, 4),
    }
    assert {info.name: shapes[info.name] for info in graph.output} == {
        'cls_logits': (2, QUERIES, 4),
        'box_codes': (2, QUERIES, 10),
        'kept_keys_1': (2, KEYS - 4),
        'kept_keys_2': (2, KEYS - 11),
    }
    stored = {entry.key: json.loads(entry.value) for entry in pruned.model.metadata_props if 'version' not in entry.key}
    assert TgGBCPlan.from_dict(stored['mmprune3d.plan']) == TgGBCPlan(r=11, n=2, k=5)
    assert stored['mmprune3d.image_size'] == stored['mmprune3d.canvas'] == [HEIGHT, WIDTH]
    assert str(ROOT).encode() not in pruned.model.SerializeToString()


class Choice(nn.Module):
    """What is chosen of some scores, as a model that can be exported."""

    def __init__(self, choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.choose = choose

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.choose(*tensors)


def in_runtime(module: nn.Module, *tensors: torch.Tensor) -> tuple[onnx.ModelProto, torch.Tensor]:
    program = torch.onnx.export(module.eval(), tensors, dynamo=True, opset_version=OPSET, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=['CPUExecutionProvider'])
    feeds = {info.name: tensor.numpy() for info, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return program.model_proto, torch.from_numpy(session.run(None, feeds)[0])


@pytest.mark.parametrize('k', [3, 50, 100])
def test_the_runtime_takes_the_first_of_equal_scores_too(k: int) -> None:
    scores = torch.randint(4, (3, 100), generator=torch.Generator().manual_seed(k)).float()
    model, found = in_runtime(Choice(lambda values: top_indices(values, k)), scores)
    assert torch.equal(found, top_indices(scores, k))
    assert [node.op_type for node in model.graph.node].count('TopK') == 1


@pytest.mark.parametrize('shape', [(2, 1, 1, 9), (2, 1, 5, 9), (5, 9)], ids=str)
def test_the_runtime_gives_zero_to_a_query_without_keys(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[..., 0], mask[-1] = True, False
    query, key, value = (torch.randn(2, 3, num, 4, generator=torch.Generator().manual_seed(num)) for num in (5, 9, 9))
    inputs = query, key, value, mask
    expected = fused_attention(*inputs)[0]
    found = in_runtime(Choice(lambda *args: fused_attention(*args)[0]), *inputs)[1]
    torch.testing.assert_close(found, expected)
    assert (found[-1] == 0).any() and (found[0] != 0).any()


@pytest.mark.parametrize('plan', [None, TgGBCPlan(r=11, n=2, k=5)], ids=str)
def test_a_sample_whose_every_key_is_masked(plan: TgGBCPlan | None) -> None:
    shapes = shapes_for(2)
    portable = PortableHead(small_head(plan), shapes).eval()
    portable.mask = torch.zeros(2, CAMERAS, *CELLS, dtype=torch.bool)
    portable.mask[1] = True
    made = Exported(portable, shapes, export_head(portable, shapes))
    inputs = shapes.example(seed=5)
    with torch.no_grad():
        expected = portable(*inputs)
    found = made.run(inputs)
    for name, tensor in expected.items():
        assert tensor.isfinite().all()
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=0, atol=1e-4)  # ids of keys in the same order
    compare(made.model, portable, shapes)
    if plan is not None:
        assert found['kept_keys_1'][1].tolist() == list(range(KEYS - 4))


def test_keys_of_equal_worth_are_kept_alike_and_in_order() -> None:
    head, shapes = small_head(TgGBCPlan(r=11, n=2, k=5)), shapes_for(1)
    for layer in head.transformer.decoder.layers:
        nn.init.zeros_(layer.attentions[1].attn.in_proj_weight[32:64])  # projects all keys to the same
        nn.init.zeros_(layer.attentions[1].attn.in_proj_bias)
    portable = PortableHead(head, shapes).eval()
    made, inputs = Exported(portable, shapes, export_head(portable, shapes, 6)), shapes.example(seed=5)
    with torch.no_grad():
        expected = portable(*inputs)
    for name, kept in (('kept_keys_1', KEYS - 4), ('kept_keys_2', KEYS - 11)):
        assert expected[name].tolist() == made.run(inputs)[name].tolist() == [list(range(kept))]


def test_queries_that_are_gone_are_not_in_the_file() -> None:
    """As in a checkpoint in the middle of a training with GPQHook; a compact one is an ordinary detector."""
    head, shapes = small_head(None), shapes_for(1)
    head.reference_points.remove(torch.tensor([4, 0, 11]))
    portable = PortableHead(head, shapes)
    model = export_head(portable, shapes)
    assert dict(shapes_of(model))['cls_logits'][1] == QUERIES - 3
    compare(model, portable, shapes)


def test_no_topk_is_larger_than_asked_for(pruned: Exported) -> None:
    assert sorted(topk_sizes(pruned.model).values()) == [4, 4, 5, 5, 5, 5, 5, 5, 5]


def test_comparison_fails_where_something_differs(pruned: Exported) -> None:
    assert compare(pruned.model, pruned.portable, pruned.shapes)['kept_keys_2'] == 0
    others = PortableHead(small_head(TgGBCPlan(r=11, n=2, k=1)), pruned.shapes)
    with pytest.raises(RuntimeError, match='kept_keys_2 '):
        compare(pruned.model, others, pruned.shapes)
    wrong = onnx.ModelProto.FromString(pruned.model.SerializeToString())
    bias = pruned.portable.head.cls_branches[0][-1].bias.detach().numpy()
    (tensor,) = [entry for entry in wrong.graph.initializer if np.array_equal(numpy_helper.to_array(entry), bias)]
    tensor.CopyFrom(numpy_helper.from_array(bias + np.float32(1e-3), tensor.name))
    with pytest.raises(RuntimeError, match=r'differ: cls_logits 0.001\d* \(allowed'):
        compare(wrong, pruned.portable, pruned.shapes)


def test_numbers_that_depend_on_padding_are_refused() -> None:
    for plan in (TgGBCPlan(r=0.5), TgGBCPlan(r=5, t=10)):
        with pytest.raises(ValueError, match='give r as a count, and no t'):
            PortableHead(small_head(plan), shapes_for(1, (16, 48)))
        PortableHead(small_head(plan), shapes_for(1))


def test_example_cameras_look_around_the_car() -> None:
    _, img2lidar = HeadShapes(2, 7, 24, CELLS, (320, 800), (320, 800)).example()
    assert img2lidar.shape == (2, 7, 4, 4)
    ray = img2lidar[0, :, :3] @ torch.tensor([400.0 * 10, 160.0 * 10, 10.0, 1.0])  # 10 m ahead of the middle pixel
    assert ray[0, 0] > 10 and ray[3, 0] < -9 and ray[1, 1] < -7 and ray[5, 1] > 7
    torch.testing.assert_close(ray[6], ray[0])


def test_model_without_our_head() -> None:
    with pytest.raises(ValueError, match=r'Linear has no head that can be exported.*PETR3DHead'):
        find_head(nn.Linear(1, 1))


def test_image_size_of_the_test_pipeline() -> None:
    assert images_of(Config.fromfile(ROOT / 'configs' / 'petr' / 'petr_tiny.py')) == ((128, 352), 6)
    assert images_of(Config({})) == (None, None)


class TestCommandLine:
    @pytest.fixture(scope='class')
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp('export')
        pipeline = [
            {'type': 'LoadMultiViewImageFromFiles', 'num_views': CAMERAS},
            {'type': 'MultiViewImageAug', 'image_size': (HEIGHT, WIDTH)},
        ]
        config = {
            'custom_imports': {'imports': ['mmprune3d']},
            'model': detector_config(),
            'test_dataloader': {'dataset': {'pipeline': pipeline}},
            'custom_hooks': [{'type': 'TgGBCHook', 'r': 7, 'n': 1, 'k': 6}],
        }
        Config(config).dump(folder / 'config.py')
        torch.save({'state_dict': build(config['model']).state_dict()}, folder / 'petr.pth')
        return folder

    def test_exports_what_the_config_says(self, folder: Path) -> None:
        out = folder / 'made' / 'head.onnx'
        arguments = [str(folder / 'config.py'), str(folder / 'petr.pth'), '--out', str(out)]
        assert main(['export', 'onnx', *arguments]) == 0
        session = onnxruntime.InferenceSession(out, providers=['CPUExecutionProvider'])
        assert {info.name: info.shape for info in session.get_inputs()} == {
            'img_feats': [1, CAMERAS, 24, *CELLS],
            'img2lidar': [1, CAMERAS, 4, 4],
        }
        assert [info.name for info in session.get_outputs()] == ['cls_logits', 'box_codes', 'kept_keys_1']
        plan = session.get_modelmeta().custom_metadata_map['mmprune3d.plan']
        assert TgGBCPlan.from_dict(json.loads(plan)) == TgGBCPlan(r=7, n=1, k=6)

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['tggbc', 'r=7', 'n=3'], 'n=3 pruning layers in a decoder of 3: valid are 1 to 2'),
            (['tggbc', f'r={KEYS}'], f'of {KEYS} keys leaves none'),
            (['tggbc', 'keys=3'], 'unknown setting keys'),
            (['tome', 'r=7'], "'tome' is not a method for this command; valid are tggbc"),
            (
                ['--cfg-options', 'test_dataloader.dataset.pipeline=[]'],
                'give --image-size HEIGHT WIDTH and --cameras N',
            ),
        ],
    )
    def test_errors(self, folder: Path, arguments: list[str], message: str) -> None:
        common = [str(folder / 'config.py'), str(folder / 'petr.pth'), '--out', str(folder / 'no')]
        with pytest.raises(SystemExit, match=f'error: .*{message}'):
            main(['export', 'onnx', *common, *arguments])
        assert not (folder / 'no').exists()

    def test_sizes_must_be_positive(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        files = [str(folder / 'config.py'), str(folder / 'petr.pth')]
        with pytest.raises(SystemExit, match='2'):
            main(['export', 'onnx', *files, '--image-size', '0', '64'])
        assert "--image-size: '0' must be a whole number, 1 or more" in capsys.readouterr().err
        with pytest.raises(ValueError, match='all must be positive'):
            run_export(*map(Path, files), folder / 'no', image_size=(0, 64))
        assert not (folder / 'no').exists()

    def test_missing_files(self, folder: Path) -> None:
        for config, checkpoint in (('config.py', 'none.pth'), ('none.py', 'petr.pth')):
            with pytest.raises(FileNotFoundError, match=r'none\.\w+ does not exist'):
                run_export(folder / config, folder / checkpoint, folder / 'no')

"""Where learned queries are found, and that detectors compute with fewer of them."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn

from mmprune3d.adapters.learned_queries import find_queries, make_prunable, num_queries, restore
from mmprune3d.adapters.query_scores import QueryScorer
from mmprune3d.layers.gpq import PrunableEmbedding
from mmprune3d.pruning.gpq import GPQPlan
from tests.test_models.test_petr.small import batch, build, detector_config

from . import small_detr

GONE = torch.tensor([7, 2, 3])
DETRS = {'DETR': small_detr.build(False), 'ConditionalDETR': small_detr.build(True)}


@pytest.fixture(params=list(DETRS))
def detr(request: pytest.FixtureRequest) -> nn.Module:
    return copy.deepcopy(DETRS[request.param])


class DETR3DHead(nn.Module):
    """The parts of a DETR3D head that matter: rows of position and content, branches, outputs by name."""

    def __init__(self, width: int = 8, queries: int = 12, classes: int = 4) -> None:
        super().__init__()
        self.num_classes = classes
        self.query_embedding = nn.Embedding(queries, 2 * width)
        self.cls_branches = nn.ModuleList(nn.Linear(width, classes) for _ in range(2))
        self.loss_cls = nn.Module()
        self.loss_cls.use_sigmoid = True
        self.bbox_coder = nn.Module()
        self.bbox_coder.max_num = 40

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        pos, content = self.query_embedding.weight.chunk(2, dim=1)
        query = torch.tanh(pos + content) + features[:, None]
        return {'all_cls_scores': torch.stack([branch(query) for branch in self.cls_branches])}


class DETR3D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pts_bbox_head = DETR3DHead()


def test_detr_with_fewer_queries_is_the_unmodified_detector_with_these_queries(detr):
    data, reference = small_detr.batch(2), copy.deepcopy(detr)
    rows = [i for i in range(small_detr.QUERIES) if i not in GONE]
    reference.query_embedding = nn.Embedding.from_pretrained(reference.query_embedding.weight[rows])
    expected = small_detr.outputs(reference, data)

    before = small_detr.outputs(detr, data)
    queries = make_prunable(detr)
    assert queries.key == 'query_embedding' and queries.head is detr.bbox_head
    assert all(map(torch.equal, small_detr.outputs(detr, data), before))  # nothing removed: bit for bit the same
    queries.embedding.remove(GONE)
    found = small_detr.outputs(detr, data)
    assert found[0].shape[2] == small_detr.QUERIES - len(GONE)
    assert all(map(torch.equal, found, expected))


def test_our_petr(tmp_path):
    model = build(detector_config())
    queries = make_prunable(model)
    assert queries.key == 'pts_bbox_head.reference_points' and queries.activation == 'sigmoid'
    assert queries.config_changes(5) == {'pts_bbox_head.num_query': 5}
    # 20 results are asked for, four queries of four classes have 16
    assert queries.config_changes(4) == {'pts_bbox_head.num_query': 4, 'pts_bbox_head.bbox_coder.max_num': 16}


def test_detr3d_style():
    torch.manual_seed(0)
    model = DETR3D()
    features = torch.randn(2, 8)
    before = model.pts_bbox_head(features)['all_cls_scores']
    queries = make_prunable(model)
    queries.embedding.remove(GONE)
    kept = queries.embedding.kept
    assert torch.equal(model.pts_bbox_head(features)['all_cls_scores'], before[:, :, kept])
    queries.announce()
    assert model.pts_bbox_head.bbox_coder.max_num == 36
    assert queries.config_changes(9) == {
        'pts_bbox_head.num_query': 9,
        'pts_bbox_head.bbox_coder.max_num': 36,
    }


def test_results_are_limited_by_queries_with_a_softmax_and_by_pairs_with_a_sigmoid(detr):
    detr.bbox_head.test_cfg = ConfigDict(max_per_img=12)
    queries = make_prunable(detr)
    queries.embedding.remove(torch.arange(10))  # two are left
    queries.announce()
    softmax = type(detr).__name__ == 'DETR'
    assert detr.bbox_head.test_cfg.max_per_img == (2 if softmax else 10)
    assert queries.config_changes(2) == {'num_queries': 2, 'test_cfg.max_per_img': 2 if softmax else 10}
    data = small_detr.batch(2)
    found = detr.predict(data.inputs, [with_scale(sample) for sample in data.data_samples])
    assert len(found) == 2
    assert detr.num_queries == 2
    queries.announce(12)
    assert detr.bbox_head.test_cfg.max_per_img == 12 and detr.num_queries == 12


def with_scale(sample):
    sample.set_metainfo(dict(scale_factor=(1.0, 1.0), ori_shape=sample.img_shape))
    return sample


def test_a_pruned_state_dict_loads_into_the_detector_of_the_original_config(detr):
    """What init_model does: no hook, no preparation but the import."""
    fresh, data = copy.deepcopy(detr), small_detr.batch(1)
    make_prunable(detr).embedding.remove(GONE)
    expected = small_detr.outputs(detr, data)
    load_state_dict(fresh, detr.state_dict(), strict=True)
    assert isinstance(fresh.query_embedding, PrunableEmbedding)
    assert all(map(torch.equal, small_detr.outputs(fresh, data), expected))


def test_other_state_dicts_prepare_nothing(detr):
    restore(detr, detr.state_dict())
    assert type(detr.query_embedding) is nn.Embedding


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda model: setattr(model, 'pts_bbox_head', nn.Linear(1, 1)), 'has no learned queries that can be pruned'),
        (lambda model: setattr(model.pts_bbox_head, 'num_propagated', 256), 'propagates queries from frame to frame'),
    ],
)
def test_detectors_that_cannot_be_pruned(change, message):
    model = DETR3D()
    change(model)
    with pytest.raises(ValueError, match=message):
        make_prunable(model)


def everything(model: nn.Module) -> dict[str, object]:
    """Classes, attributes and hooks of all modules, and copies of what is in the state dict."""
    inside = {name: (type(module), list(vars(module)), list(module._buffers)) for name, module in model.named_modules()}
    heads = {name: vars(module).get('num_query') for name, module in model.named_modules()}
    return dict(inside=inside, heads=heads, state={name: value.clone() for name, value in model.state_dict().items()})


def assert_unchanged(before: dict[str, object], model: nn.Module) -> None:
    after = everything(model)
    state, was = after.pop('state'), before['state']
    assert after == {name: value for name, value in before.items() if name != 'state'}
    assert list(state) == list(was) and all(torch.equal(state[name], was[name]) for name in was)


MODELS = {**DETRS, 'PETR': build(detector_config()), 'DETR3D': DETR3D()}
COUNTS = {'DETR': small_detr.QUERIES, 'ConditionalDETR': small_detr.QUERIES, 'PETR': 12, 'DETR3D': 12}


@pytest.mark.parametrize('name', MODELS)
def test_finding_queries_changes_nothing(name):
    model = copy.deepcopy(MODELS[name])
    before, count = everything(model), COUNTS[name]
    queries = find_queries(model)
    assert (queries.num_kept, num_queries(model), len(queries.rows)) == (count, count, count)
    assert torch.equal(queries.kept, torch.arange(count)) and not queries.removal_rank.any()
    assert queries.rows is model.get_submodule(queries.key).weight and queries.head is not None
    queries.config_changes(count - 1)
    own = name == 'PETR'  # whose embedding is prunable from construction
    assert type(queries.embedding) is (PrunableEmbedding if own else nn.Embedding)
    assert_unchanged(before, model)


@pytest.mark.parametrize('name', MODELS)
def test_what_was_found_knows_what_is_removed_later(name):
    model = copy.deepcopy(MODELS[name])
    found, queries = find_queries(model), make_prunable(model)
    assert type(found) is type(queries) and queries.embedding is found.embedding is find_queries(model).embedding
    assert isinstance(found.embedding, PrunableEmbedding)
    queries.embedding.remove(GONE)
    left = [i for i in range(COUNTS[name]) if i not in GONE]
    for seen in (found, queries, find_queries(model)):
        assert seen.kept.tolist() == left and seen.num_kept == num_queries(model) == len(left)
        assert torch.equal(seen.removal_rank, queries.embedding.removal_rank) and len(seen.rows) == COUNTS[name]


def test_queries_that_nobody_knows_have_no_number():
    assert num_queries(nn.Linear(1, 1)) is None
    model = DETR3D()
    model.pts_bbox_head.num_propagated = 256
    assert num_queries(model) is None


def test_an_embedding_of_another_class_is_refused():
    model, kind = DETR3D(), type('Other', (nn.Embedding,), {})
    model.pts_bbox_head.query_embedding = kind(3, 16)
    for ask in (find_queries, make_prunable):
        with pytest.raises(ValueError, match='queries in a Other cannot be pruned, only in'):
            ask(model)


def test_two_stage_detectors_are_refused(detr):
    detr.as_two_stage = True
    with pytest.raises(ValueError, match='takes its queries from the encoder'):
        make_prunable(detr)


def train_step(model: nn.Module, num: int = 2) -> dict[str, Tensor]:
    data = model.data_preprocessor(batch(num), True)
    return model(**data, mode='loss')


def test_denoising_queries_have_no_score_and_only_training_counts():
    model = build(detector_config({'denoising': {'groups': 2}}))
    head, heard = model.pts_bbox_head, []
    scorer = QueryScorer(make_prunable(model), GPQPlan(target=3))
    scorer.start()
    handle = head.register_forward_hook(lambda _, __, outputs: heard.append(outputs['all_cls_scores'][-1]))
    model.train()
    train_step(model)
    assert heard[0].shape[1] == 12 + 2 * 5
    torch.testing.assert_close(scorer.take(), heard[0][:, -12:].detach().double().max(-1).values)
    assert len(scorer.take()) == 0  # taken

    with torch.no_grad():
        train_step(model)
    model.eval()
    model(**model.data_preprocessor(batch(), False), mode='predict')
    assert len(scorer.take()) == 0
    scorer.stop()
    handle.remove()
    model.train()
    train_step(model)
    assert len(scorer.take()) == 0 and not head._forward_hooks


def test_costs_are_those_of_the_last_layer():
    model = build(detector_config()).train()
    assigner, heard = model.pts_bbox_head.set_loss.assigner, []
    original = assigner.costs
    scorer = QueryScorer(make_prunable(model), GPQPlan(target=3, criterion='cost'))
    assigner.costs = lambda *args: heard.append(original(*args)) or heard[-1]
    scorer.start()
    train_step(model)
    assert len(heard) == 3 * 2  # layers and samples
    expected = torch.stack([-cost.double().min(-1).values for cost in heard[-2:]])
    assert torch.equal(scorer.take(), expected)
    scorer.stop()


@pytest.mark.parametrize('name', ['DETR', 'ConditionalDETR'])
def test_scores_and_costs_of_mmdet(name):
    from mmengine.structures import InstanceData

    model = copy.deepcopy(DETRS[name])
    with_assigner(model)
    data = small_detr.batch(2)
    for sample in data.data_samples:
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 5, 20, 30], [10, 10, 40, 44]]), labels=torch.tensor([1, 3])
        )
    model.train()
    for criterion in ('lowest', 'cost'):
        scorer = QueryScorer(make_prunable(model), GPQPlan(target=3, criterion=criterion))
        outputs = []
        handle = model.bbox_head.register_forward_hook(lambda _, __, found, log=outputs: log.append(found))
        scorer.start()
        model.loss(data.inputs, data.data_samples)
        found = scorer.take()
        scorer.stop(), handle.remove()
        logits, boxes = (layers[-1].detach() for layers in outputs[0])
        if criterion == 'cost':
            expected = []
            for i, sample in enumerate(data.data_samples):
                height, width = sample.img_shape
                factor = boxes.new_tensor([width, height, width, height])
                corners = torch.cat((boxes[i, :, :2] - boxes[i, :, 2:] / 2, boxes[i, :, :2] + boxes[i, :, 2:] / 2), -1)
                predicted = InstanceData(scores=logits[i], bboxes=corners * factor)
                meta = sample.metainfo
                costs = [cost(predicted, sample.gt_instances, meta) for cost in model.bbox_head.assigner.match_costs]
                expected.append(-sum(costs).double().min(-1).values)
            torch.testing.assert_close(found, torch.stack(expected))
        elif name == 'DETR':
            torch.testing.assert_close(found, logits.double().softmax(-1)[..., :-1].max(-1).values.logit())
        else:
            torch.testing.assert_close(found, logits.double().max(-1).values)


def with_assigner(model: nn.Module) -> None:
    from mmdet.registry import TASK_UTILS
    from mmengine.registry import DefaultScope

    focal = type(model).__name__ == 'ConditionalDETR'
    cost = dict(type='FocalLossCost' if focal else 'ClassificationCost', weight=1.0)
    costs = [cost, dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'), dict(type='IoUCost', weight=2.0)]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model.bbox_head.assigner = TASK_UTILS.build(dict(type='HungarianAssigner', match_costs=costs))


def test_costs_of_an_unknown_assigner():
    model = DETR3D()
    model.pts_bbox_head.assigner = object()
    with pytest.raises(ValueError, match='valid here are lowest, highest and random'):
        QueryScorer(make_prunable(model), GPQPlan(target=3, criterion='cost'))


class _MaskedHead(DETR3DHead):
    """A head with self-attention under a mask that is made once, as some do for denoising queries."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer('mask', torch.zeros(12, 12, dtype=torch.bool))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        query = self.query_embedding.weight[None, :, :8] + features[:, None]
        query = self.attention(query, query, query, attn_mask=self.mask)[0]
        return {'all_cls_scores': torch.stack([branch(query) for branch in self.cls_branches])}


def test_a_mask_of_removed_queries_is_named():
    model = DETR3D()
    model.pts_bbox_head = _MaskedHead().train()
    queries, features = make_prunable(model), torch.rand(2, 8)
    handles = queries.watch_masks()
    model.pts_bbox_head(features)
    queries.embedding.remove(GONE)
    with pytest.raises(ValueError, match=r'mask of _MaskedHead has the shape \[12, 12\].*GPQ has left 9 of 12'):
        model.pts_bbox_head(features)
    model.pts_bbox_head.mask = torch.zeros(9, 9, dtype=torch.bool)
    assert model.pts_bbox_head(features)['all_cls_scores'].shape[2] == 9
    for handle in handles:
        handle.remove()
    assert not model.pts_bbox_head.attention._forward_pre_hooks

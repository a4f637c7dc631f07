"""``copy.deepcopy(model)`` and ``torch.save(model)``: EMA, ProsPr and people who ship whole models need them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import mmprune3d  # noqa: F401
from mmprune3d import adapters
from mmprune3d.adapters.learned_queries import learned_queries
from mmprune3d.adapters.query_scores import QueryScorer
from mmprune3d.checkpoint.load import load_state_dict
from mmprune3d.checkpoint.slim import slim_checkpoint, structure_of
from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan
from tests.test_adapters import small_detr
from tests.test_coupling.channel_nets import (
    bevfusion_batch,
    bevfusion_config,
    bevfusion_groups,
    build_bevfusion,
    half_of,
)
from tests.test_models.test_petr import small as small_petr
from tests.test_models.test_sst import small_sst

CONFIGS = Path(__file__).parents[2] / 'configs'
TINY = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('*/*_tiny*.py'))
LARGE = sorted({path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('[a-z]*/*.py')} - set(TINY))


class Case(NamedTuple):
    """A small detector.

    Attributes:
        model: Without weights of its own.
        train: Runs a training step, backward included.
        predict: Numbers that depend on all weights.
    """

    model: nn.Module
    train: Callable[[nn.Module], object]
    predict: Callable[[nn.Module], Tensor]


def step(model: nn.Module, losses: Any) -> None:
    model.parse_losses(losses)[0].backward()


def petr(**changes: Any) -> Case:
    def run(model: nn.Module, mode: str) -> Any:
        data = model.data_preprocessor(small_petr.batch(), training=mode == 'loss')
        return model(**data, mode=mode)

    def predict(model: nn.Module) -> Tensor:
        return run(model, 'predict')[0].pred_instances_3d.bboxes_3d.tensor

    model = small_petr.build(small_petr.detector_config(use_grid_mask=True, channels_last=True, **changes))
    return Case(model, lambda model: step(model.train(), run(model, 'loss')), predict)


def petr_aux() -> Case:
    head = dict(denoising=dict(groups=2, noise_scale=1.0, noise_trans=0.5), transformer=dict(with_cp=True))
    aux = dict(type='PETR3DDenseAuxHead', num_classes=4, in_channels=24, feat_channels=16)
    return petr(head=head, aux_head=aux)


def petr_that_prunes() -> Case:
    transformer = dict(type='TgGBCPETR3DTransformer', tggbc=dict(r=8, n=1, k=4))
    return petr(head=dict(transformer=transformer))


def sst(kind: str, **changes: Any) -> Case:
    def run(model: nn.Module, mode: str) -> Any:
        sample = small_sst.cloud(0)
        data = dict(inputs=dict(points=[sample['inputs']['points']]), data_samples=[sample['data_samples']])
        return model(**model.data_preprocessor(data, mode == 'loss'), mode=mode)

    def predict(model: nn.Module) -> Tensor:
        return run(model, 'tensor')[0][0]['heatmap']

    config = small_sst.detector_config(kind, **changes)
    if 'type' in changes:  # A-ViT brings its own losses
        del config['backbone']['halting']
    model = small_sst.stir(small_sst.built(config)).eval()
    return Case(model, lambda model: step(model.train(), run(model, 'loss')), predict)


def bevfusion(slim: bool = False) -> Case:
    inputs, metas = bevfusion_batch()

    def predict(model: nn.Module) -> Tensor:
        feats = model.extract_feat(inputs, metas)
        return (feats[0] if isinstance(feats, (list, tuple)) else feats).flatten()

    def train(model: nn.Module) -> None:
        predict(model.train()).sum().backward()

    model = build_bevfusion()
    if slim:
        found = bevfusion_groups().groups
        made = slim_checkpoint({'state_dict': model.state_dict()}, found, half_of(found))['state_dict']
        config = dict(type='SlimDetector', detector=bevfusion_config(), structure=structure_of(made))
        model = MODELS.build(config).eval()
        load_state_dict(model, made, strict=True)
    return Case(model, train, predict)


def detr(conditional: bool, prunable: bool = False) -> Case:
    data = small_detr.batch(2)

    def predict(model: nn.Module) -> Tensor:
        return small_detr.outputs(model, data)[0]

    def train(model: nn.Module) -> None:
        sum(out.sum() for out in model.train()(*data, mode='tensor')).backward()

    model = small_detr.build(conditional)
    if prunable:
        queries = learned_queries(model)
        queries.embedding.remove(torch.arange(4))
        queries.announce()
    return Case(model, train, predict)


CASES: dict[str, Callable[[], Case]] = {
    'PETR': petr,
    'PETR with everything': petr_aux,
    'PETR that prunes by itself': petr_that_prunes,
    'SST': lambda: sst('SSTDetector'),
    'halting SST': lambda: sst('HaltingSSTDetector'),
    'A-ViT': lambda: sst('HaltingSSTDetector', type='AViTSST', channels=8, beta=-1.0),
    'BEVFusion': bevfusion,
    'slim BEVFusion': lambda: bevfusion(slim=True),
    'DETR': lambda: detr(False),
    'DETR with fewer queries': lambda: detr(False, prunable=True),
    'Conditional DETR': lambda: detr(True),
}
PLANS: dict[str, list[KeyPlan]] = {
    'PETR': [TgGBCPlan(r=8, n=2, k=4), TgGBCPlan(r=8, n=1, k=4, q=3), ToMePlan(r=6, n=2), TgGBCPlan(r=0)],
    'PETR with everything': [TgGBCPlan(r=8, n=2, k=4)],
    'DETR': [TgGBCPlan(r=8, n=2, k=4, activation='softmax')],
    'Conditional DETR': [TgGBCPlan(r=8, n=2, k=4)],
}
BY_HAND = {
    'a deep copy': copy.deepcopy,
    'pickled': lambda model: pickle.loads(pickle.dumps(model)),
}


@torch.no_grad()
def numbers(case: Case, model: nn.Module) -> Tensor:
    torch.manual_seed(0)
    return case.predict(model.eval()).clone()


def check_copy(case: Case, copied: nn.Module) -> None:
    """It computes the same, and goes on doing so when the original's weights are gone."""
    expected = numbers(case, case.model)
    assert torch.equal(numbers(case, copied), expected) and expected.abs().sum() > 0
    weights = [parameter.detach().clone() for parameter in case.model.parameters()]
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.zero_()
    assert torch.equal(numbers(case, copied), expected)
    assert not torch.equal(numbers(case, case.model), expected)
    with torch.no_grad():
        for parameter, value in zip(case.model.parameters(), weights, strict=True):
            parameter.copy_(value)


@pytest.mark.parametrize('way', BY_HAND)
@pytest.mark.parametrize('name', CASES)
def test_a_detector_is_copied(name: str, way: str) -> None:
    case = CASES[name]()
    check_copy(case, BY_HAND[way](case.model))
    torch.save(case.model, io.BytesIO())


@pytest.mark.parametrize('way', BY_HAND)
@pytest.mark.parametrize('name', CASES)
def test_a_detector_that_trained_and_predicted_is_copied(name: str, way: str) -> None:
    """No activation with a history is left on it: torch copies none."""
    case = CASES[name]()
    case.train(case.model)
    check_copy(case, BY_HAND[way](case.model))
    torch.save(case.model, io.BytesIO())


@pytest.mark.parametrize('way', BY_HAND)
@pytest.mark.parametrize(('name', 'plan'), [(name, plan) for name, plans in PLANS.items() for plan in plans], ids=str)
def test_a_detector_with_a_plan_is_copied(name: str, plan: KeyPlan, way: str) -> None:
    """The copy prunes by its own weights, and is detached without a trace in either."""
    case = CASES[name]()
    without = numbers(case, case.model)
    adapters.attach(case.model, plan)
    if not getattr(plan, 'q', 0):  # queries are pruned at test only
        case.train(case.model)
    copied = BY_HAND[way](case.model)
    check_copy(case, copied)
    assert adapters.is_attached(copied)
    assert torch.equal(numbers(case, copied), without) == (not plan.removes)
    before = numbers(case, case.model)
    adapters.detach(copied)
    assert not adapters.is_attached(copied) and adapters.is_attached(case.model)
    assert torch.equal(numbers(case, case.model), before)
    adapters.detach(case.model)
    check_copy(case, copied)
    check_copy(case, BY_HAND[way](case.model))


@pytest.mark.parametrize('way', BY_HAND)
@pytest.mark.parametrize('criterion', ['lowest', 'cost'])
def test_a_detector_is_copied_while_its_queries_are_scored(criterion: str, way: str) -> None:
    """The copy has a listener of its own: what it sees does not count for the original."""
    case = petr()
    scorer = QueryScorer(learned_queries(case.model), GPQPlan(target=6, criterion=criterion))
    scorer.start()
    case.train(case.model)
    copied = BY_HAND[way](case.model)
    check_copy(case, copied)
    case.train(copied)
    assert len(scorer.take()) == 2
    scorer.stop()
    check_copy(case, BY_HAND[way](case.model))


def built(config_file: str) -> nn.Module:
    config = Config.fromfile(CONFIGS / config_file)
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    return MODELS.build(config.model)


def check_shipped(config_file: str) -> None:
    model = built(config_file)
    expected = model.state_dict()
    for way in BY_HAND.values():
        found = way(model).state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize('config_file', TINY)
def test_shipped_detectors(config_file: str) -> None:
    check_shipped(config_file)


@pytest.mark.slow
@pytest.mark.parametrize('config_file', LARGE)
def test_large_shipped_detectors(config_file: str) -> None:
    check_shipped(config_file)

"""Scoring against loops by hand; batches that stay the same; statistics of batch norm."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmprune3d.adapters.fusion import fusion_map, parameter_groups, prunable
from mmprune3d.checkpoint.masks import load_masks, save_masks
from mmprune3d.engine.batches import CachedBatches, draw
from mmprune3d.engine.criteria import (
    Scores,
    batches_needed,
    choose_masks,
    keep_report,
    keep_table,
    make_masks,
    score_model,
)
from mmprune3d.engine.recalibration import recalibrate
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from tests.kills import assert_same

from .small_fusion import (
    GROUPS,
    INTERFACES,
    RADAR_GROUPS,
    RADAR_INTERFACES,
    SmallFusion,
    SmallFusionDataset,
    batches,
)

CRITERIA = AlterMOMAPlan.criteria
MODALITIES = ('camera', 'lidar', 'radar')


def small(seed: int = 3, radar: bool = False, **kwargs: Any) -> tuple[SmallFusion, Any]:
    torch.manual_seed(seed)
    model = SmallFusion(radar=radar, **kwargs)
    return model, fusion_map(model, *((RADAR_GROUPS, RADAR_INTERFACES) if radar else (GROUPS, INTERFACES)))


class Zeroed(SmallFusion):
    """Masks the slow way: the stream runs, and its output is multiplied by 0."""

    masked: str | None = None

    def combine(self, maps: list[Tensor]) -> Tensor:
        return super().combine([0 * m if name == self.masked else m for name, m in zip(MODALITIES, maps)])


def gradients_by_hand(model: Zeroed, data: list[dict], masked: str | None) -> dict[str, Tensor]:
    model.masked = masked
    model.zero_grad()
    losses = [model(**batch, mode='loss')['loss_bbox'] for batch in data]
    (sum(losses) / len(losses)).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def altermoma_by_hand(model: SmallFusion, data: list[dict], groups: dict[str, str], plan: AlterMOMAPlan) -> dict:
    """Eq. 6, 10 to 13, 26, 34 to 36, one parameter after the other."""
    initial = copy.deepcopy(model)
    initial.__class__ = Zeroed
    theta = {name: p.detach() for name, p in initial.named_parameters()}
    evaluated, reactivating = data[: plan.eval_batches], data[plan.eval_batches :]
    deci = {n: (theta[n] * g).abs() for n, g in gradients_by_hand(copy.deepcopy(initial), evaluated, None).items()}
    reri = {}
    present = [name for name in MODALITIES if name in groups.values()]
    for masked in present:
        trained = copy.deepcopy(initial)
        before = gradients_by_hand(trained, evaluated, masked)
        for batch in reactivating:
            step = gradients_by_hand(trained, [batch], masked)
            for name, parameter in trained.named_parameters():
                parameter.data -= plan.lr * step[name]
        after = gradients_by_hand(trained, evaluated, masked)
        reri[masked] = {n: (theta[n] * before[n] - theta[n] * after[n]).abs() for n in theta}
    scores = {}
    for name in prunable(model):
        same = [n for n in prunable(model) if groups[n] == groups[name]]
        scores[name] = plan.alpha * deci[name] / sum(deci[n].sum() for n in same)
        stages = [masked for masked in present if masked != groups[name]]
        for masked in stages:
            share = reri[masked][name] / sum(reri[masked][n].sum() for n in same)
            scores[name] = scores[name] - plan.beta / len(stages) * share
    return scores


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('radar', [False, True])
def test_altermoma_as_by_hand(radar, norm):
    """Batch norm in training mode: a stream that does not run is one whose output is multiplied by 0."""
    model, names = small(radar=radar, norm=norm)
    model.double()
    plan = AlterMOMAPlan(sparsity=0.5, eval_batches=2, reactivation_steps=3, lr=0.05, optimizer='sgd', beta=0.7)
    data = [in_double(batch) for batch in batches(batches_needed(plan))]
    groups = parameter_groups(model, names)
    found = score_model(model, plan, data, names).values
    expected = altermoma_by_hand(model, data, groups, plan)
    assert list(found) == list(expected) == list(prunable(model))
    for name, score in found.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-9, atol=1e-12)
    for group in set(groups.values()):
        total = sum(float(found[name].sum()) for name in found if groups[name] == group)
        assert total == pytest.approx(plan.alpha - plan.beta)


def in_double(batch: dict) -> dict:
    inputs = {name: [part.double() for part in parts] for name, parts in batch['inputs'].items()}
    return dict(inputs=inputs, data_samples=[part.double() for part in batch['data_samples']])


def test_snip_and_prospr_as_by_hand():
    model, names = small(norm=False)
    data, by_hand = batches(4), copy.deepcopy(model)
    by_hand.__class__ = Zeroed
    weights = {name: p.detach().clone() for name, p in prunable(model).items()}
    gradients = gradients_by_hand(by_hand, data, None)
    total = sum((weights[n] * gradients[n]).abs().sum() for n in weights)
    found = score_model(model, AlterMOMAPlan(sparsity=0.5, criterion='snip', eval_batches=4), data, names).values
    for name, score in found.items():
        torch.testing.assert_close(score, (weights[name] * gradients[name]).abs() / total)

    for batch in data[:3]:
        step = gradients_by_hand(by_hand, [batch], None)
        for name, parameter in by_hand.named_parameters():
            parameter.data -= 0.1 * step[name]
    last = gradients_by_hand(by_hand, data[3:], None)
    found = score_model(model, AlterMOMAPlan(sparsity=0.5, criterion='prospr', lr=0.1), data, names).values
    for name, score in found.items():
        torch.testing.assert_close(score, (weights[name] * last[name]).abs())


def plan_of(criterion: str, sparsity: float = 0.6, **settings: Any) -> AlterMOMAPlan:
    quick = dict(eval_batches=2, reactivation_steps=2, lr=0.01)
    if criterion == 'synflow':
        quick['rounds'] = 4
    return AlterMOMAPlan(sparsity=sparsity, criterion=criterion, **{**quick, **settings})


@pytest.mark.parametrize('criterion', CRITERIA)
def test_scoring_leaves_nothing_behind_and_can_be_repeated(criterion):
    model, names = small(dropout=0.3)
    model.train(), model.fusion_layer.eval()
    model.fusion_layer[0].weight.grad = torch.ones_like(model.fusion_layer[0].weight)
    plan = plan_of(criterion)
    data = CachedBatches(batches(batches_needed(plan)), model.data_preprocessor)

    def state() -> tuple:
        tensors = [t.clone() for t in model.state_dict().values()]
        rest = [(m.training, sorted(vars(m))) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        grads = [p.grad is None or bool((p.grad == 1).all()) for p in model.parameters()]
        return tensors, (
            *rest,
            grads,
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        )

    before = state()
    first = score_model(model, plan, data, names).values
    after = state()
    assert all(map(torch.equal, before[0], after[0])) and before[1] == after[1]
    torch.manual_seed(99), np.random.seed(99)
    assert_same(score_model(model, plan, data, names).values, first, criterion)
    assert {name: score.shape for name, score in first.items()} == {n: p.shape for n, p in prunable(model).items()}


@pytest.mark.parametrize('criterion', CRITERIA)
def test_masks_have_exact_counts_and_what_was_removed_before_goes_first(criterion):
    model, names = small()
    plan = plan_of(criterion)
    scores = score_model(model, plan, batches(batches_needed(plan)), names)
    groups, total = parameter_groups(model, names), sum(p.numel() for p in prunable(model).values())
    masks = make_masks(scores, plan, groups)
    assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.6 * total)
    generator = torch.Generator().manual_seed(1)
    earlier = {name: torch.rand(mask.shape, generator=generator) > 0.3 for name, mask in masks.items()}
    masks = make_masks(scores, plan, groups, 0.8, earlier)
    assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.8 * total)
    assert not any((mask & ~earlier[name]).any() for name, mask in masks.items())


def test_scope_protection_and_frozen_weights():
    model, names = small()
    model.img_backbone[0].requires_grad_(False)
    plan = plan_of('snip', scope='per_group', protected=('bbox_head',))
    scores = score_model(model, plan, batches(2), names)
    groups = parameter_groups(model, names)
    masks = make_masks(scores, plan, groups)
    report = keep_report(model, plan, names, scores, masks)
    assert report['frozen'] == ['img_backbone.0.weight'] and 'img_backbone.0.weight' not in masks
    assert masks['bbox_head.weight'].all()
    for group, row in report['groups'].items():
        sizes = [mask.numel() for name, mask in masks.items() if groups[name] == group]
        assert row['total'] == sum(sizes) and row['kept'] == sum(sizes) - round(0.6 * sum(sizes))
    assert report['layers']['bbox_head.weight'] == {'kept': 12, 'total': 12, 'rate': 1.0, 'group': 'fusion'}
    table = keep_table(json.loads(json.dumps(report)), layers=True).splitlines()
    assert len(table) == 2 + 1 + 3 + len(masks) and '| `bbox_head.weight` | fusion | 12 | 12 | 100.00 |' in table
    assert choose_masks(scores.values, 0.6, plan, groups)['bbox_head.weight'].all()


def test_too_few_batches_and_a_single_modality():
    model, names = small()
    with pytest.raises(ValueError, match='snip needs 2 batches, got 1'):
        score_model(model, plan_of('snip'), batches(1), names)
    lonely = fusion_map(model, GROUPS, dict(lidar='pts_middle_encoder'))
    with pytest.raises(ValueError, match=r"has weights of \['lidar'\] only.*another criterion, such as 'snip'"):
        score_model(model, plan_of('altermoma'), batches(4), lonely)


class Augmented(SmallFusionDataset):
    def __getitem__(self, index: int) -> dict:
        data = super().__getitem__(index)
        data['index'], data['noise'] = index, (random.random(), np.random.rand(), float(torch.rand(())))
        return data


class Jitter(nn.Module):
    def forward(self, batch: dict, training: bool) -> dict:
        return dict(batch, jitter=float(torch.rand(())) + np.random.rand(), training=training)


def test_batches_are_the_same_whenever_they_are_read():
    loader = DataLoader(Augmented(num=6), batch_size=2, shuffle=True, collate_fn=list)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    raw = draw(loader, 5, seed=4)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    order = [sample['index'] for batch in raw for sample in batch]
    assert sorted(order[:6]) == list(range(6)) and order[:6] != list(range(6)) and len(order) == 10
    assert_same(draw(loader, 5, seed=4), raw, 'drawn')
    assert [sample['index'] for batch in draw(loader, 5, seed=5) for sample in batch] != order
    assert draw(loader, 0, seed=4) == []

    cached = CachedBatches([dict(samples=batch) for batch in raw], Jitter(), seed=1)
    first = cached[1]
    first['samples'].clear()
    again = cached[1]
    assert (
        len(again['samples']) == 2 and again['jitter'] == first['jitter'] != cached[2]['jitter'] and again['training']
    )
    assert cached[1:3][0]['jitter'] == first['jitter'] and cached[-1:][0]['jitter'] == cached[4]['jitter']
    assert len(list(cached)) == 5 and len(cached[:2]) == 2


def test_processes_share_the_batch_of_one_process(monkeypatch):
    def drawn(rank: int, world: int, size: int) -> list[list[int]]:
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (rank, world))
        loader = DataLoader(Augmented(num=7), batch_size=size, collate_fn=lambda samples: [s['index'] for s in samples])
        return draw(loader, 5, seed=2)

    one, shares = drawn(0, 1, 4), [drawn(rank, 2, 2) for rank in range(2)]
    assert [sorted(batch) for batch in one] == [sorted(a + b) for a, b in zip(*shares)]


def test_recalibrated_statistics_are_those_of_the_batches():
    model, _ = small()
    model.fusion_layer[1].momentum = 0.3
    model.eval()
    assert recalibrate(model, batches(3)) == 3
    assert not model.training and model.fusion_layer[1].momentum == 0.3
    maps = [model.img_backbone[0](torch.stack(batch['inputs']['img'])) for batch in batches(3)]
    norm = model.img_backbone[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    with pytest.raises(ValueError, match='0 batch norms train, 1 batches'):
        recalibrate(small(norm=False)[0], batches(1))


def test_a_file_with_masks_has_masks(tmp_path):
    save_masks(tmp_path / 'masks.pth', {'a': torch.tensor([True, False])}, dict(note=1))
    assert load_masks(tmp_path / 'masks.pth')['a'].tolist() == [True, False]
    torch.save(dict(state_dict={}), tmp_path / 'dense.pth')
    with pytest.raises(ValueError, match=r'dense.pth has no masks'):
        load_masks(tmp_path / 'dense.pth')


def test_scores_without_notes_make_a_report():
    model, names = small()
    scores = Scores({name: p.detach().abs() for name, p in prunable(model).items()})
    plan = plan_of('magnitude', sparsity=0.0)
    report = keep_report(model, plan, names, scores, make_masks(scores, plan, parameter_groups(model, names)))
    assert report['total']['rate'] == 1.0 and report['notes'] == {} and report['frozen'] == []

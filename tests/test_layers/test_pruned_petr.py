"""Key pruning inside PETR's head: pruned queries keep their points, denoising queries never score, in-model pruning."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmprune3d import adapters
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan
from tests.test_layers.slow_decoder import Inputs, decode
from tests.test_models.test_petr.small import (
    CAMERAS,
    PC_RANGE,
    build,
    detector_config,
    features,
    head_config,
    sample,
)

METAS = [sample(seed=seed).metainfo for seed in range(2)]
KEYS = CAMERAS * 2 * 4
PLAN = TgGBCPlan(r=14, n=2, k=5)


def decoder_inputs(head: nn.Module, **options: object) -> tuple[dict[str, Tensor], Inputs]:
    """The outputs of the head, and what its decoder was given for them."""
    seen = []
    handle = head.transformer.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[:3]))
    outputs = head(features(), METAS, **options)
    handle.remove()
    return outputs, seen[0]


def by_first_logit(logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    order = logits[..., 0].argsort(1)[..., None]
    return logits.gather(1, order.expand_as(logits)), codes.gather(1, order.expand_as(codes))


@torch.no_grad()
@pytest.mark.parametrize('settings', [dict(r=0, q=5, n=1), dict(r=14, q=7, n=2)], ids=str)
@pytest.mark.parametrize('share', [True, False])
def test_boxes_of_remaining_queries_are_around_their_own_points(settings: dict, share: bool) -> None:
    head = build(head_config(share_branches=share))
    nn.init.uniform_(head.reference_points.weight, 0.1, 0.9)
    plan = TgGBCPlan(**settings, k=5)
    adapters.attach(head, plan)
    outputs, data = decoder_inputs(head, all_layers=False)
    assert outputs['all_cls_scores'].shape == (1, 2, 12 - plan.q, 4)
    assert outputs['all_bbox_preds'].shape == (1, 2, 12 - plan.q, 10)
    logits, codes = [], []
    for slow in decode(head.transformer.decoder, head.class_logits, plan, data):
        query, points = slow.outputs[-1], head.reference_points.weight[slow.queries[-1]]
        box = head.reg_branches[2](query)
        offset = box[:, [0, 1, 4]] + torch.log(points / (1 - points))
        low, high = torch.tensor(PC_RANGE).view(2, 3)
        box[:, [0, 1, 4]] = low + (high - low) * offset.sigmoid()
        logits.append(head.cls_branches[2](query)), codes.append(box)
    expected = by_first_logit(torch.stack(logits), torch.stack(codes))
    found = by_first_logit(outputs['all_cls_scores'][0], outputs['all_bbox_preds'][0])
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-3, rtol=1e-5)


@torch.no_grad()
def test_predictions_with_fewer_queries() -> None:
    head = build(head_config())
    adapters.attach(head, TgGBCPlan(r=4, q=6, n=1))
    assert all(len(found) == 20 for found in head.predict([features()], [sample(), sample()]))


@torch.no_grad()
def test_denoising_queries_do_not_vote() -> None:
    """Learned queries cannot see them, so the same keys stay as without them, whatever they are sure of."""
    head = build(head_config(denoising=dict(groups=4)))
    adapters.attach(head, PLAN)
    plain = adapters.kept_keys(head, lambda: head(features(), METAS))
    boxes = [sample(5).gt_instances_3d.bboxes_3d.tensor, sample(2).gt_instances_3d.bboxes_3d.tensor]
    noised = head.denoising.make(boxes, PC_RANGE, 12)
    found = adapters.kept_keys(head, lambda: head(features(), METAS, denoising=noised))
    outputs = head(features(), METAS, denoising=noised)
    assert outputs['all_cls_scores'].shape[2] == noised.num + 12 > 12
    assert [ids.shape[1] for ids in found] == [KEYS, KEYS - 6, KEYS - 14]
    for ids, expected in zip(found, plain, strict=True):
        assert torch.equal(ids.sort(1).values, expected.sort(1).values)


def in_model(**settings: object) -> dict:
    return {'type': 'TgGBCPETR3DTransformer', 'tggbc': settings}


@torch.no_grad()
@pytest.mark.parametrize('settings', [dict(r=14, k=5), dict(r=0.5, n=1, score='mean'), dict(r=[3, 8], k=0)], ids=str)
def test_in_model_pruning_equals_attached_pruning(settings: dict) -> None:
    own, plain = build(head_config(transformer=in_model(**settings))), build(head_config())
    assert list(own.state_dict()) == list(plain.state_dict())
    own.load_state_dict(plain.state_dict())
    before = plain(features(), METAS)
    adapters.attach(plain, TgGBCPlan(**settings))
    found, expected = own(features(), METAS), plain(features(), METAS)
    assert not torch.equal(found['all_cls_scores'], before['all_cls_scores'])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    kept = [adapters.kept_keys(head, lambda head=head: head(features(), METAS)) for head in (own, plain)]
    assert all(map(torch.equal, *kept))
    assert [ids.shape[1] for ids in kept[0]] == list(TgGBCPlan(**settings).keys_per_layer(KEYS, 3))


@torch.no_grad()
def test_in_model_pruning_stays() -> None:
    head = build(head_config(transformer=in_model(r=14)))
    before = head(features(), METAS)['all_cls_scores']
    assert not adapters.is_attached(head)
    with pytest.raises(ValueError, match=r'the config of the model already sets TgGBCPlan\(r=14, n=2'):
        adapters.attach(head, TgGBCPlan(r=3))
    adapters.detach(head)
    assert torch.equal(head(features(), METAS)['all_cls_scores'], before)
    assert torch.equal(copy.deepcopy(head)(features(), METAS)['all_cls_scores'], before)


def test_in_model_pruning_trains() -> None:
    """Losses of every layer; the image features get their gradient through the keys that were kept."""
    changes = {'transformer': in_model(r=20, n=1, k=5) | {'with_cp': True}, 'denoising': {'groups': 2}}
    model = build(detector_config(changes)).train()
    feats = features().requires_grad_()
    losses = model.pts_bbox_head.loss([feats], [sample(3), sample(2)])
    losses['loss_cls'].backward()
    assert feats.grad.isfinite().all()
    assert feats.grad.any()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(r=14, n=3), 'valid are 1 to 2'),
        (dict(k=3), 'r, what to remove, is missing'),
        (dict(r=14, ratio=0.5), 'unknown setting ratio'),
    ],
    ids=str,
)
def test_invalid_in_model_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(head_config(transformer=in_model(**settings)))


@torch.no_grad()
def test_methods_can_be_exchanged() -> None:
    head = build(head_config())
    before = head(features(), METAS)['all_cls_scores']
    for plan in (PLAN, ToMePlan(r=12, n=1), TgGBCPlan(r=0.25)):
        adapters.attach(head, plan)
        assert head.transformer.decoder.key_pruner.plan == plan
        assert not torch.equal(head(features(), METAS)['all_cls_scores'][-1], before[-1])
        assert adapters.keys_per_layer(head, lambda: head(features(), METAS)) == list(plan.keys_per_layer(KEYS, 3))
    adapters.detach(head)
    assert torch.equal(head(features(), METAS)['all_cls_scores'], before)

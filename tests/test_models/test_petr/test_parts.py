"""Box codes, matching, losses, denoising queries, position embeddings, backbone and neck."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from mmdet3d.registry import MODELS, TASK_UTILS

from mmprune3d.models.petr.box_coder import LAYOUTS, PETR3DBoxCoder, decode_boxes, encode_boxes, relative_to, wrap_angle
from mmprune3d.models.petr.denoising import DenoisingQueries, separate_groups
from mmprune3d.models.petr.fpn import PETR3DFPN
from mmprune3d.models.petr.grid_mask import PETR3DGridMask
from mmprune3d.models.petr.losses import SetLoss, Targets
from mmprune3d.models.petr.position import depth_bins, embed_cells, embed_points, frustum_embedding, padded_cells
from mmprune3d.models.petr.vovnet import PETR3DVoVNet

from .small import PC_RANGE, build, head_config


def random_boxes(count: int = 50, size: int = 9) -> torch.Tensor:
    boxes = torch.randn(count, size, generator=torch.Generator().manual_seed(3)) * 5
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.1
    return boxes


@pytest.mark.parametrize('convention', LAYOUTS)
@pytest.mark.parametrize('size', [7, 9])
def test_codes_decode_to_the_same_box(convention: str, size: int) -> None:
    boxes = random_boxes(size=size)
    codes = encode_boxes(boxes, convention)
    assert codes.shape == (50, size + 1)
    decoded = decode_boxes(codes, convention)
    keep = [i for i in range(size) if i != 6]
    torch.testing.assert_close(decoded[:, keep], boxes[:, keep])
    assert wrap_angle(decoded[:, 6] - boxes[:, 6]).abs().max() < 1e-5


def test_slots_of_our_convention() -> None:
    box = torch.tensor([1.0, 2.0, 3.0, math.e, math.e**2, math.e**3, 0.5, 7.0, 8.0])
    expected = torch.tensor([1.0, 2.0, 1.0, 2.0, 3.0, 3.0, math.sin(0.5), math.cos(0.5), 7.0, 8.0])
    torch.testing.assert_close(encode_boxes(box), expected)


def test_unknown_convention_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match='mmdet3d, projects_petr, petr, streampetr'):
        PETR3DBoxCoder(PC_RANGE, convention='detr3d')


def test_coder_takes_the_best_pairs_of_query_and_class() -> None:
    logits = torch.tensor([[0.0, 3.0], [2.0, -1.0]])
    codes = encode_boxes(random_boxes(2))
    coder = PETR3DBoxCoder(PC_RANGE, max_num=3, num_classes=2)
    boxes, scores, labels = coder.decode(logits, codes)
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.0, 0.0]).sigmoid())
    assert labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(boxes, decode_boxes(codes[[0, 1, 0]]))
    everything = PETR3DBoxCoder(PC_RANGE, max_num=300, num_classes=2).decode(logits, codes)
    assert len(everything[0]) == 4


def test_of_equal_scores_the_coder_takes_the_first_pairs() -> None:
    codes = encode_boxes(random_boxes(50))
    coder = PETR3DBoxCoder(PC_RANGE, max_num=7, num_classes=2)
    logits = torch.full((50, 2), 30.0)  # saturated: all scores are 1
    boxes, scores, labels = coder.decode(logits, codes)
    assert scores.tolist() == [1.0] * 7
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    torch.testing.assert_close(boxes, decode_boxes(codes[[0, 0, 1, 1, 2, 2, 3]]))


def test_coder_drops_far_and_unlikely_boxes() -> None:
    boxes = random_boxes(3)
    boxes[:, :3] = torch.tensor([[10.0, 0, 0], [10.1, 0, 0], [0, 0, 0]])
    limits = [-10, -10, -10, 10, 10, 10]
    logits = torch.tensor([[1.0], [2.0], [0.0]])
    coder = PETR3DBoxCoder(PC_RANGE, post_center_range=limits, num_classes=1)
    assert coder.decode(logits, encode_boxes(boxes))[1].tolist() == logits[[0, 2], 0].sigmoid().tolist()
    coder = PETR3DBoxCoder(PC_RANGE, score_threshold=0.5, num_classes=1)
    assert len(coder.decode(logits, encode_boxes(boxes))[0]) == 2


def assigner() -> object:
    build(head_config())  # sets the scope in which mmdet's costs are found
    cls_cost, reg_cost = {'type': 'mmdet.FocalLossCost', 'weight': 2.0}, {'type': 'PETR3DBoxCost', 'weight': 0.25}
    return TASK_UTILS.build({'type': 'PETR3DAssigner', 'cls_cost': cls_cost, 'reg_cost': reg_cost})


def test_matching_is_the_cheapest_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    match = assigner()
    for _ in range(5):
        logits, codes = torch.randn(5, 3, generator=generator), torch.randn(5, 10, generator=generator)
        labels, gt = torch.randint(0, 3, (3,), generator=generator), torch.randn(3, 10, generator=generator)
        prob = logits.sigmoid()
        positive = -(prob + 1e-12).log() * 0.25 * (1 - prob) ** 2
        negative = -(1 - prob + 1e-12).log() * 0.75 * prob**2
        cost = 2.0 * (positive - negative)[:, labels]
        cost = cost + 0.25 * (codes[:, None, :8] - gt[None, :, :8]).abs().sum(-1)
        best = min(itertools.permutations(range(5), 3), key=lambda p: sum(cost[q, g] for g, q in enumerate(p)))
        queries, boxes = match.assign(logits, codes, labels, gt)
        assert {(int(q), int(g)) for q, g in zip(queries, boxes)} == {(q, g) for g, q in enumerate(best)}


def test_matching_survives_numbers_that_are_none() -> None:
    codes = torch.zeros(4, 10)
    codes[0] = float('nan')
    queries, boxes = assigner().assign(torch.zeros(4, 2), codes, torch.tensor([1]), torch.zeros(1, 10))
    assert queries.item() != 0 and boxes.item() == 0


def test_matching_without_boxes_and_with_too_many() -> None:
    match = assigner()
    nothing = torch.empty(0, dtype=torch.long), torch.empty(0, 10)
    queries, boxes = match.assign(torch.zeros(4, 2), torch.zeros(4, 10), *nothing)
    assert len(queries) == len(boxes) == 0 and queries.dtype == torch.int64
    queries, boxes = match.assign(torch.zeros(2, 2), torch.zeros(2, 10), torch.tensor([0, 1, 0]), torch.zeros(3, 10))
    assert sorted(queries.tolist()) == [0, 1] and len(set(boxes.tolist())) == 2


def set_loss() -> SetLoss:
    build(head_config())
    return SetLoss(3, PETR3DBoxCoder(PC_RANGE, num_classes=3))


def test_losses_of_perfect_predictions_are_nearly_zero() -> None:
    boxes, labels = [random_boxes(4), random_boxes(2)], [torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1])]
    logits, codes = torch.full((2, 2, 6, 3), -20.0), torch.zeros(2, 2, 6, 10)
    for i in range(2):
        rows = torch.arange(len(boxes[i])) + 1  # shifted, so that the matching has work to do
        logits[:, i, rows, labels[i]] = 20.0
        codes[:, i, rows] = encode_boxes(boxes[i])
    losses = set_loss().matched(logits, codes, labels, boxes, torch.ones(10))
    assert set(losses) == {'loss_cls', 'loss_bbox', 'd0.loss_cls', 'd0.loss_bbox'}
    assert all(value < 1e-6 for value in losses.values())


def test_box_loss_is_the_weighted_mean_over_objects() -> None:
    codes = torch.zeros(1, 2, 10)
    targets = torch.ones(3, 10)
    targets[2, 4] = float('inf')  # a box without width has no code
    places = Targets(torch.zeros(1, 2), torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 1]), targets)
    weights = torch.tensor([1.0] * 8 + [0.2] * 2)
    loss = set_loss()._box_loss(codes, places, weights, torch.tensor(2.0))
    torch.testing.assert_close(loss, torch.tensor(0.25 * 2 * 8.4 / 2))


def test_denoising_queries() -> None:
    torch.manual_seed(0)
    boxes = [random_boxes(3), random_boxes(0), random_boxes(5)]
    made = DenoisingQueries(groups=4, noise_scale=1.0, split=0.75).make(boxes, PC_RANGE, num_learned=7)
    assert made.num == 20 and made.points.shape == (3, 20, 3)
    assert len(made.sample) == 4 * 8 and not (made.sample == 1).any()
    assert len({(int(s), int(q)) for s, q in zip(made.sample, made.query)}) == 32
    assert torch.equal(made.query % 5, made.box)
    assert 0 < made.is_object.sum() < 32
    for sample, query, box in zip(made.sample, made.query, made.box):
        shift = made.points[sample, query] - relative_to(boxes[sample][box, :3], PC_RANGE)
        limit = boxes[sample][box, 3:6] / 2 / (torch.tensor(PC_RANGE[3:]) - torch.tensor(PC_RANGE[:3]))
        inside = (made.points[sample, query] > 0) & (made.points[sample, query] < 1)
        assert (shift.abs() <= limit + 1e-6)[inside].all()
    empty = DenoisingQueries(groups=4).make([random_boxes(0)] * 2, PC_RANGE, 7)
    assert empty.num == 4 and len(empty.sample) == 0


def test_no_noise_gives_the_centres() -> None:
    boxes = random_boxes(3)
    made = DenoisingQueries(groups=2, noise_scale=0.0, split=2.0).make([boxes], PC_RANGE, 7)
    torch.testing.assert_close(made.points[0], relative_to(boxes[:, :3], PC_RANGE).clamp(0, 1).repeat(2, 1))
    assert made.is_object.all()


def test_groups_see_themselves_and_the_learned_queries_only() -> None:
    forbidden = separate_groups(2, 3, 4, torch.device('cpu'))
    expected = torch.ones(10, 10, dtype=torch.bool)
    expected[:3, :3] = expected[3:6, 3:6] = expected[:, 6:] = False
    assert torch.equal(forbidden, expected)


def test_learned_queries_do_not_notice_denoising() -> None:
    head = build(head_config())
    made = DenoisingQueries(groups=3).make([random_boxes(4)] * 2, PC_RANGE, 12)
    feats = torch.randn(2, 3, 24, 2, 4)
    img2lidar = torch.eye(4).expand(2, 3, 4, 4)
    with torch.no_grad():
        plain = head.forward_tensors(feats, img2lidar, None, (32, 64))
        noised = head.forward_tensors(feats, img2lidar, None, (32, 64), denoising=made)
    for name in plain:
        torch.testing.assert_close(noised[name][:, :, made.num :], plain[name], atol=1e-4, rtol=1e-4)


def test_denoising_losses_know_their_boxes() -> None:
    boxes, labels = [random_boxes(3), random_boxes(5)], [torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0, 1, 2])]
    made = DenoisingQueries(groups=2, split=2.0).make(boxes, PC_RANGE, 7)
    logits, codes = torch.full((1, 2, 10, 3), -20.0), torch.zeros(1, 2, 10, 10)
    for sample, query, box in zip(made.sample, made.query, made.box):
        logits[0, sample, query, labels[sample][box]] = 20.0
        codes[0, sample, query] = encode_boxes(boxes[sample][box])
    losses = set_loss().denoised(logits, codes, labels, boxes, torch.ones(10), made)
    assert set(losses) == {'dn_loss_cls', 'dn_loss_bbox'}
    assert all(value < 1e-6 for value in losses.values())


def test_frustum_points_project_back_to_their_cell() -> None:
    torch.manual_seed(0)
    lidar2img = torch.eye(4).expand(1, 2, 4, 4) + 0.1 * torch.randn(1, 2, 4, 4)
    lidar2img[..., 3, :] = torch.tensor([0.0, 0, 0, 1])
    depths = depth_bins(4, 1.0, 20.0, linear_increasing=True, device=lidar2img.device)
    limits = [-1000.0] * 3 + [1000.0] * 3
    embedding = frustum_embedding(torch.linalg.inv(lidar2img), depths, (16, 32), (2, 4), limits)
    assert embedding.shape == (1, 2, 12, 2, 4)
    points = embedding.sigmoid().unflatten(2, (4, 3)) * 2000 - 1000
    homogeneous = torch.cat((points, torch.ones_like(points[:, :, :, :1])), dim=3)
    image = torch.einsum('bnij,bndjhw->bndihw', lidar2img, homogeneous)
    torch.testing.assert_close(image[0, 0, :, 2, 0, 0], depths, atol=1e-2, rtol=1e-3)
    pixels = image[:, :, :, :2] / image[:, :, :, 2:3]
    columns, rows = torch.arange(4) * 8.0, torch.arange(2) * 8.0
    torch.testing.assert_close(pixels[:, :, :, 0], columns.expand(1, 2, 4, 2, 4), atol=5e-2, rtol=1e-3)
    torch.testing.assert_close(pixels[:, :, :, 1], rows[:, None].expand(1, 2, 4, 2, 4), atol=5e-2, rtol=1e-3)


def test_depths_begin_where_they_should_and_grow() -> None:
    for increasing in (True, False):
        depths = depth_bins(64, 1.0, 61.2, increasing, torch.device('cpu'))
        steps = depths.diff()
        assert depths[0] == 1 and depths[-1] < 61.2
        assert (steps.diff() > 0).all() if increasing else torch.allclose(steps, steps[:1].expand_as(steps), atol=1e-4)


def test_no_mask_if_nothing_is_padded() -> None:
    full = [[(32, 64)] * 2] * 2
    assert padded_cells(full, (32, 64), (2, 4)) is None
    mask = padded_cells([[(32, 64), (16, 40)]], (32, 64), (2, 4))
    assert torch.equal(mask[0, 0], torch.zeros(2, 4, dtype=torch.bool))
    assert torch.equal(mask[0, 1], torch.tensor([[False, False, False, True], [True] * 4]))


def test_cell_embedding_counts_valid_cells() -> None:
    padding = torch.zeros(1, 2, 3, 4, dtype=torch.bool)
    plain = embed_cells(padding, 8)
    assert plain.shape == (1, 2, 24, 3, 4)
    padding[..., 3] = True
    shorter = embed_cells(padding[..., :3], 8)
    torch.testing.assert_close(embed_cells(padding, 8)[..., :3], shorter)
    assert not torch.allclose(plain[..., :3], shorter)
    assert embed_cells(torch.ones(1, 2, 3, 4, dtype=torch.bool), 8).isfinite().all()


def test_point_embedding_separates_axes() -> None:
    points = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.4]])
    embedded = embed_points(points, 8)
    assert embedded.shape == (2, 24)
    assert torch.equal(embedded[0, :16], embedded[1, :16]) and not torch.equal(embedded[0, 16:], embedded[1, 16:])


def test_vovnet_levels_and_freezing() -> None:
    model = PETR3DVoVNet('V-19-eSE', out_features=('stem', 'stage2', 'stage4', 'stage5'), frozen_stages=1).train()
    shapes = [tuple(level.shape[1:]) for level in model(torch.rand(1, 3, 64, 96))]
    assert shapes == [(128, 16, 24), (256, 16, 24), (768, 4, 6), (1024, 2, 3)]
    frozen = {name.split('.')[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {'stem', 'stage2'}
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with pytest.raises(ValueError, match='V-99-eSE'):
        PETR3DVoVNet('V-1')
    with pytest.raises(ValueError, match='stage5'):
        PETR3DVoVNet('V-19-eSE', out_features=('stage6',))


def test_vovnet_checkpointing_changes_nothing() -> None:
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = PETR3DVoVNet('V-19-eSE', with_cp=with_cp).train()
        model(torch.ones(1, 3, 32, 32))[-1].sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_fpn_merges_top_down() -> None:
    torch.manual_seed(0)
    neck = PETR3DFPN([3, 5], 4, num_outs=3)
    fine, coarse = torch.rand(1, 3, 4, 6), torch.rand(1, 5, 2, 3)
    levels = neck([fine, coarse])
    assert [tuple(level.shape[1:]) for level in levels] == [(4, 4, 6), (4, 2, 3), (4, 1, 2)]
    lateral = [conv(level) for conv, level in zip(neck.lateral_convs, (fine, coarse))]
    merged = lateral[0] + lateral[1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(levels[0], neck.fpn_convs[0](merged))
    with pytest.raises(ValueError, match='2'):
        PETR3DFPN([3, 5], 4, num_outs=1)


def test_grid_mask_covers_training_images_only() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 40, 60) + 1
    mask = PETR3DGridMask(prob=1.0)
    shares = []
    for _ in range(20):
        covered = mask(images)
        hidden = covered == 0
        assert torch.equal(covered[~hidden], images[~hidden])
        assert torch.equal(hidden, hidden[:1, :1].expand_as(hidden))
        shares.append(hidden.float().mean().item())
    assert 0.05 < sum(shares) / len(shares) < 0.6
    assert mask.eval()(images) is images
    assert PETR3DGridMask(prob=0.0).train()(images) is images
    assert not mask.state_dict()


def test_registered_parts_build_by_name() -> None:
    build(head_config())
    assert MODELS.get('PETR3DFPN') is PETR3DFPN and MODELS.get('PETR3DVoVNet') is PETR3DVoVNet

"""Equality of CMT with the official implementation, on whatever reference files there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

import mmprune3d.models  # noqa: F401
from mmprune3d import adapters
from mmprune3d.models.cmt.box_coder import CMT3DBBoxCoder, box_codes, denormalize_bbox, normalize_bbox
from mmprune3d.models.cmt.position import bev_cells
from mmprune3d.models.petr.head import gravity_boxes
from mmprune3d.pruning.tggbc import TgGBCPlan
from tests.reference import load, reference_files

from .small import head_of, metas_of, run

FILES = reference_files('query_detectors', 'cmt_[!c]*.pt') + reference_files('query_detectors', 'cmt_camera.pt')
CODERS = reference_files('query_detectors', 'cmt_coder.pt')
TOLERANCES = {'center': 1e-3, 'height': 1e-3}
TOLERANCE = 2e-4


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def close_tasks(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for task, official in zip(found, expected, strict=True):
        assert set(task) == set(official)
        for name, value in official.items():
            close(task[name], value, TOLERANCES.get(name, TOLERANCE))


def close_results(found: list[tuple[torch.Tensor, ...]], expected: list[dict[str, Any]], boxes: str) -> None:
    for (box, scores, labels), official in zip(found, expected, strict=True):
        box = box.clone()
        if boxes == 'bboxes_bottom':
            box[:, 2] -= box[:, 5] / 2
        close(box, official[boxes], 1e-3)
        close(scores, official['scores'])
        assert torch.equal(labels, official['labels'])


@torch.no_grad()
@pytest.mark.parametrize('path', FILES)
def test_outputs(path: Path) -> None:
    data = load(path)
    for case in (data, *data['cases'].values()):
        changes = {'grid_size': case['grid_size']} if 'grid_size' in case else {}
        head = head_of(data, **changes)
        found = run(head, case['inputs'])
        close_tasks(found, case['outputs']['tasks'])
        if 'results' in case['outputs']:
            close_results(head.bbox_coder.decode(found), case['outputs']['results'], 'bboxes_bottom')


@torch.no_grad()
@pytest.mark.parametrize('path', FILES)
def test_positions(path: Path) -> None:
    data = load(path)
    head, expected, inputs = head_of(data), data['intermediates'], data['inputs']
    seen = []
    head.transformer.decoder.register_forward_pre_hook(lambda module, args: seen.append(args))
    run(head, inputs)
    (_, keys, query_pos, *_), positions = seen[0], []
    close(query_pos, expected['query_embeds'])
    if head.uses_points:
        close(bev_cells(head.grid_size, head.downsample_scale), expected['coords_bev'])
        close(head.bev_positions(), expected['bev_pos_embeds'])
        positions.append(expected['bev_pos_embeds'].expand(len(keys.key), -1, -1))
    if head.uses_images:
        positions.append(expected['rv_pos_embeds'].flatten(1, 3))
    close(keys.key - keys.value, torch.cat(positions, dim=1))


@torch.no_grad()
@pytest.mark.parametrize('path', FILES)
def test_pruned_keys(path: Path) -> None:
    data = load(path)
    head = head_of(data)
    for entry in data['tggbc']:
        # Ours refuses to remove keys after the last layer, which no layer reads; the removals before it are the same.
        per_layer = entry['r_per_layer'][:-1]
        plan = TgGBCPlan(r=sum(per_layer), n=min(entry['n'], len(per_layer)), k=entry['k'])
        assert list(plan.removals(len(per_layer) + 1, 10**6))[:-1] == per_layer
        adapters.attach(head, plan)
        found = run(head, data['inputs'])
        kept = adapters.kept_keys(head, lambda: run(head, data['inputs']))
        changes = [ids for before, ids in zip(kept, kept[1:]) if ids.shape != before.shape]
        for ids, official in zip(changes, entry['kept'][: len(kept) - 1], strict=True):
            assert torch.equal(ids.sort(1).values, official)
        close_tasks(found, entry['outputs']['tasks'])
        close_results(head.bbox_coder.decode(found), entry['outputs']['results'], 'bboxes_bottom')
    adapters.detach(head)
    close_tasks(run(head, data['inputs']), data['outputs']['tasks'])


def samples_of(data: dict[str, Any]) -> list[Any]:
    from mmdet3d.structures import Det3DDataSample

    samples = []
    for meta, boxes, labels in zip(
        metas_of(data['inputs']), data['train']['gt_bboxes_3d'], data['train']['gt_labels_3d'], strict=True
    ):
        sample = Det3DDataSample(metainfo=meta)
        sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=labels)
        samples.append(sample)
    return samples


@pytest.mark.parametrize('path', FILES)
def test_losses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(path)
    head, expected = head_of(data), data['train']
    monkeypatch.setattr(torch, 'rand_like', lambda tensor: expected['rand'].clone())
    queries = head._denoising([gravity_boxes(sample.gt_instances_3d.bboxes_3d) for sample in samples_of(data)])
    points = torch.cat((queries.points, head.learned_points().expand(2, -1, -1)), dim=1)
    close(points, expected['intermediates']['reference_points'])
    assert torch.equal(queries.self_attn_mask, expected['intermediates']['dn_attn_mask'])
    losses = head.loss(data['inputs'].get('pts_feats'), data['inputs'].get('img_feats'), samples_of(data))
    assert set(losses) == set(expected['losses'])
    for name, value in expected['losses'].items():
        close(losses[name].detach(), value)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@torch.no_grad()
@pytest.mark.parametrize('path', FILES)
def test_matching(path: Path) -> None:
    data = load(path)
    head, expected = head_of(data), data['train']
    truth = [
        (head.set_loss.task_labels(sample.gt_instances_3d.labels_3d), gravity_boxes(sample.gt_instances_3d.bboxes_3d))
        for sample in samples_of(data)
    ]
    compared = 0
    for layer, samples in enumerate(expected['assignments']):
        for i, tasks in enumerate(samples):
            for index, official in enumerate(tasks):
                labels, boxes = truth[i]
                own = (labels[index] != head.class_counts[index]).nonzero()[:, 0]
                own = own[labels[index][own].argsort(stable=True)]  # official order: by class
                if official['cost'] is None:
                    assert len(own) == 0
                    continue
                task = expected['outputs']['tasks'][index]
                arguments = (
                    task['cls_logits'][layer, i],
                    box_codes(task)[layer, i] * head.code_weights,
                    labels[index][own],
                    normalize_bbox(boxes[own]) * head.code_weights,
                )
                close(head.set_loss.assigner.costs(*arguments), official['cost'], 1e-3)
                query, box = head.set_loss.assigner.assign(*arguments)
                chosen = torch.zeros_like(official['gt_inds'])
                chosen[query] = box + 1
                assert torch.equal(chosen, official['gt_inds'])
                compared += 1
    assert compared


@pytest.mark.parametrize('path', CODERS)
def test_coder(path: Path) -> None:
    data = load(path)
    for case in data['cases'].values():
        found = CMT3DBBoxCoder(**case['config']).decode(data['tasks'][case['tasks']])
        if case['error'] is None:
            close_results(found, case['results'], 'bboxes')
        else:  # official CMT fails with more pairs than queries; ours decodes them
            assert all(0 < len(scores) <= case['config']['max_num'] for _, scores, _ in found)


@pytest.mark.parametrize('path', CODERS)
def test_normalize(path: Path) -> None:
    expected = load(path)['normalize']
    close(normalize_bbox(expected['boxes9']), expected['normalized10'])
    close(normalize_bbox(expected['boxes7']), expected['normalized8'])
    close(denormalize_bbox(expected['normalized10']), expected['denormalized9'])
    close(denormalize_bbox(expected['normalized8']), expected['denormalized7'])


@pytest.mark.parametrize('path', reference_files('query_detectors', 'keys/cmt_fusion_voxel0100_r50.json'))
def test_full_size_keys(path: Path) -> None:
    from mmdet3d.registry import MODELS

    with torch.device('meta'):
        head = MODELS.build(
            {
                'type': 'CMT3DHead',
                'tasks': [{'num_class': 10}],
                'bbox_coder': {'type': 'CMT3DBBoxCoder', 'pc_range': [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]},
                'grid_size': [1024, 1024, 40],
            }
        )
    assert {key: list(value.shape) for key, value in head.state_dict().items()} == json.loads(path.read_text())

"""Key pruning inside PETR, against the official selection at the same place of the official decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmprune3d import adapters
from mmprune3d.layers.attention import AttentionRecord
from mmprune3d.layers.tggbc import TgGBCKeyPruner
from mmprune3d.pruning.tggbc import TgGBCPlan
from tests.reference import load
from tests.test_models.test_petr.test_reference import BOX_TOLERANCE, FILES, LOGIT_TOLERANCE, head_of, metas_of


def inputs_of(data: dict, case: str) -> dict:
    return data['inputs'] if case == 'full' else data['cases'][case]['inputs']


def run(head: nn.Module, inputs: dict) -> dict[str, Tensor]:
    return head([inputs['img_feats'].clone()], metas_of(inputs))


@torch.no_grad()
@pytest.mark.parametrize('path', FILES)
def test_pruned_petr_equals_the_official_one(path: Path) -> None:
    data = load(path)
    head = head_of(data)
    for entry in data['tggbc']:
        plan = TgGBCPlan(r=entry['r'], n=entry['n'], k=entry['k'])
        inputs = inputs_of(data, entry['case'])
        assert list(plan.removals(len(entry['r_per_layer']), 10**6)) == entry['r_per_layer']
        adapters.attach(head, plan)
        found = run(head, inputs)
        kept = adapters.kept_keys(head, lambda inputs=inputs: run(head, inputs))
        changes = [ids for before, ids in zip(kept, kept[1:]) if ids.shape != before.shape]
        for ids, expected in zip(changes, entry['kept'], strict=True):
            assert torch.equal(ids.sort(1).values, expected), entry['case']
        for name, atol in (('all_cls_scores', LOGIT_TOLERANCE), ('all_bbox_preds', BOX_TOLERANCE)):
            torch.testing.assert_close(found[name], entry['outputs'][name], atol=atol, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize('path', FILES)
def test_importance_is_the_official_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(path)
    head, seen = head_of(data), []
    compute = AttentionRecord.importance
    monkeypatch.setattr(AttentionRecord, 'importance', lambda *args: seen.append(compute(*args)) or seen[-1])
    for entry in data['tggbc']:
        seen.clear()
        decoder = head.transformer.decoder
        plan = TgGBCPlan(r=entry['r'], n=entry['n'], k=entry['k'])
        decoder.key_pruner = TgGBCKeyPruner(plan, len(decoder.layers), record=True)
        run(head, inputs_of(data, entry['case']))
        for layer, (importance, official) in enumerate(zip(seen, entry['importance'], strict=True)):
            ids = decoder.key_pruner.kept[layer]
            wanted = official.gather(1, ids)
            real = wanted > 0  # padding is 0 there and below everything here
            torch.testing.assert_close(importance[real], wanted[real], atol=1e-4, rtol=1e-4)
            assert (importance[~real] <= 0).all()


@torch.no_grad()
@pytest.mark.parametrize('path', FILES)
def test_detached_head_is_bit_identical(path: Path) -> None:
    data = load(path)
    head = head_of(data)
    before = run(head, data['inputs'])
    adapters.attach(head, TgGBCPlan(r=data['tggbc'][0]['r'], n=1))
    run(head, data['inputs'])
    adapters.detach(head)
    after = run(head, data['inputs'])
    assert all(torch.equal(after[name], before[name]) for name in before)

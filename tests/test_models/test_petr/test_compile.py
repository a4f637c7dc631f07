"""The head, pruning, as one graph of torch.compile; the operators run as they were captured, without a compiler."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from mmprune3d import adapters
from mmprune3d.models.petr.geometry import img2lidar_of
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan

from .small import CAMERAS, HEIGHT, WIDTH, build, features, head_config, sample

KEYS = CAMERAS * 2 * 4


@pytest.mark.parametrize(
    'plan',
    [
        None,
        TgGBCPlan(r=11, n=2, k=5),
        TgGBCPlan(r=0.5, n=1),  # k = 175 exceeds the 12 queries
        TgGBCPlan(r=8, n=1, score='none'),
        TgGBCPlan(r=8, n=2, k=5, q=4),
        ToMePlan(r=10, n=2),
    ],
    ids=lambda plan: 'unpruned' if plan is None else f'{plan.method}-{"-".join(map(str, plan.to_dict().values()))}',
)
@torch.no_grad()
def test_one_graph_with_the_outputs_of_eager(plan: KeyPlan | None) -> None:
    torch._dynamo.reset()
    head = build(head_config())
    if plan is not None:
        adapters.attach(head, plan)
    counter = CompileCounter()
    compiled = torch.compile(head.forward_tensors, backend=counter, fullgraph=True)
    cameras = img2lidar_of([sample().metainfo] * 2, torch.device('cpu'))
    for feats in (features(), features() + 1):
        found = compiled(feats, cameras, None, (HEIGHT, WIDTH), all_layers=False)
        expected = head.forward_tensors(feats, cameras, None, (HEIGHT, WIDTH), all_layers=False)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert counter.frame_count == 1


@torch.no_grad()
def test_one_graph_with_padded_images() -> None:
    torch._dynamo.reset()
    head = build(head_config())
    adapters.attach(head, TgGBCPlan(r=11, n=2, k=5))
    mask = (torch.arange(4) >= 3).expand(2, CAMERAS, 2, 4)
    compiled = torch.compile(head.forward_tensors, backend='eager', fullgraph=True)
    arguments = (features(), img2lidar_of([sample().metainfo] * 2, torch.device('cpu')), mask, (HEIGHT, WIDTH), False)
    expected = head.forward_tensors(*arguments)
    torch.testing.assert_close(compiled(*arguments), expected, rtol=0, atol=0)

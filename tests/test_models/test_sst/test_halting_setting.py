"""``halting=dict(sparsity=...)`` of a config: the gates that the plan of that sparsity makes, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint
from torch import nn

from mmprune3d.models.sst.halting_backbone import gates_of
from mmprune3d.pruning.halting import HaltingPlan

from .small_sst import WIDTH, backbone, built, detector_config, scene
from .small_sst import HaltingSST as Backbone
from .test_halting_detector import batch


@pytest.mark.parametrize('blocks', [2, 3, 4])
@pytest.mark.parametrize(
    'settings', [dict(sparsity=0.82), dict(sparsity=0.3, threshold=0.4, slack=0.05, in_channels=3)], ids=str
)
def test_the_gates_are_those_of_the_plan(settings: dict[str, Any], blocks: int) -> None:
    """Which an upgrade writes into a config, one by one; weights and results are then the same."""
    settings = {'in_channels': 8, **settings}
    gates = HaltingPlan(**settings).gates(WIDTH, blocks)
    assert gates_of(Config(dict(halting=settings)).halting, WIDTH, blocks) == gates
    assert gates_of(gates, WIDTH, blocks) is gates
    models, tokens = [], scene((40, 30))
    for halting in (settings, gates):
        torch.manual_seed(0)
        models.append(backbone(Backbone, num_blocks=blocks, halting=halting))
    assert [(gate.block, gate.threshold, gate.bounds) for gate in models[0].halting] == [
        (gate['block'], gate['threshold'], gate['bounds']) for gate in gates
    ]
    assert [type(gate.scorer).__name__ for gate in models[0].halting] == ['HaltingUNet', 'HaltingMLP']
    state, other = (model.state_dict() for model in models)
    assert list(state) == list(other) and all(torch.equal(state[name], other[name]) for name in state)
    (maps, record), (others, _) = (model.forward_with_record(tokens) for model in models)
    assert torch.equal(maps[0], others[0])
    if settings['sparsity'] == 0.82 and blocks == 4:
        assert record.mean_sparsity() == pytest.approx(0.82, abs=0.03)


def step(model: nn.Module) -> dict[str, Any]:
    """One training iteration."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = model.train().loss(*batch(model))
    sum(value.sum() for name, value in losses.items() if 'loss' in name).backward()
    optimizer.step()
    return losses


def test_a_detector_of_two_lines_trains_and_its_checkpoint_loads(tmp_path: Path) -> None:
    config = Config(detector_config(halting=dict(sparsity=0.6, in_channels=8)))
    config.dump(tmp_path / 'config.py')
    config = Config.fromfile(tmp_path / 'config.py')
    torch.manual_seed(0)
    model = built(copy.deepcopy(config._cfg_dict))
    before = copy.deepcopy(model.state_dict())
    assert 'loss_halting' in step(model)
    changed = {name.split('.')[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert 'halting' in changed
    save_checkpoint({'state_dict': model.state_dict()}, str(tmp_path / 'some.pth'))
    again = built(copy.deepcopy(config._cfg_dict))
    load_checkpoint(again, str(tmp_path / 'some.pth'), strict=True)
    found, expected = (one.eval().predict(*batch(one))[0].pred_instances_3d.scores_3d for one in (again, model))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ('halting', 'message'),
    [
        (dict(), r'sparsity, the mean share of halted tokens, is missing \(example: sparsity=0.82\)'),
        (dict(sparsity=1.0), 'sparsity=1.0 must be a number from 0 to below 1'),
        (dict(sparsity=0.5), 'in_channels=32, but tokens have 16 features'),
        (dict(sparsty=0.5), 'halting: unknown setting sparsty; valid are sparsity, threshold, slack, in_channels'),
        (dict(block=0, module=dict(type='HaltingMLP')), 'unknown setting block, module; valid are sparsity'),
        (dict(sparsity=0.5, loss='uniform'), 'the loss is a setting of the detector: write .*sparsity_loss=dict'),
        (dict(method='gpq', sparsity=0.5), 'expected a halting plan'),
        (0.82, r'halting=0.82 must be a dict such as dict\(sparsity=0.82\), or a list of gates'),
        ('sparsity=0.82', 'must be a dict such as'),
    ],
    ids=str,
)
def test_errors_name_what_is_wrong(halting: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(Backbone, halting=halting)


def test_one_block_has_no_place_for_two_gates() -> None:
    with pytest.raises(ValueError, match='the backbone has 1 block'):
        backbone(Backbone, num_blocks=1, halting=dict(sparsity=0.5, in_channels=8))

"""The trainings of the halting study: one SST, made faster in every way of the paper (Figure 2, Tables 4 and 5)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

from experiments.study import Row

BOUNDS = {75: (0.66, 0.78), 82: (0.73, 0.85), 89: (0.80, 0.92), 95: (0.90, 0.967)}
"""Mean sparsity in per cent over 8 attention layers -> shares of all tokens that have halted behind the modules before
the first block, for 2 layers, and the second, for 6."""
AVIT_BETA = 5.0
"""Shift of A-ViT's halting scores. With its default fine-tuning would be too short to halt anything, and from 0 on it
unlearns to halt."""
AVIT = {'avit-low': (0.02, '1.28: 71.9'), 'avit-high': (0.3, '1.55: 70.1')}
"""Row -> weight of the ponder loss, for a mean sparsity of about 0.5 and 0.7; the paper's figures at 0.48 and 0.72."""
CONTROL = 'sst'


@dataclass(frozen=True)
class HaltingRow(Row):
    """A row of the study; `paper` is the backbone's speed-up and the AP L1 of vehicles there.

    For ablations, `paper` is the AP and that of the full method.

    Attributes:
        method: Name of its line in the picture; '' for the control.
        label: Label of its point there.
        model: Settings that are merged into the model of the config.
        heads: (number, width) of the heads of every attention layer, or None: as in the config.
    """

    method: str = ''
    label: str = ''
    model: Mapping[str, Any] = field(default_factory=dict, hash=False)
    heads: tuple[int, int] | None = None


def halting_model(first: float, second: float, loss: str = 'nonuniform', recycle: bool = True) -> dict[str, Any]:
    """Settings of an SST that halts the shares `first` and, in all, `second` of the tokens before blocks 0 and 1."""
    unet = dict(type='HaltingUNet', in_channels=32, widths=(16, 32, 48))
    modules = (unet, first), (dict(type='HaltingMLP', in_channels=32), second)
    gates = [
        dict(block=block, module=module, threshold=0.01, bounds=(share, share))
        for block, (module, share) in enumerate(modules)
    ]
    backbone = dict(type='HaltingSST', halting=gates, recycle=recycle, score_scope='until_next')
    settings = dict(kind=loss, weight=0.5, alpha=2.0, gamma=4.0, positives='cell')
    return dict(type='HaltingSSTDetector', backbone=backbone, sparsity_loss=settings)


def avit_model(ponder_weight: float) -> dict[str, Any]:
    """Settings of an SST with an adapted A-ViT."""
    backbone = dict(type='AViTSST', channels=32, beta=AVIT_BETA, ponder_weight=ponder_weight)
    return dict(type='HaltingSSTDetector', backbone=backbone)


def _rows() -> dict[str, HaltingRow]:
    rows = {CONTROL: HaltingRow('SST, fine-tuned (control)', paper='1.00: 76.2')}
    paper = {75: '1.21: 76.1', 82: '1.37: 76.1', 89: '1.52: 75.4'}
    for percent, shares in BOUNDS.items():
        sparsity = f'{percent / 100:.2f}'
        model = halting_model(*shares)
        rows[f'halt-{percent}'] = HaltingRow(
            f'SST_halt, {sparsity}', 'SST_halt', sparsity, model, paper=paper.get(percent, '')
        )
    changes = {
        'no-recycling': ('without recycling', dict(recycle=False), '61.9 of 75.7'),
        'uniform': ('uniform sparsity loss', dict(loss='uniform'), '74.5 of 75.7'),
    }
    for name, (title, options, figure) in changes.items():
        model = halting_model(*BOUNDS[82], **options)
        rows[f'halt-82-{name}'] = HaltingRow(f'SST_halt, 0.82, {title}', title, '0.82', model, paper=figure)
    for name, (weight, figure) in AVIT.items():
        title, label = f'A-ViT adapted, ponder weight {weight:g}', f'ponder {weight:g}'
        rows[name] = HaltingRow(title, 'A-ViT adapted', label, avit_model(weight), paper=figure)
    for width, figure in ((8, '1.13: 73.8'), (4, '1.18: 70.4')):
        title = f'width scaling, heads of {width} instead of 16'
        rows[f'width-{width}'] = HaltingRow(title, 'width scaling', str(width), heads=(4, width), paper=figure)
    for number, figure in ((3, '1.16: 75.5'), (2, '1.45: 73.8')):
        title = f'head scaling, {number} heads instead of 4'
        rows[f'heads-{number}'] = HaltingRow(title, 'head scaling', str(number), heads=(number, 16), paper=figure)
    return rows


RUNS = _rows()
"""Name -> training."""


def row_config(base: Config, row: HaltingRow) -> Config:
    """A copy of `base`, the config of the SST without halting, with the model of a row."""
    config = copy.deepcopy(base)
    config.merge_from_dict({'model': copy.deepcopy(dict(row.model))})
    if row.heads is not None:
        number, width = row.heads
        backbone = config.model.backbone
        backbone.nhead = [number] * len(backbone.nhead)
        backbone.layer_cfg = {**backbone.get('layer_cfg', {}), 'head_dims': width}
    return config

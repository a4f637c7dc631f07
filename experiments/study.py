"""What the studies have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from mmengine.config import Config


def dataset_length(config: Config) -> int:
    """How many samples the training set has."""
    from mmdet3d.registry import DATASETS

    settings = copy.deepcopy(config.train_dataloader.dataset)
    settings.pipeline = []
    settings.pop('indices', None)
    return len(DATASETS.build(settings))


def by_seed(rows: Iterable[Mapping[str, Any]], figure: str) -> str:
    """'12.3 / 12.9 (12.6)': per cent of every seed, and their mean."""
    values = [100 * row[figure] for row in sorted(rows, key=lambda row: row['seed'])]
    if len(values) == 1:
        return f'{values[0]:.1f}'
    return f'{" / ".join(f"{value:.1f}" for value in values)} ({mean(values):.1f})'

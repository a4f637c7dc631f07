"""Upgrades by GPQ: queries are removed while the detector is fine-tuned, then the small model is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS
from torch import nn

from mmprune3d import adapters
from mmprune3d.adapters.learned_queries import find_queries
from mmprune3d.config_types import only
from mmprune3d.engine.hooks import GPQHook
from mmprune3d.pruning.gpq import GPQPlan

from .compact import GPQ_HOOK, compact
from .compare import KeyComparison, SideBySide
from .finetune import PlanWithFineTuning
from .steps import Made


@dataclass(frozen=True)
class QueryPruning(PlanWithFineTuning):
    """GPQ on a trained detector."""

    plan: GPQPlan

    def check_config(self, config: Config) -> None:
        """Raises ValueError if the config has a GPQHook already."""
        if only(config.get('custom_hooks'), GPQHook, HOOKS):
            raise ValueError(
                f'the config has a {GPQ_HOOK} already: leave it out of custom_hooks, or train with tools/train.py and '
                'then run "mmprune3d compact"'
            )

    def check_model(self, model: nn.Module, config: Config) -> None:
        """Raises ValueError if no adapter knows the queries or the decoder."""
        adapters.stages(model)
        find_queries(model)

    def config(self, config: Config, checkpoint: Path, out: Path) -> Config:
        """`config`, set up to fine-tune in ``out/finetune`` while queries are removed.

        Raises:
            ValueError: If the config has no training set, or has a GPQHook already.
        """
        self.check_config(config)
        hook = {name: value for name, value in self.plan.to_dict().items() if name != 'method'}
        return self.tuned(config, checkpoint, out, [dict(type=GPQ_HOOK, **hook)])

    def make(self, config: Config, checkpoint: Path, out: Path) -> Made:
        """Fine-tunes in ``out/finetune`` and compacts; a second call goes on where the first one stopped.

        Args:
            config: Config of the unpruned detector.
            checkpoint: Its weights.
            out: Folder of the upgrade.

        Returns:
            The small detector, with the user's config but for the number of queries.

        Raises:
            ValueError: If config or plan do not fit, or `out` has another fine-tuning.
        """
        tuned = self.config(config, checkpoint, out)
        self.train(tuned)
        small = compact(tuned, self.finished(out), (self.plan.target,))[0]
        config = copy.deepcopy(config)
        config.model = small.config.model
        return Made(config, small.checkpoint)

    def comparison(self, model: nn.Module, config: Config) -> Callable[..., SideBySide]:
        """Queries and keys are counted."""
        return KeyComparison

    def evidence(self) -> dict[str, Any]:
        """The plan and the settings of fine-tuning, beside the ``plan`` of keys."""
        return {'gpq': self.to_dict()}

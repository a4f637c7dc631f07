"""Randomness that survives an interruption."""

from __future__ import annotations

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmprune3d.pruning import checks

from .plan_arguments import names_arguments


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Makes what is random inside of training steps (dropout, denoising noise) a function of seed and iteration.

    mmengine stores no random state in checkpoints, so a resumed run draws other numbers than an uninterrupted one. With
    this hook it draws the same. Processes draw different numbers. What data loaders draw is not concerned.

    Args:
        seed: Base of all seeds, 0 to 2^32 - 1.

    Raises:
        ValueError: If it is no such number.
    """

    priority = 'VERY_HIGH'

    @names_arguments
    def __init__(self, seed: int = 0) -> None:
        self.seed = checks.seed('IterationSeedHook: seed', seed)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Seeds Python, NumPy and torch."""
        seed = ((self.seed * 1_000_003 + runner.iter) * 1009 + get_rank()) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

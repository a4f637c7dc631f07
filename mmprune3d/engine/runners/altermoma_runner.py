"""A runner that prunes a detector before it trains it: two lines in an existing config."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from mmengine.config import Config
from mmengine.registry import LOOPS, RUNNERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmprune3d.config_types import class_of, dotted
from mmprune3d.engine.loops.settings import PruningSettings

if TYPE_CHECKING:  # Python 3.10 has no Self
    from typing import Self

PRUNING_LOOPS: dict[type, str] = {EpochBasedTrainLoop: 'PruningLoop', IterBasedTrainLoop: 'PruningIterLoop'}
"""The loop of a config -> the loop that prunes first."""


@RUNNERS.register_module(name=['PruningRunner', 'AlterMOMARunner'])
class PruningRunner(Runner):
    """A runner whose training prunes a fusion detector first.

    It needs no script of its own: mmdet3d's ``tools/train.py`` runs its configs. In the config, beside ``load_from``,
    which names the converged detector::

        runner_type = 'PruningRunner'
        pruning = dict(criterion='altermoma', sparsity=0.8)

    ``pruning`` has the settings that `PruningSettings` lists. ``sparsity`` must be given; the criterion is 'altermoma'
    if none is, by both names of the runner: it is also registered as 'AlterMOMARunner'. The config that is written to
    the work folder says the same with ``train_cfg=dict(type='PruningLoop', ...)``, for any runner.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> Self:
        """A runner whose training loop prunes first.

        Raises:
            ValueError: If ``pruning`` is missing or has unknown settings, or the training loop is not known.
        """
        return super().from_cfg(with_pruning_loop(cfg))


AlterMOMARunner = PruningRunner
"""The same runner by the name of its default criterion, for older code; in configs both names are registered."""


def with_pruning_loop(cfg: Config) -> Config:
    """`cfg` without ``runner_type`` and ``pruning``, which its ``train_cfg`` has instead; `cfg` stays as it is."""
    cfg = copy.deepcopy(cfg)
    cfg.pop('runner_type', None)
    settings = cfg.pop('pruning', None)
    if settings is None:
        raise ValueError('PruningRunner: the config has no pruning; write pruning = dict(sparsity=0.8)')
    PruningSettings.from_dict(settings)
    train = dict(cfg.get('train_cfg') or {})
    if not train:
        return cfg
    kind = train.pop('type', None)
    by_epoch = train.pop('by_epoch', True)
    plain = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    loop = plain if kind is None else class_of(kind, LOOPS)
    if loop not in PRUNING_LOOPS:  # no subclasses: what they do would be lost
        valid = ', '.join(one.__name__ for one in PRUNING_LOOPS)
        raise ValueError(f'PruningRunner: train_cfg has the loop {dotted(kind)}; valid are {valid}')
    cfg.train_cfg = dict(type=PRUNING_LOOPS[loop], **train, **settings)
    return cfg

"""tgGBC as three lines in a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import HOOKS

from mmprune3d.pruning.key_plan import Amount
from mmprune3d.pruning.tggbc import TgGBCPlan

from .key_pruning_hook import KeyPruningHook
from .plan_arguments import takes_settings_of


@HOOKS.register_module()
class TgGBCHook(KeyPruningHook):
    """tgGBC: removes the cross-attention keys that the most confident queries attend to least (paper section 3.3).

    Keys are removed between decoder layers while the detector is validated or tested, and if wanted while it is
    trained. The weights do not change; no training is needed. In a config::

        custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)
        custom_hooks = [dict(type='TgGBCHook', r=12000, n=2)]

    Args:
        r: Number of keys to remove in total (an int), or the share of the valid keys of each forward pass (a float from
            0.0 to below 1.0), spread over `n` layers; or a list with the amount after each decoder layer, from the
            first. Required.
        n: Number of decoder layers that are followed by pruning, counted from the first; at most the number of layers
            minus 1. Default: 2, or the length of a list `r`.
        q: Number of queries to remove in total, the least confident ones, over the same `n` layers (appendix D.2); only
            in detectors that allow it, and not while training. Default: 0.
        k: Number of queries whose scores count, the most confident ones; 0 means all. Default: 175, or all with
            ``score='none'``.
        activation: What turns the logits of the head into scores: ``'sigmoid'`` for heads with a focal loss,
            ``'softmax'`` for heads whose last column is the background. Default: ``'sigmoid'``.
        score: What stands for the classes of a query: ``'max'``, ``'mean'`` or ``'min'`` of its scores (Table 5), or
            ``'none'``: all queries count alike (Eq. 10). Default: ``'max'``.
        t: A layer that attends to `t` valid keys or fewer is not followed by pruning (appendix D.5). Default: 0.
        train: None: only validation and test are pruned. Or how pruning grows during training, a dict such as
            ``dict(warmup=1, heating=2)``: nothing is removed for `warmup` epochs, then linearly more for `heating`
            epochs, then everything; with ``by_epoch=False`` the numbers are iterations (appendix D.4). Default: None.

    Raises:
        ValueError: For unknown, missing or invalid settings, and as `KeyPruningHook`.
        RuntimeError: See `KeyPruningHook`.
    """

    @takes_settings_of(TgGBCPlan)
    def __init__(
        self,
        r: Amount,
        n: int | None = None,
        q: int = 0,
        k: int | None = None,
        activation: str = 'sigmoid',
        score: str = 'max',
        t: int = 0,
        train: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(TgGBCPlan(r=r, n=n, q=q, k=k, activation=activation, score=score, t=t), train)

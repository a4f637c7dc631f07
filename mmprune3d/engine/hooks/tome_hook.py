"""ToMe as three lines in a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import HOOKS

from mmprune3d.pruning.key_plan import Amount
from mmprune3d.pruning.tome import ToMePlan

from .key_pruning_hook import KeyPruningHook
from .plan_arguments import takes_settings_of


@HOOKS.register_module()
class ToMeHook(KeyPruningHook):
    """ToMe: merges the cross-attention keys that are most alike, the method that tgGBC is compared with (section 4.3).

    Keys are merged between decoder layers while the detector is validated or tested, and if wanted while it is trained.
    Bipartite matching merges at most half of a layer's keys. Padded keys and attention masks are refused.

    Args:
        r: Number of keys to merge away in total (an int), or the share of the keys of each forward pass (a float from
            0.0 to below 1.0), spread over `n` layers; or a list with the amount after each decoder layer, from the
            first. Required.
        n: Number of decoder layers that are followed by merging, counted from the first; at most the number of layers
            minus 1. Default: 2, or the length of a list `r`.
        q: Number of queries to merge away in total over the same `n` layers (section 4.3.3 of the GPQ paper); only in
            detectors that allow it, and not while training. Default: 0.
        train: None: only validation and test are pruned. Or how merging grows during training, a dict such as
            ``dict(warmup=1, heating=2)``, in epochs; with ``by_epoch=False`` in iterations. Default: None.

    Raises:
        ValueError: For unknown, missing or invalid settings, and as `KeyPruningHook`.
        RuntimeError: See `KeyPruningHook`.
    """

    @takes_settings_of(ToMePlan)
    def __init__(self, r: Amount, n: int | None = None, q: int = 0, train: Mapping[str, Any] | None = None) -> None:
        super().__init__(ToMePlan(r=r, n=n, q=q), train)

"""SST with dynamic token halting: two forward passes whose results are equal up to rounding error.

Training computes every token and hides halted ones from the others (the equivalent differentiable forward pass, section
4.5), so that decisions have a gradient. At run time halted tokens are removed (section 4.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from mmprune3d.config_types import is_a
from mmprune3d.layers import halting as _registered  # noqa: F401  (registers the modules that configs name)
from mmprune3d.pruning import checks
from mmprune3d.pruning.halting import (
    HaltingPlan,
    HaltingRecord,
    HaltingStep,
    check_halting_rule,
    keep_by_rank,
    straight_through,
    would_be_kept,
)

from .backbone import SSTBackbone
from .input_layer import WindowedTokens

PATHS = ('edf', 'sparse')
SCORE_SCOPES = ('until_next', 'block', 'layer')
GATE_KEYS = ('block', 'module', 'threshold', 'bounds', 'relative', 'fuse')
PLAN_KEYS = ('sparsity', 'threshold', 'slack', 'in_channels')
"""Settings of a ``HaltingPlan`` that are about gates; the others are about the loss, which is the detector's."""


class HaltingGate(nn.Module):
    """A halting module before a block: a network that scores tokens, and the rule by which some of them halt.

    Args:
        block: Index of the block that it precedes.
        module: Config of the scoring network: ``HaltingUNet``, ``HaltingMLP`` or another with their signature.
        embed_dims: Width of tokens.
        threshold: Score u at and above which tokens go on.
        bounds: Smallest and largest share of tokens that have halted after this gate (section A.2.1).
        relative: Take `bounds` as shares of the tokens that reach the gate instead of all tokens of the sample.
        fuse: Whether to add the latent features of the scoring network, if it has any, to the tokens (section 6.1),
            through a linear layer that is initialized with 0.

    Raises:
        ValueError: If threshold or bounds are not within 0 to 1, another argument has a wrong type, or the scoring
            network reads more features than tokens have.
    """

    def __init__(
        self,
        block: int,
        module: Mapping[str, Any],
        embed_dims: int,
        threshold: float = 0.01,
        bounds: Sequence[float] = (0.0, 1.0),
        relative: bool = False,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        self.threshold, self.bounds = check_halting_rule(threshold, bounds)
        self.block = checks.count('halting: block', block)
        self.relative = checks.flag('halting: relative', relative)
        fuse = checks.flag('halting: fuse', fuse)
        if not isinstance(module, Mapping) or 'type' not in module:
            raise ValueError(f"halting: module={checks.shown(module)} must be a dict such as dict(type='HaltingMLP')")
        module = dict(module)
        if is_a(module, 'HaltingUNet', MODELS):
            module.setdefault('token_channels', embed_dims)
        for name in ('in_channels', 'token_channels'):
            if name in module:
                _check_width(name, checks.count(f'halting: {name}', module[name], 1), embed_dims)
        self.scorer = MODELS.build(module)
        _check_width('in_channels', getattr(self.scorer, 'in_channels', 1), embed_dims)
        self.fuse = nn.Linear(self.scorer.latent_channels, embed_dims) if fuse and self.scorer.latent_channels else None
        if self.fuse is not None:
            nn.init.zeros_(self.fuse.weight)
            nn.init.zeros_(self.fuse.bias)

    def forward(
        self, feats: Tensor, coords: Tensor, batch_size: int, bev_shape: Sequence[int], visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores the tokens of a batch.

        Args:
            feats: Features of the tokens [N, C].
            coords: Cells of the tokens [N, 4], integers: sample, z, y, x.
            batch_size: Number of samples.
            bev_shape: Number of cells along y, x.
            visible: Mask [N], 0 for tokens that must be hidden from networks that read neighbouring cells; None: all
                tokens are visible.

        Returns:
            Scores [N], tokens with the latent features added [N, C], and the map of the network [B, channels, ny, nx]
            or None.
        """
        seen = feats if visible is None or self.scorer.token_wise else feats * visible[:, None]
        scores, latent, bev_map = self.scorer(seen, coords, batch_size, bev_shape)
        return scores, feats if self.fuse is None else feats + self.fuse(latent), bev_map

    def decide(self, scores: Tensor, sample: Tensor, totals: Tensor) -> Tensor:
        """Decides which of the tokens [K] that reached the gate go on: bool [K]; `totals` [B] counts all tokens."""
        if self.relative:
            totals = torch.bincount(sample, minlength=len(totals))
        return keep_by_rank(scores.detach(), sample, totals, self.threshold, self.bounds)


def _check_width(name: str, width: int, embed_dims: int) -> None:
    """Raises ValueError if a scoring network reads more features than tokens have, or expects another number."""
    if width > embed_dims or (name == 'token_channels' and width != embed_dims):
        valid = f'1 to {embed_dims}' if name == 'in_channels' else f'{embed_dims}'
        raise ValueError(f'halting: {name}={width}, but tokens have {embed_dims} features; valid: {valid}')


def gates_of(halting: Any, embed_dims: int, num_blocks: int) -> Sequence[Mapping[str, Any]]:
    """The gates, as a list of configs, that the argument `halting` of :class:`HaltingSST` asks for.

    Args:
        halting: A dict of settings such as ``dict(sparsity=0.82)``, or a list of gates, which is returned as it is.
        embed_dims: Width of the tokens of the backbone.
        num_blocks: Number of its blocks.

    Raises:
        ValueError: If it is neither, or a setting is unknown or does not fit the backbone.
    """
    if isinstance(halting, (list, tuple)):
        return halting
    if not isinstance(halting, Mapping):
        raise ValueError(
            f'halting={checks.shown(halting)} must be a dict such as dict(sparsity=0.82), or a list of gates, a dict '
            'for each'
        )
    if 'loss' in halting or 'loss_weight' in halting:
        raise ValueError(
            'halting: the loss is a setting of the detector: write '
            "model=dict(type='HaltingSSTDetector', sparsity_loss=dict(kind='nonuniform', weight=0.5), ...); valid in "
            f'halting are {", ".join(PLAN_KEYS)}'
        )
    settings = checks.settings('halting', halting, PLAN_KEYS, 'dict(sparsity=0.82)', ignored=('method',))
    return HaltingPlan.from_dict(settings).gates(embed_dims, num_blocks)


@MODELS.register_module()
class HaltingSST(SSTBackbone):
    """SST with halting modules, weighted attention and token recycling (Dynamic Token Halting, ICCV 2023).

    In a config, ``halting=dict(sparsity=0.82)`` is enough::

        backbone=dict(type='HaltingSST', halting=dict(sparsity=0.82), ...)

    Args:
        halting: Either a dict with the share of tokens to halt, ``dict(sparsity=0.82)``, which makes the two gates of
            the paper (section 6.1) for the width and the number of blocks of this backbone: a ``HaltingUNet`` before
            block 0 and a ``HaltingMLP`` before block 1. Its settings are `sparsity` (share of halted tokens, averaged
            over all attention layers; required), `threshold` (0.01), `slack` (0) and `in_channels` (32), see
            :class:`~mmprune3d.pruning.halting.HaltingPlan`. Or the gates themselves, a list with a dict for each:
            ``block``, ``module`` and the other arguments of :class:`HaltingGate`.
        recycle: Put halted tokens on the map with the features they had (section 4.4); False: they vanish.
        score_scope: How long the scores of a gate weigh the keys: ``'until_next'`` gate, for its ``'block'``, or for
            its first ``'layer'``. Halted tokens are gone in any case.
        unet_to_bev: Add the map of the first module that has one to the bird's-eye-view map (halt++, section A.2.3),
            through a 1 x 1 convolution that starts at 0.
        **kwargs: Arguments of :class:`~mmprune3d.models.sst.backbone.SSTBackbone`. Here ``halted_gradient`` of
            `layer_cfg` is ``'difference'`` by default: in a trained SST the logits of halted keys can be more than 30
            above those of the remaining keys, and the gradient of the derivative then has a norm of 1e15.

    Raises:
        ValueError: If a setting of `halting` is unknown or does not fit the backbone, a gate has unknown keys or stands
            before no block, or two before the same, or tokens influence each other outside of attention (``use_bn``),
            which would make the two paths differ.
    """

    def __init__(
        self,
        halting: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        recycle: bool = True,
        score_scope: str = 'until_next',
        unet_to_bev: bool = False,
        **kwargs: Any,
    ) -> None:
        layer_cfg = dict(kwargs.pop('layer_cfg', None) or {})
        if layer_cfg.get('backend') != 'explicit':
            layer_cfg.setdefault('halted_gradient', 'difference')
        super().__init__(layer_cfg=layer_cfg, **kwargs)
        if score_scope not in SCORE_SCOPES:
            raise ValueError(f'unknown score_scope {checks.shown(score_scope)}; valid are {", ".join(SCORE_SCOPES)}')
        if layer_cfg.get('use_bn'):
            raise ValueError('halting needs layer norm: with use_bn=True halted tokens would change the statistics')
        self.recycle, self.score_scope = checks.flag('recycle', recycle), score_scope
        gates = gates_of(halting, self.embed_dims, num_blocks=len(self.block_list))
        self.halting = nn.ModuleList(self._gate(config) for config in gates)
        blocks = [gate.block for gate in self.halting]
        valid = range(len(self.block_list))
        if not blocks or sorted(set(blocks)) != blocks or not set(blocks) <= set(valid):
            raise ValueError(f'gates stand before blocks {blocks}; give at least one, ascending, of {list(valid)}')
        self.to_bev_map = None
        if checks.flag('unet_to_bev', unet_to_bev):
            widths = [gate.scorer.latent_channels for gate in self.halting if gate.scorer.latent_channels]
            if not widths:
                raise ValueError('unet_to_bev=True needs a gate whose module has a map, such as HaltingUNet')
            self.to_bev_map = nn.Conv2d(widths[0], self.embed_dims, 1)
            nn.init.zeros_(self.to_bev_map.weight)
            nn.init.zeros_(self.to_bev_map.bias)

    def _gate(self, config: Any) -> HaltingGate:
        if not isinstance(config, Mapping) or set(config) - set(GATE_KEYS) or not {'block', 'module'} <= set(config):
            found = f'has keys {sorted(map(str, config))}' if isinstance(config, Mapping) else checks.shown(config)
            raise ValueError(f'halting: a gate {found}; it needs block and module, valid: {", ".join(GATE_KEYS)}')
        return HaltingGate(embed_dims=self.embed_dims, **config)

    def forward(self, tokens: WindowedTokens, path: str = 'sparse', return_record: bool = False) -> Any:
        """Computes the map from the tokens of a batch.

        Args:
            tokens: Tokens from the input layer.
            path: ``'edf'``: compute all tokens, differentiable; ``'sparse'``: compute only tokens that have not halted.
                The results are equal, in training and evaluation mode.
            return_record: Whether to return the halting decisions as well.

        Returns:
            A list with one map [B, C, ny, nx] (without `to_bev`, tokens [N, C]), or this list and a ``HaltingRecord``.

        Raises:
            ValueError: If `path` is unknown.
        """
        if path not in PATHS:
            raise ValueError(f'unknown path {path!r}; valid are {", ".join(PATHS)}')
        run = self._edf if path == 'edf' else self._sparse
        feats, steps, bev_map = run(tokens)
        record = HaltingRecord(tuple(steps), tokens.coords, tokens.batch_size, self.num_layers)
        if self.to_bev:
            added = None if self.to_bev_map is None else self.to_bev_map(bev_map)
            feats = self.to_map(feats, tokens.coords, tokens.batch_size, added)
        return ([feats], record) if return_record else [feats]

    def forward_with_record(self, tokens: WindowedTokens, path: str = 'sparse') -> tuple[list[Tensor], HaltingRecord]:
        """Computes the map and the record of halting decisions; see :meth:`forward`."""
        return self(tokens, path, return_record=True)

    def _edf(self, tokens: WindowedTokens) -> tuple[Tensor, list[HaltingStep], Tensor | None]:
        """Passes every token through every block; halted tokens have weight 0 as keys (Eq. 8 to 10)."""
        feats, sample, plans = self.embed(tokens), tokens.coords[:, 0], self.plan(tokens)
        totals = torch.bincount(sample, minlength=tokens.batch_size)
        alive = torch.ones_like(sample, dtype=torch.bool)
        live = feats.new_ones(len(feats))  # k_{0:l} of the paper: 1 for tokens that have not halted
        recycled, steps, bev_map, gates = torch.zeros_like(feats), [], None, {gate.block: gate for gate in self.halting}
        weights = (None, None)
        for number in range(len(self.block_list)):
            if number in gates:
                gate = gates[number]
                scores, feats, new_map = gate(feats, tokens.coords, tokens.batch_size, self.output_shape, live)
                bev_map = new_map if bev_map is None else bev_map
                rows = alive.nonzero().squeeze(1)
                keep = gate.decide(scores[rows], sample[rows], totals)
                steps.append(HaltingStep(2 * number, rows, scores[rows], keep))
                alive = alive.index_copy(0, rows, keep)
                # Tokens that were halted earlier get a decision too: the product k_{0:l} needs it for their gradient.
                passes = would_be_kept(scores.detach(), sample, alive, tokens.batch_size)
                still_live = live * straight_through(passes, scores)
                if self.recycle:
                    # 1 exactly for the tokens that halt here, which keep their present features; differentiable.
                    recycled = recycled + (live - still_live)[:, None] * feats
                live = still_live
                weights = self._weights(scores * live, live)
            feats = self.run_block(number, feats, tokens.positions, plans, weights)
            weights = self._after_block(weights, live if steps else None)
        return recycled + live[:, None] * feats, steps, bev_map

    def _sparse(self, tokens: WindowedTokens) -> tuple[Tensor, list[HaltingStep], Tensor | None]:
        """Passes only the remaining tokens through each block; halted tokens keep their features (section 4.4)."""
        feats, plans, left = self.embed(tokens), None, tokens
        totals = torch.bincount(tokens.coords[:, 0], minlength=tokens.batch_size)
        rows = torch.arange(len(feats), device=feats.device)
        result, steps, bev_map, gates = torch.zeros_like(feats), [], None, {gate.block: gate for gate in self.halting}
        weights = (None, None)
        for number in range(len(self.block_list)):
            if number in gates:
                gate = gates[number]
                scores, feats, new_map = gate(feats, left.coords, left.batch_size, self.output_shape)
                bev_map = new_map if bev_map is None else bev_map
                keep = gate.decide(scores, left.coords[:, 0], totals)
                steps.append(HaltingStep(2 * number, rows, scores, keep))
                stay, leave = keep.nonzero().squeeze(1), (~keep).nonzero().squeeze(1)
                if self.recycle:
                    result = result.index_copy(0, rows[leave], feats[leave])
                rows, feats, left, plans = rows[stay], feats[stay], left.select(stay), None
                weights = self._weights(scores[stay], None)
            if len(rows) == 0:
                continue
            plans = self.plan(left) if plans is None else plans
            feats = self.run_block(number, feats, left.positions, plans, weights)
            weights = self._after_block(weights, None)
        return result.index_copy(0, rows, feats), steps, bev_map

    def _weights(self, scores: Tensor, live: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Weights of the keys in both layers of the block that follows a gate."""
        return scores, live if self.score_scope == 'layer' else scores

    def _after_block(
        self, weights: tuple[Tensor | None, Tensor | None], live: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Weights of the keys in the blocks after that one, up to the next gate."""
        return weights if self.score_scope == 'until_next' else (live, live)

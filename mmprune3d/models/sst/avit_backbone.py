"""SST with A-ViT's adaptive tokens, the baseline of dynamic token halting (section A.2.2), on the same two paths.

Unlike there, no score weighs the keys and no gradient goes through a decision, so both paths have the same gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmprune3d.ops.windows import WindowPlan
from mmprune3d.pruning import checks
from mmprune3d.pruning.avit import AViTRecord, check_eps, depth_prior_loss, ponder_loss, ponder_step
from mmprune3d.pruning.halting import HaltingStep

from .backbone import SSTBackbone
from .halting_backbone import PATHS
from .input_layer import WindowedTokens

LAYERS_PER_UNIT = {'block': 2, 'layer': 1}
OUTPUTS = ('mean', 'hard')


def at_least_float32(values: Tensor) -> torch.dtype:
    """What sums over units are kept in."""
    return torch.promote_types(values.dtype, torch.float32)


class AViTGate(nn.Module):
    """Halting scores h = sigmoid(gamma w f + beta) of tokens; w is learned, f are their first features.

    A-ViT reads one feature. With w drawn with variance 1 / channels the argument starts out as widely spread as there.

    Args:
        channels: How many features it reads.
        gamma: Scale.
        beta: Shift.
    """

    def __init__(self, channels: int, gamma: float, beta: float) -> None:
        super().__init__()
        self.gamma, self.beta = gamma, beta
        self.weight = nn.Parameter(torch.empty(channels))
        nn.init.normal_(self.weight, std=channels**-0.5)

    def forward(self, feats: Tensor) -> Tensor:
        """[K], float32 or better, from tokens [K, C].

        As a sum of products: autocast would round a matrix product to 16 bits. Scores are added up and compared with 1,
        near which bfloat16 has steps of 0.004.
        """
        read = feats[:, : len(self.weight)].to(at_least_float32(feats))
        return (self.gamma * (read * self.weight).sum(1) + self.beta).sigmoid()


@MODELS.register_module()
class AViTSST(SSTBackbone):
    """SST whose tokens halt as in A-ViT; see :mod:`mmprune3d.pruning.avit` for the equations.

    ``HaltingSSTDetector`` trains it with the losses of `regularization`. How much is halted follows from `beta` and
    `ponder_weight`.

    Args:
        channels: Features that a gate reads; the paper takes 32 where A-ViT takes 1.
        gamma: Scale of a gate.
        beta: Shift of a gate: at first almost nothing halts.
        eps: What may be missing from 1 when a token halts.
        granularity: Decide after each ``'block'`` or after each attention ``'layer'``.
        output: What a token leaves on the map: the ``'mean'`` of its features by the weights p, which trains the gates
            for detection; or ``'hard'``, the features it had when it halted, where only `regularization` does.
        ponder_weight: Of the mean ponder cost.
        prior_weight: Of the prior on depths.
        prior_depth: Its centre, in units (blocks or layers); None: two thirds of them, as A-ViT's 8 of 12.
        prior_width: Its standard deviation, in units.
        **kwargs: Arguments of :class:`~mmprune3d.models.sst.backbone.SSTBackbone`.

    Raises:
        ValueError: If an option is unknown or out of range, there is but one block and so no decision, or tokens
            influence each other outside of attention (``use_bn``), which would make the two paths differ.
    """

    def __init__(
        self,
        channels: int = 32,
        gamma: float = 5.0,
        beta: float = -10.0,
        eps: float = 0.01,
        granularity: str = 'block',
        output: str = 'mean',
        ponder_weight: float = 5e-4,
        prior_weight: float = 1e-3,
        prior_depth: float | None = None,
        prior_width: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_eps(eps)
        if not isinstance(granularity, str) or granularity not in LAYERS_PER_UNIT:
            raise ValueError(f'unknown granularity {checks.shown(granularity)}; valid are {", ".join(LAYERS_PER_UNIT)}')
        if output not in OUTPUTS:
            raise ValueError(f'unknown output {checks.shown(output)}; valid are {", ".join(OUTPUTS)}')
        if (kwargs.get('layer_cfg') or {}).get('use_bn'):
            raise ValueError('halting needs layer norm: with use_bn halted tokens would count in the statistics')
        if checks.count('channels', channels) not in range(1, self.embed_dims + 1):
            raise ValueError(f'channels={channels} must be between 1 and the width of tokens, {self.embed_dims}')
        gamma, beta = (checks.number(*pair, least=-math.inf) for pair in (('gamma', gamma), ('beta', beta)))
        prior_width = checks.number('prior_width', prior_width, above=0)
        self.eps, self.granularity, self.output = eps, granularity, output
        self.num_units = self.num_layers // LAYERS_PER_UNIT[granularity]
        if self.num_units < 2:
            raise ValueError('with one block there is nothing to decide: num_blocks must be at least 2')
        self.ponder_weight = checks.number('ponder_weight', ponder_weight)
        self.prior_weight = checks.number('prior_weight', prior_weight)
        self.prior_depth = self.num_units * 2 / 3 if prior_depth is None else checks.number('prior_depth', prior_depth)
        self.prior_width = prior_width
        self.halting = nn.ModuleList(AViTGate(channels, gamma, beta) for _ in range(self.num_units - 1))

    def forward(self, tokens: WindowedTokens, path: str = 'sparse', return_record: bool = False) -> Any:
        """Tokens of a batch to a map.

        Args:
            tokens: From the input layer.
            path: ``'edf'``: compute all tokens and hide halted ones; ``'sparse'``: compute what is left. The results
                and their gradients are equal, whatever mode the module is in.
            return_record: Also say what halted.

        Returns:
            One map [B, C, ny, nx] in a list (without `to_bev`, tokens [N, C]), or that and an ``AViTRecord``.

        Raises:
            ValueError: If `path` is unknown.
        """
        if path not in PATHS:
            raise ValueError(f'unknown path {path!r}; valid are {", ".join(PATHS)}')
        feats, steps, scores = (self._edf if path == 'edf' else self._sparse)(tokens)
        record = AViTRecord(tuple(steps), tokens.coords, tokens.batch_size, self.num_layers, tuple(scores))
        if self.to_bev:
            feats = self.to_map(feats, tokens.coords, tokens.batch_size)
        return ([feats], record) if return_record else [feats]

    def forward_with_record(self, tokens: WindowedTokens, path: str = 'sparse') -> tuple[list[Tensor], AViTRecord]:
        """`forward` with the record."""
        return self(tokens, path, return_record=True)

    def regularization(self, record: AViTRecord) -> dict[str, Tensor]:
        """Weighted losses of a forward pass besides those of detection: ``loss_ponder`` and ``loss_prior``."""
        prior = depth_prior_loss(record, self.prior_depth, self.prior_width)
        return dict(loss_ponder=self.ponder_weight * ponder_loss(record), loss_prior=self.prior_weight * prior)

    def _edf(self, tokens: WindowedTokens) -> tuple[Tensor, list[HaltingStep], list[Tensor]]:
        """Every token through every unit; halted ones weigh nothing as keys."""
        feats, plans = self.embed(tokens), self.plan(tokens)
        alive = torch.ones(len(feats), dtype=torch.bool, device=feats.device)
        spent, result = feats.new_zeros(len(feats), dtype=at_least_float32(feats)), 0
        steps, all_scores, weights = [], [], None
        for unit in range(self.num_units):
            feats = self._run(unit, feats, tokens, plans, weights)
            part, spent, keep, scores = self._decide(unit, feats, spent)
            result = result + part * alive[:, None]
            if scores is not None:
                rows = alive.nonzero().squeeze(1)
                steps.append(self._step(unit, rows, spent[rows], keep[rows]))
                all_scores.append(scores[rows])
                alive = alive & keep
                weights = alive.to(feats)
        return result.to(feats.dtype), steps, all_scores

    def _sparse(self, tokens: WindowedTokens) -> tuple[Tensor, list[HaltingStep], list[Tensor]]:
        """Only what is left through each unit; the sum of what tokens leave on the map goes along."""
        feats, plans, left = self.embed(tokens), None, tokens
        rows = torch.arange(len(feats), device=feats.device)
        spent, result = feats.new_zeros(len(feats), dtype=at_least_float32(feats)), None
        steps, all_scores = [], []
        for unit in range(self.num_units):
            if len(rows):
                plans = self.plan(left) if plans is None else plans
                feats = self._run(unit, feats, left, plans, None)
            part, spent, keep, scores = self._decide(unit, feats, spent)
            result = part if result is None else result.index_add(0, rows, part)
            if scores is not None:
                steps.append(self._step(unit, rows, spent, keep))
                all_scores.append(scores)
                stay = keep.nonzero().squeeze(1)
                if len(stay) < len(rows):
                    rows, feats, spent, left, plans = rows[stay], feats[stay], spent[stay], left.select(stay), None
        return result.to(feats.dtype), steps, all_scores

    def _run(
        self,
        unit: int,
        feats: Tensor,
        tokens: WindowedTokens,
        plans: tuple[WindowPlan, ...],
        weights: Tensor | None,
    ) -> Tensor:
        """A block, or one of its layers, on tokens [K, C] with weights [K] of the keys."""
        if self.granularity == 'block':
            return self.run_block(unit, feats, tokens.positions, plans, (weights, weights))
        number, shift = divmod(unit, 2)
        layer = self.block_list[number].encoder_list[shift]
        if number in self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(layer, feats, tokens.positions[shift], plans[shift], weights, use_reentrant=False)
        return layer(feats, tokens.positions[shift], plans[shift], weights)

    def _decide(self, unit: int, feats: Tensor, spent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What tokens leave on the map after a unit [K, C], sums of scores [K], who goes on [K], and scores [K]."""
        scores = self.halting[unit](feats) if unit < len(self.halting) else None
        share, spent, keep = ponder_step(spent, scores, self.eps)
        share = share if self.output == 'mean' else ~keep
        return share.to(spent)[:, None] * feats, spent, keep, scores

    def _step(self, unit: int, rows: Tensor, spent: Tensor, keep: Tensor) -> HaltingStep:
        return HaltingStep((unit + 1) * LAYERS_PER_UNIT[self.granularity], rows, (1 - spent).clamp(min=0), keep)

"""SST with the adaptive tokens of A-ViT, the baseline of dynamic token halting (section A.2.2), in two equal passes.

Unlike in dynamic token halting, scores do not weight the keys and no gradient passes through a decision, so both
forward passes also have the same gradient.
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
    """The dtype in which sums over units are accumulated: that of `values`, but at least float32."""
    return torch.promote_types(values.dtype, torch.float32)


class AViTGate(nn.Module):
    """Halting scores h = sigmoid(gamma w f + beta) of tokens, with learned w and the first features f of a token.

    A-ViT reads one feature. The entries of w are drawn with variance 1 / channels, so that w f initially has the same
    variance as there.

    Args:
        channels: Number of features that are read.
        gamma: Scale of the sigmoid's argument.
        beta: Shift of the sigmoid's argument.
    """

    def __init__(self, channels: int, gamma: float, beta: float) -> None:
        super().__init__()
        self.gamma, self.beta = gamma, beta
        self.weight = nn.Parameter(torch.empty(channels))
        nn.init.normal_(self.weight, std=channels**-0.5)

    def forward(self, feats: Tensor) -> Tensor:
        """Computes scores [K], float32 or better, from tokens [K, C].

        The product is written as a sum, because autocast would compute a matrix product in 16 bits. Scores are summed
        up and compared with 1, near which bfloat16 has steps of 0.004.
        """
        read = feats[:, : len(self.weight)].to(at_least_float32(feats))
        return (self.gamma * (read * self.weight).sum(1) + self.beta).sigmoid()


@MODELS.register_module()
class AViTSST(SSTBackbone):
    """SST whose tokens halt as in A-ViT; the equations are in :mod:`mmprune3d.pruning.avit`.

    ``HaltingSSTDetector`` trains it with the losses of `regularization`. The share of halted tokens follows from `beta`
    and `ponder_weight`.

    Args:
        channels: Number of features that a gate reads; the paper takes 32 where A-ViT takes 1.
        gamma: Scale of a gate.
        beta: Shift of a gate; with the default almost no token halts at first.
        eps: A token halts when the sum of its scores exceeds 1 - eps.
        granularity: Decide after each ``'block'`` or after each attention ``'layer'``.
        output: Features of a token on the map: ``'mean'``, the mean over units weighted by p, through which the
            detection losses train the gates; or ``'hard'``, the features when it halted, with which only
            `regularization` trains them.
        ponder_weight: Weight of the mean ponder cost.
        prior_weight: Weight of the loss that pulls the distribution of depths to the prior.
        prior_depth: Centre of the prior, in units (blocks or layers); None: two thirds of them, as A-ViT's 8 of 12.
        prior_width: Standard deviation of the prior, in units.
        **kwargs: Arguments of :class:`~mmprune3d.models.sst.backbone.SSTBackbone`.

    Raises:
        ValueError: If an option is unknown or out of range, there is only one block and so no decision, or tokens
            interact outside of attention (``use_bn``), which would make the two forward passes differ.
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
            raise ValueError('halting needs layer norm: with use_bn=True halted tokens would change the statistics')
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
        """Computes the map from the tokens of a batch.

        Args:
            tokens: Tokens from the input layer.
            path: ``'edf'``: compute all tokens and hide halted ones from the others; ``'sparse'``: compute only tokens
                that have not halted. Results and gradients are equal, in training and evaluation mode.
            return_record: Whether to return the halting decisions as well.

        Returns:
            A list with one map [B, C, ny, nx] (without `to_bev`, tokens [N, C]), or this list and an ``AViTRecord``.

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
        """Computes the map and the record of halting decisions; see :meth:`forward`."""
        return self(tokens, path, return_record=True)

    def regularization(self, record: AViTRecord) -> dict[str, Tensor]:
        """Computes the weighted losses in addition to those of detection: ``loss_ponder`` and ``loss_prior``."""
        prior = depth_prior_loss(record, self.prior_depth, self.prior_width)
        return dict(loss_ponder=self.ponder_weight * ponder_loss(record), loss_prior=self.prior_weight * prior)

    def _edf(self, tokens: WindowedTokens) -> tuple[Tensor, list[HaltingStep], list[Tensor]]:
        """Passes every token through every unit; halted tokens have weight 0 as keys."""
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
        """Passes only the remaining tokens through each unit, and accumulates the features for the map."""
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
        """Runs a block, or one of its layers, on tokens [K, C] with key weights [K]."""
        if self.granularity == 'block':
            return self.run_block(unit, feats, tokens.positions, plans, (weights, weights))
        number, shift = divmod(unit, 2)
        layer = self.block_list[number].encoder_list[shift]
        if number in self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(layer, feats, tokens.positions[shift], plans[shift], weights, use_reentrant=False)
        return layer(feats, tokens.positions[shift], plans[shift], weights)

    def _decide(self, unit: int, feats: Tensor, spent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Contribution to the map after a unit [K, C], sums of scores [K], tokens that go on [K], and scores [K]."""
        scores = self.halting[unit](feats) if unit < len(self.halting) else None
        share, spent, keep = ponder_step(spent, scores, self.eps)
        share = share if self.output == 'mean' else ~keep
        return share.to(spent)[:, None] * feats, spent, keep, scores

    def _step(self, unit: int, rows: Tensor, spent: Tensor, keep: Tensor) -> HaltingStep:
        return HaltingStep((unit + 1) * LAYERS_PER_UNIT[self.granularity], rows, (1 - spent).clamp(min=0), keep)

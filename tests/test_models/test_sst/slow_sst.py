"""SST and dynamic token halting written down slowly, from their equations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprune3d.layers.sst_block import SSTEncoderLayer
from mmprune3d.models.sst.halting_backbone import HaltingSST
from mmprune3d.models.sst.input_layer import WindowedTokens


def slow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    windows: Tensor,
    weights: Tensor | None = None,
    scale: float | None = None,
    live: Tensor | None = None,
    secant: bool = False,
) -> Tensor:
    """Eq. 6 as it is written, window by window; [N, heads, D].

    Windows without `live` tokens [N] bool (None: those with a weight) give 0. With `secant` the gradient of the weight
    of others is what they would change by a weight of 1, each alone.
    """
    weights = query.new_ones(len(query)) if weights is None else weights
    live = weights > 0 if live is None else live
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = torch.zeros_like(value)
    for window in windows.unique():
        rows = (windows == window).nonzero().squeeze(1)
        if live[rows].any():
            q, k, v = (part[rows].transpose(0, 1) for part in (query, key, value))
            logits = q @ k.transpose(1, 2) * scale

            def attend(w: Tensor, logits: Tensor = logits, v: Tensor = v) -> Tensor:
                share = logits.exp() * w
                return share @ v / share.sum(2, keepdim=True)

            if secant:
                own = weights[rows] * live[rows]
                found = plain = attend(own)
                for place in (~live[rows]).nonzero().squeeze(1).tolist():
                    instead = torch.arange(len(rows)) == place
                    found = found + weights[rows[place]] * (attend(own + instead) - plain).detach()
            else:
                found = attend(weights[rows])
            out = out.index_copy(0, rows, found.transpose(0, 1))
    return out


def slow_layer(
    layer: SSTEncoderLayer,
    x: Tensor,
    positions: Tensor,
    windows: Tensor,
    weights: Tensor | None = None,
    live: Tensor | None = None,
) -> Tensor:
    """A layer of SST (Eq. 1 and 2, or with norms after the sums) from its parameters."""

    def norm(module: nn.LayerNorm, y: Tensor) -> Tensor:
        centred = y - y.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias

    def attend(y: Tensor) -> Tensor:
        own = layer.win_attn.self_attn
        (wq, wk, wv), (bq, bk, bv) = own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3)
        q, k, v = (y + positions) @ wq.T + bq, (y + positions) @ wk.T + bk, y @ wv.T + bv
        q, k, v = (part.view(len(y), own.num_heads, -1) for part in (q, k, v))
        scale = None
        if own.tau is not None:
            q, k = q / q.norm(dim=2, keepdim=True), k / k.norm(dim=2, keepdim=True)
            q, scale = q / own.tau.reshape(1, -1, 1).clamp(min=own.tau_min), 1.0
        secant = own.halted_gradient == 'difference' and own.backend == 'sdpa'
        out = slow_attention(q, k, v, windows, weights, scale, live, secant)
        return out.flatten(1) @ own.out_proj.weight.T + own.out_proj.bias

    def feed(y: Tensor) -> Tensor:
        hidden = y @ layer.linear1.weight.T + layer.linear1.bias
        hidden = hidden.relu() if layer.activation is F.relu else hidden * (1 + (hidden / 2**0.5).erf()) / 2
        return hidden @ layer.linear2.weight.T + layer.linear2.bias

    if layer.post_norm:
        x = norm(layer.norm1, x + attend(x))
        return norm(layer.norm2, x + feed(x))
    x = x + attend(norm(layer.norm1, x))
    return x + feed(norm(layer.norm2, x))


def slow_decision(
    scores: Tensor, sample: Tensor, alive: Tensor, gate: nn.Module, batch_size: int
) -> tuple[Tensor, Tensor]:
    """The rank rule by sorting, for the tokens `alive`, and whether the score of any token passes; [N] bool each."""
    keep, passes = torch.zeros_like(alive), torch.zeros_like(alive)
    for b in range(batch_size):
        among = [row for row in range(len(scores)) if sample[row] == b and alive[row]]
        total = len(among) if gate.relative else int((sample == b).sum())
        most, least = (total * (1 - bound) for bound in gate.bounds)
        count = sum(float(scores[row]) >= gate.threshold for row in among)
        count = max(min(count, math.floor(most + 1e-6)), math.ceil(least - 1e-6))
        kept = sorted(among, key=lambda row: (-float(scores[row]), row))[:count]
        keep[kept] = True
        if kept:
            passes |= (sample == b) & (scores >= scores[kept].min())
    return keep, passes


def slow_halting(
    model: HaltingSST, tokens: WindowedTokens, decisions: dict[int, tuple[Tensor, ...]] | None = None
) -> tuple[Tensor, dict[int, tuple[Tensor, ...]]]:
    """f_BEV [N, C] of the tokens by Eq. 8 to 10, with a straight line k0 + (s - s0) for each hard decision.

    Args:
        model: Its parameters and settings are used, none of its paths.
        tokens: As the model takes them.
        decisions: Gate by gate k0 (does the score pass), s0 and who is alive behind it, all [N]; None: decide here.
    """
    decided, made = decisions or {}, {}
    x, sample = tokens.feats, tokens.coords[:, 0]
    live, alive, bev = x.new_ones(len(x)), torch.ones(len(x), dtype=torch.bool), torch.zeros_like(x)
    gates, scores, age = {gate.block: gate for gate in model.halting}, None, 0
    for layer in range(model.num_layers):
        if layer % 2 == 0 and layer // 2 in gates:
            gate = gates[layer // 2]
            seen = x if gate.scorer.token_wise else x * live[:, None]
            scores, latent, _ = gate.scorer(seen, tokens.coords, tokens.batch_size, model.output_shape)
            x = x if gate.fuse is None else x + gate.fuse(latent)
            if layer // 2 not in decided:
                alive, passes = slow_decision(scores.detach(), sample, alive, gate, tokens.batch_size)
                decided = {**decided, layer // 2: (passes.to(x), scores.detach(), alive)}
            made[layer // 2] = k0, s0, alive = decided[layer // 2]
            now = live * (k0 + (scores - s0))
            if model.recycle:
                bev = bev + (live - now)[:, None] * x
            live, age = now, 0
        weights = None
        if scores is not None:
            lasts = {'until_next': 99, 'block': 2, 'layer': 1}[model.score_scope]
            weights = scores * live if age < lasts else live
        module = model.block_list[layer // 2].encoder_list[layer % 2]
        x = slow_layer(module, x, tokens.positions[layer % 2], tokens.window_ids[layer % 2], weights, alive)
        age += 1
    return bev + live[:, None] * x, made

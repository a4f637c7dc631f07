"""Pruning of the attention in a trained SST, as initial weights of a narrower one: state dict in, state dict out.

These are the baselines of dynamic token halting (section A.2.2), width scaling and head scaling. Only the inner width
of attention changes; tokens keep their width, so all other tensors are unchanged. The smallest channels are removed:

* of the channels of a head's values, those with the smallest ``|v row| |out_proj column|``; the strength of a head is
  the sum over its channels;
* of the channels of its logits, those with the smallest ``|q row and bias| |k row|``. (A bias of the keys adds the same
  value to all logits of a query, which does not change the attention; in cosine attention it does, and is counted.)

Attention weights sum to 1, so the value bias of a removed channel reaches every token alike: it is moved into the bias
of out_proj. Logits of dot products are divided by the square root of a head's width; the change of this divisor is
compensated in the weights of the queries. Channels that contribute nothing in the large model can thus be removed
without any change of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .metadata import with_metadata

_ATTENTION = 'win_attn.self_attn.'
_NAMES = ('in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias')


def keep_heads(state_dict: Mapping[str, Tensor], num_heads: int, keep: int) -> dict[str, Tensor]:
    """Reduces every attention layer to its `keep` strongest heads, in their order.

    The result matches ``nhead=[keep] * num_blocks``, with ``head_dims`` in ``layer_cfg`` set to the present head width.

    Args:
        state_dict: State dict of an SST backbone or detector; not modified, and shared where nothing is removed.
        num_heads: Number of heads of its attention layers.
        keep: Number of heads to keep, 1 to `num_heads`; of equally strong ones the first are kept.

    Raises:
        ValueError: If there are no attention layers, `num_heads` does not match them, or `keep` is out of range.
    """
    made = dict(state_dict)
    for layer in _layers(state_dict, num_heads):
        _check_keep(keep, num_heads, 'heads', layer)
        heads = _strongest(layer.value_strength().sum(1), keep)
        channels = torch.arange(layer.width, device=heads.device).expand(keep, -1)
        made.update(layer.taken(heads, channels, channels))
    return with_metadata(made, state_dict)


def keep_head_channels(state_dict: Mapping[str, Tensor], num_heads: int, keep: int) -> dict[str, Tensor]:
    """Reduces every head of every attention layer to its `keep` strongest channels, in their order.

    Channels of logits and of values are chosen separately. The result matches ``head_dims=keep`` in ``layer_cfg``.

    Args:
        state_dict: State dict of an SST backbone or detector; not modified, and shared where nothing is removed.
        num_heads: Number of heads of its attention layers.
        keep: Number of channels to keep, 1 to the width of a head; of equally strong ones the first are kept.

    Raises:
        ValueError: If there are no attention layers, `num_heads` does not match them, or `keep` is out of range.
    """
    made = dict(state_dict)
    for layer in _layers(state_dict, num_heads):
        _check_keep(keep, layer.width, 'channels of a head', layer)
        heads = torch.arange(num_heads, device=layer.out.device)
        logits, values = (_strongest(s, keep) for s in (layer.logit_strength(), layer.value_strength()))
        made.update(layer.taken(heads, logits, values))
    return with_metadata(made, state_dict)


@dataclass(frozen=True, eq=False)
class _Attention:
    """Tensors of one layer by head: E channels of tokens, H heads of D channels."""

    name: str
    weight: Tensor  # [3, H, D, E], queries, keys, values
    bias: Tensor  # [3, H, D]
    out: Tensor  # [E, H, D]
    out_bias: Tensor  # [E]
    tau: Tensor | None  # [1, H, 1, 1] or [1, 1, 1], of cosine attention

    @property
    def width(self) -> int:
        return self.weight.shape[2]

    def value_strength(self) -> Tensor:
        """Strength of each value channel [H, D]; the bias is not counted, because it is kept."""
        return self.weight[2].norm(dim=2) * self.out.norm(dim=0)

    def logit_strength(self) -> Tensor:
        """Strength of each logit channel [H, D]."""
        query, key = torch.cat((self.weight[:2], self.bias[:2, ..., None]), dim=3)
        return query.norm(dim=2) * (self.weight[1] if self.tau is None else key).norm(dim=2)

    def taken(self, heads: Tensor, logits: Tensor, values: Tensor) -> dict[str, Tensor]:
        """State dict of the layer with heads [h] and, of each, channels [h, d]; {} if these are all."""
        if values.shape == self.bias.shape[1:]:
            return {}
        head = heads[:, None]
        scale = 1.0 if self.tau is not None else (values.shape[1] / self.width) ** 0.5
        weight, bias = (
            torch.stack((both[0][head, logits] * scale, both[1][head, logits], both[2][head, values]))
            for both in (self.weight, self.bias)
        )
        removed = self.bias[2].clone()
        removed[head, values] = 0
        tensors = (
            weight.flatten(0, 2),
            bias.flatten(),
            self.out[:, head, values].flatten(1),
            self.out_bias + (self.out * removed).sum((1, 2)),
        )
        made = {self.name + name: tensor for name, tensor in zip(_NAMES, tensors)}
        if self.tau is not None and self.tau.dim() == 4:
            made[self.name + 'tau'] = self.tau[:, heads]
        return made


def _strongest(strength: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest values in the last dimension, ascending."""
    return strength.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def _layers(state_dict: Mapping[str, Tensor], num_heads: int) -> list[_Attention]:
    """Collects all attention layers, with tensors arranged by head.

    Raises:
        ValueError: If there is no layer, one is incomplete, or its shapes do not match `num_heads`.
    """
    ending = _ATTENTION + _NAMES[0]
    names = [key.removesuffix(_NAMES[0]) for key in state_dict if key.endswith(ending)]
    if not names:
        raise ValueError(
            f'no attention layer of SST (*{ending}) in the state dict, which has '
            f'{", ".join(list(state_dict)[:3]) or "nothing"}, ...'
        )
    missing = [name + part for name in names for part in _NAMES if name + part not in state_dict]
    if missing:
        raise ValueError(f'the state dict has no {", ".join(missing)}')
    return [_layer(name, state_dict, num_heads) for name in names]


def _layer(name: str, state_dict: Mapping[str, Tensor], num_heads: int) -> _Attention:
    weight, bias, out, out_bias = (state_dict[name + part] for part in _NAMES)
    tau = state_dict.get(name + 'tau')
    inner, embed = out.shape[1], out.shape[0]
    shapes = [list(t.shape) for t in (weight, bias, out_bias)]
    if shapes != [[3 * inner, embed], [3 * inner], [embed]] or num_heads < 1 or inner % num_heads:
        raise ValueError(
            f'{name}: out_proj maps {inner} channels to {embed} and the other tensors are {shapes}, which is not an '
            f'attention with {num_heads} heads'
        )
    if tau is not None and tau.dim() == 4 and tau.shape[1] != num_heads:
        raise ValueError(f'{name}: tau is for {tau.shape[1]} heads, not {num_heads}')
    heads = (num_heads, inner // num_heads)
    by_head = weight.reshape(3, *heads, embed), bias.reshape(3, *heads), out.reshape(embed, *heads)
    return _Attention(name, *by_head, out_bias, tau)


def _check_keep(keep: int, most: int, what: str, layer: _Attention) -> None:
    if not 1 <= keep <= most:
        raise ValueError(f'{layer.name}: keep={keep} {what}; valid are 1 to {most}')

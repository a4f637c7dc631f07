"""Time that removed keys save: the decoders of the paper's Table 1, run in six ways.

All ways run the same weights on the same random features. Decoder and heads are timed; backbone and neck cost the same
everywhere.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.tables import markdown_table
from mmprune3d.layers.attention import AttentionRecord, Keys
from mmprune3d.layers.key_pruning import Kept, KeyPruner, ScoreFunction, make_pruner
from mmprune3d.measure.flops import count_flops
from mmprune3d.measure.memory import peak_memory
from mmprune3d.measure.timing import interleaved
from mmprune3d.models.petr.decoder import PETR3DDecoder, PETR3DDecoderLayer
from mmprune3d.models.petr.head import cls_branch, reg_branch
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan

from .cost import cross_attention_flops

COLUMNS = {
    'stock': 'stock',
    'stock_fused': 'stock, fused',
    'official': 'tgGBC as published',
    'tome': 'ToMe',
    'ours': 'ours',
    'floor': 'floor',
}
"""Ways to run the decoder, in the order of the table; see `Decoder`."""


@dataclass(frozen=True)
class Row:
    """One detector of the paper's Table 1 (PETRv2: Table 8).

    Attributes:
        keys: N_k, keys of the cross-attention.
        plan: What is removed.
        queries: N_q.
        width: E, channels.
        heads: Heads of the attention.
        layers: Decoder layers L.
        feedforward: Hidden channels of the feed-forward networks.
    """

    keys: int
    plan: TgGBCPlan
    queries: int = 900
    width: int = 256
    heads: int = 8
    layers: int = 6
    feedforward: int = 2048


ROWS: dict[str, Row] = {
    'petr_r50_1408x512': Row(16896, TgGBCPlan(r=12000)),
    'petr_vov_1600x640': Row(24000, TgGBCPlan(r=18000)),
    'petrv2_vov_800x320': Row(12000, TgGBCPlan(r=8000)),
    'focalpetr_r18_1408x512': Row(16896, TgGBCPlan(r=12000)),
    'focalpetr_vov_800x320': Row(6000, TgGBCPlan(r=3000)),
    'streampetr_r50_704x256': Row(4224, TgGBCPlan(r=2000)),
    'streampetr_vov_1600x640': Row(24000, TgGBCPlan(r=21000)),
    '3dppe_vov_800x320': Row(6000, TgGBCPlan(r=3000)),
    'mbev_vov_800x320': Row(12000, TgGBCPlan(r=6000)),
    'open_r50_704x256': Row(4224, TgGBCPlan(r=2000)),
    'open_vov_800x320': Row(6000, TgGBCPlan(r=3000)),
    'open_r101_1408x512': Row(16896, TgGBCPlan(r=12000)),
    'toc3d_1600x800': Row(30000, TgGBCPlan(r=27000)),
}
"""Rows by name. MV2D is missing: its number of keys changes from image to image."""


class Decoder(nn.Module):
    """A decoder with heads and random features, and the ways to run it.

    Args:
        row: Sizes and plan.
        seed: Of weights and features.
        batch: Samples.
    """

    def __init__(self, row: Row, seed: int = 0, batch: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.row = row
        self.decoder = PETR3DDecoder(row.layers, row.width, row.heads, row.feedforward)
        self.cls_branch = cls_branch(row.width, 2, 10)
        self.reg_branch = reg_branch(row.width, 2, 10)
        for name, count in (('content', row.keys), ('pos', row.keys), ('query_pos', row.queries)):
            self.register_buffer(name, torch.randn(batch, count, row.width))
        self.eval()

    def stock(self) -> Tensor:
        """As the ecosystem runs it: full attention maps are made and thrown away, all layers have their heads."""
        return self._by_hand(lambda layer, query, content, pos, attention: (content, pos))

    def official(self) -> Tensor:
        """TgGBC as its authors run it: scores from the full map, a full sort, everything gathered and then cut."""
        removals = self.row.plan.removals(self.row.layers, self.row.keys)

        def trim(layer: int, query: Tensor, content: Tensor, pos: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
            if not removals[layer]:
                return content, pos
            score, order = self.cls_branch(query).max(-1).values.sigmoid().sort(descending=True)
            index = order[:, : self.row.plan.k]
            rows = attention.gather(1, index[..., None].expand(-1, -1, attention.shape[2]))
            importance = (rows * score[:, : self.row.plan.k, None]).sum(1)
            ascending = importance.sort().indices[..., None].expand_as(content)
            cut = (tokens.gather(1, ascending)[:, removals[layer] :] for tokens in (content, pos))
            return tuple(cut)

        return self._by_hand(trim)

    def _by_hand(self, trim: Callable[[int, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        query, content, pos = torch.zeros_like(self.query_pos), self.content, self.pos
        outputs = []
        for index, layer in enumerate(self.decoder.layers):
            query, attention = _stock_layer(layer, query, self.query_pos, content, pos)
            outputs.append(self.decoder.post_norm(query))
            content, pos = trim(index, outputs[-1], content, pos, attention)
        return torch.stack([self._heads(output) for output in outputs])[-1]

    def stock_fused(self) -> Tensor:
        """The stock decoder with fused attention and the heads of the last layer only: the baseline at its best."""
        return self.fused(None)

    def tome(self) -> Tensor:
        """Token merging, up to the half of the keys that it can merge per layer, with fused attention."""
        return self.fused(make_pruner(tome_plan(self.row), self.row.layers))

    def ours(self) -> Tensor:
        """TgGBC as this package runs it."""
        return self.fused(make_pruner(self.row.plan, self.row.layers))

    def floor(self) -> Tensor:
        """As if an oracle had said for free which keys stay: no scoring, no selection, no copies."""
        if not hasattr(self, '_oracle'):
            self._oracle = Oracle(self.row, self.content, self.pos)
        return self.fused(self._oracle, self._oracle.keys[0])

    def fused(self, pruner: KeyPruner | None, keys: Keys | None = None) -> Tensor:
        """With fused attention and the heads of the last layer; `pruner` trims `keys` (those of the row)."""
        self.decoder.key_pruner = pruner
        keys = Keys(self.content + self.pos, self.content) if keys is None else keys
        found = self.decoder(torch.zeros_like(self.query_pos), keys, self.query_pos, self._score, all_layers=False)
        return self._heads(found.queries[-1])

    def _score(self, layer: int, query: Tensor) -> Tensor:
        return self.cls_branch(query)

    def _heads(self, query: Tensor) -> Tensor:
        return torch.cat((self.cls_branch(query), self.reg_branch(query)), dim=-1)


class Oracle:
    """A pruner that has the keys of every layer ready.

    Args:
        row: Sizes and plan.
        content: [B, N_k, C].
        pos: [B, N_k, C].
    """

    def __init__(self, row: Row, content: Tensor, pos: Tensor) -> None:
        counts = row.plan.keys_per_layer(row.keys, row.layers)
        self.keys = [Keys((content + pos)[:, :count].contiguous(), content[:, :count].contiguous()) for count in counts]

    def __call__(self, layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> Kept:
        """The keys of the next layer."""
        return Kept(self.keys[layer + 1])


def tome_plan(row: Row) -> ToMePlan:
    """The row's removals, cut to half of the keys per layer where they are more."""
    left, removals = row.keys, []
    for removed in row.plan.removals(row.layers, row.keys)[: row.plan.n]:
        removals.append(min(removed, left // 2))
        left -= removals[-1]
    return ToMePlan(r=removals)


def _stock_layer(
    layer: PETR3DDecoderLayer, query: Tensor, query_pos: Tensor, content: Tensor, pos: Tensor
) -> tuple[Tensor, Tensor]:
    self_attention, cross_attention = layer.attentions
    query = layer.norms[0](self_attention.reference(query, None, query_pos)[0])
    query, attention = cross_attention.reference(query, Keys(content + pos, content), query_pos)
    return layer.norms[2](layer.ffns[0](layer.norms[1](query))), attention


@torch.inference_mode()
def measure(
    name: str,
    repeats: int = 5,
    device: str = 'cpu',
    dtype: torch.dtype = torch.float32,
    columns: Iterable[str] = COLUMNS,
) -> dict[str, Any]:
    """One row of the table.

    Args:
        name: In `ROWS`.
        repeats: Timed rounds; the median counts.
        device: 'cpu' or 'cuda'.
        dtype: Of weights and features.
        columns: Ways to run the decoder, of `COLUMNS`.

    Returns:
        ``row``, ``shape`` (sizes and plan), ``ms``, ``peak_mib`` and ``gflops`` by column (counted where they happen),
        ``paper_gflops`` (cross-attention only: before, after by Eq. 23, after with L - 1 scored layers), and
        ``tome_removes``.
    """
    row = ROWS[name]
    model = Decoder(row).to(device=device, dtype=dtype)
    calls = {column: getattr(model, column) for column in columns}
    times = interleaved(calls, repeats, device)
    before, after = cross_attention_flops(row.plan, row.keys, row.queries, row.width, row.heads, row.layers)
    _, as_in_table = cross_attention_flops(
        row.plan, row.keys, row.queries, row.width, row.heads, row.layers, row.layers - 1
    )
    result = {
        'row': name,
        'shape': {**asdict(row), 'plan': row.plan.to_dict()},
        'ms': times,
        'peak_mib': {column: peak_memory(call) for column, call in calls.items()},
        'gflops': {column: count_flops(call, {})['total'] for column, call in calls.items()},
        'paper_gflops': {'before': before / 1e9, 'eq23': after / 1e9, 'table7': as_in_table / 1e9},
        'tome_removes': sum(tome_plan(row).r),
    }
    del model, calls
    gc.collect()
    return result


def markdown(results: Iterable[dict[str, Any]]) -> str:
    """The table: times, ratios, memory, operations; how many keys ToMe removed where it could not remove all."""
    heads = (
        *('row', 'N_k, r', *(f'{title} (ms)' for title in COLUMNS.values())),
        'ours faster than stock / fused / published / ToMe',
        'ours / floor',
        'peak MiB stock / fused / ours',
        'GFLOPs stock / ours',
    )
    return '\n'.join(markdown_table(heads, map(_cells, results), 'll'))


def _cells(result: dict[str, Any]) -> list[str]:
    times, peak, flops, shape = result['ms'], result['peak_mib'], result['gflops'], result['shape']
    removed = sum(TgGBCPlan.from_dict(shape['plan']).removals(shape['layers'], shape['keys']))
    shown = {column: f'{times[column]:.1f}' for column in COLUMNS}
    if result['tome_removes'] < removed:
        shown['tome'] += f' (r={result["tome_removes"]})'
    ratios = [times[column] / times['ours'] for column in ('stock', 'stock_fused', 'official', 'tome')]
    return [
        *(result['row'], f'{shape["keys"]}, {removed}', *shown.values()),
        ' / '.join(f'{ratio:.2f}' for ratio in ratios),
        f'{times["ours"] / times["floor"]:.2f}',
        f'{peak["stock"]:.0f} / {peak["stock_fused"]:.0f} / {peak["ours"]:.0f}',
        f'{flops["stock"]:.1f} / {flops["ours"]:.1f}',
    ]

"""How often each learned query is among a detector's final results (GPQ paper, section 1.1 and Figure 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmprune3d.adapters.learned_queries import LearnedQueries
from mmprune3d.pruning.selection import top_indices


@torch.no_grad()
def best_pairs(logits: Tensor, limit: int, activation: str = 'sigmoid') -> tuple[Tensor, Tensor]:
    """The queries that the `limit` results with the highest scores come from, as heads without NMS choose them.

    Args:
        logits: [B, N_q, classes], the class logits of the last decoder layer.
        limit: Results per sample; fewer are returned if there are fewer candidates.
        activation: 'sigmoid': every pair of query and class is a candidate. 'softmax': every query is one, with its
            best class other than the background, which is the last column.

    Returns:
        Queries [B, k] int64, as indices into `logits`, and scores [B, k] in 0..1, best first.
    """
    logits = logits.float()
    if activation == 'softmax':
        candidates, classes = logits.softmax(-1)[..., :-1].max(-1).values, 1
    else:
        candidates, classes = logits.sigmoid().flatten(1), logits.shape[-1]
    index = top_indices(candidates, min(limit, candidates.shape[1]))
    return index.div(classes, rounding_mode='floor'), candidates.gather(1, index)


@dataclass(frozen=True)
class Selection:
    """Counts of the results that each query gave over some samples.

    Attributes:
        results: [N_q] int64, number of results that came from each query. A query that is among the results of a sample
            with several classes is counted once per class.
        confident: [N_q] int64, number of these results whose score reached the threshold.
        samples: Number of samples.
        per_sample: Number of results per sample, k.
    """

    results: Tensor
    confident: Tensor
    samples: int = 0
    per_sample: int = 0

    @classmethod
    def zeros(cls, num_queries: int) -> Selection:
        """Counts of 0, before the first sample."""
        return cls(*torch.zeros(2, num_queries, dtype=torch.int64))

    def add(self, query: Tensor, scores: Tensor, threshold: float) -> Selection:
        """The counts with the results of more samples added.

        Args:
            query: [B, k], see `best_pairs`.
            scores: [B, k], scores of the results.
            threshold: Lowest score of a confident result.
        """
        size = len(self.results)
        return replace(
            self,
            results=self.results + query.flatten().bincount(minlength=size).cpu(),
            confident=self.confident + query[scores >= threshold].bincount(minlength=size).cpu(),
            samples=self.samples + len(query),
            per_sample=query.shape[1],
        )


def inequality(counts: Tensor) -> dict[str, float]:
    """Three measures of how unequally results are spread over queries.

    Args:
        counts: [N_q], number of results that came from each query.

    Returns:
        ``never``: share of the queries that were never selected. ``half``: the smallest share of the queries that half
        of all selections fall on; 0.5 if all are equal. ``gini``: Gini coefficient, 0 if all are equal and towards 1 if
        one query gets everything. Without any selection, ``half`` and ``gini`` are those of equal queries.
    """
    ascending = counts.double().sort().values
    size, total = len(counts), float(counts.sum())
    never = float((counts == 0).double().mean())
    if not total:
        return {'never': never, 'half': 0.5, 'gini': 0.0}
    places = torch.arange(1, size + 1, dtype=torch.float64)
    gini = float((2 * places - size - 1) @ ascending) / (size * total)
    half = int((ascending.flip(0).cumsum(0) < total / 2).sum()) + 1
    return {'never': never, 'half': half / size, 'gini': gini}


class SelectionCounter:
    """Counts the results of queries while a detector runs.

    Args:
        queries: The learned queries of the detector.
        threshold: Lowest score of a confident result.

    Attributes:
        selection: The counts so far.
    """

    def __init__(self, queries: LearnedQueries, threshold: float) -> None:
        self.queries = queries
        self.threshold = threshold
        self.selection = Selection.zeros(queries.num_kept)
        queries.announce()
        holder, name = queries.results
        found = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
        self.limit = queries.num_kept if found is None else found

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Counts the outputs of every forward pass of the head inside the ``with`` block."""
        handle = self.queries.head.register_forward_hook(self._heard)
        try:
            yield
        finally:
            handle.remove()

    def _heard(self, head: nn.Module, inputs: Sequence[Any], outputs: Any) -> None:
        logits = self.queries.learned_logits(outputs)
        found = best_pairs(logits, self.limit, self.queries.activation)
        self.selection = self.selection.add(*found, self.threshold)

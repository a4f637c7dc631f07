"""An embedding of learned queries that can lose rows, without losing its parameter.

The weight in the state dict, the optimizer and the gradient keeps all rows; what the detector reads as `weight` are
the rows that are left. So optimizers, EMA, process groups and resuming see the parameter that they have always seen,
and the forward pass works on fewer queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmprune3d.pruning.gpq import RANK, kept_ids


class PrunableEmbedding(nn.Embedding):
    """An ``nn.Embedding`` whose rows are learned queries, and can be removed.

    While no row is removed it behaves like ``nn.Embedding``, bit for bit. State dicts contain `removal_rank` only once
    a row is removed; a state dict without it has all rows. So the keys of an unpruned model are those of its original,
    and checkpoints of either kind can be loaded.

    Attributes:
        removal_rank: [N] int64 buffer: 0 for rows that are left, else their place in the order of removal, from 1.
    """

    removal_rank: Tensor
    _kept: Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._make_prunable()

    def _make_prunable(self) -> None:
        rows = self.all_rows
        self.register_buffer(RANK, torch.zeros(len(rows), dtype=torch.int64, device=rows.device))

    @classmethod
    def convert(cls, embedding: nn.Embedding) -> PrunableEmbedding:
        """Gives an existing embedding this class, in place: modules and optimizers that hold it go on with it.

        Raises:
            TypeError: If it is not a plain ``nn.Embedding``.
        """
        if isinstance(embedding, cls):
            return embedding
        check_prunable(embedding)
        embedding.__class__ = cls
        embedding._make_prunable()
        return embedding

    @property
    def weight(self) -> Tensor:
        """The rows that are left, [N_q, C], in the order of their ids; the parameter itself if all are."""
        if 'weight' not in self._parameters:  # while nn.Embedding is being constructed
            raise AttributeError('weight')
        rows = self._parameters['weight']
        return rows if self._kept is None else rows.index_select(0, self.kept)

    @property
    def all_rows(self) -> nn.Parameter:
        """The parameter, [N, C], with the rows that were removed."""
        return self._parameters['weight']

    @property
    def kept(self) -> Tensor:
        """Ids [N_q] int64 of the rows that are left, ascending."""
        if self._kept is None:
            return torch.arange(len(self.removal_rank), device=self.removal_rank.device)
        self._kept = self._kept.to(self.all_rows.device)
        return self._kept

    @property
    def num_kept(self) -> int:
        """Number N_q of rows that are left."""
        return len(self.removal_rank) if self._kept is None else len(self._kept)

    @torch.no_grad()
    def remove(self, rows: Tensor) -> None:
        """Removes rows: the detector no longer reads them.

        Args:
            rows: [n] ids, in the order of removal.

        Raises:
            ValueError: If a row was removed before, or no row would be left.
        """
        rows = rows.to(self.removal_rank.device)
        if self.removal_rank[rows].any() or len(rows.unique()) < len(rows) or len(rows) >= self.num_kept:
            raise ValueError(f'cannot remove rows {rows.tolist()}: {self.num_kept} are left, {self.kept.tolist()}')
        first = int(self.removal_rank.max()) + 1
        self.removal_rank[rows] = torch.arange(first, first + len(rows), device=rows.device)
        self._refresh()

    @torch.no_grad()
    def follow(self, other: PrunableEmbedding) -> None:
        """Removes the rows that `other` has removed, and no others."""
        self.removal_rank.copy_(other.removal_rank)
        self._refresh()

    def _refresh(self) -> None:
        self._kept = kept_ids(self.removal_rank) if self.removal_rank.any() else None

    def removed_rows(self) -> Tensor | None:
        """A copy of the rows that were removed, or None if there are none; see `put_back`."""
        if self._kept is None:
            return None
        return self.all_rows.detach()[self.removal_rank > 0].clone()

    @torch.no_grad()
    def put_back(self, rows: Tensor | None) -> None:
        """Restores the removed rows: momentum and weight decay change them although no forward pass reads them.

        Args:
            rows: The result of `removed_rows`.
        """
        if rows is not None:
            self.all_rows[self.removal_rank > 0] = rows

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._kept is None:
            del destination[prefix + RANK]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        absent = prefix + RANK not in state_dict
        if absent:
            state_dict[prefix + RANK] = torch.zeros_like(self.removal_rank)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if absent:
            del state_dict[prefix + RANK]
        self._refresh()

    def extra_repr(self) -> str:
        """Text for ``repr``: the number of rows that are left."""
        return f'{super().extra_repr()}, kept={self.num_kept}'


def check_prunable(embedding: nn.Module) -> None:
    """Raises TypeError unless `embedding` is a `PrunableEmbedding`, or a plain ``nn.Embedding`` that can become one."""
    if type(embedding) is not nn.Embedding and not isinstance(embedding, PrunableEmbedding):
        raise TypeError(f'queries in a {type(embedding).__name__} cannot be pruned, only in an nn.Embedding')


def prunable_names(state_dict: Mapping[str, Tensor]) -> list[str]:
    """The names of the embeddings from which rows were removed, in a state dict."""
    return [key.removesuffix(f'.{RANK}') for key in state_dict if key.endswith(f'.{RANK}')]

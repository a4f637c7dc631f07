"""Where the learned queries of a detector are, and how they become prunable (GPQ).

Learned queries are the rows of an embedding. `find_queries` finds it and changes nothing. `make_prunable` gives it the
class `PrunableEmbedding`, in place, so that the detector reads the rows that are left wherever it reads ``weight``.
What else has to be known about a family of detectors is a subclass of :class:`LearnedQueries`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmprune3d.layers.gpq import PrunableEmbedding, check_prunable, prunable_names
from mmprune3d.pruning.gpq import RANK, kept_ids

from .layer_hooks import activation_of

MOST = 'mmprune3d_most_results'
"""Attribute of a head: the number of results that it gave per sample before queries were removed."""

_ATTENTION_ARGUMENTS = ('query', 'key', 'value', 'key_padding_mask', 'need_weights', 'attn_mask')
"""Arguments of ``nn.MultiheadAttention.forward`` by position."""


class LearnedQueries(ABC):
    """The learned queries of one detector. Making this object changes nothing in the detector.

    Args:
        owner: The module that holds the embedding of the queries.
        path: The name of that module in the detector; '' stands for the detector itself.

    Raises:
        ValueError: If the detector also has queries that are not learned, or its embedding is of a class that cannot
            be pruned.
    """

    LOOKS_FOR: ClassVar[str]
    """What `fits` looks for, in words, for the message about a model that no adapter knows."""
    NAMES: ClassVar[tuple[str, ...]]
    """Names of the attributes that may hold the embedding."""
    COUNT: ClassVar[str]
    """Name of the number of queries in the config of the owner, and of the attribute if the owner has one."""
    RESULTS: ClassVar[str]
    """Name of the number of results per sample in the config of the owner."""

    def __init__(self, owner: nn.Module, path: str) -> None:
        self.owner = owner
        self.path = path
        self.name = next(name for name in self.NAMES if isinstance(getattr(owner, name, None), nn.Embedding))
        self._check()
        try:
            check_prunable(self.embedding)
        except TypeError as error:
            raise ValueError(f'{type(owner).__name__}.{self.name}: {error}') from error

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding whose rows are the queries; a `PrunableEmbedding` after `make_prunable`."""
        return getattr(self.owner, self.name)

    @property
    def rows(self) -> nn.Parameter:
        """The parameter of the embedding, [N, C], with the rows of removed queries."""
        return self.embedding._parameters['weight']

    @property
    def removal_rank(self) -> Tensor:
        """[N] int64: 0 for queries that are left, else their place in the order of removal, from 1."""
        rank = getattr(self.embedding, RANK, None)
        return torch.zeros(len(self.rows), dtype=torch.int64, device=self.rows.device) if rank is None else rank

    @property
    def kept(self) -> Tensor:
        """Ids [N_q] int64 of the queries that are left, ascending."""
        return kept_ids(self.removal_rank)

    @property
    def num_kept(self) -> int:
        """Number N_q of queries that are left."""
        return self.embedding.num_kept if isinstance(self.embedding, PrunableEmbedding) else len(self.rows)

    def make_prunable(self) -> LearnedQueries:
        """Lets rows of the embedding be removed, in place; the outputs of the detector stay the same, bit for bit.

        Returns:
            The same object.
        """
        PrunableEmbedding.convert(self.embedding)
        return self

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether `module` holds the queries of a detector of this family."""
        return any(isinstance(getattr(module, name, None), nn.Embedding) for name in cls.NAMES)

    @abstractmethod
    def _check(self) -> None:
        """Raises ValueError if the detector fits, but its queries cannot be pruned."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The head: the module whose forward pass classifies the queries."""

    @property
    @abstractmethod
    def assigner(self) -> nn.Module | object | None:
        """The module that matches queries and objects in training, or None if it is not known."""

    @abstractmethod
    def last_logits(self, outputs: Any) -> Tensor:
        """The logits [B, all queries, classes] of the last decoder layer, from the outputs of `head`."""

    @property
    @abstractmethod
    def results(self) -> tuple[Any, str]:
        """The object or dict that holds the number of results per sample, and the name under which it holds it."""

    @abstractmethod
    def results_of(self, num_queries: int) -> int:
        """The largest number of results per sample that `num_queries` queries can give."""

    @property
    def activation(self) -> str:
        """'sigmoid' or 'softmax' (with the background in the last column)."""
        return activation_of(self.head)

    def learned_logits(self, outputs: Any) -> Tensor:
        """The `last_logits` of the learned queries, [B, N_q, classes]; denoising queries of PETR stand before them."""
        return self.last_logits(outputs)[:, -self.num_kept :]

    @property
    def key(self) -> str:
        """The name of the embedding in the detector, without ``.weight``."""
        return f'{self.path}.{self.name}'.lstrip('.')

    def announce(self, num_queries: int | None = None) -> None:
        """Tells the detector how many queries there are: some read a number that they were built with.

        The head gets a lower number of results per sample where the queries cannot give as many as it asks for; it
        would fail otherwise.

        Args:
            num_queries: Number of queries; None means the number of queries that are left.
        """
        num_queries = num_queries or self.num_kept
        if hasattr(self.owner, self.COUNT):
            setattr(self.owner, self.COUNT, num_queries)
        most = self._most_results()
        if most is None:
            return
        holder, name = self.results
        limit = min(most, self.results_of(num_queries))
        if limit == self._present_results():
            return
        setattr(self.head, MOST, most)
        if isinstance(holder, Mapping):
            holder[name] = limit
        else:
            setattr(holder, name, limit)

    def _most_results(self) -> int | None:
        """The number of results per sample before any query was removed, or None if the head does not say."""
        return getattr(self.head, MOST, self._present_results())

    def _present_results(self) -> int | None:
        """The number of results per sample that the head asks for now, or None if it does not say."""
        holder, name = self.results
        return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)

    def watch_masks(self) -> list[Any]:
        """Lets training stop with a clear message where an attention mask was made for the queries that were removed.

        Returns:
            Handles; ``remove()`` of each ends it.
        """
        attentions = [module for module in self.owner.modules() if isinstance(module, nn.MultiheadAttention)]
        return [one.register_forward_pre_hook(self._check_mask, with_kwargs=True) for one in attentions]

    def _check_mask(self, attention: nn.MultiheadAttention, args: tuple, named: dict[str, Any]) -> None:
        """Raises ValueError if the mask of an attention has another number of queries than its input."""
        given = {**dict(zip(_ATTENTION_ARGUMENTS, args)), **named}
        mask, query = given.get('attn_mask'), given['query']
        length = query.shape[1 if attention.batch_first and query.ndim == 3 else 0]
        if attention.training and mask is not None and mask.shape[-2] != length:
            raise ValueError(
                f'an attention mask of {type(self.owner).__name__} has the shape {list(mask.shape)}, but its attention '
                f'has {length} queries: GPQ has left {self.num_kept} of {len(self.rows)} learned queries. The '
                f'mask must be made for those that are left, len({type(self.owner).__name__}.{self.name}.weight)'
            )

    def config_changes(self, num_queries: int) -> dict[str, Any]:
        """The settings that a config must change for the detector to be built with `num_queries` queries.

        The number of results per sample is among them where the queries and classes give fewer.

        Args:
            num_queries: Number of queries.

        Returns:
            Dotted key below ``model`` -> value.
        """
        changes, most = {self.COUNT: num_queries}, self._most_results()
        if most is not None and most > self.results_of(num_queries):
            changes[self.RESULTS] = self.results_of(num_queries)
        return {f'{self.path}.{name}'.lstrip('.'): value for name, value in changes.items()}


class HeadQueries(LearnedQueries):
    """Learned queries in the head: reference points as in PETR, or an embedding as in DETR3D."""

    LOOKS_FOR = 'a head with `cls_branches` and an nn.Embedding `reference_points` or `query_embedding` (PETR, DETR3D)'
    NAMES = ('reference_points', 'query_embedding')
    COUNT = 'num_query'
    RESULTS = 'bbox_coder.max_num'

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether `module` is a head with classification branches and an embedding of queries."""
        return hasattr(module, 'cls_branches') and super().fits(module)

    def _check(self) -> None:
        if getattr(self.owner, 'num_propagated', 0):
            raise ValueError(
                f'{type(self.owner).__name__} propagates queries from frame to frame (num_propagated='
                f'{self.owner.num_propagated}); GPQ prunes detectors whose queries are all learned'
            )

    @property
    def head(self) -> nn.Module:
        """The head, which is the owner itself."""
        return self.owner

    @property
    def assigner(self) -> object | None:
        """The assigner of the head's set loss (PETR3DHead), or else of the head itself."""
        return getattr(getattr(self.owner, 'set_loss', self.owner), 'assigner', None)

    def last_logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of the last layer, which the PETR family and DETR3D call ``all_cls_scores``."""
        return outputs['all_cls_scores'][-1]

    @property
    def activation(self) -> str:
        """The activation of the classification loss, which PETR3DHead has in its set loss."""
        return activation_of(getattr(self.owner, 'set_loss', self.owner))

    @property
    def results(self) -> tuple[Any, str]:
        """The box coder and its attribute ``max_num``."""
        return self.owner.bbox_coder, 'max_num'

    def results_of(self, num_queries: int) -> int:
        """The number of pairs of a query and a class, each of which can be a result."""
        return num_queries * self.owner.num_classes


class TaskHeadQueries(HeadQueries):
    """Learned queries in a head with several tasks, each with its own classes, as in CMT."""

    LOOKS_FOR = 'a head with `task_heads` and an nn.Embedding `reference_points` (CMT)'
    NAMES = ('reference_points',)

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether `module` is a head with task heads and an embedding of queries."""
        return hasattr(module, 'task_heads') and super(HeadQueries, cls).fits(module)

    def last_logits(self, outputs: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The logits of the last layer, of the classes of all tasks."""
        return torch.cat([task['cls_logits'][-1] for task in outputs], dim=-1)


class DetectorQueries(LearnedQueries):
    """Learned queries in the detector, beside its head, as in DETR and ConditionalDETR of mmdet."""

    LOOKS_FOR = 'a detector with an nn.Embedding `query_embedding` and a `bbox_head` (DETR, ConditionalDETR of mmdet)'
    NAMES = ('query_embedding',)
    COUNT = 'num_queries'
    RESULTS = 'test_cfg.max_per_img'

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether `module` is a detector with a ``bbox_head`` and an embedding of queries."""
        return hasattr(module, 'bbox_head') and super().fits(module)

    def _check(self) -> None:
        if getattr(self.owner, 'as_two_stage', False):
            raise ValueError(
                f'{type(self.owner).__name__} takes its queries from the encoder (as_two_stage); GPQ prunes '
                'learned ones'
            )

    @property
    def head(self) -> nn.Module:
        """The head, which stands beside the queries in the detector."""
        return self.owner.bbox_head

    @property
    def assigner(self) -> object | None:
        """The assigner of the head, or None if it has none."""
        return getattr(self.head, 'assigner', None)

    def last_logits(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """The logits of the last layer; the first output of the head has those of all layers."""
        return outputs[0][-1]

    @property
    def results(self) -> tuple[Any, str]:
        """The head's settings for tests and their entry ``max_per_img``."""
        return self.head.test_cfg, 'max_per_img'

    def results_of(self, num_queries: int) -> int:
        """The number of results: one per query with a softmax, else one per query and class."""
        return num_queries if self.activation == 'softmax' else num_queries * self.head.num_classes


QUERY_FAMILIES: list[type[LearnedQueries]] = [HeadQueries, TaskHeadQueries, DetectorQueries]


def find_queries(model: nn.Module) -> LearnedQueries:
    """The learned queries of `model`, to read: the model is not changed.

    Raises:
        ValueError: If no adapter knows its queries, or they cannot be pruned; the message says what was looked for.
    """
    for path, module in model.named_modules():
        for family in QUERY_FAMILIES:
            if family.fits(module):
                return family(module, path)
    known = '; '.join(family.LOOKS_FOR for family in QUERY_FAMILIES)
    raise ValueError(f'{type(model).__name__} has no learned queries that can be pruned. Looked for: {known}')


def make_prunable(model: nn.Module) -> LearnedQueries:
    """The learned queries of `model`, which can be removed from now on: their embedding is a `PrunableEmbedding`.

    The parameter, its name and the outputs of the model stay the same, bit for bit.

    Raises:
        ValueError: See `find_queries`.
    """
    return find_queries(model).make_prunable()


def learned_queries(model: nn.Module) -> LearnedQueries:
    """The older name of `make_prunable`; a report that only reads should use `find_queries`."""
    return make_prunable(model)


def num_queries(model: nn.Module) -> int | None:
    """The number of learned queries that `model` works with, or None if no adapter knows; changes nothing."""
    try:
        return find_queries(model).num_kept
    except ValueError:
        return None


def restore(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Prepares a model for a state dict from which queries were removed, so that loading it removes them here too.

    Other state dicts change nothing. The loader of mmprune3d calls this, so that a checkpoint of any moment of a
    training with GPQ can be loaded into the model of the original config.

    Args:
        model: The model that will load the state dict.
        state_dict: The state dict.
    """
    for name in prunable_names(state_dict):
        queries = find_queries(model)
        if queries.key == name:
            queries.make_prunable().announce(int((state_dict[f'{name}.{RANK}'] == 0).sum()))

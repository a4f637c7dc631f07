"""Where the learned queries of a detector are, for pruning them while it trains (GPQ).

Learned queries are the rows of an embedding. The embedding stays where it is and gets the class `PrunableEmbedding`, so
that the detector reads the rows that are left wherever it reads ``weight``. What else has to be known about a family of
detectors is a subclass of :class:`LearnedQueries`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mmprune3d.layers.gpq import PrunableEmbedding, prunable_names
from mmprune3d.pruning.gpq import RANK

from .layer_hooks import activation_of

MOST = 'mmprune3d_most_results'
"""Attribute of a head: how many results it gave per sample before queries were removed."""


class LearnedQueries(ABC):
    """The learned queries of one detector.

    Args:
        owner: The module that holds their embedding.
        path: Its name in the detector; '' is the detector itself.

    Attributes:
        embedding: Their embedding, from now on a `PrunableEmbedding`.

    Raises:
        ValueError: If the detector has other queries besides, or the embedding is none that can be pruned.
    """

    LOOKS_FOR: ClassVar[str]
    """What `fits` looks for, for the message about a model that no adapter knows."""
    NAMES: ClassVar[tuple[str, ...]]
    """Attributes that may hold the embedding."""
    COUNT: ClassVar[str]
    """Name of the number of queries in the config of the owner, and of its attribute if it has one."""
    RESULTS: ClassVar[str]
    """The same for the number of results per sample."""

    def __init__(self, owner: nn.Module, path: str) -> None:
        self.owner = owner
        self.path = path
        self.name = next(name for name in self.NAMES if isinstance(getattr(owner, name, None), nn.Embedding))
        self._check()
        try:
            self.embedding = PrunableEmbedding.convert(getattr(owner, self.name))
        except TypeError as error:
            raise ValueError(f'{type(owner).__name__}.{self.name}: {error}') from error

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether `module` holds the queries of a detector of this family."""
        return any(isinstance(getattr(module, name, None), nn.Embedding) for name in cls.NAMES)

    @abstractmethod
    def _check(self) -> None:
        """Raises ValueError for what `fits`, but cannot be pruned."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The module whose forward pass classifies the queries."""

    @property
    @abstractmethod
    def assigner(self) -> nn.Module | object | None:
        """What matches queries and objects in training, if it is known."""

    @abstractmethod
    def last_logits(self, outputs: Any) -> Tensor:
        """Logits [B, all queries, classes] of the last decoder layer in the outputs of `head`."""

    @property
    @abstractmethod
    def results(self) -> tuple[Any, str]:
        """The object that holds the number of results per sample, and the name of it."""

    @abstractmethod
    def results_of(self, num_queries: int) -> int:
        """How many results there can be from `num_queries` queries."""

    @property
    def activation(self) -> str:
        """'sigmoid' or 'softmax' (with the background in the last column)."""
        return activation_of(self.head)

    def learned_logits(self, outputs: Any) -> Tensor:
        """`last_logits` without denoising queries, which the PETR family puts in front: [B, N_q, classes]."""
        return self.last_logits(outputs)[:, -self.embedding.num_kept :]

    @property
    def key(self) -> str:
        """Name of the embedding in the detector."""
        return f'{self.path}.{self.name}'.lstrip('.')

    def announce(self, num_queries: int | None = None) -> None:
        """Tells the detector how many queries there are: some count them by a number that they were built with.

        The head must not ask for more results than the queries can give; it would fail.

        Args:
            num_queries: How many there are; None means as many as are left.
        """
        num_queries = num_queries or self.embedding.num_kept
        if hasattr(self.owner, self.COUNT):
            setattr(self.owner, self.COUNT, num_queries)
        most = self._most_results()
        if most is None:
            return
        setattr(self.head, MOST, most)
        holder, name = self.results
        limit = min(most, self.results_of(num_queries))
        if isinstance(holder, Mapping):
            holder[name] = limit
        else:
            setattr(holder, name, limit)

    def _most_results(self) -> int | None:
        """Results per sample before any query was removed, or None if the head does not say."""
        holder, name = self.results
        present = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
        return getattr(self.head, MOST, present)

    def config_changes(self, num_queries: int) -> dict[str, Any]:
        """Settings, by dotted key below ``model``, of the detector with `num_queries` queries.

        The number of results is among them where queries and classes give fewer.
        """
        changes, most = {self.COUNT: num_queries}, self._most_results()
        if most is not None and most > self.results_of(num_queries):
            changes[self.RESULTS] = self.results_of(num_queries)
        return {f'{self.path}.{name}'.lstrip('.'): value for name, value in changes.items()}


class HeadQueries(LearnedQueries):
    """Queries in the head: reference points as in PETR, or an embedding as in DETR3D."""

    LOOKS_FOR = 'a head with `cls_branches` and an nn.Embedding `reference_points` or `query_embedding` (PETR, DETR3D)'
    NAMES = ('reference_points', 'query_embedding')
    COUNT = 'num_query'
    RESULTS = 'bbox_coder.max_num'

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """By its branches and an embedding."""
        return hasattr(module, 'cls_branches') and super().fits(module)

    def _check(self) -> None:
        if getattr(self.owner, 'num_propagated', 0):
            raise ValueError(
                f'{type(self.owner).__name__} propagates queries from frame to frame (num_propagated='
                f'{self.owner.num_propagated}); GPQ prunes detectors whose queries are all learned'
            )

    @property
    def head(self) -> nn.Module:
        """The owner itself."""
        return self.owner

    @property
    def assigner(self) -> object | None:
        """Of our set loss, or the head's own."""
        return getattr(getattr(self.owner, 'set_loss', self.owner), 'assigner', None)

    def last_logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Under the name that the PETR family and DETR3D use."""
        return outputs['all_cls_scores'][-1]

    @property
    def activation(self) -> str:
        """That of the loss; ours is a part of the set loss."""
        return activation_of(getattr(self.owner, 'set_loss', self.owner))

    @property
    def results(self) -> tuple[Any, str]:
        """The box coder's setting."""
        return self.owner.bbox_coder, 'max_num'

    def results_of(self, num_queries: int) -> int:
        """A result is a pair of query and class."""
        return num_queries * self.owner.num_classes


class DetectorQueries(LearnedQueries):
    """Queries in the detector, beside its head, as in mmdet's DETR, ConditionalDETR and their like."""

    LOOKS_FOR = 'a detector with an nn.Embedding `query_embedding` and a `bbox_head` (DETR, ConditionalDETR of mmdet)'
    NAMES = ('query_embedding',)
    COUNT = 'num_queries'
    RESULTS = 'test_cfg.max_per_img'

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """By its head and an embedding."""
        return hasattr(module, 'bbox_head') and super().fits(module)

    def _check(self) -> None:
        if getattr(self.owner, 'as_two_stage', False):
            raise ValueError(
                f'{type(self.owner).__name__} takes its queries from the encoder (as_two_stage); GPQ prunes '
                'learned ones'
            )

    @property
    def head(self) -> nn.Module:
        """Beside the queries."""
        return self.owner.bbox_head

    @property
    def assigner(self) -> object | None:
        """The head's."""
        return getattr(self.head, 'assigner', None)

    def last_logits(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """The first output, of all layers."""
        return outputs[0][-1]

    @property
    def results(self) -> tuple[Any, str]:
        """A setting for tests."""
        return self.head.test_cfg, 'max_per_img'

    def results_of(self, num_queries: int) -> int:
        """With a softmax a query gives one result, else one per class."""
        return num_queries if self.activation == 'softmax' else num_queries * self.head.num_classes


QUERY_FAMILIES: list[type[LearnedQueries]] = [HeadQueries, DetectorQueries]


def learned_queries(model: nn.Module) -> LearnedQueries:
    """The learned queries of `model`, whose embedding can be pruned from now on.

    Raises:
        ValueError: If no adapter knows them; the message says what each one looks for.
    """
    for path, module in model.named_modules():
        for family in QUERY_FAMILIES:
            if family.fits(module):
                return family(module, path)
    known = '; '.join(family.LOOKS_FOR for family in QUERY_FAMILIES)
    raise ValueError(f'{type(model).__name__} has no learned queries that can be pruned. Looked for: {known}')


def num_queries(model: nn.Module) -> int | None:
    """How many learned queries `model` works with, or None if no adapter knows."""
    try:
        return learned_queries(model).embedding.num_kept
    except ValueError:
        return None


def restore(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Prepares a model for a state dict of which queries were removed, so that loading it removes them here too.

    Nothing happens for other state dicts. The loader of mmprune3d calls this, so that checkpoints of any moment of a
    training with GPQ load into the model of the original config.

    Args:
        model: To be loaded into.
        state_dict: To be loaded.
    """
    for name in prunable_names(state_dict):
        queries = learned_queries(model)
        if queries.key == name:
            queries.announce(int((state_dict[f'{name}.{RANK}'] == 0).sum()))

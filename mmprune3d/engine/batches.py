"""Batches of training data that are the same whenever they are read."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import nn
from torch.utils.data import DataLoader

from mmprune3d.layers.preserved import random_states


class CachedBatches(Sequence):
    """Batches of a data loader, stored as they were collated; reading one preprocesses it, always with the same result.

    Augmentations of the data set are part of what is stored. What a model does to a batch in place is not: every
    reading copies it.

    Args:
        raw: Batches as the loader collated them.
        preprocessor: The model's data preprocessor, which moves them to its device. It may draw random numbers.
        seed: The seed of these numbers, to which the place of the batch is added.
        places: The place of each batch, for parts of a longer sequence.
    """

    def __init__(
        self, raw: Sequence[Any], preprocessor: nn.Module, seed: int = 0, places: Sequence[int] | None = None
    ) -> None:
        self.raw, self.preprocessor, self.seed = raw, preprocessor, seed
        self.places = range(len(raw)) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | slice) -> Any:
        """The batch, as arguments of the model; for a slice, that part of the sequence."""
        if isinstance(index, slice):
            return CachedBatches(self.raw, self.preprocessor, self.seed, self.places[index])
        place = self.places[index]
        with seeded(self.seed + place):
            return self.preprocessor(copy.deepcopy(self.raw[place]), True)


def draw(loader: DataLoader, count: int, seed: int) -> list[Any]:
    """Batches of the data set of `loader`, shuffled by `seed` alone; `loader` itself is not touched.

    With several processes, each gets its share of the batch that one process would get with a batch size as many times
    larger. Drawing goes on from the beginning when the data set is exhausted.

    Args:
        loader: The data loader of the training, for its data set, batch size, workers and collation.
        count: Number of batches; with 0 the data set is not read.
        seed: The seed of the order and of the augmentations.
    """
    if not count:
        return []
    batch_size = loader.batch_size or loader.batch_sampler.batch_size
    with seeded(seed):
        own = DataLoader(
            loader.dataset,
            batch_size,
            sampler=InfiniteSampler(loader.dataset, shuffle=True, seed=seed),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
        )
        # copied: what workers send stays in shared memory, with an open file per tensor
        return [copy.deepcopy(batch) for batch in islice(own, count)]


def objects_in(batches: Sequence[Any]) -> int | None:
    """Annotated objects in all batches, raw or preprocessed; None if a batch has no data samples with annotations."""
    total = 0
    if isinstance(batches, CachedBatches):
        batches = [batches.raw[place] for place in batches.places]
    for batch in batches:
        for sample in (batch.get('data_samples') if isinstance(batch, Mapping) else None) or [None]:
            found = [getattr(sample, name, None) for name in ('gt_instances_3d', 'gt_instances')]
            if all(instances is None for instances in found):
                return None
            total += max(len(instances) for instances in found if instances is not None)
    return total


def warn_without_objects(batches: Sequence[Any], purpose: str) -> None:
    """Logs a warning if no batch, in any process, has an object: weights that only objects train have no gradient then.

    Args:
        batches: Batches, raw or preprocessed.
        purpose: What they are for, with which the warning begins.
    """
    found = objects_in(batches)
    count = torch.tensor([math.nan if found is None else float(found)])
    all_reduce(count)
    if count == 0:
        print_log(
            f'{purpose}: none of the {len(batches)} batches has an object. What only objects train, such as the '
            'regression of boxes, has gradients of 0, scores 0 and goes first. Draw batches with objects '
            '(filter_empty_gt=True in the training data set), or more of them',
            logger='current',
            level=logging.WARNING,
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of Python, NumPy and torch that depend on `seed` inside, and are not consumed outside."""
    if torch.cuda.is_available():
        torch.cuda.init()  # a seed for GPUs that are not in use yet would wait for them, and outlive the context
    with random_states():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield

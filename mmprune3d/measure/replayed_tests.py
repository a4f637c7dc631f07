"""Tests of one model under many plans: image features are computed once, then heads and metrics run per plan."""

from __future__ import annotations

import glob
import io
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from mmengine.hooks import LoggerHook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from mmprune3d import adapters
from mmprune3d.files import save_checkpoint
from mmprune3d.layers.nested import map_tensors

from .accuracy import evaluate, evenly_spaced, summarize
from .annotations import check_classes, require_accuracy
from .baseline import check_baseline
from .samples import Chosen, batch_size_of, check_samples, choose, judged_alone

MEMORY_LIMIT = 4 * 2**30
"""Bytes of features that are kept in memory; what comes later goes to files."""
Attachable = Any
"""A plan of any method that ``adapters.attach`` takes."""


def _mark() -> str:
    """How names of folders with features of this machine begin."""
    return f'features-{platform.node()}-'


def remove_leftovers(folder: Path) -> None:
    """Removes features of processes of this machine that were killed: they can be many gigabytes."""
    for path in folder.glob(f'{glob.escape(_mark())}*-*'):
        process = path.name.removeprefix(_mark()).partition('-')[0]
        try:
            os.kill(int(process), 0)  # asks whether it is there, nothing else
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (OSError, ValueError):  # somebody else's
            continue


class TensorStore(Sequence):
    """Trees of tensors: in memory as long as they fit, the rest in files of a folder that goes with the store.

    Folders that killed processes left behind in the same place go first.

    Args:
        memory_limit: Bytes to keep in memory.
        folder: Where the folder is made; None means the system's place for temporary files.
    """

    def __init__(self, memory_limit: int = MEMORY_LIMIT, folder: Path | None = None) -> None:
        self.memory_limit = memory_limit
        self.held = 0
        self._items: list[Any] = []
        if folder is not None:
            remove_leftovers(folder)
        self._files = TemporaryDirectory(prefix=f'{_mark()}{os.getpid()}-', dir=folder)

    def append(self, tree: Any) -> None:
        """Adds a tree; its tensors are moved to the CPU."""
        sizes: list[int] = []

        def move(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor.detach().cpu()

        tree = map_tensors(tree, move)
        if self.held + sum(sizes) <= self.memory_limit:
            self.held += sum(sizes)
            self._items.append(tree)
        else:
            path = Path(self._files.name) / f'{len(self)}.pth'
            save_checkpoint(tree, path)
            self._items.append(path)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        item = self._items[index]
        return torch.load(item, weights_only=True) if isinstance(item, Path) else item

    def close(self) -> None:
        """Empties the store and removes its files."""
        self._items.clear()
        self._files.cleanup()


class Replay:
    """Stands in for the test data loader: batches as the data preprocessor left them, without the images.

    Args:
        dataset: The samples that the batches were made from.
        batch_size: Samples per batch.
        batches: Preprocessed batches.

    Attributes:
        position: Number of the batch that was taken last.
    """

    def __init__(self, dataset: Chosen, batch_size: int, batches: list[dict[str, Any]]) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.batches = batches
        self.position = -1

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for position, batch in enumerate(self.batches):
            self.position = position
            yield copied(batch)


def copied(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with data samples of its own, on which a model may put its predictions."""
    return {**batch, 'data_samples': [sample.clone() for sample in batch['data_samples']]}


def without_images(batch: dict[str, Any]) -> dict[str, Any]:
    """A copy of a preprocessed batch whose images have their shape, type and device, but no content and no memory."""
    if isinstance(batch['inputs'], Tensor):
        return copied({**batch, 'inputs': _empty(batch['inputs'])})
    inputs = dict(batch['inputs'])
    if 'imgs' in inputs:
        inputs['imgs'] = _empty(inputs['imgs'])
    return copied({**batch, 'inputs': inputs})


def _empty(images: Tensor) -> Tensor:
    return images.new_zeros(()).expand(images.shape)


class CachedTest:
    """The config's own test loop and evaluator on a part of the test set, with `extract_feat` computed once.

    The first pass tests the unpruned model and records; every later one replays. Pruning of keys happens behind
    `extract_feat`, so a replayed test gives exactly the figures of ``runner.test()``.

    Args:
        runner: Built from a config with a test set; its checkpoint is loaded here.
        samples: How many samples, spread evenly over the test set, or in whole scenes (see `samples.choose`); None
            means all.
        memory_limit: See `TensorStore`.
        folder: See `TensorStore`.

    Attributes:
        baseline: Figures of the unpruned model, see `accuracy.summarize`.
        keys: Keys that each decoder layer of the unpruned model attends to, in the first batch.

    Raises:
        ValueError: If the model prunes already, has no `extract_feat`, or does not call it once per batch, or if the
            test set has fewer samples.
    """

    def __init__(
        self,
        runner: Runner,
        samples: int | None = None,
        memory_limit: int = MEMORY_LIMIT,
        folder: Path | None = None,
    ) -> None:
        check_baseline(runner)
        self.runner = runner
        self.model: Any = runner.model
        if not callable(getattr(self.model, 'extract_feat', None)):
            raise ValueError(f'{type(self.model).__name__} has no `extract_feat`: its features cannot be kept')
        whole = runner.test_dataloader
        require_accuracy(runner, 'testing plans')
        check_classes(self.model, whole.dataset)
        check_samples(runner)
        self.indices = choose(whole.dataset, self.model, samples).indices
        self.is_all = len(self.indices) == len(whole.dataset)
        self._stack = ExitStack()
        self._stack.enter_context(judged_alone(runner, Chosen(whole.dataset, self.indices)))
        self.features = TensorStore(memory_limit, folder)
        self._stack.callback(self.features.close)
        self.baseline = self._record(whole)
        with self._replaying(), torch.no_grad():
            self.keys = adapters.keys_per_layer(self.model, lambda: self.model.test_step(next(iter(self.replay))))

    def _record(self, whole: DataLoader) -> dict[str, float]:
        """Tests the unpruned model and keeps what a replay needs."""
        dataset, batches = Chosen(whole.dataset, self.indices), []
        loader = DataLoader(dataset, batch_size_of(whole), num_workers=whole.num_workers, collate_fn=whole.collate_fn)
        preprocess, extract = self.model.data_preprocessor.forward, self.model.extract_feat

        def keep_batch(*args: Any, **kwargs: Any) -> Any:
            batch = preprocess(*args, **kwargs)
            batches.append(without_images(batch))
            return batch

        def keep_features(*args: Any, **kwargs: Any) -> Any:
            features = extract(*args, **kwargs)
            self.features.append(features)
            return features

        with self._instead(loader, keep_batch, keep_features):
            figures = self._figures(None, 'baseline, image features')
        if len(self.features) != len(batches):
            raise ValueError(f'`extract_feat` ran {len(self.features)} times for {len(batches)} batches; valid is once')
        self.replay = Replay(dataset, batch_size_of(whole), batches)
        return figures

    @contextmanager
    def _instead(self, loader: object, preprocess: Callable, extract: Callable) -> Iterator[None]:
        """Other functions and data in the place of the model's and the runner's."""
        with (
            patch.object(self.runner.test_loop, 'dataloader', loader),
            patch.object(self.model.data_preprocessor, 'forward', preprocess),
            patch.object(self.model, 'extract_feat', extract),
        ):
            yield

    def _replaying(self) -> Any:
        device = next(self.model.parameters()).device

        def extract(*_: Any, **__: Any) -> Any:
            return map_tensors(self.features[self.replay.position], lambda tensor: tensor.to(device))

        return self._instead(self.replay, lambda batch, *_: batch, extract)

    def _figures(self, plan: Attachable | None, title: str) -> dict[str, float]:
        """Runs the test loop under `plan`, quietly."""
        hooks = list(self.runner.hooks)
        self.runner.hooks[:] = [hook for hook in hooks if not isinstance(hook, LoggerHook)]
        try:
            if plan is not None:
                adapters.attach(self.model, plan)
            with redirect_stdout(io.StringIO()):
                return summarize(evaluate(self.runner, title, leave=False))
        finally:
            self.runner.hooks[:] = hooks
            adapters.detach(self.model)

    def evaluate(self, plan: Attachable | None) -> dict[str, float]:
        """Figures of the model that prunes by `plan`; None means unpruned.

        Raises:
            ValueError: If the plan does not fit the decoder.
        """
        with self._replaying():
            return self._figures(plan, 'baseline' if plan is None else str(plan))

    @contextmanager
    def calls(self, samples: int) -> Iterator[Iterator[Callable[[], object]]]:
        """Inside the block: one call of the model for each of `samples` batches spread over the test."""
        chosen = set(evenly_spaced(len(self.replay), min(samples, len(self.replay))))
        with self._replaying():
            yield (
                partial(self.model.test_step, batch) for position, batch in enumerate(self.replay) if position in chosen
            )

    def close(self) -> None:
        """Lets the features go and makes the evaluation what it was."""
        self._stack.close()

    def __enter__(self) -> CachedTest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

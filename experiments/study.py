"""What the studies share: rows that are trained one at a time, each in a folder of its own, and the results of all.

Every training is a command of its own. It goes on where it was interrupted, and is not repeated once its result is
there. The tables are made of the results that exist.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from mmprune3d import files
from mmprune3d.checkpoint import begun
from mmprune3d.checkpoint.resuming import newest_whole_checkpoint
from mmprune3d.engine.batches import CachedBatches, draw
from mmprune3d.engine.recalibration import recalibrate
from mmprune3d.measure.annotations import require_accuracy_of
from mmprune3d.measure.runners import prepare

RESULT = 'result.json'
"""File in the folder of a finished row."""
WEIGHTS = 'final.pth'
"""File in the folder of a row with the weights that are tested."""
LOSS_WINDOW = 48
"""Last iterations, over which the training loss is averaged."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One training of a study, a row of its table.

    Attributes:
        title: How the table calls it.
        paper: What the paper reports for it; '' if the paper does not have it.
    """

    title: str
    paper: str = field(default='', kw_only=True)


RowType = TypeVar('RowType', bound=Row)


@dataclass(frozen=True)
class Study(Generic[RowType]):
    """The trainings of an experiment.

    Attributes:
        rows: All trainings by name, in the order of the table.
        train: Trains and tests a row, given the base config, its weights, the name of the row, the seed and the row's
            folder; returns what is found out.
        folder_name: Name of a row's folder, with the fields `name` and `seed`.
        leftovers: Pattern of the checkpoints that are removed once the result is written; '' keeps all.
    """

    rows: Mapping[str, RowType]
    train: Callable[[Config, Path, str, int, Path], Result]
    folder_name: str = '{name}-seed{seed}'
    leftovers: str = ''

    def check(self, names: Iterable[str]) -> None:
        """Refuses names that are not in `rows`.

        Raises:
            ValueError: The message lists the valid names.
        """
        for name in names:
            if name not in self.rows:
                raise ValueError(f'no training {name!r}; valid are {", ".join(self.rows)}')

    def folder(self, out: Path, name: str, seed: int) -> Path:
        """The folder of a row inside `out`, the folder of the study."""
        return out / self.folder_name.format(name=name, seed=seed)

    def run_training(self, base: Config, start: Path, name: str, seed: int, out: Path) -> Result:
        """Trains and tests a row, unless its result is there.

        Args:
            base: Config of the detector that all rows are made from.
            start: Its weights.
            name: Name of the row.
            seed: Seed of the training.
            out: Folder of the study; all of its rows belong to one `base` and one `start`.

        Returns:
            The content of the row's ``result.json``.

        Raises:
            ValueError: If the row does not exist, accuracy cannot be measured, or `out` has rows of another config or
                other weights.
        """
        self.check([name])
        where, data = self.folder(out, name, seed), begun.beginning(base, start)
        if (where / RESULT).is_file():
            begun.note(out, data)
            return files.read_json(where / RESULT)
        require_accuracy_of(base, 'the study')
        begun.note(out, data)
        result = {'name': name, 'seed': seed, **self.train(base, start, name, seed, where)}
        files.write_json(where / RESULT, result)
        for path in where.glob(self.leftovers) if self.leftovers else ():
            path.unlink()
        return result

    def results(self, out: Path) -> dict[str, list[Result]]:
        """Name -> results of the rows that were trained, in the order of `rows`; those of a row by seed.

        Raises:
            ValueError: If nothing was trained.
        """
        found = {}
        for name in self.rows:
            paths = out.glob(f'{self.folder_name.format(name=name, seed="*")}/{RESULT}')
            several = [result for path in paths if (result := files.read_json(path)).get('name') == name]
            if several:
                found[name] = sorted(several, key=lambda result: result['seed'])
        if not found:
            raise ValueError(f'{out} has no results; train first, for example {next(iter(self.rows))}')
        return found


def dataset_length(config: Config) -> int:
    """The number of samples of the training set."""
    from mmdet3d.registry import DATASETS

    settings = copy.deepcopy(config.train_dataloader.dataset)
    settings.pipeline = []
    settings.pop('indices', None)
    return len(DATASETS.build(settings))


def train(config: Config) -> tuple[Runner, Result]:
    """Runs a training, or what is left of it if it was interrupted.

    Args:
        config: Its config, see `mmprune3d.checkpoint.resuming.go_on`.

    Returns:
        The runner; and ``seconds`` since this start, ``iterations`` in all and ``loss``, the mean of the last
        `LOSS_WINDOW` iterations.
    """
    started = time.monotonic()
    runner = RUNNERS.build(config)
    runner.train()
    loss = runner.message_hub.get_scalar('train/loss').mean(LOSS_WINDOW)
    return runner, {'seconds': time.monotonic() - started, 'iterations': runner.max_iters, 'loss': float(loss)}


def last_checkpoint(where: Path) -> dict[str, Any]:
    """The newest checkpoint of the training in `where`."""
    return torch.load(newest_whole_checkpoint(where), map_location='cpu', weights_only=True)


def save_weights(weights: Mapping[str, Any], path: Path, meta: Mapping[str, Any] | None = None) -> None:
    """Writes a checkpoint with weights and without the state of a training."""
    files.save_checkpoint({'state_dict': weights, 'meta': dict(meta or {})}, path)


def estimate_norms(model: nn.Module, loader: Any, count: int, seed: int) -> None:
    """Estimates the statistics of batch norm anew: running averages lag behind a short training.

    Args:
        model: The detector; it is changed.
        loader: Loader of training samples.
        count: Batches that are used.
        seed: Decides which ones, and their augmentation.
    """
    recalibrate(model, CachedBatches(draw(loader, count, seed), model.data_preprocessor, seed))


def tester(config: Config, weights: Path) -> Runner:
    """A runner that tests `weights`; its logs go beside them."""
    return Runner.from_cfg(prepare(config, weights, weights.parent / 'test'))

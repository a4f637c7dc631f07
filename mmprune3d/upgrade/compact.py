"""Small checkpoints and configs for the unmodified detector, out of a training in which GPQ removed queries."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn

from mmprune3d import files
from mmprune3d.adapters.learned_queries import LearnedQueries, make_prunable
from mmprune3d.checkpoint.addresses import address_of, local_file
from mmprune3d.checkpoint.compact import TRAINING_STATE, compact_checkpoint
from mmprune3d.checkpoint.read import read_checkpoint
from mmprune3d.config_types import without
from mmprune3d.measure.runners import read_config
from mmprune3d.pruning.gpq import kept_at

GPQ_HOOK = 'GPQHook'


@dataclass(frozen=True)
class Compacted:
    """A detector with fewer queries.

    Attributes:
        num_queries: Number of its queries.
        config: A config of the unmodified detector class.
        checkpoint: The checkpoint for this config.
    """

    num_queries: int
    config: Config
    checkpoint: dict[str, Any]

    def write(self, out: Path, stem: str) -> tuple[Path, Path]:
        """Writes both into the folder `out`.

        Returns:
            The paths of config and checkpoint.
        """
        paths = out / f'{stem}_q{self.num_queries}.py', out / f'{stem}_q{self.num_queries}.pth'
        files.dump_config(self.config, paths[0])
        files.save_checkpoint(self.checkpoint, paths[1])
        return paths


def build_model(config: Config) -> nn.Module:
    """The detector of a config, without weights."""
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmdet3d'):
        return MODELS.build(copy.deepcopy(config.model))  # DETR's head writes into its config


def compact_config(config: Config, queries: LearnedQueries, num_queries: int) -> Config:
    """`config` with another number of queries and without GPQHook.

    Raises:
        ValueError: If the config does not say the number where the detector's family has it.
    """
    config = copy.deepcopy(config)
    changes = queries.config_changes(num_queries)
    for key in changes:
        *path, name = key.split('.')
        part = config.model
        for step in path:
            part = part.get(step, {})
        if name == queries.COUNT and name not in part:
            raise ValueError(f'the config has no model.{key}: say the number of queries there')
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    config.custom_hooks = without(config.get('custom_hooks'), GPQ_HOOK, HOOKS)
    config.load_from, config.resume = None, False
    return config


def optimizer_index(config: Config, model: nn.Module, parameter: nn.Parameter) -> int:
    """The number of a parameter in the state of the optimizer that the config builds.

    Raises:
        ValueError: If the config has no optimizer, or several.
    """
    settings = config.get('optim_wrapper')
    if settings is None or 'optimizer' not in settings:
        raise ValueError('the config has no single optimizer: leave its state out (--drop-training-state)')
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmdet3d'):
        groups = build_optim_wrapper(model, copy.deepcopy(settings)).optimizer.param_groups
    parameters = [one for group in groups for one in group['params']]
    return next(i for i, one in enumerate(parameters) if one is parameter)


def compact(
    config: Config, checkpoint: dict[str, Any], sizes: Sequence[int] = (), drop: Sequence[str] = ()
) -> list[Compacted]:
    """Deletes the removed queries from a checkpoint.

    Args:
        config: Config of the training.
        checkpoint: A checkpoint from any moment of the training.
        sizes: Numbers of queries; an empty list means as many as are left. A larger number brings back the queries that
            were removed last, as they were then; the rest of the detector has been trained without them since.
        drop: Parts of the checkpoint to leave out.

    Raises:
        ValueError: If no query was removed, or there were never that many.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    model = build_model(config)
    queries = make_prunable(model)
    load_state_dict(model, weights, strict=True)
    embedding: Any = queries.embedding
    if embedding.num_kept == len(embedding.removal_rank):
        raise ValueError(f'the checkpoint has all of its {embedding.num_kept} queries: there is nothing to compact')
    index = None
    if 'optimizer' in checkpoint and 'optimizer' not in drop:
        index = optimizer_index(config, model, embedding.all_rows)
    made = []
    for size in sizes or (embedding.num_kept,):
        kept = kept_at(embedding.removal_rank, size)
        if size > embedding.num_kept:
            print_log(
                f'{size} queries: {size - embedding.num_kept} of them had been removed, and are as they were then',
                logger='current',
            )
        made.append(_compact(config, checkpoint, queries, kept, index, drop))
    return made


def _compact(
    config: Config,
    checkpoint: dict[str, Any],
    queries: LearnedQueries,
    kept: Tensor,
    index: int | None,
    drop: Sequence[str],
) -> Compacted:
    small = compact_config(config, queries, len(kept))
    data = compact_checkpoint(checkpoint, queries.key, kept, index, drop)
    load_state_dict(build_model(small), data['state_dict'], strict=True)  # an error here, not at the user's
    return Compacted(len(kept), small, data)


def run_compact(
    config_file: Path,
    checkpoint: str | Path,
    out: Path | None = None,
    sizes: Sequence[int] = (),
    drop_training_state: bool = False,
    overrides: dict[str, Any] | None = None,
) -> list[tuple[Path, Path]]:
    """Writes a config and a checkpoint per size.

    Args:
        config_file: Config of the training.
        checkpoint: A checkpoint from any moment of the training: a file or an address.
        out: Folder; None means that of the checkpoint, or the current one if it was downloaded.
        sizes: See `compact`.
        drop_training_state: Leave out what only resuming needs.
        overrides: Settings on top of the config, by dotted key.

    Returns:
        Paths of config and checkpoint, in the order of `sizes`.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        ValueError: If there is nothing to compact, a size is impossible, or the checkpoint cannot be read.
    """
    path = local_file(checkpoint)
    beside = path.parent if address_of(checkpoint) is None else Path()
    files.writable(out or beside)
    config = read_config(config_file, path, overrides or {})
    made = compact(config, read_checkpoint(path), sizes, TRAINING_STATE if drop_training_state else ())
    return [one.write(out or beside, path.stem) for one in made]

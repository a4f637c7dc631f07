"""Which test samples are evaluated: all, or a part that the evaluator then judges as a part."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import mmengine
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from .accuracy import evenly_spaced
from .nuscenes_subset import quick_evaluation

SCENES = ('scene_token', 'scene_name', 'scene_id', 'scene', 'sequence', 'context_name')
"""Keys of infos that may say which scene a sample is of."""
DECLARED = 'is_temporal'
"""Attribute by which a model or a dataset says itself whether it uses earlier frames."""
MODEL_MEMORY = ('memory_len', 'video_test_mode', 'queue_length')
DATASET_MEMORY = ('queue_length', 'seq_mode')
"""Attributes above 0 or 1, or true, of models (StreamPETR, BEVFormer) and datasets that use earlier frames."""
WHOLE_ONLY = ('LyftMetric', 'WaymoMetric')
"""Evaluators that count samples without predictions as missed, and offer no way to leave them out."""
KNOW_PARTS = ('NuScenesMetric', 'KittiMetric', 'IndoorMetric')
"""Evaluators that judge the samples they get, NuScenesMetric with `quick_evaluation`."""


class Chosen(Subset):
    """Some samples of a dataset, which still tells their infos."""

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The info dict of sample `index` among the chosen ones, as ``get_data_info`` of the dataset gives it."""
        return data_info(self.dataset, self.indices[index])


def data_info(dataset: Dataset, index: int) -> dict[str, Any]:
    """The info of a sample, through wrappers of mmengine and torch; empty if the dataset has none."""
    if hasattr(dataset, 'get_data_info'):
        return dataset.get_data_info(index)
    if isinstance(dataset, Subset):
        return data_info(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part = bisect_right(dataset.cumulative_sizes, index)
        start = dataset.cumulative_sizes[part - 1] if part else 0
        return data_info(dataset.datasets[part], index - start)
    return {}


def count_samples(dataset: Dataset) -> int:
    """How many samples a dataset has; torch's own class does not promise that there is a length."""
    return len(cast(Sized, dataset))


def infos_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The info dicts of all samples of a dataset, in its order."""
    return (data_info(dataset, index) for index in range(count_samples(dataset)))


def innermost(dataset: Dataset) -> list[Dataset]:
    """The datasets inside of wrappers."""
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    inside = [inner for part in parts if isinstance(part, Dataset) for inner in innermost(part)]
    return inside or [dataset]


def temporal_reason(model: nn.Module, dataset: Dataset) -> str:
    """What says that predictions for a sample depend on those before it, or ''.

    Args:
        model: A detector. Its own `is_temporal`, or that of the dataset, settles it.
        dataset: The test set of the model.
    """
    parts = innermost(dataset)
    for owner in (model, *parts):
        if hasattr(owner, DECLARED):
            return f'{type(owner).__name__}.{DECLARED}' if getattr(owner, DECLARED) else ''
    owners = [*((module, MODEL_MEMORY) for module in model.modules()), *((part, DATASET_MEMORY) for part in parts)]
    for owner, names in owners:
        for name in names:
            value = getattr(owner, name, None)
            least = 1 if name == 'queue_length' else 0
            if isinstance(value, (bool, int)) and value > least:
                return f'{type(owner).__name__}.{name} = {value}'
    return ''


@dataclass(frozen=True)
class Choice:
    """Samples of a test set.

    Attributes:
        indices: Positions of the samples in the data set, ascending.
        note: How they were chosen, for people; '' for all.
    """

    indices: list[int]
    note: str = ''


def choose(dataset: Dataset, model: nn.Module, count: int | None) -> Choice:
    """`count` samples spread evenly over a dataset; whole scenes for a model that uses earlier frames.

    Args:
        dataset: The test set.
        model: The detector.
        count: How many; None means all. Of whole scenes there are as many as come closest to it, at least one.

    Raises:
        ValueError: If there are fewer samples, or scenes are needed and the infos do not tell them.
    """
    total = count_samples(dataset)
    if count is None or count == total:
        return Choice(list(range(total)))
    indices = evenly_spaced(total, count)
    reason = temporal_reason(model, dataset)
    if not reason:
        return Choice(indices, 'evenly spaced')
    scenes = _scenes(dataset, reason)
    number = min(max(round(count * len(scenes) / total), 1), len(scenes))
    taken = evenly_spaced(len(scenes), number)
    whole = sorted(index for place in taken for index in scenes[place])
    return Choice(whole, f'{number} of {len(scenes)} scenes, whole ones because of {reason}')


def _scenes(dataset: Dataset, reason: str) -> list[list[int]]:
    """Indices of the samples of each scene, in the order of their first samples."""
    found: dict[Any, list[int]] = {}
    for index, info in enumerate(infos_of(dataset)):
        key = next((info[name] for name in SCENES if info.get(name) is not None), None)
        if key is None:
            raise ValueError(
                f'the model uses earlier frames ({reason}), so that only whole scenes can be tested, but the infos do '
                f'not say which scene a sample is of (looked for {", ".join(SCENES)}): test all samples'
            )
        found.setdefault(key, []).append(index)
    return list(found.values())


def restrict(runner: Runner, count: int | None) -> Choice:
    """Makes the runner test `count` samples from now on; see `choose`.

    Returns:
        Which.

    Raises:
        ValueError: If that is not possible.
    """
    loader = runner.test_dataloader
    choice = choose(loader.dataset, runner.model, count)
    if len(choice.indices) < len(loader.dataset):
        runner.test_loop.dataloader = DataLoader(
            Chosen(loader.dataset, choice.indices),
            batch_size_of(loader),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
        )
    return choice


def batch_size_of(loader: DataLoader) -> int:
    """Samples per batch, also where a batch sampler of its own says it."""
    return loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None) or 1


def total_samples(runner: Runner) -> int:
    """How many samples the evaluator knows, of which the test set may be a part."""
    sizes = [len(runner.test_dataloader.dataset)]
    for metric in runner.test_evaluator.metrics:
        images = images_of(metric)
        sizes.append(len(images.imgs) if images is not None else len(_listed(metric)))
    return max(sizes)


def images_of(metric: object) -> Any:
    """The annotations of mmdet's CocoMetric, or None for another evaluator."""
    return getattr(metric, '_coco_api', None)


def is_kind(metric: object, *names: str) -> bool:
    """Whether an evaluator has a class of such a name among its bases."""
    return any(base.__name__ in names for base in type(metric).__mro__)


def _listed(metric: object) -> tuple[str | None, ...]:
    """What tells the samples in the file of an evaluator of mmdet3d from each other; empty if it has no such file."""
    path = getattr(metric, 'ann_file', None)
    if not isinstance(path, str) or not path.endswith('.pkl'):
        return ()
    changed = os.stat(path).st_mtime if os.path.exists(path) else 0.0
    return _identities(path, changed, json.dumps(getattr(metric, 'backend_args', None)))


@lru_cache(maxsize=4)
def _identities(path: str, changed: float, backend: str) -> tuple[str | None, ...]:
    """Of an info file; kept, as those of real data sets take seconds to read."""
    data = mmengine.load(path, backend_args=json.loads(backend))
    return tuple(identity(info) for info in (data.get('data_list') or () if isinstance(data, dict) else ()))


def identity(info: Mapping[str, Any]) -> str | None:
    """What tells a sample from others: its token, or the names of its files; None if nothing does."""
    if info.get('token'):
        return str(info['token'])
    lidar = (info.get('lidar_points') or {}).get('lidar_path') or info.get('lidar_path')
    if lidar:
        return Path(lidar).name
    files = [Path(image['img_path']).name for image in (info.get('images') or {}).values() if image.get('img_path')]
    return ' '.join(files) or None


def check_samples(runner: Runner) -> None:
    """Refuses a test set whose samples the evaluator would take for others, or does not know, before it is tested.

    mmdet3d's evaluators look a sample up by its number. It is the number in the dataset, not in the file: with
    ``dataset.indices`` and in concatenated datasets the two differ.

    Raises:
        ValueError: If they differ, or the evaluator needs all samples; the message says what to do.
    """
    dataset, metrics = runner.test_dataloader.dataset, runner.test_evaluator.metrics
    if count_samples(dataset) == 0:
        raise ValueError('the test set has no samples')
    _check_each_once(runner.test_dataloader)
    by_frame = all(getattr(part, 'load_type', 'frame_based') == 'frame_based' for part in innermost(dataset))
    for metric in metrics:
        if images_of(metric) is not None:
            _check_images(dataset, metric)
        elif by_frame:
            _check_numbers(dataset, metric)
    whole = [type(metric).__name__ for metric in metrics if is_kind(metric, *WHOLE_ONLY)]
    if whole and count_samples(dataset) < total_samples(runner):
        raise ValueError(f'{", ".join(whole)} judges whole test sets only: test all samples')


def _check_each_once(loader: DataLoader) -> None:
    """Refuses a loader that repeats samples, leaves some out, or never ends; the order does not matter."""
    if get_world_size() > 1:  # each process has a share
        return
    count = count_samples(loader.dataset)
    batches = loader.sampler if loader.batch_sampler is None else chain.from_iterable(loader.batch_sampler)
    given = list(islice(batches, count + 1))
    if sorted(given) == list(range(count)):
        return
    reason = 'drop_last=True' if getattr(loader, 'drop_last', False) else f'sampler {type(loader.sampler).__name__}'
    total = f'more than {count}' if len(given) > count else f'{len(given)}'
    raise ValueError(
        f'test_dataloader ({reason}) gives {total} samples, {len(set(given))} of them different, of a test set of '
        f"{count}: give each once, with sampler=dict(type='DefaultSampler', shuffle=False) and drop_last=False; "
        '--samples N of tools/upgrade.py takes a part of them'
    )


def _check_images(dataset: Dataset, metric: Any) -> None:
    ids = {info.get('img_id') for info in infos_of(dataset)} - {None}
    if not ids <= set(images_of(metric).imgs):
        raise ValueError(f'the test set has images that the ann_file of {type(metric).__name__} does not list')


def _check_numbers(dataset: Dataset, metric: Any) -> None:
    listed = _listed(metric)
    for info in infos_of(dataset) if listed else ():
        number, own = info.get('sample_idx'), identity(info)
        if not isinstance(number, int) or own is None:
            return
        if number >= len(listed) or listed[number] != own:
            raise ValueError(
                f'{type(metric).__name__} would take sample {own} of the test set for another one: it is number '
                f'{number} there, but not in {metric.ann_file}. That is so with dataset.indices, ConcatDataset, or '
                'another ann_file than that of the dataset. Test one whole ann_file; --samples N of tools/upgrade.py '
                'takes a part of it'
            )


@contextmanager
def judged_alone(runner: Runner, dataset: Dataset | None = None) -> Iterator[None]:
    """Inside, evaluations are about the samples of `dataset` alone, not about all that the evaluator knows.

    NuScenesMetric (see `quick_evaluation`) and CocoMetric are told which; those of KITTI and of indoor data judge what
    they get. For others a note says that they are trusted to.

    Args:
        runner: A runner with a test set.
        dataset: None means that of the runner.
    """
    dataset = runner.test_dataloader.dataset if dataset is None else dataset
    infos = list(infos_of(dataset))
    with ExitStack() as stack:
        tokens = list(dict.fromkeys(info['token'] for info in infos if 'token' in info))
        stack.enter_context(quick_evaluation(tokens))
        for metric in runner.test_evaluator.metrics:
            if images_of(metric) is not None:
                ids = sorted({info['img_id'] for info in infos if 'img_id' in info})
                stack.enter_context(patch.object(metric, 'img_ids', ids or None))
            elif not is_kind(metric, *KNOW_PARTS) and len(infos) < total_samples(runner):
                print_log(f'{type(metric).__name__} gets {len(infos)} samples, and is trusted to judge these alone')
        yield

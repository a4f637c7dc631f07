"""Checks of settings that several parts of a model share, with messages that name all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from mmengine.logging import print_log
from torch import Tensor

from mmprune3d.ops.grid import misfits

TOLERANCE = 1e-4
"""Largest difference of settings that count as equal, in their own unit (metres, cells)."""


def check_equal(what: str, settings: Mapping[str, Sequence[float] | None]) -> None:
    """Checks that settings with the same meaning are equal.

    Args:
        what: Meaning of the settings, for the message.
        settings: Name in the config -> numbers, of the same count in each; None where a setting is not given.

    Raises:
        ValueError: If two settings differ; the message lists all of them.
    """
    given = {name: [float(value) for value in values] for name, values in settings.items() if values is not None}
    first = next(iter(given.values()), [])
    if all(
        len(values) == len(first) and all(abs(a - b) <= TOLERANCE for a, b in zip(values, first, strict=True))
        for values in given.values()
    ):
        return
    listed = ', '.join(f'{name}: {_short(values)}' for name, values in given.items())
    raise ValueError(f'{what} must be the same everywhere, but is {listed}')


def check_room(what: str, have: Sequence[int], need: Sequence[int], why: str) -> None:
    """Checks that a shape has room for all cells of a grid; a larger shape is allowed.

    Raises:
        ValueError: If an axis is too short.
    """
    if len(have) != len(need) or any(a < b for a, b in zip(have, need, strict=True)):
        raise ValueError(f'{what}={list(have)} is too small: {why} has {list(need)} cells')


def check_columns(found: int, expected: int, setting: str) -> None:
    """Compares the columns of a point cloud with those that a model was built for.

    Raises:
        ValueError: If the numbers differ; the message names the settings of the pipeline that determine them.
    """
    if found != expected:
        raise ValueError(
            f'the points have {found} columns, but {setting}={expected}: use_dim of LoadPointsFromFile (and of '
            f'LoadPointsFromMultiSweeps, if the pipeline has it) must keep {expected} of the load_dim columns in the '
            f'files, or {setting} must be {found}'
        )


def check_labels(labels: Sequence[Tensor], num_classes: int, setting: str) -> None:
    """Compares the labels [N_b] of the objects in each sample with the classes of a head.

    Raises:
        ValueError: If a label is not a class of the head, which would read or write beyond its tensors.
    """
    highest = max((int(of_sample.max()) for of_sample in labels if len(of_sample)), default=-1)
    if highest >= num_classes:
        raise ValueError(
            f'an object has label {highest}, but {setting}={num_classes} (labels 0 to {num_classes - 1}): it must be '
            'the number of classes in metainfo of the data set'
        )


def warn_of_misfits(where: str, point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> None:
    """Logs a warning if voxels do not fill the range, with sizes and ranges that fit.

    Raises:
        ValueError: If range or size are not valid.
    """
    for sentence in misfits(point_cloud_range, voxel_size):
        print_log(f'{where}: {sentence}', logger='current', level=logging.WARNING)


def _short(values: Sequence[float]) -> str:
    return '[' + ', '.join(f'{value:g}' for value in values) + ']'

"""Times of the detectors of the halting study: all in one process, in turns, on frames of the test set."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from experiments.study import RESULT, WEIGHTS
from mmprune3d import files
from mmprune3d.measure import report as reports
from mmprune3d.measure.accuracy import evenly_spaced
from mmprune3d.measure.runners import loaded_runner, prepare
from mmprune3d.measure.timing import medians, milliseconds, timed_methods

from .rows import CONTROL, RUNS, row_config
from .study import STUDY, halts

PARTS = ('sra', 'backbone', 'detector', 'map')
"""Attention blocks and the planning of their windows; the whole backbone, with the halting modules; the whole
prediction, from points to boxes; the map of the tokens with its convolutions, which no method changes."""
FRAMES = 16
REPEATS = 3


@torch.inference_mode()
def time_parts(detector: nn.Module, batch: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of `PARTS` in one prediction.

    Raises:
        RuntimeError: If a part did not run: the backbone is no SST.
    """
    methods = {
        'sra': ('plan', 'run_block'),
        # a class calls one of them through the other
        'backbone': ('forward_with_record',) if halts(detector) else ('forward',),
        'map': ('to_map',),
    }
    spent: dict[str, list[float]] = {part: [] for part in methods}
    batch = copy.deepcopy(batch)
    with ExitStack() as stack:
        for part, names in methods.items():
            stack.enter_context(timed_methods(detector.backbone, names, spent[part]))
        device = next(detector.parameters()).device.type
        whole = milliseconds(lambda: detector.test_step(batch), device)
    idle = [part for part, times in spent.items() if not times]
    if idle:
        raise RuntimeError(f'{type(detector.backbone).__name__} has not run {", ".join(idle)}: it cannot be timed')
    return {**{part: sum(times) for part, times in spent.items()}, 'detector': whole}


def measure_speed(
    base: Config, out: Path, seed: int, frames: int = FRAMES, repeats: int = REPEATS
) -> dict[str, dict[str, Any]]:
    """Times all rows that were trained with a seed, and adds the times to their ``result.json``.

    Args:
        base: Config of the SST without halting.
        out: Folder of the study.
        seed: Seed of the trainings.
        frames: Number of samples, evenly spaced over the test set, one at a time.
        repeats: Timed rounds on each sample.

    Returns:
        For each row its median milliseconds ``ms`` and those of the control ``control_ms``, by part, ``frames``,
        ``repeats`` and ``env``.

    Raises:
        ValueError: If the control was not trained, or there are fewer samples.
    """
    trained = [name for name in RUNS if (STUDY.folder(out, name, seed) / RESULT).is_file()]
    if CONTROL not in trained:
        raise ValueError(f'{out} has no results of {CONTROL} with seed {seed}, against which the others are timed')
    runners = {name: _runner(base, name, STUDY.folder(out, name, seed)) for name in trained}
    loader = runners[CONTROL].test_dataloader
    times: dict[str, list[dict[str, float]]] = {name: [] for name in trained}
    places = evenly_spaced(len(loader.dataset), frames)
    for frame, place in enumerate(tqdm(places, desc='timing', unit='frame', leave=False)):
        batch = loader.collate_fn([loader.dataset[place]])
        for turn in range(repeats + (frame == 0)):
            for name, runner in runners.items():
                spent = time_parts(runner.model, batch)
                if frame or turn:  # the very first round warms up
                    times[name].append(spent)
    env = reports.environment(1, 'float32')
    known = {'control_ms': medians(times[CONTROL]), 'frames': frames, 'repeats': repeats, 'env': env}
    speeds = {name: {'ms': medians(several), **known} for name, several in times.items()}
    for name, speed in speeds.items():
        path = STUDY.folder(out, name, seed) / RESULT
        files.write_json(path, files.read_json(path) | {'speed': speed})
    return speeds


def _runner(base: Config, name: str, folder: Path) -> Runner:
    return loaded_runner(prepare(row_config(base, RUNS[name]), folder / WEIGHTS, folder / 'speed'))

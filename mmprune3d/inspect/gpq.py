"""Which learned queries a detector uses, before and after GPQ: Figures 2 and 4 of the GPQ paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from mmprune3d import files
from mmprune3d.adapters.learned_queries import LearnedQueries, find_queries
from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.measure import report as reports
from mmprune3d.measure.accuracy import evenly_spaced
from mmprune3d.measure.runners import loaded_runner, prepare, read_config
from mmprune3d.measure.samples import batch_size_of
from mmprune3d.screen import bar
from mmprune3d.visualization.queries import draw_frequencies, draw_points, draw_trajectories

from .query_history import QueryHistory
from .query_points import points_in_metres, range_of
from .query_selection import Selection, SelectionCounter
from .query_use import COUNTS, PICTURES, QueryUse, markdown


@dataclass(frozen=True)
class Candidate:
    """A detector whose queries are counted.

    Attributes:
        name: The name of the detector in tables and pictures.
        config_file: The config of the detector.
        checkpoint: The weights of the detector: a file or an address.
    """

    name: str
    config_file: Path
    checkpoint: str | Path

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Reads ``NAME=CONFIG:CHECKPOINT``.

        Raises:
            ValueError: If a part is missing.
        """
        name, _, files = text.partition('=')
        config_file, _, checkpoint = files.partition(':')
        if not (name and config_file and checkpoint):
            raise ValueError(f'cannot read --compare {text!r}; valid is NAME=CONFIG:CHECKPOINT')
        return cls(name, Path(config_file), checkpoint)


@torch.no_grad()
def count_selections(runner: Runner, queries: LearnedQueries, samples: int | None, threshold: float) -> Selection:
    """Counts how often each query is among the results of test samples.

    Args:
        runner: A runner with a test set; its model is run.
        queries: The learned queries of the model.
        samples: Number of samples, evenly spaced over the test set; None means all.
        threshold: Lowest score of a confident result.

    Raises:
        ValueError: If there are fewer samples, or the head does not run exactly once per sample.
    """
    whole = runner.test_dataloader
    part = Subset(whole.dataset, evenly_spaced(len(whole.dataset), samples))
    loader = DataLoader(part, batch_size_of(whole), num_workers=whole.num_workers, collate_fn=whole.collate_fn)
    counter = SelectionCounter(queries, threshold)
    with counter.listening():
        for batch in bar(loader, desc='queries', unit='batches', leave=False):
            runner.model.test_step(batch)
    if counter.selection.samples != len(part):
        raise ValueError(f'the head saw {counter.selection.samples} samples of {len(part)}; valid is once for each')
    return counter.selection


def look_at(name: str, config: Config, samples: int | None, threshold: float) -> QueryUse:
    """Counts the queries of one detector and locates them.

    Args:
        name: See `Candidate`.
        config: A prepared config, see `measure.runners.prepare`.
        samples: Number of samples, evenly spaced over the test set; None means all.
        threshold: Lowest score of a confident result.

    Raises:
        ValueError: If the detector has no learned queries, or the test set has fewer samples.
    """
    runner = loaded_runner(config)
    queries = find_queries(runner.model)
    selection = count_selections(runner, queries, samples, threshold)
    points = points_in_metres(queries)
    return QueryUse(
        name=name,
        kept=queries.kept.cpu(),
        removal_rank=queries.removal_rank.cpu(),
        selection=selection,
        points=points,
        pc_range=None if points is None else range_of(queries),
        env=reports.environment(
            batch_size_of(runner.test_dataloader), str(next(runner.model.parameters()).dtype).removeprefix('torch.')
        ),
    )


def draw(uses: Sequence[QueryUse], history: QueryHistory | None, threshold: float, out: Path) -> None:
    """Draws ``frequency.png``, and ``points.png`` and ``trajectories.png`` where there are points and a history."""
    titles = ('all results', f'results with a score of {threshold:g} or more')
    curves = {
        title: {f'{use.name} ({len(use.kept)} queries)': use.frequency(way).numpy() for use in uses}
        for way, title in zip(COUNTS, titles, strict=True)
    }
    draw_frequencies(out / PICTURES[0], curves)
    panels = [use.panel() for use in uses if use.points is not None]
    if panels:
        draw_points(out / PICTURES[1], panels)
    if history is not None:
        draw_trajectories(out / PICTURES[2], history.trajectories(), history.removed_at, history.thresholds())


def run_analysis(
    candidates: Sequence[Candidate],
    out: Path,
    history_file: Path | None,
    samples: int | None,
    threshold: float,
    overrides: dict[str, Any],
) -> str:
    """Counts the queries of detectors, one after the other, and writes tables and pictures into `out`.

    Args:
        candidates: The detectors.
        out: Folder for ``queries.json``, ``queries.md``, the pictures and ``logs/``.
        history_file: The ``gpq_history.jsonl`` of a training with GPQHook, or None.
        samples: Number of samples, evenly spaced over the test set; None means all.
        threshold: Lowest score of a confident result.
        overrides: Settings on top of every config, by dotted key.

    Returns:
        The table as Markdown, as in `queries.md`.

    Raises:
        FileNotFoundError: If a config, a checkpoint or the history is missing.
        ValueError: If two names are equal, a detector has no learned queries, a config prunes keys or has no test set,
            or GPQHook did not write the history.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f'every model needs a name of its own, found {", ".join(names)}')
    if not 0 <= threshold <= 1:
        raise ValueError(f'the score threshold {threshold:g} must lie from 0 to 1')
    # all files are looked at before the first model runs
    history = None if history_file is None else QueryHistory.read(history_file)
    pairs = [(candidate.config_file, local_file(candidate.checkpoint)) for candidate in candidates]
    configs = [prepare(read_config(*pair, overrides), pair[1], out) for pair in pairs]
    uses = [look_at(name, config, samples, threshold) for name, config in zip(names, configs, strict=True)]
    data = {
        'threshold': threshold,
        'models': [use.to_dict() for use in uses],
        'history': None if history is None else history.to_dict(),
    }
    files.write_json(out / 'queries.json', data, indent=None)
    text = markdown(uses, history, threshold)
    files.write_text(out / 'queries.md', text)
    draw(uses, history, threshold, out)  # after what took long is written
    return text

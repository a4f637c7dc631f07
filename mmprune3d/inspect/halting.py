"""Which tokens a detector halts: shares by layer, kind and distance, and pictures (token halting, Figures 3 and 4)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.engine.halting import grid_of, halting_detector, listening
from mmprune3d.measure import report as reports
from mmprune3d.measure.accuracy import evenly_spaced
from mmprune3d.measure.runners import loaded_runner, prepare, read_config
from mmprune3d.pruning.halting import HaltingRecord
from mmprune3d.pruning.halting_counts import inside_boxes, layer_counts
from mmprune3d.visualization.drawing import box_corners
from mmprune3d.visualization.halted_tokens import draw_halted_tokens, draw_sparsity

RINGS = (30.0, 50.0)
"""Metres; the ranges of the paper's Table 3 are below 30, 30 to 50, and beyond."""
KINDS = ('foreground', 'background')


class HaltingStatistics:
    """Counts halted and live tokens over samples, by attention layer, foreground or background, and distance.

    Args:
        voxel_size: Size of a voxel, x, y, z in metres.
        point_cloud_range: Lower x, y, z and upper x, y, z in metres.
        rings: Boundaries of the distance rings: distances from the sensor on the ground in metres, ascending.

    Raises:
        ValueError: If the distances are not positive and ascending.
    """

    def __init__(
        self, voxel_size: Sequence[float], point_cloud_range: Sequence[float], rings: Sequence[float] = RINGS
    ) -> None:
        edges = [0.0, *map(float, rings)]
        if any(near >= far for near, far in pairwise(edges)):
            raise ValueError(f'rings={list(rings)} must be distances in metres above 0 that ascend, such as [30, 50]')
        self.voxel_size, self.point_cloud_range = tuple(voxel_size), tuple(point_cloud_range)
        self.edges, self.samples = edges, 0
        self.tokens = torch.zeros(len(edges), len(KINDS), dtype=torch.float64)
        self.live: Tensor | None = None

    @torch.no_grad()
    def add(self, record: HaltingRecord, boxes: Sequence[Tensor] | None) -> None:
        """Counts the tokens of a batch.

        Args:
            record: The halting record of the batch.
            boxes: Annotated boxes per sample, [G, 7 or more] x, y, z, length, width, height, yaw.

        Raises:
            ValueError: Without boxes, or if the detector has another number of layers than before.
        """
        if boxes is None:
            raise ValueError('foreground and background need annotated boxes; the samples of the data set have none')
        if self.live is not None and len(self.live) != record.num_layers:
            raise ValueError(f'a record of {record.num_layers} layers after records of {len(self.live)}')
        inside = inside_boxes(record.coords, boxes, self.voxel_size, self.point_cloud_range)
        groups = self.ring(record.coords) * len(KINDS) + (~inside).long()
        tokens, live = layer_counts(record, groups, self.tokens.numel())
        self.tokens += tokens.view_as(self.tokens).cpu()
        live = live.view(-1, *self.tokens.shape).cpu()
        self.live = live if self.live is None else self.live + live
        self.samples += record.batch_size

    def ring(self, coords: Tensor) -> Tensor:
        """The distance ring of each token, [N] int64, 0 for the nearest.

        Args:
            coords: [N, 4], batch index and voxel indices z, y, x of each token; the centre of the voxel counts.
        """
        grid = (self.voxel_size, self.point_cloud_range)
        size, lower = (coords.new_tensor(values[:2], dtype=torch.float64) for values in grid)
        center = (coords[:, [3, 2]] + 0.5) * size + lower
        return torch.bucketize(center.norm(dim=1), center.new_tensor(self.edges[1:]), right=True)

    def counts(self, ring: int | None = None, kind: str | None = None) -> tuple[float, Tensor]:
        """Number of tokens, and number of live tokens in each attention layer, [num_layers].

        Args:
            ring: Number of a distance ring; None counts all.
            kind: 'foreground' or 'background'; None counts both.

        Raises:
            ValueError: If no record was added.
        """
        if self.live is None:
            raise ValueError('no record was added: no sample was run, or the detector did not call its listeners')
        tokens, live = self.tokens, self.live
        if ring is not None:
            tokens, live = tokens[ring, None], live[:, ring, None]
        if kind is not None:
            tokens, live = tokens[:, KINDS.index(kind), None], live[..., KINDS.index(kind), None]
        return float(tokens.sum()), live.sum((1, 2))

    def sparsity(self, ring: int | None = None, kind: str | None = None) -> Tensor:
        """Share of halted tokens in each attention layer, [num_layers]; NaN without tokens. Arguments as `counts`."""
        tokens, live = self.counts(ring, kind)
        return 1 - live / tokens

    def rows(self) -> Iterator[tuple[str, float, list[float]]]:
        """Name, tokens per sample and sparsity per layer: of all tokens, of both kinds, and of each in every ring."""
        names = {None: ''} | {ring: f' {self.ring_name(ring)}' for ring in range(len(self.edges))}
        for ring, place in names.items():
            for kind in (None, *KINDS):
                tokens, live = self.counts(ring, kind)
                yield f'{kind or "all"}{place}', tokens / self.samples, (1 - live / tokens).tolist()

    def ring_name(self, ring: int) -> str:
        """The name of a distance ring in tables."""
        if ring + 1 == len(self.edges):
            return f'beyond {self.edges[ring]:g} m'
        return f'{self.edges[ring]:g} to {self.edges[ring + 1]:g} m'

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain types; the sparsity is None where there are no tokens."""
        rows = {
            name: {'tokens_per_sample': tokens, 'sparsity': shares if tokens else None}
            for name, tokens, shares in self.rows()
        }
        return {'samples': self.samples, 'rows': rows}

    def markdown(self) -> str:
        """A Markdown table in percent: a row per kind and ring, a column per attention layer, and their mean."""
        layers = len(self.sparsity())
        head = ['halted tokens (%)', 'tokens per sample', *(f'layer {layer}' for layer in range(layers)), 'mean']
        lines = [f'| {" | ".join(head)} |', f'|---|{"---:|" * (layers + 2)}']
        for name, tokens, shares in self.rows():
            values = [f'{100 * share:.1f}' if tokens else '-' for share in [*shares, sum(shares) / layers]]
            lines.append(f'| {" | ".join([name, f"{tokens:.1f}", *values])} |')
        return '\n'.join(lines)

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Kind -> (layer, sparsity), for `draw_sparsity`; kinds without tokens are left out."""
        return {kind: list(enumerate(self.sparsity(kind=kind).tolist())) for kind in KINDS if self.counts(kind=kind)[0]}


def training_curves(log: Path, gate: int | None = None) -> dict[str, list[tuple[float, float]]]:
    """The sparsity of foreground and background tokens over a training with HaltingHook.

    Args:
        log: The file ``scalars.json`` of the training, one JSON object per line.
        gate: The gate after which tokens are counted; None means the mean over all attention layers.

    Returns:
        Kind -> (iteration, share in 0..1), for `draw_sparsity`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file has no such figures.
    """
    if not log.is_file():
        raise FileNotFoundError(f'{log} does not exist')
    name = 'mean' if gate is None else f'gate{gate}'
    # figures of validations have the same names, and no iteration
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith('}')]
    found = {
        kind: [(line['iter'], line[key]) for line in lines if key in line and 'iter' in line]
        for kind, key in ((kind, f'halting/{name}_{kind}') for kind in KINDS)
    }
    if not all(found.values()):
        there = sorted({key for line in lines for key in line if key.startswith('halting/')})
        raise ValueError(
            f'{log} has no halting/{name}_foreground and _background in lines of training; of HaltingHook there is '
            f'{", ".join(there) or "nothing"}'
        )
    return found


def found_boxes(prediction: Any, classes: Sequence[str], score: float) -> dict[str, np.ndarray]:
    """The predicted boxes of each class, seen from above.

    Args:
        prediction: A data sample with `pred_instances_3d`.
        classes: Names of the classes in the order of their labels.
        score: Lowest score of a box.

    Returns:
        Class -> [M, 4, 2] corners in metres; M may be 0.
    """
    found = prediction.pred_instances_3d
    labels = torch.where(found.scores_3d >= score, found.labels_3d, -1).cpu().numpy()
    corners = corners_from_above(found.bboxes_3d.tensor)
    return {name: corners[labels == label] for label, name in enumerate(classes)}


def corners_from_above(boxes: Tensor) -> np.ndarray:
    """The corners [G, 4, 2] of boxes [G, 7 or more] seen from above, in metres."""
    return box_corners(boxes.detach().cpu().numpy())[:, :4, :2]


def draw_sample(
    path: Path,
    record: HaltingRecord,
    boxes: Sequence[Tensor] | None,
    found: Mapping[str, np.ndarray],
    grid: tuple[Sequence[float], Sequence[float]],
    title: str = '',
) -> None:
    """Draws the halted tokens of one sample, as in Figure 3 of the paper.

    Args:
        path: PNG file to write.
        record: The halting record of a batch of one sample.
        boxes: A list with the annotated boxes of the sample, or None.
        found: Predicted boxes, see `found_boxes`.
        grid: Voxel size and point cloud range, see `grid_of`.
        title: Title of the picture.
    """
    draw_halted_tokens(
        path,
        record.coords.cpu().numpy(),
        record.halted_at().cpu().numpy(),
        [step.layer for step in record.steps],
        *grid,
        truth=None if boxes is None else corners_from_above(boxes[0]),
        found=found,
        title=f'{title}: mean sparsity of the attention layers {record.mean_sparsity():.1%}',
    )


@torch.no_grad()
def run_halting(
    config_file: Path,
    checkpoint: Path,
    shown: Sequence[int],
    out: Path,
    overrides: dict[str, Any],
    counted: int | None = None,
    score: float = 0.3,
    logs: Mapping[str, Path] | None = None,
) -> str:
    """Runs a detector on samples of its test set and writes pictures, plots and a table into `out`.

    Args:
        config_file: The config of a detector that halts tokens.
        checkpoint: The weights of the detector.
        shown: Indices of the samples that are drawn, as ``halting_<index>.png``.
        out: Folder for the pictures, `layers.png`, `report.json`, `report.md` and `logs/`.
        overrides: Settings on top of the config, by dotted key.
        counted: Number of samples, evenly spaced over the test set, in the table; None means those that are drawn.
        score: Lowest score of a drawn box.
        logs: Name of a training -> its ``scalars.json``, for `training.png`.

    Returns:
        The table as Markdown, as in `report.md`.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If an index is outside the test set, the detector halts no tokens, or a log lacks the figures.
    """
    curves = {name: training_curves(log) for name, log in (logs or {}).items()}
    checkpoint = local_file(checkpoint)
    runner = loaded_runner(prepare(read_config(config_file, checkpoint, overrides), checkpoint, out))
    detector, loader = halting_detector(runner.model), runner.test_dataloader
    total, grid = len(loader.dataset), grid_of(detector)
    wrong = [index for index in shown if not 0 <= index < total]
    if wrong or not (shown or counted):
        raise ValueError(f'samples {wrong or "[]"} cannot be shown; valid are 0 to {total - 1}')
    statistics = HaltingStatistics(*grid)
    inside = set(shown) if counted is None else set(evenly_spaced(total, counted))
    seen: list[tuple[HaltingRecord, list[Tensor] | None]] = []
    with listening(detector, lambda record, boxes: seen.append((record, boxes))):
        for index in sorted(inside | set(shown)):
            prediction = runner.model.test_step(loader.collate_fn([loader.dataset[index]]))[0]
            if not seen:
                raise ValueError(f'{type(detector).__name__} did not call its record_listeners in predict()')
            record, boxes = seen.pop()
            if index in inside:
                statistics.add(record, boxes)
            if index in shown:
                found = found_boxes(prediction, loader.dataset.metainfo['classes'], score)
                draw_sample(out / f'halting_{index}.png', record, boxes, found, grid, f'sample {index}')
    dtype = str(next(detector.parameters()).dtype).removeprefix('torch.')
    report = {'config': config_file.name, **statistics.to_dict(), 'env': reports.environment(1, dtype)}
    text = f'# Halted tokens of {config_file.stem}\n\n{statistics.markdown()}\n\nOver {statistics.samples} samples.\n'
    reports.write(report, out, text)
    draw_sparsity(out / 'layers.png', {config_file.stem: statistics.curves()}, 'attention layer')
    if curves:
        draw_sparsity(out / 'training.png', curves, 'iteration')
    return text

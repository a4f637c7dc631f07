"""Where the reference points of learned queries are, and how evenly they are spread (GPQ paper, Figure 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmprune3d.adapters.learned_queries import LearnedQueries

POINTS = 'reference_points'
"""Name of an embedding whose rows are reference points in the detection range."""


@torch.no_grad()
def points_in_metres(queries: LearnedQueries) -> Tensor | None:
    """The reference points of all queries; removed ones are where they were when they were removed.

    Returns:
        [N, 3] x, y, z in metres, on the CPU; None if the detector has no reference points, or its range is not known.
    """
    rows = queries.rows.detach().cpu()
    pc_range = range_of(queries)
    if queries.name != POINTS or rows.shape[1] != 3 or pc_range is None:
        return None
    low, high = rows.new_tensor(pc_range).split(3)
    return rows.clamp(0, 1) * (high - low) + low  # training may move them a little out of the range; heads clamp them


def range_of(queries: LearnedQueries) -> list[float] | None:
    """The detection range of the box coder, lower x, y, z and upper x, y, z in metres; None if it has none."""
    pc_range = getattr(getattr(queries.head, 'bbox_coder', None), 'pc_range', None)
    return None if pc_range is None else [float(bound) for bound in pc_range]


def nearest_distances(points: Tensor) -> Tensor:
    """The distance of every point [N, 2 or 3] to the nearest other point, [N]; N > 1."""
    distances = torch.cdist(points.double(), points.double(), compute_mode='donot_use_mm_for_euclid_dist')
    return distances.fill_diagonal_(math.inf).min(1).values


def spread(points: Tensor, pc_range: Sequence[float]) -> dict[str, float]:
    """How evenly points are spread, seen from above.

    The mean distance to the nearest neighbour depends on how many points there are. Clark and Evans ("Distance to
    nearest neighbor as a measure of spatial relationships in populations", Ecology 1954) divide it by its expectation
    for as many random points. Expectation and standard deviation are Donnelly's (1978), who considers the edges.

    Args:
        points: [N, 3] x, y, z in metres, N > 1.
        pc_range: Lower x, y, z and upper x, y, z in metres.

    Returns:
        ``neighbour_m``: mean distance to the nearest neighbour on the ground. ``clark_evans``: the ratio; 1 for random
        points, less for clusters, more for regular grids (2.15 at most). ``clark_evans_z``: how many standard
        deviations it is off that of random points. ``height_m`` and ``height_std_m``: mean and standard deviation of z.
    """
    count, height = len(points), points[:, 2].double()
    width, depth = pc_range[3] - pc_range[0], pc_range[4] - pc_range[1]
    area, edge = width * depth, 2 * (width + depth)
    mean = float(nearest_distances(points[:, :2]).mean())
    expected = 0.5 * math.sqrt(area / count) + (0.0514 + 0.041 / math.sqrt(count)) * edge / count
    deviation = math.sqrt(0.0703 * area / count**2 + 0.037 * edge * math.sqrt(area / count**5))
    return {
        'neighbour_m': mean,
        'clark_evans': mean / expected,
        'clark_evans_z': (mean - expected) / deviation,
        'height_m': float(height.mean()),
        'height_std_m': float(height.std(correction=0)),
    }

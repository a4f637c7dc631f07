"""The sparsity losses of dynamic token halting: scores are trained towards 1 at objects and 0 elsewhere (section 4.6).

Boxes are (x, y, z, l, w, h, yaw, ...) in metres and radians, l along x at yaw 0; tokens are rows (b, z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POSITIVES = ('cell', 'nearest_token')
_CENTRE = 1 - 1e-4
_EPS = 1e-12  # of mmdet's GaussianFocalLoss: keeps logarithms and their gradients finite
_PAIRS = 1 << 22  # of tokens and boxes at a time: tensors of 16 MB


@torch.no_grad()
def token_heatmap(
    coords: Tensor,
    boxes: Sequence[Tensor],
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    overlap: float = 0.1,
    min_radius: int = 2,
    positives: str = 'cell',
) -> Tensor:
    """How central each token is to an object, whichever its class (Eq. 18).

    A token whose cell has its centre inside a box, in bird's-eye view, gets a Gaussian of its distance to the box's own
    cell, counted in cells; the largest counts. The Gaussian is CenterNet's, with sigma = (2 r + 1) / 6 cells and the
    radius r of the heatmap that CenterPoint's head learns. (In metres, hardly a token would be near enough to a centre
    to count as positive in Eq. 19.) Eq. 18 does not cut the Gaussian off at r, as that heatmap does.

    Args:
        coords: [N, 4] integers.
        boxes: [G, 7 or more] for each sample, after augmentation; the height does not matter.
        voxel_size: Size of a cell in metres, x and y first.
        point_cloud_range: Where the grid begins, x and y first.
        overlap: IoU that a box shifted by r must keep, 0 to 1.
        min_radius: Least radius in cells.
        positives: `cell` as the equation, where an object whose own cell is empty, such as a hollow car, has no
            positive token; `nearest_token` also gives 1 to the token inside the box that is nearest to its centre
            (to all that are equally near).

    Returns:
        [N] float32, 0 to 1.

    Raises:
        ValueError: If `positives` or `overlap` is invalid, boxes lack columns, or a token is in a sample without boxes.
    """
    if positives not in POSITIVES or not 0 <= overlap <= 1:
        raise ValueError(f'positives={positives!r} must be one of {", ".join(POSITIVES)}, overlap={overlap!r} 0 to 1')
    if any(item.dim() != 2 or item.shape[1] < 7 for item in boxes):
        raise ValueError(f'boxes must be [G, 7 or more] each, not {[tuple(item.shape) for item in boxes]}')
    if len(coords) and not 0 <= int(coords[:, 0].max()) < len(boxes):
        raise ValueError(f'tokens of sample {int(coords[:, 0].max())}, but boxes of {len(boxes)} samples')
    heatmap = torch.zeros(len(coords), device=coords.device)
    cell_size, origin = heatmap.new_tensor(voxel_size[:2]), heatmap.new_tensor(point_cloud_range[:2])
    for sample, all_boxes in enumerate(boxes):
        rows = (coords[:, 0] == sample).nonzero().squeeze(1)
        cells = coords[rows][:, [3, 2]]
        for some in all_boxes.float().split(max(_PAIRS // max(len(rows), 1), 1)):
            values = _values(cells, some, cell_size, origin, overlap, min_radius, positives == 'nearest_token')
            heatmap[rows] = torch.maximum(heatmap[rows], values)
    return heatmap


def _values(
    cells: Tensor, boxes: Tensor, cell_size: Tensor, origin: Tensor, overlap: float, min_radius: int, nearest: bool
) -> Tensor:
    """Eq. 18 for tokens [N, 2] (x, y) and boxes [G, 7+] of one sample: [N]."""
    radius = gaussian_radius(boxes[:, 3:5] / cell_size, overlap).int().clamp(min=min_radius)
    sigma = (2 * radius + 1) / 6
    centre = ((boxes[:, :2] - origin) / cell_size).floor()
    box, token, squared = pairs_inside((cells + 0.5) * cell_size + origin, boxes)
    values = torch.exp(-(cells[token] - centre[box]).square().sum(1) / (2 * sigma[box].square()))
    if nearest:
        least = squared.new_full((len(boxes),), torch.inf).scatter_reduce(0, box, squared, 'amin')
        values = torch.where(squared == least[box], 1, values)
    return values.new_zeros(len(cells)).scatter_reduce(0, token, values, 'amax')


def pairs_inside(places: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which places [N, 2] lie in which boxes [G, 7+], in bird's-eye view.

    Returns:
        For each pair of them: row of the box, row of the place, squared distance from the box's centre in metres.
    """
    reach = boxes[:, 3:5].norm(dim=1) / 2
    x, y = ((places[:, axis] - boxes[:, axis, None]).abs_() < reach[:, None] for axis in (0, 1))
    box, token = (x & y).nonzero(as_tuple=True)  # few pairs are near enough for anything that costs more
    offset = places[token] - boxes[box, :2]
    inside = inside_footprint(offset[:, None], boxes[box])[:, 0]
    return box[inside], token[inside], offset[inside].square().sum(1)


def inside_footprint(offset: Tensor, boxes: Tensor) -> Tensor:
    """Whether places lie in the footprints of boxes, in bird's-eye view.

    Args:
        offset: [G, N, 2] metres from the centre of each box.
        boxes: [G, 7 or more].

    Returns:
        [G, N] bool.
    """
    sin, cos = boxes[:, 6, None].sin(), boxes[:, 6, None].cos()
    x, y = offset.unbind(2)
    along, across = x * cos + y * sin, y * cos - x * sin
    return (along.abs() < boxes[:, 3, None] / 2) & (across.abs() < boxes[:, 4, None] / 2)


def gaussian_radius(size: Tensor, overlap: float) -> Tensor:
    """The radii [G] in cells of CenterNet's Gaussians for footprints [G, 2] in cells.

    The published code takes the least of three radii. With its denominators that is always the one of a box around the
    other: it is at most a quarter of length plus width, where the other two are at least half of that sum.
    """
    b = -2 * overlap * size.sum(1)
    return (b + (b.square() + 16 * overlap * (1 - overlap) * size.prod(1)).sqrt()) / 2


def sparsity_loss(scores: Tensor, heatmap: Tensor, alpha: float = 2.0, gamma: float = 4.0) -> Tensor:
    """The non-uniform sparsity loss of one halting module (Eq. 19): it lowers scores, the less the nearer to an object.

    The focal loss of CenterPoint's heatmap, averaged over tokens. Scores in half precision are taken to float32.

    Args:
        scores: [K], the scores of the tokens of all samples that were not halted before.
        heatmap: [K], the values of `token_heatmap` for these tokens.
        alpha: Exponent that lowers the weight of tokens whose scores are right already.
        gamma: Exponent that lowers the weight of tokens near objects.

    Returns:
        A scalar; 0, with gradients of 0, if there are no tokens.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    positive = (1 - scores).pow(alpha) * (scores + _EPS).log()
    negative = (1 - heatmap).pow(gamma) * scores.pow(alpha) * (1 - scores + _EPS).log()
    return -torch.where(heatmap >= _CENTRE, positive, negative).sum() / max(len(scores), 1)


def uniform_sparsity_loss(scores: Tensor) -> Tensor:
    """The loss that the paper compares with (Table 4): mean absolute score of tokens [K], 0 if there are none."""
    return scores.abs().sum() / max(len(scores), 1)

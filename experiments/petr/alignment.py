"""Geometric pre-training of PETR's position embeddings: queries learn in which image cells a 3D point is seen.

PETR has to discover that a query at a 3D point should attend to the image cells in which that point is seen; from
scratch this takes most of a long training. The cells are known, though: they follow from the camera matrices. So random
points are drawn, and the cross-attention of every decoder layer is trained to put its weight on the cells that they
project to. Nothing is added to the model; the result is an initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprune3d.layers.attention import project
from mmprune3d.models.petr.decoder import flatten_cameras
from mmprune3d.models.petr.position import embed_points

NEAR = 0.5
"""Smallest depth, in metres, at which a camera sees a point."""
REACH = 3.0
"""Largest distance, in cells, of a point's projection to the cells that it should be attended in."""


def cell_targets(points: Tensor, lidar2img: Tensor, canvas: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """The image cells in which points are seen, as a distribution over keys.

    Args:
        points: [B, P, 3] in metres.
        lidar2img: [B, cameras, 4, 4].
        canvas: (height, width) in pixels of the padded images.
        cells: (H, W) of the feature map.

    Returns:
        [B, P, cameras * H * W]; rows sum to 1, or are 0 for points that no camera sees.
    """
    homogeneous = torch.cat((points, torch.ones_like(points[..., :1])), -1)
    image = torch.einsum('bcij,bpj->bcpi', lidar2img, homogeneous)
    depth = image[..., 2]
    scale = points.new_tensor((cells[1] / canvas[1], cells[0] / canvas[0]))
    position = image[..., :2] / depth.clamp(min=NEAR)[..., None] * scale
    limits = points.new_tensor((cells[1], cells[0]))
    seen = (depth > NEAR) & (position >= 0).all(-1) & (position < limits).all(-1)
    rows, columns = torch.meshgrid(torch.arange(cells[0]), torch.arange(cells[1]), indexing='ij')
    centres = torch.stack((columns, rows), -1).flatten(0, 1).to(points) + 0.5
    squared = (position[..., None, :] - centres).square().sum(-1)
    weight = torch.exp(-squared / 2) * (squared < REACH**2) * seen[..., None]
    weight = weight.transpose(1, 2).flatten(2)
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-6)


def alignment_loss(
    head: nn.Module, points: Tensor, lidar2img: Tensor, memory: Tensor, canvas: tuple[int, int]
) -> Tensor:
    """Cross-entropy between the cells in which points are seen and the attention of queries at these points.

    Args:
        head: A PETR3DHead.
        points: [B, P, 3] in metres.
        lidar2img: [B, cameras, 4, 4] float32.
        memory: [B, cameras, C, H, W], projected image features, the content of the keys.
        canvas: (height, width) in pixels of the padded images.

    Returns:
        The mean over layers, heads and the points that a camera sees.
    """
    cells = tuple(memory.shape[-2:])
    target = cell_targets(points, lidar2img, canvas, cells)
    bounds = points.new_tensor(head.bbox_coder.pc_range)
    relative = ((points - bounds[:3]) / (bounds[3:] - bounds[:3])).clamp(0, 1)
    query = head.query_embedding(embed_points(relative, head.embed_dims // 2))
    key_pos = flatten_cameras(head.key_positions(torch.linalg.inv(lidar2img), None, canvas, cells))
    key = flatten_cameras(memory) + key_pos
    seen = target.sum(-1) > 0
    total = query.new_zeros(())
    for layer in head.transformer.decoder.layers:
        attention = layer.attentions[1].attn
        q, k = project(attention, query, 0), project(attention, key, 1)
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        total = total - (logits.log_softmax(-1) * target[:, None]).sum(-1).mean(1)[seen].mean()
    return total / len(head.transformer.decoder.layers)


def random_points(batch: int, count: int, pc_range: list[float]) -> Tensor:
    """Points [batch, count, 3] in metres around the height of objects, denser near the car."""
    direction = torch.rand(batch, count) * 2 * torch.pi
    distance = 2 + torch.rand(batch, count) * (min(pc_range[3:5]) * 1.2 - 2)
    height = torch.rand(batch, count) * 4 - 3
    return torch.stack((distance * direction.cos(), distance * direction.sin(), height), -1)


def random_rotations(batch: int, largest: float) -> Tensor:
    """Rotations about z by up to `largest` radians, [batch, 1, 4, 4]."""
    angle = (torch.rand(batch) * 2 - 1) * largest
    rotation = torch.eye(4).repeat(batch, 1, 1, 1)
    rotation[:, 0, 0, 0] = rotation[:, 0, 1, 1] = angle.cos()
    rotation[:, 0, 0, 1], rotation[:, 0, 1, 0] = -angle.sin(), angle.sin()
    return rotation


def align(
    head: nn.Module,
    lidar2img: Tensor,
    memory: Tensor,
    canvas: tuple[int, int],
    steps: int,
    lr: float = 1e-3,
    batch: int = 2,
    count: int = 200,
    report: int = 100,
) -> list[float]:
    """Trains the position embeddings and the query and key projections of the cross-attentions.

    Args:
        head: A PETR3DHead; changed in place.
        lidar2img: [F, cameras, 4, 4] of some frames.
        memory: [F, cameras, C, H, W], their projected features, fixed.
        canvas: (height, width) in pixels of the padded images.
        steps: Optimizer steps.
        lr: Highest learning rate of the one-cycle schedule.
        batch: Frames per step.
        count: Points per frame.
        report: Steps between two printed losses.

    Returns:
        The loss of every step.
    """
    attentions = [layer.attentions[1].attn for layer in head.transformer.decoder.layers]
    parameters = [
        p for part in (head.query_embedding, head.position_encoder, head.adapt_pos3d) for p in part.parameters()
    ]
    parameters += [p for attention in attentions for p in (attention.in_proj_weight, attention.in_proj_bias)]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    losses = []
    for step in range(steps):
        frames = torch.randint(len(memory), (batch,))
        moved = lidar2img[frames] @ random_rotations(batch, 0.4)
        points = random_points(batch, count, head.bbox_coder.pc_range)
        loss = alignment_loss(head, points, moved, memory[frames], canvas)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % report == 0 or step == steps - 1:
            print(f'alignment step {step}: cross-entropy {losses[-1]:.3f}', flush=True)
    return losses

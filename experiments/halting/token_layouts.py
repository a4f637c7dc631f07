"""Positions of tokens: bird's-eye-view pillars of rendered scans and of real frames, and which of them halt last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmprune3d.datasets.synthetic.camera_view import Pose
from mmprune3d.datasets.synthetic.ground import Ground, GroundMap
from mmprune3d.datasets.synthetic.lidar import LidarSensor
from mmprune3d.datasets.synthetic.rig import LIDAR, LidarSpec, rotation_matrix
from mmprune3d.datasets.synthetic.scene import Snapshot
from mmprune3d.datasets.synthetic.shading import Daylight
from mmprune3d.datasets.synthetic.simulation import Scene
from mmprune3d.datasets.synthetic.world import ActorLibrary, ActorWorld, StaticWorld

PRIORITIES = ('objects', 'scattered')
"""Which tokens live longest: those near boxes, as halting learns it, or random ones (the worst case for windows)."""
BEAMS = 64
MOST_BEAMS = 512
COLUMNS = 2650
ELEVATIONS = (-17.6, 2.4)
"""Degrees between which the beams are spread; with `BEAMS` and `COLUMNS` the figures of Waymo's roof LiDAR."""
HEIGHT, REACH = 2.18, 75.0
"""Height of the sensor above the ground, and its range, in metres."""
GROUND_TEXEL = 0.1
"""Side of a cell of the ground in metres; only intensities depend on it."""


@dataclass(frozen=True)
class Grid:
    """Square pillars.

    Attributes:
        area: (x0, y0, z0, x1, y1, z1) in metres.
        pillar: Side of a pillar in metres.
    """

    area: tuple[float, float, float, float, float, float]
    pillar: float

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of pillars (nx, ny)."""
        return tuple(round((self.area[3 + axis] - self.area[axis]) / self.pillar) for axis in range(2))


WAYMO = Grid((-74.88, -74.88, -2.0, 74.88, 74.88, 4.0), 0.32)
NUSCENES = Grid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), 0.32)
GRIDS = {'waymo': WAYMO, 'nuscenes': NUSCENES}


@dataclass(frozen=True)
class TokenLayout:
    """Points of one sample and the pillars that they occupy.

    Attributes:
        points: [P, 5] float32: x, y, z in metres, intensity 0..1, zero.
        coords: [N, 4] int64 rows (0, 0, y, x), ascending: one token each.
        grid: The pillars.
        boxes: [G, 7] x, y, z (centre), length, width, height in metres and yaw; G = 0 where they are not known.
        origin: Where the points come from, in a few words.
    """

    points: Tensor
    coords: Tensor
    grid: Grid
    boxes: Tensor
    origin: str


def occupied(points: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The points inside the grid's area, and the pillars that they occupy.

    Args:
        points: [P, 3+].
        grid: The pillars.

    Returns:
        [P', 3+] points and [N, 4] int64 rows (0, 0, y, x), ascending.
    """
    lower, upper = points.new_tensor(grid.area[:3]), points.new_tensor(grid.area[3:])
    points = points[((points[:, :3] >= lower) & (points[:, :3] < upper)).all(dim=1)]
    nx, ny = grid.shape
    cells = ((points[:, :2] - lower[:2]) / grid.pillar).floor().long()
    x, y = cells[:, 0].clamp(max=nx - 1), cells[:, 1].clamp(max=ny - 1)
    flat = (y * nx + x).unique()
    zeros = torch.zeros_like(flat)
    return points, torch.stack([zeros, zeros, flat // nx, flat % nx], dim=1)


def rendered_layout(tokens: int = 20000, seed: int = 1, grid: Grid = WAYMO) -> TokenLayout:
    """A scan of a generated town by a roof LiDAR with as many beams as it takes to occupy enough pillars.

    Args:
        tokens: Occupied pillars that are needed; beams are added eight at a time until there are as many.
        seed: Seed of town, traffic and noise.
        grid: The pillars; the sensor's vertical axis goes through x = y = 0, the ground is z = 0.

    Raises:
        ValueError: If `MOST_BEAMS` beams do not reach that many pillars.
    """
    snapshot, town, ground, actors = _surroundings(seed)
    for beams in range(8, MOST_BEAMS + 1, 8):
        spec = roof_lidar(beams)
        noise = np.random.default_rng((seed, beams))
        scan, _ = LidarSensor(town, ground, spec).scan(Pose.from_ego(snapshot.ego), actors, noise)
        points, coords = occupied(_in_grid(scan, spec), grid)
        if len(coords) >= tokens:
            origin = f'rendered scan, seed {seed}, {beams} beams'
            return TokenLayout(points, coords, grid, _boxes(snapshot, spec, grid), origin)
    raise ValueError(
        f'{MOST_BEAMS} beams reach {len(coords)} of {tokens} pillars; ask for fewer, or take a seed other than {seed}'
    )


@lru_cache(maxsize=1)
def _surroundings(seed: int) -> tuple[Snapshot, StaticWorld, GroundMap, ActorWorld]:
    """Snapshot, town, ground and actors in the middle of a short scene."""
    scene = Scene((seed, 0, 0), duration=1.0)
    snapshot = scene.snapshot(0.5)
    ground = Ground(scene.town, Daylight.from_light(scene.light), seed, GROUND_TEXEL).coarse
    return snapshot, StaticWorld(scene.town), ground, ActorLibrary().place(snapshot, REACH)


def roof_lidar(beams: int) -> LidarSpec:
    """A spinning LiDAR with evenly spread beams."""
    elevations = tuple(np.radians(np.linspace(*ELEVATIONS, beams)).tolist())
    place = (*LIDAR.translation[:2], HEIGHT)
    return replace(LIDAR, elevations=elevations, columns=COLUMNS, max_range=REACH, translation=place)


def real_layout(path: Path, dims: int = 5, grid: Grid = NUSCENES) -> TokenLayout:
    """A frame from a file of float32 points.

    Args:
        path: The file.
        dims: Numbers per point, 4 or more: x, y, z and intensity (0..255); further ones are not used.
        grid: The pillars, in the frame of the points.

    Raises:
        ValueError: If the file does not hold whole points, or none lies in the grid.
    """
    raw = np.fromfile(path, np.float32)
    if dims < 4 or not raw.size or raw.size % dims:
        raise ValueError(f'{path}: {raw.size} numbers are no points of {dims}; there must be 4 or more for each')
    points = torch.zeros(raw.size // dims, 5)
    points[:, :4] = torch.from_numpy(raw.reshape(-1, dims)[:, :4].copy())
    points[:, 3] /= 255
    points, coords = occupied(points, grid)
    if not len(coords):
        raise ValueError(f'{path}: no point in the area {grid.area}')
    return TokenLayout(points, coords, grid, torch.zeros(0, 7), f'file {path.name}')


def priority(layout: TokenLayout, kind: str, seed: int = 0) -> Tensor:
    """Scores of all pillars, occupied or not: higher ones halt later.

    Args:
        layout: Grid and boxes.
        kind: 'objects': the nearer to a box, the higher (equal inside of boxes); 'scattered': random.
        seed: Seed of random scores.

    Returns:
        [ny, nx] in (0, 1].

    Raises:
        ValueError: If there is no such kind, or 'objects' is asked for without boxes.
    """
    if kind not in PRIORITIES:
        raise ValueError(f'no priority {kind!r}; valid are {", ".join(PRIORITIES)}')
    nx, ny = layout.grid.shape
    if kind == 'scattered':
        return 1 - torch.rand(ny, nx, generator=torch.Generator().manual_seed(seed))
    if not len(layout.boxes):
        raise ValueError(f"{layout.origin}: priority 'objects' needs boxes; 'scattered' works without")
    x, y = (
        layout.grid.area[axis] + layout.grid.pillar * (torch.arange(count) + 0.5) for axis, count in enumerate((nx, ny))
    )
    distance = torch.full((ny, nx), torch.inf)
    for box in layout.boxes:
        distance = torch.minimum(distance, _distance(x[None], y[:, None], box))
    return 1 / (1 + distance)


def _distance(x: Tensor, y: Tensor, box: Tensor) -> Tensor:
    """Metres from points to a box, seen from above; 0 inside."""
    cos, sin = box[6].cos(), box[6].sin()
    x, y = x - box[0], y - box[1]
    along, across = (x * cos + y * sin).abs() - box[3] / 2, (y * cos - x * sin).abs() - box[4] / 2
    return torch.hypot(along.clamp(min=0), across.clamp(min=0))


def _in_grid(scan: np.ndarray, spec: LidarSpec) -> Tensor:
    """[P, 5] points with the axes of the car and the ground at z = 0; intensity 0..1."""
    points = np.zeros_like(scan)
    points[:, :3] = scan[:, :3] @ rotation_matrix(spec.rotation).T
    points[:, 2] += spec.translation[2]
    points[:, 3] = scan[:, 3] / 255
    return torch.from_numpy(points)


def _boxes(snapshot: Snapshot, spec: LidarSpec, grid: Grid) -> Tensor:
    """[G, 7] boxes of the actors whose centres lie in the grid, in the frame of `_in_grid`."""
    pose = Pose.from_ego(snapshot.ego)
    rows: list[Sequence[float]] = []
    for state in snapshot.actors:
        center = pose.rotation.T @ (np.asarray(state.center) - pose.position)
        center[:2] -= spec.translation[:2]
        width, length, height = state.actor.size
        rows.append((*center, length, width, height, state.yaw - snapshot.ego.yaw))
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 7)
    lower, upper = boxes.new_tensor(grid.area[:2]), boxes.new_tensor(grid.area[3:5])
    return boxes[((boxes[:, :2] >= lower) & (boxes[:, :2] < upper)).all(dim=1)]

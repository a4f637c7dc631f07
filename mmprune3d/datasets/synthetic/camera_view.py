"""Quantities that follow from a camera's calibration: viewing directions, ground pixels and rectangles of boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import sky as skies
from .ground import NEAR_REACH, GroundMap
from .rig import CameraSpec, rotation_matrix, scaled_intrinsic, yaw_matrix
from .scene import EgoState
from .world import ActorWorld

NEAR = 0.25
"""Depth in metres; nothing nearer is drawn."""

FAR = 400.0
"""Depth in metres; nothing farther is hit."""

_SIGNS = np.array([[sx, sy, sz] for sx in (-1, 1) for sy in (-1, 1) for sz in (-1, 1)], np.float32) / 2
_EDGES = np.array([(a, b) for a in range(8) for b in range(a) if bin(a ^ b).count('1') == 1])


@dataclass(frozen=True, eq=False)
class Pose:
    """The pose of the car in the global frame: `position` (3,), `yaw` and the 3x3 `rotation` of this yaw, float32."""

    position: np.ndarray
    yaw: float
    rotation: np.ndarray

    @classmethod
    def from_ego(cls, ego: EgoState) -> Pose:
        """Converts an ego state to a pose."""
        return cls(np.asarray(ego.position, np.float32), ego.yaw, yaw_matrix(ego.yaw).astype(np.float32))


class CameraView:
    """A camera at one image size; depths are along its optical axis.

    Args:
        spec: The camera, which must look along the horizon.
        width: Image width in pixels.
        height: Image height in pixels.

    Attributes:
        horizon: First row of pixels that look below the horizon.
        limits: Depth of the ground in each pixel (H * W,), at most `FAR`.
        lengths: Length of the direction of each pixel (H * W,): distance = depth * length.
        above: Whether a pixel looks above the horizon (H * W,).
        sky_azimuth: Azimuth of pixels in the ego frame (horizon, W).
        sky_row: Row of the sky panorama for each pixel (horizon, W).

    Raises:
        ValueError: If the camera is not level.
    """

    def __init__(self, spec: CameraSpec, width: int, height: int) -> None:
        """Computes the constants of the view."""
        self.width, self.height = width, height
        intrinsic = scaled_intrinsic(spec, width, height)
        self.intrinsic, self.focal = intrinsic, float(intrinsic[0, 0])
        self._rotation, self._translation = rotation_matrix(spec.rotation), np.asarray(spec.translation)
        if abs(self._rotation[2, 0]) > 1e-6 or abs(self._rotation[2, 2]) > 1e-6:
            raise ValueError(f'{spec.channel} is tilted; only level cameras are rendered')
        u = (np.arange(width) + 0.5 - intrinsic[0, 2]) / intrinsic[0, 0]
        v = (np.arange(height) + 0.5 - intrinsic[1, 2]) / intrinsic[1, 1]
        rays = np.stack([*np.broadcast_arrays(u[None], v[:, None]), np.ones((height, width))], axis=-1)
        directions = rays @ self._rotation.T
        self.horizon = int((v <= 1e-3).sum())
        depth = np.where(v > 1e-3, self._translation[2] / np.maximum(v, 1e-3), FAR)
        self._ground_depth = depth[self.horizon :].astype(np.float32)
        reach = directions[self.horizon :, :, :2] * self._ground_depth[:, None, None]
        self._ground = (reach + self._translation[:2]).astype(np.float32)
        far = np.linalg.norm(self._ground, axis=-1).max(axis=1) > NEAR_REACH
        self._near_row = int(far.sum())  # distances decrease from row to row
        self.limits = np.repeat(np.minimum(depth, FAR), width).astype(np.float32)
        self.above = np.repeat(v <= 1e-3, width)
        lengths = np.linalg.norm(directions, axis=-1)
        self.lengths = lengths.reshape(-1).astype(np.float32)
        self._directions = np.ascontiguousarray(directions.reshape(-1, 3), np.float32)
        self._sky_maps(directions[: self.horizon], lengths[: self.horizon])

    def _sky_maps(self, directions: np.ndarray, lengths: np.ndarray) -> None:
        self.sky_azimuth = np.arctan2(directions[..., 1], directions[..., 0]).astype(np.float32)
        elevation = np.arcsin(directions[..., 2] / lengths)
        row = (skies.HIGHEST - elevation) / (skies.HIGHEST - skies.LOWEST) * (skies.HEIGHT - 1)
        self.sky_row = np.clip(row, 0, skies.HEIGHT - 1.01).astype(np.float32)

    def world_origin(self, pose: Pose) -> np.ndarray:
        """Position of the camera in the global frame, (3,) float32."""
        return (pose.rotation @ self._translation + pose.position).astype(np.float32)

    def world_directions(self, pose: Pose) -> np.ndarray:
        """Directions of all pixels in the global frame, (H * W, 3) float32, with length 1 along the optical axis."""
        return self._directions @ pose.rotation.T

    def ground_rows(self, coarse: GroundMap, near: GroundMap) -> list[tuple[slice, GroundMap, int]]:
        """Groups the ground rows (counted from the horizon) by the map and the level of detail to sample."""
        result = []
        for rows, chart in ((slice(0, self._near_row), coarse), (slice(self._near_row, len(self._ground)), near)):
            depth = self._ground_depth[rows]
            if len(depth) == 0:
                continue
            # A pixel covers depth / focal across the view and depth / height times more along it; the geometric mean of
            # both selects the level of detail.
            footprint = depth / self.focal * np.sqrt(np.maximum(depth / self._translation[2], 1.0))
            level = np.clip(np.round(np.log2(footprint / chart.resolution) - 0.25), 0, len(chart.levels) - 1).astype(
                int
            )
            cuts = [0, *(np.flatnonzero(np.diff(level)) + 1), len(level)]
            result += [
                (slice(rows.start + a, rows.start + b), chart, int(level[a])) for a, b in zip(cuts[:-1], cuts[1:])
            ]
        return result

    def ground_texels(self, pose: Pose, rows: slice, origin: tuple[float, float], texel: float) -> np.ndarray:
        """Map coordinates of ground pixels, (rows, W, 2) float32, with centres of texels at integers."""
        turn = (pose.rotation[:2, :2].T / texel).astype(np.float32)
        shift = (pose.position[:2] - np.asarray(origin, np.float32)) / texel - 0.5
        return self._ground[rows] @ turn + shift.astype(np.float32)

    def to_camera(self, points: np.ndarray, pose: Pose) -> np.ndarray:
        """Transforms global points (..., 3) to camera coordinates (..., 3)."""
        ego = (points - pose.position) @ pose.rotation
        return (ego - self._translation) @ self._rotation

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Projects camera coordinates (..., 3) in front of the camera to image coordinates (..., 2)."""
        return points[..., :2] / points[..., 2:] * self.focal + self.intrinsic[:2, 2]

    def boxes_mask(self, pose: Pose, actors: ActorWorld) -> np.ndarray:
        """Sorted flat indices of the pixels inside the image rectangle of any actor's box."""
        sizes = np.array([(s.actor.size[1], s.actor.size[0], s.actor.size[2]) for s in actors.states], np.float32)
        centers = np.array([s.center for s in actors.states])
        corners = np.einsum('nij,nkj->nki', actors.rotations, _SIGNS * sizes[:, None]) + centers[:, None]
        boxes = self.rectangles(self.to_camera(corners, pose))
        mask = np.zeros((self.height, self.width), bool)
        for left, top, right, bottom in boxes:
            mask[top:bottom, left:right] = True
        return np.flatnonzero(mask)

    def rectangles(self, corners: np.ndarray) -> np.ndarray:
        """Pixel rectangles (M, 4) int32 (left, top, right, bottom) of the M of N boxes that are in the image.

        Args:
            corners: Camera coordinates (N, 8, 3), ordered as a binary count over the three axes.
        """
        a, b = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
        crossing = (a[..., 2] > NEAR) != (b[..., 2] > NEAR)
        gap = np.where(crossing, b[..., 2] - a[..., 2], 1.0)
        cut = a + ((NEAR - a[..., 2]) / gap)[..., None] * (b - a)
        points = np.concatenate([corners, cut], axis=1)
        valid = np.concatenate([corners[..., 2] > NEAR, crossing], axis=1)
        points[..., 2] = np.where(valid, np.maximum(points[..., 2], NEAR), 1.0)
        pixels = self.to_pixels(points)
        size = np.array([self.width, self.height])
        low = np.where(valid[..., None], pixels, math.inf).min(axis=1)
        high = np.where(valid[..., None], pixels, -math.inf).max(axis=1)
        inside = valid.any(axis=1) & (low < size).all(axis=1) & (high > 0).all(axis=1)
        low, high = np.floor(np.clip(low[inside], 0, size)), np.ceil(np.clip(high[inside], 0, size))
        return np.concatenate([low, high], axis=1).astype(np.int32)

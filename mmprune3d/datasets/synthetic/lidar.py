"""The spinning LiDAR: 32 beams, with range noise, intensities by material and lost returns."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from .camera_view import Pose
from .ground import GroundMap
from .materials import REFLECTIVITY, RETURN_RATE, Material
from .rig import LIDAR, LidarSpec, rotation_matrix
from .world import ActorWorld, StaticWorld

WEAKEST = 4.0e-4
"""Signal (reflectivity x cosine / distance squared) at which 1 - 1/e of the pulses return."""

LEAF_NOISE = 0.08
"""Standard deviation in metres of additional range noise on leaves."""


class LidarSensor:
    """A spinning LiDAR; each call simulates one turn, with all pulses at one time.

    Args:
        static: Geometry of the town.
        ground: Map of the ground, for intensities.
        spec: Specification of the LiDAR.
    """

    def __init__(self, static: StaticWorld, ground: GroundMap, spec: LidarSpec = LIDAR) -> None:
        """Computes the directions of all pulses, in the order in which they are fired."""
        self._static, self._ground, self._spec = static, ground, spec
        azimuth = -math.pi + 2 * math.pi * (np.arange(spec.columns) + 0.5) / spec.columns
        azimuth, elevation = np.repeat(-azimuth, len(spec.elevations)), np.tile(spec.elevations, spec.columns)
        flat = np.cos(elevation)
        self._local = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1).astype(
            np.float32
        )
        self._rings = np.tile(np.arange(len(spec.elevations), dtype=np.float32), spec.columns)
        self._ego = self._local @ rotation_matrix(spec.rotation).T.astype(np.float32)
        down = self._ego[:, 2] < -1e-3
        reach = np.where(down, spec.translation[2] / np.maximum(-self._ego[:, 2], 1e-3), np.inf)
        self._hits_ground = reach < spec.max_range
        self._limits = np.minimum(reach, spec.max_range).astype(np.float32)

    def scan(self, pose: Pose, actors: ActorWorld, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Simulates one turn.

        Args:
            pose: Pose of the car.
            actors: Actors near the car.
            rng: Random generator of noise and lost returns.

        Returns:
            Points (N, 5) float32: x, y, z in the sensor frame, intensity 0..255 and ring; and instance ids (N,) int32,
            -1 for the town.
        """
        directions = self._ego @ pose.rotation.T
        origin = pose.rotation @ np.asarray(self._spec.translation, np.float32) + pose.position
        hits = self._static.rays.first_hits(origin, directions, self._limits)
        distance, face = hits.distance, hits.face
        owner = np.full(len(distance), -1, np.int32)
        actor_face = np.full(len(distance), -1, np.int32)
        if actors.rays is not None:
            actor_face = actors.rays.first_hits(origin, directions, distance)
            distance, actor_face = actor_face.distance, actor_face.face
            owner = np.where(actor_face >= 0, actors.owner[actor_face], -1)
        reflectivity, cosine, rate, leaf = self._surfaces(directions, origin, distance, face, actor_face, actors)
        signal = reflectivity * cosine / np.maximum(distance, 1.0) ** 2
        chance = rate * (1.0 - np.exp(signal / -WEAKEST))
        noise = rng.normal(0.0, 1.0, (3, len(distance))).astype(np.float32)
        measured = distance + self._spec.range_noise * noise[0] + LEAF_NOISE * leaf * noise[1]
        kept = rng.random(len(distance), dtype=np.float32) < chance
        strength = reflectivity * (0.35 + 0.65 * cosine) * (1.0 + 0.10 * noise[2]) * np.exp(distance / -90.0)
        points = np.empty((int(kept.sum()), 5), np.float32)
        points[:, :3] = self._local[kept] * measured[kept, None]
        points[:, 3] = np.clip(np.round(strength[kept]), 0, 255)
        points[:, 4] = self._rings[kept]
        instances = actors.instances[owner[kept]] if actors.states else owner[kept]
        return points, np.where(owner[kept] >= 0, instances, -1).astype(np.int32)

    def _surfaces(
        self,
        directions: np.ndarray,
        origin: np.ndarray,
        distance: np.ndarray,
        face: np.ndarray,
        actor_face: np.ndarray,
        actors: ActorWorld,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per pulse: reflectivity 0..255 (0 = nothing hit), cosine of incidence, return rate, whether on leaves."""
        reflectivity, cosine = np.zeros(len(distance), np.float32), np.ones(len(distance), np.float32)
        rate, leaf = np.ones(len(distance), np.float32), np.zeros(len(distance), np.float32)
        on_actor, on_town = actor_face >= 0, (face >= 0) & (actor_face < 0)
        on_ground = self._hits_ground & (face < 0) & (actor_face < 0)
        points = directions[on_ground, :2] * distance[on_ground, None] + origin[:2]
        reflectivity[on_ground] = self._ground.intensity(points)
        cosine[on_ground] = -directions[on_ground, 2]
        town = self._static.geometry.mesh
        for where, faces, normals, materials, colors in (
            (on_actor, actor_face, actors.normals, actors.materials, actors.colors),
            (on_town, face, self._static.normals, town.materials, town.colors),
        ):
            faces = faces[where]
            kinds = materials[faces]
            brightness = colors[faces].mean(axis=1)
            reflectivity[where] = REFLECTIVITY[kinds] * (0.25 + 0.75 * brightness)
            angle = np.abs((normals[faces] * directions[where]).sum(axis=1))
            cosine[where] = np.where(kinds == int(Material.REFLECTOR), np.maximum(angle, 0.6), angle)
            rate[where] = RETURN_RATE[kinds]
            leaf[where] = kinds == int(Material.FOLIAGE)
        return reflectivity, cosine, rate, leaf


def save_lidar(points: np.ndarray, path: str | Path) -> None:
    """Writes (N, 5) points as a nuScenes `.pcd.bin` file: little-endian float32 x, y, z, intensity, ring.

    Raises:
        ValueError: If the array does not have the shape (N, 5).
    """
    if points.ndim != 2 or points.shape[1] != 5:
        raise ValueError(f'expected (N, 5) points, got {points.shape}')
    np.ascontiguousarray(points, '<f4').tofile(path)

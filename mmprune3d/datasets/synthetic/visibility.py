"""Visibility of actors: the fraction that all cameras together see, from rays to points on the surface."""

from __future__ import annotations

import numpy as np

from .camera_view import NEAR, CameraView, Pose
from .world import SURFACE_SAMPLES, ActorWorld, StaticWorld


def visible_fractions(
    views: dict[str, CameraView], pose: Pose, static: StaticWorld, actors: ActorWorld
) -> dict[int, float]:
    """Instance -> fraction (0..1) of the side facing the car that at least one camera sees.

    A surface point is weighted with the cosine of its angle to the car, so that the fraction is about that of the
    pixels which the actor would fill without occlusion and with cameras all around. The image size matters only through
    the rows that it crops away.
    """
    count = len(actors.states)
    if count == 0:
        return {}
    centers = np.array([state.center for state in actors.states], np.float32)
    samples = np.stack([item.samples for item in actors.meshes])
    points = np.einsum('nij,nkj->nki', actors.rotations, samples) + centers[:, None]
    normals = np.einsum('nij,nkj->nki', actors.rotations, np.stack([item.sample_normals for item in actors.meshes]))
    toward = pose.position + np.float32([0.0, 0.0, 1.5]) - points
    weight = np.maximum((normals * toward).sum(axis=-1), 0.0) / np.maximum((toward**2).sum(axis=-1), 1.0) ** 1.5
    owner = np.repeat(np.arange(count), SURFACE_SAMPLES)
    flat, weight = points.reshape(-1, 3), weight.reshape(-1)
    seen = np.zeros(len(flat), bool)
    for view in views.values():
        wanted = np.flatnonzero((weight > 0) & ~seen & _in_image(view, view.to_camera(flat, pose)))
        origin = view.world_origin(pose)
        directions = (flat[wanted] - origin).astype(np.float32)
        wall = static.rays.first_hits(origin, directions, 0.99).face >= 0
        hits = actors.rays.first_hits(origin, directions, 1.01)
        free = (hits.face < 0) | (actors.owner[hits.face] == owner[wanted])
        seen[wanted[free & ~wall]] = True
    total = np.bincount(owner, weight, count)
    share = np.bincount(owner, weight * seen, count) / np.maximum(total, 1e-12)
    return {state.actor.instance: float(value) for state, value in zip(actors.states, share)}


def _in_image(view: CameraView, points: np.ndarray) -> np.ndarray:
    """Whether (N, 3) camera coordinates are in the image."""
    front = points[:, 2] > NEAR
    pixels = view.to_pixels(np.where(front[:, None], points, 1.0))
    return front & (pixels >= 0).all(axis=1) & (pixels < (view.width, view.height)).all(axis=1)

"""Shadows of actors on the ground, drawn as the projected outlines of their boxes."""

from __future__ import annotations

import cv2
import numpy as np

from .camera_view import NEAR, CameraView, Pose
from .shading import Daylight
from .world import ActorWorld

REACH = 70.0
"""Distance in metres up to which actors cast shadows."""

CONTACT = 0.55
"""Fraction of the light that is left directly under an actor."""

_SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32) / 2
_SHIFT = 4


def cast_shadows(
    ground: np.ndarray, view: CameraView, pose: Pose, actors: ActorWorld, daylight: Daylight
) -> np.ndarray:
    """Darkens the ground beside and below actors.

    Args:
        ground: Rows below the horizon (R, W, 4) uint8; the last channel is 255 where the sun shines.
        view: View of the camera.
        pose: Pose of the car.
        actors: Actors that cast shadows.
        daylight: Light of the scene.

    Returns:
        Image rows (R, W, 3) uint8 RGB.
    """
    image = np.ascontiguousarray(ground[..., :3])
    sun_mask, contact_mask = np.zeros(ground.shape[:2], np.uint8), np.zeros(ground.shape[:2], np.uint8)
    slope = -daylight.direction[:2] / max(float(daylight.direction[2]), 0.12)
    for state, rotation in zip(actors.states, actors.rotations):
        center = np.asarray(state.center, np.float32)
        if np.hypot(*(center[:2] - pose.position[:2])) > REACH:
            continue
        width, length, height = state.actor.size
        low = (_SQUARE * (0.96 * length, 0.94 * width)) @ rotation[:2, :2].T + center[:2]
        high = (_SQUARE * (0.75 * length, 0.75 * width)) @ rotation[:2, :2].T + center[:2] + 0.97 * height * slope
        _fill(sun_mask, view, pose, cv2.convexHull(np.concatenate([low, high]).astype(np.float32))[:, 0])
        _fill(contact_mask, view, pose, low)
    lit, shaded = daylight.ground_factors()
    table = np.clip(np.arange(256)[:, None] * (shaded / lit), 0, 255).astype(np.uint8)[None]
    cv2.bitwise_and(sun_mask, np.ascontiguousarray(ground[..., 3]), sun_mask)
    cv2.copyTo(cv2.LUT(image, table), sun_mask, image)
    dark = np.clip(np.arange(256) * CONTACT, 0, 255).astype(np.uint8)
    cv2.copyTo(cv2.LUT(image, dark), contact_mask, image)
    return image


def _fill(mask: np.ndarray, view: CameraView, pose: Pose, outline: np.ndarray) -> None:
    """Fills a convex polygon on the ground, given in global (x, y), as seen by the camera."""
    points = view.to_camera(np.concatenate([outline, np.zeros((len(outline), 1), np.float32)], axis=1), pose)
    points = _clip(points)
    if len(points) < 3:
        return
    pixels = view.to_pixels(points) - (0.5, view.horizon + 0.5)
    if pixels[:, 0].max() < 0 or pixels[:, 0].min() > view.width:
        return
    fixed = np.round(np.clip(pixels, -2e4, 2e4) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillConvexPoly(mask, fixed, 255, cv2.LINE_8, _SHIFT)


def _clip(points: np.ndarray) -> np.ndarray:
    """The part of a polygon in camera coordinates that is deeper than `NEAR`."""
    deep = points[:, 2] > NEAR
    if deep.all():
        return points
    if not deep.any():
        return points[:0]
    kept = []
    for a, b, inside, following in zip(points, np.roll(points, -1, axis=0), deep, np.roll(deep, -1)):
        if inside:
            kept.append(a)
        if inside != following:
            kept.append(a + (NEAR - a[2]) / (b[2] - a[2]) * (b - a))
    return np.array(kept)

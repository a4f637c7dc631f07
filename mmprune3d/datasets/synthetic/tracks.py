"""Motion over a scene as arrays, and the check that no two boxes overlap at any time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .paths import Path

STEP = 0.1
"""Seconds between the stored poses of a track."""


@dataclass(frozen=True)
class Track:
    """The motion of one box in the plan's frame.

    Attributes:
        label: Detection class, or 'ego'.
        size: Width, length and height in metres.
        xy: Box centres, shape (T, 2), every `STEP` seconds.
        yaw: Headings, shape (T,), continuous (not wrapped), in radians.
        moving: nuScenes attribute while it moves.
        still: nuScenes attribute while it stands.
    """

    label: str
    size: tuple[float, float, float]
    xy: np.ndarray
    yaw: np.ndarray
    moving: str = ''
    still: str = ''

    def at(self, time: float) -> tuple[np.ndarray, float, np.ndarray]:
        """Centre (2,), heading and velocity (2,) at `time` seconds, interpolated linearly between stored poses."""
        k = min(max(time / STEP, 0.0), len(self.yaw) - 1.001)
        low, part = int(k), k - int(k)
        velocity = (self.xy[low + 1] - self.xy[low]) / STEP
        return (
            self.xy[low] + part * STEP * velocity,
            float((1 - part) * self.yaw[low] + part * self.yaw[low + 1]),
            velocity,
        )

    @property
    def corner_radius(self) -> float:
        """Distance from the centre to a corner in metres."""
        return float(np.hypot(self.size[0], self.size[1]) / 2)


def standing(
    label: str, size: tuple[float, float, float], xy: np.ndarray, yaw: float, steps: int, still: str = ''
) -> Track:
    """Creates the track of an object that does not move."""
    return Track(label, size, np.broadcast_to(np.asarray(xy, float), (steps, 2)), np.full(steps, yaw), still=still)


def along_path(
    label: str, size: tuple[float, float, float], path: Path, s: np.ndarray, moving: str, still: str
) -> Track:
    """Creates a track that follows `path` at the arc lengths `s`, one per step."""
    xy, yaw = path.pose(s)
    return Track(label, size, xy, yaw, moving, still)


class World:
    """The tracks accepted so far, with queries for the room around another track.

    Args:
        steps: Number of poses of every track.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.tracks: list[Track] = []
        self._circles: list[tuple[np.ndarray, np.ndarray]] = []
        self._merged: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, *tracks: Track) -> None:
        """Adds tracks without checking whether they are free."""
        for track in tracks:
            self.tracks.append(track)
            self._circles.append(_cover(track))
        self._merged = None

    def clear(self) -> None:
        """Removes all tracks from the world."""
        self.tracks, self._circles, self._merged = [], [], None

    def is_free(self, track: Track, margin: float = 0.25) -> bool:
        """Returns whether `track` keeps `margin` metres from every accepted track at every step."""
        if not self.tracks:
            return True
        reach = np.array([other.corner_radius for other in self.tracks]) + track.corner_radius + margin
        # In ten steps two objects approach each other by at most 15 m + 15 m, so a coarse pass leaves few tracks for
        # the exact test.
        coarse = np.stack([other.xy[::10] for other in self.tracks]) - track.xy[None, ::10]
        near = np.flatnonzero((np.hypot(coarse[..., 0], coarse[..., 1]) < reach[:, None] + 30.0).any(axis=1))
        return not any(_overlap(self.tracks[k], track, margin) for k in near)

    def try_add(self, *tracks: Track, margin: float = 0.25) -> bool:
        """Adds tracks that move together if all of them are free; returns whether they were added."""
        if not all(self.is_free(track, margin) for track in tracks):
            return False
        self.add(*tracks)
        return True

    def circles(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Circles that cover all boxes at `step`: centres (M, 2), radii (M,) and velocities (M, 2)."""
        if not self._circles:
            return np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2))
        if self._merged is None:
            self._merged = (
                np.concatenate([c for c, _ in self._circles], axis=1),
                np.concatenate([r for _, r in self._circles]),
            )
        step = min(step, self.steps - 2)
        centers, radii = self._merged
        return centers[step], radii, (centers[step + 1] - centers[step]) / STEP


def _cover(track: Track) -> tuple[np.ndarray, np.ndarray]:
    """Circles along the longer side of a box: centres (T, M, 2) and radii (M,)."""
    width, length = track.size[:2]
    short, long = min(width, length), max(width, length)
    count = max(1, int(np.ceil(1.5 * long / short)))
    offsets = np.linspace(-1, 1, count) * (long - short) / 2 if count > 1 else np.zeros(1)
    angle = track.yaw if length >= width else track.yaw + np.pi / 2
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return track.xy[:, None] + offsets[None, :, None] * direction[:, None], np.full(count, short / 2)


def _overlap(first: Track, second: Track, margin: float) -> bool:
    """Whether two boxes are closer than `margin` at any step (separating axes of both rectangles)."""
    difference = second.xy - first.xy
    near = np.hypot(difference[:, 0], difference[:, 1]) < first.corner_radius + second.corner_radius + margin
    if not near.any():
        return False
    difference, separated = difference[near], np.zeros(int(near.sum()), bool)
    axes = [_axes(track.yaw[near]) for track in (first, second)]
    halves = [(track.size[1] / 2, track.size[0] / 2) for track in (first, second)]
    for axis in (*axes[0], *axes[1]):
        extent = sum(
            half * np.abs((own * axis).sum(axis=1))
            for pair, sides in zip(axes, halves)
            for own, half in zip(pair, sides)
        )
        separated |= np.abs((difference * axis).sum(axis=1)) > extent + margin
    return bool((~separated).any())


def _axes(yaw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (N, 2) along the length and along the width."""
    forward = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    return forward, np.stack([-forward[:, 1], forward[:, 0]], axis=1)

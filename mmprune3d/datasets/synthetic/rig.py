"""The sensor rig: positions of the cameras, the LiDAR and the radars on the car, after the calibration of nuScenes.

Ego frame: x forward, y left, z up, origin under the rear axle on the ground. Camera frame: x right, y down, z forward.
LiDAR frame: x right, y forward, z up. Radar frame: x along the bore sight, y left, z up. Figures are those of a real
nuScenes car, rounded; the cameras look exactly along the horizon, so a row of pixels has one elevation.

Pixels: column i and row j cover [i, i + 1) x [j, j + 1), centre at (i + 0.5, j + 0.5), in the units of the intrinsic
matrix. Under this convention resizing an image by s is exactly `intrinsic[:2] *= s`, as the resize transforms of the
detectors assume, and cropping (x0, y0) away is a subtraction from the principal point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Quaternion = tuple[float, float, float, float]
Vector = tuple[float, float, float]

NUSCENES_SIZE = (1600, 900)
"""Width and height in pixels for which `CameraSpec.intrinsic` is given."""

HORIZON_FRACTION = 0.28
"""Smallest distance of the horizon from the top edge after cropping, as a fraction of the image height."""


@dataclass(frozen=True, eq=False)
class CameraSpec:
    """A camera: `intrinsic` is 3x3 for 1600x900, pose is sensor -> ego with a (w, x, y, z) quaternion and metres."""

    channel: str
    intrinsic: np.ndarray
    translation: Vector
    rotation: Quaternion


@dataclass(frozen=True)
class LidarSpec:
    """A spinning LiDAR: elevations of the beams (ring 0 lowest, radians), columns a turn, noise and range (metres)."""

    channel: str
    translation: Vector
    rotation: Quaternion
    elevations: tuple[float, ...]
    columns: int
    range_noise: float
    max_range: float


@dataclass(frozen=True)
class RadarSpec:
    """A radar: half of its horizontal field of view in radians and its range in metres."""

    channel: str
    translation: Vector
    rotation: Quaternion
    half_fov: float
    max_range: float


def quaternion_multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """Hamilton product a b of two (w, x, y, z) quaternions: the rotation b followed by a."""
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def yaw_quaternion(yaw: float) -> Quaternion:
    """Quaternion (w, x, y, z) of a rotation by `yaw` radians about z, counter-clockwise."""
    return (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))


def rotation_matrix(quaternion: Quaternion) -> np.ndarray:
    """Rotation matrix, 3x3 float64, of a unit (w, x, y, z) quaternion."""
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def yaw_matrix(yaw: float) -> np.ndarray:
    """Rotation matrix, 3x3 float64, of a rotation by `yaw` radians about z."""
    return rotation_matrix(yaw_quaternion(yaw))


def _camera(channel: str, yaw_degrees: float, focal: float, principal: tuple[float, float], at: Vector) -> CameraSpec:
    """A level camera that looks along `yaw_degrees` in the ego frame."""
    forward = (0.5, -0.5, 0.5, -0.5)  # camera axes of a sensor that looks along the ego's x
    intrinsic = np.array([[focal, 0.0, principal[0]], [0.0, focal, principal[1]], [0.0, 0.0, 1.0]])
    intrinsic.setflags(write=False)
    return CameraSpec(channel, intrinsic, at, quaternion_multiply(yaw_quaternion(math.radians(yaw_degrees)), forward))


def _radar(channel: str, yaw_degrees: float, at: Vector) -> RadarSpec:
    return RadarSpec(channel, at, yaw_quaternion(math.radians(yaw_degrees)), math.radians(60.0), 120.0)


CAMERAS: dict[str, CameraSpec] = {
    spec.channel: spec
    for spec in (
        _camera('CAM_FRONT', 0.0, 1266.0, (816.0, 492.0), (1.70, 0.02, 1.51)),
        _camera('CAM_FRONT_RIGHT', -56.0, 1261.0, (808.0, 495.0), (1.55, -0.49, 1.50)),
        _camera('CAM_BACK_RIGHT', -110.5, 1260.0, (807.0, 501.0), (1.02, -0.48, 1.56)),
        _camera('CAM_BACK', 180.0, 809.0, (829.0, 482.0), (0.03, 0.0, 1.58)),
        _camera('CAM_BACK_LEFT', 108.5, 1257.0, (792.0, 493.0), (1.04, 0.48, 1.59)),
        _camera('CAM_FRONT_LEFT', 55.0, 1273.0, (827.0, 480.0), (1.52, 0.49, 1.51)),
    )
}
"""The six cameras in the order of nuScenes: 65 degrees wide (the rear one 90), about 1.5 m above the ground."""

LIDAR = LidarSpec(
    channel='LIDAR_TOP',
    translation=(0.94, 0.0, 1.84),
    rotation=yaw_quaternion(math.radians(-90.0)),
    elevations=tuple(math.radians(-30.67 + 4.0 / 3.0 * ring) for ring in range(32)),
    columns=1084,
    range_noise=0.02,
    max_range=100.0,
)
"""An HDL-32E on the roof: 32 beams from -30.67 to +10.67 degrees, 1084 columns at 20 turns a second."""

RADARS: dict[str, RadarSpec] = {
    spec.channel: spec
    for spec in (
        _radar('RADAR_FRONT', 0.0, (3.41, 0.0, 0.5)),
        _radar('RADAR_FRONT_LEFT', 90.0, (2.42, 0.8, 0.78)),
        _radar('RADAR_FRONT_RIGHT', -90.0, (2.42, -0.8, 0.77)),
        _radar('RADAR_BACK_LEFT', 180.0, (-0.56, 0.62, 0.53)),
        _radar('RADAR_BACK_RIGHT', 180.0, (-0.56, -0.62, 0.53)),
    )
}
"""The five long-range radars of nuScenes."""


def scaled_intrinsic(spec: CameraSpec, width: int, height: int) -> np.ndarray:
    """Intrinsic matrix of a camera that is rendered at another image size.

    The horizontal field of view is kept. If the image is flatter than 16:9, rows are cropped at the top (as detectors
    crop nuScenes images) as long as the horizon stays below `HORIZON_FRACTION` of the height, the rest at the bottom;
    if it is taller, rows are added equally above and below. The matrix is exact for the rendered pixels.

    Args:
        spec: The camera.
        width: Image width in pixels.
        height: Image height in pixels.

    Returns:
        Intrinsic matrix, 3x3 float64.

    Raises:
        ValueError: If a size is not positive.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f'image size must be positive, got {width}x{height}')
    scale = width / NUSCENES_SIZE[0]
    result = np.array(spec.intrinsic)
    result[:2] *= scale
    surplus = NUSCENES_SIZE[1] * scale - height
    if surplus > 0:
        top = max(0.0, min(surplus, result[1, 2] - HORIZON_FRACTION * height))
    else:
        top = surplus / 2
    result[1, 2] -= top
    return result

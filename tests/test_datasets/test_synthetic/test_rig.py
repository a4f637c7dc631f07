"""The calibration of the rig."""

from __future__ import annotations

import numpy as np
import pytest
from pyquaternion import Quaternion

from mmprune3d.datasets.synthetic.rig import (
    CAMERAS,
    LIDAR,
    RADARS,
    quaternion_multiply,
    rotation_matrix,
    scaled_intrinsic,
    yaw_matrix,
    yaw_quaternion,
)  # fmt: skip


@pytest.mark.parametrize('spec', [*CAMERAS.values(), LIDAR, *RADARS.values()], ids=lambda spec: spec.channel)
def test_rotations_agree_with_pyquaternion(spec: object) -> None:
    assert np.allclose(rotation_matrix(spec.rotation), Quaternion(spec.rotation).rotation_matrix, atol=1e-12)


def test_quaternion_product_is_composition() -> None:
    a, b = Quaternion(axis=[1, 2, 3], angle=0.7), Quaternion(axis=[0, 1, -1], angle=-1.9)
    product = quaternion_multiply(tuple(a.elements), tuple(b.elements))
    assert np.allclose(product, (a * b).elements)
    assert np.allclose(yaw_matrix(0.3) @ yaw_matrix(0.4), rotation_matrix(yaw_quaternion(0.7)))


def test_axes_of_the_sensors() -> None:
    front, back = (rotation_matrix(CAMERAS[name].rotation) for name in ('CAM_FRONT', 'CAM_BACK'))
    assert np.allclose(front[:, 2], [1, 0, 0]) and np.allclose(front[:, 1], [0, 0, -1])
    assert np.allclose(back[:, 2], [-1, 0, 0], atol=1e-12)
    lidar = rotation_matrix(LIDAR.rotation)
    assert np.allclose(lidar[:, 1], [1, 0, 0]) and np.allclose(lidar[:, 0], [0, -1, 0])
    assert rotation_matrix(CAMERAS['CAM_FRONT_LEFT'].rotation)[1, 2] > 0


def test_scaling_is_resize_then_crop_at_the_top() -> None:
    spec = CAMERAS['CAM_FRONT']
    scaled = scaled_intrinsic(spec, 704, 256)
    expected = spec.intrinsic.copy()
    expected[:2] *= 0.44
    expected[1, 2] -= 140
    assert np.allclose(scaled, expected)
    assert np.allclose(scaled_intrinsic(spec, 352, 128)[:2], scaled[:2] / 2)
    assert np.allclose(scaled_intrinsic(spec, 1600, 900), spec.intrinsic)


@pytest.mark.parametrize('size', [(704, 160), (800, 100), (256, 704), (640, 360)])
def test_horizon_stays_in_every_image(size: tuple[int, int]) -> None:
    for spec in CAMERAS.values():
        scaled = scaled_intrinsic(spec, *size)
        assert 0.25 * size[1] < scaled[1, 2] < 0.75 * size[1]
        assert np.isclose(scaled[0, 2] / scaled[0, 0], spec.intrinsic[0, 2] / spec.intrinsic[0, 0])


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match='positive'):
        scaled_intrinsic(CAMERAS['CAM_FRONT'], 0, 100)

from __future__ import annotations

import numpy as np
import pytest

from mmprune3d.ops.cameras import FIELD_OF_VIEW, RING, camera_ring


def test_cameras_of_a_ring_look_around():
    intrinsics, poses = camera_ring(RING + 1, (90, 160))
    assert intrinsics.shape == poses.shape == (RING + 1, 4, 4)
    forward = poses[:, :3, 2]
    angles = np.degrees(np.arctan2(forward[:, 1], forward[:, 0])) % 360
    np.testing.assert_allclose(angles, [0, 300, 240, 180, 120, 60, 0], atol=1e-9)
    np.testing.assert_allclose(poses[:, :3, 1], [[0, 0, -1]] * (RING + 1), atol=1e-12)  # down is down
    np.testing.assert_allclose(np.linalg.det(poses[:, :3, :3]), 1.0)
    np.testing.assert_allclose(poses[:, 2, 3], 1.5)
    np.testing.assert_allclose((poses[:, :2, 3] * forward[:, :2]).sum(1), 1.0)  # the lens is in front of the axis


@pytest.mark.parametrize('side', [-1, 1])
def test_the_edges_of_the_image_are_the_edges_of_the_view(side: int):
    intrinsics, _ = camera_ring(1, (90, 160))
    ray = np.array([side * np.tan(FIELD_OF_VIEW / 2), 0.0, 1.0, 1.0])
    u, v, depth, _ = intrinsics[0] @ ray
    np.testing.assert_allclose([u, v, depth], [80 + side * 80, 45, 1], atol=1e-9)
    assert np.degrees(FIELD_OF_VIEW) > 360 / RING  # neighbours overlap: nothing between them is unseen

"""First hits of rays with triangles, computed by Embree on one core."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FAR = 1.0e6
"""Distance of a ray without a hit, in units of the length of its direction."""


@dataclass(frozen=True, eq=False)
class Hits:
    """First hits of rays: `distance` (N,) float32 in units of the directions' lengths, `face` (N,) int32.

    For a ray without a hit the face is -1 and the distance is the limit of the ray.
    """

    distance: np.ndarray
    face: np.ndarray


class RayScene:
    """Triangles with an acceleration structure for ray casting.

    Args:
        vertices: Positions (V, 3).
        faces: Indices of the vertices of each triangle (F, 3), F >= 1.

    Raises:
        ImportError: If embreex is not installed.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        """Builds the acceleration structure."""
        try:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        except ImportError as error:
            raise ImportError('the synthetic sensors need embreex: pip install embreex') from error
        self._scene = EmbreeScene()
        points = np.ascontiguousarray(vertices, np.float32)
        self._mesh = TriangleMesh(self._scene, points, np.ascontiguousarray(faces, np.int32))

    def first_hits(self, origins: np.ndarray, directions: np.ndarray, limits: np.ndarray | float = FAR) -> Hits:
        """Casts rays and returns their first hits.

        Args:
            origins: Origins, (3,) for all rays or (N, 3).
            directions: Directions (N, 3) float32, of any length.
            limits: Largest distance in units of the directions' lengths, scalar or (N,).
        """
        count = len(directions)
        if count == 0:
            return Hits(np.zeros(0, np.float32), np.zeros(0, np.int32))
        starts = np.empty((count, 3), np.float32)
        starts[:] = origins
        reach = np.empty(count, np.float32)
        reach[:] = limits
        result = self._scene.run(starts, np.ascontiguousarray(directions, np.float32), dists=reach, output=True)
        return Hits(result['tfar'], result['primID'])

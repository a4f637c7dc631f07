"""Camera sensors: one ray per pixel, shaded from the painted ground, facades and coloured triangles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from . import sky as skies
from .camera_view import CameraView, Pose
from .facades import FacadeAtlas, build_facades
from .ground import Ground
from .materials import Material
from .scene import Light
from .shading import Daylight, shade_faces
from .shadows import cast_shadows
from .world import ActorWorld, StaticWorld

SKY_DEPTH = 1000.0
"""Depth in metres that is stored for sky pixels."""

NOISE = 2.2
"""Standard deviation of the sensor noise in grey levels."""

LEAF = 0.11
"""Size in metres of the clumps of leaves in the texture of tree crowns."""

TONE = 0.82
"""Exponent of the tone curve, which brightens shadows as real cameras do."""


@dataclass(frozen=True, eq=False)
class Picture:
    """The output of a camera.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        instances: (H, W) int32 instance id of the actor in a pixel, -1 elsewhere.
        depth: (H, W) float32 distance along the optical axis in metres, `SKY_DEPTH` for the sky.
    """

    image: np.ndarray
    instances: np.ndarray
    depth: np.ndarray


class CameraSensor:
    """Renders the images of all cameras of one scene.

    Args:
        static: Geometry of the town.
        ground: Painted ground of the town, in the same light.
        light: Light of the scene.
        views: Views of the cameras by channel.
        seed: Seed of sky, exposure differences and noise.
    """

    def __init__(
        self, static: StaticWorld, ground: Ground, light: Light, views: dict[str, CameraView], seed: int
    ) -> None:
        """Computes everything that does not change during a scene."""
        self._static, self._ground, self._views = static, ground, views
        self._daylight = Daylight.from_light(light)
        self._sky = skies.paint_sky(light, self._daylight, seed)
        self._facades: FacadeAtlas = build_facades(static.town, self._daylight)
        mesh = static.geometry.mesh
        self._static_colors = shade_faces(mesh.colors, static.normals, mesh.materials, self._daylight)
        self._leafy = mesh.materials == int(Material.FOLIAGE)
        rng = np.random.default_rng((seed, 74))
        self._tables = {channel: _exposure(rng) for channel in views}
        largest = max((view.height, view.width) for view in views.values())
        noise = rng.normal(0.0, NOISE, (largest[0] + 64, largest[1] + 64, 3))
        self._grain = (np.maximum(noise, 0).round().astype(np.uint8), np.maximum(-noise, 0).round().astype(np.uint8))

    def sunlit(self, actors: ActorWorld) -> np.ndarray:
        """Illumination of each actor, (N,) float32: 1 in the sun, 0.1 in the shade of the town."""
        if not actors.states:
            return np.zeros(0, np.float32)
        centers = np.array([state.center for state in actors.states], np.float32)
        toward = np.repeat(self._daylight.direction[None].astype(np.float32), len(centers), axis=0)
        blocked = self._static.rays.first_hits(centers + [0, 0, 0.3], toward, 300.0).face >= 0
        return np.where(blocked, 0.1, 1.0).astype(np.float32)

    def actor_colors(self, actors: ActorWorld) -> np.ndarray:
        """Colours of the triangles of all actors, (F, 3) uint8; they are the same for all cameras."""
        sunlit = self.sunlit(actors)[actors.owner]
        return shade_faces(actors.colors, actors.normals, actors.materials, self._daylight, sunlit)

    def render(
        self, channel: str, pose: Pose, actors: ActorWorld, colors: np.ndarray, rng: np.random.Generator
    ) -> Picture:
        """Renders one picture.

        Args:
            channel: Channel of the camera.
            pose: Pose of the car.
            actors: Actors near the car.
            colors: Colours of the actors, from `actor_colors`.
            rng: Random generator of the sensor noise.
        """
        view = self._views[channel]
        image = self._background(view, pose, actors)
        directions, origin = view.world_directions(pose), view.world_origin(pose)
        hits = self._static.rays.first_hits(origin, directions, view.limits)
        depth, face = hits.distance, hits.face
        flat = image.reshape(-1, 3)
        pixels, actor_face = self._actor_hits(view, pose, actors, directions, depth, origin)
        self._paint_static(view, flat, directions, origin, depth, face)
        flat[pixels] = colors[actor_face]
        instances = np.full(len(flat), -1, np.int32)
        instances[pixels] = actors.instances[actors.owner[actor_face]] if len(pixels) else 0
        sky = (depth >= view.limits) & view.above
        depth[sky] = 0.0  # the sky panorama already contains the haze
        image = self._finish(view, image, depth * view.lengths, channel, rng)
        depth[sky] = SKY_DEPTH
        shape = (view.height, view.width)
        return Picture(image, instances.reshape(shape), np.minimum(depth, SKY_DEPTH).reshape(shape))

    def _background(self, view: CameraView, pose: Pose, actors: ActorWorld) -> np.ndarray:
        """Image (H, W, 3) uint8 of sky and ground with the shadows of the actors."""
        image = np.empty((view.height, view.width, 3), np.uint8)
        columns = view.sky_azimuth + np.float32(pose.yaw)
        columns *= np.float32(skies.WIDTH / (2 * math.pi))
        image[: view.horizon] = cv2.remap(
            self._sky, columns, view.sky_row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        if view.horizon == view.height:
            return image
        ground = np.empty((view.height - view.horizon, view.width, 4), np.uint8)
        for rows, chart, level in view.ground_rows(self._ground.coarse, self._ground.near(pose.position)):
            where = view.ground_texels(pose, rows, chart.origin, chart.resolution * 2**level)
            ground[rows] = cv2.remap(chart.levels[level], where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        image[view.horizon :] = cast_shadows(ground, view, pose, actors, self._daylight)
        return image

    def _actor_hits(
        self,
        view: CameraView,
        pose: Pose,
        actors: ActorWorld,
        directions: np.ndarray,
        depth: np.ndarray,
        origin: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels that show actors, and the triangles in them; their distances are written into `depth`."""
        if actors.rays is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int32)
        candidates = view.boxes_mask(pose, actors)
        hits = actors.rays.first_hits(origin, directions[candidates], depth[candidates])
        seen = hits.face >= 0
        pixels = candidates[seen]
        depth[pixels] = hits.distance[seen]
        return pixels, hits.face[seen]

    def _paint_static(
        self,
        view: CameraView,
        flat: np.ndarray,
        directions: np.ndarray,
        origin: np.ndarray,
        depth: np.ndarray,
        face: np.ndarray,
    ) -> None:
        """Colours the pixels that show the town; pixels of actors are overwritten later."""
        pixels = np.flatnonzero(face >= 0)
        faces = face[pixels]
        colors = self._static_colors[faces]
        building = self._static.geometry.walls[faces]
        is_wall = building >= 0
        wall, wall_faces = pixels[is_wall], faces[is_wall]
        if len(wall):
            reach = depth[wall]
            points = directions[wall] * reach[:, None] + origin
            axis = self._static.geometry.wall_axis[wall_faces]
            along = axis[:, 0] * points[:, 0] + axis[:, 1] * points[:, 1] + axis[:, 2]
            texture = self._facades.sample(building[is_wall], along, points[:, 2], reach / np.float32(view.focal))
            colors[is_wall] = cv2.multiply(np.ascontiguousarray(texture), colors[is_wall], scale=1 / 255)
        leafy = np.flatnonzero(self._leafy[faces])
        if len(leafy):
            leaf = pixels[leafy]
            grain = _leaf_grain(directions[leaf] * depth[leaf, None] + origin)
            colors[leafy] = cv2.multiply(colors[leafy], cv2.merge([grain] * 3)[:, 0], scale=1 / 128)
        flat[pixels] = colors

    def _finish(
        self, view: CameraView, image: np.ndarray, distance: np.ndarray, channel: str, rng: np.random.Generator
    ) -> np.ndarray:
        """Applies haze, the exposure of the camera, the blur of the lens and the noise of the sensor."""
        clear = np.exp(distance * np.float32(-1.0 / self._daylight.visibility)).reshape(view.height, view.width)
        haze = np.empty_like(image)
        haze[:] = (self._daylight.horizon * 255).clip(0, 255)
        image = cv2.blendLinear(image, haze, clear, 1 - clear)
        image = cv2.GaussianBlur(cv2.LUT(image, self._tables[channel]), (3, 3), 0.5)
        row, column = (int(value) for value in rng.integers(0, 64, 2))
        window = (slice(row, row + view.height), slice(column, column + view.width))
        return cv2.subtract(cv2.add(image, self._grain[0][window]), self._grain[1][window])


def _leaf_grain(points: np.ndarray) -> np.ndarray:
    """Brightness of leaves (N,) uint8 about 128 at (N, 3) global points; it does not depend on the view."""
    cells = np.floor(points * np.float32(1 / LEAF)).astype(np.int32)
    mixed = cells[:, 0] * 73856093 ^ cells[:, 1] * 19349663 ^ cells[:, 2] * 83492791
    return (88 + ((mixed ^ (mixed >> 13)) * 40503 >> 8 & 63)).astype(np.uint8)


def _exposure(rng: np.random.Generator) -> np.ndarray:
    """Look-up table (1, 256, 3) uint8 of a camera: its own gain and white balance, and the tone curve."""
    gain = rng.normal(1.0, 0.04) * rng.normal(1.0, 0.012, 3)
    curve = np.clip((np.linspace(0, 1, 256)[:, None] * gain) ** TONE, 0, 1)
    return (curve * 255).round().astype(np.uint8)[None]

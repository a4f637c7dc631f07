"""Geometry that the sensors share: the static town of a scene and the actors of one snapshot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .mesh_town import TownMesh, build_town
from .meshes import STRIDE_PHASES, build_actor
from .raycast import RayScene
from .rig import yaw_matrix
from .scene import ActorState, Snapshot, Town
from .shapes import Mesh

STRIDES_PER_SECOND = 1.0
SURFACE_SAMPLES = 48


class StaticWorld:
    """The town as rays see it.

    Attributes:
        town: The description.
        geometry: Triangles of everything but the flat ground, which is z = 0 and found without rays.
        normals: (F, 3) float32 outward unit normals.
        rays: The triangles, ready for rays.
    """

    def __init__(self, town: Town) -> None:
        """Builds meshes and the ray scene."""
        self.town = town
        self.geometry: TownMesh = build_town(town)
        self.normals = self.geometry.mesh.normals()
        self.rays = RayScene(self.geometry.mesh.vertices, self.geometry.mesh.faces)


@dataclass(frozen=True, eq=False)
class ActorMesh:
    """The mesh of an actor with what is derived from it: normals and points spread over its surface.

    Attributes:
        mesh: In the frame of the box.
        normals: (F, 3) float32.
        samples: (SURFACE_SAMPLES, 3) float32 points, uniform by area.
        sample_normals: (SURFACE_SAMPLES, 3) float32.
    """

    mesh: Mesh
    normals: np.ndarray
    samples: np.ndarray
    sample_normals: np.ndarray


@dataclass(frozen=True, eq=False)
class ActorWorld:
    """The actors near the car at one time.

    Attributes:
        states: The actors, N of them.
        meshes: Their meshes in box frames.
        rotations: (N, 3, 3) float32 box -> global.
        rays: All triangles in the global frame, None without actors.
        owner: (F,) int32 index into `states` of every triangle.
        normals: (F, 3) float32, global frame.
        colors: (F, 3) float32 albedo.
        materials: (F,) uint8.
    """

    states: tuple[ActorState, ...]
    meshes: tuple[ActorMesh, ...]
    rotations: np.ndarray
    rays: RayScene | None
    owner: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    materials: np.ndarray

    @property
    def instances(self) -> np.ndarray:
        """(N,) int32 instance ids of `states`."""
        return np.array([state.actor.instance for state in self.states], np.int32)


class ActorLibrary:
    """Builds the actors of snapshots; every mesh is made once."""

    def __init__(self) -> None:
        """Starts without meshes."""
        self._meshes: dict[tuple, ActorMesh] = {}

    def mesh(self, state: ActorState, time: float) -> ActorMesh:
        """The mesh of an actor at a time, with the stride of walking pedestrians."""
        moving = state.attribute == 'pedestrian.moving'
        phase = (
            int((time * STRIDES_PER_SECOND + state.actor.seed * 0.37) * STRIDE_PHASES) % STRIDE_PHASES if moving else 0
        )
        key = (state.actor, state.attribute, phase)
        if key not in self._meshes:
            self._meshes[key] = _prepare(build_actor(state.actor, state.attribute, phase), state.actor.seed)
        return self._meshes[key]

    def place(self, snapshot: Snapshot, reach: float) -> ActorWorld:
        """Puts the actors within `reach` metres of the car into the global frame."""
        ego = np.asarray(snapshot.ego.position[:2])
        states = tuple(s for s in snapshot.actors if np.hypot(*(np.asarray(s.center[:2]) - ego)) < reach)
        if not states:
            empty = np.zeros((0, 3), np.float32)
            return ActorWorld(
                (),
                (),
                np.zeros((0, 3, 3), np.float32),
                None,
                np.zeros(0, np.int32),
                empty,
                empty,
                np.zeros(0, np.uint8),
            )
        meshes = tuple(self.mesh(state, snapshot.time) for state in states)
        rotations = np.stack([yaw_matrix(state.yaw) for state in states]).astype(np.float32)
        sizes = np.array([len(item.mesh.faces) for item in meshes])
        starts = np.cumsum([0] + [len(item.mesh.vertices) for item in meshes[:-1]])
        vertices = np.concatenate([item.mesh.moved(r, s.center) for item, r, s in zip(meshes, rotations, states)])
        faces = np.concatenate([item.mesh.faces + start for item, start in zip(meshes, starts)])
        return ActorWorld(
            states,
            meshes,
            rotations,
            RayScene(vertices, faces),
            np.repeat(np.arange(len(states), dtype=np.int32), sizes),
            np.concatenate([item.normals @ r.T for item, r in zip(meshes, rotations)]),
            np.concatenate([item.mesh.colors for item in meshes]),
            np.concatenate([item.mesh.materials for item in meshes]),
        )


def _prepare(mesh: Mesh, seed: int) -> ActorMesh:
    rng = np.random.default_rng((seed, 73))
    areas, normals = mesh.areas().astype(np.float64), mesh.normals()
    chosen = rng.choice(len(areas), SURFACE_SAMPLES, p=areas / areas.sum())
    weights = np.sort(rng.random((SURFACE_SAMPLES, 2)), axis=1)
    barycentric = np.stack([weights[:, 0], weights[:, 1] - weights[:, 0], 1 - weights[:, 1]], axis=1)
    samples = np.einsum('nk,nkd->nd', barycentric, mesh.vertices[mesh.faces[chosen]]).astype(np.float32)
    return ActorMesh(mesh, normals, samples, normals[chosen])

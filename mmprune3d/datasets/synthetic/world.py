"""Geometry that all sensors use: the static town of a scene and the actors of one snapshot."""

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
    """The town as a scene for ray casting.

    Attributes:
        town: Description of the town.
        geometry: Triangles of everything except the flat ground, which is z = 0 and found without rays.
        normals: Outward unit normals (F, 3) float32.
        rays: Triangles with an acceleration structure.
    """

    def __init__(self, town: Town) -> None:
        """Builds the meshes and the scene for ray casting."""
        self.town = town
        self.geometry: TownMesh = build_town(town)
        self.normals = self.geometry.mesh.normals()
        self.rays = RayScene(self.geometry.mesh.vertices, self.geometry.mesh.faces)


@dataclass(frozen=True, eq=False)
class ActorMesh:
    """The mesh of an actor with normals and points sampled from its surface.

    Attributes:
        mesh: Mesh in the frame of the box.
        normals: Unit normals (F, 3) float32.
        samples: Points (SURFACE_SAMPLES, 3) float32, uniform by area.
        sample_normals: Normals at these points (SURFACE_SAMPLES, 3) float32.
    """

    mesh: Mesh
    normals: np.ndarray
    samples: np.ndarray
    sample_normals: np.ndarray


@dataclass(frozen=True, eq=False)
class ActorWorld:
    """The actors near the car at one time.

    Attributes:
        states: States of the N actors.
        meshes: Meshes of the actors in the frames of their boxes.
        rotations: Rotations from box to global frame (N, 3, 3) float32.
        rays: All triangles in the global frame, or None if there are no actors.
        owner: Index into `states` of every triangle (F,) int32.
        normals: Unit normals (F, 3) float32 in the global frame.
        colors: Albedo (F, 3) float32.
        materials: Values of `Material` (F,) uint8.
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
        """Instance ids of `states`, (N,) int32."""
        return np.array([state.actor.instance for state in self.states], np.int32)


class ActorLibrary:
    """Builds the actors of snapshots; every mesh is built once and kept."""

    def __init__(self) -> None:
        """Creates an empty library."""
        self._meshes: dict[tuple, ActorMesh] = {}

    def mesh(self, state: ActorState, time: float) -> ActorMesh:
        """The mesh of an actor at a time; walking pedestrians change their pose."""
        moving = state.attribute == 'pedestrian.moving'
        phase = (
            int((time * STRIDES_PER_SECOND + state.actor.seed * 0.37) * STRIDE_PHASES) % STRIDE_PHASES if moving else 0
        )
        key = (state.actor, state.attribute, phase)
        if key not in self._meshes:
            self._meshes[key] = _prepare(build_actor(state.actor, state.attribute, phase), state.actor.seed)
        return self._meshes[key]

    def place(self, snapshot: Snapshot, reach: float) -> ActorWorld:
        """Transforms the actors within `reach` metres of the car to the global frame."""
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

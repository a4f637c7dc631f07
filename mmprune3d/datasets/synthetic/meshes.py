"""The mesh of every annotated object, built to lie inside its box."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import mesh_machines, mesh_people, mesh_props, mesh_vehicles
from .scene import Actor
from .shapes import Mesh, fit, merge

BOX_MARGIN = 0.015
"""Metres between a mesh and each side of its box, so that range noise rarely moves a LiDAR return out of the box."""

STRIDE_PHASES = 4
"""Number of different poses in the stride of a walking pedestrian."""

_VEHICLES: dict[str, Callable[[tuple[float, float, float], np.random.Generator], list[Mesh]]] = {
    'car': mesh_vehicles.car,
    'truck': mesh_vehicles.truck,
    'bus': mesh_vehicles.bus,
    'trailer': mesh_vehicles.trailer,
    'construction_vehicle': mesh_machines.construction_vehicle,
    'traffic_cone': mesh_props.traffic_cone,
    'barrier': mesh_props.barrier,
}


def build_actor(actor: Actor, attribute: str = '', phase: int = 0) -> Mesh:
    """The mesh of an actor in the frame of its box: x along the length, y left, z up, origin in the box centre.

    Its bounding box is the actor's box less `BOX_MARGIN` on every side. The same arguments give the same mesh.

    Args:
        actor: Class, size and seed of the appearance.
        attribute: nuScenes attribute; 'cycle.with_rider' adds a rider, 'pedestrian.moving' gives a walking pose.
        phase: Step of the stride in 0..`STRIDE_PHASES` - 1, used for moving pedestrians.

    Raises:
        ValueError: If the label is not a detection class, or a size is not more than twice the margin.
    """
    width, length, height = actor.size
    if min(actor.size) <= 4 * BOX_MARGIN:
        raise ValueError(f'size {actor.size} of instance {actor.instance} is too small for a mesh')
    rng = np.random.default_rng(actor.seed)
    extent = (length, width, height)
    if actor.label in _VEHICLES:
        parts = _VEHICLES[actor.label](extent, rng)
    elif actor.label == 'pedestrian':
        moving = attribute == 'pedestrian.moving'
        parts = mesh_people.pedestrian(extent, rng, phase / STRIDE_PHASES + 0.125 if moving else 0.02)
    elif actor.label in ('bicycle', 'motorcycle'):
        builder = mesh_people.bicycle if actor.label == 'bicycle' else mesh_people.motorcycle
        parts = builder(extent, rng, attribute == 'cycle.with_rider')
    else:
        valid = sorted([*_VEHICLES, 'pedestrian', 'bicycle', 'motorcycle'])
        raise ValueError(f'no mesh for class {actor.label!r}, valid are {valid}')
    return fit(merge(parts), tuple(side - 2 * BOX_MARGIN for side in extent))

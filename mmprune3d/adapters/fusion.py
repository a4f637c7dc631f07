"""Fusion maps: the sensor to which each part of a multi-sensor detector belongs, and the weights that can be pruned.

The name of a module does not tell where it is: ``pts_backbone`` comes after the fusion in BEVFusion and before it in
other detectors. A :class:`FusionMap` defines this per architecture. Its names are free: any number of modalities, any
tasks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from mmprune3d.pruning import checks

_WEIGHTS = {'weight': re.compile('Conv|Linear'), '(in|[qkv])_proj_weight': re.compile('MultiheadAttention')}
"""Parameters that can be pruned: parameter name -> name of the class of its module, or of a base class."""


@dataclass(frozen=True)
class FusionMap:
    """The parameter groups of one architecture and the ends of its streams, as plain data.

    Attributes:
        groups: Group -> prefixes of modules, such as ``{'camera': ('img_backbone',), ...}``. The longest prefix
            decides, so that a part of a module may belong to another group than the rest.
        interfaces: Modality (a group with a stream of its own) -> path of the method or module whose output is the end
            of the stream, such as ``'extract_img_feat'``. If it is a ``ModuleList``, all of its entries are meant.
        skipped: Modality -> earlier modules of its stream that need not run while it is masked, for interfaces that get
            the output of these modules.
        cross_modal: Modality -> path of a flag that hides its raw data from the other streams while it is masked.
        mean_fusion: Path of the method or module that averages over the modalities, for models that fuse so; its
            output is scaled up while one of them is masked, as if the average were taken over the others.
        head: Path of the module from whose outputs losses are computed; None for models that return them in
            ``mode='tensor'``.
        needs: Paths that must exist; a model of this class without them is not a fusion model.
        optional: Whether the model may lack modules that the groups name.
    """

    groups: Mapping[str, tuple[str, ...]]
    interfaces: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cross_modal: Mapping[str, str] = field(default_factory=dict)
    mean_fusion: str | None = None
    head: str | None = None
    needs: tuple[str, ...] = ()
    optional: bool = False

    def group_of(self, name: str) -> str | None:
        """The group of a module or parameter, by its longest prefix; None if no prefix matches."""
        found = [
            (len(prefix), group)
            for group, prefixes in self.groups.items()
            for prefix in prefixes
            if name == prefix or name.startswith(f'{prefix}.')
        ]
        return max(found)[1] if found else None


_BEVFUSION = FusionMap(
    groups={
        'camera': ('img_backbone', 'img_neck', 'view_transform'),
        'lidar': ('pts_voxel_layer', 'pts_voxel_encoder', 'pts_middle_encoder'),
        'fusion': ('fusion_layer', 'pts_backbone', 'pts_neck', 'bbox_head'),
    },
    interfaces={'camera': 'extract_img_feat', 'lidar': 'extract_pts_feat'},
    cross_modal={'lidar': 'view_transform.mask_points'},
    head='bbox_head',
    optional=True,
)
_MVXNET = FusionMap(
    groups={
        'camera': ('img_backbone', 'img_neck'),
        'lidar': ('pts_voxel_encoder',),
        'fusion': (
            'pts_voxel_encoder.fusion_layer',  # fuses points with image features, before they become voxels
            'pts_middle_encoder',
            'pts_backbone',
            'pts_neck',
            'pts_bbox_head',
        ),
    },
    interfaces={'camera': 'img_neck', 'lidar': 'pts_voxel_encoder.vfe_layers'},
    skipped={'camera': ('img_backbone',)},  # extract_img_feat must run, because it writes meta information
    head='pts_bbox_head',
    needs=('pts_voxel_encoder.fusion_layer',),
    optional=True,
)
MAPS: dict[str, FusionMap] = {
    'BEVFusion3D': _BEVFUSION,
    'BEVFusion': _BEVFUSION,  # the class of mmdet3d's projects
    'MVXTwoStageDetector': _MVXNET,  # and its subclasses
}
"""Class name of a detector -> its fusion map."""

MAP_SETTINGS = ('groups', 'interfaces', 'cross_modal', 'mean_fusion', 'head')
"""Settings of a config that are arguments of `fusion_map`."""

_HOW_TO = (
    'Valid are camera-LiDAR fusion detectors: BEVFusion3D (also BEVFusion of mmdet3d) and MVX-Net. For any other '
    'detector, say in its config which modules belong to which sensor: pruning = dict(groups=dict('
    "camera=['img_backbone'], lidar=['pts_encoder'], fusion=['fuser', 'head']), interfaces=dict("
    "camera='extract_img_feat', lidar='pts_encoder')), with module names of your detector; interfaces are the methods "
    'or modules whose outputs are fused'
)


def fusion_map(
    model: nn.Module,
    groups: Mapping[str, str | Sequence[str]] | None = None,
    interfaces: Mapping[str, str] | None = None,
    cross_modal: Mapping[str, str] | None = None,
    mean_fusion: str | None = None,
    head: str | None = None,
) -> FusionMap:
    """Returns the fusion map of `model`: that of its class or of a base class, or the given one.

    Args:
        model: The detector, without a wrapper.
        groups: Groups as in :class:`FusionMap`; if given, no known map is used.
        interfaces: Interfaces as in :class:`FusionMap`; without `groups` they replace those of the known map.
        cross_modal: Flags as in :class:`FusionMap`; without `groups` they replace those of the known map.
        mean_fusion: Path as in :class:`FusionMap`; without `groups` it replaces that of the known map.
        head: Path as in :class:`FusionMap`; without `groups` it replaces that of the known map.

    Raises:
        ValueError: If the class is unknown and no groups are given, or if groups or interfaces do not match the model.
    """
    check_map_settings(dict(zip(MAP_SETTINGS, (groups, interfaces, cross_modal, mean_fusion, head), strict=True)))
    given = {
        'interfaces': interfaces,
        'cross_modal': cross_modal,
        'mean_fusion': mean_fusion,
        'head': head,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if groups is not None:
        made = FusionMap(_as_tuples(groups), **changes)
    else:
        made = replace(_known(model), **changes)
    _check(model, made)
    return made


def check_map_settings(given: Mapping[str, object]) -> None:
    """Raises ValueError if one of the `MAP_SETTINGS` has a wrong type; None stands for a setting that is not given."""
    examples = {
        'groups': "dict(camera=['img_backbone'], lidar=['pts_encoder'])",
        'interfaces': "dict(camera='extract_img_feat')",
        'cross_modal': "dict(lidar='view_transform.mask_points')",
    }
    for name, value in given.items():
        if value is None:
            continue
        if name not in examples:
            checks.text(name, value, "the path of a module, such as 'bbox_head'")
        elif not isinstance(value, Mapping) or (name == 'groups' and not value):
            raise ValueError(f'{name}={checks.shown(value)} must be a dict such as {examples[name]}')
        else:
            for key, paths in value.items():
                checks.text(f'{name}: the key', key, f'a name, as in {examples[name]}')
                one_or_more = (paths,) if isinstance(paths, str) or name != 'groups' else paths
                checks.texts(f'{name}: {key}', one_or_more, f'paths of modules, as in {examples[name]}')


def _as_tuples(paths: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {name: (path,) if isinstance(path, str) else tuple(path) for name, path in paths.items()}


def _known(model: nn.Module) -> FusionMap:
    for kind in type(model).__mro__:
        if kind.__name__ in MAPS:
            return MAPS[kind.__name__]
    raise ValueError(
        f'{_title(model)} has no fusion map: it is not known which part belongs to which sensor. {_HOW_TO}'
    )


def _title(model: nn.Module) -> str:
    children = ', '.join(name for name, _ in model.named_children())
    return f'{type(model).__name__} (with {children or "no modules"})'


def _check(model: nn.Module, fusion: FusionMap) -> None:
    """Raises ValueError for paths that do not exist, and for parameters that are in no group."""
    title = type(model).__name__
    for path in fusion.needs:
        if not has(model, path):
            raise ValueError(f'{_title(model)} has no {path}: it fuses no sensors, as MVX-Net does. {_HOW_TO}')
    for group, prefixes in fusion.groups.items():
        for prefix in prefixes if not fusion.optional else ():
            if not has(model, prefix):
                children = ', '.join(name for name, _ in model.named_children())
                raise ValueError(f'group {group!r}: {title} has no module {prefix!r}; its children are {children}')
    for modality, path in fusion.interfaces.items():
        if modality not in fusion.groups:
            raise ValueError(f'interfaces: {modality!r} is not a group; valid are {", ".join(fusion.groups)}')
        if not has(model, path):
            raise ValueError(f'interfaces: {title} has no method or module {path!r} for the stream of {modality!r}')
    strangers = [name for name, _ in model.named_parameters() if fusion.group_of(name) is None]
    if strangers:
        modules = list(dict.fromkeys(name.rpartition('.')[0] or name for name in strangers))
        more = f' and {len(modules) - 8} more' if len(modules) > 8 else ''
        raise ValueError(
            f'{title}: these modules are in no group: {", ".join(modules[:8])}{more}; groups are '
            f'{", ".join(fusion.groups)}: add the prefix to one of them with groups=dict(...)'
        )


def resolve(model: nn.Module, path: str) -> object:
    """Returns the object at the dotted `path`.

    Raises:
        AttributeError: If it does not exist, or is None.
    """
    found: object = model
    for part in path.split('.'):
        found = getattr(found, part)
    if found is None:
        raise AttributeError(f'{path} is None')
    return found


def has(model: nn.Module, path: str) -> bool:
    """Returns whether there is an object other than None at `path`."""
    try:
        resolve(model, path)
    except AttributeError:
        return False
    return True


def parameter_groups(model: nn.Module, fusion: FusionMap) -> dict[str, str]:
    """Maps the name of every parameter to its group."""
    return {name: str(fusion.group_of(name)) for name, _ in model.named_parameters()}


def modalities(model: nn.Module, fusion: FusionMap) -> list[str]:
    """Modalities that have weights to prune, in the order of the map; a model may not have all streams."""
    present = {fusion.group_of(name) for name in prunable(model)}
    return [modality for modality in fusion.interfaces if modality in present]


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable weights of convolutions (dense, transposed, deformable, sparse), linear layers and attention.

    Layers are recognized by the names of their classes and the shape of the weight, so that spconv need not be
    imported. Biases, norm layers, embeddings and tables are not included; for frozen weights see `frozen`.
    """
    return {name: weight for name, weight in _weights(model) if weight.requires_grad}


def frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that could be pruned if they were trained; they have no gradients and are not pruned."""
    return {name: weight for name, weight in _weights(model) if not weight.requires_grad}


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    owners = {
        prefix: ' '.join(kind.__name__ for kind in type(module).__mro__) for prefix, module in model.named_modules()
    }
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition('.')
        if parameter.ndim < 2 or not parameter.is_floating_point():
            continue
        if any(re.fullmatch(key, own_name) and kinds.search(owners[owner]) for key, kinds in _WEIGHTS.items()):
            yield name, parameter

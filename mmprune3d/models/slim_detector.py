"""Detectors with pruned channels, built from the config of the dense detector."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.registry import MODELS
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from torch import nn

from mmprune3d.config_types import is_a
from mmprune3d.layers.slim import slim_model_

CHECKPOINTS = ('.pth', '.pt')


@MODELS.register_module()
def SlimDetector(  # noqa: N802  (configs name it like a class)
    detector: Mapping[str, Any], structure: Mapping[str, Sequence[int]] | str, **overrides: Any
) -> nn.Module:
    """Builds a detector, removes channels from its layers, and returns this detector (not a wrapper).

    The keys of the state dict are therefore those of the dense detector, and runners, hooks and ``init_model`` work
    without changes. The layers are narrow before any optimizer is built. The weights come from ``load_from`` or from
    the checkpoint that ``init_model`` gets; initial weights of the dense detector (``Pretrained``) have other shapes
    and are not loaded.

    Args:
        detector: Config of the dense detector; not modified.
        structure: Tensor name -> shape (tensors that are not named are not changed); or the path of a JSON file with
            such a mapping; or the path of a checkpoint with slim weights (``.pth``), whose shapes are used.
        **overrides: Further arguments of the detector, such as ``train_cfg``; None has no effect (``init_model`` sets
            ``train_cfg=None`` in every config).

    Raises:
        FileNotFoundError: If the file of the structure does not exist.
        ValueError: If the structure does not match the detector.
    """
    set_again = {name: value for name, value in overrides.items() if value is not None}
    config = {**copy.deepcopy(dict(detector)), **set_again}
    shapes = structure if isinstance(structure, Mapping) else read_structure(structure)
    model = MODELS.build(without_pretrained(config))
    slim_model_(model, shapes)
    return model


def read_structure(path: str | Path) -> dict[str, list[int]]:
    """Reads the mapping of tensor names to shapes from a JSON file or from a checkpoint (``.pth``, ``.pt``).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is neither a checkpoint nor a JSON object of tensor names and sizes.
    """
    path = Path(path)
    if path.suffix in CHECKPOINTS:
        checkpoint = CheckpointLoader.load_checkpoint(str(path), 'cpu')
        weights = checkpoint.get('state_dict', checkpoint)
        return {name: list(value.shape) for name, value in weights.items()}
    found = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(found, dict) or not all(isinstance(shape, list) for shape in found.values()):
        raise ValueError(f'{path}: a structure is an object {{tensor name: [sizes]}}, or a checkpoint {CHECKPOINTS}')
    return found


def without_pretrained(config: Any) -> Any:
    """Copies a config without initial weights from files: ``init_cfg`` of type ``Pretrained``, and ``pretrained``."""
    if isinstance(config, Mapping):
        kept = {
            name: without_pretrained(value)
            for name, value in config.items()
            if not (name == 'pretrained' or (name == 'init_cfg' and _loads(value)))
        }
        return type(config)(kept)
    if isinstance(config, (list, tuple)):
        return type(config)(without_pretrained(value) for value in config)
    return config


def _loads(init_cfg: Any) -> bool:
    entries = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(isinstance(entry, Mapping) and is_a(entry, 'Pretrained', WEIGHT_INITIALIZERS) for entry in entries)

"""Finds the recorded outputs of the official implementations, for tests marked ``reference``.

The folder is `$MMPRUNE3D_REFERENCE`, or ``shared/reference`` beside the checkout. It is not part of the repository;
where it, or a kind of file in it, is absent the tests are collected as one skip that says so. Every size and tolerance
comes from the file's own ``meta``, so that another folder of the same layout works unchanged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

VARIABLE = 'MMPRUNE3D_REFERENCE'


def reference_root() -> Path:
    """The folder that holds the reference data; it need not exist."""
    beside = Path(__file__).resolve().parents[2] / 'shared' / 'reference'
    return Path(os.environ.get(VARIABLE) or beside)


def reference_files(kind: str, pattern: str = '*.pt') -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``: the files `pattern` of folder `kind`, all marked ``reference``.

    Args:
        kind: A folder of the reference root, such as ``'petr_family'``.
        pattern: A glob inside that folder, such as ``'petr*.pt'`` or ``'keys/petr*.json'``.

    Returns:
        One ``pytest.param(path)`` per file in order of names, or a single skipped one with the reason if none is there.
    """
    folder = reference_root() / kind
    files = sorted(folder.glob(pattern))
    if not files:
        reason = f'no reference data {kind}/{pattern} in the folder that ${VARIABLE} names, or beside the checkout'
        return [pytest.param(None, id=f'{kind}-absent', marks=[pytest.mark.reference, pytest.mark.skip(reason=reason)])]
    return [pytest.param(file, id=str(file.relative_to(folder)), marks=pytest.mark.reference) for file in files]


def load(path: Path) -> dict[str, Any]:
    """The content of a ``.pt`` file: nested dicts and lists of plain values and tensors."""
    return torch.load(path, map_location='cpu', weights_only=True)


def as_float32(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are stored as exact float16 numbers, as float32."""
    return {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}

"""Where the real frames are: `$MMPRUNE3D_REAL_DATA`, or ``shared/data`` beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = 'MMPRUNE3D_REAL_DATA'


def real_data_root() -> Path:
    """The folder that holds the frames; it need not exist."""
    return Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parents[2] / 'shared' / 'data')


def needs(name: str) -> pytest.MarkDecorator:
    """Skips, with the reason, where folder `name` of the real data is absent."""
    reason = f'no real data {name} (looked in the folder that ${VARIABLE} names, or beside the checkout)'
    return pytest.mark.skipif(not (real_data_root() / name).is_dir(), reason=reason)

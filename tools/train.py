"""Runs mmdet3d's own tools/train.py, with its flags, after mmprune3d has been imported.

Usage:
    python tools/train.py CONFIG [options of mmdet3d's tools/train.py]
"""

from __future__ import annotations

import runpy
from pathlib import Path

import mmdet3d

from mmprune3d.checkpoint.kinds import MissingCheckpointError, UnreadableCheckpointError
from mmprune3d.checkpoint.mismatch import CheckpointMismatchError
from mmprune3d.engine.cpu_distributed import join_gloo_group

if __name__ == '__main__':
    join_gloo_group()
    tool = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / 'train.py'
    try:
        runpy.run_path(str(tool), run_name='__main__')
    except (MissingCheckpointError, UnreadableCheckpointError, CheckpointMismatchError) as error:
        raise SystemExit(f'error: {error}') from error

"""Runs mmdet3d's own tools/test.py, with its flags, after mmprune3d has been imported.

Usage:
    python tools/test.py CONFIG CHECKPOINT [options of mmdet3d's tools/test.py]
"""

from __future__ import annotations

import runpy
from pathlib import Path

import mmdet3d

from mmprune3d.command import run_main
from mmprune3d.engine.cpu_distributed import join_gloo_group


def main() -> None:
    """Runs the tool inside mmdet3d's wheel."""
    join_gloo_group()
    tool = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / 'test.py'
    runpy.run_path(str(tool), run_name='__main__')


if __name__ == '__main__':
    run_main(main, 'nothing is lost but the time')

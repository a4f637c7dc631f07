"""Make a detector faster, and report how accuracy, time and memory change: ``mmprune3d upgrade`` with flags.

    python tools/upgrade.py CONFIG CHECKPOINT --tggbc r=12000,n=2,k=175 --out work_dirs/upgrade

    python tools/upgrade.py CONFIG CHECKPOINT --tggbc auto --max-drop 0.01 --calibrate 100

    python tools/upgrade.py CONFIG CHECKPOINT --gpq target=300,epochs=6 [--tggbc r=12000]

    python tools/upgrade.py CONFIG CHECKPOINT --altermoma flops=0.5 --epochs 6   (camera-LiDAR fusion; or sparsity=0.8)

    python tools/upgrade.py CONFIG CHECKPOINT --halting sparsity=0.82 --epochs 6   (SST)

    python tools/upgrade.py CONFIG CHECKPOINT --tggbc r=12000 --samples 600   (a part of a large test set)

Writes report.md, report.json, pictures/, and the upgraded config and checkpoint, which mmdet3d's own tools/test.py
runs.
"""

from __future__ import annotations

import argparse

from mmprune3d.cli import common
from mmprune3d.cli import upgrade as command
from mmprune3d.command import run_main
from mmprune3d.upgrade.methods import known


def parser() -> argparse.ArgumentParser:
    """The command line: a flag per method of the registry, and the options of ``mmprune3d upgrade``."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_model(made)
    for method in known().values():
        made.add_argument(f'--{method.name}', metavar='KEY=VALUE,...', help=method.summary.replace('%', '%%'))
    command.add_options(made)
    return made


def run(args: argparse.Namespace) -> None:
    """Runs the upgrade that is asked for."""
    asked = {name: getattr(args, name) for name in known()}
    command.run_methods({name: text for name, text in asked.items() if text is not None}, args)


def main() -> None:
    """Parses, runs, prints the table."""
    args = parser().parse_args()
    run_main(lambda: run(args), command.AFTER_INTERRUPT)


if __name__ == '__main__':
    main()

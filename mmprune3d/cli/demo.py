"""The main job on data made on the spot: generates unseen validation scenes, then upgrades petr_tiny with tgGBC.

    python tools/demo.py

Writes work_dirs/demo/ (report.md, report.json, pictures/, upgraded.py, upgraded.pth) and data/demo-nuscenes/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VAL_SCENES, SAMPLES, IMAGE_SIZE = 8, 24, (352, 128)


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tggbc', default='r=740,n=1,k=50', help='what to prune of the 1056 keys')
    parser.add_argument('--data', type=Path, default=ROOT / 'data' / 'demo-nuscenes', help='where the scenes go')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'demo', help='report folder')
    parser.add_argument('--scenes', type=int, default=VAL_SCENES, help='validation scenes to generate')
    return parser.parse_args()


def main() -> None:
    """Parses and runs."""
    args = parse_args()
    from mmprune3d.command import run_main

    run_main(lambda: run(args), 'generated scenes are kept if all were there; the same command goes on')


def run(args: argparse.Namespace) -> None:
    """Generates what is missing, then runs the upgrade."""
    from mmprune3d.datasets.synthetic.config import GeneratorConfig
    from mmprune3d.datasets.synthetic.generate import generate
    from mmprune3d.files import writable
    from mmprune3d.pruning.key_plan import TgGBCPlan
    from mmprune3d.upgrade.run import run_upgrade

    writable(args.out)
    if not args.data.exists():
        print(f'Generating {args.scenes} validation scenes of {SAMPLES} samples in {args.data}')
        # mmdet3d's converter wants a training split too; one sample of it is enough
        sensors = ('camera', 'lidar')
        generate(GeneratorConfig(args.data, 1, args.scenes, SAMPLES, IMAGE_SIZE, workers=2, sensors=sensors))
    data_root = f'{args.data}/'
    overrides = {
        'data_root': data_root,
        'test_dataloader.dataset.data_root': data_root,
        'test_evaluator.data_root': data_root,
        'test_evaluator.ann_file': f'{data_root}nuscenes_infos_val.pkl',
    }
    config = ROOT / 'configs' / 'petr' / 'petr_tiny.py'
    plan = TgGBCPlan.parse(args.tggbc)
    run_upgrade(config, config.with_suffix('.pth'), plan, args.out, overrides, timed=16, repeats=3, pictures=3)


if __name__ == '__main__':
    main()

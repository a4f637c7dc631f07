"""``mmprune3d demo``: the main job on data that is generated on the spot."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import common
from .common import whole

HELP = 'generate validation scenes and upgrade a small PETR with tgGBC on them'
EPILOG = """
Writes report.md, report.json, pictures/, upgraded.py and upgraded.pth into the report folder. The weights are in a
checkout of the repository, not in the installed package: elsewhere, give the file with --checkpoint.

examples:
  mmprune3d demo
  mmprune3d demo r=800 n=2 --checkpoint petr_tiny.pth
"""
AFTER_INTERRUPT = 'generated scenes are kept if they were complete; the same command goes on'
METHOD = 'tggbc'
LOG = 'logs/output.log'
INFOS = 'nuscenes_infos_val.pkl'
PLAN = ('r=740', 'n=1', 'k=50')
VAL_SCENES, SAMPLES, IMAGE_SIZE = 8, 24, (352, 128)
CONFIG = Path('configs', 'petr', 'petr_tiny.py')
PACKAGE = Path(__file__).resolve().parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``mmprune3d demo`` to its parser."""
    common.add_words(parser, 'KEY=VALUE', f'what tgGBC removes of the 1056 keys (default: {" ".join(PLAN)})')
    parser.add_argument('--checkpoint', metavar='PATH', help='weights (default: configs/petr/petr_tiny.pth)')
    parser.add_argument(
        '--data',
        type=Path,
        metavar='PATH',
        default=Path('data/demo-nuscenes'),
        help='folder for the scenes, used again if it exists (default: %(default)s)',
    )
    common.add_out(parser, 'work_dirs/demo', 'folder for the report')
    parser.add_argument(
        '--scenes',
        metavar='N',
        type=whole(1),
        default=VAL_SCENES,
        help='scenes to generate (default: %(default)s)',
    )


def run(args: argparse.Namespace) -> None:
    """Generates what is missing, then runs the upgrade."""
    from mmprune3d.checkpoint.read import read_checkpoint
    from mmprune3d.datasets.synthetic.config import GeneratorConfig
    from mmprune3d.datasets.synthetic.generate import generate
    from mmprune3d.files import writable
    from mmprune3d.pruning.tggbc import TgGBCPlan
    from mmprune3d.screen import chatter_to
    from mmprune3d.upgrade.run import run_upgrade

    words = args.words[1:] if args.words[:1] == [METHOD] else args.words
    plan = TgGBCPlan.parse(','.join(words or PLAN))
    writable(args.out)
    config, checkpoint = find_model(args.checkpoint)
    read_checkpoint(checkpoint)  # before minutes of generating
    if args.data.exists() and not (args.data / INFOS).is_file():
        raise ValueError(f'{args.data} exists and is no generated data set (no {INFOS} in it): choose another --data')
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
        'test_evaluator.ann_file': f'{data_root}{INFOS}',
    }
    with chatter_to(args.out / LOG):
        run_upgrade(config, checkpoint, plan, args.out, overrides, timed=16, repeats=3, pictures=3)


def find_model(checkpoint: str | None) -> tuple[Path, str | Path]:
    """The config of petr_tiny, in a checkout or in the installed package, and its checkpoint.

    Args:
        checkpoint: What the user named, or None.

    Raises:
        FileNotFoundError: If no checkpoint is named and there is none beside the config.
    """
    places = [folder / CONFIG for folder in (PACKAGE.parent, PACKAGE / '.mim')]
    configs = [path for path in places if path.is_file()]
    if not configs:
        raise FileNotFoundError(f'{CONFIG} is neither in {PACKAGE.parent} nor in {PACKAGE / ".mim"}: install again')
    if checkpoint is not None:
        return configs[0], checkpoint
    for config in configs:
        if config.with_suffix('.pth').is_file():
            return config, config.with_suffix('.pth')
    raise FileNotFoundError(
        f'the weights of the demo are not in the installed package: run it in a checkout of the repository, or give '
        f'the file {CONFIG.with_suffix(".pth")} of one with --checkpoint PATH'
    )

"""``mmprune3d inspect``: what a trained detector does with its keys, queries, tokens and layers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import common
from .common import whole

if TYPE_CHECKING:
    from mmprune3d.pruning.key_plan import KeyPlan

HELP = 'show what a detector does with its keys, queries, tokens and layers'
EPILOG = """
The weights and the config stay as they are.

example:
  mmprune3d inspect layers CONFIG CHECKPOINT
"""
KEY_METHOD = 'tggbc'
"""The method whose keys are shown if none is named."""
KEY_PLAN = ('r=0.5', 'n=2')
DEFAULT = ' '.join([KEY_METHOD, *KEY_PLAN])
LOG = Path('logs', 'inspect.log')
"""File in the folder for the results that gets what other packages print."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``mmprune3d inspect`` to its parser."""
    common.add_commands(parser, {'keys': KEYS, 'queries': QUERIES, 'halting': HALTING, 'layers': LAYERS})


def run(args: argparse.Namespace) -> int:
    """Prints the help: one of the commands below it is needed."""
    return common.print_help(args)


def shown(text: str) -> str:
    """A report for the screen: with aligned tables, and without its pictures."""
    lines = [line for line in text.split('\n') if not line.startswith('![')]
    return re.sub(r'\n{3,}', '\n\n', common.aligned('\n'.join(lines)))


def _add_samples(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument('--samples', metavar='N', type=whole(1), help=f'test samples, evenly spaced (default: {text})')


def _add_keys(parser: argparse.ArgumentParser) -> None:
    common.add_model(parser)
    common.add_words(
        parser,
        'METHOD KEY=VALUE',
        f'tggbc, tome or another that prunes keys (default: {DEFAULT})',
    )
    _add_samples(parser, '16')
    parser.add_argument('--pictures', metavar='N', type=whole(0), default=3, help='samples to draw (default: 3)')
    common.add_out(parser, 'work_dirs/keys')
    common.add_overrides(parser)


def keys(args: argparse.Namespace) -> None:
    """Looks at the keys that a plan leaves."""
    from mmprune3d.files import writable
    from mmprune3d.inspect.key_use import run_keys
    from mmprune3d.screen import chatter_to

    plan, where = read_plan(args.words), (args.config, args.checkpoint)
    writable(args.out)
    with chatter_to(args.out / LOG):
        text = run_keys(*where, plan, args.out, args.cfg_options, args.samples, args.pictures)
    print(shown(text))
    print(f'wrote {args.out}')


def read_plan(words: Sequence[str]) -> KeyPlan:
    """The plan of the command line.

    Raises:
        ValueError: If several methods are named, or settings are invalid.
    """
    from mmprune3d.pruning.key_plan import KeyPlan
    from mmprune3d.upgrade.methods import known

    plans = {name: method.plan_type for name, method in known().items()}
    plans = {name: plan for name, plan in plans.items() if issubclass(plan, KeyPlan)}
    found = common.methods(words, list(plans)) or {KEY_METHOD: list(KEY_PLAN)}
    if len(found) > 1:
        raise ValueError(f'{" and ".join(found)}: give one method')
    ((method, settings),) = found.items()
    return plans[method].parse(','.join(settings))


KEYS = common.Command(
    HELP='show which cross-attention keys a plan keeps: per layer and camera, and how much attention falls on them',
    EPILOG="""
Writes report.md, report.json and pictures of samples with the removed keys tinted. The detector is not trained.

example:
  mmprune3d inspect keys CONFIG CHECKPOINT tggbc r=12000 n=2 k=175 --samples 50
""",
    add_arguments=_add_keys,
    run=keys,
)


def _add_queries(parser: argparse.ArgumentParser) -> None:
    common.add_model(parser)
    add = parser.add_argument
    add('--name', help='name in tables and pictures (default: that of the config)')
    add('--compare', nargs='+', default=[], metavar='NAME=CONFIG:CHECKPOINT', help='more detectors, side by side')
    add('--history', metavar='PATH', type=Path, help='gpq_history.jsonl of a training with GPQHook')
    _add_samples(parser, 'all')
    _add_score(parser, 'lowest score of a confident result')
    common.add_out(parser, 'work_dirs/queries')
    common.add_overrides(parser)


def _add_score(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument('--score-threshold', metavar='S', type=float, default=0.3, help=f'{text} (default: 0.3)')


def queries(args: argparse.Namespace) -> None:
    """Looks at the learned queries of one or several detectors."""
    from mmprune3d.files import writable
    from mmprune3d.inspect.gpq import Candidate, run_analysis
    from mmprune3d.screen import chatter_to

    writable(args.out)
    first = Candidate(args.name or args.config.stem, args.config, args.checkpoint)
    candidates = [first, *map(Candidate.parse, args.compare)]
    counted = (args.history, args.samples, args.score_threshold)
    with chatter_to(args.out / LOG):
        text = run_analysis(candidates, args.out, *counted, args.cfg_options)
    print(text)


QUERIES = common.Command(
    HELP='show which learned queries a detector uses: how often each is selected, where they are, what GPQ removed',
    EPILOG="""
Writes queries.json, queries.md, frequency.png, points.png (of detectors with reference points) and, with a history,
trajectories.png.

examples:
  mmprune3d inspect queries CONFIG CHECKPOINT --out work_dirs/queries
  mmprune3d inspect queries CONFIG CHECKPOINT --compare pruned=CONFIG:CHECKPOINT --history gpq_history.jsonl
""",
    add_arguments=_add_queries,
    run=queries,
)


def _add_halting(parser: argparse.ArgumentParser) -> None:
    common.add_model(parser)
    add = parser.add_argument
    _add_samples(parser, 'those of --draw')
    add(
        '--draw',
        metavar='INDEX',
        type=whole(0),
        nargs='+',
        default=[],
        help='test samples to draw, by their number',
    )
    _add_score(parser, 'lowest score of drawn boxes')
    add('--log', nargs='+', default=[], metavar='NAME=FILE', help='scalars.json of trainings with HaltingHook')
    common.add_out(parser, 'work_dirs/halting')
    common.add_overrides(parser)


def halting(args: argparse.Namespace) -> None:
    """Counts and draws halted tokens."""
    if not args.draw and args.samples is None:
        args.parser.error('nothing to do: give --samples, --draw or both')
    if not all('=' in log for log in args.log):
        args.parser.error(f'cannot read --log {" ".join(args.log)}; valid is NAME=FILE')
    from mmprune3d.files import writable
    from mmprune3d.inspect.halting import run_halting
    from mmprune3d.screen import chatter_to

    logs = {name: Path(file) for name, _, file in (log.partition('=') for log in args.log)}
    drawn = (args.draw, writable(args.out), args.cfg_options, args.samples, args.score_threshold, logs)
    with chatter_to(args.out / LOG):
        text = run_halting(args.config, args.checkpoint, *drawn)
    print(text)


HALTING = common.Command(
    HELP='show which tokens a detector halts: shares by layer, kind and distance, pictures, curves of trainings',
    EPILOG="""
Writes report.md, report.json, layers.png, halting_INDEX.png per drawn sample and, with logs, training.png.

examples:
  mmprune3d inspect halting CONFIG CHECKPOINT --draw 0 7 --out work_dirs/halting
  mmprune3d inspect halting CONFIG CHECKPOINT --samples 100 --log uniform=A/scalars.json nonuniform=B/scalars.json
""",
    add_arguments=_add_halting,
    run=halting,
)


def _add_layers(parser: argparse.ArgumentParser) -> None:
    common.add_model(parser)
    add = parser.add_argument
    add(
        '--rows',
        metavar='N',
        type=whole(0),
        default=20,
        help='costliest layers on the screen (default: 20; 0: all)',
    )
    add('--no-channels', action='store_true', help='do not look for coupled channels, which takes a run per layer')
    common.add_out(parser, 'work_dirs/layers')
    common.add_overrides(parser)


def layers(args: argparse.Namespace) -> None:
    """Lists the layers of a detector."""
    from mmprune3d.files import writable
    from mmprune3d.inspect.layers import run_layers
    from mmprune3d.screen import chatter_to

    writable(args.out)
    channels = not args.no_channels
    with chatter_to(args.out / LOG):
        text = run_layers(args.config, args.checkpoint, args.out, args.cfg_options, args.rows, channels)
    print(shown(text))
    print(f'wrote {args.out}')


LAYERS = common.Command(
    HELP='list the layers of any detector: parameters, GFLOPs, sensor, what can be pruned and what was',
    EPILOG="""
Runs one test sample. Writes report.md (all layers and groups of coupled channels) and report.json.

example:
  mmprune3d inspect layers CONFIG CHECKPOINT --out work_dirs/layers
""",
    add_arguments=_add_layers,
    run=layers,
)

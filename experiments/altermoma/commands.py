"""The commands of tools/study_fusion.py."""

from __future__ import annotations

import argparse

from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.measure.runners import read_config

from . import features as fusion_features
from . import redundancy as fusion_redundancy
from . import score_statistics, scoring_cost
from . import study as fusion_study
from .table import table


def run(args: argparse.Namespace) -> None:
    """Runs one command and prints what it found.

    Raises:
        ValueError: If a name is unknown, or there is nothing to tabulate.
        FileNotFoundError: If config or checkpoint is missing.
    """
    if args.command == 'table':
        print(table(args.out))
        return
    checkpoint = local_file(args.checkpoint)
    base = read_config(args.config, checkpoint, args.cfg_options)
    if args.command == 'redundancy':
        print(fusion_redundancy.redundancy_table(fusion_redundancy.redundancy(base, checkpoint, args.out)))
    elif args.command == 'scores':
        plans = score_statistics.plans_of(sparsity=0.8)
        found = score_statistics.score_statistics(base, checkpoint, plans, args.out)
        print(score_statistics.statistics_table(found))
    elif args.command == 'cost':
        print(scoring_cost.cost_table(scoring_cost.scoring_cost(base, checkpoint, args.out)))
    elif args.command == 'features':
        path = args.out / f'features_{args.sample}.png'
        fusion_features.draw_states(base, checkpoint, fusion_study.plan_of(args.sparsity), args.sample, path)
        print(path)
    else:
        for name in args.names:
            fusion_study.check_name(name)  # before the first training
        for name in args.names:
            print(fusion_study.run_training(base, checkpoint, name, args.seed, args.out))

"""What the benchmarks share: their options, and a loop over the rows that keeps what was measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .command import add_threads, set_threads

KEPT = 'rows that were finished are in the file of --json, if one was given'
"""What is printed after Ctrl-C."""
DTYPES = ('float32', 'bfloat16', 'float16')
DEVICES = ('cpu', 'cuda')
Measurement = dict[str, Any]


def add_options(
    parser: argparse.ArgumentParser,
    rows: Sequence[str] = ('--rows',),
    devices: Sequence[str] = DEVICES,
    dtypes: Sequence[str] = DTYPES,
    threads: int | None = None,
) -> None:
    """Adds the options of a benchmark; `run` reads them.

    Args:
        parser: Of the command.
        rows: Names of the option that selects rows.
        devices: Devices that the benchmark can run on; ``--device`` is added if there are several.
        dtypes: Types of weights and features that it can use; ``--dtype`` is added if there are several.
        threads: Default of ``--threads``.
    """
    parser.add_argument(
        *rows,
        dest='rows',
        nargs='+',
        metavar='NAME',
        help='rows of the table (default: all); a wrong name lists the valid ones',
    )
    parser.add_argument('--repeats', type=int, default=5, help='timed rounds; the median counts (default: %(default)s)')
    add_threads(parser, threads)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the measurements to this file')
    texts = {'device': 'where to run', 'dtype': 'type of weights and features'}
    for name, valid in (('device', devices), ('dtype', dtypes)):
        if len(valid) > 1:
            text = f'{texts[name]} (default: %(default)s)'
            parser.add_argument(f'--{name}', choices=valid, default=valid[0], help=text)
        else:
            parser.set_defaults(**{name: valid[0]})


def run(
    args: argparse.Namespace,
    valid: Iterable[str],
    measure: Callable[[str], Measurement | list[Measurement]],
    markdown: Callable[[list[Measurement]], str],
    env: Mapping[str, Any] | None = None,
    folders: Iterable[Path] = (),
) -> list[Measurement]:
    """Measures row by row, prints the table as Markdown and what the measurements depend on.

    Args:
        args: Options of `add_options`.
        valid: Names of all rows.
        measure: From the name of a row to one or more measurements.
        markdown: From the measurements to the table.
        env: More of what the measurements depend on.
        folders: Further folders that results are written to.

    Returns:
        The measurements of all rows.

    Raises:
        ValueError: If a row does not exist, or there is no GPU and one was asked for.
        OSError: If results cannot be written.
    """
    import torch

    from mmprune3d.files import writable, write_json
    from mmprune3d.measure.report import environment

    from .tables import listed

    set_threads(args)
    valid = list(valid)
    unknown = sorted(set(args.rows or ()) - set(valid))
    if unknown:
        raise ValueError(f'no row {", ".join(unknown)}; valid are {", ".join(valid)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda was given, but torch finds no GPU')
    for folder in (*([args.json.parent] if args.json else []), *folders):
        writable(folder)
    conditions = {**environment(batch_size=1, dtype=args.dtype, device=args.device), **(env or {})}
    results: list[Measurement] = []
    for row in args.rows or valid:
        found = measure(row)
        results += found if isinstance(found, list) else [found]
        print(f'{row}: done', flush=True)
        if args.json:  # what was measured is kept if a later row fails or is interrupted
            write_json(args.json, {'rows': results, 'env': conditions})
    print(markdown(results))
    print(listed(conditions))
    return results


def stage_times(
    calls: Mapping[str, Callable[[], dict[str, float]]], repeats: int, title: str
) -> dict[str, list[dict[str, float]]]:
    """Times of several calls that take turns, so that a busy machine slows all of them.

    Args:
        calls: Name -> function that runs once and returns milliseconds by stage, see `StageTimer.measure`.
        repeats: Rounds that count; one more warms up.
        title: Shown beside the progress bar.

    Returns:
        Name -> milliseconds by stage, for each round.
    """
    from tqdm import tqdm

    times: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for number in tqdm(range(repeats + 1), desc=title, unit='round', leave=False):
        for name, call in calls.items():
            taken = call()
            if number:
                times[name].append(taken)
    return times

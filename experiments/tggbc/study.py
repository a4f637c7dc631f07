"""The accuracy study of key pruning: every ablation of the tgGBC paper, on a given detector and its test set.

Results are written to `study.json` as soon as they are known, so that an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from experiments.curves import draw_curves
from experiments.tables import listed, markdown_table
from mmprune3d import files
from mmprune3d.checkpoint import begun
from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.evaluation import NaNPredictionError
from mmprune3d.inspect import keys as key_attention
from mmprune3d.measure import report as reports
from mmprune3d.measure.replayed_tests import CachedTest
from mmprune3d.measure.runners import prepare, read_config
from mmprune3d.pruning.key_plan import KeyPlan

from .parts import PARTS, Decoder, Part, choose_parts

TITLE = 'Accuracy of key pruning'
SHOWN = ('mAP', 'NDS')
"""Metrics that are plotted, and whose change the table shows."""
LISTENED = 16
"""Number of samples, spread over the test set, on which the attention of the layers is compared."""
KEPT_SHARE = 0.5
SETTINGS = ('r', 'n', 'k', 'score', 'seed')
DIGITS = 16
"""Hexadecimal digits of a SHA-256 that are kept."""


def fingerprint(data: bytes) -> str:
    """The first `DIGITS` hexadecimal digits of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def source_of(name: str, config: Config, checkpoint: Path, samples: int | None) -> dict[str, Any]:
    """What the results of a study depend on; a study goes on only with the results of an equal source.

    Args:
        name: Name of the config.
        config: The config.
        checkpoint: Its weights.
        samples: Number of test samples; None means all.
    """
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return {
        'config': name,
        'config_sha256': fingerprint(text.encode()),
        'checkpoint': checkpoint.name,
        'checkpoint_sha256': begun.fingerprint(checkpoint)[:DIGITS],
        'samples': samples or 'all',
    }


class Record:
    """The file of a study: the results of every plan.

    Args:
        path: The JSON file; it is read if it exists.
        source: See `source_of`.

    Raises:
        ValueError: If the file has the results of another source.
    """

    def __init__(self, path: Path, source: Mapping[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {'source': dict(source), 'settings': [], 'env': {}}
        if path.is_file():
            self.data = files.read_json(path)
            differing = [name for name in source if self.data['source'].get(name) != source[name]]
            if differing:
                raise ValueError(f'{path} is a study with another {", ".join(differing)}: choose another --out')

    def find(self, plan: KeyPlan | None) -> dict[str, Any] | None:
        """The results of a plan, or None; the plan None is the unpruned detector."""
        wanted = None if plan is None else plan.to_dict()
        return next((setting for setting in self.data['settings'] if setting['plan'] == wanted), None)

    def add(self, plan: KeyPlan | None, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Adds the results of a plan and writes the file."""
        self.data['settings'].append({'plan': None if plan is None else plan.to_dict(), **figures})
        self.save()
        return self.data['settings'][-1]

    def save(self) -> None:
        """Writes the file; it is whole after an interruption too."""
        files.write_json(self.path, self.data)


class KeyStudy:
    """Tests the plans that were not tested yet, and writes tables and plots.

    Args:
        config: Config of the unpruned detector, prepared by `mmprune3d.measure.runners.prepare`.
        source: See `source_of`.
        samples: See `CachedTest`.
        out: Folder that `study.json`, `study.md` and the plots are written to.
    """

    def __init__(self, config: Config, source: Mapping[str, Any], samples: int | None, out: Path) -> None:
        files.writable(out)
        self.config = config
        self.samples = samples
        self.out = out
        self.record = Record(out / 'study.json', source)

    @cached_property
    def test(self) -> CachedTest:
        """The model and the features of its test set; they are not needed if all results are known."""
        test = CachedTest(Runner.from_cfg(self.config), self.samples, folder=self.out)
        dtype = str(next(test.model.parameters()).dtype).removeprefix('torch.')
        self.record.data['env'] = reports.environment(test.replay.batch_size, dtype)
        self.record.data['evaluated'] = len(test.indices)
        return test

    @property
    def baseline(self) -> dict[str, Any]:
        """Results of the unpruned model."""
        found = self.record.find(None)
        return found or self.record.add(None, {**self.test.baseline, 'keys': self.test.keys})

    @property
    def decoder(self) -> Decoder:
        """Numbers of keys and layers that plans are made for."""
        return Decoder(self.baseline['keys'][0], len(self.baseline['keys']))

    def setting(self, plan: KeyPlan) -> dict[str, Any]:
        """Results of the model under `plan`, or under ``impossible`` the reason why there are none."""
        found = self.record.find(plan)
        if found is not None:
            return found
        try:
            keys = plan.keys_per_layer(*self.decoder)
        except ValueError as error:
            return self.record.add(plan, {'impossible': str(error)})
        begin = time.perf_counter()
        try:
            figures = self.test.evaluate(plan)
        except NaNPredictionError as error:
            return self.record.add(plan, {'impossible': str(error)})
        seconds = round(time.perf_counter() - begin, 1)
        return self.record.add(plan, {**figures, 'keys': list(keys), 'seconds': seconds})

    def run(self, names: Sequence[str]) -> str:
        """Runs parts of the study and writes tables and plots.

        Args:
            names: Names in `PARTS`.

        Returns:
            The content of `study.md`.
        """
        try:
            parts = {name: PARTS[name](self.decoder) for name in names}
            plans = dict.fromkeys(plan for part in parts.values() for plan in part.plans)
            for number, plan in enumerate(plans, 1):
                print(f'{number}/{len(plans)} {_line(self.setting(plan))}', flush=True)
            self.listen()
        finally:
            if 'test' in self.__dict__:
                self.test.close()
        text = '\n'.join(self.markdown(parts))
        files.write_text(self.out / 'study.md', text)
        for name, part in parts.items():
            self.draw(part, self.out / f'{name}.png')
        return text

    def listen(self) -> None:
        """Measures which keys the layers of the unpruned decoder attend to, if that is not known yet."""
        if 'attention_kept' not in self.record.data:
            with self.test.calls(LISTENED) as calls:
                table = key_attention.mean_attention_kept(self.test.model, calls, KEPT_SHARE)
            self.record.data['attention_kept'] = None if table is None else table.tolist()
            self.record.save()

    def draw(self, part: Part, path: Path) -> None:
        """Draws the plot of a part; settings that are not possible are left out."""
        curves = {}
        for curve in part.curves:
            found = [(x, [self.setting(plan) for plan in plans]) for x, plans in curve.points]
            curves[curve.label] = [(x, results) for x, results in found if all('keys' in result for result in results)]
        shown = [name for name in SHOWN if name in self.baseline]
        baseline = {name: self.baseline[name] for name in shown}
        draw_curves(path, part.title, part.x_label, curves, baseline, part.is_ordered)

    def markdown(self, parts: Mapping[str, Part]) -> Iterator[str]:
        """Lines of the tables, one table per part, baseline first."""
        source, env = self.record.data['source'], self.record.data['env']
        yield from (f'# {TITLE}: {source["config"]}', '')
        yield f'{self.record.data["evaluated"]} samples of the test set, {self.decoder.num_keys} keys,'
        yield f'{self.decoder.num_layers} decoder layers; checkpoint {source["checkpoint"]}'
        yield f'(SHA-256 {source["checkpoint_sha256"]}...). Changes (Δ) are in points of 100.'
        yield from ('', listed(env), '')
        for name, part in parts.items():
            yield from (f'## {part.title}', '', *self._table(part), '', f'![{part.title}]({name}.png)', '')
        table = self.record.data.get('attention_kept')
        if table is not None:
            yield from key_attention.markdown(
                torch.tensor(table), KEPT_SHARE, min(LISTENED, self.record.data['evaluated'])
            )

    def _table(self, part: Part) -> Iterator[str]:
        names = [name for name in self.baseline if name not in ('plan', 'keys', 'seconds')]
        shown = [name for name in SHOWN if name in names]
        settings = [name for name in SETTINGS if any(name in plan.to_dict() for plan in part.plans)]
        heads = ('method', *settings, *names, *(f'Δ{name}' for name in shown))
        yield from markdown_table(heads, (self._cells(plan, settings, names, shown) for plan in (None, *part.plans)))
        yield from self._remarks(part)

    def _cells(
        self, plan: KeyPlan | None, settings: Sequence[str], names: Sequence[str], shown: Sequence[str]
    ) -> list[str]:
        result = self.baseline if plan is None else self.setting(plan)
        cells = [_cell(plan, name, self.decoder.num_keys) for name in settings]
        return ['baseline' if plan is None else plan.title, *cells, *self._figures(result, names, shown)]

    def _figures(self, result: Mapping[str, Any], names: Sequence[str], shown: Sequence[str]) -> Iterator[str]:
        for name in names:
            yield f'{result[name]:.4f}' if name in result else '-'
        for name in shown:
            is_new = name in result and result['plan'] is not None
            yield f'{100 * (result[name] - self.baseline[name]):+.2f}' if is_new else '-'

    def _remarks(self, part: Part) -> Iterator[str]:
        found = dict.fromkeys(filter(None, (self.setting(plan).get('impossible') for plan in part.plans)))
        if found:
            yield from ('', 'Not possible (-):', '', *(f'- {reason}' for reason in found))


def _cell(plan: KeyPlan | None, name: str, num_keys: int) -> str:
    value = None if plan is None else plan.to_dict().get(name)
    if value is None:
        return '-'
    if name == 'r':
        total = sum(value) if isinstance(value, list) else value
        return f'{value} ({100 * total / num_keys:.1f} %)'
    if name == 'k':
        return str(value or 'all')
    return str(value)


def _line(setting: Mapping[str, Any]) -> str:
    plan = ' '.join(f'{name}={value}' for name, value in setting['plan'].items() if name in ('method', *SETTINGS))
    if 'impossible' in setting:
        return f'{plan}: {setting["impossible"]}'
    figures = [f'{name} {setting[name]:.4f}' for name in setting if name in SHOWN]
    return f'{plan}: {", ".join(figures)} ({setting["seconds"]} s)'


def run_study(
    config_file: Path, checkpoint: str | Path, out: Path, samples: int | None, parts: str, overrides: dict[str, Any]
) -> str:
    """Runs a study, or what is left of it.

    Args:
        config_file: Config of the unpruned detector.
        checkpoint: Its weights.
        out: Folder that `study.json`, `study.md` and a plot per part are written to.
        samples: Number of samples, spread evenly over the test set; None means all.
        parts: Names in `PARTS`, separated by commas.
        overrides: Settings on top of the config, by dotted key.

    Returns:
        The tables as Markdown.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        ValueError: For unknown parts, a config that prunes already or has no test set, or a folder with another study.
    """
    names, checkpoint = choose_parts(parts), local_file(checkpoint)
    config = read_config(config_file, checkpoint, overrides)
    source = source_of(config_file.stem, config, checkpoint, samples)
    return KeyStudy(prepare(config, checkpoint, out), source, samples, out).run(names)

"""Accuracies that an interrupted upgrade has measured already, which the same command does not measure again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from logging import WARNING
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mmprune3d import files
from mmprune3d.checkpoint.begun import fingerprint
from mmprune3d.config_types import writable
from mmprune3d.version import __version__

from .report import versions_of

FILE = 'measured.json'


class Measured:
    """Figures by key, kept in a file until the upgrade is finished.

    Args:
        folder: Folder of the upgrade.
        source: What the figures depend on, see `source_of_upgrade`; figures of another source are not used.
    """

    def __init__(self, folder: Path, source: Mapping[str, Any]) -> None:
        self.path = folder / FILE
        self.data: dict[str, Any] = {'source': json.loads(json.dumps(source)), 'figures': {}}
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text(errors='replace'))
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get('digest') != _digest(found.get('source'), found.get('figures')):
            text = f'{self.path} has been changed since it was written: its figures are measured again'
            print_log(text, logger='current', level=WARNING)
        elif found['source'] == self.data['source']:
            self.data = found

    def take(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures under `key`; if there are none yet, those that `measure` returns, which go into the file."""
        known = self.data['figures']
        if key in known:
            print_log(f'{key}: measured before the interruption, see {self.path}', logger='current')
        else:
            known[key] = json.loads(json.dumps(measure()))
            self.data['digest'] = _digest(self.data['source'], known)
            files.write_json(self.path, self.data)
        return dict(known[key])

    def finish(self) -> None:
        """Removes the file, once everything that the upgrade writes is there."""
        self.path.unlink(missing_ok=True)


def source_of_upgrade(config: Config, checkpoint: Path, samples: int | None, **others: Any) -> dict[str, Any]:
    """What the accuracies of an upgrade depend on, as plain types.

    Args:
        config: Config of the detector, as the user gave it.
        checkpoint: File with the weights.
        samples: How many samples are tested.
        others: Further plain types, such as the plan of a fine-tuning.
    """
    text = json.dumps(writable(config).to_dict(), sort_keys=True, default=str)
    evaluators = config.get('test_evaluator') or ()
    known = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    paths = [Path(one['ann_file']) for one in known if isinstance(one.get('ann_file'), str)]
    return {
        'config': _sha256(text),
        'checkpoint': fingerprint(checkpoint),
        'samples': samples,
        'annotations': {str(path): path.stat().st_mtime for path in paths if path.is_file()},
        'versions': {'mmprune3d': __version__, **versions_of('torch', 'mmengine', 'mmcv', 'mmdet', 'mmdet3d')},
        **others,
    }


def _digest(source: Any, figures: Any) -> str:
    """Checksum of what is in the file: figures that somebody changed, or half of a file, are not measurements."""
    return _sha256(json.dumps([source, figures], sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""Results are written by mmprune3d.files alone; an interrupted write is not taken for a result by the next start."""

from __future__ import annotations

import ast
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmprune3d.checkpoint import convert
from mmprune3d.checkpoint.masks import load_masks, save_masks
from mmprune3d.checkpoint.publish import publish
from mmprune3d.engine.hooks.gpq_hook import _keep_lines_until
from mmprune3d.upgrade.compact import Compacted
from mmprune3d.upgrade.slim_files import REPORT, Slimmed

ROOT = Path(__file__).resolve().parents[1]
# Folders that get their name when all is there, temporary files, and a log of lines of which the last may be cut.
BESIDE = {
    'files.py',
    'datasets/synthetic/generate.py',
    'datasets/synthetic/lidar.py',
    'datasets/synthetic/radar.py',
    'engine/hooks/gpq_hook.py',
}
WRITERS = {'write_text', 'write_bytes', 'savefig', 'imwrite', 'tofile', 'dump'}


def calls_that_write(path: Path) -> list[str]:
    """Calls that write a file under its own name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        first = ast.unparse(node.args[0]) if node.args else ''
        is_part = owner in ('files', 'part', 'file') or first in ('part', 'file')
        if (name in WRITERS or (owner, name) == ('torch', 'save')) and not is_part:
            found.append(f'{path.name}:{node.lineno}: {owner}.{name}({first})')
    return found


def test_results_are_written_by_one_module():
    package = ROOT / 'mmprune3d'
    files = [path for path in package.rglob('*.py') if str(path.relative_to(package)) not in BESIDE]
    files += list((ROOT / 'tools').glob('*.py'))
    assert len(files) > 150
    assert [call for path in files for call in calls_that_write(path)] == []


def test_the_look_out_sees_what_it_shall_see(tmp_path: Path):
    text = "torch.save(x, path)\n(out / 'a').write_text('x')\nfigure.savefig(path)\npart.write_bytes(b'')\nx.save(y)\n"
    (tmp_path / 'a.py').write_text(text)
    assert [call.split(':')[1] for call in calls_that_write(tmp_path / 'a.py')] == ['1', '2', '3']


def petr_weights() -> dict[str, torch.Tensor]:
    layer = 'pts_bbox_head.reg_branches.0.4'
    return {f'{layer}.weight': torch.rand(10, 4), f'{layer}.bias': torch.rand(10)}


def compacted(out: Path) -> None:
    Compacted(7, Config(dict(a=1)), {'state_dict': petr_weights()}).write(out, 'made')


def slimmed(out: Path) -> None:
    report = {
        'title': 't', 'gflops': [2.0, 1.0], 'params': [2, 1], 'groups': {}, 'layers': {}, 'frozen': [], 'notes': {},
        'total': {'kept': 1, 'total': 2, 'rate': 0.5},
    }  # fmt: skip
    Slimmed(Config(dict(model=dict(structure={'a': [1]}))), {'state_dict': petr_weights()}, report).write(out)


MADE: dict[str, tuple[Callable[[Path], Any], str]] = {
    'publish': (lambda out: publish(out / 'source.pth', out / 'made.pth'), 'made.pth'),
    'convert': (lambda out: convert.convert_file(out / 'source.pth', out / 'made.pth', 'petr-official'), 'made.pth'),
    'masks': (lambda out: save_masks(out / 'made.pth', {'a': torch.rand(9) > 0.5}, {}), 'made.pth'),
    'compact': (compacted, 'made_q7.pth'),
    'slim': (slimmed, 'slim.pth'),
}


@pytest.mark.parametrize('name', MADE)
@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()], ids=type)
def test_interrupted_checkpoints_are_absent_and_made_by_the_next_start(
    name: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make, result = MADE[name]
    torch.save({'state_dict': petr_weights()}, tmp_path / 'source.pth')

    def interrupted(_: object, file: Any) -> None:
        file.write(b'half of it')
        file.flush()
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(torch, 'save', interrupted)
        with pytest.raises(type(error)):
            make(tmp_path)
    assert not (tmp_path / result).exists() and not (tmp_path / REPORT).exists()
    assert not list(tmp_path.glob('.part.*'))
    make(tmp_path)
    assert torch.load(tmp_path / result, weights_only=True)


def test_masks_are_read_again(tmp_path: Path):
    masks = {'a': torch.rand(9) > 0.5}
    save_masks(tmp_path / 'deep' / 'masks.pth', masks, {})
    assert torch.equal(load_masks(tmp_path / 'deep' / 'masks.pth')['a'], masks['a'])


@pytest.mark.parametrize('cut', ['', '{"iter": 9, "rem', '{"iter": 9, "scores": {"1": 0.5}', '{"iter": 9}}'])
def test_lines_of_the_history_that_were_cut_are_dropped(tmp_path: Path, cut: str):
    path = tmp_path / 'history.jsonl'
    path.write_text(f'{{"iter": 1}}\n{{"iter": 2}}\n{{"iter": 3}}\n{cut}')
    _keep_lines_until(path, 2)
    assert path.read_text() == '{"iter": 1}\n{"iter": 2}\n'

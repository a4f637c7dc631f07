from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmprune3d.checkpoint.convert import CLASSES, SOURCES, convert_checkpoint, convert_file, convert_state_dict
from mmprune3d.cli import main
from mmprune3d.models.petr.box_coder import PETR3DBoxCoder, wrap_angle
from tests.reference import reference_files
from tests.test_models.test_petr.small import build, detector_config, features, head_config, sample

CONVENTIONS = {'petr-official': 'petr', 'petr-mmdet3d': 'projects_petr'}
PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights of a small detector; every box output differs."""
    state = build(detector_config(), seed).state_dict()
    generator = torch.Generator().manual_seed(seed)
    shared = {}
    for key, value in state.items():
        if '.reg_branches.' in key:  # shared between layers
            name = key.split('.', 3)[-1]
            state[key] = shared.setdefault(name, torch.randn(value.shape, generator=generator) * 0.3)
    return state


def assert_same_boxes(codes: Tensor, converted: Tensor, source: str) -> None:
    settings = {'pc_range': PC_RANGE, 'max_num': codes.shape[0]}
    theirs = PETR3DBoxCoder(**settings, num_classes=1, convention=CONVENTIONS[source])
    ours = PETR3DBoxCoder(**settings, num_classes=1)
    logits = torch.arange(len(codes), dtype=torch.float32)[:, None]
    expected, found = theirs.decode(logits, codes)[0], ours.decode(logits, converted)[0]
    columns = [0, 1, 2, 3, 4, 5, 7, 8]
    assert torch.equal(found[:, columns], expected[:, columns])
    assert wrap_angle(found[:, 6] - expected[:, 6]).abs().max() < 1e-6


@pytest.mark.parametrize('source', SOURCES)
def test_the_same_boxes_come_out(source: str) -> None:
    """The whole head, with the weights of one convention and its coder, and converted with ours."""
    state = weights()
    prefix = 'pts_bbox_head.'
    codes = []
    for convention, wanted in ((CONVENTIONS[source], state), ('mmdet3d', convert_state_dict(state, source))):
        config = head_config()
        config['bbox_coder']['convention'] = convention
        head = build(config)
        head.load_state_dict({key.removeprefix(prefix): v for key, v in wanted.items() if key.startswith(prefix)})
        with torch.no_grad():
            codes.append(head(features(), [sample().metainfo] * 2)['all_bbox_preds'][-1].flatten(0, 1))
    assert not torch.equal(*codes)
    assert_same_boxes(*codes, source)


@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('path', reference_files('petr_family', 'keys/petr[._]*json'))
def test_full_size_weights(path: Path, source: str) -> None:
    """Random weights for the keys of the full models: only the box rows change, and they decode to the same boxes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {key: shape for key, shape in json.loads(path.read_text()).items() if not key.startswith('img_backbone.')}
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    converted = convert_state_dict(state, source)
    assert {key: list(value.shape) for key, value in converted.items()} == shapes
    changed = {key for key in state if converted[key] is not state[key]}
    layers = [key for key in state if '.reg_branches.' in key and key.split('.')[-2] == '4']
    assert changed == {*layers, 'pts_bbox_head.code_weights'}
    for key in (key for key in layers if key.endswith('weight')):
        hidden = torch.randn(16, state[key].shape[1], generator=generator) * 0.05
        assert_same_boxes(hidden @ state[key].T, hidden @ converted[key].T, source)


def test_sources_differ_in_length_and_width_only() -> None:
    state = {'pts_bbox_head.reg_branches.0.4.bias': torch.arange(10.0)}
    official, project = (next(iter(convert_state_dict(state, source).values())) for source in SOURCES)
    assert official.tolist() == [0, 1, 3, 2, 4, 5, -7, -6, 8, 9]
    assert project.tolist() == [0, 1, 2, 3, 4, 5, -7, -6, 8, 9]


def test_weights_of_others_are_refused_in_one_message() -> None:
    state = weights() | {'pts_bbox_head.fpe.conv_reduce.weight': torch.ones(1), 'foo.bar': torch.ones(1)}
    with pytest.raises(ValueError, match=r'(?s)2 of \d+ keys.*fpe\.conv_reduce.*foo\.bar.*convention="petr"'):
        convert_state_dict(state, 'petr-official')
    with pytest.raises(ValueError, match='not a PETR head'):
        convert_state_dict({'img_backbone.conv1.weight': torch.ones(1)}, 'petr-official')
    with pytest.raises(ValueError, match='8 rows'):
        convert_state_dict({'pts_bbox_head.reg_branches.0.4.bias': torch.ones(8)}, 'petr-official')
    with pytest.raises(ValueError, match='petr-official, petr-mmdet3d'):
        convert_state_dict(state, 'petr')


def test_a_checkpoint_keeps_its_classes_and_is_converted_once() -> None:
    state = {f'module.{key}': value for key, value in weights().items()}
    checkpoint = convert_checkpoint(
        {'state_dict': state, 'meta': {'CLASSES': ['a', 'b'], 'epoch': 24}}, 'petr-official'
    )
    assert checkpoint['meta'] == {'converted_from': 'petr-official', 'dataset_meta': {'classes': ('a', 'b')}}
    assert convert_checkpoint(weights(), 'petr-official')['meta']['dataset_meta']['classes'] == CLASSES
    with pytest.raises(ValueError, match='already converted from petr-official'):
        convert_checkpoint(checkpoint, 'petr-mmdet3d')


def test_files(tmp_path: Path) -> None:
    torch.save({'state_dict': weights(), 'optimizer': {}}, tmp_path / 'theirs.pth')
    convert_file(tmp_path / 'theirs.pth', tmp_path / 'ours.pth', 'petr-mmdet3d')
    ours = torch.load(tmp_path / 'ours.pth', weights_only=True)
    assert set(ours) == {'meta', 'state_dict'}
    build(detector_config()).load_state_dict(ours['state_dict'])
    with pytest.raises(FileExistsError):
        convert_file(tmp_path / 'theirs.pth', tmp_path / 'ours.pth', 'petr-mmdet3d')


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    torch.save({'state_dict': {'foo.bar': torch.ones(1)}}, tmp_path / 'other.pth')
    torch.save({'state_dict': weights()}, tmp_path / 'theirs.pth')

    def run(source: str) -> None:
        arguments = [str(tmp_path / source), str(tmp_path / 'ours.pth'), '--from', 'petr-official']
        main(['checkpoint', 'convert', *arguments])

    with pytest.raises(SystemExit) as stopped:
        run('other.pth')
    assert stopped.value.code.startswith('error: ') and 'foo.bar' in stopped.value.code
    assert not (tmp_path / 'ours.pth').exists()
    run('theirs.pth')
    assert 'ours.pth' in capsys.readouterr().out and (tmp_path / 'ours.pth').exists()

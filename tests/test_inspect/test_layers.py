"""The table of layers: of small nets with costs counted by hand, and of the tiny detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune3d.checkpoint.masks import packed_state
from mmprune3d.checkpoint.slim import slim_checkpoint
from mmprune3d.cli import main
from mmprune3d.inspect.layers import inspect_layers, markdown
from mmprune3d.measure.raw_outputs import raw_outputs
from mmprune3d.pruning.channels import ChannelGroup, Member
from tests.conftest import CONFIG


class Net(nn.Module):
    """Two convolutions, a frozen linear layer, a norm, an attention, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)
        self.head.requires_grad_(False)
        self.unused = nn.Linear(5, 5)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.body(image).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0])


@pytest.fixture(scope='module')
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


IMAGE = torch.zeros(1, 3, 6, 6)


def looked_at(net: nn.Module, checkpoint: dict[str, Any] | None = None, channels: bool = True) -> Any:
    forward = (lambda model: model(IMAGE)) if channels else None
    return inspect_layers(net, lambda: net(IMAGE), forward, checkpoint)


def test_costs_and_what_can_be_pruned_by_hand(net: Net) -> None:
    report = looked_at(net)
    rows = {layer.name: layer for layer in report.layers}
    assert list(rows) == ['body.0', 'body.3', 'attention', 'attention.out_proj', 'head', 'unused']
    assert rows['body.0'].params == 8 * 3 * 9 + 8 and rows['body.0'].gflops == 2 * 36 * 8 * 27 / 1e9
    assert rows['body.3'].gflops == 2 * 36 * 32 / 1e9 and rows['head'].gflops == 2 * 36 * 8 / 1e9
    assert rows['attention'].params == 12 * 4 + 12 and rows['attention'].shape == (12, 4)
    assert [rows[name].weights for name in rows] == ['yes', 'yes', 'yes', 'yes', 'frozen', 'yes']
    assert rows['body.0'].channels == 'body.0' and not rows['body.3'].channels
    assert 'attention' in rows['body.3'].reason and rows['head'].reason == 'reaches the output'
    assert rows['unused'].reason == 'did not run' and rows['unused'].gflops == 0
    assert report.other == {'body': 16} and report.params == sum(p.numel() for p in net.parameters())
    assert sum(layer.params for layer in report.layers) + 16 == report.params
    (group,) = report.groups
    assert (group.name, group.channels, group.makes, group.reads) == ('body.0', 8, ('body.0',), ('body.3',))
    # half of 8 channels: 4 of 8 rows with bias, 8 of 16 in the norm, 16 of 32 that read them
    assert group.params == pytest.approx((4 * 28 + 8 + 16) / report.params)
    assert group.gflops == pytest.approx((2 * 36 * 4 * 27 + 2 * 36 * 16) / 1e9 / report.gflops)


def test_parts_add_up_to_the_whole(net: Net) -> None:
    report = looked_at(net)
    parts = report.parts()
    assert list(parts) == ['body', 'attention', 'head', 'unused'] and not report.has_map
    assert sum(part['params'] for part in parts.values()) == report.params
    assert sum(part['gflops'] for part in parts.values()) == pytest.approx(report.gflops)
    # projections 3 * 4 * 4 and 4 * 4 for 36 tokens, scores and sums 36 * 36 * 4 each, times two
    assert parts['attention']['gflops'] == pytest.approx(2 * (36 * 64 + 2 * 36 * 36 * 4) / 1e9)
    assert all(part['kept'] is None for part in parts.values())


def test_what_was_pruned_is_told(net: Net) -> None:
    mask = torch.arange(8 * 27).view(8, 3, 3, 3) < 54
    masked = {'meta': {}, 'mmprune3d': packed_state({'body.0.weight': mask}, {})}
    report = looked_at(net, masked, channels=False)
    assert {layer.name: layer.kept for layer in report.layers if layer.kept is not None} == {'body.0': 0.25}
    assert report.parts()['body']['kept'] == 0.25 and '| 25.0 |' in markdown(report, 'net')
    assert report.groups == [] and all(not layer.reason for layer in report.layers)

    group = ChannelGroup('body.0', 8, (Member('body.0.weight', 0, 'out'), Member('body.3.weight', 1, 'in')))
    slim = slim_checkpoint({'state_dict': net.state_dict()}, [group], {'body.0': torch.arange(8) < 2})
    report = looked_at(net, slim)
    assert next(layer for layer in report.layers if layer.name == 'body.0').kept == 0.25
    assert report.groups[0].kept == 0.25 and report.kept == {'body': 0.25}


def test_what_cannot_be_found_out_is_a_note(net: Net) -> None:
    def broken(model: nn.Module) -> Tensor:
        raise NotImplementedError('no such mode')

    report = inspect_layers(net, lambda: net(IMAGE[:, :2]), broken)
    assert report.gflops is None and all(layer.gflops is None for layer in report.layers)
    assert [note.partition(':')[0] for note in report.notes] == [
        'the table has modules instead of sensors', 'GFLOPs were not counted', 'coupled channels were not found',
    ]  # fmt: skip
    assert 'has no fusion map' in report.notes[0] and 'no such mode (NotImplementedError)' in report.notes[2]
    text = markdown(report, 'net')
    assert '| **all** | 6 |' in text and all(note in text for note in report.notes)


class Detector(nn.Module):
    """As MVXTwoStageDetector, whose ``_forward`` takes nothing: predictions only, and boxes that marks would break."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 1)
        self.add_module(head, nn.Conv2d(8, 2, 1))
        self.head_name = head

    def _forward(self) -> None:
        pass

    def forward(self, inputs: Tensor, data_samples: list[Any] | None = None, mode: str = 'tensor') -> Any:
        if mode == 'tensor':
            return self._forward(inputs, data_samples)
        scores = self.get_submodule(self.head_name)(self.body(inputs))
        assert scores.isfinite().all()
        return scores.argmax()


def test_detectors_without_raw_outputs_are_run_as_far_as_their_head() -> None:
    detector, forward = Detector('bbox_head').eval(), raw_outputs({'inputs': torch.rand(1, 3, 4, 4)})
    (scores,) = forward(detector)
    assert scores.shape == (1, 2, 4, 4) and not detector.bbox_head._forward_hooks
    report = inspect_layers(detector, lambda: detector(torch.rand(1, 3, 4, 4), mode='predict'), forward)
    assert [group.name for group in report.groups] == ['body'] and len(report.notes) == 1
    with pytest.raises(ValueError, match="Detector has neither mode='tensor' nor a head"):
        forward(Detector('tail'))


def test_the_screen_shows_the_costliest(net: Net) -> None:
    report = looked_at(net)
    short, full = markdown(report, 'net', 2), markdown(report, 'net')
    assert 'The 2 costliest of 6 layers' in short and 'costliest' not in full
    assert short.count('\n| body') == 4 and '| unused | unused |' in full and '| unused | unused |' not in short


def test_any_detector_of_a_config(
    tmp_path: Path, overrides: dict[str, Any], petr_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [f'{name}={value}'.replace(' ', '') for name, value in overrides.items()]
    command = ['inspect', 'layers', str(CONFIG), str(petr_checkpoint), '--out', str(tmp_path), '--rows', '3']
    assert main([*command, '--cfg-options', *words]) == 0
    printed = capsys.readouterr().out
    assert '# Layers of petr_tiny' in printed and 'The 3 costliest of 76 layers' in printed
    found = json.loads((tmp_path / 'report.json').read_text())
    rows = {layer['name']: layer for layer in found['layers']}
    first = rows['img_backbone.conv1']
    assert first['channels'] == 'img_backbone.conv1' and first['weights'] == 'yes'
    assert first['gflops'] == pytest.approx(2 * 6 * (32 * 80) * 32 * 147 / 1e9)
    assert len(found['groups']) == 25 and found['not_counted'] is not None and found['env']['batch'] == 1
    assert (
        rows['aux_head.stem.0' if 'aux_head.stem.0' in rows else next(n for n in rows if n.startswith('aux'))]['gflops']
        == 0
    )
    with pytest.raises(SystemExit, match='error: the config has no test_dataloader'):
        main([*command, '--cfg-options', 'test_dataloader=None'])

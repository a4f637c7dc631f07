"""Slim detectors leave PyTorch as any other: their dense parts run in ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmprune3d.checkpoint.slim import slim_state_dict, structure_of
from mmprune3d.models.slim_detector import SlimDetector
from tests.test_coupling.channel_nets import bevfusion_config, bevfusion_groups, build_bevfusion, half_of

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')


class Images(nn.Module):
    """Backbone and neck of the camera stream."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = detector.img_backbone, detector.img_neck

    def forward(self, images: Tensor) -> Tensor:
        return self.neck(self.backbone(images))[0]


class Maps(nn.Module):
    """Everything between the streams and the head."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.fuser, self.backbone, self.neck = detector.fusion_layer, detector.pts_backbone, detector.pts_neck

    def forward(self, camera: Tensor, lidar: Tensor) -> Tensor:
        return self.neck(self.backbone(self.fuser([camera, lidar])))[0]


@pytest.fixture(scope='module')
def slim() -> nn.Module:
    dense, groups = build_bevfusion(), bevfusion_groups().groups
    weights = slim_state_dict(dense.state_dict(), groups, half_of(groups))
    model = SlimDetector(bevfusion_config(), structure_of(weights))
    model.load_state_dict(weights)
    return model.eval()


def maps_of(detector: nn.Module) -> tuple[Tensor, Tensor]:
    """Random maps of the slim streams' widths."""
    camera = detector.view_transform.downsample[6].out_channels
    generator = torch.Generator().manual_seed(0)
    total = detector.fusion_layer[0].in_channels
    return tuple(torch.randn(1, width, 32, 32, generator=generator) for width in (camera, total - camera))


def images_of(detector: nn.Module) -> tuple[Tensor]:
    return (torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize(('part', 'inputs'), [(Images, images_of), (Maps, maps_of)])
def test_dense_parts_run_in_onnx_runtime(
    slim: nn.Module, part: type[nn.Module], inputs: Callable[[nn.Module], tuple[Tensor, ...]]
) -> None:
    module, arguments = part(slim), inputs(slim)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = module(*arguments)
        program = torch.onnx.export(module, arguments, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=['CPUExecutionProvider'])
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, arguments, strict=True)})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)

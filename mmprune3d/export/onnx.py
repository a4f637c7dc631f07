"""PETR's head and decoder as one ONNX file, with key pruning inside, for ONNX Runtime and TensorRT.

Inputs are image features and camera matrices; outputs are the class logits and box codes of the last decoder layer, and
the ids of the keys that pruning keeps. The backbone is not in the file: it is exported like that of any other detector.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import HOOKS, init_default_scope
from torch import Tensor, nn

from mmprune3d import adapters, files
from mmprune3d.checkpoint.read import load_weights
from mmprune3d.config_types import only
from mmprune3d.engine.apply import prune_as_configured
from mmprune3d.engine.hooks.key_pruning_hook import KeyPruningHook
from mmprune3d.measure.runners import read_config
from mmprune3d.models.petr.position import padded_cells
from mmprune3d.ops.cameras import camera_ring
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.version import __version__

from .graph import check_static, optional, split_topk, tidied, warn_large_topk

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
"""ONNX opset of the file: the one that torch's exporter writes without converting."""
TOLERANCES = {'cls_logits': 1e-4, 'box_codes': 1e-3}
"""Largest accepted difference between ONNX Runtime and PyTorch; a difference of 1e-3 in a box code is a millimetre."""


@dataclass(frozen=True)
class HeadShapes:
    """Sizes that are fixed in an exported head.

    Attributes:
        batch: Number of samples B.
        cameras: Number of images per sample.
        channels: Number of channels of the image features.
        cells: (H, W) of the feature maps.
        image_size: (height, width) of an image in pixels.
        canvas: (height, width) of an image with the padding that the data preprocessor adds.
    """

    batch: int
    cameras: int
    channels: int
    cells: tuple[int, int]
    image_size: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def of(cls, model: nn.Module, image_size: tuple[int, int], cameras: int, batch: int = 1) -> HeadShapes:
        """The shapes for a detector, whose backbone is run once on an empty image.

        Args:
            model: The detector.
            image_size: (height, width) of an image in pixels.
            cameras: Number of images per sample.
            batch: Number of samples.

        Raises:
            ValueError: If a size is not positive.
        """
        if min(*image_size, cameras, batch) < 1:
            raise ValueError(f'image size {image_size}, {cameras} cameras, batch {batch}: all must be positive')
        divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
        canvas = tuple(-(-size // divisor) * divisor for size in image_size)
        with torch.no_grad():
            channels, *cells = model.extract_feat(torch.zeros(1, 1, 3, *canvas))[0].shape[2:]
        return cls(batch, cameras, channels, tuple(cells), tuple(image_size), canvas)

    @property
    def mask(self) -> Tensor | None:
        """[B, cameras, H, W] bool, True for padding, or None if images fill the canvas."""
        return padded_cells([[self.image_size] * self.cameras] * self.batch, self.canvas, self.cells)

    def example(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random inputs of a head: image features, and cameras that look around a car (see `camera_ring`).

        Returns:
            Features [B, cameras, channels, H, W], and matrices [B, cameras, 4, 4] from pixels times depth to the car.
        """
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(self.batch, self.cameras, self.channels, *self.cells, generator=generator)
        intrinsics, poses = camera_ring(self.cameras, self.image_size)
        matrices = torch.tensor(poses @ np.linalg.inv(intrinsics), dtype=torch.float32)
        return features, matrices.expand(self.batch, -1, -1, -1).contiguous()


class PortableHead(nn.Module):
    """A detection head as a module that can be exported: tensors in, tensors out, sizes and padding fixed.

    Args:
        head: A ``PETR3DHead``, with or without a key pruner.
        shapes: The shapes of its inputs.

    Raises:
        ValueError: If images are padded and the plan removes a number of keys that depends on the padding.
    """

    def __init__(self, head: nn.Module, shapes: HeadShapes) -> None:
        super().__init__()
        self.head = head
        self.canvas = shapes.canvas
        self.register_buffer('mask', shapes.mask)
        plan = self.plan
        # Shares and thresholds are about valid keys. How many there are follows from the mask at run time, so that the
        # number of keys that stay, and with it the shapes of the graph, would depend on values.
        if self.mask is not None and plan is not None and (plan.is_share or getattr(plan, 't', 0)):
            raise ValueError(
                f'images of {shapes.image_size} on a canvas of {shapes.canvas} are padded, and a share or a threshold '
                f'({plan}) is about valid keys: give r as a count, and no t'
            )

    @property
    def plan(self) -> KeyPlan | None:
        """The plan of the head's key pruner, or None if it has no pruner."""
        pruner = self.head.transformer.decoder.key_pruner
        return None if pruner is None else pruner.plan

    def forward(self, img_feats: Tensor, img2lidar: Tensor) -> dict[str, Tensor]:
        """The last layer's outputs.

        Args:
            img_feats: [B, cameras, channels, H, W].
            img2lidar: [B, cameras, 4, 4] float32.

        Returns:
            ``cls_logits`` [B, N_q, classes], ``box_codes`` [B, N_q, S], and for every decoder layer i before which keys
            were removed ``kept_keys_i`` [B, N_k] int64, the ids of those that it attends to.
        """
        outputs: dict[str, Tensor] = {}
        record = adapters.record_keys(
            self.head,
            lambda: outputs.update(
                self.head.forward_tensors(img_feats, img2lidar, self.mask, self.canvas, all_layers=False)
            ),
        )
        # Layers between two removals read the same keys: an output for each of them would repeat the one before.
        return {
            'cls_logits': outputs['all_cls_scores'][-1],
            'box_codes': outputs['all_bbox_preds'][-1],
            **{f'kept_keys_{layer}': record.kept[layer] for layer in record.changed},
        }


def find_head(model: nn.Module) -> nn.Module:
    """Finds the detection head of `model`, a module with a method ``forward_tensors``.

    Raises:
        ValueError: If there is no such module.
    """
    for module in model.modules():
        if hasattr(module, 'forward_tensors'):
            return module
    raise ValueError(
        f'{type(model).__name__} has no head that can be exported: looked for one with `forward_tensors` (PETR3DHead)'
    )


def export_head(portable: PortableHead, shapes: HeadShapes, largest_topk: int | None = None) -> ModelProto:
    """Exports a head as an ONNX model of opset `OPSET`, with static shapes and without control flow.

    Args:
        portable: The head, in evaluation mode, on the CPU.
        shapes: The shapes that the head was made with.
        largest_topk: A TopK that selects more elements is split. None splits nothing, and warns of every TopK that is
            too large for TensorRT.

    Returns:
        The model. Its metadata holds ``mmprune3d.plan`` (JSON; null if nothing is pruned), ``mmprune3d.version``,
        ``mmprune3d.image_size`` and ``mmprune3d.canvas``.

    Raises:
        ImportError: If onnx or onnxscript is missing.
        ValueError: If the plan leaves no key, or the graph is not static.
    """
    optional('onnx'), optional('onnxscript')
    # Other features than those of `compare` (seed 1): what the exporter took for a constant would differ there.
    inputs = shapes.example(seed=0)
    with torch.no_grad():
        # The names of the outputs depend on the plan, and are known only after a run.
        names = list(portable(*inputs))
        program = torch.onnx.export(
            portable,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=['img_feats', 'img2lidar'],
            output_names=names,
            verbose=False,
        )
    model = program.model_proto
    if largest_topk is None:
        warn_large_topk(model)
    else:
        split_topk(model, largest_topk)
    model = tidied(
        model,
        {
            'mmprune3d.plan': json.dumps(portable.plan and portable.plan.to_dict()),
            'mmprune3d.version': __version__,
            'mmprune3d.image_size': json.dumps(shapes.image_size),
            'mmprune3d.canvas': json.dumps(shapes.canvas),
        },
    )
    check_static(model)
    return model


@torch.no_grad()
def compare(model: ModelProto, portable: PortableHead, shapes: HeadShapes, seed: int = 1) -> dict[str, float]:
    """Compares an exported head in ONNX Runtime with the original in PyTorch, on random features.

    Args:
        model: The exported head.
        portable: The original.
        shapes: The shapes of the inputs.
        seed: Seed of the features.

    Returns:
        Largest absolute difference of ``cls_logits`` and ``box_codes``, and for every ``kept_keys_i`` the number of
        keys that only one of the two kept, summed over the batch.

    Raises:
        ImportError: If onnxruntime is missing.
        RuntimeError: If a difference exceeds `TOLERANCES`, or if other keys were kept.
    """
    runtime = optional('onnxruntime')
    inputs, options = shapes.example(seed), runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    feeds = {info.name: tensor.numpy() for info, tensor in zip(session.get_inputs(), inputs, strict=True)}
    found = dict(zip((info.name for info in session.get_outputs()), session.run(None, feeds), strict=True))
    differences, expected = {}, portable(*inputs)
    if getattr(portable.plan, 'q', 0):
        # Queries that stay are chosen by TopK, whose order among equal scores the runtimes are free in.
        _align(found, expected)
    for name, tensor in expected.items():
        if name in TOLERANCES:
            differences[name] = float(np.abs(found[name] - tensor.numpy()).max())
        else:
            # Sets, not lists: a split TopK finds the same keys in another order.
            pairs = zip(found[name].tolist(), tensor.tolist(), strict=True)
            differences[name] = sum(len(set(ours) ^ set(theirs)) for ours, theirs in pairs)
    wrong = [f'{name} {value:g}' for name, value in differences.items() if not value <= TOLERANCES.get(name, 0)]
    if wrong:
        raise RuntimeError(f'ONNX Runtime and PyTorch differ: {", ".join(wrong)} (allowed: {TOLERANCES}, same keys)')
    return differences


def _align(found: dict[str, np.ndarray], expected: dict[str, Tensor]) -> None:
    """Reorders the queries in `found` as those in `expected`, by similarity: a pruner may output them in any order."""
    rows = [torch.cat([torch.as_tensor(outputs[name]) for name in TOLERANCES], -1) for outputs in (expected, found)]
    nearest = torch.cdist(*rows, p=torch.inf).argmin(-1)[..., None].numpy()
    for name in TOLERANCES:
        found[name] = np.take_along_axis(found[name], nearest, axis=1)


def images_of(config: Config) -> tuple[tuple[int, int] | None, int | None]:
    """(height, width) of the test images and the number of cameras, read from the test pipeline; None if not there."""
    loader = config.get('test_dataloader') or {}
    steps = loader.get('dataset', {}).get('pipeline', [])
    size = next((tuple(step['image_size']) for step in steps if 'image_size' in step), None)
    return size, next((step['num_views'] for step in steps if 'num_views' in step), None)


def load_model(config: Config, checkpoint: Path, plan: KeyPlan | None) -> nn.Module:
    """Builds a detector with its weights and attaches a plan to it.

    Args:
        config: The config of the detector.
        checkpoint: Its weights.
        plan: The plan to attach; None means that of the pruning hook in the config, if there is one.

    Raises:
        ValueError: If the plan does not fit the detector, or it has no head that can be exported.
    """
    init_default_scope(config.get('default_scope') or 'mmdet3d')
    model = MODELS.build(config.model).eval()
    find_head(model)
    load_weights(model, checkpoint)
    model.cfg = config
    if plan is not None:
        adapters.attach(model, plan)
    elif only(config.get('custom_hooks'), KeyPruningHook, HOOKS):
        prune_as_configured(model)
    return model


def run_export(
    config_file: Path,
    checkpoint: Path,
    out: Path,
    plan: KeyPlan | None = None,
    overrides: dict[str, Any] | None = None,
    image_size: tuple[int, int] | None = None,
    cameras: int | None = None,
    batch: int = 1,
    largest_topk: int | None = None,
    check: bool = True,
) -> None:
    """Exports the head of a detector, compares it with PyTorch, and writes the ONNX file.

    Args:
        config_file: The config of the detector.
        checkpoint: The weights of the detector.
        out: The ONNX file to write.
        plan: The plan to attach; None means that of the pruning hook in the config, if there is one.
        overrides: Settings on top of the config, by dotted key.
        image_size: (height, width) of the images in pixels; None means those of the test pipeline.
        cameras: Number of images per sample; None means that of the test pipeline.
        batch: Number of samples per run.
        largest_topk: See `export_head`.
        check: Whether to compare with PyTorch before the file is written.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        ImportError: If onnx, onnxscript or (for the check) onnxruntime is missing.
        RuntimeError: If the outputs of ONNX Runtime and PyTorch differ; no file is written then.
        ValueError: If the detector has no ``PETR3DHead``, the plan does not fit it, or the image size is not known.
    """
    config = read_config(config_file, checkpoint, overrides or {})
    known_size, known_cameras = images_of(config)
    image_size, cameras = image_size or known_size, cameras or known_cameras
    if image_size is None or cameras is None:
        raise ValueError(
            'the test pipeline has no `image_size` or no `num_views`: give --image-size HEIGHT WIDTH and --cameras N'
        )
    model = load_model(config, checkpoint, plan)
    shapes = HeadShapes.of(model, image_size, cameras, batch)
    portable = PortableHead(find_head(model), shapes).eval()
    exported = export_head(portable, shapes, largest_topk)
    if check:
        differences = ', '.join(f'{name} {value:g}' for name, value in compare(exported, portable, shapes).items())
        print_log(f'ONNX Runtime and PyTorch differ by: {differences}', logger='current')
    files.write_bytes(out, exported.SerializeToString())
    print_log(f'wrote {out}: opset {OPSET}, {shapes}, plan {portable.plan}', logger='current')

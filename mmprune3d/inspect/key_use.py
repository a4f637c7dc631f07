"""Which cross-attention keys a plan leaves to a detector, per decoder layer and camera, and the attention on them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner
from torch import Tensor

from mmprune3d import adapters
from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.measure import report as reports
from mmprune3d.measure.baseline import check_baseline
from mmprune3d.measure.runners import loaded_runner, prepare, read_config
from mmprune3d.measure.samples import data_info
from mmprune3d.measure.tested import TestedSet
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.screen import bar
from mmprune3d.visualization.cameras import camera_names
from mmprune3d.visualization.keys import cells_of
from mmprune3d.visualization.upgrade import draw_upgrade
from mmprune3d.visualization.upgrade_2d import draw_upgrade_2d

from .keys import SHOWN, VOTERS, attention_kept, attention_on, listening, markdown

SAMPLES = 16
"""Test samples that are looked at, or all if there are fewer."""
NO_ATTENTION = 'not measured: only PETR3D of mmprune3d tells its attention'


@dataclass(frozen=True)
class KeyUse:
    """What happened to the keys of some samples; L is the number of decoder layers.

    Attributes:
        plan: What was removed.
        keys: [samples, L], keys that each layer attends to.
        cameras: Name -> [samples, L], share of the camera's keys that each layer attends to. Empty if the keys are not
            the cells of one feature map per image.
        no_cameras: Why `cameras` is empty, or ''.
        attention: [L - 1], see `keys.attention_on`; None if the detector does not tell its attention.
        table: [L - 1, L - 1], see `keys.attention_kept`, at the share that the last layer attends to; or None.
        env: See `report.environment`.
    """

    plan: KeyPlan
    keys: Tensor
    cameras: Mapping[str, Tensor]
    no_cameras: str
    attention: Tensor | None
    table: Tensor | None
    env: dict[str, Any]

    @property
    def left(self) -> float:
        """Share of the keys that the last layer attends to, 0..1."""
        return float(self.keys[:, -1].sum() / self.keys[:, 0].sum())

    @property
    def voters(self) -> int:
        """Queries by whose attention keys are chosen in `table`."""
        return getattr(self.plan, 'k', VOTERS)

    def to_dict(self) -> dict[str, Any]:
        """Plain types: means over the samples, and the shares of every sample per camera."""
        return {
            'plan': self.plan.to_dict(),
            'samples': len(self.keys),
            'keys_per_layer': self.keys.double().mean(0).tolist(),
            'attention_on_kept_keys': None if self.attention is None else self.attention.tolist(),
            'attention_kept_by_layer': None if self.table is None else self.table.tolist(),
            'cameras': {
                name: {'kept_per_layer': shares.mean(0).tolist(), 'kept_by_last_layer': shares[:, -1].tolist()}
                for name, shares in self.cameras.items()
            },
            'no_cameras': self.no_cameras,
            'env': self.env,
        }

    def markdown(self, title: str, pictures: Sequence[str] = ()) -> str:
        """The report as Markdown."""
        settings = ', '.join(f'{name}={value}' for name, value in self.plan.to_dict().items() if name != 'method')
        lines = [f'# Keys of {title}', '', f'{self.plan.title}: {settings}. Means over {len(self.keys)} samples.', '']
        lines += [*self._layers(), '', *self._cameras(), '']
        if self.table is not None:
            lines += markdown(self.table, self.left, len(self.keys), self.voters)
        lines += [f'![What was removed from a sample]({name})\n' for name in pictures]
        env = ', '.join(f'{name} {value}' for name, value in self.env.items())
        return '\n'.join([*lines, env, ''])

    def _layers(self) -> Iterator[str]:
        yield f'| decoder layer | keys | of all (%) | attention of the {SHOWN} most confident queries on them (%) |'
        yield '|---|---:|---:|---:|'
        counts = self.keys.double().mean(0)
        for layer, count in enumerate(counts.tolist()):
            known = self.attention is not None and layer < len(self.attention)
            attention = f'{100 * float(self.attention[layer]):.1f}' if known else '-'
            yield f'| {layer + 1} | {count:.0f} | {100 * count / float(counts[0]):.1f} | {attention} |'
        if self.attention is None:
            yield from ('', f'Attention was {NO_ATTENTION}.')
        else:
            yield from ('', 'Attention is that of the unpruned detector; it is not recorded in the last layer.')

    def _cameras(self) -> Iterator[str]:
        if not self.cameras:
            yield f'Shares per camera are not known: {self.no_cameras}.'
            return
        layers = self.keys.shape[1]
        names = ' | '.join(f'layer {layer + 1}' for layer in range(layers))
        yield f'| keys kept (%) | {names} | least, last layer | most, last layer |'
        yield f'|---|{"---:|" * (layers + 2)}'
        for name, shares in self.cameras.items():
            last = shares[:, -1]
            values = [*shares.mean(0).tolist(), float(last.min()), float(last.max())]
            yield f'| {name} | {" | ".join(f"{100 * value:.0f}" for value in values)} |'


@dataclass(frozen=True)
class SampleKeys:
    """Keys of one sample.

    Attributes:
        kept: Per layer, [keys] ids of the keys that it attends to.
        names: Names of the cameras.
        canvas: (height, width) of the images with padding.
    """

    kept: list[np.ndarray]
    names: list[str]
    canvas: tuple[int, int]

    def camera_shares(self) -> dict[str, list[float]]:
        """Camera -> share of its keys that each layer attends to.

        Raises:
            ValueError: If the keys are not the cells of one feature map per image.
        """
        shares: dict[str, list[float]] = {name: [] for name in self.names}
        for ids in self.kept:
            present = np.zeros(len(self.kept[0]))
            present[ids] = 1
            cells, _ = cells_of(present, len(self.names), *self.canvas)
            for name, cell in zip(self.names, cells, strict=True):
                shares[name].append(float(cell.mean()))
        return shares


class KeyInspection:
    """Runs a detector with and without a plan on samples of its test set.

    Args:
        runner: Built from a prepared config, with the weights of the unpruned detector.
        plan: What to remove.
        samples: How many test samples, see `samples.choose`; None means `SAMPLES`, or all if there are fewer.

    Raises:
        ValueError: If the detector prunes already, no adapter knows it, or there are fewer samples.
    """

    def __init__(self, runner: Runner, plan: KeyPlan, samples: int | None = None) -> None:
        check_baseline(runner)
        adapters.family_of(runner.model)
        count = min(SAMPLES, len(runner.test_dataloader.dataset)) if samples is None else samples
        self.tested = TestedSet.of(runner, count)
        self.runner, self.model, self.plan = runner, runner.model, plan

    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> list[Any]:
        """Predictions of the model as it is now; the batch is not to be used again."""
        with self.tested.precision():
            return self.model.test_step(batch)

    def batches(self, title: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """A batch of one sample and its info, for every sample."""
        loader = self.runner.test_dataloader
        for index in bar(range(len(loader.dataset)), desc=title, unit='samples', leave=False):
            yield loader.collate_fn([loader.dataset[index]]), data_info(loader.dataset, index)

    def pruned(self, batch: dict[str, Any]) -> tuple[list[Tensor], list[Any]]:
        """Kept keys per layer, [1, keys], and predictions under the plan."""
        adapters.attach(self.model, self.plan)
        predictions: list[Any] = []
        try:
            kept = adapters.kept_keys(self.model, lambda: predictions.extend(self.predict(batch)))
        finally:
            adapters.detach(self.model)
        return kept, predictions

    def run(self) -> KeyUse:
        """Looks at all samples: first under the plan, then, for the attention, without it."""
        found: list[SampleKeys] = []
        for batch, info in self.batches('kept keys'):
            count = len(_images(batch))
            kept, predictions = self.pruned(batch)
            sample = predictions[0]
            canvas = sample.get('batch_input_shape') or sample.get('pad_shape')
            names = camera_names(sample.metainfo, info.get('images') or {}, count)
            found.append(SampleKeys([ids[0].cpu().numpy() for ids in kept], names, tuple(canvas[:2])))
        cameras, reason = _camera_shares(found)
        keys = torch.tensor([[len(ids) for ids in sample.kept] for sample in found])
        attention, table = self._attention(found, float(keys[:, -1].sum() / keys[:, 0].sum()))
        return KeyUse(self.plan, keys, cameras, reason, attention, table, self.tested.env)

    @torch.no_grad()
    def _attention(self, found: Sequence[SampleKeys], left: float) -> tuple[Tensor | None, Tensor | None]:
        on_kept, tables = [], []
        with listening(self.model) as fresh:
            if fresh() is None:
                return None, None
            for sample, (batch, _) in zip(found, self.batches('attention'), strict=True):
                listener = fresh()
                self.predict(batch)
                device = listener.confidence[0].device
                on_kept.append(attention_on(listener, [torch.from_numpy(ids)[None].to(device) for ids in sample.kept]))
                tables.append(attention_kept(listener, left, getattr(self.plan, 'k', VOTERS)))
        return torch.stack(on_kept).mean(0).cpu(), torch.stack(tables).mean(0).cpu()

    def pictures(self, folder: Path, count: int) -> list[Path]:
        """Draws samples before and after; see `visualization.upgrade`. A picture that fails is a warning."""

        def draw(number: int, batch: dict[str, Any], info: dict[str, Any]) -> Path:
            path, images = folder / f'keys_{number:04d}.jpg', _images(batch)
            before = self.predict(copy.deepcopy(batch))[0]
            kept, predictions = self.pruned(copy.deepcopy(batch))
            ids = [one[0] for one in kept]
            if 'pred_instances_3d' in before:
                draw_upgrade(path, images, before, predictions[0], ids, info.get('images') or {})
            else:
                draw_upgrade_2d(path, images[0], before, predictions[0], ids, info)
            return path

        return self.tested.draw(count, draw)


def _images(batch: Mapping[str, Any]) -> Tensor:
    """The images [cameras, 3, H, W] of a batch of one sample."""
    inputs = batch['inputs']
    return inputs['img'][0] if isinstance(inputs, Mapping) else inputs[0][None]


def _camera_shares(found: Sequence[SampleKeys]) -> tuple[dict[str, Tensor], str]:
    """Camera -> [samples, L], of cameras that every sample has; or why there is nothing."""
    try:
        shares = [sample.camera_shares() for sample in found]
    except ValueError as error:
        return {}, str(error)
    names = [name for name in shares[0] if all(name in one for one in shares)]
    return {name: torch.tensor([one[name] for one in shares], dtype=torch.float64) for name in names}, ''


def run_keys(
    config_file: Path,
    checkpoint: str | Path,
    plan: KeyPlan,
    out: Path,
    overrides: dict[str, Any],
    samples: int | None = None,
    pictures: int = 3,
) -> str:
    """Shows which keys a plan leaves to a detector; writes ``report.md``, ``report.json`` and pictures into `out`.

    Args:
        config_file: Config of the unpruned detector.
        checkpoint: Its weights: a file or an address.
        plan: What to remove.
        out: Folder to write to.
        overrides: Settings on top of the config, by dotted key.
        samples: Test samples, evenly spaced; None means `SAMPLES`, or all if there are fewer.
        pictures: How many of them are drawn.

    Returns:
        The report as Markdown.

    Raises:
        FileNotFoundError: If the config or the checkpoint does not exist.
        ValueError: If the plan does not fit the detector, or the detector prunes already or is not known.
    """
    checkpoint = local_file(checkpoint)
    runner = loaded_runner(prepare(read_config(config_file, checkpoint, overrides), checkpoint, out))
    inspection = KeyInspection(runner, plan, samples)
    use = inspection.run()
    drawn = [str(path.relative_to(out)) for path in inspection.pictures(out / 'pictures', pictures)]
    text = use.markdown(config_file.stem, drawn)
    reports.write({'config': config_file.name, **use.to_dict(), 'pictures': drawn}, out, text)
    return text

"""Key pruning on one real frame: a detector is over-fitted until it finds the cars, then pruned and tested again.

Nothing follows from one frame about accuracy. It shows that real images, calibrations and annotations pass through the
whole pipeline, and how many objects are still found when most keys are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmdet3d.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmprune3d import adapters
from mmprune3d.config_types import is_a
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.visualization.upgrade import join_nearest

CAR = 'car'
RANDOM = ('MultiViewGlobalRotScaleTrans', 'MultiViewRandomFlip3D', 'MultiViewPhotoMetricDistortion')
"""Random transforms, which only a training has."""


def frame_dataset(config: Config, folder: Path, augment: bool = False) -> Any:
    """The frame in `folder` (images beside `infos.pkl`, file names without folders) through the config's pipeline.

    Args:
        config: Config of a detector whose training pipeline loads images and annotations.
        folder: Folder with `infos.pkl` in mmdet3d's format v2, and the files that it names.
        augment: Whether the random transforms of the training are kept; otherwise images are resized as in a test.
    """
    init_default_scope(config.get('default_scope') or 'mmdet3d')
    settings = Config(dict(dataset=config.train_dataloader.dataset)).dataset
    settings.update(data_root=f'{folder}/', ann_file='infos.pkl', data_prefix=dict.fromkeys(settings.data_prefix, ''))
    if not augment:
        resize = config.test_dataloader.dataset.pipeline[1]
        pipeline = [step for step in settings.pipeline if not any(is_a(step, kind, TRANSFORMS) for kind in RANDOM)]
        settings.pipeline = [resize if is_a(step, resize['type'], TRANSFORMS) else step for step in pipeline]
    return DATASETS.build(settings)


def found_cars(prediction: Any, boxes: Tensor, score: float = 0.3, within: float = 2.0) -> int:
    """Number of ground-truth cars with a confident predicted car near their centre; each prediction counts once.

    Args:
        prediction: Data sample with `pred_instances_3d` whose label 0 is the car.
        boxes: [N, >=2] ground-truth cars.
        score: Predictions with a lower score are ignored.
        within: Largest distance of centres on the ground, in metres.
    """
    found = prediction.pred_instances_3d
    keep = (found.scores_3d >= score) & (found.labels_3d == 0)
    centers = found.bboxes_3d.tensor[keep.cpu(), :2]
    distances = torch.cdist(boxes[:, :2].float(), centers.float())
    distances[distances > within] = torch.inf
    return int(join_nearest(distances.cpu().numpy())[0].sum())


class SingleFrame:
    """A detector, one frame, and the cars in it.

    Args:
        model: A detector; it is trained in place.
        dataset: See `frame_dataset`.
    """

    def __init__(self, model: nn.Module, dataset: Any) -> None:
        self.model = model
        self.batch = pseudo_collate([dataset[0]])
        truth = self.batch['data_samples'][0].gt_instances_3d
        self.cars = truth.bboxes_3d.tensor[truth.labels_3d == list(dataset.metainfo['classes']).index(CAR)]

    def overfit(self, steps: int, lr: float, report: Callable[[int, float, int], None]) -> int:
        """Trains on the frame until every car is found, or for `steps` steps; returns the number of cars found."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.01)
        for step in range(1, steps + 1):
            self.model.train()
            data = self.model.data_preprocessor(self.copy(), True)
            loss, _ = self.model.parse_losses(self.model(**data, mode='loss'))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 35)
            optimizer.step()
            if step % 25 == 0 or step == steps:
                found = self.count()
                report(step, float(loss.detach()), found)
                if found == len(self.cars):
                    break
        return self.count()

    def copy(self) -> dict[str, Any]:
        """A copy of the batch, images included."""
        inputs = {'img': [image.clone() for image in self.batch['inputs']['img']]}
        return {'inputs': inputs, 'data_samples': [sample.clone() for sample in self.batch['data_samples']]}

    @torch.no_grad()
    def predict(self) -> Any:
        """The prediction for the frame."""
        self.model.eval()
        return self.model.test_step(self.copy())[0]

    def count(self) -> int:
        """Number of cars that are found now."""
        return found_cars(self.predict(), self.cars)

    def survivors(self, ratios: tuple[float, ...], n: int, k: int) -> dict[float, int]:
        """Share of removed keys -> number of cars that are found.

        Args:
            ratios: Shares of the keys that are removed.
            n: Pruning layers.
            k: Queries whose attention counts.
        """
        adapters.detach(self.model)
        keys = adapters.keys_per_layer(self.model, self.predict)[0]
        results = {}
        for ratio in ratios:
            adapters.attach(self.model, TgGBCPlan(r=round(ratio * keys), n=n, k=k))
            results[ratio] = self.count()
        adapters.detach(self.model)
        return results

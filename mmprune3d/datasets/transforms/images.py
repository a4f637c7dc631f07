"""Augmentation of the images of several cameras; transforms that move pixels update ``cam2img``.

Pixel coordinates are 0 at the left and upper edge of an image; the centre of the first pixel is at 0.5.
All transforms read the output of mmdet3d's ``LoadMultiViewImageFromFiles``: ``img``, a list of BGR images [H, W, 3],
with ``cam2img`` and ``lidar2cam`` per camera. They leave ``cam2img``, ``lidar2cam`` and ``lidar2img`` as lists of
float64 4x4 matrices that belong to the new images, or record the change in ``img_aug_matrix`` (`RecordAugmentation`).
"""

from __future__ import annotations

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PhotoMetricDistortion
from mmdet3d.registry import TRANSFORMS
from PIL import Image

from .cameras import move_pixels

RESAMPLE = ('pillow', 'opencv')


def resize(image: np.ndarray, size: tuple[int, int], resample: str = 'pillow') -> np.ndarray:
    """Resizes an image to (height, width).

    Args:
        image: Image [H, W, 3].
        size: Height and width of the result in pixels.
        resample: Filter, one of `RESAMPLE`: ``'pillow'`` is Pillow's bicubic filter, with which the published models
            were trained; ``'opencv'`` is several times faster (bilinear, or area averages when shrinking).
    """
    if image.shape[:2] == size:
        return image
    if resample == 'opencv':
        shrinks = size[0] < image.shape[0]
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    pixels = image if image.dtype == np.uint8 else np.clip(image, 0, 255).astype(np.uint8)
    resized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized).astype(image.dtype)


def crop(image: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """Cuts a window of (height, width) pixels out of an image; black where the window leaves the image."""
    window = np.zeros((*size, image.shape[2]), image.dtype)
    rows = slice(max(top, 0), min(top + size[0], image.shape[0]))
    columns = slice(max(left, 0), min(left + size[1], image.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        part = image[rows, columns]
        begin = (rows.start - top, columns.start - left)
        window[begin[0] : begin[0] + part.shape[0], begin[1] : begin[1] + part.shape[1]] = part
    return window


def rotation(degrees: float, size: tuple[int, int]) -> np.ndarray:
    """Pixel matrix 3x3 of a counter-clockwise rotation about the centre of an image of (height, width)."""
    matrix = np.eye(3)
    matrix[:2] = cv2.getRotationMatrix2D((size[1] / 2, size[0] / 2), degrees, 1.0)
    return matrix


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Transforms an image by a pixel matrix 3x3; black where the source is outside of the image."""
    half = np.eye(3)
    half[:2, 2] = 0.5  # in OpenCV integer coordinates are the centres of pixels
    return cv2.warpAffine(image, (np.linalg.inv(half) @ matrix @ half)[:2], image.shape[1::-1])


def mirror(width: int) -> np.ndarray:
    """Pixel matrix 3x3 of a left-right flip: u becomes width - u."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


@TRANSFORMS.register_module()
class MultiViewImageAug(BaseTransform):
    """Resizes, crops, flips and rotates the images of a sample (image augmentation of PETR and BEVFusion).

    Args:
        image_size: Height and width of the result in pixels.
        resize_range: Lowest and highest factor; drawn uniformly. Not used at test time.
        bottom_crop: Lowest and highest share of the resized height that is cut off at the bottom; the rest is cut off
            at the top.
        flip_prob: Probability of flipping all images, in training. The world is not flipped; see
            ``MultiViewRandomFlip3D``.
        rotate_range: Lowest and highest angle in degrees, in training.
        training: Whether to draw at random; otherwise the middle of each range is used, without flip and rotation.
        test_resize: Factor at test time; None: the smallest factor with which the image fills the result.
        per_image: Whether to draw for every image separately, as BEVFusion does, instead of once for all.
        resample: Filter for resizing; see `resize`.

    Raises:
        ValueError: If `resample` is unknown.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        resize_range: tuple[float, float] = (1.0, 1.0),
        bottom_crop: tuple[float, float] = (0.0, 0.0),
        flip_prob: float = 0.5,
        rotate_range: tuple[float, float] = (0.0, 0.0),
        training: bool = True,
        test_resize: float | None = None,
        per_image: bool = False,
        resample: str = 'pillow',
    ) -> None:
        if resample not in RESAMPLE:
            raise ValueError(f'unknown resample {resample!r}; valid are {", ".join(RESAMPLE)}')
        self.image_size = tuple(image_size)
        self.resize_range = resize_range
        self.bottom_crop = bottom_crop
        self.flip_prob = flip_prob
        self.rotate_range = rotate_range
        self.training = training
        self.test_resize = test_resize
        self.per_image = per_image
        self.resample = resample

    def transform(self, results: dict) -> dict:
        """Changes ``img`` and the camera matrices; sets ``img_shape`` and ``pad_shape`` to (height, width)."""
        images = results['img']
        draws = [self._draw(image.shape[:2]) for image in (images if self.per_image else images[:1])]
        settings = draws if self.per_image else draws * len(images)
        images, matrices = zip(*(self._apply(image, *each) for image, each in zip(images, settings)))
        results['img'] = list(images)
        results['img_shape'] = results['pad_shape'] = self.image_size
        move_pixels(results, matrices)
        return results

    def _draw(self, size: tuple[int, int]) -> tuple[tuple[int, int], int, int, bool, float]:
        """Resized (height, width), top and left of the window, whether to flip, and the angle in degrees."""
        height, width = self.image_size
        if self.training:
            factor, cut = np.random.uniform(*self.resize_range), np.random.uniform(*self.bottom_crop)
        else:
            factor = self.test_resize or max(height / size[0], width / size[1])
            cut = float(np.mean(self.bottom_crop))
        resized = (int(size[0] * factor), int(size[1] * factor))
        top = int((1 - cut) * resized[0]) - height
        spare = max(0, resized[1] - width)
        if not self.training:
            return resized, top, spare // 2, False, 0.0
        left = int(np.random.uniform(0, spare))
        return resized, top, left, np.random.rand() < self.flip_prob, np.random.uniform(*self.rotate_range)

    def _apply(
        self, image: np.ndarray, resized: tuple[int, int], top: int, left: int, flip: bool, degrees: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The transformed image, and the matrix 3x3 from old to new pixels."""
        matrix = np.diag([resized[1] / image.shape[1], resized[0] / image.shape[0], 1.0])
        matrix[:2, 2] = -left, -top
        image = crop(resize(image, resized, self.resample), top, left, self.image_size)
        if flip:
            image, matrix = np.ascontiguousarray(image[:, ::-1]), mirror(self.image_size[1]) @ matrix
        if degrees:
            turn = rotation(degrees, self.image_size)
            image, matrix = warp(image, turn), turn @ matrix
        return image, matrix


@TRANSFORMS.register_module()
class MultiViewPhotoMetricDistortion(BaseTransform):
    """Changes brightness, contrast, saturation and hue of every image separately.

    Args:
        **kwargs: Arguments of mmdet's ``PhotoMetricDistortion``.
    """

    def __init__(self, **kwargs: object) -> None:
        self.distort = PhotoMetricDistortion(**kwargs)

    def transform(self, results: dict) -> dict:
        """Changes ``img``; pixel values stay in 0..255, as float32."""
        images = [self.distort.transform({'img': image.astype(np.float32)})['img'] for image in results['img']]
        results['img'] = [np.clip(image, 0, 255) for image in images]
        return results

"""Options of the generator of synthetic data sets, with checks of their values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .recording import SceneJob
from .vocabulary import VERSION

MODALITIES = ('camera', 'lidar', 'radar')


@dataclass(frozen=True)
class GeneratorConfig:
    """Options of the generator.

    Attributes:
        out: Folder of the data set; its parent must be writable.
        train_scenes: Number of scenes with official training names, at most 700.
        val_scenes: Number of scenes with official validation names, at most 150.
        samples_per_scene: Number of keyframes per scene, one every half second, 1 to 40.
        image_size: Width and height of the images in pixels.
        seed: Non-negative integer; a scene depends only on it, its split and its number.
        workers: Number of processes; the result does not depend on it.
        sweeps: Number of recordings between two keyframes, 0 to 9 (4: 10 Hz, 9: 20 Hz).
        sweep_sensors: Modalities that record sweeps.
        sensors: Modalities to record; 'lidar' is always needed, 'camera' for the info files.
        infos: Whether to write `nuscenes_infos_{train,val}.pkl` with mmdet3d's converter.
        overwrite: Whether to replace `out` if it exists.
        jpeg_quality: Quality of the images, 1 to 100.
        start_method: Start method of processes: 'spawn', 'fork' or 'forkserver'.
    """

    out: Path
    train_scenes: int
    val_scenes: int
    samples_per_scene: int = 40
    image_size: tuple[int, int] = (704, 256)
    seed: int = 0
    workers: int = 1
    sweeps: int = 0
    sweep_sensors: tuple[str, ...] = ('lidar',)
    sensors: tuple[str, ...] = MODALITIES
    infos: bool = True
    overwrite: bool = False
    jpeg_quality: int = 92
    start_method: str = 'spawn'

    def check(self) -> None:
        """Checks all values.

        Raises:
            ValueError: If a value is out of range; the message has the valid range.
            FileExistsError: If `out` exists and `overwrite` is False, or it is no data set.
        """
        from nuscenes.utils import splits

        bounds = {
            'train_scenes': (0, len(splits.train)), 'val_scenes': (0, len(splits.val)), 'samples_per_scene': (1, 40),
            'seed': (0, 2**31), 'workers': (1, 256), 'sweeps': (0, 9), 'jpeg_quality': (1, 100),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f'{name} must be {low} to {high}, got {getattr(self, name)}')
        if self.train_scenes + self.val_scenes == 0:
            raise ValueError('train_scenes and val_scenes are both 0: there is nothing to generate')
        if self.infos and not (self.train_scenes and self.val_scenes):
            raise ValueError("mmdet3d's converter needs a scene in both splits; add one, or switch the info files off")
        if min(self.image_size) < 16:
            raise ValueError(f'image_size must be at least 16 x 16 pixels, got {self.image_size}')
        self._check_sensors()
        if Path(self.out).exists() and not self.overwrite:
            raise FileExistsError(f'{self.out} exists; choose another folder or set overwrite=True (--overwrite)')
        if Path(self.out).exists() and not replaceable(Path(self.out)):
            raise FileExistsError(
                f'{self.out} is no data set in the nuScenes format (no {VERSION} in it), and is not replaced: choose '
                'another folder'
            )

    def _check_sensors(self) -> None:
        for name, chosen, valid in (
            ('sensors', self.sensors, MODALITIES),
            ('sweep_sensors', self.sweep_sensors, self.sensors),
        ):
            unknown = sorted(set(chosen) - set(valid))
            if unknown and (name == 'sensors' or self.sweeps):
                raise ValueError(f'{name}: {", ".join(unknown)} not among {", ".join(valid)}')
        if 'lidar' not in self.sensors:
            raise ValueError('sensors must contain lidar: in the nuScenes tools every sample refers to LIDAR_TOP')
        if self.infos and 'camera' not in self.sensors:
            raise ValueError(
                "sensors must contain camera, or switch the info files off: mmdet3d's converter reads all six cameras"
            )

    def jobs(self) -> list[SceneJob]:
        """Lists one job per scene, training scenes first."""
        from nuscenes.utils import splits

        chosen = [(0, k, name) for k, name in enumerate(splits.train[: self.train_scenes])]
        chosen += [(1, k, name) for k, name in enumerate(splits.val[: self.val_scenes])]
        sweep_sensors = tuple(m for m in MODALITIES if m in self.sweep_sensors)
        sensors = tuple(m for m in MODALITIES if m in self.sensors)
        size, offset = tuple(self.image_size), len(splits.train)
        recording = (self.samples_per_scene, size, sensors, self.sweeps, sweep_sensors, self.jpeg_quality)
        return [SceneJob(name, split * offset + k, (self.seed, split, k), *recording) for split, k, name in chosen]


def replaceable(folder: Path) -> bool:
    """Whether a folder holds nothing, or a data set with tables as they are generated: the rest is somebody's work."""
    return folder.is_dir() and ((folder / VERSION).is_dir() or not any(folder.iterdir()))

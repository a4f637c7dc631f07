"""Info files for mmdet3d, written by mmdet3d's own converter."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mmprune3d.files import write_bytes

from .vocabulary import VERSION

# mmdet3d ships its converters as scripts, not as a package, and the second one always reads ./data/nuscenes.
_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from dataset_converters.nuscenes_converter import create_nuscenes_infos
from dataset_converters import update_infos_to_v2
if sys.argv[4] == 'False':
    update_infos_to_v2.generate_nuscenes_camera_instances = lambda info, nusc: {}
root = './data/nuscenes'
create_nuscenes_infos(root, 'nuscenes', sys.argv[2], int(sys.argv[3]))
for split in ('train', 'val'):
    update_infos_to_v2.update_pkl_infos('nuscenes', root, f'{root}/nuscenes_infos_{split}.pkl')
"""


def create_infos(root: Path, max_sweeps: int = 10, camera_boxes: bool = False) -> tuple[Path, Path]:
    """Writes `nuscenes_infos_train.pkl` and `nuscenes_infos_val.pkl` (info format v2) into a nuScenes data root.

    The converter of the installed mmdet3d runs in its own process and working folder. Its 2D boxes (`cam_instances`,
    for monocular detectors) assume 1600 x 900 images and take most of its time; by default they are left empty.

    Args:
        root: Data root that contains `v1.0-trainval`.
        max_sweeps: Number of LiDAR sweeps before each keyframe to list.
        camera_boxes: Whether to fill `cam_instances`; correct only for images of 1600 x 900 pixels.

    Returns:
        Paths of the two files.

    Raises:
        FileNotFoundError: If `root` has no nuScenes tables, or the installed mmdet3d has no converter.
        RuntimeError: If the converter fails; the message has the last lines of its output.
    """
    import importlib.util

    root = Path(root).resolve()
    if not (root / VERSION).is_dir():
        raise FileNotFoundError(f'{root} has no {VERSION} folder with nuScenes tables')
    tools = Path(importlib.util.find_spec('mmdet3d').origin).parent / '.mim' / 'tools'
    if not (tools / 'dataset_converters' / 'nuscenes_converter.py').is_file():
        raise FileNotFoundError(f'mmdet3d has no nuScenes converter in {tools}; install mmdet3d 1.4 from its wheel')
    # The converter writes one format and then overwrites it with the other: in a temporary folder, so that an
    # interrupted run leaves no file of the first format.
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / 'data' / 'nuscenes'
        made.mkdir(parents=True)
        for entry in root.iterdir():
            if entry.is_dir():
                (made / entry.name).symlink_to(entry, target_is_directory=True)
        command = [sys.executable, '-c', _SCRIPT, str(tools), VERSION, str(max_sweeps), str(camera_boxes)]
        # The converter multiplies many small matrices, for which several threads are slower than one.
        environment = os.environ | {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
        output = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        result = subprocess.run(command, cwd=work, env=environment, check=False, **output)
        if result.returncode:
            raise RuntimeError("mmdet3d's nuScenes converter failed:\n" + '\n'.join(result.stdout.splitlines()[-25:]))
        paths = root / 'nuscenes_infos_train.pkl', root / 'nuscenes_infos_val.pkl'
        for path in paths:
            write_bytes(path, (made / path.name).read_bytes())
    return paths

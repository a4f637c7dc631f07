"""mmprune3d: faster 3D detectors for the mmdetection3d 1.x ecosystem.

A config needs only ``custom_imports = dict(imports=['mmprune3d'])``: importing the package checks the versions of other
packages, makes checkpoints load safely and strictly and trainings resume, and registers every class.
"""

from mmprune3d import compat
from mmprune3d.version import __version__

compat.check_versions()
compat.allow_mmengine_checkpoints()
compat.install_safe_reading()
compat.install_strict_loading()
compat.install_whole_checkpoints()
compat.install_package_lookup()

# These imports need the packages that have just been checked.
from mmprune3d import adapters, engine, evaluation, models  # noqa: E402
from mmprune3d.datasets import transforms  # noqa: E402

__all__ = ['__version__', 'adapters', 'engine', 'evaluation', 'models', 'transforms']

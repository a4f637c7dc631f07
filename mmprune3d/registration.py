"""Makes the classes of mmprune3d known to mmengine, and mmengine's loading of checkpoints safe and strict.

mmdet3d takes five to ten seconds to import. ``import mmprune3d`` does not import it: everything is registered at once
if mmengine has been imported already, which is the case when a config names mmprune3d in ``custom_imports``, and
otherwise right after somebody imports mmengine. Only the standard library is imported at module level.

One consequence for the code of this package: the module of ours that is the first to import mmengine, mmcv, mmdet or
mmdet3d starts the registration, which imports most of the package. It must not be half executed at that moment.
Therefore ``import mmengine`` comes first, before everything but the standard library, in the ``__init__.py`` of every
subpackage that needs one of the four when it is imported (tests/test_architecture.py checks it).
"""

from __future__ import annotations

import sys

from .import_hook import AfterImport

_registered = False


def register() -> None:
    """Checks the versions of the packages around mmprune3d, registers every class and makes checkpoints load.

    Called automatically, see the description of the module. A second call does nothing. See :mod:`mmprune3d.compat`
    for what is changed in mmengine.

    Raises:
        ImportError: If torch or an OpenMMLab package is missing or has an unsupported version; the message holds the
            pip commands. Nothing is registered or changed then.
    """
    global _registered
    if _registered:
        return
    _registered = True  # now, because importing mmengine below may call this function again
    try:
        _register()
    except BaseException:
        _registered = False
        raise


def _register() -> None:
    from mmprune3d import compat

    compat.check_versions()
    compat.allow_mmengine_checkpoints()
    compat.install_safe_reading()
    compat.install_strict_loading()
    compat.install_whole_checkpoints()
    compat.install_package_lookup()
    # Only now: these need the packages that have just been checked, and register their classes when they are imported.
    import mmprune3d.adapters
    import mmprune3d.datasets.transforms
    import mmprune3d.engine
    import mmprune3d.evaluation
    import mmprune3d.models  # noqa: F401


def register_with_mmengine() -> None:
    """Calls `register` now if mmengine has been imported, else once it is."""
    if sys.modules.get('mmengine') is not None:
        register()
    elif not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        AfterImport('mmengine', ('mmcv', 'mmdet', 'mmdet3d'), register).install()

"""Requirements on the packages that mmprune3d uses, and patches of mmengine so that checkpoints load.

These functions are called by :func:`mmprune3d.register`, once mmprune3d and mmengine are both imported:

* :func:`check_versions` rejects versions that are known not to work, with the command that repairs it;
* :func:`allow_mmengine_checkpoints` lets ``torch.load(weights_only=True)`` read the checkpoints of mmengine's Runner;
* :func:`install_safe_reading` makes mmengine read checkpoints safely, downloads included, and report why it cannot;
* :func:`install_strict_loading` makes mmengine raise an error for weights that do not match, instead of continuing;
* :func:`install_whole_checkpoints` makes mmengine write complete checkpoints, and resume from a complete one;
* :func:`install_package_lookup` lets mmengine find the configs of packages where setuptools has no pkg_resources.

Nothing here imports torch, mmengine or mmcv before it is called, so ``tools/doctor.py`` works on a broken set-up.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Supported:
    """The supported versions of one package, ``minimum <= version < below``.

    Args:
        name: Name of the distribution for pip.
        minimum: The first supported version.
        below: The first version that is no longer supported, or None if there is no such limit.
        install: Command that installs a supported version.
    """

    name: str
    minimum: str
    below: str | None
    install: str

    @property
    def requirement(self) -> str:
        """The range as a line of a requirements file."""
        return f'{self.name}>={self.minimum}' + (f',<{self.below}' if self.below else '')

    def problem(self, version: str | None) -> str | None:
        """One sentence about the problem with `version` (None: not installed), or None if it is supported."""
        if version is None:
            return f'{self.name} is not installed (needed: {self.requirement}). Type: {self.install}'
        parsed = parse_version(version)
        too_new = self.below is not None and parsed >= parse_version(self.below)
        if too_new or parsed < parse_version(self.minimum):
            return f'{self.name} {version} is not supported (needed: {self.requirement}). Type: {self.install}'
        return None


# tests/test_compat.py checks that this table agrees with requirements/mminstall.txt.
SUPPORTED: tuple[Supported, ...] = (
    Supported('torch', '2.0.0', None, 'pip install "torch>=2.0.0"'),
    Supported('mmengine', '0.10.0', '1.0.0', 'pip install "mmengine==0.10.7"'),
    Supported(
        'mmcv',
        '2.0.0',
        '2.2.0',
        'pip install "setuptools<80" ninja psutil && '
        'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary mmcv "mmcv==2.1.0"',
    ),
    Supported('mmdet', '3.2.0', '3.4.0', 'pip install "mmdet==3.3.0"'),
    Supported('mmdet3d', '1.4.0', '1.5.0', 'pip install "mmdet3d==1.4.0"'),
)


def parse_version(version: str) -> tuple[int, ...]:
    """The numbers of a version, at least three, without local or pre-release parts.

    >>> parse_version('2.13.0+cpu')
    (2, 13, 0)
    >>> parse_version('2.2rc4')
    (2, 2, 0)
    """
    match = re.match(r'\d+(?:\.\d+)*', version)
    if match is None:
        raise ValueError(f'{version!r} is not a version')
    numbers = [int(part) for part in match.group().split('.')]
    return tuple(numbers + [0] * (3 - len(numbers)))


def installed_version(name: str) -> str | None:
    """The version of an installed package, or None if it is not installed.

    Packages that are only on the path (a clone in PYTHONPATH) have no metadata; their version is read by importing.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    if importlib.util.find_spec(name) is None:
        return None
    return getattr(importlib.import_module(name), '__version__', None)


def version_problems(version_of: Callable[[str], str | None] = installed_version) -> list[str]:
    """Describes the problems with the installed versions, one sentence per package; an empty list if there are none.

    Args:
        version_of: Function that returns the installed version of a package, None if it is not installed.
    """
    found = (entry.problem(version_of(entry.name)) for entry in SUPPORTED)
    return [sentence for sentence in found if sentence is not None]


def check_versions(version_of: Callable[[str], str | None] = installed_version) -> None:
    """Checks the versions of torch and the OpenMMLab packages.

    Args:
        version_of: Function that returns the installed version of a package, None if it is not installed.

    Raises:
        ImportError: If a package is missing or outside its range; the message has the pip commands.
    """
    problems = version_problems(version_of)
    if problems:
        raise ImportError('\n'.join(['mmprune3d cannot work with these packages:', *(f'  * {p}' for p in problems)]))


def _readable_attributes() -> dict[type, frozenset[str]]:
    """The attributes that a checkpoint may look up: functions that mmengine pickles as ``getattr(class, name)``."""
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    return {
        HistoryBuffer: frozenset({'min', 'max', 'current', 'mean'}),
        OneCycleParamScheduler: frozenset({'_annealing_cos', '_annealing_linear'}),
    }


def _restricted_getattr(owner: object, name: str) -> object:
    """Replaces ``getattr`` inside a checkpoint; only the few names that mmengine writes are allowed."""
    readable = _readable_attributes()
    if not isinstance(owner, type) or name not in readable.get(owner, ()):
        raise pickle.UnpicklingError(f'a checkpoint may not read attribute {name!r} of {owner!r}')
    return getattr(owner, name)


def _numpy_globals() -> Iterable[tuple[object, str]]:
    """NumPy's arrays and numbers (log history, scores), under their names in NumPy 1 and in NumPy 2."""
    import numpy as np

    makers = {'_reconstruct': np.zeros(1).__reduce__()[0], 'scalar': np.float64(0).__reduce__()[0]}
    for name, maker in makers.items():
        for package in ('numpy.core', 'numpy._core'):
            yield maker, f'{package}.multiarray.{name}'
    yield np.ndarray, 'numpy.ndarray'
    yield np.dtype, 'numpy.dtype'
    # Numbers, bools and strings; arrays of Python objects are not allowed.
    for kind in {type(np.dtype(code)) for code in '?bhilqBHILQefdgFDSU'}:
        yield kind, f'{kind.__module__}.{kind.__qualname__}'


def allow_mmengine_checkpoints() -> None:
    """Lets ``torch.load(weights_only=True)``, the default since torch 2.6, read mmengine's own checkpoints.

    mmengine stores its log history, its scores and the state of some schedulers as small objects; the types they need
    are added to torch's allow-list, and so is the ``argparse.Namespace`` that official code stores next to ``model``.
    ``getattr``, which they need too, is replaced by a look-up in a table of six names. Everything else is rejected as
    before, and ``torch.load`` itself is not changed. Older torch versions load without the check by default and are
    not changed.
    """
    import argparse

    import torch

    if parse_version(torch.__version__) < (2, 6):
        return
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            OneCycleParamScheduler,
            argparse.Namespace,
            (ConfigDict, 'mmengine.config.config.ConfigDict'),
            (_restricted_getattr, 'builtins.getattr'),
            *_numpy_globals(),
        ]
    )


def install_safe_reading() -> None:
    """Makes mmengine read checkpoints with :mod:`mmprune3d.checkpoint.read`.

    Its loader of addresses (0.10.7) calls ``torch.hub.load_state_dict_from_url``, whose default is
    ``weights_only=False`` in every version of torch: a download is executed as a program. That call is replaced. Local
    files are read with the same check, so that ``tools/test.py`` too gives one clear message for a file that cannot be
    read; before torch 2.6 mmengine's own loader is kept, because training checkpoints could not be resumed otherwise.
    """
    import torch
    from mmengine.runner import checkpoint as mmengine_checkpoint

    from mmprune3d.checkpoint.read import load_from_local, load_url

    mmengine_checkpoint.load_url = load_url
    if parse_version(torch.__version__) >= (2, 6):
        mmengine_checkpoint.CheckpointLoader.register_scheme('', load_from_local, force=True)


def install_strict_loading() -> None:
    """Makes mmengine load weights with :func:`mmprune3d.checkpoint.load.load_state_dict`.

    The Runner, ``init_model``, ``init_cfg=dict(type='Pretrained')`` and EMAHook all look the function up in
    ``mmengine.runner.checkpoint`` when they load, so replacing it there reaches every user who only added
    ``custom_imports = dict(imports=['mmprune3d'])``.
    """
    import mmengine.runner
    import mmengine.runner.checkpoint

    from mmprune3d.checkpoint.load import load_state_dict

    mmengine.runner.checkpoint.load_state_dict = load_state_dict
    mmengine.runner.load_state_dict = load_state_dict


def install_whole_checkpoints() -> None:
    """Makes mmengine's Runner write checkpoints completely or not at all, and resume from the newest complete one.

    See :mod:`mmprune3d.checkpoint.resuming`. Like strict loading, this affects every training that imports mmprune3d.
    """
    import mmengine.runner
    import mmengine.runner.checkpoint
    import mmengine.runner.runner

    from mmprune3d.checkpoint.resuming import find_latest_checkpoint, save_whole

    for module in (mmengine.runner, mmengine.runner.checkpoint, mmengine.runner.runner):
        module.find_latest_checkpoint = find_latest_checkpoint
        if not hasattr(module.save_checkpoint, '__wrapped__'):
            module.save_checkpoint = save_whole(module.save_checkpoint)


def is_installed(package: str) -> bool:
    """Whether a package is installed or on the path; replaces mmengine's function of this name."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        spec = importlib.util.find_spec(package)
        return spec is not None and spec.origin is not None
    return True


def get_installed_path(package: str) -> str:
    """Finds the folder of a package; replaces mmengine's function of this name.

    Args:
        package: Name of the module, or of a distribution with another name, such as ``'mmcv-full'``.

    Raises:
        PackageNotFoundError: If the package is not installed.
        RuntimeError: If it is a namespace package, which has no folder of its own.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        modules = (metadata.distribution(package).read_text('top_level.txt') or '').split()
        spec = importlib.util.find_spec(modules[0]) if modules else None
    if spec is None:
        raise metadata.PackageNotFoundError(package)
    if spec.origin is None:
        raise RuntimeError(f'{package} is a namespace package, which has no folder of its own')
    return str(Path(spec.origin).parent)


def install_package_lookup() -> None:
    """Lets mmengine find packages without ``pkg_resources``, which setuptools no longer has from version 82 on.

    mmengine 0.10 needs it for configs with bases such as ``mmdet3d::_base_/datasets/nus-3d.py`` and would raise a
    ModuleNotFoundError. Where it exists, mmengine is not changed. The two functions are replaced in the modules that
    use them; ``pkg_resources`` itself is not added, because other packages test for it and act differently without it.
    """
    if importlib.util.find_spec('pkg_resources') is not None:
        return
    import mmengine.config.config
    import mmengine.hub.hub
    import mmengine.utils
    import mmengine.utils.package_utils

    for module in (mmengine.config.config, mmengine.hub.hub, mmengine.utils, mmengine.utils.package_utils):
        for function in (is_installed, get_installed_path):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)

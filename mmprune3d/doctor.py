"""Report of installed packages, of versions that do not match, and of the commands that repair them (tools/doctor.py).

It runs on a machine where half of the packages are missing: only the standard library is imported at first.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from .compat import SUPPORTED, installed_version, parse_version
from .import_hook import stop_waiting

REBUILD_MMCV = (
    'pip install "setuptools<80" ninja psutil && MMCV_WITH_OPS=1 '
    'pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation --no-binary mmcv "mmcv==2.1.0"'
)
OPENCV = ('opencv-python', 'opencv-contrib-python', 'opencv-python-headless', 'opencv-contrib-python-headless')
# Packages that are not needed to import mmprune3d: name, purpose, command that installs it.
OPTIONAL = (
    ('nuscenes-devkit', 'nuScenes data and metrics', 'pip install nuscenes-devkit'),
    ('spconv', 'sparse 3D convolutions', 'pip install spconv==2.3.8 cumm==0.7.11  (spconv-cu120 for a GPU)'),
    ('embreex', 'generated data', 'pip install embreex trimesh'),
    ('trimesh', 'generated data', 'pip install trimesh'),
    ('onnx', 'export', 'pip install onnx onnxscript'),
    ('onnxruntime', 'export', 'pip install onnxruntime'),
)
MODULES = {'nuscenes-devkit': 'nuscenes'}
"""Distribution -> its module, for packages whose module has another name and no version."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        name: Item that was checked.
        value: Version, or another observation.
        problem: Problem and command that repairs it; None if there is no problem.
        fatal: Whether mmprune3d cannot work until it is repaired.
    """

    name: str
    value: str
    problem: str | None = None
    fatal: bool = True


def version_of(name: str) -> str | None:
    """Version of a package that is installed or on the path; None if it is missing, or cannot be determined."""
    try:
        found = installed_version(name)
    except Exception:  # the package is only on the path and its import fails; a broken set-up may raise anything
        return None
    module = MODULES.get(name)
    return 'on the path' if found is None and module and importlib.util.find_spec(module) else found


def try_import(name: str) -> str | None:
    """Imports a module; returns the error in one line, or None if it works."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken set-up may raise anything, and every error is a valid result here
        lines = str(error).strip().splitlines() or ['']
        return f'{type(error).__name__}: {lines[0]}'
    return None


def output_of(*command: str) -> str:
    """Output of a command, or an empty string if there is no such command."""
    if shutil.which(command[0]) is None:
        return ''
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return (done.stdout or done.stderr).strip()


def check_stack(version: Callable[[str], str | None]) -> list[Finding]:
    """Checks torch and the OpenMMLab packages against their supported ranges."""
    return [
        Finding(entry.name, version(entry.name) or 'missing', entry.problem(version(entry.name))) for entry in SUPPORTED
    ]


def check_mmcv_ops(version: Callable[[str], str | None], importing: Callable[[str], str | None]) -> list[Finding]:
    """Checks that mmcv has compiled operators for the installed torch."""
    if version('mmcv') is None:
        lite = version('mmcv-lite')
        if lite is None:
            return []
        advice = (
            f'mmcv-lite does not have the ops that mmdet3d imports. Type: pip uninstall -y mmcv-lite && {REBUILD_MMCV}'
        )
        return [Finding('mmcv-lite', lite, advice)]
    error = importing('mmcv.ops')
    if error is None:
        return [Finding('mmcv ops', 'available')]
    return [Finding('mmcv ops', error, f'mmcv was built without ops or for another torch. Type: {REBUILD_MMCV}')]


def check_numpy(version: Callable[[str], str | None]) -> list[Finding]:
    """Checks NumPy, which is needed; version 2 may break binaries that were built for version 1."""
    found = version('numpy')
    if found is None:
        return [Finding('numpy', 'missing', 'numpy is not installed. Type: pip install "numpy<2"')]
    if parse_version(found) >= (2,):
        advice = 'mmdet3d 1.4 and related packages were made for NumPy 1. Type: pip install "numpy<2"'
        return [Finding('numpy', found, advice, fatal=False)]
    return [Finding('numpy', found)]


def check_opencv(version: Callable[[str], str | None]) -> list[Finding]:
    """Checks that only one OpenCV wheel is installed: several overwrite each other's files."""
    present = {name: version(name) for name in OPENCV if version(name)}
    value = ', '.join(f'{name} {found}' for name, found in present.items()) or 'missing'
    if not present:
        return [Finding('opencv', value, 'OpenCV is missing. Type: pip install "opencv-python-headless<4.12"')]
    if len(present) > 1:
        advice = (
            f'{len(present)} OpenCV wheels overwrite each other. Type: pip uninstall -y {" ".join(present)} && '
            'pip install "opencv-python-headless<4.12"'
        )
        return [Finding('opencv', value, advice, fatal=False)]
    return [Finding('opencv', value)]


def check_cuda(version: Callable[[str], str | None], output: Callable[..., str]) -> list[Finding]:
    """Checks the CUDA version of torch against the compiler that would build mmcv's operators."""
    if version('torch') is None:
        return []
    torch = importlib.import_module('torch')
    built = torch.version.cuda
    if built is None:
        return [Finding('CUDA', 'torch was built for CPU')]
    value = f'{built}, {torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"}'
    compiler = re.search(r'release (\d+)\.', output('nvcc', '--version'))
    if compiler and compiler[1] != built.split('.')[0]:
        advice = f'nvcc is CUDA {compiler[1]}, torch is for {built}: mmcv cannot be compiled here. Install CUDA {built}'
        return [Finding('CUDA', value, advice, fatal=False)]
    return [Finding('CUDA', value)]


def check_optional(version: Callable[[str], str | None]) -> list[Finding]:
    """Checks the packages that parts of mmprune3d use if they are installed."""
    findings = []
    for name, purpose, command in OPTIONAL:
        found = version(name)
        advice = None if found else f'needed for {purpose} only. Type: {command}'
        findings.append(Finding(name, found or 'missing', advice, fatal=False))
    return findings


def examine(
    version: Callable[[str], str | None] = version_of,
    importing: Callable[[str], str | None] = try_import,
    output: Callable[..., str] = output_of,
) -> list[Finding]:
    """Runs all checks.

    Args:
        version: Function that returns the version of a distribution, None if it is missing.
        importing: Function that imports a module and returns the error or None.
        output: Function that runs a command and returns its output.
    """
    return [
        Finding('python', f'{platform.python_version()} on {platform.platform()}'),
        Finding('compiler', output('c++', '--version').split('\n')[0] or 'none (needed to build mmcv only)'),
        *check_stack(version),
        *check_cuda(version, output),
        *check_mmcv_ops(version, importing),
        *check_numpy(version),
        *check_opencv(version),
        *check_optional(version),
    ]


def render(findings: list[Finding]) -> str:
    """Formats the report: one line per finding, then the commands to type."""
    width = max(len(finding.name) for finding in findings)
    marks = {(False, True): ' ', (False, False): ' ', (True, True): 'x', (True, False): '-'}
    lines = [f'{marks[f.problem is not None, f.fatal]} {f.name:<{width}}  {f.value}' for f in findings]
    fatal = [f for f in findings if f.problem and f.fatal]
    others = [f for f in findings if f.problem and not f.fatal]
    if fatal:
        lines += ['', 'To repair:', *(f'  {f.name}: {f.problem}' for f in fatal)]
    if others:
        lines += ['', 'Works without, but:', *(f'  {f.name}: {f.problem}' for f in others)]
    if not fatal:
        lines += ['', 'mmprune3d can be used here.']
    return '\n'.join(lines)


def main() -> int:
    """Prints the report of :func:`examine`.

    Returns:
        The exit status: 0 if mmprune3d can be used, 1 otherwise.
    """
    stop_waiting()  # importing mmcv tells about mmcv, and does not check all other packages
    findings = examine()
    print(render(findings))
    return int(any(finding.problem and finding.fatal for finding in findings))

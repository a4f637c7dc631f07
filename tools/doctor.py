"""Prints the versions of everything that matters, what does not fit, and the command that repairs it.

Usage:
    python tools/doctor.py
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path


def load_doctor() -> types.ModuleType:
    """The module mmprune3d.doctor, without the rest of the package, which a broken set-up cannot import."""
    here = Path(__file__).resolve()
    # In a checkout the package lies beside tools/, in a wheel tools/ lies inside it (mmprune3d/.mim/tools).
    folders = (here.parents[1] / 'mmprune3d', here.parents[2])
    folder = next(folder for folder in folders if (folder / 'doctor.py').is_file())
    package = types.ModuleType('mmprune3d')
    package.__path__ = [str(folder)]
    sys.modules['mmprune3d'] = package
    return importlib.import_module('mmprune3d.doctor')


def main() -> None:
    """Prints the report; the exit status is 0 if mmprune3d can be used."""
    doctor, status = load_doctor(), []
    importlib.import_module('mmprune3d.command').run_main(lambda: status.append(doctor.main()))
    sys.exit(status[0])


if __name__ == '__main__':
    main()

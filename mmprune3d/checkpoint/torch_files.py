"""Reading of ``torch.save`` and safetensors files without executing anything in them.

A checkpoint is never a program: ``weights_only=True`` stays on, and torch's advice to switch it off is not shown.
"""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from .kinds import COPY_AGAIN, RESAVE, UnreadableCheckpointError, kind_of, unreadable
from .pickles import contents_of
from .safetensors import read_safetensors

CHUNK = 2**24
SAFE_PROTOCOL = 3
"""Newest pickle protocol that ``torch.load(weights_only=True)`` supports; ``torch.save`` writes protocol 2."""
SAVE_WEIGHTS = "where it was written, save the weights alone: torch.save({'state_dict': data['state_dict']}, FILE)"


def read_file(path: str | Path, map_location: Any = 'cpu') -> Any:
    """Reads a file of ``torch.save`` or safetensors: a checkpoint, masks, or other data without foreign classes.

    Args:
        path: Path of the file.
        map_location: Device of the tensors, as for ``torch.load``.

    Raises:
        FileNotFoundError: If the file does not exist.
        UnreadableCheckpointError: If it has another format, is damaged, or could be read only by executing code in it.
    """
    path = Path(path).expanduser()
    kind = kind_of(path)
    if not kind.format:
        raise unreadable(path, kind.says, kind.advice)
    if kind.format == 'safetensors':
        device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
        return {name: tensor.to(device) for name, tensor in read_safetensors(path).items()}
    damaged = damaged_records(path) if kind.format == 'zip' else []
    if damaged:
        says = f'{len(damaged)} of its parts do not match their checksums ({", ".join(damaged[:3])})'
        raise unreadable(path, says, COPY_AGAIN)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # torch raises many types; its text advises to switch the check off
        explained = _explained(path, error)
        if explained is None:
            raise
        raise explained from None


def damaged_records(path: Path) -> list[str]:
    """Names of the records of a zip file that do not match their checksums.

    ``torch.load`` does not check them (2.13), so that a damaged disk or copy would silently give wrong weights. Records
    without a checksum (``torch.serialization.set_crc32_options(False)``) cannot be checked.
    """
    damaged = []
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            try:
                with archive.open(record) as stream:
                    while stream.read(CHUNK):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError):
                if record.CRC:
                    damaged.append(record.filename)
    return damaged


def _explained(path: Path, error: Exception) -> UnreadableCheckpointError | None:
    """The reason why ``torch.load`` rejected a file, without its advice; None if the file is not the cause."""
    damaged = unreadable(path, 'it begins as a checkpoint, but is damaged or was cut off', COPY_AGAIN)
    try:
        contents = contents_of(path)
    except Exception:  # pickletools may raise anything on arbitrary bytes
        return damaged
    if contents.root is not None:
        says = f'it is a pickled object of the class {contents.root}, as torch.save(model) writes it: a program'
        return unreadable(path, says, RESAVE)
    refused = re.findall(r'GLOBAL (\S+) was not an allowed', str(error))
    names = list(dict.fromkeys([*refused, *contents.foreign]))
    if names:
        says = f'besides numbers it contains {", ".join(names[:5])}: a program, of which nothing was run'
        return unreadable(path, says, _older_torch(names) or SAVE_WEIGHTS)
    if contents.protocol > SAFE_PROTOCOL:
        says = f'it was written with pickle protocol {contents.protocol}; what can be read safely is {SAFE_PROTOCOL}'
        return unreadable(path, says, 'where it was written, save it again without pickle_protocol')
    if isinstance(error, pickle.UnpicklingError) and contents.names:
        says = f'it contains other objects than numbers, of the types {", ".join(contents.names[:5])}'
        return unreadable(path, says, SAVE_WEIGHTS)
    is_cut = isinstance(error, (pickle.UnpicklingError, EOFError)) or re.search('EOF|corrupt', str(error))
    return damaged if is_cut else None


def _older_torch(names: list[str]) -> str | None:
    """Advice for a torch version that cannot be told which types of mmengine's training state are harmless."""
    version = tuple(int(part) for part in torch.__version__.split('.')[:2])
    if version < (2, 6) and all(
        name.startswith(('mmengine.', 'numpy.', '__builtin__.', 'builtins.')) for name in names
    ):
        return f'it is a training checkpoint, which torch {torch.__version__} cannot read safely; 2.6 and newer can'
    return None

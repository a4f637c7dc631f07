"""Reader of files in the safetensors format: the length of a JSON header (8 bytes), the header, the data.

The header gives type, shape and position of every tensor; https://huggingface.co/docs/safetensors describes it. The
format is simple enough to be read here, so the package of that name is not needed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .kinds import COPY_AGAIN, unreadable

DTYPES = {
    'F64': 'float64',
    'F32': 'float32',
    'F16': 'float16',
    'BF16': 'bfloat16',
    'F8_E4M3': 'float8_e4m3fn',
    'F8_E5M2': 'float8_e5m2',
    'I64': 'int64',
    'I32': 'int32',
    'I16': 'int16',
    'I8': 'int8',
    'U64': 'uint64',
    'U32': 'uint32',
    'U16': 'uint16',
    'U8': 'uint8',
    'BOOL': 'bool',
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file, by name.

    Raises:
        UnreadableCheckpointError: If the file is truncated or its header is not valid.
    """
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != '__metadata__'}
            end = 8 + length + max((entry['data_offsets'][1] for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            says = 'it begins as a safetensors file, but its header is damaged'
            raise unreadable(path, says, COPY_AGAIN) from error
        if path.stat().st_size < end:
            says = f'it is a safetensors file that was cut off: its header lists {end} bytes'
            raise unreadable(path, says, COPY_AGAIN)
        return {name: _tensor(path, file, 8 + length, name, entry) for name, entry in entries.items()}


def _tensor(path: Path, file: BinaryIO, start: int, name: str, entry: dict[str, Any]) -> Tensor:
    dtype = getattr(torch, DTYPES.get(entry.get('dtype'), ''), None)
    if dtype is None:
        advice = 'convert it where it was written; valid are ' + ', '.join(DTYPES)
        raise unreadable(path, f'{name} in it has the type {entry.get("dtype")!r}, which is not supported', advice)
    begin, end = entry['data_offsets']
    shape = entry['shape']
    if end - begin != math.prod(shape) * torch.empty((), dtype=dtype).element_size():
        raise unreadable(path, f'the header of this safetensors file contradicts itself about {name}', COPY_AGAIN)
    if end == begin:
        return torch.empty(shape, dtype=dtype)
    file.seek(start + begin)
    return torch.frombuffer(bytearray(file.read(end - begin)), dtype=torch.uint8).view(dtype).reshape(shape)

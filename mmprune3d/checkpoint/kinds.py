"""Detection of the format of a file from its bytes, without executing anything in it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

from .text_files import describe_text

HEAD = 4096
MIB = 2**20
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""First bytes of files of ``torch.save`` before version 1.6."""
RESAVE = "where it was written, save weights instead: torch.save({'state_dict': model.state_dict()}, 'weights.pth')"
COPY_AGAIN = 'copy or download it again, or take an earlier checkpoint of the training'
UNPACK = 'unpack it and give the file inside'

SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b'PK\x05\x06', 'an empty zip archive', COPY_AGAIN),
    (b'\x1f\x8b', 'a gzip archive', UNPACK),
    (b'BZh', 'a bzip2 archive', UNPACK),
    (b'\xfd7zXZ', 'an xz archive', UNPACK),
    (b'\x28\xb5\x2f\xfd', 'a zstd archive', UNPACK),
    (b"7z\xbc\xaf'\x1c", 'a 7z archive', UNPACK),
    (b'Rar!', 'a rar archive', UNPACK),
    (b'\x89HDF', 'an HDF5 file (Keras or h5py)', RESAVE),
    (b'\x93NUMPY', 'a NumPy array', RESAVE),
    (b'GGUF', 'a GGUF file of a language model', 'give the checkpoint of a detector'),
)


class UnreadableCheckpointError(ValueError):
    """Raised if a file has no weights, or none that can be read without executing code in it."""


class MissingCheckpointError(FileNotFoundError):
    """Raised if a file that was given as a checkpoint does not exist."""


class Kind(NamedTuple):
    """The detected format of a file.

    Attributes:
        format: ``'zip'`` or ``'legacy'`` (both of ``torch.save``) or ``'safetensors'``; ``''`` if it cannot be read.
        says: Description for an error message, such as "it is empty".
        advice: What the user can do, if it cannot be read.
    """

    format: str
    says: str = 'a checkpoint'
    advice: str = ''


def unreadable(path: Path | str, says: str, advice: str) -> UnreadableCheckpointError:
    """Creates the error for a file, with its name, its size, its format and advice."""
    return UnreadableCheckpointError(
        f'{path} ({size_of(Path(path))}) cannot be read as a checkpoint: {says}.\n  -> {advice}.'
    )


def size_of(path: Path) -> str:
    """Formats the size of a file, or says that it is a folder."""
    if path.is_dir():
        return 'a folder'
    size = path.stat().st_size
    return f'{size / MIB:.1f} MiB' if size >= MIB / 10 else f'{size} bytes'


def kind_of(path: Path) -> Kind:
    """Detects the format of a file.

    Raises:
        MissingCheckpointError: (a FileNotFoundError) If the file does not exist.
    """
    if not path.exists():
        raise MissingCheckpointError(f'{path} does not exist')
    if path.is_dir():
        return _folder(path)
    with path.open('rb') as file:
        head = file.read(HEAD)
    if not head:
        return Kind('', 'it is empty', COPY_AGAIN)
    if not any(head):
        return Kind('', 'it begins with nothing but zeros, as after a crash or on a damaged disk', COPY_AGAIN)
    if head.startswith(b'PK\x03\x04'):
        return _zip(path)
    if head.startswith(LEGACY):
        return Kind('legacy')
    for begin, what, advice in SIGNATURES:
        if head.startswith(begin):
            return Kind('', f'it is {what}', advice)
    return _by_structure(path, head)


def _by_structure(path: Path, head: bytes) -> Kind:
    """Detects formats without a signature at their beginning."""
    if head[257:262] == b'ustar':
        return Kind('', 'it is a tar archive', UNPACK)
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < max(path.stat().st_size, 100 * MIB):
        return Kind('safetensors')
    if head[:1] == b'\x80' and head[1] <= pickle.HIGHEST_PROTOCOL:
        return Kind('', 'it is a Python pickle that torch.save did not write', RESAVE)
    # Protocol buffers: field 1 is the version, a small number; field 2 is the name of the program that wrote the file.
    if path.suffix == '.onnx' or (head[:1] == b'\x08' and head[2:3] == b'\x12'):
        return Kind('', 'it is an ONNX model', 'give the checkpoint that it was exported from')
    text = describe_text(head)
    if text is not None:
        return Kind('', *text)
    begin = head[:16].hex(' ')
    return Kind('', f'it is of an unknown format (its first bytes are {begin})', COPY_AGAIN)


def _folder(path: Path) -> Kind:
    if list(path.glob('*.distcp')):
        advice = 'merge it first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE'
        return Kind('', 'it is a checkpoint in pieces, as FSDP writes it', advice)
    files = sorted(one.name for ending in ('pth', 'pt', 'safetensors') for one in path.glob(f'*.{ending}'))
    inside = f'give one of the files in it: {", ".join(files[:5])}' if files else 'give a file; no .pth is in it'
    return Kind('', 'it is a folder', inside)


def _zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return Kind('', 'it begins as a checkpoint, but its end is missing: it was cut off', COPY_AGAIN)
    if any(name.endswith('/data.pkl') for name in names):
        if any(name.endswith('/constants.pkl') for name in names):
            return Kind('', 'it is a TorchScript program (torch.jit.save)', RESAVE)
        return Kind('zip')
    if names and all(name.endswith('.npy') for name in names):
        return Kind('', f'it is a file of NumPy arrays ({", ".join(names[:3])} ...)', RESAVE)
    return Kind('', f'it is a zip archive of other files ({", ".join(names[:3])})', UNPACK)

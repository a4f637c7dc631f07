"""Checkpoints given by an address (URL or model name): downloaded once, then read like any other file."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import sys
import uuid
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import checkpoint as mmengine_checkpoint

from .kinds import UnreadableCheckpointError, kind_of, unreadable

NAMES: Mapping[str, Callable[[], Mapping[str, str]]] = {
    'torchvision': mmengine_checkpoint.get_torchvision_models,
    'modelzoo': mmengine_checkpoint.get_torchvision_models,
    'open-mmlab': mmengine_checkpoint.get_external_models,
    'openmmlab': mmengine_checkpoint.get_external_models,
    'mmcls': mmengine_checkpoint.get_mmcls_models,
}
"""Scheme -> function that returns mmengine's table of model names and their addresses."""
STORES = ('s3', 'petrel')
WEB = ('http', 'https')
ADDRESS = re.compile(rf'(?P<scheme>[\w.+:-]*[\w+-])://(?=[^/])|(?P<cut>{"|".join((*WEB, *STORES, *NAMES))}):/(?=[^/])')
"""An address; one slash is accepted too, because a ``Path`` turns ``http://host`` into ``http:/host``."""


def address_of(source: str | Path) -> tuple[str, str] | None:
    """Splits an address into its scheme and the full address; returns None for a path."""
    text = str(source)
    found = ADDRESS.match(text)
    if found is None or Path(text).exists():
        return None
    scheme = found['scheme'] or found['cut']
    return scheme.lower(), f'{scheme}://{text[found.end() :]}'


def local_file(source: str | Path, folder: str | Path | None = None) -> Path:
    """Returns the file that `source` names; an address is downloaded first.

    Downloads are kept and used again.

    Args:
        source: A path; ``http://`` and ``https://``; ``s3://`` and ``petrel://`` (mmengine's petrel backend);
            ``torchvision://``, ``open-mmlab://`` and ``mmcls://`` with a name from mmengine's lists.
        folder: Folder for downloads; None: torch's folder for its own downloads (``TORCH_HOME``).

    Raises:
        UnreadableCheckpointError: If the scheme is not supported, the download fails, or the file is not a checkpoint.
    """
    address = address_of(source)
    if address is None:
        return Path(str(source).removeprefix('file://')).expanduser()
    scheme, text = address
    try:
        if scheme in NAMES:
            return local_file(_named(scheme, text), folder)
        if scheme in WEB:
            target = kept_file(text, folder)
            return _kept(
                text, target, lambda part: torch.hub.download_url_to_file(text, str(part), progress=_watched())
            )
        if scheme.split(':')[-1] in STORES:
            backend = get_file_backend(text, backend_args={'backend': 'petrel'})
            return _kept(text, kept_file(text, folder), lambda part: part.write_bytes(backend.get(text)))
    except (OSError, HTTPException, ImportError) as error:
        raise UnreadableCheckpointError(f'{text} cannot be fetched: {error}') from error
    valid = ', '.join(f'{one}://' for one in (*WEB, *STORES, *NAMES))
    raise UnreadableCheckpointError(f'{text}: addresses of this kind are not supported; valid are paths and {valid}')


def _named(scheme: str, text: str) -> str:
    """The address or file of a model name in mmengine's tables."""
    models, name = NAMES[scheme](), text.partition('://')[2]
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in models:
        near = ', '.join(difflib.get_close_matches(name, models, n=3)) or ', '.join(list(models)[:3])
        raise UnreadableCheckpointError(f'{text}: mmengine has no model of this name; similar are {near}')
    found = models[name]
    return found if address_of(found) else os.path.join(mmengine_checkpoint._get_mmengine_home(), found)


def _kept(address: str, target: Path, download: Callable[[Path], object]) -> Path:
    """The downloaded copy; it gets its final name only if it is complete and can be read."""
    if target.is_file():
        print_log(f'{address}: using the copy in {target}', logger='current')
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # A unique name, because several processes of a training may download at the same time.
    part = target.with_name(f'.{uuid.uuid4().hex}.{target.name}')
    try:
        download(part)
        kind = kind_of(part)
        if not kind.format:
            error = unreadable(part, kind.says, kind.advice)
            raise UnreadableCheckpointError(str(error).replace(str(part), address))
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def kept_file(address: str, folder: str | Path | None = None) -> Path:
    """Path of the local copy of an address.

    torch names downloads by the last part of the address alone, so that ``a/epoch_24.pth`` would be mistaken for
    ``b/epoch_24.pth``. Names with a hash, as published files have, are kept; others get a hash of the address.
    """
    name = Path(unquote(urlparse(address).path)).name or 'checkpoint'
    if not re.search(r'-[0-9a-f]{8,}\.', name):
        digest = hashlib.sha256(address.encode()).hexdigest()[:8]
        stem, dot, ending = name.rpartition('.')
        name = f'{stem}-{digest}.{ending}' if dot else f'{name}-{digest}'
    return (Path(torch.hub.get_dir()) / 'checkpoints' if folder is None else Path(folder)) / name


def _watched() -> bool:
    return sys.stderr.isatty()

"""Detection of text files in place of a checkpoint: web pages, Git LFS pointers, error messages of servers."""

from __future__ import annotations

import re

SHOWN = 60
DOWNLOAD = 'download the file itself: the address may need a login, or lead to a page about the file'


def describe_text(head: bytes) -> tuple[str, str] | None:
    """Describes a text file, with advice; returns None if the file is not text.

    Args:
        head: The first bytes of the file, at least one.
    """
    try:
        # The last character may have been cut in two.
        text = head.decode('utf-8-sig', errors='strict' if len(head) < 4 else 'ignore')
    except UnicodeDecodeError:
        return None
    if not _is_text(text, head):
        return None
    begin = text.lstrip()[:SHOWN].lower()
    if begin.startswith('version https://git-lfs'):
        size = re.search(r'^size (\d+)', text, re.MULTILINE)
        named = f' of {size[1]} bytes' if size else ''
        return f'it is the Git LFS pointer to a file{named}, not the file', 'fetch the file: git lfs pull'
    if begin.startswith(('<!doctype html', '<html')):
        return f'it is a web page{_title(text)}', DOWNLOAD
    if begin.startswith('<'):
        return f'it is the answer of a server: {_first_words(text)}', DOWNLOAD
    return f'it is a text: {_first_words(text)}', 'give the file with the weights'


def _is_text(text: str, head: bytes) -> bool:
    readable = sum(one.isprintable() or one in '\r\n\t' for one in text)
    return readable >= 0.95 * len(text) and len(text.encode()) >= 0.95 * (len(head) - 4)


def _title(text: str) -> str:
    found = re.search(r'<(title|h1)[^>]*>\s*(.*?)\s*</', text, re.IGNORECASE | re.DOTALL)
    return f' ({_first_words(found[2])})' if found else ''


def _first_words(text: str) -> str:
    words = ' '.join(text.split())
    return repr(words if len(words) <= SHOWN else words[:SHOWN] + ' ...')

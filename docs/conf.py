"""Sphinx configuration; `make docs` builds without warnings or not at all."""

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune3d.version import __version__  # noqa: E402

project = 'mmprune3d'
copyright = 'the mmprune3d contributors'
version = release = __version__
extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}
exclude_patterns = ['_build']
myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3

autosummary_generate = True
autodoc_default_options = {'members': True, 'undoc-members': False, 'show-inheritance': True}
autodoc_typehints = 'none'
# Read the Docs has mmcv-lite, mmcv without compiled ops (.readthedocs.yaml): the extension module alone is imitated.
packages = {distribution.metadata['Name'] for distribution in metadata.distributions()}
autodoc_mock_imports = [] if 'mmcv' in packages else ['mmcv._ext']
napoleon_use_ivar = True
default_role = 'code'

html_theme = 'sphinx_book_theme'
html_title = f'mmprune3d {__version__}'
html_theme_options = {'show_toc_level': 2, 'use_download_button': False}

# Lab books stand in experiments/, and pages of docs/experiments include them. Links to a lab book, which work in the
# repository, lead to the page that includes it.
BOOKS = {}
for page in (ROOT / 'docs' / 'experiments').glob('*.md'):
    included = re.match(r'```\{include\} (\S+)', page.read_text())
    if included:
        BOOKS[(page.parent / included[1]).resolve()] = f'/experiments/{page.name}'


def to_pages(text, folder):
    """Links to lab books, in a text that stands in a folder, become links to the pages that include them."""

    def page_of(link):
        book = BOOKS.get((folder / link[1]).resolve())
        return f']({book}' if book else link[0]

    return re.sub(r'\]\(([^)#\s]+\.md)', page_of, text)


def setup(app):
    source = Path(app.srcdir)

    def read(app, name, content):
        content[0] = to_pages(content[0], (source / name).parent)

    def read_included(app, path, parent, content):
        content[0] = to_pages(content[0], (source / path).resolve().parent)

    app.connect('source-read', read)
    app.connect('include-read', read_included)

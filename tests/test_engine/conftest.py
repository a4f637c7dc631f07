"""Runners that start quickly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mmengine.config import Config
from mmengine.runner import Runner


@pytest.fixture(scope='module', autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '_log_env', lambda *_: None)  # asks compilers for their versions
        patch.setattr(Config, 'pretty_text', property(repr))  # formats the config anew for every checkpoint
        yield

"""The fixtures of the package's tests."""

from tests.conftest import nusc, overrides, petr_checkpoint, tiny  # noqa: F401

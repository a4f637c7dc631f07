"""A toy method of another package, first file: its plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmprune3d.pruning import checks
from mmprune3d.pruning.settings import Plan


@dataclass(frozen=True)
class SilentPlan(Plan):
    """Which layer falls silent.

    Attributes:
        layer: Name of the layer whose output is multiplied. The others stay.
        factor: What its output is multiplied by.
    """

    method: ClassVar[str] = 'silent'
    title: ClassVar[str] = 'Silence'
    example: ClassVar[str] = 'layer=fusion_layer'
    purpose: ClassVar[str] = 'the layer that falls silent'

    layer: str
    factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.text(f'{self.title}: layer', self.layer, 'the name of a layer')
        self.check_number('factor')

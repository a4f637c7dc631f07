"""How much of an SST is to halt, as data: the gates that a plain SST gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .settings import Plan

SECOND_GATE = 0.4
"""Of the tokens that pass the first gate, the share that passes the second: of 20 %, 8 %, for a sparsity of 0.89."""


@dataclass(frozen=True)
class HaltingPlan(Plan):
    """Two gates, before the first and the second block (section 6.1), and the mean sparsity that they bring.

    Attributes:
        sparsity: Share of tokens halted, averaged over all attention layers: the number of the paper's Table 5.
        threshold: Score from which tokens go on, within the bounds.
        slack: How far the share of halted tokens may be from what `sparsity` asks of a gate, to either side; 0: the
            score decides which tokens halt and not how many.
        in_channels: First features of a token that the modules read.
        loss: ``'nonuniform'`` (section 4.6) or ``'uniform'``.
        loss_weight: Of the sparsity loss.
    """

    method: ClassVar[str] = 'halting'
    title: ClassVar[str] = 'token halting'
    example: ClassVar[str] = 'sparsity=0.82'
    purpose: ClassVar[str] = 'the mean share of halted tokens'
    losses: ClassVar[tuple[str, ...]] = ('nonuniform', 'uniform')

    sparsity: float
    threshold: float = 0.01
    slack: float = 0.0
    in_channels: int = 32
    loss: str = 'nonuniform'
    loss_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice('loss', self.losses)
        self.check_count('in_channels', 1)
        for name in ('sparsity', 'threshold', 'slack'):
            self.check_number(name, most=1, below=True)
        self.check_number('loss_weight')

    def bounds(self, num_blocks: int) -> list[tuple[float, float]]:
        """Least and largest share of halted tokens at each of the two gates, of all tokens.

        The first gate passes a share p on, the second 0.4 p, which makes a mean of p (1 + 0.4 (blocks - 1)) / blocks.
        Where p would exceed 1, the first gate halts nothing.

        Args:
            num_blocks: Blocks of the backbone, 2 or more.

        Raises:
            ValueError: If there are fewer.
        """
        if num_blocks < 2:
            raise ValueError(f'{self.title}: the backbone has {num_blocks} block; gates stand before two')
        kept = (1 - self.sparsity) * num_blocks
        first = min(1.0, kept / (1 + SECOND_GATE * (num_blocks - 1)))
        second = (kept - first) / (num_blocks - 1)
        return [(max(0.0, 1 - share - self.slack), min(1.0, 1 - share + self.slack)) for share in (first, second)]

    def gates(self, embed_dims: int, num_blocks: int) -> list[dict[str, Any]]:
        """The argument ``halting`` of ``HaltingSST`` for a backbone of that width and number of blocks.

        Raises:
            ValueError: If the modules would read more features than tokens have, or there are too few blocks.
        """
        if self.in_channels > embed_dims:
            raise ValueError(
                f'{self.title}: in_channels={self.in_channels} of tokens with {embed_dims} features; valid are 1 to '
                f'{embed_dims}'
            )
        # as wide, next to the tokens, as in the paper's size: on narrow ones a wider U-Net costs what halting saves
        widths = tuple(max(8, embed_dims // part) for part in (8, 4, 2))
        modules = (dict(type='HaltingUNet', widths=widths), dict(type='HaltingMLP'))
        return [
            dict(
                block=block,
                module=dict(module, in_channels=self.in_channels),
                threshold=self.threshold,
                bounds=tuple(_neat(bound) for bound in bounds),
            )
            for block, (module, bounds) in enumerate(zip(modules, self.bounds(num_blocks)))
        ]


def _neat(bound: float) -> float:
    """With four digits, unless that made nearly all tokens, or nearly none, into all or none."""
    rounded = round(bound, 4)
    return bound if rounded in (0, 1) else rounded

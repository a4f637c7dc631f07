"""How many tokens are halted while a detector is trained and tested, as numbers in the log."""

from __future__ import annotations

from contextlib import ExitStack

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmprune3d.engine.halting import grid_of, halting_detector, listening, over_processes
from mmprune3d.pruning import checks
from mmprune3d.pruning.halting import HaltingRecord
from mmprune3d.pruning.halting_counts import HaltingSums, fitting_thresholds, inside_boxes

from .plan_arguments import names_arguments
from .single import check_single

MOSTLY = 0.95
"""A gate is pinned in an interval if it is pinned in this share of the samples: one unusual frame is not enough."""


@HOOKS.register_module()
class HaltingHook(Hook):
    """Logs how many tokens are halted, and warns when the bounds of a gate decide it alone and its threshold does not.

    In training the figures are means over `interval` iterations and all processes, in validation and test over the
    whole data set. They are scalars of the message hub, with the prefix ``train/``, ``val/`` or ``test/``, and so they
    are in the log and in every visualizer:

    - ``halting/layer3``: sparsity of an attention layer, the share of all tokens that take no part in it;
    - ``halting/mean``, ``halting/mean_foreground``, ``halting/mean_background``: mean over the layers (Table 5);
    - ``halting/gate0``: share of the tokens that reach a gate and are halted by it;
    - ``halting/gate0_foreground``, ``halting/gate0_background``: sparsity right after the gate (Figure 4).

    Foreground tokens are those whose cell has its centre in an annotated box, background tokens are all others. Shares
    are taken over the tokens of all samples together. A run that is resumed in the middle of an interval logs the rest
    of it.

    The hook works with every detector that calls its ``record_listeners``. It never warns about gates without a
    threshold, nor about gates with two equal bounds, which ask for a fixed share.

    Args:
        interval: Number of training iterations between two entries of the log, 1 or more. Default: 50.
        patience: Number of consecutive entries in which the threshold of a gate decided nothing, after which there is
            one warning about the gate, 1 or more. Default: 20.

    Raises:
        ValueError: If an argument is not a whole number from 1, or the model halts no tokens.
        RuntimeError: If an iteration or an epoch passes without a record.
    """

    @names_arguments
    def __init__(self, interval: int = 50, patience: int = 20) -> None:
        self.interval = checks.count('HaltingHook: interval', interval, 1)
        self.patience = checks.count('HaltingHook: patience', patience, 1)
        self._listening = ExitStack()
        self._sums: HaltingSums | None = None
        self._last: HaltingRecord | None = None

    def before_run(self, runner: Runner) -> None:
        """Finds the detector, its gates and its grid."""
        check_single(runner, HaltingHook, 'log the halting of tokens')
        self.detector = halting_detector(runner.model)
        self.gates = list(self.detector.backbone.halting)
        self.grid = grid_of(self.detector)
        self._streaks: list[tuple[str | None, int]] = [(None, 0)] * len(self.gates)
        self._warned: set[int] = set()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Begins to listen, for one iteration: copies made in between, such as those of EMAHook, have no listeners."""
        self._listen()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Stops listening; at the end of an interval logs its figures and checks the gates."""
        self._stop('an iteration of training')
        if self.every_n_train_iters(runner, self.interval):
            sums = self._report(runner, 'train')
            for gate, threshold in enumerate(self._thresholds(len(sums.layers))):
                if threshold is not None and self.gates[gate].bounds[0] < self.gates[gate].bounds[1]:
                    self._check_gate(runner, gate, sums.gates[gate])

    def before_val_epoch(self, runner: Runner) -> None:
        """Begins to listen; the counts of the training are put aside."""
        self._training, self._sums = self._sums, None
        self._listen()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Logs the figures of the validation set and takes up the counts of the training."""
        self._stop('a validation')
        self._report(runner, 'val')
        self._sums = self._training

    def before_test_epoch(self, runner: Runner) -> None:
        """Starts to collect the halting records of the test."""
        self._listen()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Logs the figures of the test set."""
        self._stop('a test')
        self._report(runner, 'test')

    def _listen(self) -> None:
        self._last = None
        self._listening.enter_context(listening(self.detector, self._add))

    def _add(self, record: HaltingRecord, boxes: list[Tensor] | None) -> None:
        foreground = None if boxes is None else inside_boxes(record.coords, boxes, *self.grid)
        sums = HaltingSums.of(record, foreground, self._thresholds(len(record.steps)))
        self._sums = sums if self._sums is None else self._sums.plus(sums)
        self._last = record

    def _stop(self, what: str) -> None:
        self._listening.close()
        if self._last is None:
            raise RuntimeError(
                f'HaltingHook: {what} passed without a record of halted tokens; {type(self.detector).__name__} has to '
                'call its record_listeners at the end of loss() and predict()'
            )

    def _report(self, runner: Runner, mode: str) -> HaltingSums:
        sums, self._sums = over_processes(self._sums), None
        for name, value in sums.scalars().items():
            runner.message_hub.update_scalar(f'{mode}/{name}', value)
        return sums

    def _thresholds(self, steps: int) -> list[float | None]:
        found = [getattr(gate, 'threshold', None) for gate in self.gates]
        if found.count(None) == len(found):
            return [None] * steps  # gates of other methods may decide in several layers
        if len(found) != steps:
            raise ValueError(f'HaltingHook: a record with {steps} steps of a backbone with {len(found)} halting gates')
        return found

    def _check_gate(self, runner: Runner, gate: int, row: Tensor) -> None:
        side, (before, count) = pinned_side(row), self._streaks[gate]
        self._streaks[gate] = (side, count + 1 if side == before else 1)
        if side is None or gate in self._warned or self._streaks[gate][1] < self.patience:
            return
        module = self.gates[gate]
        fitting = fitting_thresholds(self._last, gate, module.bounds, getattr(module, 'relative', False))
        if not len(fitting):
            return  # no token of the last batch reached the gate: the next entry may have scores to propose from
        self._warned.add(gate)
        text = pinned_message(module.threshold, module.bounds, row, side, fitting)
        runner.logger.warning(
            f'HaltingHook: gate {gate}, before block {module.block}: for {self.patience} intervals of {self.interval} '
            f'iterations, {text}'
        )


def pinned_side(row: Tensor) -> str | None:
    """Whether the bounds of a gate, and not its threshold, decide in nearly all samples.

    Args:
        row: [6], a row of `HaltingSums.gates`.

    Returns:
        'little' if the threshold alone would halt too few tokens, 'much' if too many, else None.
    """
    samples, little, much = row[3:].tolist()
    for side, count in (('little', little), ('much', much)):
        if samples and count >= MOSTLY * samples:
            return side
    return None


def pinned_message(threshold: float, bounds: tuple[float, float], row: Tensor, side: str, fitting: Tensor) -> str:
    """The warning about a gate whose threshold decides nothing: what happens, and which threshold would decide.

    Args:
        threshold: The threshold of the gate.
        bounds: Its bounds, shares of halted tokens.
        row: [6], its row of `HaltingSums.gates`.
        side: 'little' or 'much', see `pinned_side`.
        fitting: [samples], see `fitting_thresholds`.
    """
    reached, kept, above = row[:3].tolist()
    halted, alone = (1 - count / reached for count in (kept, above))
    extent = {0.0: ' (nothing)', 1.0: ' (everything)'}.get(alone, '')
    facts = f'the threshold {threshold:g} alone would halt {alone:.1%}{extent} of the tokens that reach the gate'
    if halted == alone:
        facts += f', and that happens: the bounds {bounds} allow it'
    else:
        bound = f'lower bound {bounds[0]:g}' if side == 'little' else f'upper bound {bounds[1]:g}'
        facts += f'; the {bound} (bounds {bounds}) decides instead, and {halted:.1%} are halted'
    low, middle, high = (f'{float(fitting.quantile(q)):.4g}' for q in (0, 0.5, 1))
    return (
        f'{facts}. Remedy: threshold={middle} would halt a share in the middle of the bounds (this quantile of the '
        f'scores is {low} to {high} in the samples of the last batch). Set it in model.backbone.halting, above the '
        'scores of most background tokens and below those of most foreground tokens; or give two equal bounds if a '
        'fixed share is meant'
    )

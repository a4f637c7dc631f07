from __future__ import annotations

import json
import math
import multiprocessing
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmprune3d.engine.halting import grid_of, halting_detector, over_processes, records_of
from mmprune3d.engine.hooks.halting_hook import HaltingHook, pinned_side
from mmprune3d.pruning.halting import HaltingRecord, HaltingStep, keep_by_rank
from mmprune3d.pruning.halting_counts import HaltingSums, fitting_thresholds, inside_boxes
from mmprune3d.pruning.halting_loss import token_heatmap
from tests.test_models.test_sst.test_center_head import GRID as HEAD_GRID
from tests.test_models.test_sst.test_center_head import RANGE as HEAD_RANGE
from tests.test_models.test_sst.test_center_head import VOXEL as HEAD_VOXEL
from tests.test_models.test_sst.test_center_head import config as head_config

VOXEL, RANGE = (0.5, 0.5, 6.0), (-10.0, -8.0, -2.0, 10.0, 8.0, 4.0)
NUMBER = count()
FORK = multiprocessing.get_context('fork')
RULES = ((0.5, (0.2, 0.6)), (0.5, (0.5, 0.9)))


def random_record(
    sizes: tuple[int, ...], rules: tuple = RULES, num_layers: int = 4, seed: int = 0, scores: Tensor | None = None
) -> HaltingRecord:
    """A record with `sizes` tokens in each sample, one gate per rule, before every second layer."""
    generator = torch.Generator().manual_seed(seed)
    coords = []
    for sample, size in enumerate(sizes):
        cells = torch.randperm(40 * 32, generator=generator)[:size].sort().values
        coords.append(torch.stack([torch.full_like(cells, sample), 0 * cells, cells // 40, cells % 40], 1))
    coords = torch.cat(coords)
    totals, rows, steps = coords[:, 0].bincount(minlength=len(sizes)), torch.arange(len(coords)), []
    for gate, (threshold, bounds) in enumerate(rules):
        given = torch.rand(len(coords), generator=generator) if scores is None else scores
        keep = keep_by_rank(given[rows], coords[rows, 0], totals, threshold or 0.5, bounds)
        steps.append(HaltingStep(2 * gate, rows, given[rows], keep))
        rows = rows[keep]
    return HaltingRecord(tuple(steps), coords, len(sizes), num_layers)


def random_boxes(samples: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.tensor([16, 12, 0, 4, 2, 1, 6.0]), torch.tensor([-8, -6, 0, 2, 1, 1, -3.0])
    return [torch.rand(3, 7, generator=generator) * scale + shift for _ in range(samples)]


# counting


def slowly_inside(coords: Tensor, boxes: list[Tensor]) -> list[bool]:
    found = []
    for sample, _, row, column in coords.tolist():
        x, y = (column + 0.5) * VOXEL[0] + RANGE[0], (row + 0.5) * VOXEL[1] + RANGE[1]
        inside = False
        for box_x, box_y, _, length, width, _, yaw in boxes[sample].double().tolist():
            along = (x - box_x) * math.cos(yaw) + (y - box_y) * math.sin(yaw)
            across = (y - box_y) * math.cos(yaw) - (x - box_x) * math.sin(yaw)
            inside |= abs(along) <= length / 2 and abs(across) <= width / 2
        found.append(inside)
    return found


def test_a_token_is_foreground_if_its_centre_is_in_a_box() -> None:
    record, boxes = random_record((300, 0, 200)), random_boxes(3)
    inside = inside_boxes(record.coords, boxes, VOXEL, RANGE)
    assert inside.dtype == torch.bool and 10 < inside.sum() < 250
    assert inside.tolist() == slowly_inside(record.coords, boxes)
    assert not inside_boxes(record.coords, [torch.zeros(0, 7)] * 3, VOXEL, RANGE).any()


def test_the_whole_of_a_long_box_is_foreground() -> None:
    """The heatmap is 0 at the ends of a thin box: it is too small for a float there."""
    column = torch.arange(40)
    coords = torch.stack([0 * column, 0 * column, 0 * column + 16, column], 1)
    box = torch.tensor([[0.0, 0.25, 0, 19.4, 0.6, 3, 0]])
    inside = inside_boxes(coords, [box], VOXEL, RANGE)
    assert inside.sum() == 38
    assert inside.tolist() == slowly_inside(coords, [box])
    heatmap = token_heatmap(coords, [box], VOXEL, RANGE)
    assert 0 < (heatmap > 0).sum() < 38 and not heatmap[~inside].any()


@pytest.mark.parametrize('sizes', [(40,), (1,), (0, 30), (50, 0, 2)])
def test_sums_are_those_of_a_slow_count(sizes: tuple[int, ...]) -> None:
    record = random_record(sizes, num_layers=6)
    foreground = torch.rand(len(record.coords), generator=torch.Generator().manual_seed(1)) < 0.3
    sums = HaltingSums.of(record, foreground, [threshold for threshold, _ in RULES])
    gone: dict[int, int] = {}
    for step in record.steps:
        gone.update({row: step.layer for row, keep in zip(step.rows.tolist(), step.keep.tolist()) if not keep})
    for layer in range(6):
        for kind, mask in enumerate((foreground, ~foreground)):
            live = sum(mask[row].item() and gone.get(row, 6) > layer for row in range(len(mask)))
            assert sums.counts[1 + layer, kind] == live
    assert sums.counts[0].tolist() == [foreground.sum(), (~foreground).sum(), 0]
    for gate, step in enumerate(record.steps):
        reached, kept, above, samples = sums.gates[gate, :4].tolist()
        assert (reached, kept) == (len(step.rows), step.keep.sum())
        assert above == (step.scores >= 0.5).sum()
        assert samples == len(record.coords[step.rows, 0].unique())


def test_sums_of_batches_are_the_sums_of_one_batch() -> None:
    parts = [random_record((30, 20), seed=seed) for seed in range(3)]
    sums = [HaltingSums.of(part, None, [0.5, 0.5]) for part in parts]
    total = sums[0].plus(sums[1]).plus(sums[2])
    assert total.counts[:, :2].sum() == 0 and total.counts[0, 2] == 150
    assert torch.allclose(total.sparsity(), torch.stack([part.sparsity() for part in parts]).mean(0).double())
    assert total.sparsity('unlabelled').equal(total.sparsity())
    assert set(total.scalars()) == {f'halting/{name}' for name in
                                    ('layer0', 'layer1', 'layer2', 'layer3', 'mean', 'gate0', 'gate1')}  # fmt: skip
    with pytest.raises(ValueError, match=r'before layers \(0, 2\) and \(0,\)'):
        total.plus(HaltingSums.of(random_record((3,), RULES[:1]), None, [0.5]))


def test_scalars_are_those_of_the_record() -> None:
    record = random_record((60, 40))
    foreground = record.coords[:, 3] < 15
    scalars = HaltingSums.of(record, foreground, [0.5, 0.5]).scalars()
    assert scalars['halting/mean'] == pytest.approx(record.mean_sparsity())
    for layer, value in enumerate(record.sparsity().tolist()):
        assert scalars[f'halting/layer{layer}'] == pytest.approx(value)
    for gate, step in enumerate(record.steps):
        assert scalars[f'halting/gate{gate}'] == pytest.approx(1 - float(step.keep.float().mean()))
        for name, among in (('foreground', foreground), ('background', ~foreground)):
            assert scalars[f'halting/gate{gate}_{name}'] == pytest.approx(float(record.sparsity(among)[step.layer]))
    assert scalars['halting/mean_foreground'] == pytest.approx(float(record.sparsity(foreground).mean()))
    assert scalars['halting/gate0_foreground'] != scalars['halting/gate0_background']


# pinned gates


@pytest.mark.parametrize(
    ('threshold', 'bounds', 'side'),
    [
        (0.5, (0.2, 0.9), None),  # the threshold decides
        (0.5, (0.5, 0.5), None),  # and happens to agree with both bounds
        (0.5, (0.6, 0.9), 'little'),
        (0.0, (0.6, 0.9), 'little'),
        (0.0, (0.0, 0.9), 'little'),  # nothing is halted, and no bound forbids it
        (0.5, (0.1, 0.4), 'much'),
        (1.0, (0.1, 0.4), 'much'),
        (1.0, (0.1, 1.0), 'much'),  # everything is halted, and no bound forbids it
    ],
)
@pytest.mark.parametrize('sizes', [(10,), (10, 0, 10)])
def test_on_which_side_a_gate_is_pinned(sizes: tuple, threshold: float, bounds: tuple, side: str | None) -> None:
    scores = (torch.arange(10) / 10 + 0.01).repeat(len(sizes) - sizes.count(0))
    record = random_record(sizes, ((threshold, bounds),), scores=scores)
    row = HaltingSums.of(record, None, [threshold]).gates[0]
    assert pinned_side(row) == side


def test_a_few_samples_may_differ() -> None:
    row = torch.tensor([10.0, 2, 5, 100, 95, 0])
    assert pinned_side(row) == 'little'
    assert pinned_side(row - torch.tensor([0, 0, 0, 0, 1, 0])) is None
    assert pinned_side(torch.zeros(6)) is None


@pytest.mark.parametrize('bounds', [(0.8, 0.9), (0.5, 0.6), (0.0, 0.3), (0.7, 1.0)])
def test_the_threshold_that_is_proposed_lies_inside_the_bounds(bounds: tuple[float, float]) -> None:
    scores = torch.rand(290, generator=torch.Generator().manual_seed(3))
    alone = []
    for own in (scores[:200], scores[200:]):
        (proposed,) = fitting_thresholds(random_record((len(own),), ((0.0, bounds),), scores=own), 0, bounds)
        assert float((own < proposed).float().mean()) == pytest.approx(sum(bounds) / 2, abs=1 / len(own))
        alone.append(float(proposed))
    together = random_record((200, 0, 90), ((0.0, bounds),), scores=scores)
    assert fitting_thresholds(together, 0, bounds).tolist() == sorted(alone)


def test_a_later_gate_counts_the_tokens_that_are_gone() -> None:
    """Bounds are shares of all tokens: half of them are gone, so 0.75 is the middle of those that reach the gate."""
    record = random_record((100,), ((0.5, (0.5, 0.5)), (0.0, (0.7, 0.8))))
    step = record.steps[1]
    assert len(step.rows) == 50
    assert int((step.scores >= fitting_thresholds(record, 1, (0.7, 0.8))[0]).sum()) == 25
    assert int((step.scores >= fitting_thresholds(record, 1, (0.7, 0.9), relative=True)[0]).sum()) == 10


# the hook in a run


class Gate(nn.Module):
    def __init__(self, block: int, **rule: Any) -> None:
        super().__init__()
        self.block = block
        for name, value in rule.items():
            setattr(self, name, value)


@MODELS.register_module()
class GridPreprocessor(BaseDataPreprocessor):
    def __init__(self) -> None:
        super().__init__()
        self.voxel_layer = SimpleNamespace(voxel_size=VOXEL, point_cloud_range=RANGE)


@MODELS.register_module()
class StandInHalting(BaseModel):
    """Halts by random scores, shifted towards 0 or 1; calls its listeners as the detector does."""

    def __init__(self, gates: list[dict], shift: float = 0.0, silent: bool = False, steps: int | None = None) -> None:
        super().__init__(data_preprocessor=dict(type='GridPreprocessor'))
        self.backbone = nn.Module()
        self.backbone.halting = nn.ModuleList(Gate(**gate) for gate in gates)
        self.bbox_head = nn.Linear(1, 1)
        self.record_listeners: list = []
        self.shift, self.silent, self.steps = shift, silent, steps or len(gates)

    def forward(self, inputs: list[int], data_samples: list | None = None, mode: str = 'tensor') -> Any:
        if not self.silent:
            record, boxes = batch_record(inputs, self.rules(), self.shift), batch_boxes(inputs)
            for listener in self.record_listeners:
                listener(record, boxes)
        if mode == 'loss':
            return dict(loss=self.bbox_head(torch.ones(1)).square().sum())
        return [torch.zeros(1)] * len(inputs)

    def rules(self) -> tuple:
        found = [(getattr(g, 'threshold', None), getattr(g, 'bounds', (0.2, 0.6))) for g in self.backbone.halting]
        return tuple((found * self.steps)[: self.steps])


def batch_record(inputs: list[int], rules: tuple, shift: float = 0.0) -> HaltingRecord:
    """Its sizes and scores depend on the samples only."""
    sizes = tuple(20 + 7 * int(sample) for sample in inputs)
    generator = torch.Generator().manual_seed(sum(map(int, inputs)))
    scores = torch.rand(sum(sizes), generator=generator) * (1 - abs(shift)) + max(shift, 0.0)
    return random_record(sizes, rules, scores=scores, seed=int(inputs[0]))


def batch_boxes(inputs: list[int]) -> list[Tensor]:
    return [random_boxes(1, seed=int(sample))[0] for sample in inputs]


@DATASETS.register_module()
class NumberDataset(Dataset):
    metainfo = dict(classes=('car',))

    def __init__(self, num: int, lazy_init: bool = False) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=index, data_samples=index)


def config(work_dir: Path, gates: list[dict] | None = None, **changes: Any) -> Config:
    """Six iterations of two samples; validation on three samples after the third and the last."""
    if gates is None:
        gates = [dict(block=block, threshold=u, bounds=bounds) for block, (u, bounds) in enumerate(RULES)]

    def loader(num: int) -> dict:
        return dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='NumberDataset', num=num),
            collate_fn=dict(type='pseudo_collate'),
        )

    model = dict(type='StandInHalting', gates=gates, **changes.pop('model', {}))
    hook = dict(type='HaltingHook', interval=2, **changes.pop('hook', {}))
    settings = dict(
        default_scope='mmdet3d',
        experiment_name=f'halting-{next(NUMBER)}',
        work_dir=str(work_dir),
        model=model,
        train_dataloader=loader(12),
        val_dataloader=loader(3),
        test_dataloader=loader(3),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=dict(type='ToyMetric'),
        test_evaluator=dict(type='ToyMetric'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=2), checkpoint=dict(type='CheckpointHook')),
        log_processor=dict(by_epoch=False),
        custom_hooks=[hook],
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    return Config({**settings, **changes})


def expected(batches: list[list[int]], rules: tuple = RULES) -> dict[str, float]:
    """Figures over batches, from masks that are put together by hand."""
    live, inside = [], []
    for batch in batches:
        record = batch_record(batch, rules)
        live.append(record.live())
        inside += slowly_inside(record.coords, batch_boxes(batch))
    halted, foreground = (~torch.cat(live, 1)).double(), torch.tensor(inside)
    found = {f'halting/layer{layer}': float(row.mean()) for layer, row in enumerate(halted)}
    for name, mask in (('', foreground | True), ('_foreground', foreground), ('_background', ~foreground)):
        found[f'halting/mean{name}'] = float(halted[:, mask].mean())
    for gate, layer in enumerate((0, 2)):
        for name, mask in (('foreground', foreground), ('background', ~foreground)):
            found[f'halting/gate{gate}_{name}'] = float(halted[layer, mask].mean())
    found['halting/gate0'] = found['halting/layer0']
    found['halting/gate1'] = 1 - float((1 - halted[2]).sum() / (1 - halted[0]).sum())
    return found


def logged(runner: Runner) -> list[dict]:
    file = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
    return [json.loads(line) for line in file.read_text().splitlines()]


def warnings_of(runner: Runner) -> list[str]:
    log = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    return [line for line in log.split('\n') if 'WARNING' in line and 'HaltingHook' in line]


def train(*args: Any, **kwargs: Any) -> Runner:
    import tests.toy_runner  # noqa: F401

    runner = Runner.from_cfg(config(*args, **kwargs))
    runner.train()
    return runner


def test_training_and_validation_log_the_means(tmp_path: Path) -> None:
    """Validation comes in the middle of an interval of training, and does not disturb it."""
    runner = train(tmp_path)
    lines = logged(runner)
    training = {line['iter']: line for line in lines if 'iter' in line}
    assert sorted(training) == [2, 4, 6]
    for end in (2, 4, 6):
        batches = [[2 * i, 2 * i + 1] for i in (end - 2, end - 1)]
        wanted = expected(batches)
        found = {key: value for key, value in training[end].items() if key.startswith('halting')}
        assert found == pytest.approx(wanted)
    validated = [line for line in lines if 'score' in line]
    assert len(validated) == 2
    for line in validated:
        assert {k: v for k, v in line.items() if k.startswith('halting')} == pytest.approx(expected([[0, 1], [2]]))
    assert runner.model.record_listeners == []
    assert warnings_of(runner) == []


def test_a_test_logs_the_means(tmp_path: Path) -> None:
    import tests.toy_runner  # noqa: F401

    runner = Runner.from_cfg(config(tmp_path))
    runner.test()
    scalars = runner.message_hub.log_scalars
    found = {name.removeprefix('test/'): value.current() for name, value in scalars.items() if 'halting' in name}
    assert found == pytest.approx(expected([[0, 1], [2]]))
    assert runner.model.record_listeners == []


def test_averaged_copies_do_not_listen(tmp_path: Path) -> None:
    hooks = [dict(type='HaltingHook', interval=1), dict(type='EMAHook')]
    runner = train(tmp_path, custom_hooks=hooks)
    ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    assert ema.ema_model.module.record_listeners == []
    assert 'val/halting/mean' in runner.message_hub.log_scalars


@pytest.mark.parametrize(
    ('shift', 'bounds', 'phrases'),
    [
        (0.7, (0.2, 0.6), ['alone would halt 0.0% (nothing)', 'the lower bound 0.2', 'decides instead, and 2']),
        (-0.7, (0.2, 0.6), ['alone would halt 100.0% (everything)', 'the upper bound 0.6', 'decides instead, and 5']),
        (-0.2, (0.2, 0.3), ['alone would halt 6', 'the upper bound 0.3', 'decides instead, and 2']),
        (0.7, (0.0, 0.6), ['(nothing)', 'and that happens: the bounds (0.0, 0.6) allow it']),
        (-0.7, (0.2, 1.0), ['(everything)', 'and that happens: the bounds (0.2, 1.0) allow it']),
    ],
)
def test_a_threshold_that_decides_nothing_is_warned_about_once(
    tmp_path: Path, shift: float, bounds: tuple, phrases: list[str]
) -> None:
    gates = [dict(block=1, threshold=0.5, bounds=bounds)]
    runner = train(tmp_path, gates, model=dict(shift=shift), hook=dict(patience=2))
    (warning,) = warnings_of(runner)
    for phrase in ['gate 0, before block 1', 'for 2 intervals of 2 iterations', 'the threshold 0.5 alone', *phrases]:
        assert phrase in warning
    proposed = float(warning.split('Remedy: threshold=')[1].split()[0])
    last = batch_record([6, 7], ((0.5, bounds),), shift)
    assert proposed == pytest.approx(float(fitting_thresholds(last, 0, bounds).quantile(0.5)), rel=1e-3)


@pytest.mark.parametrize('patience', [3, 4])
def test_patience_is_counted_in_entries(tmp_path: Path, patience: int) -> None:
    gates = [dict(block=0, threshold=0.0, bounds=(0.5, 0.9))]
    assert len(warnings_of(train(tmp_path, gates, hook=dict(patience=patience)))) == (patience <= 3)


def test_entries_in_between_start_the_count_again(tmp_path: Path) -> None:
    hook = HaltingHook(patience=2)
    hook.gates, hook._streaks, hook._warned = [Gate(0, threshold=0.5, bounds=(0.2, 0.6))], [(None, 0)], set()
    hook._last = random_record((50,), RULES[:1])
    said: list[str] = []
    runner = SimpleNamespace(logger=SimpleNamespace(warning=said.append))
    little, much, inside = (
        torch.tensor([10.0, 5, above, 1, above == 9, above == 1], dtype=torch.float64) for above in (9, 1, 5)
    )
    for row in (little, inside, little, much, little):
        hook._check_gate(runner, 0, row)
    assert said == []
    for _ in range(3):
        hook._check_gate(runner, 0, little)
    assert len(said) == 1


def test_equal_bounds_are_meant(tmp_path: Path) -> None:
    gates = [dict(block=0, threshold=0.0, bounds=(0.5, 0.5))]
    assert warnings_of(train(tmp_path, gates, hook=dict(patience=1))) == []


@pytest.mark.parametrize('steps', [1, 2])
def test_gates_without_thresholds_are_not_warned_about(tmp_path: Path, steps: int) -> None:
    """As in A-ViT, where one gate may decide before every block."""
    runner = train(tmp_path, [dict(block=0)], model=dict(shift=0.7, steps=steps), hook=dict(patience=1))
    assert warnings_of(runner) == []
    (line,) = [line for line in logged(runner) if line.get('iter') == 6]
    assert f'halting/gate{steps - 1}_background' in line and f'halting/gate{steps}' not in line


def test_nothing_to_listen_to_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'found ToyModel with .*backbone \(Sequential\).*no gates; valid is'):
        halting_detector(toy_model())
    with pytest.raises(ValueError, match=r'found StandInHalting with .*and no gates'):
        train(tmp_path, [])
    with pytest.raises(RuntimeError, match=r'an iteration of training passed without a record .* StandInHalting has'):
        train(tmp_path, model=dict(silent=True))
    with pytest.raises(ValueError, match='2 steps of a backbone with 1 halting gates'):
        train(tmp_path, [dict(block=0, threshold=0.5, bounds=(0.2, 0.6))], model=dict(steps=2))
    with pytest.raises(ValueError, match='interval=0 must be a whole number, 1 or more'):
        HaltingHook(interval=0)
    with pytest.raises(ValueError, match=r'ToyModel has no voxel_size .* data_preprocessor.voxel_layer'):
        grid_of(toy_model())


def toy_model() -> nn.Module:
    from tests.toy_runner import ToyModel

    return ToyModel()


def test_the_detector_is_found_inside_wrappers() -> None:
    detector = StandInHalting([dict(block=0)])
    assert halting_detector(nn.ModuleDict(dict(student=detector))) is detector
    assert grid_of(detector) == (VOXEL, RANGE)


def test_records_are_those_of_the_call() -> None:
    detector = StandInHalting([dict(block=0, threshold=0.5, bounds=(0.2, 0.6))])
    found = records_of(detector, lambda: [detector([0]), detector([1, 2])])
    assert [record.batch_size for record in found] == [1, 2] and detector.record_listeners == []
    with pytest.raises(ZeroDivisionError):
        records_of(detector, lambda: 1 / 0)
    assert detector.record_listeners == []
    assert records_of(nn.Linear(1, 1), lambda: 1 / 0) == []  # halts nothing, so it need not run


def rank_main(rank: int, folder: Path, results: Any) -> None:
    torch.distributed.init_process_group('gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2)
    record = random_record((30, 10 * rank), seed=rank)
    sums = over_processes(HaltingSums.of(record, record.coords[:, 3] < 20, [0.5, 0.5]))
    results.put((sums.counts.tolist(), sums.gates.tolist()))
    torch.distributed.destroy_process_group()


def test_processes_add_up(tmp_path: Path) -> None:
    results = FORK.Queue()
    processes = [FORK.Process(target=rank_main, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    records = [random_record((30, 10 * rank), seed=rank) for rank in range(2)]
    alone = [HaltingSums.of(record, record.coords[:, 3] < 20, [0.5, 0.5]) for record in records]
    total = alone[0].plus(alone[1])
    assert found[0] == found[1] == (total.counts.tolist(), total.gates.tolist())


# the detector itself


@DATASETS.register_module()
class PointDataset(Dataset):
    """Two cars and noise around them; a sample without points is among them."""

    metainfo = dict(classes=('car', 'pedestrian', 'cyclist'))

    def __init__(self, num: int, lazy_init: bool = False) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        boxes = torch.tensor([[3.0, 2, 0, 4, 2, 1.5, 0.3], [-4, -2, 0, 4, 2, 1.5, 1.0]])
        around = torch.rand(300, 4, generator=generator) * torch.tensor([16.0, 12, 2, 1]) - torch.tensor([8.0, 6, 1, 0])
        inside = boxes[:, None, :2] + torch.rand(2, 40, 2, generator=generator) - 0.5
        points = torch.cat([around, torch.cat([inside.flatten(0, 1), torch.zeros(80, 2)], 1)])
        sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes, sample_idx=index))
        labels = torch.tensor([0, 2])
        sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes), labels_3d=labels)
        return dict(inputs=dict(points=points if index != 5 else points[:0]), data_samples=sample)


@METRICS.register_module()
class CountMetric(BaseMetric):
    def process(self, data_batch: Any, data_samples: list) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return dict(count=len(results))


def real_config(work_dir: Path, **changes: Any) -> Config:
    """A HaltingSSTDetector with two blocks and two gates; batches of two samples."""
    voxels = dict(voxel_size=HEAD_VOXEL, point_cloud_range=HEAD_RANGE)
    columns, rows, _ = HEAD_GRID
    norm, head = dict(type='BN1d'), head_config(velocity=False)
    model = dict(
        type='HaltingSSTDetector',
        data_preprocessor=dict(
            type='Det3DDataPreprocessor',
            voxel=True,
            voxel_type='dynamic',
            voxel_layer=dict(max_num_points=-1, max_voxels=(-1, -1), **voxels),
        ),
        voxel_encoder=dict(type='SSTDynamicVFE', in_channels=4, feat_channels=[8, 8], norm_cfg=norm, **voxels),
        middle_encoder=dict(type='SSTInputLayer', window_shape=(8, 8, 1), sparse_shape=(columns, rows, 1)),
        backbone=dict(
            type='HaltingSST',
            d_model=[8, 8],
            nhead=[2, 2],
            num_blocks=2,
            dim_feedforward=[16, 16],
            output_shape=[rows, columns],
            num_attached_conv=1,
            conv_in_channel=8,
            conv_out_channel=6,
            halting=[
                dict(
                    block=0,
                    module=dict(type='HaltingUNet', in_channels=8, widths=(4, 8), init_score=0.5),
                    bounds=(0.3, 0.4),
                ),
                dict(block=1, module=dict(type='HaltingMLP', in_channels=8, init_score=0.5), bounds=(0.6, 0.8)),
            ],
        ),
        train_cfg=head.pop('train_cfg'),
        test_cfg=head.pop('test_cfg'),
        bbox_head=dict(type='SSTCenterHead', **head),
    )
    settings = config(work_dir, **changes)
    for loader in (settings.train_dataloader, settings.val_dataloader, settings.test_dataloader):
        loader.dataset.type = 'PointDataset'
    evaluator = dict(type='CountMetric')
    return Config({**settings.to_dict(), 'model': model, 'val_evaluator': evaluator, 'test_evaluator': evaluator})


def test_the_detector_is_listened_to(tmp_path: Path) -> None:
    """Untrained scores are near a half and thresholds at 0.01, so that lower bounds decide: 30 %, then 60 % halted."""
    slow = dict(optimizer=dict(type='SGD', lr=1e-6))  # scores stay near a half
    runner = Runner.from_cfg(real_config(tmp_path, hook=dict(patience=2), optim_wrapper=slow))
    runner.train()
    lines = [line for line in logged(runner) if 'halting/mean' in line]
    assert [line.get('iter') for line in lines] == [2, None, 4, 6, None]
    for line in lines:
        assert [line[f'halting/layer{layer}'] for layer in range(4)] == pytest.approx([0.3, 0.3, 0.6, 0.6], abs=0.01)
        assert line['halting/mean'] == pytest.approx(0.45, abs=0.01)
        assert 0 < line['halting/gate1_foreground'] < 1
    first, second = warnings_of(runner)
    assert 'gate 0, before block 0' in first and 'the lower bound 0.3' in first and '(nothing)' in first
    assert 'gate 1, before block 1' in second and 'the lower bound 0.6' in second
    proposed = float(first.split('Remedy: threshold=')[1].split()[0])
    assert 0.05 < proposed < 0.95
    assert runner.model.record_listeners == []


def test_figures_of_the_detector_are_those_of_its_records(tmp_path: Path) -> None:
    runner = Runner.from_cfg(real_config(tmp_path))
    records: list[HaltingRecord] = []
    runner.model.record_listeners.append(lambda record, boxes: records.append(record))
    runner.test()
    assert [record.batch_size for record in records] == [2, 1]
    live = torch.cat([record.live() for record in records], 1)
    scalars = runner.message_hub.log_scalars
    found = [scalars[f'test/halting/layer{layer}'].current() for layer in range(4)]
    assert found == pytest.approx((1 - live.double().mean(1)).tolist())

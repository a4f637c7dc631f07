"""GPQ's core against slow oracles: an obvious re-implementation of the authors' loop, hand-made numbers, boundaries."""

from __future__ import annotations

import math

import pytest
import torch

from mmprune3d.pruning.gpq import (
    GPQPlan,
    RemovalSchedule,
    ScoreSums,
    choose_victims,
    cost_scores,
    kept_at,
    kept_ids,
    query_scores,
)


def prune_as_published(batches: list[torch.Tensor], interval: int, target: int) -> list[list[int]]:
    """The loop of the authors' detector, written plainly: ids that are left after every iteration.

    Every batch has logits of all queries; those that are gone are not looked at.
    """
    alive, records, left = list(range(batches[0].shape[1])), [], []
    for iteration, logits in enumerate(batches):
        best = logits[:, alive].max(dim=-1)[0]  # [B, queries]
        records.append(best.mean(dim=0))
        if (iteration + 1) % interval == 0 and len(alive) > target:
            worst = torch.stack(records).mean(dim=0).argmin().item()
            del alive[worst]
            records = []
        left.append(list(alive))
    return left


@pytest.mark.parametrize('interval', [1, 2, 5])
@pytest.mark.parametrize('target', [1, 4, 9])
@pytest.mark.parametrize('batch', [1, 3])
def test_equals_the_published_loop(interval, target, batch):
    generator = torch.Generator().manual_seed(interval + 10 * target + 100 * batch)
    batches = [torch.randn(batch, 10, 4, generator=generator, dtype=torch.float64) for _ in range(60)]
    expected = prune_as_published(batches, interval, target)

    schedule = GPQPlan(target=target, interval=interval).schedule(10, 60)
    rank, sums, removed = torch.zeros(10, dtype=torch.int64), ScoreSums.zeros(10), 0
    for iteration, logits in enumerate(batches):
        ids = kept_ids(rank)
        sums = sums.add(query_scores(logits[:, ids]))
        due = schedule.removed_after(iteration + 1) - removed
        if due:
            removed += due
            rank[ids[choose_victims(sums.mean(), due)]] = removed
            sums = ScoreSums.zeros(10 - removed)
        assert kept_ids(rank).tolist() == expected[iteration]
    assert len(kept_ids(rank)) == target


def test_the_authors_config():
    """PETR on two GPUs with four samples each: 3516 iterations per epoch, 600 queries within six epochs."""
    schedule = GPQPlan(target=300, epochs=6).schedule(900, 3516)
    assert schedule == RemovalSchedule(total=600, begin=0, interval=35, per_step=1)
    assert schedule.end == 21000
    assert [schedule.removed_after(i) for i in (0, 34, 35, 69, 70, 20999, 21000, 84384)] == [
        0,
        0,
        1,
        1,
        2,
        599,
        600,
        600,
    ]


@pytest.mark.parametrize(
    'plan, queries, per_epoch',
    [
        (GPQPlan(target=3, epochs=1), 10, 100),
        (GPQPlan(target=3, epochs=1), 10, 7),
        (GPQPlan(target=3, epochs=1), 10, 6),  # more queries than iterations
        (GPQPlan(target=3, epochs=1), 10, 1),
        (GPQPlan(target=9, epochs=2), 10, 3),
        (GPQPlan(target=1, epochs=0.5, per_step=4), 10, 40),
        (GPQPlan(target=1, epochs=1, begin=20), 10, 40),
        (GPQPlan(target=4, interval=3, per_step=4), 10, 1),
        (GPQPlan(target=4, interval=3, per_step='all', begin=2), 10, 1),
    ],
)
def test_schedules_reach_the_target_in_time(plan, queries, per_epoch):
    schedule = plan.schedule(queries, per_epoch)
    counts = [schedule.removed_after(i) for i in range(schedule.end + 3)]
    assert counts[: schedule.begin + schedule.interval] == [0] * (schedule.begin + schedule.interval)
    assert counts[-1] == counts[schedule.end] == queries - plan.target
    assert counts[schedule.end - 1] < queries - plan.target
    steps = [after - before for before, after in zip(counts, counts[1:]) if after != before]
    assert all(step == schedule.per_step for step in steps[:-1]) and steps[-1] <= schedule.per_step
    if plan.interval is None:
        assert schedule.end <= plan.epochs * per_epoch


def test_all_at_once():
    schedule = GPQPlan(target=3, epochs=2, per_step='all').schedule(10, 50)
    assert (schedule.interval, schedule.per_step, schedule.end) == (100, 7, 100)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(), 'target, how many queries stay, is missing'),
        (dict(target=0), 'target=0'),
        (dict(target=True), 'target=True'),
        (dict(target=3, intervall=2), 'unknown setting intervall; valid are target, interval'),
        (dict(target=3, interval=0), 'interval=0'),
        (dict(target=3, interval=2, epochs=3), 'give one of the two'),
        (dict(target=3, epochs=0), 'epochs=0'),
        (dict(target=3, epochs='six'), "epochs='six'"),
        (dict(target=3, per_step=0), 'per_step=0'),
        (dict(target=3, per_step='some'), "per_step='some'"),
        (dict(target=3, begin=-1), 'begin=-1'),
        (dict(target=3, criterion='worst'), 'valid are lowest, highest, cost, random'),
        (dict(target=3, score='loss'), 'valid are logit, probability'),
        (dict(target=3, method='tggbc'), 'expected a gpq plan'),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GPQPlan.from_dict(settings)


def test_a_schedule_without_anything_to_do():
    with pytest.raises(ValueError, match='target=10 of 10 queries; valid are 1 to 9'):
        GPQPlan(target=10).schedule(10, 100)
    with pytest.raises(ValueError, match='leave none for pruning'):
        GPQPlan(target=3, epochs=1, begin=100).schedule(10, 100)


def test_round_trips():
    plan = GPQPlan(target=300, interval=35, per_step='all', criterion='random', seed=3)
    assert GPQPlan.from_dict(plan.to_dict()) == plan
    assert plan.to_dict()['method'] == 'gpq'
    assert GPQPlan.parse('target=300,interval=35,per_step=all,criterion=random,seed=3') == plan
    assert GPQPlan.parse('target=300') == GPQPlan(target=300, epochs=6)


def test_scores_of_a_sigmoid_head():
    logits = torch.tensor([[[1.0, -2.0], [0.0, 3.0]]])
    torch.testing.assert_close(query_scores(logits), torch.tensor([[1.0, 3.0]], dtype=torch.float64))
    expected = [[1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))]]
    torch.testing.assert_close(
        query_scores(logits, 'probability'), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_scores_of_a_softmax_head_leave_the_background_out():
    logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    logits[0, 0, 3] = 50  # surely background
    best = logits.softmax(-1)[..., :-1].max(-1).values
    torch.testing.assert_close(query_scores(logits, 'probability', 'softmax'), best)
    torch.testing.assert_close(query_scores(logits, 'logit', 'softmax'), best.logit())


def test_a_query_is_worth_its_best_match():
    costs = [torch.tensor([[3.0, 1.0], [2.0, 5.0]]), torch.zeros(2, 0), torch.tensor([[0.5], [-1.0]])]
    assert cost_scores(costs).tolist() == [[-1.0, -2.0], [-0.5, 1.0]]
    assert cost_scores([torch.zeros(2, 0)]).shape == (0, 2)


def test_sums_do_not_depend_on_how_samples_are_split():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = ScoreSums.zeros(4).add(scores)
    parts = ScoreSums.zeros(4).add(scores[:2]).plus(ScoreSums.zeros(4).add(scores[2:]).packed())
    assert parts.count == whole.count == 6
    torch.testing.assert_close(parts.mean(), scores.mean(0))
    torch.testing.assert_close(whole.mean(), scores.mean(0))


def test_samples_that_are_not_finite_do_not_count():
    scores = torch.tensor([[1.0, 2.0], [float('nan'), 7.0], [3.0, float('inf')]])
    sums = ScoreSums.zeros(2).add(scores)
    assert sums.count == 1 and sums.mean().tolist() == [1.0, 2.0]
    with pytest.raises(RuntimeError, match='no query has a score'):
        ScoreSums.zeros(2).add(scores[1:]).mean()


def test_victims():
    scores = torch.tensor([0.5, -1.0, 2.0, -1.0, 0.0])
    assert choose_victims(scores, 3).tolist() == [1, 3, 4]  # equal scores: the first one first
    assert choose_victims(scores, 2, 'highest').tolist() == [2, 0]
    assert choose_victims(scores, 4, 'cost').tolist() == [1, 3, 4, 0]
    drawn = [tuple(choose_victims(scores, 2, 'random', seed).tolist()) for seed in range(20)]
    assert drawn == [tuple(choose_victims(scores, 2, 'random', seed).tolist()) for seed in range(20)]
    assert len(set(drawn)) > 5 and all(len(set(pair)) == 2 for pair in drawn)
    for count in (0, 5):
        with pytest.raises(ValueError, match=f'cannot remove {count} of 5 queries; valid are 1 to 4'):
            choose_victims(scores, count)


def test_ids_of_every_size():
    rank = torch.tensor([0, 2, 0, 1, 3])
    assert kept_ids(rank).tolist() == [0, 2]
    assert [kept_at(rank, n).tolist() for n in (2, 3, 4, 5)] == [
        [0, 2],
        [0, 2, 4],
        [0, 1, 2, 4],
        [0, 1, 2, 3, 4],
    ]
    for count in (1, 6):
        with pytest.raises(ValueError, match='valid are 2'):
            kept_at(rank, count)

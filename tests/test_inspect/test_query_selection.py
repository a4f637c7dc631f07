from __future__ import annotations

from itertools import product

import pytest
import torch

from mmprune3d.adapters.learned_queries import learned_queries
from mmprune3d.inspect.query_selection import Selection, SelectionCounter, best_pairs, inequality
from tests.test_adapters import small_detr


def test_softmax_heads_give_one_result_per_query() -> None:
    # the last class is the background
    logits = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 3.0, 9.0], [5.0, 5.0, 0.0], [0.0, 1.0, 1.0]]])
    query, scores = best_pairs(logits, 3, 'softmax')
    expected = [float(logits[0, q].softmax(-1)[:2].max()) for q in range(4)]
    assert query.tolist() == [[0, 2, 3]]
    assert scores[0].tolist() == pytest.approx([expected[q] for q in (0, 2, 3)])
    assert sorted(best_pairs(logits, 100, 'softmax')[0][0].tolist()) == [0, 1, 2, 3]


def test_sigmoid_heads_give_a_result_per_pair_and_samples_are_counted_alone() -> None:
    logits = torch.tensor([[[3.0, 2.0], [-1.0, 1.0], [0.0, -2.0]], [[-3.0, -3.5], [-5.0, -4.0], [-2.0, -9.0]]])
    query, scores = best_pairs(logits, 3)
    assert query.tolist() == [[0, 0, 1], [2, 0, 0]]
    selection = Selection.zeros(3).add(query, scores, 0.8)
    assert selection.results.tolist() == [4, 1, 1] and selection.confident.tolist() == [2, 0, 0]
    assert (selection.samples, selection.per_sample) == (2, 3)
    again = selection.add(*best_pairs(logits[:1], 100), 0.8)
    assert again.results.tolist() == [6, 3, 3] and again.samples == 3 and again.per_sample == 6


@pytest.mark.parametrize('activation', ['sigmoid', 'softmax'])
def test_of_equal_scores_the_first_queries_are_taken(activation: str) -> None:
    query, _ = best_pairs(torch.zeros(2, 60, 2), 20, activation)
    assert query.tolist() == [[i // 2 if activation == 'sigmoid' else i for i in range(20)]] * 2


@pytest.mark.parametrize('conditional', [False, True], ids=['softmax', 'sigmoid'])
@pytest.mark.parametrize('most', [5, 100])
def test_results_are_those_of_mmdets_heads(conditional: bool, most: int) -> None:
    model, data = small_detr.build(conditional), small_detr.batch(2)
    queries = learned_queries(model)
    queries.embedding.remove(torch.tensor([3, 11]))
    model.bbox_head.test_cfg = {'max_per_img': most}
    counter, heard = SelectionCounter(queries, 0.1), []
    queries.head.register_forward_hook(lambda head, inputs, outputs: heard.append(queries.learned_logits(outputs)))
    with counter.listening(), torch.no_grad():
        found = [sample.pred_instances for sample in model.predict(data.inputs, data.data_samples, rescale=False)]
    assert queries.activation == ('sigmoid' if conditional else 'softmax')
    query, scores = best_pairs(heard[0], most, queries.activation)
    assert query.shape == (2, min(most, 10 * (small_detr.CLASSES if conditional else 1)))
    assert torch.allclose(scores, torch.stack([sample.scores for sample in found]), atol=1e-6)
    assert torch.equal(counter.selection.results, query.flatten().bincount(minlength=10))
    assert counter.selection.samples == 2 and counter.selection.confident.sum() == (scores >= 0.1).sum()


def test_inequality_of_equal_single_and_no_selections() -> None:
    assert inequality(torch.tensor([4, 4, 4, 4])) == {'never': 0.0, 'half': 0.5, 'gini': 0.0}
    assert inequality(torch.tensor([0, 0, 9, 0])) == {'never': 0.75, 'half': 0.25, 'gini': 0.75}
    assert inequality(torch.zeros(4, dtype=torch.int64)) == {'never': 1.0, 'half': 0.5, 'gini': 0.0}
    counts = torch.tensor([1, 0, 5, 2, 2])
    differences = sum(abs(a - b) for a, b in product(counts.tolist(), repeat=2))
    assert inequality(counts)['gini'] == pytest.approx(differences / (2 * 25 * 2))

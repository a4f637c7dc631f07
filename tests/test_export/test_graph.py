from __future__ import annotations

import sys
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmprune3d.export import graph as onnx_graph
from mmprune3d.export.graph import check_static, optional, shapes_of, split_topk, tidied, topk_sizes, warn_large_topk

SAMPLES, NUM = 3, 50


def topk_model(k: int, largest: int = 1, batch: int | str = SAMPLES) -> onnx.ModelProto:
    node = helper.make_node('TopK', ['scores', 'k'], ['values', 'index'], 'choose', axis=1, largest=largest, sorted=0)
    graph = helper.make_graph(
        [node],
        'graph',
        [helper.make_tensor_value_info('scores', TensorProto.FLOAT, [batch, NUM])],
        [
            helper.make_tensor_value_info('values', TensorProto.FLOAT, [batch, k]),
            helper.make_tensor_value_info('index', TensorProto.INT64, [batch, k]),
        ],
        [numpy_helper.from_array(np.array([k]), 'k')],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)


def run(model: onnx.ModelProto, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, {'scores': scores})


@pytest.mark.parametrize('largest', [1, 0])
@pytest.mark.parametrize(('k', 'limit', 'parts'), [(23, 7, [6, 6, 6, 5]), (14, 7, [7, 7]), (8, 7, [4, 4])])
def test_parts_find_what_one_topk_finds(k: int, limit: int, parts: list[int], largest: int) -> None:
    model = topk_model(k, largest)
    split_topk(model, limit)
    assert list(topk_sizes(model).values()) == parts
    scores = np.random.default_rng(k).permutation(SAMPLES * NUM).reshape(SAMPLES, NUM).astype(np.float32)
    scores[0, :30] = -1.0  # padded keys: equal, and worth less than any other
    scores[0, 30:] += 1.0
    values, index = run(model, scores)
    assert index.shape == (SAMPLES, k)
    order = np.sort(scores, axis=1)
    expected = order[:, -k:] if largest else order[:, :k]
    np.testing.assert_array_equal(np.sort(values, axis=1), expected)
    np.testing.assert_array_equal(np.take_along_axis(scores, index, axis=1), values)
    assert all(len(set(row)) == k for row in index.tolist())
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} - {'k'} < read
    check_static(tidied(model, {}))


@pytest.mark.parametrize('largest', [1, 0])
def test_parts_take_the_first_of_equal_scores_as_one_topk_does(largest: int) -> None:
    scores = np.random.default_rng(0).integers(0, 3, (SAMPLES, NUM)).astype(np.float32)
    whole, parts = tidied(topk_model(23, largest), {}), topk_model(23, largest)
    split_topk(parts, 7)
    for one, other in zip(run(whole, scores), run(tidied(parts, {}), scores), strict=True):
        np.testing.assert_array_equal(one, other)


def test_small_topk_stays_whole() -> None:
    model = topk_model(7)
    split_topk(model, 7)
    assert model == topk_model(7)


def test_large_topk_is_named_with_its_size_and_the_remedy() -> None:
    with patch.object(onnx_graph, 'print_log') as log:
        warn_large_topk(topk_model(7), limit=7)
        log.assert_not_called()
        warn_large_topk(topk_model(8), limit=7)
    (message,) = log.call_args.args
    assert 'TopK choose selects 8, TensorRT stops at 7' in message
    assert '--split-topk' in message and 'larger r' in message


def test_topk_of_a_computed_size_is_refused() -> None:
    model = topk_model(7)
    del model.graph.initializer[:]
    with pytest.raises(ValueError, match='k is not a constant in TopK choose'):
        topk_sizes(model)


def test_operators_that_depend_on_values_are_refused() -> None:
    model = topk_model(7)
    model.graph.node.append(helper.make_node('NonZero', ['scores'], ['where'], 'where'))
    with pytest.raises(ValueError, match='depends on values: it contains NonZero'):
        check_static(model)


def test_tensors_without_a_static_shape_are_refused() -> None:
    with pytest.raises(ValueError, match='not static: 2 tensors, the first ones values, index'):
        check_static(topk_model(7, batch='B'))
    model = topk_model(7)
    model.graph.node.append(helper.make_node('Neg', ['values'], ['negative']))
    with pytest.raises(ValueError, match='1 tensors, the first ones negative'):
        check_static(model)
    check_static(tidied(model, {}))


def test_tidied_has_shapes_and_metadata_and_no_traces_and_sorts() -> None:
    model = topk_model(7)
    model.graph.node.append(helper.make_node('Neg', ['values'], ['negative']))
    model.graph.node[0].metadata_props.add(key='stack_trace', value='File "somewhere.py"')
    model.graph.node[0].doc_string = 'somewhere'
    result = tidied(model, {'mmprune3d.plan': 'null'})
    assert shapes_of(result)['negative'] == (SAMPLES, 7)
    assert [(entry.key, entry.value) for entry in result.metadata_props] == [('mmprune3d.plan', 'null')]
    assert b'somewhere' not in result.SerializeToString()
    assert {entry.name: entry.i for entry in result.graph.node[0].attribute}['sorted'] == 1


def test_a_missing_package_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r"needs onnxruntime. Type: pip install 'mmprune3d\[deploy\]'"):
        optional('onnxruntime')

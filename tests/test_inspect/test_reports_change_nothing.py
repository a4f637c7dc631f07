"""A report on a detector leaves the detector as it is."""

from __future__ import annotations

import copy

import torch
from torch import nn

from mmprune3d.adapters.learned_queries import find_queries
from mmprune3d.inspect.query_points import points_in_metres, range_of
from mmprune3d.inspect.query_selection import SelectionCounter
from tests.test_adapters import small_detr


def test_counting_selected_queries_leaves_the_detector_as_it_is() -> None:
    model, data = small_detr.build(True), small_detr.batch(2)
    model.bbox_head.test_cfg = {'max_per_img': 5}
    attributes = [sorted(vars(module)) for module in model.modules()]
    classes = {name: type(module) for name, module in model.named_modules()}
    state, before = copy.deepcopy(model.state_dict()), small_detr.outputs(model, data)
    queries = find_queries(model)
    counter = SelectionCounter(queries, 0.3)
    with counter.listening():
        for sample in data.data_samples:
            sample.set_metainfo(dict(scale_factor=(1.0, 1.0), ori_shape=sample.img_shape))
        with torch.no_grad():
            model.predict(data.inputs, data.data_samples)
    assert points_in_metres(queries) is None and range_of(queries) is None
    assert counter.selection.samples == 2
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert model.bbox_head.test_cfg == {'max_per_img': 5}
    assert type(model.query_embedding) is nn.Embedding and not model.bbox_head._forward_hooks
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(map(torch.equal, small_detr.outputs(model, data), before))

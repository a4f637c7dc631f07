"""Which of torch's operators do nothing but element-wise work, and which compiled functions torch does not see."""

from __future__ import annotations

import sys
from typing import Any

import torch

_NAMES = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_* _batch_norm_no_update _batch_norm_with_update _chunk_cat _conj
    _cummax_helper _cummin_helper _embedding_bag _embedding_bag_forward_only _foreach_* _fused_rms_norm
    _linalg_check_errors _local_scalar_dense _log_softmax _native_batch_norm_legit _native_batch_norm_legit_no_training
    _pin_memory _reshape_alias _reshape_copy _resize_output_ _safe_softmax _softmax _to_copy _unique _unique2
    _unsafe_index _unsafe_index_put _unsafe_view _upsample_* adaptive_max_pool2d adaptive_max_pool3d
    affine_grid_generator alias arange argsort as_strided avg_pool2d avg_pool3d batch_norm_* bernoulli bincount
    bucketize cat cauchy cdist_backward channel_shuffle col2im constant_pad_nd contiguous copy count_nonzero
    cudnn_batch_norm cummax cummin cumprod cumsum detach diff embedding empty* equal exponential eye fill fill_diagonal
    flip fractional_max_pool2d fractional_max_pool3d full* gather geometric grid_sampler_2d grid_sampler_3d histc
    im2col index index_add index_copy index_fill index_put index_reduce index_select is_* isin item kthvalue lift
    lift_fresh linalg_vector_norm linspace log_normal logcumsumexp logspace masked_scatter masked_select
    max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d median miopen_batch_norm mode multinomial
    nan_to_num nanmedian native_batch_norm native_channel_shuffle native_dropout native_group_norm native_layer_norm
    new_* nonzero nonzero_static normal normal_functional one_hot ones* pad pixel_shuffle pixel_unshuffle poisson put
    rand* random range reflection_pad* repeat* replication_pad* resize* roll rot90 scalar_tensor scatter* searchsorted
    segment_reduce select_scatter set slice_scatter sort split_with_sizes_copy squeeze stack std_mean swapaxes swapdims
    sym_* t take topk transpose tril tril_indices triu triu_indices unfold_copy uniform unique_* unsafe_chunk
    unsafe_split unsqueeze upsample_* var_mean view_copy zero zeros*
"""
ELEMENTWISE = frozenset(_NAMES.split())
"""Names of operators of torch, without the underscore of in-place ones, that neither have a tag that says so nor are
views: they copy, choose, sort, pool, normalise or resample. A star stands for any ending."""

_EXACT = frozenset(name for name in ELEMENTWISE if not name.endswith('*'))
_BEGINNINGS = tuple(name[:-1] for name in ELEMENTWISE if name.endswith('*'))
_KNOWN_ROOTS = frozenset({'torch', 'numpy', '_pytest', 'builtins'}) | sys.stdlib_module_names


def name_of(op: Any) -> str:
    """Its name as in ``torch.ops``, such as ``aten.linalg_inv_ex``."""
    return str(getattr(op, 'overloadpacket', op))


def is_elementwise(op: Any) -> bool:
    """Whether an operator of torch only moves, chooses, compares, reduces or changes elements one by one."""
    if op.namespace in ('prim', 'prims'):
        return True
    if op.namespace != 'aten':
        return False
    if op.is_view or _tagged(op):
        return True
    name = op.overloadpacket.__name__
    name = name.removesuffix('_')
    functional = getattr(torch.ops.aten, name, None)
    tagged = functional is not None and any(_tagged(getattr(functional, one)) for one in functional.overloads())
    return tagged or name in _EXACT or name.startswith(_BEGINNINGS)


def _tagged(op: Any) -> bool:
    return bool({torch.Tag.pointwise, torch.Tag.reduction} & set(op.tags))


class ForeignCalls:
    """Context: names of the compiled functions that Python calls meanwhile and that belong neither to Python nor torch.

    Extensions such as ``mmcv._ext`` compute without torch's dispatcher, where no counter sees them. Compiled code that
    calls other compiled code is not seen.

    Attributes:
        names: Such as ``mmcv._ext.ms_deform_attn_forward``.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __enter__(self) -> ForeignCalls:
        self._before = sys.getprofile()
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _watch(self, frame: Any, event: str, function: Any) -> None:
        if event == 'c_call':
            module = getattr(function, '__module__', None)
            if isinstance(module, str) and module.split('.')[0] not in _KNOWN_ROOTS:
                self.names.add(f'{module}.{function.__name__}')

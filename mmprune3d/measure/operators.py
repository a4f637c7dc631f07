"""Which of torch's operators do nothing but element-wise work, and which compiled functions torch does not see."""

from __future__ import annotations

import sys
from typing import Any

import torch

_NAMES = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _add_relu _aminmax _assert_* _batch_norm_no_update
    _batch_norm_with_update _chunk_cat _conj _conj_copy _copy_from _cummax_helper _cummin_helper _embedding_bag
    _embedding_bag_forward_only _foreach_* _functional_assert_async _fused_dropout _fused_rms_norm _fused_sdp_choice
    _fw_primal_copy _grid_sampler_2d_cpu_fallback _index_put_impl _is_all_true _is_any_true _lazy_clone
    _linalg_check_errors _local_scalar_dense _log_softmax _masked_scale _masked_softmax _native_batch_norm_legit
    _native_batch_norm_legit_no_training _neg_view_copy _pack_padded_sequence _pin_memory _prelu_kernel _reshape_alias
    _reshape_copy _resize_output_ _safe_softmax _softmax _stack _to_copy _unique _unique2 _unsafe_index
    _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate _unsafe_view _upsample_*
    _weight_norm_interface adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator alias alias_copy allclose
    arange argsort as_strided as_strided_copy as_strided_scatter avg_pool2d avg_pool3d batch_norm_* bernoulli
    binary_cross_entropy binary_cross_entropy_with_logits bincount binomial block_diag bucketize cat cauchy
    cdist_backward channel_shuffle col2im complex constant_pad_nd contiguous copy count_nonzero
    cudnn_affine_grid_generator cudnn_batch_norm cudnn_grid_sampler cummax cummin cumprod cumsum detach detach_copy
    diag_embed diagonal_copy diagonal_scatter diff dist embedding embedding_renorm empty* equal expand_copy exponential
    eye fill fill_diagonal flip floor_divide fractional_max_pool2d fractional_max_pool3d full* gather geometric glu
    grid_sampler_2d grid_sampler_3d hardswish histc huber_loss im2col index index_add index_copy index_fill index_put
    index_reduce index_select is_* isin item kthvalue lift lift_fresh lift_fresh_copy linalg_cross linalg_vector_norm
    linspace log_normal log_sigmoid_forward logcumsumexp logspace masked_scatter masked_select max_pool2d_with_indices
    max_pool3d_with_indices max_unpool2d max_unpool3d median miopen_batch_norm mkldnn_adaptive_avg_pool2d
    mkldnn_max_pool2d mkldnn_max_pool3d mode mse_loss multi_margin_loss multinomial nan_to_num nanmedian narrow_copy
    native_batch_norm native_channel_shuffle native_dropout native_group_norm native_layer_norm native_norm new_*
    nll_loss2d_forward nll_loss_forward nonzero nonzero_static normal normal_functional one_hot ones* pad permute_copy
    pixel_shuffle pixel_unshuffle poisson put rand* random range record_stream reflection_pad* renorm repeat*
    replication_pad* resize* roll rot90 rrelu_with_noise scalar_tensor scatter* searchsorted segment_reduce select_copy
    select_scatter set slice_copy slice_scatter smooth_l1_loss soft_margin_loss sort split_copy split_with_sizes_copy
    squeeze squeeze_copy stack std_mean swapaxes swapdims sym_* t t_copy take to_mkldnn topk trace transpose
    transpose_copy tril tril_indices triu triu_indices unbind_copy unfold_copy uniform unique_* unsafe_chunk
    unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy upsample_* values_copy var_mean view_as_complex_copy
    view_as_real_copy view_copy zero zeros*
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

"""The versions that state dicts carry out of sight, and that plain dicts lose."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor


def with_metadata(weights: Mapping[str, Tensor], *sources: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """`weights` as a state dict with the module versions of `sources`.

    mmdet3d permutes the weights of sparse convolutions that come without a version (it takes them for those of
    spconv 1), so what is made from a state dict must carry its versions on.

    Args:
        weights: Parameter name -> tensor.
        sources: The state dicts that they come from; later ones win.
    """
    made = OrderedDict(weights)
    versions: dict[str, dict] = {}
    for source in sources:
        versions |= getattr(source, '_metadata', {})
    made._metadata = OrderedDict(versions)
    return made

"""The module versions in the ``_metadata`` of state dicts, which are lost when these become plain dicts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor


def with_metadata(weights: Mapping[str, Tensor], *sources: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Returns `weights` as a state dict with the module versions of `sources`.

    mmdet3d permutes the weights of sparse convolutions that have no version (it assumes that they come from spconv 1),
    so a state dict that is derived from another one must keep its versions.

    Args:
        weights: Parameter name -> tensor.
        sources: State dicts from which the versions are taken; later ones take precedence.
    """
    made = OrderedDict(weights)
    versions: dict[str, dict] = {}
    for source in sources:
        versions |= getattr(source, '_metadata', {})
    made._metadata = OrderedDict(versions)
    return made

"""The maps that the streams of a fusion detector produce."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mmprune3d.adapters.fusion import resolve


@contextmanager
def recorded(model: nn.Module, paths: Mapping[str, str]) -> Iterator[dict[str, list[Tensor]]]:
    """Yields the maps that parts of a model return while the context is open.

    Args:
        model: A fusion detector.
        paths: Name -> path of a module or a method of the model.

    Yields:
        Name -> outputs of that part, detached, in the order of the calls.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in paths}
    with ExitStack() as stack:
        for name, path in paths.items():
            part = resolve(model, path)
            if isinstance(part, nn.Module):
                stack.callback(part.register_forward_hook(_hook(seen[name])).remove)
            else:
                setattr(model, path, _wrapped(part, seen[name]))
                stack.callback(delattr, model, path)
        yield seen


def _hook(outputs: list[Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        outputs.append(output.detach())

    return keep


def _wrapped(method: Callable[..., Tensor], outputs: list[Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any, **kwargs: Any) -> Tensor:
        output = method(*args, **kwargs)
        outputs.append(output.detach())
        return output

    return call

"""Why a tensor of a checkpoint does not fit a model, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

# torch's own message, and that of mmdet3d's spconv layers, which put the key beside the shape.
_SIZE_MISMATCH = re.compile(
    r'size mismatch for (?P<key>\S+): copying a param with shape [^\[]*\[(?P<saved>[\d, ]*)\]'
    r'.*the shape in current model is [^\[]*\[(?P<model>[\d, ]*)\]',
    re.DOTALL,
)
_QUERIES = re.compile(r'(reference_points|query_embed\w*|query_feat\w*|query_pos\w*)(\.weight)?$')
_BOX_CODES = re.compile(r'reg_branches\.\d+\.\d+\.(weight|bias)$')
_CLASSES = re.compile(
    r'(cls_branches|fc_cls|conv_cls|cls_pred|heatmap\w*|cls_head|(?<=head\.)cls|class_encoding)(\.|$)'
)


class CheckpointMismatchError(RuntimeError, ValueError):
    """The weights of a checkpoint do not fit the model that they were loaded into.

    A ValueError too, which is what all tools turn into one line.
    """


@dataclass(frozen=True)
class Mismatch:
    """One tensor whose shape differs.

    Args:
        key: Name of the tensor in the state dict.
        saved: Its shape in the checkpoint.
        model: Its shape in the model.
    """

    key: str
    saved: tuple[int, ...]
    model: tuple[int, ...]

    def __str__(self) -> str:
        return f'{self.key}: checkpoint {list(self.saved)}, model {list(self.model)}'

    @property
    def rows_only(self) -> bool:
        """Whether only the length of the first dimension differs."""
        return bool(self.saved and self.model) and self.saved[1:] == self.model[1:]


def parse_error(message: str) -> Mismatch | None:
    """The mismatch that torch describes in `message`, or None if it speaks of something else."""
    found = _SIZE_MISMATCH.search(message)
    if found is None:
        return None
    saved, model = (tuple(int(size) for size in re.findall(r'\d+', found[side])) for side in ('saved', 'model'))
    return Mismatch(found['key'], saved, model)


def remedy(mismatch: Mismatch) -> str:
    """What most likely went wrong with one tensor, and what to do, in one sentence."""
    saved, model = mismatch.saved, mismatch.model
    if sorted(saved) == sorted(model) and len(saved) == len(model) == 5:
        return _sparse_layout(mismatch)
    if mismatch.rows_only and _QUERIES.search(mismatch.key):
        return (
            f'the checkpoint has {saved[0]} queries, the model {model[0]}: set num_query={saved[0]} '
            f"(num_queries in mmdet's own heads), or load a checkpoint with {model[0]} queries"
            ' (mmprune3d compact makes one of a training with GPQHook)'
        )
    classes = _CLASSES.search(mismatch.key)
    if mismatch.rows_only and classes:
        return (
            f'the checkpoint classifies into {saved[0]} outputs, the model into {model[0]}: set num_classes as in the '
            'training of the checkpoint, or, to fine-tune on other classes, leave these weights out with '
            f"custom_hooks=[dict(type='AllowShapeMismatchHook', prefixes=['{mismatch.key[: classes.end(1)]}'])]"
        )
    if mismatch.rows_only and _BOX_CODES.search(mismatch.key) and {saved[0], model[0]} == {8, 10}:
        velocities = 'predicts velocities, the model does not' if saved[0] == 10 else 'predicts no velocities'
        prefix = mismatch.key.partition('reg_branches')[0] + 'reg_branches'
        return (
            f'the checkpoint has {saved[0]} numbers per box, the model {model[0]} (the checkpoint {velocities}): set '
            f'{saved[0]} code_weights, or, to fine-tune on boxes of the other kind, learn these weights anew with '
            f"custom_hooks=[dict(type='AllowShapeMismatchHook', prefixes=['{prefix}'])]"
        )
    if [size for size in saved if size != 1] == [size for size in model if size != 1]:
        return 'the same numbers in another shape (a linear layer against a 1x1 convolution): reshape the tensor'
    return (
        'the layers were built with different widths (embed_dims, in_channels, or channels removed by pruning): '
        'use the config that belongs to this checkpoint'
    )


def _sparse_layout(mismatch: Mismatch) -> str:
    """The remedy for a sparse convolution whose weights are stored in the other of the two known orders."""
    saved, model = mismatch.saved, mismatch.model
    if saved[-1:] + saved[:-1] == model:
        return (
            'the checkpoint stores sparse convolutions as (k, k, k, in, out), the model wants (out, k, k, k, in) of '
            'spconv 2: permute these weights by (4, 0, 1, 2, 3)'
        )
    if saved[1:] + saved[:1] == model:
        return (
            'either the state dict lost its _metadata (copies as plain dicts do), so that spconv 2 took its own '
            'weights for older ones and permuted them: keep _metadata; or the checkpoint stores (out, k, k, k, in) of '
            'spconv 2 and the model wants (k, k, k, in, out): permute these weights by (1, 2, 3, 4, 0)'
        )
    return 'the dimensions are stored in another order: permute these weights'


def explain(mismatches: list[Mismatch], shown: int = 10) -> str:
    """One message for all mismatches: key, both shapes, and every remedy once.

    Args:
        mismatches: What does not fit, at least one.
        shown: How many tensors are listed under each remedy before the rest is only counted.
    """
    groups: dict[str, list[Mismatch]] = {}
    for mismatch in mismatches:
        groups.setdefault(remedy(mismatch), []).append(mismatch)
    lines = [f'{len(mismatches)} tensors of the checkpoint have another shape than in the model.']
    for advice, members in groups.items():
        lines += [f'  {member}' for member in members[:shown]]
        if len(members) > shown:
            lines.append(f'  ... and {len(members) - shown} more of this kind')
        lines.append(f'  -> {advice}.')
    return '\n'.join(lines)

"""The methods of mmprune3d, as entries of the registry; see ``methods``."""

from __future__ import annotations

from .methods import Method, register

register(
    Method(
        name='tggbc',
        plan='mmprune3d.pruning.tggbc.TgGBCPlan',
        step='mmprune3d.upgrade.tggbc.KeyPruning',
        summary='removes the cross-attention keys that confident queries attend to least',
        detectors='PETR, DETR, Conditional DETR; other decoders that have an adapter',
        training='',
        carrier='`TgGBCHook` in `custom_hooks`',
        help='tgGBC scores the keys of a decoder layer by the attention of the most confident queries, and removes '
        'the lowest before the next layer. The weights stay as they are, so that nothing is trained. With '
        '"auto" instead of r and n, the plan that removes most while mAP and NDS drop by no more than '
        '--max-drop is searched on the test set.',
        hook='TgGBCHook',
        together=('gpq',),
    )
)
register(
    Method(
        name='tome',
        plan='mmprune3d.pruning.tome.ToMePlan',
        step='mmprune3d.upgrade.tggbc.KeyPruning',
        summary='merges the cross-attention keys that are most alike, to compare tggbc with',
        detectors='as tggbc',
        training='',
        carrier='`ToMeHook` in `custom_hooks`',
        help='Token merging (ToMe) on the keys of cross-attention: the baseline that the tgGBC paper compares '
        'with. At most half of the keys of a layer can be merged. With "auto" instead of r and n, a plan is '
        'searched as for tggbc.',
        hook='ToMeHook',
        together=('gpq',),
    )
)
register(
    Method(
        name='gpq',
        plan='mmprune3d.pruning.gpq.GPQPlan',
        step='mmprune3d.upgrade.gpq.QueryPruning',
        summary='removes the object queries with the lowest scores, one by one, in a fine-tuning',
        detectors='PETR, DETR3D, DETR, Conditional DETR; other learned queries that have an adapter',
        training='fine-tuning, 6 epochs of pruning in the paper',
        carrier='nothing: the checkpoint has fewer queries',
        help='Gradual pruning of queries (GPQ) fine-tunes the detector; at equal intervals the query with the '
        'lowest mean class score is removed, until the target is left. The result is the unmodified detector '
        'with fewer queries.',
    )
)
register(
    Method(
        name='altermoma',
        plan='mmprune3d.pruning.altermoma.AlterMOMAPlan',
        step='mmprune3d.upgrade.altermoma.FusionPruning',
        summary='removes weights or channels that are redundant between sensors, and fine-tunes',
        detectors='camera-LiDAR fusion: BEVFusion, MVXNet and others with a fusion map',
        training='fine-tuning, as many epochs as the config trains unless --epochs says otherwise',
        carrier='the checkpoint: zeros and masks (`MaskHook`), or a smaller model (`SlimDetector`)',
        help='AlterMOMA masks one modality in turn and trains the rest for some steps; weights that only repeat '
        'what the other sensor gives score lowest. sparsity=S removes single weights; flops=F or params=P '
        'remove whole channels, which makes the detector faster. Other criteria (snip, prospr, synflow, '
        'magnitude, random) are there to compare with.',
    )
)
register(
    Method(
        name='halting',
        plan='mmprune3d.pruning.halting.HaltingPlan',
        step='mmprune3d.upgrade.halting.HaltingUpgrade',
        summary='lets LiDAR tokens with low scores skip the remaining layers, after fine-tuning',
        detectors='SST',
        training='fine-tuning, as many epochs as the config trains unless --epochs says otherwise',
        carrier='the model: `HaltingSSTDetector` with `HaltingSST`',
        help='Small modules before the first two blocks of an SST score the tokens; tokens below a threshold halt, '
        'and come back for the detection head. The modules are trained together with the detector, with a '
        'loss that keeps the sparsity that is asked for.',
    )
)

# Monocular pre-training of petr_tiny's backbone and neck by the dense auxiliary head alone.
_base_ = ['./petr_tiny.py']

model = dict(aux_only=True)
train_dataloader = dict(batch_size=8)
max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs + 1)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=200),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min_ratio=1e-2,
        convert_to_iter_based=True,
    ),
]

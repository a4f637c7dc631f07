_base_ = ['../petr/petr_tiny.py']
custom_hooks = [dict(type='GPQHook', target=100, epochs=1)]
load_from = 'configs/petr/petr_tiny.pth'
optim_wrapper = dict(optimizer=dict(lr=2e-4))
max_epochs = 2
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, end=max_epochs, T_max=max_epochs, convert_to_iter_based=True),
]

_base_ = ['../petr/petr_vov-gridmask_p4_800x320.py']
custom_hooks = [dict(type='GPQHook', target=300, epochs=6)]
load_from = 'ckpts/petr_vov_gridmask_p4_800x320.pth'  # official weights, converted
optim_wrapper = dict(optimizer=dict(lr=1e-4))

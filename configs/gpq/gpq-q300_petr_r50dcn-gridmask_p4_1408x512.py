_base_ = ['../petr/petr_r50dcn-gridmask_p4_1408x512.py']
custom_hooks = [dict(type='GPQHook', target=300, epochs=6)]
load_from = 'ckpts/petr_r50dcn_gridmask_p4_1408x512.pth'  # official weights, converted
optim_wrapper = dict(optimizer=dict(lr=1e-4))

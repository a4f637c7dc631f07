_base_ = ['../petr/petr_vov-gridmask_p4_1600x640.py']
custom_hooks = [dict(type='TgGBCHook', r=18000, n=2, k=175)]

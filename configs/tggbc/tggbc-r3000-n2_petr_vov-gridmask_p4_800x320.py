_base_ = ['../petr/petr_vov-gridmask_p4_800x320.py']
custom_hooks = [dict(type='TgGBCHook', r=3000, n=2, k=175)]

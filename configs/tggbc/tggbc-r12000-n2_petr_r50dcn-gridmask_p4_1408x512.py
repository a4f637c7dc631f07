_base_ = ['../petr/petr_r50dcn-gridmask_p4_1408x512.py']
custom_hooks = [dict(type='TgGBCHook', r=12000, n=2, k=175)]

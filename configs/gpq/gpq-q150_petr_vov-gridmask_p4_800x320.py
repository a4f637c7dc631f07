_base_ = ['./gpq-q300_petr_vov-gridmask_p4_800x320.py']
custom_hooks = [dict(type='GPQHook', target=150, epochs=6)]

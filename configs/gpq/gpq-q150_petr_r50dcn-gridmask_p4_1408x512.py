_base_ = ['./gpq-q300_petr_r50dcn-gridmask_p4_1408x512.py']
custom_hooks = [dict(type='GPQHook', target=150, epochs=6)]

# GPQ-t: the same hook in a training from scratch.
_base_ = ['../petr/petr_r50dcn-gridmask_p4_1408x512.py']
custom_hooks = [dict(type='GPQHook', target=300, epochs=6)]

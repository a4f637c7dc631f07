_base_ = ['./gpq-q100_petr_tiny.py']
custom_hooks = [dict(type='GPQHook', target=50, epochs=1)]
